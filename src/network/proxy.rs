//! Published ports: what arrives at a socket of the host's goes to the machine, and the answers back.
//!
//! A socket and no rule of the firewall's: the port is really taken while the machine runs, is where it
//! says whatever happens to the rules, and is free the moment the process that holds it is gone. On a bridge the
//! machine sees the host as the other side, elsewhere itself.

use std::{
    io::{self, PipeWriter, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    forward::{self, Forwards, Place, Receiver, Sender, Wanted},
    port::{Listener, Protocol},
};

/// Most connections of a port at once; further ones are closed.
const MAX_CONNECTIONS: usize = 512;
/// Most peers of a UDP port that answers find their way back to; the one longest silent gives way.
const MAX_PEERS: usize = 128;
/// How long a machine may take to answer a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Address space of a thread's stack in bytes.
const STACK: usize = 64 << 10;
/// Longest UDP packet.
const MAX_PACKET: usize = 65_535;
/// Most bytes for a machine that it has not taken; packets beyond are lost.
const MAX_UNSENT: usize = 256 << 10;

/// The way to a machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Where the host's network does not lead there, who does.
    pub forwards: Option<Forwards>,
}

/// A port that is carried until this is dropped. Connections that are under way go on until they end.
#[derive(Debug)]
pub struct Proxy {
    /// Its end is what tells the thread.
    _stop: PipeWriter,
}

impl Proxy {
    /// Carries what arrives at `listener` to its port of `machine`.
    ///
    /// # Errors
    ///
    /// Where the host has no thread or descriptor left.
    pub fn start(listener: Listener, machine: &Machine) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let builder = thread::Builder::new().name("port".into()).stack_size(STACK);
        let forwards = machine.forwards.clone();
        match listener {
            Listener::Tcp(listener, port) => {
                listener.set_nonblocking(true)?;
                let to = SocketAddrV4::new(machine.ip, port);
                builder.spawn(move || accept(&listener, to, forwards.as_ref(), &stopped))?;
            }
            Listener::Udp(socket, port) => {
                socket.set_nonblocking(true)?;
                let to = SocketAddrV4::new(machine.ip, port);
                let packets = Packets::new(socket, to, forwards)?;
                builder.spawn(move || packets.carry(&stopped))?;
            }
        }
        Ok(Self { _stop: stop })
    }
}

/// Waits until one of the descriptors can be read; `None` when the first can, or nothing works.
fn wait(sources: &[&dyn AsFd]) -> Option<Vec<bool>> {
    let mut fds: Vec<_> = sources
        .iter()
        .map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN))
        .collect();
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => {}
            Err(_) => return None,
            Ok(_) => break,
        }
    }
    let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
    (!ready[0]).then_some(ready)
}

fn accept(
    listener: &TcpListener,
    to: SocketAddrV4,
    forwards: Option<&Forwards>,
    stopped: &dyn AsFd,
) {
    let open = Arc::new(AtomicUsize::new(0));
    while wait(&[stopped, listener]).is_some() {
        // One that went away meanwhile is no loss.
        let Ok((client, _)) = listener.accept() else {
            continue;
        };
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        let count = Count::new(&open);
        match forwards {
            None => spawn(move || {
                let _held = count;
                if let Ok(machine) = TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE) {
                    let _ = machine.set_nodelay(true);
                    let _ = join(client, machine);
                }
            }),
            Some(forwards) => {
                let Some(place) = forwards.place() else {
                    continue;
                };
                forwards.ask(Wanted {
                    protocol: Protocol::Tcp,
                    to,
                    then: Box::new(move |machine| {
                        spawn(move || {
                            let _held = (count, place);
                            let _ = join(client, machine);
                        });
                    }),
                });
            }
        }
    }
}

/// Carries a connection in a thread of its own; without one, it is closed.
fn spawn(carry: impl FnOnce() + Send + 'static) {
    let connection = thread::Builder::new().name("connection".into());
    let _ = connection.stack_size(STACK).spawn(carry);
}

/// One more of something, while it lives.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn new(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::Relaxed);
        Self(of.clone())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Both ends of a connection that is carried.
trait End: Read + Write + Send + Sized + 'static {
    fn copy(&self) -> io::Result<Self>;
    fn end(&self, how: Shutdown);
}

impl End for TcpStream {
    fn copy(&self) -> io::Result<Self> {
        self.try_clone()
    }
    fn end(&self, how: Shutdown) {
        // One that is gone is ended.
        let _ = self.shutdown(how);
    }
}

impl End for UnixStream {
    fn copy(&self) -> io::Result<Self> {
        self.try_clone()
    }
    fn end(&self, how: Shutdown) {
        let _ = self.shutdown(how);
    }
}

/// Carries one connection in both directions until both have ended.
fn join(mut client: TcpStream, mut machine: impl End) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    let (mut client_back, mut machine_back) = (client.copy()?, machine.copy()?);
    let back = thread::Builder::new().name("connection".into());
    let back = back
        .stack_size(STACK)
        .spawn(move || copy(&mut machine_back, &mut client_back))?;
    copy(&mut client, &mut machine);
    // A thread that panicked has nothing more to carry.
    let _ = back.join();
    Ok(())
}

fn copy(from: &mut impl End, to: &mut impl End) {
    match io::copy(from, to) {
        Ok(_) => to.end(Shutdown::Write),
        // A connection that broke on one side is of no use on the other.
        Err(_) => {
            from.end(Shutdown::Both);
            to.end(Shutdown::Both);
        }
    }
}

