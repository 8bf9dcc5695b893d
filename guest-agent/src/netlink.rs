//! Messages to the kernel over netlink(7), as far as the agent has any to send: it builds them and reads nothing back
//! but errors.

use std::{io, os::fd::OwnedFd};

use libc::NLM_F_REQUEST;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of the largest answer: an error, and the header of what it is about.
const ANSWER: usize = 1024;

/// A connection to one of the kernel's parts.
///
/// # Errors
///
/// Those of socket(2).
pub fn open(part: Option<Protocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        flags,
        part,
    )?)
}

/// Sends requests of which the last wants an acknowledgement, and reads the first answer, `struct nlmsgerr`: an error
/// number or zero.
///
/// # Errors
///
/// The kernel's.
pub fn ask(socket: &OwnedFd, messages: &[u8]) -> io::Result<()> {
    send(socket, messages, SendFlags::empty())?;
    let mut answer = [0; ANSWER];
    let (length, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    let error = answer[..length]
        .get(HEADER..HEADER + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match error {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A netlink message under construction (netlink(7)).
pub struct Message(Vec<u8>);

impl Message {
    /// A request of this type with these flags.
    pub fn new(kind: u16, flags: i32) -> Self {
        // All of them are below 2^16.
        let flags = (NLM_F_REQUEST | flags) as u16;
        let mut message = Self(vec![0; 4]);
        // Sequence number and port are of no use to one who asks one thing at a time.
        message
            .put(&kind.to_ne_bytes())
            .put(&flags.to_ne_bytes())
            .put(&[0; 8]);
        message
    }

    /// Appends bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A `struct rtattr` of a few bytes, padded to four.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.put(&length.to_ne_bytes())
            .put(&kind.to_ne_bytes())
            .put(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// An attribute that consists of attributes.
    pub fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        let kind = kind | libc::NLA_F_NESTED as u16;
        self.put(&[0; 2]).put(&kind.to_ne_bytes());
        content(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// With the length in its place.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_ACK);
        message.put(&[2, 24, 0, 0]).put(&7u32.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &[10, 0, 0, 1]);
        message.attribute(libc::IFA_ADDRESS, b"12345");
        let bytes = message.finish();
        assert_eq!(bytes[..4], 44u32.to_ne_bytes());
        assert_eq!(bytes[4..8], [20, 0, 5, 0]);
        assert_eq!(bytes[16..24], [2, 24, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[24..32], [8, 0, 2, 0, 10, 0, 0, 1]);
        assert_eq!(bytes[32..], *b"\x09\0\x01\x0012345\0\0\0");
    }

    #[test]
    fn attributes_of_attributes_have_the_length_of_all() {
        let mut message = Message::new(1, 0);
        message.nested(4, |list| list.attribute(1, b"abcde"));
        let bytes = message.finish();
        assert_eq!(bytes[16..20], [16, 0, 4, 0x80]);
        assert_eq!(bytes[20..], *b"\x09\0\x01\0abcde\0\0\0");
    }
}
