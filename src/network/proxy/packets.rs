//! A published port of UDP: packets of its peers to the machine, and the answers back to each.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Instant,
};

use super::{
    super::{
        carried::{Carried, Direction},
        forward::{self, Forwards, Place, Receiver, Sender, Wanted},
        port::Protocol,
    },
    wait,
};

/// Most peers of a UDP port that answers find their way back to; the one longest silent gives way.
const MAX_PEERS: usize = 128;
/// Longest UDP packet.
const MAX_PACKET: usize = 65_535;
/// Most bytes for a machine that it has not taken; packets beyond are lost.
const MAX_UNSENT: usize = 256 << 10;

/// A UDP port.
pub struct Packets {
    socket: UdpSocket,
    to: SocketAddrV4,
    forwards: Option<Forwards>,
    /// A way to the machine for each peer, the one longest silent first.
    peers: Vec<(SocketAddr, Way)>,
    /// Connections that were asked for, and for whom.
    come: Receiver<(SocketAddr, UnixStream)>,
    comes: Sender<(SocketAddr, UnixStream)>,
    buffer: Vec<u8>,
}

/// Something that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Packets of peers.
    Socket,
    /// The connection of a peer.
    Come,
    /// Answers to the peer at this place.
    Way(usize),
}

/// The way of a peer's packets.
enum Way {
    Socket(UdpSocket),
    Stream(Stream),
}

/// A connection that carries packets, each after its length in two bytes; until it is there, they wait.
struct Stream {
    carried: Arc<Carried>,
    socket: Option<UnixStream>,
    unsent: Vec<u8>,
    received: Vec<u8>,
    _place: Place,
}

impl Packets {
    /// Carries what arrives at `socket`, which does not block.
    ///
    /// # Errors
    ///
    /// Where the host has no descriptor left.
    pub fn new(
        socket: UdpSocket,
        to: SocketAddrV4,
        forwards: Option<Forwards>,
    ) -> io::Result<Self> {
        let (comes, come) = forward::queue()?;
        Ok(Self {
            socket,
            to,
            forwards,
            peers: Vec::new(),
            come,
            comes,
            buffer: vec![0; MAX_PACKET],
        })
    }

    /// Until `stopped` can be read. What has to wait for its rate stays where it is, and is dropped there as on any wire.
    pub fn carry(mut self, stopped: &dyn AsFd) {
        loop {
            let now = Instant::now();
            let carried = self.forwards.as_ref().map(Forwards::carried);
            let held = |direction| carried.and_then(|carried| carried.ready_at(direction, now));
            let (inward, outward) = (held(Direction::In), held(Direction::Out));
            let mut watched = vec![(Source::Come, self.come.as_fd())];
            if inward.is_none() {
                watched.push((Source::Socket, self.socket.as_fd()));
            }
            if outward.is_none() {
                let ways = self.peers.iter().enumerate();
                watched.extend(
                    ways.filter_map(|(place, (_, way))| {
                        Some((Source::Way(place), way.descriptor()?))
                    }),
                );
            }
            let sources = watched.iter().map(|(_, descriptor)| *descriptor);
            let until = inward.into_iter().chain(outward).min();
            let Some(ready) = wait(stopped, sources, until) else {
                return;
            };
            let ready = watched.iter().zip(ready).filter(|(_, ready)| *ready);
            let ready: Vec<Source> = ready.map(|((source, _), _)| *source).collect();
            // From the last on: one that is removed leaves the others' places as they are.
            for source in ready.iter().rev() {
                if let Source::Way(place) = source {
                    self.answer(*place);
                }
            }
            if ready.contains(&Source::Socket) {
                let _ = self.forward();
            }
            if ready.contains(&Source::Come) {
                for (peer, stream) in self.come.take() {
                    self.connect(peer, stream);
                }
            }
        }
    }

