//! Somewhere to write what a guest says without ever waiting for a reader.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Makes an open file nonblocking, for everybody who shares it.
///
/// # Errors
///
/// Those of `fcntl(2)`.
pub fn set_nonblocking(file: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A descriptor that takes what it can at once; the rest is dropped and counted.
#[derive(Debug)]
pub struct Output {
    file: File,
    dropped: u64,
}

impl Output {
    /// Makes the open file nonblocking, for everybody who shares it.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)`.
    pub fn new(file: File) -> io::Result<Self> {
        set_nonblocking(&file)?;
        Ok(Self { file, dropped: 0 })
    }

    /// Bytes dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes what is taken at once.
    pub fn offer(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(count) if count > 0 => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Full, or nobody will ever read it.
                _ => break,
            }
        }
        self.dropped = self.dropped.saturating_add(bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    #[test]
    fn a11_full_pipe_drops_and_counts() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::new(OwnedFd::from(writer).into()).unwrap();
        let mut offered = 0;
        while output.dropped() == 0 {
            output.offer(&[b'x'; 5000]);
            offered += 5000;
        }
        let dropped = output.dropped();
        drop(output);
        let mut taken = Vec::new();
        reader.read_to_end(&mut taken).unwrap();
        assert_eq!(taken.len() as u64 + dropped, offered);
    }

    #[test]
    fn a11_closed_pipe_drops_and_counts() {
        let (reader, writer) = io::pipe().unwrap();
        let mut output = Output::new(OwnedFd::from(writer).into()).unwrap();
        drop(reader);
        output.offer(b"nobody");
        assert_eq!(output.dropped(), 6);
    }
}
