//! Where frames come from and go to: a TAP device or a stream socket, behind one interface.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

use crate::virtio::Buffers;

use super::frame::{ETHERNET, HEADER, Header, MAX_FRAME};
use super::{tap, vectored};

/// Bytes in front of each frame on a stream: its length, in network byte order.
const PREFIX: usize = 4;
/// What is read from a stream at once: two of the longest frames.
const STREAM_BUFFER: usize = 2 * (PREFIX + MAX_FRAME);

/// A frame from the outside, and the header it comes with.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    pub header: Header,
    pub frame: &'a [u8],
}

/// A frame of the guest's: its checked header and the checked front of it, then the rest as it is.
#[derive(Debug)]
pub struct Outgoing<'a, 'm> {
    pub header: Header,
    pub front: &'a [u8],
    pub rest: &'a mut Buffers<'m>,
}

/// The interface. No call waits: where it would have to, the error is `WouldBlock`. Its descriptor is
/// readable when there is a frame, writable when `send` or `flush` can go on.
pub trait Backend: AsRawFd + Send {
    /// Features of the device that depend on what is behind it.
    fn features(&self) -> u64;

    /// The next frame from outside; the same one until [`taken`](Self::taken).
    ///
    /// # Errors
    ///
    /// When no more will ever come.
    fn receive(&mut self) -> io::Result<Incoming<'_>>;

    /// The frame that [`receive`](Self::receive) gave out was delivered, or is dropped.
    fn taken(&mut self);

    /// Sends a frame or drops it, as a wire would; with `WouldBlock` it did neither.
    ///
    /// # Errors
    ///
    /// When no more can ever be sent.
    fn send(&mut self, frame: Outgoing<'_, '_>) -> io::Result<()>;

    /// Sends what is left of a frame that was sent in part.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Of one of several queues: whether frames from outside come here too. It was attached when it was
    /// handed over, and one that is not has nothing to wait for.
    ///
    /// # Errors
    ///
    /// Where what is behind it has one queue only, or refuses.
    fn attach(&mut self, _attached: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A TAP device with `IFF_NO_PI` and `IFF_VNET_HDR`, a header of 12 bytes, and the offloads of
/// [`features`](Backend::features) switched on.
pub struct Tap {
    file: File,
    /// Segments UDP too (Linux 6.2).
    udp: bool,
    attached: bool,
    buffer: Box<[u8]>,
    /// Bytes of `buffer`; 0 without a frame.
    length: usize,
}

impl Tap {
    pub fn new(fd: OwnedFd, udp: bool) -> Self {
        Self {
            file: fd.into(),
            udp,
            attached: true,
            buffer: vec![0; HEADER + MAX_FRAME].into(),
            length: 0,
        }
    }
}

impl Backend for Tap {
    fn features(&self) -> u64 {
        let udp = match self.udp {
            true => {
                1 << VIRTIO_NET_F_HOST_USO
                    | 1 << VIRTIO_NET_F_GUEST_USO4
                    | 1 << VIRTIO_NET_F_GUEST_USO6
            }
            false => 0,
        };
        udp | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_ECN
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_HOST_ECN
    }

    fn receive(&mut self) -> io::Result<Incoming<'_>> {
        // What is shorter than the headers is no frame.
        while self.length < HEADER + ETHERNET {
            self.length = match self.file.read(&mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                result => result?,
            };
        }
        let mut header = [0; HEADER];
        header.copy_from_slice(&self.buffer[..HEADER]);
        Ok(Incoming {
            header: Header::decode(header),
            frame: &self.buffer[HEADER..self.length],
        })
    }

    fn taken(&mut self) {
        self.length = 0;
    }

    /// The kernel refuses what makes no sense, or is sent while the device is down: the frame is lost.
    fn send(&mut self, frame: Outgoing<'_, '_>) -> io::Result<()> {
        let head = [&frame.header.encode(0), frame.front].concat();
        match vectored::write(self.file.as_fd(), &head, frame.rest) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    fn attach(&mut self, attached: bool) -> io::Result<()> {
        if self.attached != attached {
            tap::attach(&self.file, attached)?;
            self.attached = attached;
        }
        Ok(())
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// A stream socket that carries frames, each after its length: what passt(1) and QEMU speak. Frames
/// are as on the wire, so nothing is offloaded.
pub struct Stream {
    file: File,
    buffer: Box<[u8]>,
    /// What was read and not yet taken.
    filled: std::ops::Range<usize>,
    /// What could not be written of a frame yet; at most one frame.
    unsent: Vec<u8>,
}

impl Stream {
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            file: fd.into(),
            buffer: vec![0; STREAM_BUFFER].into(),
            filled: 0..0,
            unsent: Vec::new(),
        }
    }

    /// Where the next frame lies in the buffer, if all of it is there.
    fn next(&self) -> io::Result<Option<std::ops::Range<usize>>> {
        let start = self.filled.start + PREFIX;
        let Some(prefix) = self.buffer[self.filled.clone()].first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        // Behind a length that cannot be, there is no telling where the next frame begins.
        if !(ETHERNET..=MAX_FRAME).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let end = start + length;
        Ok((end <= self.filled.end).then_some(start..end))
    }
}

impl Backend for Stream {
    fn features(&self) -> u64 {
        0
    }

    fn receive(&mut self) -> io::Result<Incoming<'_>> {
        loop {
            if let Some(range) = self.next()? {
                return Ok(Incoming {
                    header: Header::default(),
                    frame: &self.buffer[range],
                });
            }
            // Half the buffer holds the longest frame: what is cut off moves to the front.
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
            match self.file.read(&mut self.buffer[self.filled.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.filled.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn taken(&mut self) {
        if let Ok(Some(range)) = self.next() {
            self.filled.start = range.end;
        }
    }

    fn send(&mut self, frame: Outgoing<'_, '_>) -> io::Result<()> {
        self.flush()?;
        if !frame.header.is_plain() {
            return Ok(());
        }
        let length = frame.front.len() + frame.rest.len();
        let prefix = u32::try_from(length).map_err(io::Error::other)?;
        let head = [&prefix.to_be_bytes(), frame.front].concat();
        let written = match vectored::write(self.file.as_fd(), &head, frame.rest) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        // Half a frame cannot be taken back: the other half is kept for when there is room.
        self.unsent.extend(head.iter().skip(written));
        let of_rest = written.saturating_sub(head.len());
        frame.rest.take(of_rest).map_err(io::Error::other)?;
        let start = self.unsent.len();
        self.unsent.resize(start + frame.rest.len(), 0);
        frame
            .rest
            .read(&mut self.unsent[start..])
            .map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.file.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