    /// Hands on what came back to the peer at this place; one whose way is at its end is forgotten.
    fn answer(&mut self, place: usize) {
        let (peer, way) = &mut self.peers[place];
        let peer = *peer;
        let socket = &self.socket;
        // As on any wire, a packet may be lost.
        let is_there = way.receive(&mut self.buffer, |packet| {
            let _ = socket.send_to(packet, peer);
        });
        if !is_there {
            self.peers.remove(place);
        }
    }

    /// The connection of a peer is there.
    fn connect(&mut self, peer: SocketAddr, stream: UnixStream) {
        let known = self.peers.iter_mut().find(|(known, _)| *known == peer);
        if let Some((_, Way::Stream(way))) = known
            && stream.set_nonblocking(true).is_ok()
        {
            way.socket = Some(stream);
            way.flush();
        }
    }

    fn forward(&mut self) -> io::Result<()> {
        let (length, peer) = self.socket.recv_from(&mut self.buffer)?;
        let known = self.peers.iter().position(|(known, _)| *known == peer);
        let mut entry = match known {
            Some(position) => self.peers.remove(position),
            None => {
                // Its place is free before another is asked for.
                if self.peers.len() == MAX_PEERS {
                    self.peers.remove(0);
                }
                (peer, self.way(peer)?)
            }
        };
        entry.1.send(&self.buffer[..length]);
        self.peers.push(entry);
        Ok(())
    }

    fn way(&self, peer: SocketAddr) -> io::Result<Way> {
        let Some(forwards) = &self.forwards else {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(self.to)?;
            socket.set_nonblocking(true)?;
            return Ok(Way::Socket(socket));
        };
        let place = forwards.place().ok_or(io::ErrorKind::WouldBlock)?;
        let comes = self.comes.clone();
        forwards.ask(Wanted {
            protocol: Protocol::Udp,
            to: self.to,
            then: Box::new(move |stream| comes.send((peer, stream))),
        });
        Ok(Way::Stream(Stream {
            carried: forwards.carried().clone(),
            socket: None,
            unsent: Vec::new(),
            received: Vec::new(),
            _place: place,
        }))
    }
}

impl Way {
    /// What is readable when the machine sends.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket(socket) => Some(socket.as_fd()),
            Self::Stream(stream) => Some(stream.socket.as_ref()?.as_fd()),
        }
    }

    fn send(&mut self, packet: &[u8]) {
        match self {
            Self::Socket(socket) => drop(socket.send(packet)),
            Self::Stream(stream) => stream.send(packet),
        }
    }

    /// Takes what the machine has sent; whether it may send more.
    fn receive(&mut self, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> bool {
        match self {
            Self::Socket(socket) => {
                if let Ok(length) = socket.recv(buffer) {
                    take(&buffer[..length]);
                }
                true
            }
            Self::Stream(stream) => stream.receive(buffer, take),
        }
    }
}

impl Stream {
    fn send(&mut self, packet: &[u8]) {
        let Ok(length) = u16::try_from(packet.len()) else {
            return;
        };
        if self.unsent.len() + packet.len() <= MAX_UNSENT {
            self.unsent.extend_from_slice(&length.to_be_bytes());
            self.unsent.extend_from_slice(packet);
            self.carried
                .pass(Direction::In, packet.len(), Instant::now());
        }
        self.flush();
    }

    /// What the machine does not take now goes with the next packet.
    fn flush(&mut self) {
        while let Some(socket) = &mut self.socket
            && !self.unsent.is_empty()
            && let Ok(count) = socket.write(&self.unsent)
        {
            self.unsent.drain(..count);
        }
    }

    fn receive(&mut self, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> bool {
        let Some(socket) = &mut self.socket else {
            return true;
        };
        match socket.read(buffer) {
            Ok(0) => return false,
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
        while let Some(prefix) = self.received.first_chunk::<2>() {
            let end = 2 + usize::from(u16::from_be_bytes(*prefix));
            let Some(packet) = self.received.get(2..end) else {
                break;
            };
            self.carried
                .pass(Direction::Out, packet.len(), Instant::now());
            take(packet);
            self.received.drain(..end);
        }
        self.flush();
        true
    }
}
