//! Published ports, the guest's side: whom the host wants to talk to a port of the container's is connected to it, over a
//! vsock connection that begins with the host's token.
//!
//! What the port's program sees is a peer at the machine's own address. Nothing here waits: the descriptors are in an epoll
//! of their own, which the agent waits for as one.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use protocol::{FORWARD_PORT, StreamToken, Transport};
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::{Errno, read},
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with},
};

use crate::relay::{self, Connection, TURNS, put};

/// Most at once; the host asks for fewer.
const MAX_OPEN: usize = 512;
/// Most bytes that the host has not taken; packets beyond are lost.
const MAX_UNSENT: usize = 256 << 10;
/// Events taken at once.
const BATCH: usize = 16;

/// All that are carried.
pub struct Forwards {
    epoll: OwnedFd,
    open: BTreeMap<u64, Forward>,
    /// Two numbers for each: its sockets in the guest and to the host.
    next: u64,
}

enum Forward {
    Connection(Connection),
    Packets(Packets),
    /// Nobody is there: the host learns whom that is about, and that it is over.
    Nobody(OwnedFd, Vec<u8>),
}

/// Packets of one peer; to and from the host each after its length in two bytes.
struct Packets {
    socket: UdpSocket,
    host: OwnedFd,
    unsent: Vec<u8>,
    received: Vec<u8>,
}

impl Forwards {
    /// None yet.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            open: BTreeMap::new(),
            next: 0,
        })
    }

    /// Connects the host with a port. Where even that cannot be told to it, nothing is.
    pub fn add(&mut self, transport: Transport, to: SocketAddr, token: StreamToken) {
        if self.open.len() < MAX_OPEN {
            let _ = self.try_add(transport, to, token);
        }
    }

    fn try_add(
        &mut self,
        transport: Transport,
        to: SocketAddr,
        token: StreamToken,
    ) -> io::Result<()> {
        let host = relay::connect(FORWARD_PORT)?;
        let number = self.next;
        self.next += 2;
        self.watch(host.as_fd(), number + 1)?;
        let greeting = token.0.to_vec();
        let forward = match transport {
            Transport::Connection => match begin_to_connect(to) {
                Ok(client) => {
                    self.watch(client.as_fd(), number)?;
                    Forward::Connection(Connection::new(client, host, greeting))
                }
                Err(_) => Forward::Nobody(host, greeting),
            },
            Transport::Packets => match packets(to) {
                Ok(socket) => {
                    self.watch(socket.as_fd(), number)?;
                    Forward::Packets(Packets {
                        socket,
                        host,
                        unsent: greeting,
                        received: Vec::new(),
                    })
                }
                Err(_) => Forward::Nobody(host, greeting),
            },
        };
        self.open.insert(number, forward);
        Ok(())
    }

    fn watch(&self, fd: BorrowedFd<'_>, subject: u64) -> io::Result<()> {
        let data = EventData::new_u64(subject);
        Ok(epoll::add(&self.epoll, fd, data, BOTH)?)
    }

    /// Does what can be done without waiting. `buffer` is for whatever is read, and holds any packet.
    pub fn serve(&mut self, buffer: &mut [u8]) {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        let now = Some(&Timespec::default());
        if epoll::wait(&self.epoll, spare_capacity(&mut events), now).is_err() {
            // It will be ready again.
            return;
        }
        for event in &events {
            let number = event.data.u64() & !1;
            let Some(forward) = self.open.get_mut(&number) else {
                continue;
            };
            match forward.advance(buffer) {
                Ok(true) => {}
                Ok(false) => {
                    // The kernel looks again, after the events of others. It is in there.
                    let data = EventData::new_u64(number);
                    let _ = epoll::modify(&self.epoll, forward.client(), data, BOTH);
                }
                Err(_) => drop(self.open.remove(&number)),
            }
        }
    }
}

const BOTH: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::ET);

impl AsFd for Forwards {
    /// Readable when there is something to [serve](Forwards::serve).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Forward {
    /// Moves what can be moved without waiting; whether that was all. Its end is an error.
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self {
            Self::Connection(connection) => connection.advance(buffer),
            Self::Packets(packets) => packets.advance(buffer),
            Self::Nobody(host, greeting) => {
                put(host, greeting)?;
                match greeting.is_empty() {
                    true => Err(ErrorKind::ConnectionRefused.into()),
                    false => Ok(true),
                }
            }
        }
    }

    fn client(&self) -> BorrowedFd<'_> {
        match self {
            Self::Connection(connection) => connection.client().as_fd(),
            Self::Packets(packets) => packets.socket.as_fd(),
            Self::Nobody(host, _) => host.as_fd(),
        }
    }
}

impl Packets {
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        put(&self.host, &mut self.unsent)?;
        let mut is_all = false;
        for _ in 0..TURNS {
            match self.socket.recv(buffer) {
                Ok(length) => self.enclose(&buffer[..length])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    is_all = true;
                    break;
                }
                // That nobody took one.
                Err(_) => {}
            }
        }
        for _ in 0..TURNS {
            match read(&self.host, &mut *buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    self.deliver();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(is_all),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    fn enclose(&mut self, packet: &[u8]) -> io::Result<()> {
        let Ok(length) = u16::try_from(packet.len()) else {
            return Ok(());
        };
        if self.unsent.len() + packet.len() > MAX_UNSENT {
            return Ok(());
        }
        self.unsent.extend_from_slice(&length.to_be_bytes());
        self.unsent.extend_from_slice(packet);
        put(&self.host, &mut self.unsent)
    }

    /// Sends every packet that is whole; one that is lost is lost.
    fn deliver(&mut self) {
        while let Some(prefix) = self.received.first_chunk::<2>() {
            let end = 2 + usize::from(u16::from_be_bytes(*prefix));
            let Some(packet) = self.received.get(2..end) else {
                return;
            };
            let _ = self.socket.send(packet);
            self.received.drain(..end);
        }
    }
}

fn begin_to_connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &to) {
        Err(error) if error != Errno::INPROGRESS => Err(error.into()),
        _ => Ok(socket),
    }
}

fn packets(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    Ok(socket)
}
