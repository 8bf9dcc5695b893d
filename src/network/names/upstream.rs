//! Asking name servers on behalf of a machine, as this process and over this host's network.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use domain::base::{Message, iana::Rcode};

use super::{super::resolver, Transport};

/// Most servers that are asked, one after the other (`MAXNS` of resolv.conf(5)).
const MAX_SERVERS: usize = 3;
/// How long each may take. A machine's own resolver waits five seconds as a rule.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest message.
const MAX_MESSAGE: usize = 65_535;
/// The port.
const DNS: u16 = 53;

/// The first useful answer of the servers `given`, or else of the host's, as they are at this moment.
pub fn ask(message: &[u8], given: &[Ipv4Addr], transport: Transport) -> Option<Vec<u8>> {
    let servers: Vec<IpAddr> = match given {
        [] => resolver::all_of_host(),
        given => given.iter().map(|ip| (*ip).into()).collect(),
    };
    let servers: Vec<_> = servers.iter().map(|ip| SocketAddr::new(*ip, DNS)).collect();
    ask_each(message, &servers, transport)
}

pub(super) fn ask_each(
    message: &[u8],
    servers: &[SocketAddr],
    transport: Transport,
) -> Option<Vec<u8>> {
    let asked = disguised(message)?;
    let mut last = None;
    for server in servers.iter().take(MAX_SERVERS) {
        let answer = match transport {
            Transport::Packets => over_udp(&asked, *server),
            Transport::Connection => over_tcp(&asked, *server),
        };
        let Ok(mut answer) = answer else { continue };
        let rcode = answer.header().rcode();
        answer
            .header_mut()
            .set_id(Message::from_octets(message).ok()?.header().id());
        let answer = answer.into_octets();
        if !matches!(rcode, Rcode::SERVFAIL | Rcode::REFUSED) {
            return Some(answer);
        }
        // Another one may know more.
        last = Some(answer);
    }
    last
}

/// The message with an ID that nobody can guess, so that nobody can answer in a server's place (RFC 5452).
fn disguised(message: &[u8]) -> Option<Message<Vec<u8>>> {
    let mut asked = Message::from_octets(message.to_vec()).ok()?;
    let [a, b, ..] = getrandom::u32().ok()?.to_ne_bytes();
    asked.header_mut().set_id(u16::from_ne_bytes([a, b]));
    Some(asked)
}

/// From a port that the kernel chooses at random for this message alone, and of the server's packets only.
fn over_udp(message: &Message<Vec<u8>>, server: SocketAddr) -> io::Result<Message<Vec<u8>>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.send(message.as_slice())?;
    let until = Instant::now() + PATIENCE;
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        if let Some(answer) = checked(&buffer[..length], message) {
            return Ok(answer);
        }
    }
}

fn over_tcp(message: &Message<Vec<u8>>, server: SocketAddr) -> io::Result<Message<Vec<u8>>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u16::try_from(message.as_slice().len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message.as_slice()].concat())?;
    let mut prefix = [0; 2];
    stream.read_exact(&mut prefix)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(prefix))];
    stream.read_exact(&mut answer)?;
    checked(&answer, message).ok_or(io::ErrorKind::InvalidData.into())
}

/// What is an answer to that message.
fn checked(answer: &[u8], to: &Message<Vec<u8>>) -> Option<Message<Vec<u8>>> {
    let answer = Message::from_octets(answer.to_vec()).ok()?;
    answer.is_answer(to).then_some(answer)
}
