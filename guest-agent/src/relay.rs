//! Bytes carried between a connection in the guest and one to the host, both ways, without waiting.

use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::{Errno, read, write},
    net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socket_with},
};

use crate::sys;

/// Turns of one event before others have theirs.
pub const TURNS: usize = 16;

/// A connection in the guest and the one to the host that carries it on.
pub struct Connection {
    client: OwnedFd,
    host: OwnedFd,
    to_host: Way,
    to_client: Way,
}

/// One direction of a connection.
#[derive(Default)]
struct Way {
    pending: Vec<u8>,
    ended: bool,
}

impl Connection {
    /// Of two sockets that need not be connected yet; `greeting` goes to the host before anything else.
    pub fn new(client: OwnedFd, host: OwnedFd, greeting: Vec<u8>) -> Self {
        Self {
            client,
            host,
            to_host: Way {
                pending: greeting,
                ended: false,
            },
            to_client: Way::default(),
        }
    }

    /// The socket in the guest.
    pub fn client(&self) -> &OwnedFd {
        &self.client
    }

    /// Moves what can be moved without waiting; whether that was all.
    ///
    /// # Errors
    ///
    /// Where one of them is broken, and when both ways have ended.
    pub fn advance(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let out = self.to_host.advance(&self.client, &self.host, buffer)?;
        let back = self.to_client.advance(&self.host, &self.client, buffer)?;
        match self.to_host.ended && self.to_client.ended {
            true => Err(ErrorKind::UnexpectedEof.into()),
            false => Ok(out && back),
        }
    }
}

impl Way {
    fn advance(&mut self, from: &OwnedFd, to: &OwnedFd, buffer: &mut [u8]) -> io::Result<bool> {
        for _ in 0..TURNS {
            put(to, &mut self.pending)?;
            if !self.pending.is_empty() || self.ended {
                return Ok(true);
            }
            match read(from, &mut *buffer) {
                Ok(0) => {
                    self.ended = true;
                    shutdown(to, Shutdown::Write)?;
                }
                Ok(length) => self.pending.extend_from_slice(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }
}

/// Begins to connect to the host.
///
/// # Errors
///
/// Those of the kernel.
pub fn connect(port: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    match sys::connect_to_host(socket.as_fd(), port) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// Writes what the other end takes of `bytes`; one that is not connected yet takes nothing.
///
/// # Errors
///
/// Where there is no other end.
pub fn put(to: &OwnedFd, bytes: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(count) => drop(bytes.drain(..count)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOTCONN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