/// A UDP port.
struct Packets {
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

/// The way of a peer's packets.
enum Way {
    Socket(UdpSocket),
    Stream(Stream),
}

/// A connection that carries packets, each after its length in two bytes; until it is there, they wait.
struct Stream {
    socket: Option<UnixStream>,
    unsent: Vec<u8>,
    received: Vec<u8>,
    _place: Place,
}

impl Packets {
    fn new(socket: UdpSocket, to: SocketAddrV4, forwards: Option<Forwards>) -> io::Result<Self> {
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

    fn carry(mut self, stopped: &dyn AsFd) {
        loop {
            let mut sources: Vec<&dyn AsFd> = vec![stopped, &self.socket, &self.come];
            let ways = self.peers.iter().enumerate();
            let ways: Vec<(usize, BorrowedFd<'_>)> = ways
                .filter_map(|(number, (_, way))| Some((number, way.descriptor()?)))
                .collect();
            sources.extend(ways.iter().map(|(_, descriptor)| descriptor as &dyn AsFd));
            let Some(ready) = wait(&sources) else {
                return;
            };
            let came = ways.iter().zip(&ready[3..]).filter(|(_, ready)| **ready);
            let came: Vec<usize> = came.map(|((number, _), _)| *number).collect();
            self.answer(&came);
            if ready[1] {
                let _ = self.forward();
            }
            if ready[2] {
                for (peer, stream) in self.come.take() {
                    self.connect(peer, stream);
                }
            }
        }
    }

    /// Hands on what came back to peers at these places; those whose way is at its end are forgotten.
    fn answer(&mut self, places: &[usize]) {
        for place in places.iter().rev() {
            let (peer, way) = &mut self.peers[*place];
            let peer = *peer;
            let socket = &self.socket;
            // As on any wire, a packet may be lost.
            let is_there = way.receive(&mut self.buffer, |packet| {
                let _ = socket.send_to(packet, peer);
            });
            if !is_there {
                self.peers.remove(*place);
            }
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
            take(packet);
            self.received.drain(..end);
        }
        self.flush();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const HERE: Machine = Machine {
        ip: Ipv4Addr::LOCALHOST,
        forwards: None,
    };

    #[test]
    fn connections_are_carried_both_ways_until_both_ends_are_done() {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = service.local_addr().unwrap().port();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let proxy = Proxy::start(Listener::Tcp(listener, port), &HERE).unwrap();
        let server = thread::spawn(move || {
            let mut connection = service.accept().unwrap().0;
            let mut question = Vec::new();
            connection.read_to_end(&mut question).unwrap();
            connection.write_all(&vec![question[0]; 1 << 20]).unwrap();
        });
        let mut client = TcpStream::connect(at).unwrap();
        client.write_all(b"?").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, vec![b'?'; 1 << 20]);
        server.join().unwrap();
        drop(proxy);
    }

    #[test]
    fn packets_find_their_way_back_to_each_peer() {
        let service = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = service.local_addr().unwrap().port();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let _proxy = Proxy::start(Listener::Udp(socket, port), &HERE).unwrap();
        let peers = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        for (index, peer) in peers.iter().enumerate() {
            peer.send_to(&[index as u8], at).unwrap();
        }
        for _ in &peers {
            let mut packet = [0; 10];
            let (length, from) = service.recv_from(&mut packet).unwrap();
            service.send_to(&packet[..length], from).unwrap();
        }
        for (index, peer) in peers.iter().enumerate() {
            let mut packet = [9; 10];
            assert_eq!(peer.recv(&mut packet).unwrap(), 1);
            assert_eq!(packet[0], index as u8);
        }
    }

    #[test]
    fn behind_an_agent_connections_and_packets_are_those_it_brings() {
        let (forwards, mut wanted) = Forwards::new().unwrap();
        let machine = Machine {
            ip: [10, 0, 2, 15].into(),
            forwards: Some(forwards),
        };
        let mut next = || {
            wait(&[&io::pipe().unwrap().0, &wanted]);
            wanted.take().pop().unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _tcp = Proxy::start(Listener::Tcp(listener, 80), &machine).unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        let (ours, mut agent) = UnixStream::pair().unwrap();
        let asked = next();
        assert_eq!(asked.to, SocketAddrV4::new(machine.ip, 80));
        (asked.then)(ours);
        client.write_all(b"?").unwrap();
        agent.read_exact(&mut [0]).unwrap();
        agent.write_all(b"!").unwrap();
        agent.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "!");
        // Where nobody is at the port, nobody answers.
        let mut refused = TcpStream::connect(at).unwrap();
        drop(next());
        assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0);

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let _udp = Proxy::start(Listener::Udp(socket, 53), &machine).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.send_to(b"one", at).unwrap();
        let asked = next();
        assert_eq!(asked.protocol, Protocol::Udp);
        let (ours, mut agent) = UnixStream::pair().unwrap();
        (asked.then)(ours);
        let mut packet = [0; 5];
        agent.read_exact(&mut packet).unwrap();
        assert_eq!(&packet, b"\0\x03one");
        agent.write_all(b"\0\0\0\x02tw").unwrap();
        assert_eq!(peer.recv(&mut packet).unwrap(), 0);
        assert_eq!(peer.recv(&mut packet).unwrap(), 2);
    }
}
