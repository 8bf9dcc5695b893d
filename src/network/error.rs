//! What can go wrong with networks.

use std::{io, net::IpAddr, path::PathBuf};

use ipnet::Ipv4Net;

use crate::state_root::StateRootError;

/// Why a network is not as it was asked for.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NetworkError {
    #[error("cannot keep networks")]
    Folder(#[from] StateRootError),
    #[error("cannot {what} {path}")]
    State {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("there is no network {0:?}: `pillbug network ls` shows those there are")]
    NotFound(String),
    #[error("there is a network {0:?} already")]
    Exists(String),
    #[error(
        "{0:?} is no name for a network: letters, digits, `_`, `.` and `-`, a letter or digit first, \
         and none of `bridge`, `user`, `none`, `host`"
    )]
    Name(String),
    #[error("network {network:?} is in use by container {container:?}")]
    InUse { network: String, container: String },
    #[error(
        "network {0:?} needs root: without it there are `user`, and networks of `pillbug network create`"
    )]
    NeedsRoot(String),
    #[error("cannot connect to the switch of network {network:?}")]
    Switch { network: String, source: io::Error },
    #[error("the switch of network {0:?} ended, and the container with it")]
    SwitchLost(String),
    #[error("the passt behind network {0:?} ended, and the container with it")]
    WayOutLost(String),
    #[error("the host has no default route over IPv4, and so no address that it is known by")]
    NoWayOut,
    #[error("network {0:?} cannot be one of several")]
    Alone(String),
    #[error("network {0:?} is given twice")]
    Twice(String),
    #[error("containers have no names on network {0:?}: make one with `pillbug network create`")]
    NoNames(String),
    #[error("{0} needs a network of `pillbug network create`")]
    NeedsNetwork(&'static str),
    #[error(
        "{0} is no subnet that machines can be on: an IPv4 one of /8 to /29, such as 10.9.0.0/24, or an IPv6 one of \
         /48 to /112, such as fd00:9::/64"
    )]
    Subnet(String),
    #[error("the subnet {subnet} overlaps {with}")]
    Overlap { subnet: String, with: String },
    #[error("every subnet that could be chosen is taken: give one with --subnet")]
    NoSubnet,
    #[error("the range {range} is not in the subnet {subnet}")]
    Range { range: Ipv4Net, subnet: Ipv4Net },
    #[error("the system has no random bits to give")]
    Random(#[source] io::Error),
    #[error("host-gateway needs a network with a way out by this host")]
    NoGateway,
    #[error("the firewall cannot be looked at")]
    Firewall(#[source] io::Error),
    #[error("gateway {0} is not an address of the subnet")]
    Gateway(IpAddr),
    #[error("{ip} is not an address that network {network:?} has to give")]
    Address { ip: IpAddr, network: String },
    #[error("{ip} is taken by container {holder:?}")]
    AddressTaken { ip: IpAddr, holder: String },
    #[error("network {0:?} has no address left")]
    Full(String),
    #[error("port {port} is taken by {holder}: choose another with -p")]
    PortTaken { port: String, holder: String },
    #[error("cannot listen on {port}")]
    Listen { port: String, source: io::Error },
    #[error("cannot carry a published port's connections")]
    Proxy(#[source] io::Error),
    #[error("cannot open /dev/net/tun: load the kernel module `tun`")]
    Tun(#[source] io::Error),
    #[error("cannot make the bridge {name}, or remove it")]
    Bridge { name: String, source: io::Error },
    #[error("cannot make the TAP device {name}")]
    Tap { name: String, source: io::Error },
    #[error("interface {parent:?} cannot be the parent of a network")]
    Parent { parent: String, source: io::Error },
    #[error(
        "a macvlan network needs the --subnet of its parent's network, for IPv6 too, and --ip-range for the part of it that \
         nobody else there gives out"
    )]
    ParentSubnet,
    #[error(
        "a macvlan network is its parent's, with every way out that there is: it cannot be internal"
    )]
    InternalParent,
    #[error("cannot make a macvtap device on {parent:?} for network {network:?}")]
    Macvtap {
        network: String,
        parent: String,
        source: io::Error,
    },
    #[error("cannot run {program}: is it installed?")]
    Program {
        program: &'static str,
        source: io::Error,
    },
    #[error("{program} failed: {said}")]
    Refused { program: &'static str, said: String },
    #[error("cannot look at the host's interfaces")]
    Interfaces(#[source] io::Error),
    #[error("cannot let the host forward packets")]
    Forwarding(#[source] io::Error),
}
