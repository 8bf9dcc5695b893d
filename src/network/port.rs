//! Published ports: what `-p` says, and the sockets that hold them.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{
    error::NetworkError,
    holder,
    lease::{Lease, Published},
};

/// Most ports that one `-p` may name.
const MAX_RANGE: u16 = 4096;

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
    pub address: Option<Ipv4Addr>,
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
         range such as 8000-8010, and the address is one of IPv4"
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
    let parts: Vec<&str> = rest.split(':').collect();
    let (address, host, container) = match parts[..] {
        [container] => (None, "", container),
        [host, container] => (None, host, container),
        [address, host, container] => {
            let address = Ipv4Addr::from_str(address).map_err(|_| syntax())?;
            (Some(address), host, container)
        }
        _ => return Err(syntax()),
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
        let address = port.address.unwrap_or(Ipv4Addr::LOCALHOST);
        let at = SocketAddrV4::new(address, port.host.unwrap_or(0));
        let (listener, bound) = match port.protocol {
            Protocol::Tcp => TcpListener::bind(at).and_then(|socket| {
                let bound = socket.local_addr()?;
                Ok((Listener::Tcp(socket, port.container), bound))
            }),
            Protocol::Udp => UdpSocket::bind(at).and_then(|socket| {
                let bound = socket.local_addr()?;
                Ok((Listener::Udp(socket, port.container), bound))
            }),
        }
        .map_err(|source| refused(at, port.protocol, leases, source))?;
        published.push(Published {
            host: SocketAddrV4::new(address, bound.port()),
            container: port.container,
            protocol: port.protocol,
            is_default_address: port.address.is_none(),
        });
        listeners.push(listener);
    }
    Ok((published, listeners))
}

fn refused(
    at: SocketAddrV4,
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

    fn publish(address: Option<[u8; 4]>, host: Option<u16>, container: u16) -> Publish {
        Publish {
            address: address.map(Into::into),
            host,
            container,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn ports_are_read_as_docker_writes_them() {
        let any = Some([0; 4]);
        assert_eq!(parse("80").unwrap(), [publish(None, None, 80)]);
        assert_eq!(parse("8080:80").unwrap(), [publish(None, Some(8080), 80)]);
        assert_eq!(
            parse("0.0.0.0:8080:80/tcp").unwrap(),
            [publish(any, Some(8080), 80)]
        );
        assert_eq!(parse("0.0.0.0::80").unwrap(), [publish(any, None, 80)]);
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
        assert_eq!(*host.ip(), Ipv4Addr::LOCALHOST);
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
    }
}
