//! One standard stream: the bytes between a process's pipe or terminal and its connection to the
//! host.
//!
//! Nothing here waits. A side that is not ready leaves the stream as it is until epoll says otherwise
//! (edge-triggered), with at most one buffer of bytes under way, so that a host that does not read
//! stalls this stream alone, and through its pipe the process that fills it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use protocol::{STREAM_PORT, StreamToken};
use rustix::{
    io::{Errno, read, write},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use crate::sys;

/// Size of the buffer that all streams share for reading: what a pipe holds.
pub const BUFFER: usize = 64 << 10;

/// Buffers moved before other streams have their turn.
const TURN: usize = 16;

/// What is read at most after the process has ended: the largest pipe a process could have made and
/// filled (`/proc/sys/fs/pipe-max-size`). More comes from somebody else who still holds the stream.
const DRAIN_LIMIT: usize = 1 << 20;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Standard input.
    ToProcess,
    /// Standard output and error.
    ToHost,
}

/// What became of a [`Stream::advance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// One of the sides is not ready.
    Waiting,
    /// There is more to do, but others should have their turn.
    Unfinished,
    /// Over, by end of file, a side that is gone, or all drained.
    Ended,
}

/// A stream. Dropping it closes both sides.
pub struct Stream {
    direction: Direction,
    local: OwnedFd,
    /// `None`: what is read is dropped.
    host: Option<OwnedFd>,
    /// What still has to be sent before anything else.
    token: Option<StreamToken>,
    /// Read and not yet written.
    pending: Vec<u8>,
    /// Bytes that may still be read, once the process has ended.
    drain: Option<usize>,
}

impl Stream {
    /// Begins to connect the agent's end of a pipe or terminal, which must not block, to the host.
    ///
    /// # Errors
    ///
    /// Those of socket(2) and connect(2).
    pub fn connect(local: OwnedFd, direction: Direction, token: StreamToken) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let host = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
        match sys::connect_to_host(host.as_fd(), STREAM_PORT) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        Ok(Self::new(local, direction, Some(host), Some(token)))
    }

    /// An output that nobody wants.
    pub fn discard(local: OwnedFd) -> Self {
        Self::new(local, Direction::ToHost, None, None)
    }

    fn new(
        local: OwnedFd,
        direction: Direction,
        host: Option<OwnedFd>,
        token: Option<StreamToken>,
    ) -> Self {
        Self {
            direction,
            local,
            host,
            token,
            pending: Vec::new(),
            drain: None,
        }
    }

    /// The pipe or terminal.
    pub fn local(&self) -> BorrowedFd<'_> {
        self.local.as_fd()
    }

    /// The connection.
    pub fn host(&self) -> Option<BorrowedFd<'_>> {
        self.host.as_ref().map(AsFd::as_fd)
    }

    /// Whether the side that is written to is the host's.
    pub fn writes_to_host(&self) -> bool {
        self.direction == Direction::ToHost
    }

    /// The process has ended: what it left behind is sent, and the stream ends there, even where
    /// somebody else keeps it open.
    pub fn drain(&mut self) {
        self.drain = Some(DRAIN_LIMIT);
    }

    /// Moves what can be moved without waiting.
    pub fn advance(&mut self, buffer: &mut [u8]) -> Progress {
        match self.send_token() {
            Ok(()) => {}
            // Not connected yet, or not any more: that has its own event.
            Err(Errno::NOTCONN | Errno::AGAIN) => return Progress::Waiting,
            Err(_) => return Progress::Ended,
        }
        for _ in 0..TURN {
            if let Some(progress) = self.step(buffer) {
                return progress;
            }
        }
        Progress::Unfinished
    }

    fn send_token(&mut self) -> rustix::io::Result<()> {
        if let (Some(token), Some(host)) = (self.token, &self.host) {
            // The first bytes of a connection find room for as many.
            write(host, &token.0)?;
            self.token = None;
        }
        Ok(())
    }

    /// Writes what is pending or reads a buffer; `None` when there may be more to do.
    fn step(&mut self, buffer: &mut [u8]) -> Option<Progress> {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            return self.put(&pending);
        }
        let limit = self
            .drain
            .map_or(buffer.len(), |left| left.min(buffer.len()));
        if limit == 0 {
            return Some(Progress::Ended);
        }
        let source = match (self.direction, &self.host) {
            (Direction::ToProcess, Some(host)) => host,
            _ => &self.local,
        };
        match read(source, &mut buffer[..limit]) {
            // EIO: a terminal that no process has open.
            Ok(0) | Err(Errno::IO) => Some(Progress::Ended),
            Ok(count) => {
                if let Some(left) = &mut self.drain {
                    *left -= count;
                }
                self.put(&buffer[..count])
            }
            Err(Errno::AGAIN) if self.drain.is_some() => Some(Progress::Ended),
            Err(Errno::AGAIN) => Some(Progress::Waiting),
            Err(Errno::INTR) => None,
            Err(_) => Some(Progress::Ended),
        }
    }

    /// Writes what it can of `bytes` and keeps the rest; `None` when all was written.
    fn put(&mut self, bytes: &[u8]) -> Option<Progress> {
        let sink = match (self.direction, &self.host) {
            (Direction::ToProcess, _) => &self.local,
            (Direction::ToHost, Some(host)) => host,
            (Direction::ToHost, None) => return None,
        };
        let mut written = 0;
        while written < bytes.len() {
            match write(sink, &bytes[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.pending.extend_from_slice(&bytes[written..]);
                    return Some(Progress::Waiting);
                }
                Err(_) => return Some(Progress::Ended),
            }
        }
        None
    }
}
