//! Published ports of bridged machines: what arrives at a socket of the host's goes to the machine, and
//! the answers back.
//!
//! A socket and no rule of the firewall's: the port is really taken while the machine runs, is where it
//! says whatever happens to the rules, and is free the moment the process that holds it is gone. The
//! machine sees the host as the other side.

use std::{
    io::{self, PipeWriter},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::port::Listener;

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
    pub fn start(listener: Listener, machine: Ipv4Addr) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let builder = thread::Builder::new().name("port".into()).stack_size(STACK);
        match listener {
            Listener::Tcp(listener, port) => {
                listener.set_nonblocking(true)?;
                let to = SocketAddrV4::new(machine, port);
                builder.spawn(move || accept(&listener, to, &stopped))?;
            }
            Listener::Udp(socket, port) => {
                socket.set_nonblocking(true)?;
                let to = SocketAddrV4::new(machine, port);
                builder.spawn(move || Packets::new(socket, to).carry(&stopped))?;
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

fn accept(listener: &TcpListener, to: SocketAddrV4, stopped: &dyn AsFd) {
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
        let connection = thread::Builder::new().name("connection".into());
        // Without a thread for it, it is closed.
        let _ = connection.stack_size(STACK).spawn(move || {
            let _count = count;
            let _ = join(&client, to);
        });
    }
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

/// Carries one connection in both directions until both have ended.
fn join(client: &TcpStream, to: SocketAddrV4) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let machine = TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE)?;
    for stream in [client, &machine] {
        stream.set_nodelay(true)?;
    }
    let (client, machine) = (client.try_clone()?, machine);
    let (client_back, machine_back) = (client.try_clone()?, machine.try_clone()?);
    let back = thread::Builder::new().name("connection".into());
    let back = back
        .stack_size(STACK)
        .spawn(move || copy(&machine_back, &client_back))?;
    copy(&client, &machine);
    // A thread that panicked has nothing more to carry.
    let _ = back.join();
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    match io::copy(&mut from, &mut to) {
        Ok(_) => drop(to.shutdown(Shutdown::Write)),
        // A connection that broke on one side is of no use on the other.
        Err(_) => {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        }
    }
}

/// A UDP port.
struct Packets {
    socket: UdpSocket,
    to: SocketAddrV4,
    /// A socket for each peer, the one longest silent first.
    peers: Vec<(SocketAddr, UdpSocket)>,
    buffer: Vec<u8>,
}

impl Packets {
    fn new(socket: UdpSocket, to: SocketAddrV4) -> Self {
        Self {
            socket,
            to,
            peers: Vec::new(),
            buffer: vec![0; MAX_PACKET],
        }
    }

    fn carry(mut self, stopped: &dyn AsFd) {
        loop {
            let mut sources: Vec<&dyn AsFd> = vec![stopped, &self.socket];
            sources.extend(self.peers.iter().map(|(_, socket)| socket as &dyn AsFd));
            let Some(ready) = wait(&sources) else {
                return;
            };
            for (is_ready, (peer, socket)) in ready[2..].iter().zip(&self.peers) {
                if *is_ready && let Ok(length) = socket.recv(&mut self.buffer) {
                    // As on any wire, a packet may be lost.
                    let _ = self.socket.send_to(&self.buffer[..length], peer);
                }
            }
            if ready[1] {
                let _ = self.forward();
            }
        }
    }

    fn forward(&mut self) -> io::Result<()> {
        let (length, peer) = self.socket.recv_from(&mut self.buffer)?;
        let known = self.peers.iter().position(|(known, _)| *known == peer);
        let entry = match known {
            Some(position) => self.peers.remove(position),
            None => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect(self.to)?;
                socket.set_nonblocking(true)?;
                (peer, socket)
            }
        };
        if self.peers.len() == MAX_PEERS {
            self.peers.remove(0);
        }
        let sent = entry.1.send(&self.buffer[..length]);
        self.peers.push(entry);
        sent.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn connections_are_carried_both_ways_until_both_ends_are_done() {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = service.local_addr().unwrap().port();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let proxy = Proxy::start(Listener::Tcp(listener, port), Ipv4Addr::LOCALHOST).unwrap();
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
        let _proxy = Proxy::start(Listener::Udp(socket, port), Ipv4Addr::LOCALHOST).unwrap();
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
}
