//! The machine's network interfaces, set up over rtnetlink(7) as the host asked.
//!
//! Knows what the few messages look like that this takes, and reads nothing back but errors. MAC and
//! MTU come with the device.

use std::{io, net::IpAddr, os::fd::AsFd};

use libc::{IFA_ADDRESS, IFA_F_NODAD, IFA_LOCAL, IFF_UP, NLM_F_ACK, NLM_F_CREATE};
use netlink::{Message, Netlink, Part};
use protocol::{Interface, Resolver, StartStage};
use rustix::net::netdevice::name_to_index;

use crate::{
    failure::{At, Failure},
    names,
};

/// The gateway need not be in the subnet of an address (linux/rtnetlink.h).
const RTNH_F_ONLINK: u32 = 4;

/// A connection to the kernel's routing tables.
pub struct Network {
    socket: Netlink,
}

impl Network {
    /// Connects, and brings the loopback interface up.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn open() -> io::Result<Self> {
        let socket = Netlink::open(Part::Route)?;
        let network = Self { socket };
        // The first interface of every network namespace.
        network.up(1)?;
        Ok(network)
    }

    /// Gives `eth0`, `eth1` and so on what `interfaces` say, in order.
    ///
    /// # Errors
    ///
    /// At [`StartStage::Network`], with the interface or address as the subject.
    pub fn configure(&self, interfaces: &[Interface]) -> Result<(), Failure> {
        for (position, interface) in interfaces.iter().enumerate() {
            let name = name(position);
            let index = self.index(&name).at(StartStage::Network, &name)?;
            self.up(index).at(StartStage::Network, &name)?;
            for address in &interface.addresses {
                self.add_address(index, address.ip, address.prefix)
                    .at(StartStage::Network, &address.ip.to_string())?;
            }
            for gateway in &interface.gateways {
                self.add_gateway(index, *gateway)
                    .at(StartStage::Network, &gateway.to_string())?;
            }
        }
        Ok(())
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        // Any socket will do.
        Ok(name_to_index(self.socket.as_fd(), name)?)
    }

    /// `RTM_NEWLINK` with `struct ifinfomsg`.
    fn up(&self, index: u32) -> io::Result<()> {
        let up = IFF_UP.cast_unsigned();
        let mut message = Message::new(libc::RTM_NEWLINK, NLM_F_ACK);
        message.put(&[0; 4]).put(&index.to_ne_bytes());
        // Flags, and which of them to change.
        message.put(&up.to_ne_bytes()).put(&up.to_ne_bytes());
        self.socket.ask(&message.finish())
    }

    /// `RTM_NEWADDR` with `struct ifaddrmsg`. Nobody else has the address: there is nothing to detect.
    fn add_address(&self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE);
        message
            .put(&[family(ip), prefix, IFA_F_NODAD as u8, 0])
            .put(&index.to_ne_bytes());
        message.attribute(IFA_LOCAL, &octets(ip));
        message.attribute(IFA_ADDRESS, &octets(ip));
        self.socket.ask(&message.finish())
    }

    /// `RTM_NEWROUTE` with `struct rtmsg`: the default route.
    fn add_gateway(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE);
        message
            .put(&[family(gateway), 0, 0, 0])
            .put(&[
                libc::RT_TABLE_MAIN,
                libc::RTPROT_BOOT,
                libc::RT_SCOPE_UNIVERSE,
                libc::RTN_UNICAST,
            ])
            .put(&RTNH_F_ONLINK.to_ne_bytes());
        message.attribute(libc::RTA_GATEWAY, &octets(gateway));
        message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        self.socket.ask(&message.finish())
    }
}

/// What the kernel calls the network device at `position`.
fn name(position: usize) -> String {
    format!("eth{position}")
}

/// Settings of the interfaces, for when `/proc` is there: path and value. No router is listened to,
/// and without an address of IPv6 there is none of it at all.
pub fn settings(interfaces: &[Interface]) -> impl Iterator<Item = (String, &'static str)> {
    interfaces.iter().enumerate().map(|(position, interface)| {
        let has_ipv6 = interface
            .addresses
            .iter()
            .any(|address| address.ip.is_ipv6());
        let (setting, value) = match has_ipv6 {
            true => ("accept_ra", "0"),
            false => ("disable_ipv6", "1"),
        };
        let path = format!("/proc/sys/net/ipv6/conf/{}/{setting}", name(position));
        (path, value)
    })
}

/// `/etc/resolv.conf` (resolv.conf(5)); empty where there is no name server.
pub fn resolv_conf(resolver: &Resolver) -> String {
    let mut text = String::new();
    let relay = resolver.relay.then_some(IpAddr::V4(names::ADDRESS));
    for server in relay.iter().chain(&resolver.servers) {
        text.extend(["nameserver ", &server.to_string(), "\n"]);
    }
    for (keyword, words) in [("search", &resolver.search), ("options", &resolver.options)] {
        if !words.is_empty() {
            text.extend([keyword, " ", &words.join(" "), "\n"]);
        }
    }
    text
}

fn family(ip: IpAddr) -> u8 {
    // Both are below 256.
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::InterfaceAddress;

    #[test]
    fn the_resolver_is_written_down() {
        assert_eq!(resolv_conf(&Resolver::default()), "");
        let resolver = Resolver {
            servers: vec![[10, 0, 0, 1].into(), IpAddr::from([0xfd00; 8])],
            search: vec!["a.example".into(), "b.example".into()],
            options: vec!["ndots:2".into()],
            relay: false,
        };
        assert_eq!(
            resolv_conf(&resolver),
            "nameserver 10.0.0.1\n\
             nameserver fd00:fd00:fd00:fd00:fd00:fd00:fd00:fd00\n\
             search a.example b.example\n\
             options ndots:2\n"
        );
        let relay = Resolver {
            relay: true,
            ..Resolver::default()
        };
        assert_eq!(resolv_conf(&relay), "nameserver 127.0.0.11\n");
    }

    #[test]
    fn ipv6_is_off_where_no_address_asks_for_it() {
        let interface = |ip: IpAddr| Interface {
            addresses: vec![InterfaceAddress { ip, prefix: 64 }],
            gateways: vec![],
        };
        let interfaces = [
            interface([10, 0, 0, 7].into()),
            interface([0xfd00; 8].into()),
        ];
        let settings: Vec<_> = settings(&interfaces).collect();
        assert_eq!(
            settings,
            [
                ("/proc/sys/net/ipv6/conf/eth0/disable_ipv6".into(), "1"),
                ("/proc/sys/net/ipv6/conf/eth1/accept_ra".into(), "0"),
            ]
        );
    }
}
