//! A container's place on a network: what was asked for, and what its machine and its guest are told.

use std::{net::Ipv4Addr, os::fd::OwnedFd, path::Path};

use protocol::{Interface, InterfaceAddress, Setup};
use serde::{Deserialize, Serialize};
use vmm::{DescriptorIndex, NetConfig, NetLimits, NetLink};

use super::{
    name::Id,
    spec::Spec,
    state::{Containers, StateError},
};
use crate::network::{
    ALONE, Attachment, Endpoint, NONE, NetworkError, Networks, Nic, Request, port::Publish,
    resolver,
};

/// A name without a dot is one of a container, and no domain is tried before it.
const RELAY_OPTION: &str = "ndots:0";

/// In place of an address in `--add-host`: the host's, on the container's first network.
pub const HOST_GATEWAY: &str = "host-gateway";

/// Why a container cannot join or leave a network.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MembershipError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(
        "container {0:?} is running, and a machine has the network devices that it started with: stop it first"
    )]
    Running(String),
    #[error("container {container:?} is on network {network:?} already")]
    AlreadyOn { container: String, network: String },
    #[error("container {container:?} is not on network {network:?}")]
    NotOn { container: String, network: String },
    #[error("container {container:?} is on network {network:?}, which cannot be one of several")]
    Alone { container: String, network: String },
}

/// Puts a container that does not run on a further network, from its next start on.
///
/// # Errors
///
/// [`MembershipError`].
pub fn join(containers: &Containers, id: &Id, endpoint: Endpoint) -> Result<(), MembershipError> {
    let spec = idle(containers, id)?;
    let network = endpoint.network.clone();
    let container = spec.name.clone();
    let mut endpoints = spec.network.endpoints.iter();
    if endpoints.any(|known| known.network == network) {
        return Err(MembershipError::AlreadyOn { container, network });
    }
    if let Some(one) = spec
        .network
        .endpoints
        .iter()
        .find(|one| ALONE.contains(&&*one.network))
    {
        let network = one.network.clone();
        return Err(MembershipError::Alone { container, network });
    }
    Ok(containers.change(id, |spec| {
        spec.network.endpoints.retain(|one| one.network != NONE);
        spec.network.endpoints.push(endpoint);
    })?)
}

/// Takes a container that does not run off a network.
///
/// # Errors
///
/// [`MembershipError`].
pub fn leave(containers: &Containers, id: &Id, network: &str) -> Result<(), MembershipError> {
    let spec = idle(containers, id)?;
    let mut endpoints = spec.network.endpoints.iter();
    if !endpoints.any(|known| known.network == network) {
        return Err(MembershipError::NotOn {
            container: spec.name,
            network: network.into(),
        });
    }
    Ok(containers.change(id, |spec| {
        spec.network.endpoints.retain(|one| one.network != network);
    })?)
}

fn idle(containers: &Containers, id: &Id) -> Result<Spec, MembershipError> {
    let record = containers.record(id)?;
    match record.status.is_up() {
        true => Err(MembershipError::Running(record.spec.name)),
        false => Ok(record.spec),
    }
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    /// The networks, in the order of the machine's interfaces; none, or `none`, for no network.
    pub endpoints: Vec<Endpoint>,
    /// Ports to publish.
    pub publish: Vec<Publish>,
    /// Publish all ports that the image exposes. Only until the container is created.
    #[serde(skip)]
    pub publish_all: bool,
    /// Name servers in place of the host's.
    pub dns: Vec<Ipv4Addr>,
    /// The host is reached: see [`HOST_GATEWAY`].
    pub host_gateway: bool,
    /// How much may pass all interfaces together.
    #[serde(default)]
    pub limits: NetLimits,
}

/// What a machine that is on networks has to do with them.
#[derive(Debug)]
pub struct Connection {
    /// The machine's devices.
    pub devices: Vec<NetConfig>,
    /// What is at the other end of each.
    pub links: Vec<OwnedFd>,
    /// The guest's interfaces.
    pub interfaces: Vec<Interface>,
    /// To be kept as long as the machine runs.
    pub attachment: Attachment,
}

impl NetworkSpec {
    /// Connects a machine for the container called `id` and `name`; `None` without a network. `log` is
    /// for what helpers have to say; `vcpus` are the machine's processors.
    ///
    /// # Errors
    ///
    /// [`NetworkError`].
    pub fn connect(
        &self,
        state_root: &Path,
        id: &str,
        name: &str,
        log: &Path,
        vcpus: u8,
    ) -> Result<Option<Connection>, NetworkError> {
        if self.endpoints.iter().all(|one| one.network == NONE) {
            return Ok(None);
        }
        let (attachment, links) = Networks::open(state_root)?.attach(&Request {
            endpoints: &self.endpoints,
            id,
            name,
            dns: &self.dns,
            host_gateway: self.host_gateway,
            vcpus,
            publish: &self.publish,
            limits: &self.limits,
            log,
        })?;
        Ok(Some(Connection {
            devices: attachment.nics.iter().map(device).collect(),
            links,
            interfaces: attachment.nics.iter().map(interface).collect(),
            attachment,
        }))
    }
}

impl Connection {
    /// Completes what the container's user said about interfaces, names and name servers.
    pub fn complete(&self, setup: &mut Setup) {
        setup.interfaces.extend_from_slice(&self.interfaces);
        if let Some(gateway) = self.attachment.host {
            for host in &mut setup.extra_hosts {
                if host.address == HOST_GATEWAY {
                    host.address = gateway.to_string();
                }
            }
        }
        let resolver = &mut setup.resolver;
        resolver.servers.clone_from(&self.attachment.servers);
        resolver.relay = self.attachment.names.is_some();
        match &*resolver.search {
            [] => resolver.search = resolver::search_of_host(),
            // As in Docker: no domain, the host's neither.
            [domain] if domain == "." => resolver.search.clear(),
            _ => {}
        }
        if resolver.relay && resolver.options.is_empty() {
            resolver.options.push(RELAY_OPTION.into());
        }
    }
}

fn device(nic: &Nic) -> NetConfig {
    NetConfig {
        // Filled in where the links have their places.
        descriptors: vec![DescriptorIndex(0); nic.queues],
        link: match nic.tap {
            Some(udp_offload) => NetLink::Tap { udp_offload },
            None => NetLink::Stream,
        },
        mac: nic.mac,
        sources: nic.addresses.iter().map(|(ip, _)| *ip).collect(),
        denied: nic.denied.clone(),
        allowed: nic.allowed.clone(),
        mtu: nic.mtu,
    }
}

fn interface(nic: &Nic) -> Interface {
    Interface {
        addresses: nic
            .addresses
            .iter()
            .map(|&(ip, prefix)| InterfaceAddress { ip, prefix })
            .collect(),
        gateways: nic.gateways.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_and_guest_have_the_same_address() {
        let nic = Nic {
            tap: Some(true),
            queues: 2,
            mac: [2, 0, 0, 0, 0, 1],
            addresses: vec![([10, 0, 0, 2].into(), 24)],
            gateways: vec![[10, 0, 0, 1].into()],
            mtu: 1500,
            denied: vec!["fd00::/8".parse().unwrap()],
            allowed: vec![],
        };
        let (device, interface) = (device(&nic), interface(&nic));
        assert_eq!(device.sources, [interface.addresses[0].ip]);
        assert_eq!(device.link, NetLink::Tap { udp_offload: true });
        assert_eq!(device.denied, nic.denied);
        assert_eq!(device.descriptors.len(), 2);
        assert_eq!(interface.gateways, [std::net::IpAddr::from([10, 0, 0, 1])]);
    }
}
