//! The driver for root: Linux bridges, and a TAP device on one for each machine.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::Path,
};

use ipnet::{IpNet, Ipv4Net};
use nix::ifaddrs::getifaddrs;

use super::{definition::Definition, error::NetworkError, firewall, link};

/// What names of our bridges begin with, and of nothing else.
pub const PREFIX: &str = "pillbug";
const TUN: &str = "/dev/net/tun";
/// Below the networks' folder: the boot in which this host became a router for our sake.
const ROUTER: &str = "router";

/// Whether this host has what it takes, root aside.
pub fn is_possible() -> bool {
    crate::program::find(firewall::PROGRAM).is_some() && Path::new(TUN).exists()
}

/// Makes the bridge of a network where it is not there.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn ensure(network: &Definition, folder: &Path) -> Result<(), NetworkError> {
    let bridge = &network.bridge;
    if !network.internal {
        forward(folder).map_err(NetworkError::Forwarding)?;
        if network.subnet6.is_some() {
            forward6().map_err(NetworkError::Forwarding)?;
        }
    }
    if Path::new("/sys/class/net").join(bridge).exists() {
        return Ok(());
    }
    let make = || -> io::Result<()> {
        link::make_bridge(bridge)?;
        link::add_address(bridge, network.gateway.into(), network.subnet.prefix_len())?;
        match (network.subnet6, network.gateway6) {
            (Some(subnet), Some(gateway)) => {
                set6(bridge, "accept_ra", "0")?;
                link::add_address(bridge, gateway.into(), subnet.prefix_len())?;
            }
            // The host has no address there that machines could find by themselves.
            _ => drop(set6(bridge, "disable_ipv6", "1")),
        }
        link::bring_up(bridge)
    };
    make().map_err(|source| {
        // One that is half made would be taken for a whole one.
        let _ = link::remove(bridge);
        NetworkError::Bridge {
            name: bridge.clone(),
            source,
        }
    })
}

/// A setting of IPv6 for one interface; a kernel without IPv6 has none.
pub fn set6(interface: &str, setting: &str, value: &str) -> io::Result<()> {
    fs::write(
        format!("/proc/sys/net/ipv6/conf/{interface}/{setting}"),
        value,
    )
}

/// Makes the host pass packets on, and remembers if it did not before.
fn forward(folder: &Path) -> io::Result<()> {
    let setting = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(setting)?.trim() != "0" {
        return Ok(());
    }
    fs::write(folder.join(ROUTER), boot()?)?;
    fs::write(setting, "1")
}

/// The same of IPv6. A host that passes packets on listens to no router any more unless it is told to (ip-sysctl of the
/// kernel's documentation): where it did, it goes on.
fn forward6() -> io::Result<()> {
    let folder = Path::new("/proc/sys/net/ipv6/conf");
    let setting = folder.join("all/forwarding");
    if fs::read_to_string(&setting)?.trim() != "0" {
        return Ok(());
    }
    for interface in fs::read_dir(folder)? {
        let listens = interface?.path().join("accept_ra");
        if fs::read_to_string(&listens)?.trim() == "1" {
            fs::write(listens, "2")?;
        }
    }
    fs::write(setting, "1")
}

/// Whether the host forwards packets only because [`ensure`] made it.
pub fn is_router(folder: &Path) -> bool {
    match (fs::read_to_string(folder.join(ROUTER)), boot()) {
        (Ok(then), Ok(now)) => then == now,
        _ => false,
    }
}

fn boot() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
}

/// Makes a TAP device of so many queues on the bridge of a network. The queues are where the descriptors are, and whether it
/// segments UDP.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn plug(
    network: &Definition,
    tap: &str,
    queues: usize,
) -> Result<(Vec<OwnedFd>, bool), NetworkError> {
    let open = || OpenOptions::new().read(true).write(true).open(TUN);
    let queues: Vec<OwnedFd> = (0..queues)
        .map(|_| open().map(Into::into))
        .collect::<io::Result<_>>()
        .map_err(NetworkError::Tun)?;
    let udp_offload =
        vmm::virtio::net::tap::create(&queues, tap).map_err(|source| NetworkError::Tap {
            name: tap.into(),
            source,
        })?;
    // The host itself sends nothing there on its own.
    let _ = set6(tap, "disable_ipv6", "1");
    link::plug(tap, &network.bridge, !network.open).map_err(|source| NetworkError::Tap {
        name: tap.into(),
        source,
    })?;
    Ok((queues, udp_offload))
}

/// Removes the bridge of a network.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn remove(network: &Definition) -> Result<(), NetworkError> {
    match Path::new("/sys/class/net").join(&network.bridge).exists() {
        true => link::remove(&network.bridge).map_err(|source| NetworkError::Bridge {
            name: network.bridge.clone(),
            source,
        }),
        false => Ok(()),
    }
}

/// Every address of the host itself with the subnet that it is on, and the interface.
///
/// # Errors
///
/// Where they cannot be read.
pub fn addresses() -> Result<Vec<(IpNet, String)>, NetworkError> {
    let interfaces = getifaddrs().map_err(|error| NetworkError::Interfaces(error.into()))?;
    let mut found = Vec::new();
    for interface in interfaces {
        let ip = |address: Option<nix::sys::socket::SockaddrStorage>| {
            let address = address?;
            let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
            four.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
        };
        let (Some(address), Some(mask)) = (ip(interface.address), ip(interface.netmask)) else {
            continue;
        };
        if let Ok(subnet) = IpNet::with_netmask(address, mask) {
            found.push((subnet, interface.interface_name));
        }
    }
    Ok(found)
}

/// Whether it is an address of IPv6 that means something on one link only. Every interface has one.
pub fn is_of_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Subnets that the host is on, and what of it is.
///
/// # Errors
///
/// Where they cannot be read.
pub fn host_subnets() -> Result<Vec<(IpNet, String)>, NetworkError> {
    let mut seen = HashSet::new();
    let mut found = addresses()?;
    // All links have the same one for that, and it overlaps nothing.
    found.retain(|(subnet, _)| !is_of_link(subnet.addr()) && seen.insert(*subnet));
    let named = found.into_iter();
    Ok(named
        .map(|(subnet, interface)| (subnet, format!("interface {interface}")))
        .collect())
}

/// The host's own address on its way out over IPv4, with its subnet, and the router there.
///
/// # Errors
///
/// [`NetworkError::NoWayOut`], and where addresses or routes cannot be read.
pub fn way_out() -> Result<(Ipv4Net, Ipv4Addr), NetworkError> {
    let (interface, router) = link::default_route()
        .map_err(NetworkError::Interfaces)?
        .ok_or(NetworkError::NoWayOut)?;
    let found = addresses()?
        .into_iter()
        .find_map(|(subnet, of)| match subnet {
            IpNet::V4(subnet) if of == interface => Some(subnet),
            _ => None,
        });
    Ok((found.ok_or(NetworkError::NoWayOut)?, router))
}

/// Every address of the host itself that means it on any link.
///
/// # Errors
///
/// Where they cannot be read.
pub fn host_addresses() -> Result<Vec<IpAddr>, NetworkError> {
    let addresses = addresses()?.into_iter().map(|(subnet, _)| subnet.addr());
    Ok(addresses.filter(|ip| !is_of_link(*ip)).collect())
}
