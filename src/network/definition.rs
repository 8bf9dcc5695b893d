//! Networks as they are written down: a subnet and a bridge each.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::SystemTime,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{
    BRIDGE, Endpoint, NONE, Nic, USER, bridge, error::NetworkError, lease::Lease, macvlan,
    resolver, subnet,
};

/// Longest name in bytes.
const MAX_NAME: usize = 64;
/// Shortest start of an ID that names a network.
const MIN_ID: usize = 4;
/// Longest packet on a bridge.
const MTU: u16 = 1500;

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its ID: 64 digits of base 16.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: SystemTime,
    /// All its addresses.
    pub subnet: Ipv4Net,
    /// The host's address on it.
    pub gateway: Ipv4Addr,
    /// Where in the subnet machines get their addresses; everywhere else.
    #[serde(default)]
    pub ip_range: Option<Ipv4Net>,
    /// Its addresses of IPv6, where it has any.
    #[serde(default)]
    pub subnet6: Option<Ipv6Net>,
    /// The host's of these.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// The bridge, where it has one.
    pub bridge: String,
    /// The interface of the host's whose network it is; else one of its own.
    #[serde(default)]
    pub parent: Option<String>,
    /// There is no way out.
    pub internal: bool,
    /// Its machines reach each other.
    pub open: bool,
    /// User's own data.
    pub labels: BTreeMap<String, String>,
}

