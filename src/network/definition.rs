//! Networks as they are written down: a subnet and a bridge each.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{BRIDGE, NONE, Nic, USER, bridge, error::NetworkError, lease::Lease, resolver};

/// Subnets for networks that are given none: the first that nothing of the host overlaps.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 213, 0, 0), 16);
/// Bits of each.
const POOL_PREFIX: u8 = 24;
/// Longest name in bytes.
const MAX_NAME: usize = 64;
/// Longest packet on a bridge.
const MTU: u16 = 1500;

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// All its addresses.
    pub subnet: Ipv4Net,
    /// The host's address on it.
    pub gateway: Ipv4Addr,
    /// The bridge.
    pub bridge: String,
    /// There is no way out.
    pub internal: bool,
    /// Its machines reach each other.
    pub open: bool,
    /// User's own data.
    pub labels: BTreeMap<String, String>,
}

/// What a network shall be.
#[derive(Debug, Clone, Default)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// Its addresses; else some that are free.
    pub subnet: Option<Ipv4Net>,
    /// The host's; else the first.
    pub gateway: Option<Ipv4Addr>,
    /// There is to be no way out.
    pub internal: bool,
    /// User's own data.
    pub labels: BTreeMap<String, String>,
}

impl NewNetwork {
    /// With nothing but a name.
    pub(super) fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }
}

impl Definition {
    /// `wanted`, or else the first address that nobody has.
    pub(super) fn choose(
        &self,
        wanted: Option<Ipv4Addr>,
        leases: &[Lease],
    ) -> Result<Ipv4Addr, NetworkError> {
        let holder = |ip: Ipv4Addr| {
            let mut leases = leases.iter().filter(|lease| lease.network == self.name);
            leases.find(|lease| lease.ip == Some(ip))
        };
        let Some(ip) = wanted else {
            return self
                .subnet
                .hosts()
                .find(|ip| *ip != self.gateway && holder(*ip).is_none())
                .ok_or_else(|| NetworkError::Full(self.name.clone()));
        };
        let is_edge = ip == self.subnet.network() || ip == self.subnet.broadcast();
        if !self.subnet.contains(&ip) || is_edge || ip == self.gateway {
            return Err(NetworkError::Address {
                ip,
                network: self.name.clone(),
            });
        }
        match holder(ip) {
            Some(lease) => Err(NetworkError::AddressTaken {
                ip,
                holder: lease.name.clone(),
            }),
            None => Ok(ip),
        }
    }

    /// Who the machines may ask for names by themselves: those the user names, else those of the host. Where containers
    /// have names, the host asks for them.
    pub(super) fn servers(&self, given: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        match given {
            _ if self.internal || self.open => Vec::new(),
            [] => resolver::of_host(),
            given => given.to_vec(),
        }
    }

    /// Whether it is an address of this network's.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => self.subnet.contains(&ip),
            IpAddr::V6(_) => false,
        }
    }

    /// The device of a machine with that address.
    pub(super) fn nic(&self, ip: Ipv4Addr, mac: [u8; 6]) -> Nic {
        Nic {
            tap: None,
            mac,
            ip: (ip, self.subnet.prefix_len()),
            gateway: (!self.internal).then_some(self.gateway),
            mtu: MTU,
            // The firewall has the walls.
            denied: Vec::new(),
            allowed: Vec::new(),
        }
    }
}

/// All networks, sorted by name.
pub fn all(folder: &Path) -> Result<Vec<Definition>, NetworkError> {
    let folder = folder.join("defined");
    let list = || -> io::Result<Vec<Definition>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                found.push(serde_json::from_slice(&fs::read(path)?)?);
            }
        }
        Ok(found)
    };
    let mut found = list().map_err(|source| NetworkError::State {
        what: "read",
        path: folder.clone(),
        source,
    })?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The network of that name.
pub fn find(folder: &Path, name: &str) -> Result<Option<Definition>, NetworkError> {
    Ok(all(folder)?.into_iter().find(|found| found.name == name))
}

/// Writes a network down.
pub fn create(folder: &Path, new: NewNetwork) -> Result<Definition, NetworkError> {
    let others = all(folder)?;
    check_name(&new.name)?;
    if others.iter().any(|other| other.name == new.name) {
        return Err(NetworkError::Exists(new.name));
    }
    let mut taken: Vec<(Ipv4Net, String)> = bridge::host_subnets()?;
    taken.extend(
        others
            .iter()
            .map(|other| (other.subnet, format!("network {:?}", other.name))),
    );
    let subnet = match new.subnet {
        Some(subnet) => check_subnet(subnet, &taken)?,
        None => free_subnet(&taken)?,
    };
    let first = subnet.hosts().next();
    let gateway = new.gateway.or(first).unwrap_or(subnet.network());
    let is_edge = gateway == subnet.network() || gateway == subnet.broadcast();
    if !subnet.contains(&gateway) || is_edge {
        return Err(NetworkError::Gateway(gateway));
    }
    let definition = Definition {
        bridge: free_bridge(&others),
        open: new.name != BRIDGE,
        name: new.name,
        subnet,
        gateway,
        internal: new.internal,
        labels: new.labels,
    };
    let path = path(folder, &definition.name);
    write(&path, &definition).map_err(|source| NetworkError::State {
        what: "write",
        path,
        source,
    })?;
    Ok(definition)
}

