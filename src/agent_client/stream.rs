//! Standard streams: which connection is which, and the threads that carry their bytes.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use protocol::StreamToken;

/// Bytes that one read takes at most: what a pipe holds by default.
const CHUNK: usize = 64 << 10;

/// Most connections that have not said yet which stream they are; one more pushes the oldest out.
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

/// Connections to [`protocol::STREAM_PORT`] whose token has not arrived yet.
#[derive(Debug, Default)]
pub struct Unknown {
    waiting: VecDeque<(UnixStream, Vec<u8>)>,
}

impl Unknown {
    /// Takes in a new connection.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be configured.
    pub fn add(&mut self, connection: UnixStream) -> io::Result<()> {
        connection.set_nonblocking(true)?;
        if self.waiting.len() == MAX_UNKNOWN {
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

/// Carries `input` to the guest until its end, which the guest sees as a half-close, or until the guest
/// wants no more. Runs by itself: a terminal that nobody types on ends with the connection.
///
/// # Errors
///
/// Where no thread can be started.
pub fn carry_input(input: OwnedFd, connection: UnixStream) -> io::Result<()> {
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            // Whatever the reason, the guest is told that this is all.
            let _ = copy_input(&mut File::from(input), &connection);
            let _ = connection.shutdown(Shutdown::Write);
        })
        .map(drop)
}

fn copy_input(input: &mut File, mut connection: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut watched = [
            PollFd::new(input.as_fd(), PollFlags::POLLIN),
            PollFd::new(connection.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        if watched[1].any() == Some(true) {
            return Ok(());
        }
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => connection.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A non-blocking input that somebody else emptied between poll and read.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// One output stream on its way to the host.
#[derive(Debug)]
pub struct Output {
    thread: JoinHandle<io::Result<()>>,
}

impl Output {
    /// Carries what the guest writes to `sink` until the guest ends the stream, or the sink takes no
    /// more: then the connection is closed, so that the guest's writer learns of it. Drops `done` at
    /// the end.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn carry<D: Send + 'static>(
        connection: UnixStream,
        mut sink: impl Write + Send + 'static,
        done: D,
    ) -> io::Result<Self> {
        let thread = thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                let result = copy_output(&connection, &mut sink);
                drop((connection, done));
                result
            })?;
        Ok(Self { thread })
    }

    /// Waits for the end of the stream.
    ///
    /// # Errors
    ///
    /// The sink's, but for a closed pipe: whoever closed it wanted no more.
    pub fn join(self) -> io::Result<()> {
        match self.thread.join() {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

fn copy_output(mut connection: &UnixStream, sink: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                sink.write_all(&buffer[..length])?;
                sink.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The guest ended the stream in a hurry; what came before is delivered.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::PipeReader, sync::mpsc};

    use super::*;

    fn pipe_with(bytes: &[u8]) -> PipeReader {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        reader
    }

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

    #[test]
    fn the_end_of_the_input_is_the_end_of_the_stream() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        carry_input(pipe_with(b"all of it").into(), ours).unwrap();
        let mut received = Vec::new();
        guest.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"all of it");
    }

    #[test]
    fn output_that_nobody_takes_ends_the_stream() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (done, ended) = mpsc::channel::<()>();
        let output = Output::carry(ours, writer, done).unwrap();
        guest.write_all(b"x").unwrap();
        assert!(ended.recv().is_err());
        output.join().unwrap();
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    }
}
