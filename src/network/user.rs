//! The driver without privilege: a passt(1) for each machine, which makes the machine's connections its
//! own. It confines itself (namespaces, seccomp) and ends with the stream to the machine.
//!
//! To passt the host's networks are one: what a machine must not reach is kept from it by its device. On network `host`
//! nothing is: there the machine has the host's own address, and reaches the host's loopback services at its gateway.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};

use super::{Nic, bridge, error::NetworkError, firewall::PRIVATE};

/// The program.
pub const PROGRAM: &str = "passt";
/// Address of every guest. Nobody sees it: each is alone behind its passt.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const PREFIX: u8 = 24;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Where passt asks the host's name server.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Of every guest, too.
pub const MAC: [u8; 6] = [0x02, 0x70, 10, 0, 2, 15];
/// How long passt may take to start, on a host that has much else to do.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer to a request of ARP, with room for padding.
const MAX_ANSWER: usize = 1024;
/// Without segmentation offload, long packets make up for it.
pub const MTU: u16 = 65_520;

/// Whether this host has what it takes.
pub fn is_possible() -> bool {
    crate::program::find(PROGRAM).is_some()
}

/// A guest, as its passt sees it.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
    /// How many bits of it its network shares.
    pub prefix: u8,
    /// The address at which its way out begins.
    pub gateway: Ipv4Addr,
    /// Where it asks the host's name servers.
    pub server: Option<Ipv4Addr>,
    /// Whether it takes the host's place: there are no walls, and its gateway is the host.
    pub is_host: bool,
}

/// A passt that runs.
pub struct Started {
    /// The process.
    pub passt: Child,
    /// The guest's end of the stream.
    pub stream: OwnedFd,
}

/// The device of a guest that has no neighbours, and who it asks for names. It reaches the `host` at that address.
///
/// # Errors
///
/// Where the host's addresses cannot be read.
pub fn nic(
    guest: &Guest,
    dns: &[Ipv4Addr],
    host: Option<Ipv4Addr>,
) -> Result<(Nic, Vec<Ipv4Addr>), NetworkError> {
    let servers = match dns {
        [] => guest.server.into_iter().collect(),
        given => given.to_vec(),
    };
    let nic = Nic {
        tap: None,
        queues: 1,
        mac: guest.mac,
        addresses: vec![(guest.ip.into(), guest.prefix)],
        gateways: vec![guest.gateway.into()],
        mtu: MTU,
        denied: match guest.is_host {
            true => Vec::new(),
            false => denied(host)?,
        },
        allowed: servers
            .iter()
            .map(|ip| SocketAddrV4::new(*ip, 53))
            .collect(),
    };
    Ok((nic, servers))
}

impl Guest {
    /// Who is alone behind its passt.
    pub fn alone(mac: [u8; 6]) -> Self {
        Self {
            mac,
            ip: ADDRESS,
            prefix: PREFIX,
            gateway: GATEWAY,
            server: Some(SERVER),
            is_host: false,
        }
    }

    /// Who has the host's address: the one that it is known by on its way out.
    ///
    /// # Errors
    ///
    /// Where the host has no way out.
    pub fn in_place_of_host(mac: [u8; 6]) -> Result<Self, NetworkError> {
        let (subnet, gateway) = bridge::way_out()?;
        Ok(Self {
            mac,
            ip: subnet.addr(),
            prefix: subnet.prefix_len(),
            gateway,
            server: Some(SERVER),
            is_host: true,
        })
    }
}

/// The address at which who is behind a passt reaches the host, as its neighbours do: the one that it has on its way out.
///
/// # Errors
///
/// [`NetworkError::NoWayOut`] where it has none.
pub fn host() -> Result<Ipv4Addr, NetworkError> {
    Ok(bridge::way_out()?.0.addr())
}

/// Where no passt leads: to passt the host's own networks are as good as any. To `host` it does, wherever that is.
///
/// # Errors
///
/// Where the host's addresses cannot be read.
pub fn denied(host: Option<Ipv4Addr>) -> Result<Vec<IpNet>, NetworkError> {
    let own = bridge::host_addresses()?.into_iter().map(IpNet::from);
    let all = PRIVATE.map(IpNet::V4).into_iter().chain(own);
    Ok(all.flat_map(|net| without(net, host)).collect())
}

/// A subnet but for one address: itself, or, where it has that, its halves of which the other has it, theirs, and so on.
fn without(net: IpNet, hole: Option<Ipv4Addr>) -> Vec<IpNet> {
    match (net, hole) {
        (IpNet::V4(net), Some(hole)) if net.contains(&hole) => (net.prefix_len() + 1..=32)
            .filter_map(|length| {
                let other = Ipv4Addr::from_bits(hole.to_bits() ^ 1 << (32 - length));
                Some(IpNet::V4(Ipv4Net::new(other, length).ok()?.trunc()))
            })
            .collect(),
        _ => vec![net],
    }
}

