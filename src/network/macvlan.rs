//! The driver for root that puts machines on the network that an interface of the host is on, its parent: a macvtap
//! device for each, in bridge mode.
//!
//! That network is what it is: who is there reaches the machine, and nothing of the host's firewall is between. What a
//! machine may send is decided by its device alone.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

use ipnet::{IpNet, Ipv4Net};
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
const NEVER: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
];

/// Neighbours of IPv6 have link-local addresses, and private ones: of metadata servers the addresses are known (OpenStack's,
/// EC2's, Google's).
const NEVER6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
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
    nic.denied = denied(parent, &bridge::addresses()?);
    Ok(())
}

/// Where a device on that parent leads no packet: to none of these addresses of the host, which it has on those interfaces.
///
/// A link-local one may be reached over another interface that is on the same link. But one that somebody chose for another
/// interface, such as `fe80::1`, may be somebody else's here, most likely the router's.
fn denied(parent: &str, host: &[(IpNet, String)]) -> Vec<IpNet> {
    let is_chosen = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.to_bits() << 64 >> 80 == 0);
    let is_the_hosts =
        |ip: IpAddr, on: &str| !bridge::is_of_link(ip) || on == parent || !is_chosen(ip);
    let host = host.iter().map(|(subnet, on)| (subnet.addr(), on));
    let host = host.filter(|(ip, on)| is_the_hosts(*ip, on));
    let mut denied: Vec<IpNet> = NEVER.map(IpNet::V4).into();
    denied.extend(NEVER6.map(|ip| IpNet::from(IpAddr::V6(ip))));
    denied.extend(host.map(|(ip, _)| IpNet::from(ip)));
    denied
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a20_the_host_is_denied_at_each_of_its_addresses_but_those_that_mean_others_here() {
        let host = [
            ("203.0.113.1/24", "eth0"),
            ("192.0.2.1/24", "eth1"),
            ("2001:db8::1/64", "eth0"),
            ("fe80::70:aff:fe00:1/64", "eth0"),
            ("fe80::70:aff:fe00:2/64", "wlan0"),
            ("fe80::1/64", "docker0"),
            ("fd00::1/64", "docker0"),
        ];
        let host = host.map(|(net, of)| (net.parse().unwrap(), of.to_owned()));
        let is_denied = |parent: &str, ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            denied(parent, &host).iter().any(|net| net.contains(&ip))
        };
        for (net, _) in &host[..5] {
            assert!(is_denied("eth0", &net.addr().to_string()), "{net}");
        }
        assert!(is_denied("eth0", "fd00::1"));
        assert!(is_denied("eth0", "169.254.169.254"));
        assert!(is_denied("eth0", "fd00:ec2::254"));
        assert!(!is_denied("eth0", "fe80::1"));
        assert!(is_denied("docker0", "fe80::1"));
        for other in [
            "203.0.113.2",
            "2001:db8::2",
            "fe80::70:aff:fe00:3",
            "fd00::2",
        ] {
            assert!(!is_denied("eth0", other), "{other}");
        }
    }
}
