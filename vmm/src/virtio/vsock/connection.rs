//! One stream between a guest's socket and a host's: credit, buffers and half-closing.
//!
//! It does not know queues or other connections. Its counters are those of virtio 1.2, 5.10.6.3:
//! free-running 32-bit counts of payload bytes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};
use vmm_sys_util::epoll::EventSet;

use super::packet::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use crate::virtio::Buffers;

/// Most bytes held for a host that does not read: what the guest may send ahead.
pub const BUFFER: u32 = 128 << 10;

/// Most bytes that a guest is believed to have room for; keeps differences of counters unambiguous.
const MAX_PEER_BUFFER: u32 = 1 << 30;

/// Both directions, in a SHUTDOWN packet.
const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// The guest broke the protocol; the connection must be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation;

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    /// From the guest, not yet taken by the socket.
    buffer: VecDeque<u8>,
    /// Bytes that came from the guest, and of those, bytes that are out of the buffer, and how
    /// many of these the guest knows of.
    received: u32,
    forwarded: u32,
    advertised: u32,
    /// Bytes that went to the guest, and of those, bytes that it has taken out of its buffer.
    sent: u32,
    peer_forwarded: u32,
    peer_buffer: u32,
    /// The socket may hold data or its end; not yet found empty.
    readable: bool,
    /// The socket's other end is gone: it tells no more news.
    hung_up: bool,
    /// Who may still do what.
    guest_sends: bool,
    guest_receives: bool,
    host_sends: bool,
    host_receives: bool,
    /// What the guest is to be told.
    respond: bool,
    shutdown: bool,
    credit_update: bool,
    /// A CREDIT_REQUEST is out and no credit came.
    credit_requested: bool,
}

impl Connection {
    /// A connection that the guest just asked for by `request`, with the device's end of the
    /// socket pair, which must be nonblocking.
    pub fn new(socket: UnixStream, request: &Header) -> Connection {
        Connection {
            socket,
            buffer: VecDeque::new(),
            received: 0,
            forwarded: 0,
            advertised: 0,
            sent: 0,
            peer_forwarded: 0,
            peer_buffer: request.buf_alloc.min(MAX_PEER_BUFFER),
            readable: false,
            hung_up: false,
            guest_sends: true,
            guest_receives: true,
            host_sends: true,
            host_receives: true,
            respond: true,
            shutdown: false,
            credit_update: false,
            credit_requested: false,
        }
    }

    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// What to wait for on the socket; `None` once its other end is gone.
    ///
    /// A socket known to be readable is not waited for: either it is being read, or the guest has
    /// no room.
    pub fn interest(&self) -> Option<EventSet> {
        if self.hung_up {
            return None;
        }
        let mut interest = EventSet::empty();
        interest.set(
            EventSet::IN,
            self.guest_receives && self.host_sends && !self.readable,
        );
        interest.set(EventSet::OUT, !self.buffer.is_empty());
        Some(interest)
    }

    /// Whether [`next_packet`](Self::next_packet) may have something.
    pub fn has_packet(&self) -> bool {
        self.respond
            || self.shutdown
            || self.credit_update
            || (self.may_read() && (self.credit() > 0 || !self.credit_requested))
    }

