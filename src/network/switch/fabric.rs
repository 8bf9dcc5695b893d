//! What a switch does with frames: who each is for, and who may send it.
//!
//! A machine is who its port says it is, or is not heard. Frames between machines are dropped where a queue is full, as on any
//! wire; between a machine and its own way out, nothing is taken from the one side that the other has no room for. So
//! whoever does not read holds up nobody but itself. Memory is bounded by [`MAX_QUEUED`] and a read buffer for each line.

use std::{
    collections::VecDeque,
    mem,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::poll::PollFlags;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use vmm::virtio::net::frame::{ARP, ETHERNET, Filter, IPV4, MAX_FRAME};

use super::{Member, NO_WAY_OUT};

/// Bytes in front of each frame: its length, in network byte order.
const PREFIX: usize = 4;
/// What is read at once: two of the longest frames.
const INPUT: usize = 2 * (PREFIX + MAX_FRAME);
/// Most bytes of frames that wait for a line.
const MAX_QUEUED: usize = 1 << 20;
/// Where in an ARP request on Ethernet the address is that is asked for (RFC 826).
const ARP_TARGET: Range<usize> = ETHERNET + 24..ETHERNET + 28;

/// Whom a port's line leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The machine.
    Machine,
    /// Its passt.
    WayOut,
}

/// All machines of a network.
#[derive(Default)]
pub struct Fabric {
    ports: Vec<Port>,
}

/// One machine, and its own way out.
pub struct Port {
    /// Who put it here. `None` when it is to go.
    control: Option<OwnedFd>,
    mac: [u8; 6],
    gateway: Option<[u8; 4]>,
    /// Who it is, for neighbours.
    pins: Filter,
    /// And where its way out may lead.
    walls: Filter,
    machine: Option<Line>,
    way_out: Option<Line>,
}

/// A stream of frames, each after its length.
struct Line {
    socket: OwnedFd,
    input: Box<[u8]>,
    /// What of it was read and not yet taken.
    filled: Range<usize>,
    queue: VecDeque<u8>,
}

/// Where a frame goes.
enum Target {
    Nobody,
    Everybody,
    Neighbour(usize),
    WayOut,
}

impl Fabric {
    /// All ports.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// Connects a machine, whose streams are its own and that of its passt.
    pub fn add(&mut self, control: OwnedFd, member: &Member, streams: Vec<OwnedFd>) {
        let mut lines = streams.into_iter().map(Line::new);
        let pins = Filter::pinned(member.mac, &member.addresses);
        self.ports.push(Port {
            control: Some(control),
            mac: member.mac,
            gateway: member.gateway.map(|ip| ip.octets()),
            walls: pins.clone().walled(&member.denied, &[]),
            pins,
            machine: lines.next(),
            way_out: lines.next(),
        });
    }

    /// Who put a machine here has gone.
    pub fn remove(&mut self, number: usize) {
        self.ports[number].control = None;
    }

    /// Forgets ports that are to go.
    pub fn settle(&mut self) {
        self.ports.retain(|port| port.control.is_some());
    }

    /// Does what can be done with a line that has these events.
    pub fn advance(&mut self, number: usize, side: Side, flags: PollFlags) {
        let Some(line) = self.ports[number].line(side) else {
            return;
        };
        if flags.contains(PollFlags::POLLOUT) {
            line.flush();
        }
        let is_open = match flags.contains(PollFlags::POLLIN) {
            true => self.take(number, side),
            false => !flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR),
        };
        if !is_open {
            self.ports[number].end(side);
        }
    }

    /// Reads once, and passes on what is whole; `false` at the end of the line.
    fn take(&mut self, number: usize, side: Side) -> bool {
        let Some(line) = self.ports[number].line(side) else {
            return true;
        };
        if !line.fill() {
            return false;
        }
        let (input, mut filled) = (mem::take(&mut line.input), line.filled.clone());
        let mut next = whole(&input, &filled);
        while let Ok(Some(frame)) = next {
            self.pass(number, side, &input[frame.clone()]);
            filled.start = frame.end;
            next = whole(&input, &filled);
        }
        if let Some(line) = self.ports[number].line(side) {
            (line.input, line.filled) = (input, filled);
        }
        next.is_ok()
    }

    /// Passes on one frame, which its length is in front of.
    fn pass(&mut self, from: usize, side: Side, frame: &[u8]) {
        if side == Side::WayOut {
            if let Some(machine) = &mut self.ports[from].machine {
                machine.send(frame, MAX_QUEUED);
            }
            return;
        }
        match self.target(from, &frame[PREFIX..]) {
            Target::Nobody => {}
            Target::WayOut => {
                if let Some(way_out) = &mut self.ports[from].way_out {
                    way_out.send(frame, MAX_QUEUED);
                }
            }
            Target::Neighbour(number) => self.ports[number].give(frame),
            Target::Everybody => {
                let ports = self.ports.iter_mut().enumerate();
                let others = ports.filter(|(number, _)| *number != from);
                others.for_each(|(_, port)| port.give(frame));
            }
        }
    }

    fn target(&self, from: usize, frame: &[u8]) -> Target {
        let port = &self.ports[from];
        let (Some(to), Some(kind)) = (frame.first_chunk::<6>(), frame.get(12..ETHERNET)) else {
            return Target::Nobody;
        };
        let kind = u16::from_be_bytes([kind[0], kind[1]]);
        if !port.pins.allows(frame) {
            return Target::Nobody;
        }
        // passt answers for any address: it is asked for the one that is its.
        if let Some(gateway) = &port.gateway
            && kind == ARP
            && frame.get(ARP_TARGET) == Some(gateway)
        {
            return Target::WayOut;
        }
        if to[0] & 1 != 0 {
            return Target::Everybody;
        }
        // Of two that were given the same one, the newer.
        match self.ports.iter().rposition(|port| port.mac == *to) {
            Some(number) if number == from => Target::Nobody,
            Some(number) => Target::Neighbour(number),
            None if kind == IPV4 && port.walls.allows(frame) => Target::WayOut,
            None => Target::Nobody,
        }
    }
}

