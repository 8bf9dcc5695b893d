//! A container's place on a network: what was asked for, and what its machine and its guest are told.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::Path,
};

use protocol::{Interface, InterfaceAddress};
use serde::{Deserialize, Serialize};
use vmm::{DescriptorIndex, Ipv4Net, NetConfig, NetLink};

use crate::network::{Attachment, NONE, NetworkError, Networks, Nic, Request, port::Publish};

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Name of the network; empty for none, too.
    pub network: String,
    /// Ports to publish.
    pub publish: Vec<Publish>,
    /// Publish all ports that the image exposes. Only until the container is created.
    #[serde(skip)]
    pub publish_all: bool,
    /// This address.
    pub ip: Option<Ipv4Addr>,
    /// This MAC address.
    pub mac: Option<[u8; 6]>,
    /// Name servers in place of the host's.
    pub dns: Vec<Ipv4Addr>,
}

/// What a machine that is on a network has to do with it.
#[derive(Debug)]
pub struct Connection {
    /// The machine's device.
    pub device: NetConfig,
    /// What is at the other end of it.
    pub link: OwnedFd,
    /// The guest's interface.
    pub interface: Interface,
    /// Whom the guest asks for names.
    pub servers: Vec<IpAddr>,
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
        if self.network.is_empty() || self.network == NONE {
            return Ok(None);
        }
        let (attachment, link) = Networks::open(state_root)?.attach(&Request {
            network: &self.network,
            id,
            name,
            ip: self.ip,
            mac: self.mac,
            dns: &self.dns,
            publish: &self.publish,
            log,
        })?;
        Ok(Some(Connection {
            device: device(&attachment.nic),
            link,
            interface: interface(&attachment.nic),
            servers: attachment.nic.servers.clone(),
            attachment,
        }))
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
            servers: vec![],
            mtu: 1500,
            denied: vec![([10, 0, 0, 0].into(), 8)],
            allowed: vec![],
        };
        let (device, interface) = (device(&nic), interface(&nic));
        assert_eq!(device.sources, [interface.addresses[0].ip]);
        assert_eq!(device.link, NetLink::Tap { udp_offload: true });
        assert_eq!(device.denied[0].prefix, 8);
        assert_eq!(interface.gateways, [IpAddr::from([10, 0, 0, 1])]);
    }
}
