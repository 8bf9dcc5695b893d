//! A machine's connection to its networks, from its start to its end.

mod walls;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::Child,
    sync::Arc,
};

use ipnet::IpNet;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use vmm::{NetLimits, Traffic, virtio::net::MAX_PAIRS};

use super::{
    ALONE, HOST, Locked, Networks, bridge,
    carried::Carried,
    definition::{Addresses, Definition},
    error::NetworkError,
    forward::{Forwards, Receiver, Wanted},
    lease::{self, Held, Lease, Published},
    macvlan,
    names::{Names, Scope},
    port::{self, Listener, Publish},
    proxy::{Machine, Proxy},
    switch::{self, Member, Membership},
    user::{self, Guest},
};
use walls::Watch;

/// Queues of all TAP devices of a machine together, where each has more than one.
const MOST_QUEUES: usize = 64;

/// A place on a network, as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the network.
    pub network: String,
    /// Names there besides the container's own.
    pub aliases: Vec<String>,
    /// This address and no other.
    pub ip: Option<Ipv4Addr>,
    /// This address of IPv6 and no other.
    pub ip6: Option<Ipv6Addr>,
    /// This MAC address and no other.
    pub mac: Option<[u8; 6]>,
}

/// Who wants to be connected, and how.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Where, in the order of the machine's interfaces; not empty.
    pub endpoints: &'a [Endpoint],
    /// ID of the container.
    pub id: &'a str,
    /// Name of the container.
    pub name: &'a str,
    /// Name servers in place of the host's.
    pub dns: &'a [Ipv4Addr],
    /// It reaches the host, over the first network.
    pub host_gateway: bool,
    /// Processors of the machine: as many queues has a device that can have several.
    pub vcpus: u8,
    /// Ports to publish.
    pub publish: &'a [Publish],
    /// How much may pass what is published, where no device sees to that.
    pub limits: &'a NetLimits,
    /// File for what passt has to say.
    pub log: &'a Path,
}

/// What a machine's network device is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Whether frames pass a TAP device (and whether that segments UDP) or a stream.
    pub tap: Option<bool>,
    /// How many descriptors there are of it: queues of the TAP device, or the one stream.
    pub queues: usize,
    /// MAC address of the guest.
    pub mac: [u8; 6],
    /// Its addresses, and the bits that the subnet of each shares.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The ways to everywhere else.
    pub gateways: Vec<IpAddr>,
    /// Longest packet in bytes.
    pub mtu: u16,
    /// Where the device lets no packet go.
    pub denied: Vec<IpNet>,
    /// What may be reached in there all the same.
    pub allowed: Vec<SocketAddrV4>,
}

/// A machine's connection to its networks. It ends when this is dropped.
#[derive(Debug)]
pub struct Attachment {
    /// What the guest and its devices are told, in the order of the interfaces.
    pub nics: Vec<Nic>,
    /// Whom the guest asks for names by itself.
    pub servers: Vec<IpAddr>,
    /// Who answers what it asks its agent.
    pub names: Option<Names>,
    /// The address at which it reaches the host, where it shall.
    pub host: Option<Ipv4Addr>,
    networks: Networks,
    held: Vec<Held>,
    passt: Option<Child>,
    memberships: Vec<Membership>,
    /// Of the firewall's rules, where they are about the machine.
    watch: Option<Watch>,
    proxies: Vec<Proxy>,
    /// Connections into the machine that its agent has to bring.
    wanted: Option<Receiver<Wanted>>,
    /// What passed those.
    carried: Option<Arc<Carried>>,
}

impl Networks {
    /// Connects a machine. The descriptors are for its devices, [so many](Nic::queues) for each in their order, and to be kept
    /// by nobody else.
    ///
    /// # Errors
    ///
    /// [`NetworkError`]; nothing is left behind.
    pub fn attach(
        &self,
        request: &Request<'_>,
    ) -> Result<(Attachment, Vec<OwnedFd>), NetworkError> {
        // It goes after the lock, which it takes itself then: what was done until an error is taken back.
        let mut attachment = Attachment::new(self);
        let locked = self.lock()?;
        let leases = locked.sweep()?;
        let (published, listeners) = port::bind(request.publish, &leases)?;
        let links = match request.endpoints {
            [endpoint] if ALONE.contains(&&*endpoint.network) => {
                attachment.connect_user(request, endpoint, published, listeners)?
            }
            endpoints => {
                let mut names = endpoints.iter().map(|one| &*one.network);
                if let Some(name) = names.find(|name| ALONE.contains(name)) {
                    return Err(NetworkError::Alone(name.into()));
                }
                let places = locked.places(request, &leases)?;
                attachment.connect(&locked, request, &places, published, listeners)?
            }
        };
        drop(locked);
        Ok((attachment, links))
    }
}

