//! The driver for root that puts machines on the network that an interface of the host is on, its parent: a macvtap
//! device for each, in bridge mode.
//!
//! That network is what it is: who is there reaches the machine, and nothing of the host's firewall is between. What a
//! machine may send is decided by its device alone.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
};

use nix::{net::if_::if_nametoindex, unistd::Uid};

use super::{
    Nic, bridge,
    definition::{Definition, NewNetwork},
    error::NetworkError,
    lease::Lease,
    link,
};

/// Where no machine has business whose network this is: what names itself, and link-local addresses, metadata servers
/// among them.
const NEVER: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
];

/// Whether a network that is to be made can be.
///
/// # Errors
///
/// For what it must have, and must not.
pub fn check(new: &NewNetwork, parent: &str) -> Result<(), NetworkError> {
    if !Uid::effective().is_root() {
        return Err(NetworkError::NeedsRoot(new.name.clone()));
    }
    if new.internal {
        return Err(NetworkError::InternalParent);
    }
    if new.subnet.is_none() || new.ipv6 && new.subnet6.is_none() {
        return Err(NetworkError::ParentSubnet);
    }
    find(parent).map(drop)
}

/// Number of the parent.
fn find(parent: &str) -> Result<u32, NetworkError> {
    if_nametoindex(parent).map_err(|error| NetworkError::Parent {
        parent: parent.into(),
        source: error.into(),
    })
}

/// Addresses that are the host's own, and so no machine's.
///
/// # Errors
///
/// Where they cannot be read.
pub fn host_addresses() -> Result<Vec<IpAddr>, NetworkError> {
    let subnets = bridge::host_subnets()?.into_iter();
    Ok(subnets.map(|(subnet, _)| subnet.addr()).collect())
}

/// Makes of a device one on the parent's network: with packets as long as they are there, and walls of its own.
///
/// # Errors
///
/// Where the parent or the host's addresses cannot be read.
pub fn adapt(nic: &mut Nic, parent: &str) -> Result<(), NetworkError> {
    let mtu = || -> io::Result<u16> {
        let text = fs::read_to_string(format!("/sys/class/net/{parent}/mtu"))?;
        let mtu: u32 = text.trim().parse().map_err(io::Error::other)?;
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    };
    nic.mtu = mtu().map_err(|source| NetworkError::Parent {
        parent: parent.into(),
        source,
    })?;
    let host = bridge::host_addresses()?.into_iter().map(|ip| (ip, 32));
    nic.denied = NEVER.into_iter().chain(host).collect();
    Ok(())
}

/// Makes the device of a lease. The device is where the descriptor is, and whether it segments UDP.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn plug(
    network: &Definition,
    parent: &str,
    lease: &Lease,
) -> Result<(OwnedFd, bool), NetworkError> {
    let name = &*lease.tap;
    let parent_index = find(parent)?;
    let make = || -> io::Result<(File, bool)> {
        link::make_macvtap(name, parent_index, lease.mac)?;
        // The host itself sends nothing there on its own.
        let _ = bridge::set6(name, "disable_ipv6", "1");
        // A character device of that number is its other end (Documentation/networking/tuntap.rst).
        let path = format!("/dev/tap{}", if_nametoindex(name)?);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let udp_offload = vmm::virtio::net::tap::create(&[&file], name)?;
        link::bring_up_for_groups(name)?;
        Ok((file, udp_offload))
    };
    let (file, udp_offload) = make().map_err(|source| NetworkError::Macvtap {
        network: network.name.clone(),
        parent: parent.into(),
        source,
    })?;
    Ok((file.into(), udp_offload))
}

/// Removes the device of a lease, where that has one: unlike a TAP device it stays when nobody has it open.
pub fn unplug(lease: &Lease) {
    if lease.parent.is_some() {
        // One that is gone, or was never made, is gone.
        let _ = link::remove(&lease.tap);
    }
}
