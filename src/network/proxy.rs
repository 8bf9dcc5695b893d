//! Published ports: what arrives at a socket of the host's goes to the machine, and the answers back.
//!
//! A socket and no rule of the firewall's: the port is really taken while the machine runs, is where it
//! says whatever happens to the rules, and is free the moment the process that holds it is gone. On a bridge the
//! machine sees the host as the other side, elsewhere itself.

mod packets;

use std::{
    io::{self, PipeWriter, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, poll};

use super::{
    carried::{Carried, Direction},
    forward::{Forwards, Wanted},
    port::{Listener, Protocol},
};
use crate::deadline::timeout;
use packets::Packets;

/// Most connections of a port at once; further ones are closed.
const MAX_CONNECTIONS: usize = 512;
/// How long a machine may take to answer a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Address space of a thread's stack in bytes.
const STACK: usize = 64 << 10;
/// Most bytes that are on their way in one direction of a connection.
const CHUNK: usize = 16 << 10;

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

/// Waits until one of the sources can be read, which then is true of it, or until a moment; `None` when `stopped` can be
/// read, or nothing works.
fn wait<'a>(
    stopped: &'a dyn AsFd,
    sources: impl IntoIterator<Item = BorrowedFd<'a>>,
    until: Option<Instant>,
) -> Option<Vec<bool>> {
    let watched = [stopped.as_fd()].into_iter().chain(sources);
    let mut fds: Vec<_> = watched
        .map(|source| PollFd::new(source, PollFlags::POLLIN))
        .collect();
    poll_until(&mut fds, until).ok()?;
    let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
    let is_stopped = ready.next().unwrap_or(true);
    (!is_stopped).then(|| ready.collect())
}