impl Locked<'_> {
    /// The network and the address of each endpoint.
    fn places(
        &self,
        request: &Request<'_>,
        leases: &[Lease],
    ) -> Result<Vec<(Definition, Addresses)>, NetworkError> {
        let mut places: Vec<(Definition, Addresses)> = Vec::new();
        for endpoint in request.endpoints {
            if places
                .iter()
                .any(|(known, _)| known.name == endpoint.network)
            {
                return Err(NetworkError::Twice(endpoint.network.clone()));
            }
            let definition = self.network(&endpoint.network)?;
            if !definition.open && !endpoint.aliases.is_empty() {
                return Err(NetworkError::NoNames(definition.name));
            }
            let has_host = !definition.internal && definition.parent.is_none();
            if request.host_gateway && places.is_empty() && !has_host {
                return Err(NetworkError::NoGateway);
            }
            let others = match definition.parent {
                Some(_) => bridge::host_addresses()?,
                None => Vec::new(),
            };
            let address = definition.choose(endpoint, leases, &others)?;
            places.push((definition, address));
        }
        Ok(places)
    }
}

impl Attachment {
    fn new(networks: &Networks) -> Self {
        Self {
            nics: Vec::new(),
            servers: Vec::new(),
            names: None,
            host: None,
            networks: networks.clone(),
            held: Vec::new(),
            passt: None,
            memberships: Vec::new(),
            watch: None,
            proxies: Vec::new(),
            wanted: None,
            carried: None,
        }
    }

    /// Connects a machine that is alone behind its passt.
    fn connect_user(
        &mut self,
        request: &Request<'_>,
        endpoint: &Endpoint,
        published: Vec<Published>,
        listeners: Vec<Listener>,
    ) -> Result<Vec<OwnedFd>, NetworkError> {
        if let Some(option) = unusable_alone(endpoint) {
            return Err(NetworkError::NeedsNetwork(option));
        }
        let mac = endpoint.mac.unwrap_or(user::MAC);
        let guest = match endpoint.network == HOST {
            true => Guest::in_place_of_host(mac)?,
            false => Guest::alone(mac),
        };
        self.host = match (request.host_gateway, guest.is_host) {
            (false, _) => None,
            (true, true) => Some(guest.gateway),
            (true, false) => Some(user::host()?),
        };
        let (nic, servers) = user::nic(&guest, request.dns, self.host)?;
        let lease = Lease::new(request, endpoint, 0, None, published);
        self.held.push(lease::hold(&self.networks.folder, lease)?);
        let stream = self.start_passt(&guest, request)?;
        self.nics.push(nic);
        self.servers = servers.into_iter().map(Into::into).collect();
        self.publish(listeners, guest.ip, Some(request.limits))?;
        Ok(vec![stream])
    }

    fn start_passt(
        &mut self,
        guest: &Guest,
        request: &Request<'_>,
    ) -> Result<OwnedFd, NetworkError> {
        let started = user::start(guest, request.log)?;
        self.passt = Some(started.passt);
        Ok(started.stream)
    }