    /// Whether bytes for the host are left.
    pub fn is_draining(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Takes what every packet of the guest says about its buffer.
    pub fn update_credit(&mut self, header: &Header) -> Result<(), Violation> {
        let advance = header.fwd_cnt.wrapping_sub(self.peer_forwarded);
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        if advance <= in_flight {
            self.peer_forwarded = header.fwd_cnt;
        } else if advance <= u32::MAX / 2 {
            // More than it was sent. A count that goes back is old news instead: drivers fill in
            // headers on one processor and queue them on another.
            return Err(Violation);
        }
        self.peer_buffer = header.buf_alloc.min(MAX_PEER_BUFFER);
        if self.credit() > 0 {
            self.credit_requested = false;
        }
        Ok(())
    }

    /// Takes data from the guest: straight to the socket as far as that goes.
    pub fn receive(&mut self, payload: &Buffers<'_>) -> Result<(), Violation> {
        let held = self.received.wrapping_sub(self.forwarded) as usize;
        if !self.guest_sends || held + payload.len() > BUFFER as usize {
            return Err(Violation);
        }
        self.received = self.received.wrapping_add(payload.len() as u32);
        let mut direct = if self.buffer.is_empty() && self.host_receives {
            self.write_direct(payload)
        } else {
            0
        };
        self.forwarded = self.forwarded.wrapping_add(direct as u32);
        if self.host_receives {
            for slice in payload.slices() {
                let skipped = direct.min(slice.len());
                direct -= skipped;
                if let Ok(rest) = slice.offset(skipped) {
                    append(&mut self.buffer, &rest);
                }
            }
        }
        self.discard_undeliverable();
        self.update_credit_due();
        Ok(())
    }

    /// Answers CREDIT_REQUEST.
    pub fn request_credit(&mut self) {
        self.credit_update = true;
    }

    /// The guest will receive or send no more.
    pub fn guest_shutdown(&mut self, flags: u32) {
        if flags & SHUTDOWN_RECEIVE != 0 && self.guest_receives {
            self.guest_receives = false;
            self.discard_unread();
        }
        if flags & SHUTDOWN_SEND != 0 && self.guest_sends {
            self.guest_sends = false;
            self.shutdown_when_flushed();
        }
    }

    /// Whether the guest is through with both directions.
    pub fn is_closed_by_guest(&self) -> bool {
        !self.guest_receives && !self.guest_sends
    }

    /// Something happened on the socket.
    pub fn on_socket(&mut self, events: EventSet) {
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.hung_up = true;
            self.host_stopped_receiving();
        }
        if events.intersects(EventSet::IN) || self.hung_up {
            self.readable = true;
        }
        if events.intersects(EventSet::OUT) {
            self.flush();
        }
    }

    /// The next packet for the guest, its data already in `payload`: `op`, flags and length.
    ///
    /// `None` leaves `payload` to another connection.
    pub fn next_packet(&mut self, payload: &Buffers<'_>) -> Option<(u16, u32, u32)> {
        if std::mem::take(&mut self.respond) {
            return Some((op::RESPONSE, 0, 0));
        }
        if self.may_read() {
            let room = payload.len().min(self.credit() as usize);
            if self.credit() == 0 && !self.credit_requested {
                self.credit_requested = true;
                return Some((op::CREDIT_REQUEST, 0, 0));
            }
            if room > 0
                && let Some(length) = self.read_into(payload, room)
            {
                self.sent = self.sent.wrapping_add(length);
                return Some((op::RW, 0, length));
            }
        }
        if std::mem::take(&mut self.shutdown) {
            let mut flags = 0;
            if !self.host_sends {
                flags |= SHUTDOWN_SEND;
            }
            if !self.host_receives {
                flags |= SHUTDOWN_RECEIVE;
            }
            return Some((op::SHUTDOWN, flags, 0));
        }
        std::mem::take(&mut self.credit_update).then_some((op::CREDIT_UPDATE, 0, 0))
    }