/// Forgets a network; what it was.
pub fn remove(folder: &Path, name: &str) -> Result<Definition, NetworkError> {
    let found = find(folder, name)?.ok_or_else(|| NetworkError::NotFound(name.into()))?;
    let path = path(folder, name);
    fs::remove_file(&path).map_err(|source| NetworkError::State {
        what: "remove",
        path,
        source,
    })?;
    Ok(found)
}

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join("defined").join(format!("{name}.json"))
}

/// A file that is there is whole.
fn write(path: &Path, definition: &Definition) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut file, definition)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn check_name(name: &str) -> Result<(), NetworkError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let is_reserved = [USER, NONE, "host", "default", "container"].contains(&name);
    match starts_well && name.len() <= MAX_NAME && name.chars().all(is_plain) && !is_reserved {
        true => Ok(()),
        false => Err(NetworkError::Name(name.into())),
    }
}

fn overlap(subnet: &Ipv4Net, taken: &[(Ipv4Net, String)]) -> Option<String> {
    let overlaps = |other: &Ipv4Net| other.contains(subnet) || subnet.contains(other);
    let found = taken.iter().find(|(other, _)| overlaps(other))?;
    Some(found.1.clone())
}

fn check_subnet(subnet: Ipv4Net, taken: &[(Ipv4Net, String)]) -> Result<Ipv4Net, NetworkError> {
    let subnet = subnet.trunc();
    let first = subnet.network();
    if !(8..=29).contains(&subnet.prefix_len()) || first.is_loopback() || first.is_multicast() {
        return Err(NetworkError::Subnet(subnet.to_string()));
    }
    match overlap(&subnet, taken) {
        Some(with) => Err(NetworkError::Overlap {
            subnet: subnet.to_string(),
            with,
        }),
        None => Ok(subnet),
    }
}

fn free_subnet(taken: &[(Ipv4Net, String)]) -> Result<Ipv4Net, NetworkError> {
    // A prefix longer than the pool's is one.
    let mut subnets = POOL.subnets(POOL_PREFIX).into_iter().flatten();
    subnets
        .find(|subnet| overlap(subnet, taken).is_none())
        .ok_or(NetworkError::NoSubnet)
}

/// The first name `pillbugN` that no network has.
fn free_bridge(others: &[Definition]) -> String {
    let is_free = |name: &String| others.iter().all(|other| other.bridge != *name);
    let mut names = (0..).map(|number: u32| format!("{}{number}", bridge::PREFIX));
    names.find(is_free).unwrap_or_default()
}

/// A network for tests.
#[cfg(test)]
pub fn example(name: &str, number: u8) -> Definition {
    Definition {
        name: name.into(),
        subnet: Ipv4Net::new_assert([10, 213, number, 0].into(), 24),
        gateway: [10, 213, number, 1].into(),
        bridge: format!("pillbug{number}"),
        internal: false,
        open: name != BRIDGE,
        labels: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::lease;

    #[test]
    fn addresses_are_given_once() {
        let network = example("web", 1);
        let at = |ip| lease::example("db", "web", ip);
        let leases = [
            at([10, 213, 1, 2]),
            lease::example("x", "other", [10, 213, 1, 3]),
        ];
        assert_eq!(
            network.choose(None, &leases).unwrap(),
            Ipv4Addr::new(10, 213, 1, 3)
        );
        for (wanted, text) in [
            ([10, 213, 1, 2], "10.213.1.2 is taken by container \"db\""),
            (
                [10, 213, 1, 1],
                "10.213.1.1 is not an address that network \"web\" has to give",
            ),
            (
                [10, 213, 1, 255],
                "10.213.1.255 is not an address that network \"web\" has to give",
            ),
            (
                [10, 213, 2, 9],
                "10.213.2.9 is not an address that network \"web\" has to give",
            ),
        ] {
            let error = network.choose(Some(wanted.into()), &leases).unwrap_err();
            assert_eq!(error.to_string(), text);
        }
        let full: Vec<_> = (2..255).map(|last| at([10, 213, 1, last])).collect();
        assert!(matches!(
            network.choose(None, &full),
            Err(NetworkError::Full(_))
        ));
    }

    #[test]
    fn networks_are_kept_apart() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("defined")).unwrap();
        let new = |name: &str, subnet: Option<&str>| NewNetwork {
            subnet: subnet.map(|text| text.parse().unwrap()),
            ..NewNetwork::named(name)
        };
        let first = create(folder.path(), new("one", None)).unwrap();
        let second = create(folder.path(), new("two", None)).unwrap();
        assert_ne!(first.subnet, second.subnet);
        assert_eq!((&*first.bridge, &*second.bridge), ("pillbug0", "pillbug1"));
        for (name, subnet) in [
            ("one", None),
            ("", None),
            ("../up", None),
            ("none", None),
            ("three", Some("127.0.0.0/8")),
            ("three", Some("10.9.0.0/30")),
            ("three", Some(&*format!("{}", second.subnet))),
        ] {
            assert!(
                create(folder.path(), new(name, subnet)).is_err(),
                "{name} {subnet:?}"
            );
        }
        let given = create(folder.path(), new("three", Some("172.31.255.7/24"))).unwrap();
        assert_eq!(given.gateway, Ipv4Addr::new(172, 31, 255, 1));
        assert_eq!(all(folder.path()).unwrap().len(), 3);
        remove(folder.path(), "two").unwrap();
        assert_eq!(find(folder.path(), "two").unwrap(), None);
    }
}