    fn connect(
        &mut self,
        locked: &Locked<'_>,
        request: &Request<'_>,
        places: &[(Definition, Addresses)],
        published: Vec<Published>,
        listeners: Vec<Listener>,
    ) -> Result<Vec<OwnedFd>, NetworkError> {
        let folder = &self.networks.folder;
        let by_root = Uid::effective().is_root();
        if request.host_gateway {
            self.host = match places.first() {
                Some((definition, _)) if by_root => Some(definition.gateway),
                _ => Some(user::host()?),
            };
        }
        let mut published = Some(published);
        for (position, (endpoint, (definition, addresses))) in
            request.endpoints.iter().zip(places).enumerate()
        {
            let published = published.take().unwrap_or_default();
            let place = Some((definition, *addresses));
            let lease = Lease::new(request, endpoint, position, place, published);
            let mut nic = definition.nic(*addresses, lease.mac);
            if !by_root {
                // A way out is one of IPv4.
                nic.gateways.retain(IpAddr::is_ipv4);
                nic.mtu = user::MTU;
            } else if let Some(parent) = &definition.parent {
                macvlan::adapt(&mut nic, parent)?;
            }
            self.nics.push(nic);
            self.held.push(lease::hold(folder, lease)?);
        }
        // A machine has one way to everywhere else in each family.
        let mut known: Vec<IpAddr> = Vec::new();
        for nic in &mut self.nics {
            nic.gateways
                .retain(|ip| known.iter().all(|other| other.is_ipv6() != ip.is_ipv6()));
            known.extend(&nic.gateways);
        }
        self.decide_names(request, places);
        // The rules come before the devices that they wall in, and who hears of their changes before the rules.
        if by_root {
            self.watch = Watch::start(&self.leases()).map_err(NetworkError::Firewall)?;
        }
        locked.admit(&self.leases())?;
        let mut links = Vec::new();
        let queues = queues(request.vcpus, places.len());
        for (position, (definition, _)) in places.iter().enumerate() {
            if !by_root {
                links.push(self.join(request, definition, position)?);
                continue;
            }
            let lease = self.held[position].lease();
            let (opened, udp_offload) = match &definition.parent {
                Some(parent) => {
                    let (link, udp_offload) = macvlan::plug(definition, parent, lease)?;
                    (vec![link], udp_offload)
                }
                None => bridge::plug(definition, &lease.tap, queues)?,
            };
            let nic = &mut self.nics[position];
            (nic.tap, nic.queues) = (Some(udp_offload), opened.len());
            links.extend(opened);
        }
        if let Some((definition, addresses)) = places.first() {
            // No host has a way to those that are on its own network by a macvtap device.
            let by_agent = !by_root || definition.parent.is_some();
            let by_agent = by_agent.then_some(request.limits);
            self.publish(listeners, addresses.ip, by_agent)?;
        }
        Ok(links)
    }

