//! The driver without privilege: a passt(1) for each machine, which makes the machine's connections its
//! own. It confines itself (namespaces, seccomp) and ends with the stream to the machine.
//!
//! To passt the host's networks are one: what a machine must not reach is kept from it by its device.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{Endpoint, Nic, Request, bridge, error::NetworkError, firewall::PRIVATE};

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
/// How long passt may take to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer to a request of ARP, with room for padding.
const MAX_ANSWER: usize = 1024;
/// Without segmentation offload, long packets make up for it.
const MTU: u16 = 65_520;

/// Whether this host has what it takes.
pub fn is_possible() -> bool {
    crate::program::find(PROGRAM).is_some()
}

/// A passt that runs.
pub struct Started {
    /// What the guest and its device are told.
    pub nic: Nic,
    /// Who the guest asks for names.
    pub servers: Vec<Ipv4Addr>,
    /// The process.
    pub passt: Child,
    /// The machine's end of the stream.
    pub stream: OwnedFd,
}

/// Starts a passt.
///
/// # Errors
///
/// Where it cannot be started.
pub fn start(request: &Request<'_>, endpoint: &Endpoint) -> Result<Started, NetworkError> {
    let failed = |source: io::Error| NetworkError::Program {
        program: PROGRAM,
        source,
    };
    let path =
        crate::program::find(PROGRAM).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(request.log)
        .map_err(failed)?;
    let mut command = Command::new(path);
    command
        // The stream is its standard input.
        .args(["--foreground", "--quiet", "--fd", "0", "--ipv4-only"])
        .args(["--no-map-gw", "--no-dhcp"])
        .args(["--address", &ADDRESS.to_string()])
        .args(["--netmask", &PREFIX.to_string()])
        .args(["--gateway", &GATEWAY.to_string()])
        .args(["--dns-forward", &SERVER.to_string()])
        .args(["--mtu", &MTU.to_string()])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        .env_clear();
    let mut passt = command.spawn().map_err(failed)?;
    // The command has the other end of the stream for as long as it exists.
    drop(command);
    let mac = endpoint.mac.unwrap_or(MAC);
    if wait_ready(&ours, mac).is_err() {
        // Reaped, whatever it was about to do.
        let _ = passt.kill();
        let _ = passt.wait();
        return Err(NetworkError::Refused {
            program: PROGRAM,
            said: last_words(request.log),
        });
    }
    let mut denied: Vec<(Ipv4Addr, u8)> = PRIVATE
        .iter()
        .filter_map(|(address, prefix)| Some((address.parse().ok()?, *prefix)))
        .collect();
    denied.extend(bridge::host_addresses()?.into_iter().map(|ip| (ip, 32)));
    let servers = match request.dns {
        [] => vec![SERVER],
        given => given.to_vec(),
    };
    let nic = Nic {
        tap: None,
        mac,
        addresses: vec![(ADDRESS.into(), PREFIX)],
        gateways: vec![GATEWAY.into()],
        mtu: MTU,
        denied,
        allowed: servers
            .iter()
            .map(|ip| SocketAddrV4::new(*ip, 53))
            .collect(),
    };
    Ok(Started {
        nic,
        servers,
        passt,
        stream: ours.into(),
    })
}

/// Asks passt, as the guest will, where the gateway is (RFC 826). Its answer says that it is up.
fn wait_ready(mut stream: &UnixStream, mac: [u8; 6]) -> io::Result<()> {
    let broadcast = [0xff; 6];
    // Ethernet and IPv4, a request.
    let kind = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    let (own, wanted) = (ADDRESS.octets(), GATEWAY.octets());
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
    use super::*;

    #[test]
    fn passt_is_ready_when_it_answers_and_dead_when_it_goes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[0, 0, 0, 2, 1, 1]).unwrap();
        wait_ready(&ours, MAC).unwrap();
        let mut request = [0; 46];
        theirs.read_exact(&mut request).unwrap();
        assert_eq!(request[..4], [0, 0, 0, 42]);
        assert_eq!(request[42..], [10, 0, 2, 2]);
        drop(theirs);
        wait_ready(&ours, MAC).unwrap_err();
    }
}
