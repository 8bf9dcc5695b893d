//! The container's name server, 127.0.0.11: what it is asked over UDP and TCP it asks the host over vsock, and answers
//! with what comes back. Nobody but the container reaches it.
//!
//! Of DNS it knows where a message has its ID, and decides nothing. Nothing here waits: the descriptors are in an epoll of
//! their own, which the agent waits for as one. What is lost is asked again, as with any name server.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use protocol::{NAME_PACKETS_PORT, NAMES_PORT};
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::{Errno, read},
};

use crate::{
    redirect,
    relay::{Connection, TURNS, connect, put},
};

/// Where the container asks.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Most messages over UDP that the host has not answered; a further one takes the place of the oldest.
const MAX_ASKED: usize = 256;
/// Most connections at once; further ones are closed.
const MAX_CONNECTIONS: usize = 16;
/// Most bytes that the host has not taken; messages beyond are lost.
const MAX_UNSENT: usize = 64 << 10;
/// Bytes of a message's header, of which the ID is the first two (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// Events taken at once.
const BATCH: usize = 16;

/// What an event is about; connections follow, two a number.
const PACKETS: u64 = 0;
const LISTENER: u64 = 1;
const HOST: u64 = 2;
const FIRST_CONNECTION: u64 = 4;

/// The server.
pub struct Names {
    epoll: OwnedFd,
    packets: UdpSocket,
    listener: TcpListener,
    /// The host, as far as packets are concerned, once there was one.
    host: Option<Host>,
    /// Who asked with which ID, and the ID that the host sees, at the place that this says.
    asked: Vec<Option<Asked>>,
    last: u16,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
}

struct Host {
    socket: OwnedFd,
    unsent: Vec<u8>,
    received: Vec<u8>,
}

struct Asked {
    by: SocketAddr,
    id: [u8; 2],
    for_host: u16,
}

