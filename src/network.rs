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

mod attachment;
mod bridge;
mod definition;
mod error;
mod firewall;
mod holder;
mod lease;
pub mod names;
pub mod port;
mod proxy;
pub mod resolver;
mod user;

use std::{
    fs::{File, OpenOptions},
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};

pub use attachment::{Attachment, Endpoint, Nic, Request};
pub use definition::{Definition, NewNetwork};
pub use error::NetworkError;
pub use lease::Published;

use crate::state_root;
use lease::Lease;

/// Name of the network that containers of root are on unless told otherwise.
pub const BRIDGE: &str = "bridge";
/// Name of the network that others' are on: one of its own for each.
pub const USER: &str = "user";
/// Name of no network.
pub const NONE: &str = "none";

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
