//! A container's place on a network: what was asked for, and what its machine and its guest are told.

use std::{net::Ipv4Addr, os::fd::OwnedFd, path::Path};

use protocol::{Interface, InterfaceAddress, Resolver};
use serde::{Deserialize, Serialize};
use vmm::{DescriptorIndex, Ipv4Net, NetConfig, NetLink};

use crate::network::{
    Attachment, Endpoint, NONE, NetworkError, Networks, Nic, Request, port::Publish, resolver,
};

/// A name without a dot is one of a container, and no domain is tried before it.
const RELAY_OPTION: &str = "ndots:0";

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
    /// for what helpers have to say.
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
    ) -> Result<Option<Connection>, NetworkError> {
        if self.endpoints.iter().all(|one| one.network == NONE) {
            return Ok(None);
        }
        let (attachment, links) = Networks::open(state_root)?.attach(&Request {
            endpoints: &self.endpoints,
            id,
            name,
            dns: &self.dns,
            publish: &self.publish,
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
    /// Completes what the container's user said about name servers.
    pub fn complete(&self, resolver: &mut Resolver) {
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
        // Filled in where the link has its place.
        descriptor: DescriptorIndex(0),
        link: match nic.tap {
            Some(udp_offload) => NetLink::Tap { udp_offload },
            None => NetLink::Stream,
        },
        mac: nic.mac,
        sources: vec![nic.ip.0.into()],
        denied: nic
            .denied
            .iter()
            .map(|&(address, prefix)| Ipv4Net { address, prefix })
            .collect(),
        allowed: nic.allowed.clone(),
        mtu: nic.mtu,
    }
}

fn interface(nic: &Nic) -> Interface {
    Interface {
        addresses: vec![InterfaceAddress {
            ip: nic.ip.0.into(),
            prefix: nic.ip.1,
        }],
        gateways: nic.gateway.iter().map(|ip| (*ip).into()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_and_guest_have_the_same_address() {
        let nic = Nic {
            tap: Some(true),
            mac: [2, 0, 0, 0, 0, 1],
            ip: ([10, 0, 0, 2].into(), 24),
            gateway: Some([10, 0, 0, 1].into()),
            mtu: 1500,
            denied: vec![([10, 0, 0, 0].into(), 8)],
            allowed: vec![],
        };
        let (device, interface) = (device(&nic), interface(&nic));
        assert_eq!(device.sources, [interface.addresses[0].ip]);
        assert_eq!(device.link, NetLink::Tap { udp_offload: true });
        assert_eq!(device.denied[0].prefix, 8);
        assert_eq!(interface.gateways, [std::net::IpAddr::from([10, 0, 0, 1])]);
    }
}
