//! Networks: what is on the host's side of a machine's network device.
//!
//! Four drivers. `bridge` connects machines to a Linux bridge, behind walls of nftables, `macvlan` to the network that an
//! interface of the host is on; they take root. `user` gives a machine a passt(1) of its own, which turns its connections
//! into ones of an ordinary process. `switch` connects machines of an ordinary user, each with its own passt behind it.
//! Knows no containers and no machines: whoever asks is a name, and what it gets is an open descriptor and what to tell the
//! guest.
//!
//! Nothing here runs on its own but a switch, while a machine is on it. A lease is locked by the process that holds it, TAP devices and
//! passt go with the machine, and every command that touches networks first clears away what dead
//! processes left and puts the firewall's rules back as the leases say. Whoever holds a lease on a bridge does that, too, when
//! somebody changes them.

mod attachment;
mod bridge;
pub mod carried;
mod definition;
mod error;
mod firewall;
pub mod forward;
mod holder;
mod lease;
mod link;
mod macvlan;
pub mod names;
pub mod port;
mod proxy;
pub mod resolver;
mod sets;
mod subnet;
pub mod switch;
mod user;

use std::{
    fs::{self, File, OpenOptions},
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
pub use lease::{Lease, Published};

use sha2::{Digest, Sha256};

use crate::state_root;

/// Name of the network that containers of root are on unless told otherwise.
pub const BRIDGE: &str = "bridge";
/// Name of the network that others' are on: one of its own for each.
pub const USER: &str = "user";
/// Name of the network of the host itself, as far as a machine can be on it: see [`user`].
pub const HOST: &str = "host";
/// Networks that are nobody else's, each with its own passt: what there is on them cannot be on others besides.
pub const ALONE: [&str; 2] = [USER, HOST];
/// Name of no network.
pub const NONE: &str = "none";

/// Below the networks' folder: what the firewall's rules were when they were put in place, in so many letters.
const RULES: &str = "rules";

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
        let inside = ["leases", "defined", "switches"].map(|name| folder.join(name));
        for path in [&folder].into_iter().chain(&inside) {
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

    /// All networks that are defined, and the leases of each.
    ///
    /// # Errors
    ///
    /// Where they cannot be read.
    pub fn list(&self) -> Result<Vec<(Definition, Vec<Lease>)>, NetworkError> {
        let locked = self.lock()?;
        let leases = locked.sweep()?;
        let all = definition::all(&self.folder)?;
        let with_members = all.into_iter().map(|definition| {
            let members = leases
                .iter()
                .filter(|lease| lease.network == definition.name)
                .cloned()
                .collect();
            (definition, members)
        });
        Ok(with_members.collect())
    }

    /// The network of that name or ID.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NotFound`].
    pub fn find(&self, name: &str) -> Result<Definition, NetworkError> {
        definition::find(&self.folder, name)?.ok_or_else(|| NetworkError::NotFound(name.into()))
    }

    /// All networks, and the leases of the living, in the order of each machine's interfaces. Takes no lock: it is as it
    /// was a moment ago.
    ///
    /// # Errors
    ///
    /// Where they cannot be read.
    pub fn glance(&self) -> Result<(Vec<Definition>, Vec<Lease>), NetworkError> {
        let mut leases = lease::all(&self.folder)?;
        leases.retain(|one| lease::is_held(&self.folder, one));
        leases.sort_by_key(|one| one.position);
        Ok((definition::all(&self.folder)?, leases))
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
        let found = self.find(name)?;
        if let Some(lease) = leases.iter().find(|lease| lease.network == found.name) {
            return Err(NetworkError::InUse {
                network: found.name,
                container: lease.name.clone(),
            });
        }
        let removed = definition::remove(&self.folder, name)?;
        if Uid::effective().is_root() && removed.parent.is_none() {
            bridge::remove(&removed)?;
        }
        locked.apply_if_rules_exist()
    }
}

impl Locked<'_> {
    /// Clears away what dead processes left, their rules included; the leases of the living.
    fn sweep(&self) -> Result<Vec<Lease>, NetworkError> {
        let folder = &self.networks.folder;
        if lease::sweep(folder, macvlan::unplug)? && !self.bridged()?.is_empty() {
            self.apply()?;
        }
        let leases = lease::all(folder)?;
        switch::sweep(folder, &leases)?;
        Ok(leases)
    }

    /// The network called `name`, for root with its bridge up. The default one is made when it is first asked
    /// for.
    fn network(&self, name: &str) -> Result<Definition, NetworkError> {
        let folder = &self.networks.folder;
        if !Uid::effective().is_root() {
            return match name {
                BRIDGE => Err(NetworkError::NeedsRoot(name.into())),
                name => match self.networks.find(name)? {
                    found if found.parent.is_some() => Err(NetworkError::NeedsRoot(name.into())),
                    found => Ok(found),
                },
            };
        }
        let definition = match definition::find(folder, name)? {
            Some(definition) => definition,
            None if name == BRIDGE => definition::create(folder, NewNetwork::named(BRIDGE))?,
            None => return Err(NetworkError::NotFound(name.into())),
        };
        if definition.parent.is_none() {
            bridge::ensure(&definition, folder)?;
        }
        Ok(definition)
    }

    /// The networks that have a bridge, and so rules.
    fn bridged(&self) -> Result<Vec<Definition>, NetworkError> {
        let mut all = definition::all(&self.networks.folder)?;
        all.retain(|network| network.parent.is_none());
        Ok(all)
    }

    /// Makes the firewall what networks and leases say, whatever it was before, and remembers what it is then.
    /// Without root there are no rules: switches have the walls.
    fn apply(&self) -> Result<(), NetworkError> {
        if !Uid::effective().is_root() {
            return Ok(());
        }
        let folder = &self.networks.folder;
        let leases = lease::all(folder)?;
        firewall::apply(&self.ruleset(&leases)?)?;
        let then = sets::fingerprint().map_err(NetworkError::Firewall)? + &self.wanted()?;
        let path = folder.join(RULES);
        fs::write(&path, then).map_err(|source| NetworkError::State {
            what: "write",
            path,
            source,
        })
    }

    fn ruleset(&self, leases: &[Lease]) -> Result<String, NetworkError> {
        let folder = &self.networks.folder;
        Ok(firewall::ruleset(
            &self.bridged()?,
            leases,
            bridge::is_router(folder),
        ))
    }

    /// What the rules should be, whoever is on a network.
    fn wanted(&self) -> Result<String, NetworkError> {
        Ok(hex::encode(Sha256::digest(self.ruleset(&[])?)))
    }

    /// Lets the machines of these leases, which are written down, through the walls; where those are not what they should
    /// be, they are put in place again.
    fn admit(&self, leases: &[&Lease]) -> Result<(), NetworkError> {
        if !Uid::effective().is_root() || !leases.iter().any(|lease| lease.is_walled()) {
            return Ok(());
        }
        let then = fs::read_to_string(self.networks.folder.join(RULES)).unwrap_or_default();
        let is_intact =
            sets::fingerprint().map_err(NetworkError::Firewall)? + &self.wanted()? == then;
        match is_intact && sets::admit(leases).is_ok() {
            true => Ok(()),
            false => self.apply(),
        }
    }

    /// Takes the elements of leases that are gone out of the walls.
    fn dismiss(&self, leases: &[Lease]) -> Result<(), NetworkError> {
        if !Uid::effective().is_root() {
            return Ok(());
        }
        match sets::dismiss(&leases.iter().collect::<Vec<_>>()) {
            Ok(()) => Ok(()),
            Err(_) => self.apply(),
        }
    }

    /// As [`apply`](Self::apply), for where there is something to take back.
    fn apply_if_rules_exist(&self) -> Result<(), NetworkError> {
        match self.bridged()?.is_empty() {
            true if Uid::effective().is_root() => firewall::clear(),
            true => Ok(()),
            false => self.apply(),
        }
    }
}
