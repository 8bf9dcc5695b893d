//! Networks: what is on the host's side of a machine's network device.
//!
//! Two drivers. `bridge` connects machines to a Linux bridge, behind walls of nftables; it takes root.
//! `user` gives a machine a passt(1) of its own, which turns its connections into ones of an ordinary
//! process. Knows no containers and no machines: whoever asks is a name, and what it gets is an open
//! descriptor and what to tell the guest.
//!
//! Nothing here runs on its own. A lease is locked by the process that holds it, TAP devices and
//! passt go with the machine, and every command that touches networks first clears away what dead
//! processes left and puts the firewall's rules back as the leases say.

mod bridge;
mod definition;
mod error;
mod firewall;
mod holder;
mod lease;
pub mod port;
mod proxy;
mod resolver;
mod user;

use std::{
    fs::{File, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::Child,
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};

pub use definition::{Definition, NewNetwork};
pub use error::NetworkError;
pub use lease::Published;

use crate::state_root;
use lease::{Held, Lease};
use port::Publish;
use proxy::Proxy;

/// Name of the network that containers of root are on unless told otherwise.
pub const BRIDGE: &str = "bridge";
/// Name of the network that others' are on: one of its own for each.
pub const USER: &str = "user";
/// Name of no network.
pub const NONE: &str = "none";

/// Who wants to be connected, and how.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Name of the network.
    pub network: &'a str,
    /// ID of the container.
    pub id: &'a str,
    /// Name of the container, for messages.
    pub name: &'a str,
    /// This address and no other.
    pub ip: Option<Ipv4Addr>,
    /// This MAC address and no other.
    pub mac: Option<[u8; 6]>,
    /// Name servers in place of the host's.
    pub dns: &'a [Ipv4Addr],
    /// Ports to publish.
    pub publish: &'a [Publish],
    /// File for what passt has to say.
    pub log: &'a Path,
}

/// What a machine's network device is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Whether frames pass a TAP device (and whether that segments UDP) or a stream.
    pub tap: Option<bool>,
    /// MAC address of the guest.
    pub mac: [u8; 6],
    /// Its address, and the bits that its subnet shares.
    pub ip: (Ipv4Addr, u8),
    /// The way to everywhere else.
    pub gateway: Option<Ipv4Addr>,
    /// Who is asked for names.
    pub servers: Vec<IpAddr>,
    /// Longest packet in bytes.
    pub mtu: u16,
    /// Where the device lets no packet go, as address and prefix.
    pub denied: Vec<(Ipv4Addr, u8)>,
    /// What may be reached in there all the same.
    pub allowed: Vec<SocketAddrV4>,
}

/// A machine's connection to a network. It ends when this is dropped.
#[derive(Debug)]
pub struct Attachment {
    /// What the guest and its device are told.
    pub nic: Nic,
    /// Where published ports are.
    pub published: Vec<Published>,
    networks: Networks,
    held: Option<Held>,
    passt: Option<Child>,
    _proxies: Vec<Proxy>,
}

/// All networks of one state folder.
#[derive(Debug, Clone)]
pub struct Networks {
    folder: PathBuf,
}

/// Held while networks, leases or rules change.
struct Locked<'a> {
    networks: &'a Networks,
    _lock: Flock<File>,
}

/// The network that a container is on when nobody says, and why it is not a better one.
#[must_use]
pub fn default_network() -> (&'static str, Option<&'static str>) {
    if Uid::effective().is_root() && bridge::is_possible() {
        return (BRIDGE, None);
    }
    if user::is_possible() {
        return (USER, None);
    }
    let reason = match Uid::effective().is_root() {
        true => "install nftables and iproute2 (with /dev/net/tun), or passt",
        false => "install passt",
    };
    (NONE, Some(reason))
}

impl Networks {
    /// The networks below the folder `state_root`.
    ///
    /// # Errors
    ///
    /// Where the folders cannot be made.
    pub fn open(state_root: &Path) -> Result<Self, NetworkError> {
        let folder = state_root.join("network");
        for path in [&folder, &folder.join("leases"), &folder.join("defined")] {
            state_root::private_folder(path)?;
        }
        Ok(Self { folder })
    }