fn poll_until(fds: &mut [PollFd<'_>], until: Option<Instant>) -> nix::Result<()> {
    loop {
        match poll(fds, timeout(until)) {
            Err(nix::Error::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

fn accept(
    listener: &TcpListener,
    to: SocketAddrV4,
    forwards: Option<&Forwards>,
    stopped: &dyn AsFd,
) {
    let open = Arc::new(AtomicUsize::new(0));
    while wait(stopped, [listener.as_fd()], None).is_some() {
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
                    let _ = join(client, machine, None);
                }
            }),
            Some(forwards) => {
                let Some(place) = forwards.place() else {
                    continue;
                };
                let carried = forwards.carried().clone();
                forwards.ask(Wanted {
                    protocol: Protocol::Tcp,
                    to,
                    then: Box::new(move |machine| {
                        spawn(move || {
                            let _held = (count, place);
                            let _ = join(client, machine, Some(&carried));
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
trait End: Read + Write + AsFd + Send + Sized + 'static {
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

/// Carries one connection in both directions until both have ended. What no device sees is counted and held to its rate.
fn join(
    mut client: TcpStream,
    mut machine: impl End,
    carried: Option<&Arc<Carried>>,
) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    let (mut client_back, mut machine_back) = (client.copy()?, machine.copy()?);
    let back = thread::Builder::new().name("connection".into());
    let outward = carried.cloned();
    let back = back.stack_size(STACK).spawn(move || {
        let carried = outward.as_deref().map(|carried| (carried, Direction::Out));
        copy(&mut machine_back, &mut client_back, carried);
    })?;
    let carried = carried.map(|carried| (&**carried, Direction::In));
    copy(&mut client, &mut machine, carried);
    // A thread that panicked has nothing more to carry.
    let _ = back.join();
    Ok(())
}

fn copy(from: &mut impl End, to: &mut impl End, carried: Option<(&Carried, Direction)>) {
    match copy_all(from, to, carried) {
        Ok(()) => to.end(Shutdown::Write),
        // A connection that broke on one side is of no use on the other.
        Err(_) => {
            from.end(Shutdown::Both);
            to.end(Shutdown::Both);
        }
    }
}

fn copy_all(
    from: &mut impl End,
    to: &mut impl End,
    carried: Option<(&Carried, Direction)>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        if let Some((carried, direction)) = carried
            && carried.is_limited(direction)
        {
            wait_for_rate(from, to, carried, direction)?;
        }
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        if let Some((carried, direction)) = carried {
            carried.pass(direction, count, Instant::now());
        }
        to.write_all(&buffer[..count])?;
    }
}

/// Until there is something to pass and it may: all connections of a machine's take from the same bucket.
fn wait_for_rate(
    from: &impl End,
    to: &impl End,
    carried: &Carried,
    direction: Direction,
) -> io::Result<()> {
    poll_until(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], None)?;
    while let Some(later) = carried.ready_at(direction, Instant::now()) {
        // Who is gone is told of without being asked for.
        let mut taker = [PollFd::new(to.as_fd(), PollFlags::empty())];
        poll_until(&mut taker, Some(later))?;
        if taker[0].any().unwrap_or(true) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::UdpSocket,
    };

    use vmm::NetLimits;

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
        let (machine, mut next) = behind_agent(NetLimits::default());
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

    /// Where the machine is led into by an agent with these limits, and the next connection that it is asked for.
    fn behind_agent(limits: NetLimits) -> (Machine, impl FnMut() -> Wanted) {
        let (forwards, mut wanted) = Forwards::new(&limits).unwrap();
        let machine = Machine {
            ip: [10, 0, 2, 15].into(),
            forwards: Some(forwards),
        };
        let next = move || {
            let (stopped, _stop) = io::pipe().unwrap();
            wait(&stopped, [wanted.as_fd()], None);
            wanted.take().pop().unwrap()
        };
        (machine, next)
    }

    /// Whether so many units, of which a tenth of a second's worth are free and the last ones go into debt, took their time.
    fn is_held(start: Instant, before_last: u64, rate: u64) -> bool {
        let least = Duration::from_millis((before_last - rate / 10) * 1000 / rate);
        start.elapsed() >= least
    }

    #[test]
    fn connections_that_an_agent_brings_share_a_rate_and_are_counted() {
        let rate = 200_000;
        let (machine, mut next) = behind_agent(NetLimits {
            receive_bytes: Some(rate),
            transmit_bytes: None,
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _tcp = Proxy::start(Listener::Tcp(listener, 80), &machine).unwrap();
        let start = Instant::now();
        let carry = |(mut client, mut agent): (TcpStream, UnixStream)| {
            let sender = thread::spawn(move || {
                client.write_all(&[7; 40_000]).unwrap();
                client
            });
            agent.read_exact(&mut [0; 40_000]).unwrap();
            let mut client = sender.join().unwrap();
            // The other direction has no limit.
            agent.write_all(&[8; 100_000]).unwrap();
            client.read_exact(&mut [0; 100_000]).unwrap();
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let client = TcpStream::connect(at).unwrap();
                let (ours, agent) = UnixStream::pair().unwrap();
                (next().then)(ours);
                thread::spawn(move || carry((client, agent)))
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert!(is_held(start, 80_000 - 2 * CHUNK as u64, rate));
        let traffic = machine.forwards.unwrap().carried().traffic();
        assert_eq!((traffic.in_bytes, traffic.out_bytes), (80_000, 200_000));
    }

    #[test]
    fn who_waits_for_a_rate_notices_that_the_machine_is_gone() {
        let (machine, mut next) = behind_agent(NetLimits {
            receive_bytes: Some(1),
            transmit_bytes: None,
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _tcp = Proxy::start(Listener::Tcp(listener, 80), &machine).unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        let (ours, mut agent) = UnixStream::pair().unwrap();
        (next().then)(ours);
        client.write_all(&[7; 1000]).unwrap();
        agent.read_exact(&mut [0; 1000]).unwrap();
        // It would go in a quarter of an hour.
        client.write_all(b"x").unwrap();
        drop(agent);
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }

    #[test]
    fn packets_that_an_agent_brings_wait_and_hold_up_no_answers() {
        let rate = 2000;
        let (machine, mut next) = behind_agent(NetLimits {
            receive_bytes: Some(rate),
            transmit_bytes: None,
        });
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let _udp = Proxy::start(Listener::Udp(socket, 53), &machine).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let start = Instant::now();
        for _ in 0..3 {
            peer.send_to(&[7; 400], at).unwrap();
        }
        let (ours, mut agent) = UnixStream::pair().unwrap();
        (next().then)(ours);
        agent.read_exact(&mut [0; 402]).unwrap();
        agent.write_all(b"\0\x03two").unwrap();
        assert_eq!(peer.recv(&mut [0; 5]).unwrap(), 3);
        agent.read_exact(&mut [0; 804]).unwrap();
        assert!(is_held(start, 800, rate));
        let traffic = machine.forwards.unwrap().carried().traffic();
        assert_eq!((traffic.in_bytes, traffic.out_bytes), (1200, 3));
    }
}