/// Where a machine is on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Its address.
    pub ip: Ipv4Addr,
    /// The one of IPv6, where the network has any.
    pub ip6: Option<Ipv6Addr>,
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
    /// Where machines get theirs; else everywhere in the subnet.
    pub ip_range: Option<Ipv4Net>,
    /// It has addresses of IPv6, too.
    pub ipv6: bool,
    /// These; else some that are free.
    pub subnet6: Option<Ipv6Net>,
    /// The host's of them; else the first.
    pub gateway6: Option<Ipv6Addr>,
    /// There is to be no way out.
    pub internal: bool,
    /// It is the network of this interface of the host's.
    pub parent: Option<String>,
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
    /// The start of its ID that lists show.
    #[must_use]
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// What makes it, as it is called for users.
    #[must_use]
    pub fn driver(&self) -> &'static str {
        match self.parent {
            Some(_) => "macvlan",
            None => "bridge",
        }
    }

    /// Whether that is its name, or the start of its ID.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || name.len() >= MIN_ID && self.id.starts_with(name)
    }

    /// The addresses that are asked for, or else the first that nobody has; none of `others`.
    pub(super) fn choose(
        &self,
        endpoint: &Endpoint,
        leases: &[Lease],
        others: &[IpAddr],
    ) -> Result<Addresses, NetworkError> {
        let on_it = || leases.iter().filter(|lease| lease.network == self.name);
        let holder = |ip: IpAddr| on_it().find(|lease| lease.has(ip));
        let is_free = |ip: IpAddr| holder(ip).is_none() && !others.contains(&ip);
        let range = self.ip_range.unwrap_or(self.subnet);
        let ip = match endpoint.ip {
            Some(ip) => ip,
            None => self
                .subnet
                .hosts()
                .skip_while(|ip| !range.contains(ip))
                .take_while(|ip| range.contains(ip))
                .find(|ip| *ip != self.gateway && is_free((*ip).into()))
                .ok_or_else(|| NetworkError::Full(self.name.clone()))?,
        };
        let ip6 = match (endpoint.ip6, self.subnet6) {
            (given, None) => given,
            (Some(given), Some(_)) => Some(given),
            // At the place that its other address has, unless somebody asked for just that.
            (None, Some(subnet)) => {
                let place = ip.to_bits() - self.subnet.network().to_bits();
                let places = (place..=u32::MAX >> self.subnet.prefix_len()).chain(2..place);
                let mut free = places.filter_map(|place| match subnet::nth(subnet.into(), place) {
                    IpAddr::V6(ip) => Some(ip),
                    IpAddr::V4(_) => None,
                });
                free.find(|ip| {
                    subnet.contains(ip) && Some(*ip) != self.gateway6 && is_free((*ip).into())
                })
            }
        };
        for ip in [Some(IpAddr::V4(ip)), ip6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
        {
            if !self.gives(ip) || others.contains(&ip) {
                return Err(NetworkError::Address {
                    ip,
                    network: self.name.clone(),
                });
            }
            if let Some(lease) = holder(ip) {
                return Err(NetworkError::AddressTaken {
                    ip,
                    holder: lease.name.clone(),
                });
            }
        }
        Ok(Addresses { ip, ip6 })
    }

    /// Whether it is an address that a machine can have.
    fn gives(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => {
                let edges = [self.subnet.network(), self.subnet.broadcast(), self.gateway];
                self.subnet.contains(&ip) && !edges.contains(&ip)
            }
            IpAddr::V6(ip) => self.subnet6.is_some_and(|subnet| {
                subnet.contains(&ip) && ip != subnet.network() && Some(ip) != self.gateway6
            }),
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
            IpAddr::V6(ip) => self.subnet6.is_some_and(|subnet| subnet.contains(&ip)),
        }
    }

    /// The device of a machine with those addresses.
    pub(super) fn nic(&self, at: Addresses, mac: [u8; 6]) -> Nic {
        let four = Some((at.ip.into(), self.subnet.prefix_len()));
        let six = at.ip6.zip(self.subnet6);
        let six = six.map(|(ip, subnet)| (ip.into(), subnet.prefix_len()));
        let gateways = [Some(self.gateway.into()), self.gateway6.map(IpAddr::V6)];
        let ways_out = gateways.into_iter().flatten().filter(|_| !self.internal);
        Nic {
            tap: None,
            queues: 1,
            mac,
            addresses: four.into_iter().chain(six).collect(),
            gateways: ways_out.collect(),
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
    let mut found = all(folder)?;
    // A name comes before the start of an ID.
    found.sort_by_key(|network| network.name != name);
    Ok(found.into_iter().find(|network| network.is_called(name)))
}

/// Writes a network down.
pub fn create(folder: &Path, new: NewNetwork) -> Result<Definition, NetworkError> {
    let others = all(folder)?;
    check_name(&new.name)?;
    if others.iter().any(|other| other.name == new.name) {
        return Err(NetworkError::Exists(new.name));
    }
    let mut taken = subnet::of_networks(&others);
    match &new.parent {
        // It is the host's network.
        Some(parent) => macvlan::check(&new, parent)?,
        None => taken.extend(bridge::host_subnets()?),
    }
    let subnet = subnet::choose(new.subnet, &taken)?;
    let IpAddr::V4(gateway) = subnet::gateway(new.gateway.map(Into::into), subnet.into())? else {
        return Err(NetworkError::Subnet(subnet.to_string()));
    };
    if let Some(range) = new.ip_range
        && !subnet.contains(&range)
    {
        return Err(NetworkError::Range { range, subnet });
    }
    let subnet6 = match new.ipv6 || new.subnet6.is_some() {
        true => Some(subnet::choose6(new.subnet6, &taken)?),
        false => None,
    };
    let gateway6 = match (subnet6, new.gateway6) {
        (Some(subnet), given) => Some(subnet::gateway(given.map(Into::into), subnet.into())?),
        (None, None) => None,
        (None, Some(given)) => return Err(NetworkError::Gateway(given.into())),
    };
    let definition = Definition {
        bridge: match new.parent {
            Some(_) => String::new(),
            None => free_bridge(&others),
        },
        parent: new.parent,
        open: new.name != BRIDGE,
        id: random_id()?,
        created: SystemTime::now(),
        name: new.name,
        subnet,
        gateway,
        ip_range: new.ip_range.map(|range| range.trunc()),
        subnet6,
        gateway6: gateway6.and_then(|ip| match ip {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        }),
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

fn random_id() -> Result<String, NetworkError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| NetworkError::Random(error.into()))?;
    Ok(hex::encode(bytes))
}

/// Forgets a network; what it was.
pub fn remove(folder: &Path, name: &str) -> Result<Definition, NetworkError> {
    let found = find(folder, name)?.ok_or_else(|| NetworkError::NotFound(name.into()))?;
    let path = path(folder, &found.name);
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
        id: format!("{number:064x}"),
        created: SystemTime::UNIX_EPOCH,
        name: name.into(),
        subnet: Ipv4Net::new_assert([10, 213, number, 0].into(), 24),
        gateway: [10, 213, number, 1].into(),
        ip_range: None,
        subnet6: None,
        gateway6: None,
        bridge: format!("pillbug{number}"),
        parent: None,
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
        let wanting = |ip: Option<[u8; 4]>| Endpoint {
            ip: ip.map(Into::into),
            ..Endpoint::default()
        };
        let first = network.choose(&wanting(None), &leases, &[]).unwrap();
        assert_eq!(first.ip, Ipv4Addr::new(10, 213, 1, 3));
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
            let error = network
                .choose(&wanting(Some(wanted)), &leases, &[])
                .unwrap_err();
            assert_eq!(error.to_string(), text);
        }
        let full: Vec<_> = (2..255).map(|last| at([10, 213, 1, last])).collect();
        assert!(matches!(
            network.choose(&wanting(None), &full, &[]),
            Err(NetworkError::Full(_))
        ));

        let both = Definition {
            subnet6: Some("fd00::/64".parse().unwrap()),
            gateway6: Some("fd00::1".parse().unwrap()),
            ip_range: Some("10.213.1.128/25".parse().unwrap()),
            ..network
        };
        let first = both.choose(&wanting(None), &leases, &[]).unwrap();
        assert_eq!(first.ip, Ipv4Addr::new(10, 213, 1, 128));
        assert_eq!(first.ip6, Some("fd00::80".parse().unwrap()));
        let mut taken = lease::example("six", "web", [10, 213, 1, 9]);
        taken.ip6 = first.ip6;
        let second = both.choose(&wanting(None), &[taken], &[]).unwrap();
        assert_eq!(second.ip6, Some("fd00::81".parse().unwrap()));
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