    fn lock(&self) -> Result<Locked<'_>, NetworkError> {
        let path = self.folder.join("lock");
        let failed = |source| NetworkError::State {
            what: "lock",
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| failed(error.into()))?;
        Ok(Locked {
            networks: self,
            _lock: lock,
        })
    }

    /// Connects a machine. The descriptor is for its device, and to be kept by nobody else.
    ///
    /// # Errors
    ///
    /// [`NetworkError`]; nothing is left behind.
    pub fn attach(&self, request: &Request<'_>) -> Result<(Attachment, OwnedFd), NetworkError> {
        let locked = self.lock()?;
        let leases = locked.sweep()?;
        let (published, listeners) = port::bind(request.publish, &leases)?;
        match request.network {
            USER => {
                if let Some(option) = request.unusable_without_bridge() {
                    return Err(NetworkError::NeedsBridge(option));
                }
                let lease = Lease::new(request, None, published.clone());
                let held = lease::hold(&self.folder, lease)?;
                let (nic, passt, stream) = user::start(request)?;
                let attachment = Attachment {
                    nic,
                    published,
                    networks: self.clone(),
                    held: Some(held),
                    passt: Some(passt),
                    _proxies: Vec::new(),
                };
                Ok((attachment, stream))
            }
            name => {
                let definition = locked.bridge(name)?;
                let address = definition.choose(request.ip, &leases)?;
                let lease = Lease::new(request, Some((&definition, address)), published.clone());
                let (mac, tap_name) = (lease.mac, lease.tap.clone());
                let held = lease::hold(&self.folder, lease)?;
                // From here on, dropping it takes back what was done.
                let mut attachment = Attachment {
                    nic: definition.nic(address, mac, request.dns),
                    published,
                    networks: self.clone(),
                    held: Some(held),
                    passt: None,
                    _proxies: Vec::new(),
                };
                // The rules come before the device that they wall in.
                let connected = locked.apply().and_then(|()| {
                    let (tap, udp_offload) = bridge::plug(&definition, &tap_name)?;
                    attachment.nic.tap = Some(udp_offload);
                    attachment._proxies = listeners
                        .into_iter()
                        .map(|listener| Proxy::start(listener, address))
                        .collect::<io::Result<_>>()
                        .map_err(NetworkError::Proxy)?;
                    Ok(tap)
                });
                // What goes takes the lock itself.
                drop(locked);
                Ok((attachment, connected?))
            }
        }
    }

    /// Where ports of the container called `id` are published.
    ///
    /// # Errors
    ///
    /// Where the leases cannot be read.
    pub fn published(&self, id: &str) -> Result<Vec<Published>, NetworkError> {
        let leases = self.lock()?.sweep()?;
        Ok(leases
            .into_iter()
            .filter(|lease| lease.id == id)
            .flat_map(|lease| lease.published)
            .collect())
    }

    /// All networks that are defined, and the containers on each: name and address.
    ///
    /// # Errors
    ///
    /// Where they cannot be read.
    #[allow(clippy::type_complexity, reason = "a list of pairs")]
    pub fn list(&self) -> Result<Vec<(Definition, Vec<(String, Option<Ipv4Addr>)>)>, NetworkError> {
        let locked = self.lock()?;
        let leases = locked.sweep()?;
        let all = definition::all(&self.folder)?;
        let with_members = all.into_iter().map(|definition| {
            let members = leases
                .iter()
                .filter(|lease| lease.network == definition.name)
                .map(|lease| (lease.name.clone(), lease.ip))
                .collect();
            (definition, members)
        });
        Ok(with_members.collect())
    }

    /// Defines a network; it comes to life with its first container.
    ///
    /// # Errors
    ///
    /// For a name or subnet that is taken or none.
    pub fn create(&self, new: NewNetwork) -> Result<Definition, NetworkError> {
        let _locked = self.lock()?;
        definition::create(&self.folder, new)
    }

    /// Forgets a network and removes its bridge.
    ///
    /// # Errors
    ///
    /// [`NetworkError::InUse`] while a container is on it, and for one that is not there.
    pub fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let locked = self.lock()?;
        let leases = locked.sweep()?;
        if let Some(lease) = leases.iter().find(|lease| lease.network == name) {
            return Err(NetworkError::InUse {
                network: name.into(),
                container: lease.name.clone(),
            });
        }
        let removed = definition::remove(&self.folder, name)?;
        bridge::remove(&removed)?;
        locked.apply_if_rules_exist()
    }
}

impl Locked<'_> {
    /// Clears away what dead processes left, their rules included; the leases of the living.
    fn sweep(&self) -> Result<Vec<Lease>, NetworkError> {
        let folder = &self.networks.folder;
        if lease::sweep(folder)? && !definition::all(folder)?.is_empty() {
            self.apply()?;
        }
        lease::all(folder)
    }

    /// The network called `name`, with its bridge up. The default one is made when it is first asked
    /// for.
    fn bridge(&self, name: &str) -> Result<Definition, NetworkError> {
        if !Uid::effective().is_root() {
            return Err(NetworkError::NeedsRoot(name.into()));
        }
        let folder = &self.networks.folder;
        let definition = match definition::find(folder, name)? {
            Some(definition) => definition,
            None if name == BRIDGE => definition::create(folder, NewNetwork::named(BRIDGE))?,
            None => return Err(NetworkError::NotFound(name.into())),
        };
        bridge::ensure(&definition, folder)?;
        Ok(definition)
    }

    /// Makes the firewall what networks and leases say, whatever it was before.
    fn apply(&self) -> Result<(), NetworkError> {
        let folder = &self.networks.folder;
        let rules = firewall::ruleset(
            &definition::all(folder)?,
            &lease::all(folder)?,
            bridge::is_router(folder),
        );
        firewall::apply(&rules)
    }

    /// As [`apply`](Self::apply), for where there is something to take back.
    fn apply_if_rules_exist(&self) -> Result<(), NetworkError> {
        match definition::all(&self.networks.folder)?.is_empty() {
            true => firewall::clear(),
            false => self.apply(),
        }
    }
}

impl Request<'_> {
    /// The first option given that takes a bridge. Behind a passt, answers to who asked at a port would
    /// be packets to anywhere, which the walls do not tell from others.
    fn unusable_without_bridge(&self) -> Option<&'static str> {
        match (self.ip, self.publish) {
            (Some(_), _) => Some("--ip"),
            (None, [_, ..]) => Some("a published port"),
            (None, []) => None,
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(mut passt) = self.passt.take() {
            // It ended with the machine, or does now.
            let _ = passt.kill();
            let _ = passt.wait();
        }
        let Some(held) = self.held.take() else {
            return;
        };
        let is_walled = held.lease().ip.is_some();
        // What cannot be taken back now is by the next command.
        if let Ok(locked) = self.networks.lock() {
            held.release();
            if is_walled {
                let _ = locked.apply();
            }
        }
    }
}
