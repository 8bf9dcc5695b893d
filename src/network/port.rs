//! Published ports: what `-p` says, and the sockets that hold them.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind as take, listen, socket_with,
    sockopt::{set_ipv6_v6only, set_socket_reuseaddr},
};
use serde::{Deserialize, Serialize};

use super::{
    error::NetworkError,
    holder,
    lease::{Lease, Published},
};

/// Most ports that one `-p` may name.
const MAX_RANGE: u16 = 4096;
/// Most connections that wait to be accepted: as many as a host allows by default.
const BACKLOG: i32 = 4096;

/// What carries a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Packets.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One port to publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// On this address of the host; else on loopback alone.
    pub address: Option<IpAddr>,
    /// This port of the host; else any that is free.
    pub host: Option<u16>,
    /// Port in the container.
    pub container: u16,
    /// Of which protocol.
    pub protocol: Protocol,
}

/// Why a `-p` says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PortError {
    #[error(
        "{0:?} is no port to publish: [ADDRESS:][HOST:]CONTAINER[/udp], where ports are 1 to 65535 or a \
         range such as 8000-8010, and an address of IPv6 is in brackets"
    )]
    Syntax(String),
    #[error("{0:?}: both ranges need the same length, {MAX_RANGE} ports at most")]
    Range(String),
}

/// Ports as one `-p` names them.
///
/// # Errors
///
/// [`PortError`].
pub fn parse(text: &str) -> Result<Vec<Publish>, PortError> {
    let syntax = || PortError::Syntax(text.into());
    let (rest, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some(_) => return Err(syntax()),
    };
    let (address, rest) = address(rest).ok_or_else(syntax)?;
    let (host, container) = match rest.split_once(':') {
        Some(both) => both,
        None if address.is_none() => ("", rest),
        None => return Err(syntax()),
    };
    let container = range(container).ok_or_else(syntax)?;
    let host = match host {
        "" => None,
        host => Some(range(host).ok_or_else(syntax)?),
    };
    let length = container.1 - container.0;
    if length >= MAX_RANGE || host.is_some_and(|host| host.1 - host.0 != length) {
        return Err(PortError::Range(text.into()));
    }
    let one = |offset| Publish {
        address,
        host: host.map(|(first, _)| first + offset),
        container: container.0 + offset,
        protocol,
    };
    Ok((0..=length).map(one).collect())
}

/// The address that comes first, where there is one, and what follows it.
fn address(text: &str) -> Option<(Option<IpAddr>, &str)> {
    if let Some(text) = text.strip_prefix('[') {
        let (address, rest) = text.split_once("]:")?;
        let address: Ipv6Addr = address.parse().ok()?;
        return Some((Some(address.into()), rest));
    }
    match text.split_once(':') {
        Some((first, rest)) if rest.contains(':') => {
            let address: Ipv4Addr = first.parse().ok()?;
            Some((Some(address.into()), rest))
        }
        _ => Some((None, text)),
    }
}

/// A port or `first-last`.
fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some((first, last))
}

/// A socket that holds a published port, and the port in the container.
#[derive(Debug)]
pub enum Listener {
    /// For connections.
    Tcp(TcpListener, u16),
    /// For packets.
    Udp(UdpSocket, u16),
}

/// Takes every port, so that what is published is known before a machine is made.
///
/// # Errors
///
/// [`NetworkError::PortTaken`] with the holder's name.
pub fn bind(
    wanted: &[Publish],
    leases: &[Lease],
) -> Result<(Vec<Published>, Vec<Listener>), NetworkError> {
    let mut published = Vec::new();
    let mut listeners = Vec::new();
    for port in wanted {
        let address = port.address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let at = SocketAddr::new(address, port.host.unwrap_or(0));
        let (listener, bound) =
            hold(port, at).map_err(|source| refused(at, port.protocol, leases, source))?;
        published.push(Published {
            host: SocketAddr::new(address, bound.port()),
            container: port.container,
            protocol: port.protocol,
            is_default_address: port.address.is_none(),
        });
        listeners.push(listener);
    }
    Ok((published, listeners))
}