impl Names {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn open() -> io::Result<Self> {
        let packets = UdpSocket::bind((ADDRESS, 0))?;
        let listener = TcpListener::bind((ADDRESS, 0))?;
        packets.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        let ports = (packets.local_addr()?.port(), listener.local_addr()?.port());
        redirect::redirect(ADDRESS, ports.0, ports.1)?;
        let names = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            packets,
            listener,
            host: None,
            asked: Vec::new(),
            last: 0,
            connections: BTreeMap::new(),
            next_connection: FIRST_CONNECTION,
        };
        names.watch(names.packets.as_fd(), PACKETS, EventFlags::IN)?;
        names.watch(names.listener.as_fd(), LISTENER, EventFlags::IN)?;
        Ok(names)
    }

    fn watch(&self, fd: BorrowedFd<'_>, subject: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(subject),
            flags,
        )?)
    }

    /// Does what can be done without waiting. `buffer` is for whatever is read, and holds any packet.
    pub fn serve(&mut self, buffer: &mut [u8]) {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        if epoll::wait(
            &self.epoll,
            spare_capacity(&mut events),
            Some(&Timespec::default()),
        )
        .is_err()
        {
            // It will be ready again.
            return;
        }
        for event in &events {
            match event.data.u64() {
                PACKETS => self.take_questions(buffer),
                LISTENER => self.accept(),
                HOST => self.hear_host(buffer),
                subject => self.advance(subject & !1, buffer),
            }
        }
    }

    fn take_questions(&mut self, buffer: &mut [u8]) {
        for _ in 0..TURNS {
            match self.packets.recv_from(buffer) {
                Ok((length, by)) if length >= HEADER => self.ask(&buffer[..length], by),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // That somebody did not want an answer.
                Err(_) => {}
            }
        }
        self.flush();
    }

    /// Sends a message to the host in the form that TCP gives it, with an ID that tells whose it is.
    fn ask(&mut self, message: &[u8], by: SocketAddr) {
        if self.host.is_none() && self.connect().is_err() {
            return;
        }
        let Some(host) = &mut self.host else { return };
        let Ok(length) = u16::try_from(message.len()) else {
            return;
        };
        if host.unsent.len() + message.len() > MAX_UNSENT {
            return;
        }
        self.asked.resize_with(MAX_ASKED, || None);
        self.last = self.last.wrapping_add(1);
        self.asked[usize::from(self.last) % MAX_ASKED] = Some(Asked {
            by,
            id: [message[0], message[1]],
            for_host: self.last,
        });
        host.unsent.extend_from_slice(&length.to_be_bytes());
        host.unsent.extend_from_slice(&self.last.to_be_bytes());
        host.unsent.extend_from_slice(&message[2..]);
    }

    fn connect(&mut self) -> io::Result<()> {
        let socket = connect(NAME_PACKETS_PORT)?;
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        self.watch(socket.as_fd(), HOST, both)?;
        self.host = Some(Host {
            socket,
            unsent: Vec::new(),
            received: Vec::new(),
        });
        Ok(())
    }

    fn flush(&mut self) {
        let Some(host) = &mut self.host else { return };
        if put(&host.socket, &mut host.unsent).is_err() {
            // The next question finds another, or none again.
            self.host = None;
        }
    }

    fn hear_host(&mut self, buffer: &mut [u8]) {
        self.flush();
        for _ in 0..TURNS {
            let Some(host) = &mut self.host else { return };
            match read(&host.socket, &mut *buffer) {
                Ok(length) if length > 0 => {
                    host.received.extend_from_slice(&buffer[..length]);
                    self.answer();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOTCONN) => return,
                Ok(_) | Err(_) => {
                    self.host = None;
                    return;
                }
            }
        }
        self.rearm(HOST);
    }

    /// Hands on every answer that is whole.
    fn answer(&mut self) {
        let Some(host) = &mut self.host else { return };
        while let Some(prefix) = host.received.first_chunk::<2>() {
            let length = 2 + usize::from(u16::from_be_bytes(*prefix));
            if host.received.len() < length {
                return;
            }
            let mut message: Vec<u8> = host.received.drain(..length).skip(2).collect();
            if message.len() < HEADER {
                continue;
            }
            let id = u16::from_be_bytes([message[0], message[1]]);
            let place = self.asked.get_mut(usize::from(id) % MAX_ASKED);
            if let Some(asked) = place.and_then(|place| place.take_if(|one| one.for_host == id)) {
                message[..2].copy_from_slice(&asked.id);
                // One that is lost is asked for again.
                let _ = self.packets.send_to(&message, asked.by);
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..TURNS {
            let Ok((client, _)) = self.listener.accept() else {
                return;
            };
            if self.connections.len() < MAX_CONNECTIONS && client.set_nonblocking(true).is_ok() {
                // Without a way to the host it is closed.
                let _ = self.carry(client.into());
            }
        }
    }

    fn carry(&mut self, client: OwnedFd) -> io::Result<()> {
        let host = connect(NAMES_PORT)?;
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        let subject = self.next_connection;
        self.next_connection += 2;
        self.watch(client.as_fd(), subject, both)?;
        self.watch(host.as_fd(), subject + 1, both)?;
        let connection = Connection::new(client, host, Vec::new());
        self.connections.insert(subject, connection);
        Ok(())
    }

    fn advance(&mut self, subject: u64, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(&subject) else {
            return;
        };
        match connection.advance(buffer) {
            Ok(true) => {}
            Ok(false) => self.rearm(subject),
            Err(_) => drop(self.connections.remove(&subject)),
        }
    }

    /// Makes the kernel look again, after the events of others.
    fn rearm(&self, subject: u64) {
        let socket = match (subject, &self.host) {
            (HOST, Some(host)) => Some(&host.socket),
            _ => self.connections.get(&subject).map(Connection::client),
        };
        if let Some(socket) = socket {
            let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            // It is in there.
            let _ = epoll::modify(&self.epoll, socket, EventData::new_u64(subject), both);
        }
    }
}

impl AsFd for Names {
    /// Readable when there is something to [serve](Names::serve).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
