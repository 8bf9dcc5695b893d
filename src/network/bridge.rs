//! The driver for root: Linux bridges, and a TAP device on one for each machine.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, Write},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;

use super::{definition::Definition, error::NetworkError, firewall};

/// What names of our bridges begin with, and of nothing else.
pub const PREFIX: &str = "pillbug";
/// The program that makes them.
const PROGRAM: &str = "ip";
const TUN: &str = "/dev/net/tun";
/// Below the networks' folder: the boot in which this host became a router for our sake.
const ROUTER: &str = "router";

/// Whether this host has what it takes, root aside.
pub fn is_possible() -> bool {
    crate::program::find(firewall::PROGRAM).is_some()
        && crate::program::find(PROGRAM).is_some()
        && Path::new(TUN).exists()
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
    }
    let settings = format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6");
    if Path::new("/sys/class/net").join(bridge).exists() {
        return Ok(());
    }
    ip(&format!(
        "link add name {bridge} type bridge\n\
         addr add {}/{} dev {bridge}\n",
        network.gateway,
        network.subnet.prefix_len(),
    ))?;
    // The host has no address there that machines could find by themselves.
    let _ = fs::write(settings, "1");
    ip(&format!("link set dev {bridge} up\n"))
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

/// Makes a TAP device on the bridge of a network. The device is where the descriptor is, and whether
/// it segments UDP.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn plug(network: &Definition, tap: &str) -> Result<(OwnedFd, bool), NetworkError> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open(TUN)
        .map_err(NetworkError::Tun)?;
    let udp_offload =
        vmm::virtio::net::tap::create(&tun, tap).map_err(|source| NetworkError::Tap {
            name: tap.into(),
            source,
        })?;
    // The host itself sends nothing there on its own.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"), "1");
    let isolated = if network.open { "off" } else { "on" };
    ip(&format!(
        "link set dev {tap} master {bridge}\n\
         link set dev {tap} type bridge_slave isolated {isolated}\n\
         link set dev {tap} up\n",
        bridge = network.bridge,
    ))?;
    Ok((tun.into(), udp_offload))
}

/// Removes the bridge of a network.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn remove(network: &Definition) -> Result<(), NetworkError> {
    match Path::new("/sys/class/net").join(&network.bridge).exists() {
        true => ip(&format!("link del dev {}\n", network.bridge)),
        false => Ok(()),
    }
}

/// Subnets that the host is on, and what of it is.
///
/// # Errors
///
/// Where they cannot be read.
pub fn host_subnets() -> Result<Vec<(Ipv4Net, String)>, NetworkError> {
    let interfaces = getifaddrs().map_err(|error| NetworkError::Interfaces(error.into()))?;
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for interface in interfaces {
        let ip = |address: Option<nix::sys::socket::SockaddrStorage>| {
            Some(address?.as_sockaddr_in()?.ip())
        };
        let (Some(address), Some(mask)) = (ip(interface.address), ip(interface.netmask)) else {
            continue;
        };
        if let Ok(subnet) = Ipv4Net::with_netmask(address, mask)
            && seen.insert(subnet)
        {
            found.push((subnet, format!("interface {}", interface.interface_name)));
        }
    }
    Ok(found)
}

/// Every address of the host itself.
///
/// # Errors
///
/// Where they cannot be read.
pub fn host_addresses() -> Result<Vec<Ipv4Addr>, NetworkError> {
    Ok(host_subnets()?
        .iter()
        .map(|(subnet, _)| subnet.addr())
        .collect())
}

/// Runs lines of ip-link(8) and ip-address(8), until one fails.
fn ip(lines: &str) -> Result<(), NetworkError> {
    let failed = |source: io::Error| NetworkError::Program {
        program: PROGRAM,
        source,
    };
    let path =
        crate::program::find(PROGRAM).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let mut ip = Command::new(path)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = ip.stdin.take() {
        // Who does not read it says why.
        let _ = input.write_all(lines.as_bytes());
    }
    let output = ip.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(NetworkError::Refused {
            program: PROGRAM,
            said: firewall::first_line(&output.stderr),
        }),
    }
}