    /// Fills in what every packet to the guest says about the device's buffer.
    pub fn stamp(&mut self, header: &mut Header) {
        header.kind = TYPE_STREAM;
        header.buf_alloc = BUFFER;
        header.fwd_cnt = self.forwarded;
        self.advertised = self.forwarded;
        self.credit_update = false;
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        self.peer_buffer
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    fn may_read(&self) -> bool {
        self.readable && self.host_sends && self.guest_receives
    }

    /// Writes guest memory to the socket; how many bytes it took.
    fn write_direct(&mut self, payload: &Buffers<'_>) -> usize {
        let mut done = 0;
        for slice in payload.slices() {
            match (&self.socket).write_volatile(slice) {
                Ok(count) => {
                    done += count;
                    if count < slice.len() {
                        break;
                    }
                }
                Err(error) => {
                    if !is_transient(&error) {
                        self.host_stopped_receiving();
                    }
                    break;
                }
            }
        }
        done
    }

    /// Reads at most `room` bytes (not 0) into guest memory. `None` when there are none now, or
    /// never again.
    fn read_into(&mut self, payload: &Buffers<'_>, room: usize) -> Option<u32> {
        let mut done = 0;
        for slice in payload.slices() {
            let wanted = slice.len().min(room - done);
            let Ok(mut part) = slice.subslice(0, wanted) else {
                break;
            };
            match (&self.socket).read_volatile(&mut part) {
                Ok(0) => self.host_stopped_sending(),
                Ok(count) => {
                    done += count;
                    if count == wanted && done < room {
                        continue;
                    }
                    // Less than asked for is likely all there is. A hung up socket is not waited
                    // for, so its end has to be read.
                    self.readable = count == wanted || self.hung_up;
                }
                Err(error) if is_transient(&error) && !self.hung_up => self.readable = false,
                Err(_) => self.host_stopped_sending(),
            }
            break;
        }
        (done > 0).then_some(done as u32)
    }

    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            let (first, second) = self.buffer.as_slices();
            let result =
                (&self.socket).write_vectored(&[IoSlice::new(first), IoSlice::new(second)]);
            match result {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.host_stopped_receiving();
                    break;
                }
            }
        }
        if self.buffer.is_empty() {
            self.buffer.shrink_to(0);
        }
        self.shutdown_when_flushed();
        self.update_credit_due();
    }

    fn host_stopped_sending(&mut self) {
        self.readable = false;
        self.shutdown |= self.host_sends;
        self.host_sends = false;
    }

    fn host_stopped_receiving(&mut self) {
        self.shutdown |= self.host_receives;
        self.host_receives = false;
        self.discard_undeliverable();
    }

    /// What nobody will read is as good as read.
    fn discard_undeliverable(&mut self) {
        if !self.host_receives {
            self.buffer = VecDeque::new();
            self.forwarded = self.received;
        }
    }

    fn shutdown_when_flushed(&mut self) {
        if !self.guest_sends && self.buffer.is_empty() && self.host_receives {
            // Fails only when the other end is gone.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Refuses what the host would still write and throws away what it wrote: were it left in the
    /// socket, closing that would turn the host's end of file into ECONNRESET (unix(7)).
    fn discard_unread(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Read);
        let mut scrap = [0; 4096];
        // No more can come, so this ends at what a socket buffers.
        while matches!((&self.socket).read(&mut scrap), Ok(count) if count > 0) {}
        self.readable = false;
    }

    /// Tells the guest of room before it runs out: when it believes that less than half is left
    /// and much of that is wrong. Ordinary packets tell it too, so small exchanges need none.
    fn update_credit_due(&mut self) {
        let believed = self.received.wrapping_sub(self.advertised);
        let news = self.forwarded.wrapping_sub(self.advertised);
        if believed > BUFFER / 2 && news >= BUFFER / 4 {
            self.credit_update = true;
        }
    }

    /// Ends both directions at once: what either side sent and the other did not get is lost but
    /// for what [`is_draining`](Self::is_draining).
    pub fn detach(&mut self) {
        self.guest_shutdown(SHUTDOWN_BOTH);
        self.respond = false;
        self.shutdown = false;
        self.credit_update = false;
    }
}

fn append(buffer: &mut VecDeque<u8>, slice: &VolatileSlice<'_>) {
    let mut chunk = [0; 4096];
    let mut offset = 0;
    while let Ok(rest) = slice.offset(offset)
        && !rest.is_empty()
    {
        let count = rest.copy_to(&mut chunk[..]);
        buffer.extend(&chunk[..count]);
        offset += count;
    }
}

fn is_transient(error: &VolatileMemoryError) -> bool {
    matches!(error, VolatileMemoryError::IOError(error)
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted))
}
