//! Network interfaces of the host: made, connected and removed over rtnetlink(7).

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use netlink::{Netlink, Part};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, Parseable,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoMacVtap, InfoPortData, InfoPortKind, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage, MacVtapMode,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
};
use nix::net::if_::{if_indextoname, if_nametoindex};

/// Makes a bridge, which is down.
///
/// # Errors
///
/// The kernel's.
pub fn make_bridge(name: &str) -> io::Result<()> {
    let mut bridge = LinkMessage::default();
    bridge.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    ask(RouteNetlinkMessage::NewLink(bridge), flags)
}

/// Makes a macvtap device on the interface of that number, which is down.
///
/// # Errors
///
/// The kernel's.
pub fn make_macvtap(name: &str, parent: u32, mac: [u8; 6]) -> io::Result<()> {
    let mut device = LinkMessage::default();
    device.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Link(parent),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVtap),
            LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(
                MacVtapMode::Bridge,
            )])),
        ]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    ask(RouteNetlinkMessage::NewLink(device), flags)
}

/// Gives an interface an address, which nobody else is asked about first.
///
/// # Errors
///
/// The kernel's.
pub fn add_address(name: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.index = if_nametoindex(name)?;
    message.header.prefix_len = prefix;
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    if let IpAddr::V4(ip) = address {
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let broadcast = Ipv4Addr::from_bits(ip.to_bits() | hosts);
        message
            .attributes
            .push(AddressAttribute::Broadcast(broadcast));
    }
    ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE)
}

/// Brings an interface up.
///
/// # Errors
///
/// The kernel's.
pub fn bring_up(name: &str) -> io::Result<()> {
    let link = up(if_nametoindex(name)?);
    ask(RouteNetlinkMessage::NewLink(link), 0)
}

/// Brings an interface up that takes what is for any group: which ones it is in is known at its other end only.
///
/// # Errors
///
/// The kernel's.
pub fn bring_up_for_groups(name: &str) -> io::Result<()> {
    let mut link = up(if_nametoindex(name)?);
    link.header.flags |= LinkFlags::Allmulti;
    link.header.change_mask |= LinkFlags::Allmulti;
    ask(RouteNetlinkMessage::NewLink(link), 0)
}

/// Connects an interface to a bridge; `isolated` keeps it from others that are isolated.
///
/// # Errors
///
/// The kernel's.
pub fn plug(name: &str, bridge: &str, isolated: bool) -> io::Result<()> {
    let mut port = LinkMessage::default();
    port.header.index = if_nametoindex(name)?;
    port.attributes = vec![LinkAttribute::Controller(if_nametoindex(bridge)?)];
    // It is up when it is all that it should be, and not before.
    let mut up = up(port.header.index);
    up.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(
            isolated,
        )])),
    ])];
    let both = [
        serialized(RouteNetlinkMessage::NewLink(port), 0),
        serialized(RouteNetlinkMessage::NewLink(up), NLM_F_ACK),
    ];
    Netlink::open(Part::Route)?.ask(&both.concat())
}

/// Removes an interface.
///
/// # Errors
///
/// The kernel's.
pub fn remove(name: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = if_nametoindex(name)?;
    ask(RouteNetlinkMessage::DelLink(link), 0)
}

/// The interface of the main table's default route of IPv4, and the router that it leads to: the one of the least
/// metric. `None` where there is none with a router.
///
/// # Errors
///
/// The kernel's.
pub fn default_route() -> io::Result<Option<(String, Ipv4Addr)>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let bytes = serialized(RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP);
    let mut best: Option<(u32, u32, Ipv4Addr)> = None;
    Netlink::open(Part::Route)?.dump(&bytes, |payload| {
        let Ok(route) = RouteMessage::parse(payload) else {
            return;
        };
        let is_main = route.header.table == RouteHeader::RT_TABLE_MAIN;
        if route.header.destination_prefix_length != 0 || !is_main {
            return;
        }
        let (mut metric, mut interface, mut router) = (0, None, None);
        for attribute in route.attributes {
            match attribute {
                RouteAttribute::Priority(number) => metric = number,
                RouteAttribute::Oif(index) => interface = Some(index),
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => router = Some(ip),
                _ => {}
            }
        }
        if let (Some(interface), Some(router)) = (interface, router)
            && best.is_none_or(|(known, ..)| metric < known)
        {
            best = Some((metric, interface, router));
        }
    })?;
    let Some((_, index, router)) = best else {
        return Ok(None);
    };
    let name = if_indextoname(index)?;
    Ok(Some((name.to_string_lossy().into_owned(), router)))
}

/// An interface that is to be up.
fn up(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    Netlink::open(Part::Route)?.ask(&serialized(message, NLM_F_ACK | flags))
}

fn serialized(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
