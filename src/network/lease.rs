//! Leases: who is on which network with which address and ports, one file each.
//!
//! A lease is as good as the lock on its file. The kernel frees that with its holder, so a file that
//! can be locked is a dead one's.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use vmm::virtio::net::frame::link_local;

use super::{
    Endpoint, Request,
    definition::{Addresses, Definition},
    error::NetworkError,
    port::Protocol,
};

/// Longest file that is read, in bytes: far more than the ports of a lease take.
const MAX_FILE: u64 = 4 << 20;

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Where, on the host.
    pub host: SocketAddr,
    /// What it leads to.
    pub container: u16,
    /// Of which protocol.
    pub protocol: Protocol,
    /// Nobody gave an address.
    pub is_default_address: bool,
}

/// One container's place on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// ID of the container.
    pub id: String,
    /// Name of the container when it started.
    pub name: String,
    /// Name of the network.
    pub network: String,
    /// The address, on a bridge.
    pub ip: Option<Ipv4Addr>,
    /// The address of IPv6, where the network has any.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// Names on the network besides the container's.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Which of the machine's interfaces it is for.
    #[serde(default)]
    pub position: usize,
    /// The MAC address.
    pub mac: [u8; 6],
    /// Name of the TAP device, on a bridge or an interface of the host's.
    pub tap: String,
    /// That interface.
    #[serde(default)]
    pub parent: Option<String>,
    /// Name servers that it may ask, wherever they are.
    pub servers: Vec<Ipv4Addr>,
    /// It reaches the host at this address.
    #[serde(default)]
    pub host: Option<Ipv4Addr>,
    /// Its ports.
    pub published: Vec<Published>,
}

/// A lease of this process.
#[derive(Debug)]
pub struct Held {
    lease: Lease,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Lease {
    /// What `request` asks for at one of its endpoints, with an address of a bridged network.
    pub fn new(
        request: &Request<'_>,
        endpoint: &Endpoint,
        position: usize,
        place: Option<(&Definition, Addresses)>,
        published: Vec<Published>,
    ) -> Self {
        let ip = place.map(|(_, addresses)| addresses.ip);
        // Of one's own making (second bit), and the same wherever the IP address is.
        let mac = ip.map_or(super::user::MAC, |ip| {
            let [a, b, c, d] = ip.octets();
            [0x02, 0x70, a, b, c, d]
        });
        Self {
            id: request.id.into(),
            name: request.name.into(),
            network: place
                .map_or(&*endpoint.network, |(network, _)| &network.name)
                .into(),
            ip,
            ip6: place.and_then(|(_, addresses)| addresses.ip6),
            aliases: endpoint.aliases.clone(),
            position,
            mac: endpoint.mac.unwrap_or(mac),
            tap: ip.map_or(String::new(), |_| tap_name(request.id)),
            parent: place.and_then(|(network, _)| network.parent.clone()),
            servers: place.map_or(Vec::new(), |(network, _)| network.servers(request.dns)),
            host: place
                .filter(|_| request.host_gateway && position == 0)
                .map(|(network, _)| network.gateway),
            published,
        }
    }
}

impl Lease {
    /// Whether that is its address.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.ip.map(IpAddr::from) == Some(ip) || self.ip6.map(IpAddr::from) == Some(ip)
    }

    /// Whether it is on a bridge, behind rules of the firewall's.
    pub fn is_walled(&self) -> bool {
        !self.tap.is_empty() && self.parent.is_none()
    }

    /// Its addresses of IPv6, the link-local one included.
    pub fn addresses6(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.ip6
            .into_iter()
            .flat_map(|ip| [ip, link_local(self.mac)])
    }
}

/// At most 15 bytes, and of no other machine: the one before of the same container may still be going.
fn tap_name(id: &str) -> String {
    let id: String = id.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    // Without random bytes the name is as good, but for that case.
    let random = getrandom::u32().unwrap_or_default() & 0xffff;
    format!("pb-{id}{random:04x}")
}

impl Held {
    /// What is held.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Writes down that the container is called otherwise, in one step. The caller holds the lock of all networks.
    pub fn rename(&mut self, folder: &Path, name: &str) -> Result<(), NetworkError> {
        let lease = Lease {
            name: name.into(),
            ..self.lease.clone()
        };
        *self = write(folder, lease, true)?;
        Ok(())
    }

    /// Gives it back.
    pub fn release(self) {
        // What stays is a dead one's file, which the next sweep removes.
        let _ = fs::remove_file(&self.path);
    }
}

/// Writes a lease down and locks it. The caller holds the lock of all networks.
pub fn hold(folder: &Path, lease: Lease) -> Result<Held, NetworkError> {
    write(folder, lease, false)
}