    /// Connects an interface to the switch of its network, which starts with the first, and gives it a passt of its own
    /// where that is the way out.
    fn join(
        &mut self,
        request: &Request<'_>,
        network: &Definition,
        position: usize,
    ) -> Result<OwnedFd, NetworkError> {
        let nic = self.nics[position].clone();
        let way_out = nic.addresses.iter().zip(&nic.gateways).next();
        let (mut denied, mut gateway, mut passt) = (Vec::new(), None, None);
        if let Some((&(IpAddr::V4(ip), prefix), &IpAddr::V4(at))) = way_out {
            let guest = Guest {
                mac: nic.mac,
                ip,
                prefix,
                gateway: at,
                server: None,
                is_host: false,
            };
            passt = Some(self.start_passt(&guest, request)?);
            (denied, gateway) = (user::denied(self.host)?, Some(at));
        }
        let member = Member {
            mac: nic.mac,
            addresses: nic.addresses.iter().map(|(ip, _)| *ip).collect(),
            gateway,
            denied,
        };
        let failed = |source| NetworkError::Switch {
            network: network.name.clone(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let streams: Vec<BorrowedFd<'_>> = [theirs.as_fd()]
            .into_iter()
            .chain(passt.as_ref().map(AsFd::as_fd))
            .collect();
        let folder = &self.networks.folder;
        let joined = switch::join(folder, &network.name, &member, &streams, request.log)?;
        self.memberships.push(joined);
        Ok(ours.into())
    }

    /// What is readable when a [switch](Self::hear_switch) has something to say.
    pub fn switches(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.memberships.iter().map(AsFd::as_fd)
    }

    /// Why the machine is not on its networks any more, when a switch is readable.
    ///
    /// # Errors
    ///
    /// Always, but where there is no switch.
    pub fn hear_switch(&self, number: usize) -> Result<(), NetworkError> {
        match self.memberships.get(number) {
            Some(membership) => Err(membership.hear()),
            None => Ok(()),
        }
    }

    /// Carries what arrives at published ports to the machine, by its agent where the host has no other way.
    fn publish(
        &mut self,
        listeners: Vec<Listener>,
        ip: Ipv4Addr,
        by_agent: Option<&NetLimits>,
    ) -> Result<(), NetworkError> {
        if listeners.is_empty() {
            return Ok(());
        }
        let mut machine = Machine { ip, forwards: None };
        if let Some(limits) = by_agent {
            let (forwards, wanted) = Forwards::new(limits).map_err(NetworkError::Proxy)?;
            self.carried = Some(forwards.carried().clone());
            machine.forwards = Some(forwards);
            self.wanted = Some(wanted);
        }
        self.proxies = listeners
            .into_iter()
            .map(|listener| Proxy::start(listener, &machine))
            .collect::<io::Result<_>>()
            .map_err(NetworkError::Proxy)?;
        Ok(())
    }

    /// Others find the machine by another name from now on.
    ///
    /// # Errors
    ///
    /// Where that cannot be written down; it has its old name then.
    pub fn rename(&mut self, name: &str) -> Result<(), NetworkError> {
        if self.held.iter().all(|held| held.lease().name == name) {
            return Ok(());
        }
        let _locked = self.networks.lock()?;
        for held in &mut self.held {
            held.rename(&self.networks.folder, name)?;
        }
        Ok(())
    }

    /// What is readable when there are connections to [take](Self::take_wanted).
    #[must_use]
    pub fn wanted(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wanted.as_ref()?.as_fd())
    }

    /// Connections into the machine that its agent has to bring.
    pub fn take_wanted(&mut self) -> Vec<Wanted> {
        self.wanted.as_mut().map_or(Vec::new(), Receiver::take)
    }

    /// What passed such connections so far.
    #[must_use]
    pub fn carried(&self) -> Traffic {
        let carried = self.carried.as_ref();
        carried.map(|carried| carried.traffic()).unwrap_or_default()
    }

    fn leases(&self) -> Vec<&Lease> {
        self.held.iter().map(Held::lease).collect()
    }

    /// On networks where containers have names, and where the host's name servers can be reached by nobody else, the guest
    /// asks its agent; elsewhere it asks those servers itself.
    fn decide_names(&mut self, request: &Request<'_>, places: &[(Definition, Addresses)]) {
        let open = places.iter().filter(|(definition, _)| definition.open);
        let networks: Vec<Definition> = open.map(|(definition, _)| definition.clone()).collect();
        let has_way_out = places.iter().any(|(definition, _)| !definition.internal);
        let servers = self.held.iter().flat_map(|held| &held.lease().servers);
        self.servers = servers.map(|ip| (*ip).into()).collect();
        if networks.is_empty() && (!self.servers.is_empty() || !has_way_out) {
            return;
        }
        self.servers.clear();
        self.names = Some(Names::new(
            &self.networks.folder,
            Scope {
                networks,
                upstream: has_way_out.then(|| request.dns.to_vec()),
            },
        ));
    }
}

/// Of each of so many TAP devices of a machine. A machine of many networks has one each: there is an end to the descriptors
/// that it can be handed.
fn queues(vcpus: u8, devices: usize) -> usize {
    let most = usize::from(MAX_PAIRS).min(MOST_QUEUES / devices.max(1));
    usize::from(vcpus).clamp(1, most.max(1))
}

/// The first option given that takes a network with others on it.
fn unusable_alone(endpoint: &Endpoint) -> Option<&'static str> {
    if endpoint.ip.is_some() || endpoint.ip6.is_some() {
        return Some("an address of one's own");
    }
    (!endpoint.aliases.is_empty()).then_some("--network-alias")
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(mut passt) = self.passt.take() {
            // It ended with the machine, or does now.
            let _ = passt.kill();
            let _ = passt.wait();
        }
        if self.held.is_empty() {
            return;
        }
        // What cannot be taken back now is by the next command.
        if let Ok(locked) = self.networks.lock() {
            let leases: Vec<Lease> = self.held.iter().map(|held| held.lease().clone()).collect();
            leases.iter().for_each(macvlan::unplug);
            for held in self.held.drain(..) {
                held.release();
            }
            let _ = locked.dismiss(&leases);
            if !self.memberships.is_empty() {
                let _ = locked.sweep();
            }
        }
    }
}
