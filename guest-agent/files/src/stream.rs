//! The two ends of a stream of files.

use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    os::fd::BorrowedFd,
};

use protocol::{
    files::{Entry, Extent, Found, Item},
    frame::{self, FrameError},
};
use rustix::io::{Errno, pread};

use crate::FilesError;

/// Bytes that are moved at once.
pub const PIECE: usize = 64 << 10;

/// Where entries are sent.
pub struct Sender<W: Write> {
    output: BufWriter<W>,
    piece: Vec<u8>,
    bytes: u64,
}

impl<W: Write> Sender<W> {
    /// Sends to `output`.
    pub fn new(output: W) -> Self {
        Self {
            output: BufWriter::with_capacity(PIECE, output),
            piece: vec![0; PIECE],
            bytes: 0,
        }
    }

    /// Sends one item, of which an entry's content must follow.
    ///
    /// # Errors
    ///
    /// Where the other end takes no more.
    pub fn send(&mut self, item: &Item) -> Result<(), FilesError> {
        Ok(frame::write(&mut self.output, item)?)
    }

    /// Sends what was held back.
    ///
    /// # Errors
    ///
    /// Where the other end takes no more.
    pub fn flush(&mut self) -> Result<(), FilesError> {
        Ok(self.output.flush().map_err(FrameError::from)?)
    }

    /// Sends the extents of a file. Of one that is shorter by now zeros are sent, since its length was told.
    ///
    /// # Errors
    ///
    /// Where the other end takes no more, and as reading failed; zeros stand in for what could not be read.
    pub fn content(
        &mut self,
        file: BorrowedFd<'_>,
        extents: &[Extent],
    ) -> Result<Result<(), Errno>, FilesError> {
        let mut outcome = Ok(());
        for extent in extents {
            let (mut at, mut left) = (extent.offset, extent.length);
            while left > 0 {
                let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
                let piece = &mut self.piece[..most];
                let count = match pread(file, &mut *piece, at) {
                    Ok(count) if count > 0 => count,
                    Err(Errno::INTR) => continue,
                    end => {
                        outcome = outcome.and(end.map(drop));
                        piece.fill(0);
                        most
                    }
                };
                let sent = self.output.write_all(&self.piece[..count]);
                sent.map_err(FrameError::from)?;
                at += count as u64;
                left -= count as u64;
                self.bytes += count as u64;
            }
        }
        Ok(outcome)
    }

    /// Sends content that is not in a file: all that `input` has, which must be what was told.
    ///
    /// # Errors
    ///
    /// Where the other end takes no more.
    pub fn bytes(&mut self, input: &[u8]) -> Result<(), FilesError> {
        self.bytes += input.len() as u64;
        Ok(self.output.write_all(input).map_err(FrameError::from)?)
    }

    /// Bytes of content sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.bytes
    }
}

/// Where entries come from.
pub struct Receiver<R> {
    input: BufReader<R>,
    /// Bytes of the last entry's content that were not read.
    content: u64,
    /// An entry that was looked at and is still to be taken.
    ahead: Option<Entry>,
}

impl<R: Read> Receiver<R> {
    /// Receives from `input`.
    pub fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(PIECE, input),
            content: 0,
            ahead: None,
        }
    }

    /// What there is where entries shall go.
    ///
    /// # Errors
    ///
    /// Where the other end failed, or says something else.
    pub fn found(&mut self) -> Result<Found, FilesError> {
        match self.item()? {
            Item::Found(found) => Ok(found),
            _ => Err(FilesError::Unexpected),
        }
    }

    /// The next entry, which is as it should be, or what was left out at the end. The content of the entry before is
    /// passed over where nobody read it.
    ///
    /// # Errors
    ///
    /// Where the other end failed, says something else, or ends before its time.
    pub fn next_entry(&mut self) -> Result<Result<Entry, u64>, FilesError> {
        if let Some(entry) = self.ahead.take() {
            return Ok(Ok(entry));
        }
        let mut rest = (&mut self.input).take(self.content);
        let passed = io::copy(&mut rest, &mut io::sink()).map_err(FrameError::from)?;
        if passed < self.content {
            return Err(FrameError::from(io::Error::from(io::ErrorKind::UnexpectedEof)).into());
        }
        self.content = 0;
        match self.item()? {
            Item::Entry(entry) => {
                entry.check()?;
                self.content = entry.content_bytes();
                Ok(Ok(entry))
            }
            Item::End { left_out } => Ok(Err(left_out)),
            _ => Err(FilesError::Unexpected),
        }
    }

    /// Looks at the next entry, without taking it: the first, which must be there.
    ///
    /// # Errors
    ///
    /// As [`next_entry`](Self::next_entry), and where there is none.
    pub fn first(&mut self) -> Result<&Entry, FilesError> {
        let first = self.next_entry()?.map_err(|_| FilesError::Unexpected)?;
        Ok(self.ahead.insert(first))
    }

    fn item(&mut self) -> Result<Item, FilesError> {
        match frame::read(&mut self.input)? {
            Some(Item::Failed {
                action,
                path,
                errno,
            }) => Err(FilesError::File {
                action,
                path,
                remote: true,
                source: match errno {
                    0 => io::ErrorKind::Other.into(),
                    errno => io::Error::from_raw_os_error(errno),
                },
            }),
            Some(item) => Ok(item),
            None => Err(FrameError::from(io::Error::from(io::ErrorKind::UnexpectedEof)).into()),
        }
    }
}

impl<R: Read> Read for Receiver<R> {
    /// Reads of the content of the entry that came last, up to its end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most =
            usize::try_from(self.content).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= count as u64;
        Ok(count)
    }
}