/// The same, where `again` says that there is one already, whose place it takes.
fn write(folder: &Path, lease: Lease, again: bool) -> Result<Held, NetworkError> {
    let path = path(folder, &lease);
    let write = || -> io::Result<Flock<File>> {
        // Whoever finds it finds it whole, and locked.
        let file = tempfile::NamedTempFile::new_in(folder)?;
        let lock = Flock::lock(file.reopen()?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| io::Error::from(error))?;
        (&*lock).write_all(&serde_json::to_vec(&lease)?)?;
        match again {
            true => file.persist(&path),
            false => file.persist_noclobber(&path),
        }
        .map_err(|error| error.error)?;
        Ok(lock)
    };
    let lock = write().map_err(|source| NetworkError::State {
        what: "write",
        path: path.clone(),
        source,
    })?;
    Ok(Held {
        lease,
        path,
        _lock: lock,
    })
}

/// One for each interface of a container.
fn path(networks: &Path, lease: &Lease) -> PathBuf {
    folder(networks).join(format!("{}-{}.json", lease.id, lease.position))
}

/// Where they are.
pub fn folder(networks: &Path) -> PathBuf {
    networks.join("leases")
}

/// Whether the process whose lease it is lives. Needs no lock.
pub fn is_held(networks: &Path, lease: &Lease) -> bool {
    let Ok(file) = File::open(path(networks, lease)) else {
        return false;
    };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

/// Removes the leases of the dead, for each of which `clear` removes what stays of it, and returns whether there were any.
/// The caller holds the lock of all networks.
pub fn sweep(folder: &Path, clear: impl Fn(&Lease)) -> Result<bool, NetworkError> {
    let mut removed = false;
    for path in files(folder)? {
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if Flock::lock(file, FlockArg::LockSharedNonblock).is_ok() {
            if let Ok(lease) = read(&path) {
                clear(&lease);
            }
            fs::remove_file(&path).map_err(|source| NetworkError::State {
                what: "remove",
                path: path.clone(),
                source,
            })?;
            removed = true;
        }
    }
    Ok(removed)
}

/// All leases that are written down.
pub fn all(folder: &Path) -> Result<Vec<Lease>, NetworkError> {
    // One that goes meanwhile is not written down any more.
    let is_there = |read: &io::Result<Lease>| !matches!(read, Err(error) if error.kind() == io::ErrorKind::NotFound);
    files(folder)?
        .iter()
        .map(|path| (path, read(path)))
        .filter(|(_, read)| is_there(read))
        .map(|(path, read)| {
            read.map_err(|source| NetworkError::State {
                what: "read",
                path: path.clone(),
                source,
            })
        })
        .collect()
}

fn read(path: &Path) -> io::Result<Lease> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, NetworkError> {
    let folder = self::folder(folder);
    let entries = fs::read_dir(&folder).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()
    });
    let mut paths = entries.map_err(|source| NetworkError::State {
        what: "list",
        path: folder,
        source,
    })?;
    paths.sort();
    Ok(paths)
}

/// A lease for tests.
#[cfg(test)]
pub fn example(name: &str, network: &str, ip: [u8; 4]) -> Lease {
    Lease {
        id: format!("{name}0123456789abcdef"),
        name: name.into(),
        network: network.into(),
        ip: Some(ip.into()),
        ip6: None,
        aliases: vec![],
        position: 0,
        mac: [2, 0x70, ip[0], ip[1], ip[2], ip[3]],
        tap: format!("pb-{name}"),
        parent: None,
        servers: vec![],
        host: None,
        published: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a51_the_lease_of_a_dead_process_is_swept_and_that_of_a_living_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("leases")).unwrap();
        let mut living = hold(folder.path(), example("living", "bridge", [10, 0, 0, 2])).unwrap();
        let dead = hold(folder.path(), example("dead", "bridge", [10, 0, 0, 3])).unwrap();
        // As with kill -9: the lock goes, the file stays.
        drop(dead);
        // A process that died while it wrote.
        fs::write(folder.path().join("leases/half.json"), "{\"id\":").unwrap();

        assert!(sweep(folder.path(), |_| ()).unwrap());

        assert_eq!(all(folder.path()).unwrap(), [living.lease().clone()]);
        living.rename(folder.path(), "renamed").unwrap();
        assert!(!sweep(folder.path(), |_| ()).unwrap());
        assert_eq!(all(folder.path()).unwrap()[0].name, "renamed");
        living.release();
        assert_eq!(all(folder.path()).unwrap(), []);
    }

    #[test]
    fn names_of_taps_fit_the_kernels_limit() {
        assert!(tap_name("0123456789abcdef0123").starts_with("pb-01234567"));
        assert!(tap_name(&"f".repeat(64)).len() <= 15);
    }
}
