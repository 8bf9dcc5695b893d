//! Netlink sockets (netlink(7)), and messages put together by hand: what the agent, which is kept small, and the host
//! say to the kernel where no crate builds it.
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{NETFILTER, SocketAddrNetlink},
        recv, send, socket_with,
    },
};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// The most that the kernel sends at once.
const BUFFER: usize = 64 << 10;
/// Twice the most that it tells a group at once (`NLMSG_GOODSIZE`).
const NOTICE: usize = 16 << 10;

/// A part of the kernel.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// Links, addresses and routes.
    Route,
    /// Firewalls.
    Netfilter,
}

/// A connection to a part of the kernel.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Those of socket(2).
    pub fn open(part: Part) -> io::Result<Self> {
        let protocol = match part {
            // Protocol zero of the family.
            Part::Route => None,
            Part::Netfilter => Some(NETFILTER),
        };
        let (raw, closing) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let socket = socket_with(AddressFamily::NETLINK, raw, closing, protocol)?;
        Ok(Self(socket))
    }

    /// Connects, to [hear](Self::hear) what that part tells whoever is in a multicast group, one of the first 32.
    ///
    /// # Errors
    ///
    /// Those of socket(2) and bind(2).
    pub fn listen(part: Part, group: u32) -> io::Result<Self> {
        let netlink = Self::open(part)?;
        // Groups count from one; the kernel chooses the port.
        let groups = 1_u32.checked_shl(group.wrapping_sub(1));
        bind(
            &netlink.0,
            &SocketAddrNetlink::new(0, groups.ok_or(Errno::INVAL)?),
        )?;
        Ok(netlink)
    }

    /// Hands over type and payload of each message that is there, and waits for none.
    ///
    /// # Errors
    ///
    /// The kernel's, and `ENOBUFS` where it had more to tell than there was room for. What comes after that can be heard.
    pub fn hear(&self, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; NOTICE];
        loop {
            match recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((NOTICE, _)) => return Err(Errno::NOBUFS.into()),
                Ok((length, _)) => {
                    messages(&buffer[..length]).for_each(|(kind, payload)| take(kind, payload));
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends requests of which the last one alone wants an acknowledgement, and waits for that, or for the first error.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn ask(&self, requests: &[u8]) -> io::Result<()> {
        send(&self.0, requests, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
        match messages(&buffer[..length]).next() {
            Some((kind, payload)) => error(kind, payload).unwrap_or(Ok(())),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Sends a request for a list, and hands over the payload of each message that comes back.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn dump(&self, request: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
        send(&self.0, request, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            for (kind, payload) in messages(&buffer[..length]) {
                if kind == libc::NLMSG_DONE as u16 {
                    return Ok(());
                }
                match error(kind, payload) {
                    Some(failed) => failed?,
                    None => take(payload),
                }
            }
        }
    }
}

impl AsFd for Netlink {
    /// For requests that any socket takes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Type and payload of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes.get(..length).filter(|_| length >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        Some((kind, &message[HEADER..]))
    })
}

/// Type, without its flags, and value of each attribute (`struct nlattr`) of a row of them.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let attribute = bytes.get(..length).filter(|_| length >= ATTRIBUTE)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([attribute[2], attribute[3]]);
        Some((kind & libc::NLA_TYPE_MASK as u16, &attribute[ATTRIBUTE..]))
    })
}

/// `struct nlmsgerr`: an error number, or zero.
fn error(kind: u16, payload: &[u8]) -> Option<io::Result<()>> {
    if kind != libc::NLMSG_ERROR as u16 {
        return None;
    }
    Some(
        match payload
            .first_chunk()
            .map(|bytes| i32::from_ne_bytes(*bytes))
        {
            Some(0) => Ok(()),
            Some(number) => Err(io::Error::from_raw_os_error(-number)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        },
    )
}

/// A message under construction.
#[derive(Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request of this type with these flags.
    pub fn new(kind: u16, flags: i32) -> Self {
        // All of them are below 2^16.
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
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

    /// A `struct nlattr` of a few bytes, padded to four.
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
    fn messages_are_taken_apart_as_they_are_put_together() {
        let mut first = Message::new(5, libc::NLM_F_ACK);
        first.nested(4, |list| list.attribute(1, b"abcde"));
        let first = first.finish();
        assert_eq!(first[6..8], (libc::NLM_F_REQUEST as u16 | 4).to_ne_bytes());
        assert_eq!(first[16..24], [16, 0, 4, 0x80, 9, 0, 1, 0]);
        let second = Message::new(6, 0).finish();
        let both = [&first[..], &second].concat();
        let kinds: Vec<_> = messages(&both)
            .map(|(kind, payload)| (kind, payload.len()))
            .collect();
        assert_eq!(kinds, [(5, 16), (6, 0)]);
        // What is cut off is none.
        assert_eq!(messages(&both[..both.len() - 1]).count(), 1);
        assert_eq!(messages(&[0; 16]).count(), 0);
    }

    #[test]
    fn attributes_are_taken_apart_as_they_are_put_together() {
        let mut message = Message::new(5, 0);
        message.nested(4, |list| list.attribute(1, b"abcde"));
        message.attribute(2, b"xy");
        let bytes = message.finish();
        let row = &bytes[HEADER..];
        let found: Vec<_> = attributes(row).collect();
        assert_eq!(found[0].0, 4);
        assert_eq!(attributes(found[0].1).next(), Some((1, &b"abcde"[..])));
        assert_eq!(found[1..], [(2, &b"xy"[..])]);
        // What is cut off is none, and what says that it is shorter than its own header.
        assert_eq!(attributes(&row[..row.len() - 3]).count(), 1);
        assert_eq!(attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[8, 0, 1, 0]).count(), 0);
    }

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
    fn nothing_is_heard_where_nothing_is_told() {
        let netlink = Netlink::listen(Part::Route, 1).unwrap();
        // An address, without which nobody would be told.
        let own = rustix::net::getsockname(&netlink).unwrap();
        let own = SocketAddrNetlink::try_from(own).unwrap();
        assert_eq!(own.groups(), 1);
        netlink.hear(|_, _| ()).unwrap();
        assert!(Netlink::listen(Part::Route, 0).is_err());
        assert!(Netlink::listen(Part::Route, 33).is_err());
    }

    #[test]
    fn the_kernels_refusal_is_an_error() {
        let netlink = Netlink::open(Part::Route).unwrap();
        // RTM_NEWLINK of an interface that cannot be.
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK);
        message
            .put(&[0; 4])
            .put(&i32::MAX.to_ne_bytes())
            .put(&[0; 8]);
        assert!(netlink.ask(&message.finish()).is_err());
    }
}
