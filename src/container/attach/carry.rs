//! The threads that carry bytes between a command's own standard streams and a container's.

use std::{
    fs::File,
    io::{self, PipeWriter, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::keys::DetachKeys;

/// Bytes that one read takes at most: what a pipe holds by default.
const CHUNK: usize = 64 << 10;

/// Carries `input` to the container until its end, which is passed on as a half-close, until the container wants no more,
/// or until the detach keys are typed: then it is dropped with `detached`, whose other end tells. Runs by itself: a
/// terminal that nobody types on ends with the connection.
///
/// # Errors
///
/// Where no thread can be started.
pub fn carry_input(
    input: OwnedFd,
    connection: UnixStream,
    keys: Option<(DetachKeys, PipeWriter)>,
) -> io::Result<()> {
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let mut input = File::from(input);
            let (mut keys, mut detached) = keys.unzip();
            // Whatever the reason, the container is told that this is all.
            if let Ok(true) = copy_input(&mut input, &connection, keys.as_mut()) {
                // A command that has ended needs no telling.
                let _ = detached.as_mut().map(|detached| detached.write_all(b"d"));
            } else {
                let _ = connection.shutdown(Shutdown::Write);
            }
        })
        .map(drop)
}

/// Whether it ended by the detach keys.
fn copy_input(
    input: &mut File,
    mut connection: &UnixStream,
    mut keys: Option<&mut DetachKeys>,
) -> io::Result<bool> {
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
            return Ok(false);
        }
        match input.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => match &mut keys {
                None => connection.write_all(&buffer[..length])?,
                Some(keys) => {
                    let (typed, detach) = keys.filter(&buffer[..length]);
                    connection.write_all(&typed)?;
                    if detach {
                        return Ok(true);
                    }
                }
            },
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
    /// Carries what the container writes to `sink` until the stream ends, or the sink takes no more: then the connection is
    /// ended, whoever else has it, so that the writer learns of it. Drops `done` at the end.
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
                // One that has ended by itself needs no more.
                let _ = connection.shutdown(Shutdown::Both);
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
    fn the_end_of_the_input_is_the_end_of_the_stream() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        carry_input(pipe_with(b"all of it").into(), ours, None).unwrap();
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

    #[test]
    fn the_detach_keys_end_the_input_and_not_the_stream() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (mut told, tell) = io::pipe().unwrap();
        let keys = DetachKeys::default();
        carry_input(
            pipe_with(b"typed\x10\x11more").into(),
            ours,
            Some((keys, tell)),
        )
        .unwrap();
        told.read_exact(&mut [0]).unwrap();
        let mut received = Vec::new();
        guest.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"typed");
    }
}