impl Port {
    /// Readable at the end.
    pub fn control(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    /// What to poll a line for, where there is one: not for frames that there is no room for.
    pub fn watched(&self, side: Side) -> Option<(BorrowedFd<'_>, PollFlags)> {
        // Neighbours have half of a machine's queue, so its way out always has some.
        let (line, other, most) = match side {
            Side::Machine => (&self.machine, &self.way_out, MAX_QUEUED / 2),
            Side::WayOut => (&self.way_out, &self.machine, MAX_QUEUED / 4 * 3),
        };
        let line = line.as_ref()?;
        let has_room = other.as_ref().is_none_or(|other| other.queue.len() <= most);
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, has_room);
        flags.set(PollFlags::POLLOUT, !line.queue.is_empty());
        Some((line.socket.as_fd(), flags))
    }

    fn line(&mut self, side: Side) -> Option<&mut Line> {
        match side {
            Side::Machine => self.machine.as_mut(),
            Side::WayOut => self.way_out.as_mut(),
        }
    }

    /// A neighbour's frame.
    fn give(&mut self, frame: &[u8]) {
        if let Some(machine) = &mut self.machine {
            machine.send(frame, MAX_QUEUED / 2);
        }
    }

    /// A line is at its end. Without its machine a port waits for the end of who put it here; one that has lost its way out
    /// is not what it was, and is told so.
    fn end(&mut self, side: Side) {
        if side == Side::WayOut
            && let Some(control) = self.control.take()
        {
            // Who does not read it sees the end.
            let _ = send(
                &control,
                NO_WAY_OUT,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            );
        }
        (self.machine, self.way_out) = (None, None);
    }
}

impl Line {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            input: vec![0; INPUT].into(),
            filled: 0..0,
            queue: VecDeque::new(),
        }
    }

    /// Reads once; `false` at the end.
    fn fill(&mut self) -> bool {
        // Half the buffer holds the longest frame: what is cut off moves to the front.
        self.input.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        match recv(
            &self.socket,
            &mut self.input[self.filled.end..],
            RecvFlags::DONTWAIT,
        ) {
            Ok((_, 0)) => false,
            Ok((_, count)) => {
                self.filled.end += count;
                true
            }
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }

    /// Sends a frame, or drops it where more than `most` bytes would wait.
    fn send(&mut self, frame: &[u8], most: usize) {
        let now = match self.queue.is_empty() {
            true => put(&self.socket, frame),
            false if self.queue.len() + frame.len() > most => return,
            false => 0,
        };
        self.queue.extend(&frame[now..]);
    }

    fn flush(&mut self) {
        loop {
            let count = put(&self.socket, self.queue.as_slices().0);
            if count == 0 {
                return;
            }
            self.queue.drain(..count);
        }
    }
}

/// How much of `bytes` a socket takes. One whose other end is gone is found to be so when it is polled.
fn put(socket: &OwnedFd, bytes: &[u8]) -> usize {
    match bytes {
        [] => 0,
        bytes => send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).unwrap_or(0),
    }
}

/// Where the next frame is, its length included, if all of it is there. Behind a length that cannot be, there is no telling where
/// the next begins.
fn whole(input: &[u8], filled: &Range<usize>) -> Result<Option<Range<usize>>, ()> {
    let Some(prefix) = input[filled.clone()].first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix) as usize;
    if !(ETHERNET..=MAX_FRAME).contains(&length) {
        return Err(());
    }
    let end = filled.start + PREFIX + length;
    Ok((end <= filled.end).then_some(filled.start..end))
}
