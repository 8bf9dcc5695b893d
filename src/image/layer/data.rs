//! The data file of a layer: the contents of its files, each from a block of 4 KiB on.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use super::sparse::BLOCK;

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;
/// A gap from which on it becomes a hole in the file rather than zeros.
const HOLE: u64 = 64 << 10;

/// Writes a data file from its start to its end.
pub struct Writer {
    file: File,
    buffer: Vec<u8>,
    /// Position behind the buffered bytes.
    position: u64,
}

impl Writer {
    /// Starts at the beginning of an empty file.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER),
            position: 0,
        }
    }

    /// The block that the next content starts at.
    #[must_use]
    pub fn next_block(&self) -> u64 {
        self.position.div_ceil(BLOCK)
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            self.file.write_all(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Moves on to a later position; what lies between reads as zeros.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn advance(&mut self, position: u64) -> io::Result<()> {
        let gap = position.saturating_sub(self.position);
        if gap < HOLE {
            return self.write(&[0; HOLE as usize][..gap as usize]);
        }
        self.flush()?;
        self.file.seek(SeekFrom::Start(position))?;
        self.position = position;
        Ok(())
    }

    /// Ends the file at `block` and sees it onto the disk.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn finish(mut self, block: u64) -> io::Result<()> {
        self.flush()?;
        self.file.set_len(block * BLOCK)?;
        self.file.sync_all()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
