//! The control connection: frames to and from the host, without ever waiting for it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use protocol::{
    AgentMessage, CONTROL_PORT, HostMessage,
    frame::{self, FrameError},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, read, write},
    net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt::socket_error},
};

use crate::sys;

/// The connection.
pub struct Control {
    socket: OwnedFd,
    received: Vec<u8>,
    unsent: Vec<u8>,
    at_end: bool,
}

impl Control {
    /// Begins to connect.
    ///
    /// # Errors
    ///
    /// Those of socket(2) and connect(2).
    pub fn connect() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
        match sys::connect_to_host(socket.as_fd(), CONTROL_PORT) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        Ok(Self {
            socket,
            received: Vec::new(),
            unsent: Vec::new(),
            at_end: false,
        })
    }

    /// Waits for the host's answer.
    ///
    /// # Errors
    ///
    /// `ECONNRESET` where the host does not listen.
    pub fn wait_connected(&mut self) -> io::Result<()> {
        poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], None)?;
        Ok(socket_error(&self.socket)??)
    }

    /// For epoll.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a message, now or when the host takes it.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn send(&mut self, message: &AgentMessage) -> Result<(), FrameError> {
        self.unsent.extend(frame::encode(message)?);
        self.flush()
    }

    /// Sends what is left as far as the host takes it.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn flush(&mut self) -> Result<(), FrameError> {
        while !self.unsent.is_empty() {
            match write(&self.socket, &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// The next message; `None` when there is no whole one.
    ///
    /// # Errors
    ///
    /// Those of the connection, and of what is no message.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<HostMessage>, FrameError> {
        loop {
            if let Some(message) = frame::take(&mut self.received)? {
                if self.received.is_empty() {
                    // A long one must not hold its memory for as long as the container runs.
                    self.received = Vec::new();
                }
                return Ok(Some(message));
            }
            match read(&self.socket, &mut *buffer) {
                Ok(0) => {
                    self.at_end = true;
                    return Ok(None);
                }
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    /// Whether the host has closed the connection.
    pub fn at_end(&self) -> bool {
        self.at_end
    }
}