/// Takes one port, and where it is then.
fn hold(port: &Publish, at: SocketAddr) -> io::Result<(Listener, SocketAddr)> {
    Ok(match port.protocol {
        Protocol::Tcp => {
            let socket = socket(at, SocketType::STREAM)?;
            listen(&socket, BACKLOG)?;
            let listener = TcpListener::from(socket);
            let bound = listener.local_addr()?;
            (Listener::Tcp(listener, port.container), bound)
        }
        Protocol::Udp => {
            let socket = UdpSocket::from(socket(at, SocketType::DGRAM)?);
            let bound = socket.local_addr()?;
            (Listener::Udp(socket, port.container), bound)
        }
    })
}

/// A socket at that address, which has nothing to do with the other family's: `[::]` leaves `0.0.0.0` to others.
fn socket(at: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = match at {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if at.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections that have just ended do not keep the port from who starts anew.
        set_socket_reuseaddr(&socket, true)?;
    }
    take(&socket, &at)?;
    Ok(socket)
}

fn refused(
    at: SocketAddr,
    protocol: Protocol,
    leases: &[Lease],
    source: io::Error,
) -> NetworkError {
    let port = format!("{at}/{protocol}");
    match source.kind() {
        io::ErrorKind::AddrInUse => NetworkError::PortTaken {
            holder: holder::of(at, protocol, leases),
            port,
        },
        _ => NetworkError::Listen { port, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(address: Option<&str>, host: Option<u16>, container: u16) -> Publish {
        Publish {
            address: address.map(|text| text.parse().unwrap()),
            host,
            container,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn ports_are_read_as_docker_writes_them() {
        let any = Some("0.0.0.0");
        assert_eq!(parse("80").unwrap(), [publish(None, None, 80)]);
        assert_eq!(parse("8080:80").unwrap(), [publish(None, Some(8080), 80)]);
        assert_eq!(
            parse("0.0.0.0:8080:80/tcp").unwrap(),
            [publish(any, Some(8080), 80)]
        );
        assert_eq!(parse("0.0.0.0::80").unwrap(), [publish(any, None, 80)]);
        for (text, address) in [("[::1]:8080:80", "::1"), ("[::]:8080:80", "::")] {
            assert_eq!(
                parse(text).unwrap(),
                [publish(Some(address), Some(8080), 80)]
            );
        }
        assert_eq!(
            parse("[fd00::1]::80").unwrap(),
            [publish(Some("fd00::1"), None, 80)]
        );
        assert_eq!(
            parse("8000-8001:90-91").unwrap(),
            [publish(None, Some(8000), 90), publish(None, Some(8001), 91)]
        );
        assert_eq!(parse("53:53/udp").unwrap()[0].protocol, Protocol::Udp);
        assert_eq!(parse("1-4096").unwrap().len(), 4096);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            ":",
            "0",
            "65536",
            "80:",
            "x:80",
            "80/sctp",
            "80/",
            "1:2:3",
            "::1:80:80",
            "[::1]:80",
            "[::1]",
            "[::1:80:80",
            "[1.2.3.4]:80:80",
            "[fe80::1%eth0]:80:80",
            "9-8",
            "-1",
            "1.2.3.4:80",
            "1.2.3.4:5:6:7",
        ] {
            assert_eq!(parse(text), Err(PortError::Syntax(text.into())), "{text}");
        }
        for text in ["1-4097", "1-65535", "8000-8001:80", "80:80-81"] {
            assert_eq!(parse(text), Err(PortError::Range(text.into())), "{text}");
        }
    }

    #[test]
    fn a63_without_an_address_a_port_is_on_loopback_and_a_taken_one_names_its_holder() {
        let (published, listeners) = bind(&parse("80").unwrap(), &[]).unwrap();
        let host = published[0].host;
        assert_eq!(host.ip(), Ipv4Addr::LOCALHOST);
        assert_eq!(listeners.len(), 1);

        let again = Publish {
            host: Some(host.port()),
            ..parse("80").unwrap()[0].clone()
        };
        let error = bind(&[again], &[]).unwrap_err();
        let NetworkError::PortTaken { holder, .. } = error else {
            panic!("{error}");
        };
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");

        let (everywhere, _held) = bind(&parse("0.0.0.0::80").unwrap(), &[]).unwrap();
        let six = Publish {
            host: Some(everywhere[0].host.port()),
            ..parse("[::]::80").unwrap()[0].clone()
        };
        let (published, _held) = bind(&[six], &[]).unwrap();
        assert!(published[0].host.to_string().starts_with("[::]:"));
    }
}