/// Starts a passt. What it has to say goes to `log`.
///
/// # Errors
///
/// Where it cannot be started.
pub fn start(guest: &Guest, log: &Path) -> Result<Started, NetworkError> {
    let failed = |source: io::Error| NetworkError::Program {
        program: PROGRAM,
        source,
    };
    let path =
        crate::program::find(PROGRAM).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let output = OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .map_err(failed)?;
    let mut command = Command::new(path);
    command
        // The stream is its standard input.
        .args(["--foreground", "--quiet", "--fd", "0", "--ipv4-only"])
        .arg("--no-dhcp")
        .args(["--address", &guest.ip.to_string()])
        .args(["--netmask", &guest.prefix.to_string()])
        .args(["--gateway", &guest.gateway.to_string()])
        .args(["--mtu", &MTU.to_string()])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(output)
        .current_dir("/")
        .env_clear();
    if !guest.is_host {
        command.arg("--no-map-gw");
    }
    if let Some(server) = guest.server {
        command.args(["--dns-forward", &server.to_string()]);
    }
    let mut passt = command.spawn().map_err(failed)?;
    // The command has the other end of the stream for as long as it exists.
    drop(command);
    if let Err(error) = wait_ready(&ours, guest) {
        // Reaped, whatever it was about to do.
        let _ = passt.kill();
        let _ = passt.wait();
        return Err(NetworkError::Refused {
            program: PROGRAM,
            said: match error.kind() {
                io::ErrorKind::WouldBlock => "it does not answer".into(),
                _ => last_words(log),
            },
        });
    }
    Ok(Started {
        passt,
        stream: ours.into(),
    })
}

/// Asks passt, as the guest will, where the gateway is (RFC 826). Its answer says that it is up.
fn wait_ready(mut stream: &UnixStream, guest: &Guest) -> io::Result<()> {
    let broadcast = [0xff; 6];
    // Ethernet and IPv4, a request.
    let kind = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    let (mac, own, wanted) = (guest.mac, guest.ip.octets(), guest.gateway.octets());
    let request = [&broadcast[..], &mac, &kind, &mac, &own, &[0; 6], &wanted].concat();
    let length = u32::try_from(request.len()).map_err(io::Error::other)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[&length.to_be_bytes(), &request[..]].concat())?;
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix)?;
    let mut answer = vec![0; (u32::from_be_bytes(prefix) as usize).min(MAX_ANSWER)];
    stream.read_exact(&mut answer)?;
    stream.set_read_timeout(None)
}

/// The last line of a log that is about more than the log itself.
fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut lines = text.lines().rev();
    let said = lines.find(|line| !line.is_empty() && !line.starts_with("Failed to send"));
    said.unwrap_or("it does not say why").into()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a20_of_a_subnet_with_the_host_in_it_all_is_denied_but_the_host() {
        let host = Ipv4Addr::new(192, 168, 7, 9);
        let net = |text: &str| -> IpNet { text.parse().unwrap() };
        let denied = without(net("192.168.7.8/30"), Some(host));
        assert_eq!(denied, [net("192.168.7.10/31"), net("192.168.7.8/32")]);
        let denied = without(net("192.168.0.0/16"), Some(host));
        let is_denied = |ip: [u8; 4]| denied.iter().any(|net| net.contains(&IpAddr::from(ip)));
        assert!(!is_denied(host.octets()));
        for other in [[192, 168, 7, 8], [192, 168, 0, 0], [192, 168, 255, 255]] {
            assert!(is_denied(other), "{other:?}");
        }
        assert_eq!(without(net("192.168.7.9/32"), Some(host)), []);
        for (net, hole) in [("10.0.0.0/8", Some(host)), ("192.168.0.0/16", None)] {
            assert_eq!(without(net.parse().unwrap(), hole), [net.parse().unwrap()]);
        }
    }

    #[test]
    fn passt_is_ready_when_it_answers_and_dead_when_it_goes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[0, 0, 0, 2, 1, 1]).unwrap();
        wait_ready(&ours, &Guest::alone(MAC)).unwrap();
        let mut request = [0; 46];
        theirs.read_exact(&mut request).unwrap();
        assert_eq!(request[..4], [0, 0, 0, 42]);
        assert_eq!(request[42..], [10, 0, 2, 2]);
        drop(theirs);
        wait_ready(&ours, &Guest::alone(MAC)).unwrap_err();
    }
}
