//! A machine's connection to its networks, from its start to its end.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    os::fd::OwnedFd,
    path::Path,
    process::Child,
};

use serde::{Deserialize, Serialize};

use super::{
    Locked, Networks, USER, bridge,
    definition::{Addresses, Definition},
    error::NetworkError,
    lease::{self, Held, Lease, Published},
    names::{Names, Scope},
    port::{self, Listener, Publish},
    proxy::Proxy,
    user,
};

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
    /// It reaches the host, at the first network's gateway.
    pub host_gateway: bool,
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
    /// Its addresses, and the bits that the subnet of each shares.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The ways to everywhere else.
    pub gateways: Vec<IpAddr>,
    /// Longest packet in bytes.
    pub mtu: u16,
    /// Where the device lets no packet go, as address and prefix.
    pub denied: Vec<(Ipv4Addr, u8)>,
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
    networks: Networks,
    held: Vec<Held>,
    passt: Option<Child>,
    _proxies: Vec<Proxy>,
}

impl Networks {
    /// Connects a machine. The descriptors are for its devices, and to be kept by nobody else.
    ///
    /// # Errors
    ///
    /// [`NetworkError`]; nothing is left behind.
    pub fn attach(
        &self,
        request: &Request<'_>,
    ) -> Result<(Attachment, Vec<OwnedFd>), NetworkError> {
        let locked = self.lock()?;
        let leases = locked.sweep()?;
        let (published, listeners) = port::bind(request.publish, &leases)?;
        match request.endpoints {
            [endpoint] if endpoint.network == USER => {
                locked.attach_user(request, endpoint, published)
            }
            endpoints => match endpoints.iter().find(|one| one.network == USER) {
                Some(_) => Err(NetworkError::Alone(USER)),
                None => self.attach_bridges(locked, request, &leases, (published, listeners)),
            },
        }
    }

    fn attach_bridges(
        &self,
        locked: Locked<'_>,
        request: &Request<'_>,
        leases: &[Lease],
        (published, listeners): (Vec<Published>, Vec<Listener>),
    ) -> Result<(Attachment, Vec<OwnedFd>), NetworkError> {
        let places = locked.places(request, leases)?;
        // From here on, dropping it takes back what was done.
        let mut attachment = Attachment {
            nics: Vec::new(),
            servers: Vec::new(),
            names: None,
            networks: self.clone(),
            held: Vec::new(),
            passt: None,
            _proxies: Vec::new(),
        };
        let connected = attachment.connect(&locked, request, &places, published, listeners);
        // What goes takes the lock itself.
        drop(locked);
        Ok((attachment, connected?))
    }
}

impl Locked<'_> {
    fn attach_user(
        &self,
        request: &Request<'_>,
        endpoint: &Endpoint,
        published: Vec<Published>,
    ) -> Result<(Attachment, Vec<OwnedFd>), NetworkError> {
        if let Some(option) = unusable_without_bridge(request, endpoint) {
            return Err(NetworkError::NeedsBridge(option));
        }
        let lease = Lease::new(request, endpoint, 0, None, published);
        let held = lease::hold(&self.networks.folder, lease)?;
        let started = user::start(request, endpoint)?;
        let attachment = Attachment {
            nics: vec![started.nic],
            servers: started.servers.into_iter().map(Into::into).collect(),
            names: None,
            networks: self.networks.clone(),
            held: vec![held],
            passt: Some(started.passt),
            _proxies: Vec::new(),
        };
        Ok((attachment, vec![started.stream]))
    }

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
            let definition = self.bridge(&endpoint.network)?;
            if !definition.open && !endpoint.aliases.is_empty() {
                return Err(NetworkError::NoNames(definition.name));
            }
            if request.host_gateway && places.is_empty() && definition.internal {
                return Err(NetworkError::NoGateway);
            }
            let address = definition.choose(endpoint, leases)?;
            places.push((definition, address));
        }
        Ok(places)
    }
}

impl Attachment {
    fn connect(
        &mut self,
        locked: &Locked<'_>,
        request: &Request<'_>,
        places: &[(Definition, Addresses)],
        published: Vec<Published>,
        listeners: Vec<Listener>,
    ) -> Result<Vec<OwnedFd>, NetworkError> {
        let folder = &self.networks.folder;
        let mut published = Some(published);
        for (position, (endpoint, (definition, addresses))) in
            request.endpoints.iter().zip(places).enumerate()
        {
            let published = published.take().unwrap_or_default();
            let place = Some((definition, *addresses));
            let lease = Lease::new(request, endpoint, position, place, published);
            self.nics.push(definition.nic(*addresses, lease.mac));
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
        // The rules come before the devices that they wall in.
        locked.admit(&self.leases())?;
        let mut links = Vec::new();
        for ((definition, _), (nic, held)) in
            places.iter().zip(self.nics.iter_mut().zip(&self.held))
        {
            let (tap, udp_offload) = bridge::plug(definition, &held.lease().tap)?;
            nic.tap = Some(udp_offload);
            links.push(tap);
        }
        if let Some((_, addresses)) = places.first() {
            self._proxies = listeners
                .into_iter()
                .map(|listener| Proxy::start(listener, addresses.ip))
                .collect::<io::Result<_>>()
                .map_err(NetworkError::Proxy)?;
        }
        Ok(links)
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

/// The first option given that takes a bridge. Behind a passt, answers to who asked at a port would be packets to
/// anywhere, which the walls do not tell from others.
fn unusable_without_bridge(request: &Request<'_>, endpoint: &Endpoint) -> Option<&'static str> {
    if endpoint.ip.is_some() || endpoint.ip6.is_some() {
        return Some("an address of one's own");
    }
    if request.host_gateway {
        return Some("host-gateway");
    }
    if !endpoint.aliases.is_empty() {
        return Some("--network-alias");
    }
    (!request.publish.is_empty()).then_some("a published port")
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(mut passt) = self.passt.take() {
            // It ended with the machine, or does now.
            let _ = passt.kill();
            let _ = passt.wait();
        }
        // What cannot be taken back now is by the next command.
        if let Ok(locked) = self.networks.lock() {
            let leases: Vec<Lease> = self.held.iter().map(|held| held.lease().clone()).collect();
            for held in self.held.drain(..) {
                held.release();
            }
            let _ = locked.dismiss(&leases);
        }
    }
}
