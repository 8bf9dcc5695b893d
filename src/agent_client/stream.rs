//! Standard streams: which of the guest's connections is which.

use std::{
    collections::VecDeque,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use protocol::StreamToken;

/// Most connections that have not said yet which stream they are.
const MAX_UNKNOWN: usize = 16;

/// A new token.
///
/// # Errors
///
/// Where the system has no random bits to give.
pub fn token() -> Result<StreamToken, getrandom::Error> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits)?;
    Ok(StreamToken(bits))
}

/// Connections whose token has not arrived yet.
#[derive(Debug)]
pub struct Unknown {
    waiting: VecDeque<(UnixStream, Vec<u8>)>,
    limit: usize,
}

impl Default for Unknown {
    /// For those to [`protocol::STREAM_PORT`].
    fn default() -> Self {
        Self::with_limit(MAX_UNKNOWN)
    }
}

impl Unknown {
    /// For as many; one more pushes the oldest out.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            limit,
        }
    }

    /// Takes in a new connection.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be configured.
    pub fn add(&mut self, connection: UnixStream) -> io::Result<()> {
        connection.set_nonblocking(true)?;
        if self.waiting.len() == self.limit {
            self.waiting.pop_front();
        }
        self.waiting.push_back((connection, Vec::new()));
        Ok(())
    }

    /// What to poll for reading.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.waiting
            .iter()
            .map(|(connection, _)| connection.as_fd())
    }

    /// Reads what has arrived, and returns those that are known now; one that ended or failed before is
    /// dropped.
    pub fn identify(&mut self) -> Vec<(StreamToken, UnixStream)> {
        let mut known = Vec::new();
        for (mut connection, mut bytes) in std::mem::take(&mut self.waiting) {
            let mut rest = [0; size_of::<StreamToken>()];
            let missing = rest.len() - bytes.len();
            match connection.read(&mut rest[..missing]) {
                Ok(0) => continue,
                Ok(length) => bytes.extend_from_slice(&rest[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => continue,
            }
            match <[u8; 16]>::try_from(bytes.as_slice()) {
                Ok(token) if connection.set_nonblocking(false).is_ok() => {
                    known.push((StreamToken(token), connection));
                }
                Ok(_) => {}
                Err(_) => self.waiting.push_back((connection, bytes)),
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a16_only_a_whole_token_makes_a_stream() {
        let mut unknown = Unknown::default();
        let (ours, mut guest) = UnixStream::pair().unwrap();
        unknown.add(ours).unwrap();
        guest.write_all(&[7; 10]).unwrap();
        assert!(unknown.identify().is_empty());
        guest.write_all(&[7; 7]).unwrap();

        let (token, mut stream) = unknown.identify().pop().unwrap();
        assert_eq!(token, StreamToken([7; 16]));
        let mut rest = [0; 1];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(rest, [7]);
    }

    #[test]
    fn a16_connections_that_say_nothing_are_bounded() {
        let mut unknown = Unknown::default();
        let mut guests = Vec::new();
        for _ in 0..100 {
            let (ours, guest) = UnixStream::pair().unwrap();
            unknown.add(ours).unwrap();
            guests.push(guest);
        }
        assert_eq!(unknown.descriptors().count(), MAX_UNKNOWN);
    }
}
