//! What a guest may send: the header that virtio puts in front of a frame, and who the frame says it
//! is from. Works on copies, never on guest memory.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV4};

use crate::config::NetConfig;

use ipnet::IpNet;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Bytes of `struct virtio_net_hdr_v1` (virtio 1.2, 5.1.6).
pub const HEADER: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Longest frame: Ethernet, a VLAN tag, and the longest IP packet.
pub const MAX_FRAME: usize = ETHERNET + 4 + 65_535;
/// As much of a frame as [`Filter::allows`] looks at: up to the target of a neighbour advertisement.
pub const INSPECTED: usize = ETHERNET + 40 + 24;

/// Kinds of packets in a frame (IEEE 802 numbers).
pub const IPV4: u16 = 0x0800;
/// See [`IPV4`].
pub const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const NEXT_ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;
/// Source ports of what servers of DHCP send (RFC 2131, 4.1; RFC 8415, 7.2).
const DHCP_SERVER: [u8; 2] = 67_u16.to_be_bytes();
const DHCPV6_SERVER: [u8; 2] = 547_u16.to_be_bytes();
/// IPv6 headers that other headers can follow: hop-by-hop, routing, fragment, destination options.
const NEXT_EXTENSION: [u8; 4] = [0, 43, 44, 60];

/// The header as plain values, all but `num_buffers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    /// As it lies in memory.
    pub fn decode(bytes: [u8; HEADER]) -> Self {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        }
    }

    /// In memory, in front of a frame that is in so many buffers.
    pub fn encode(self, num_buffers: u16) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let fields = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            num_buffers,
        ];
        for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The header of a guest's frame of `length` bytes, when it asks for what was negotiated and for
    /// what is possible (5.1.6.2). What means nothing is cleared.
    pub fn checked(self, length: usize, features: u64) -> Option<Self> {
        let accepted = |feature: u32| features & 1 << feature != 0;
        let mut header = Self::default();
        if u32::from(self.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
            if !accepted(VIRTIO_NET_F_CSUM) || end > length {
                return None;
            }
            header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            header.csum_start = self.csum_start;
            header.csum_offset = self.csum_offset;
        }
        let gso = u32::from(self.gso_type);
        let kind = gso & !VIRTIO_NET_HDR_GSO_ECN;
        let feature = match kind {
            VIRTIO_NET_HDR_GSO_NONE => return Some(header),
            VIRTIO_NET_HDR_GSO_TCPV4 => VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_HDR_GSO_TCPV6 => VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_HDR_GSO_UDP_L4 => VIRTIO_NET_F_HOST_USO,
            _ => return None,
        };
        let has_ecn = gso & VIRTIO_NET_HDR_GSO_ECN != 0;
        let possible = accepted(feature)
            && (!has_ecn || accepted(VIRTIO_NET_F_HOST_ECN))
            && self.gso_size != 0
            && header.flags != 0;
        header.gso_type = self.gso_type;
        header.gso_size = self.gso_size;
        header.hdr_len = self.hdr_len;
        possible.then_some(header)
    }

    /// Whether a guest that accepted `features` can be given a frame with this header.
    pub fn is_for_guest(self, features: u64) -> bool {
        let accepted = |feature: u32| features & 1 << feature != 0;
        let gso = u32::from(self.gso_type);
        let known = match gso & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE => true,
            VIRTIO_NET_HDR_GSO_TCPV4 => accepted(VIRTIO_NET_F_GUEST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => accepted(VIRTIO_NET_F_GUEST_TSO6),
            // Accepted for both versions of IP or for none.
            VIRTIO_NET_HDR_GSO_UDP_L4 => accepted(VIRTIO_NET_F_GUEST_USO4),
            _ => false,
        };
        known
            && (gso & VIRTIO_NET_HDR_GSO_ECN == 0 || accepted(VIRTIO_NET_F_GUEST_ECN))
            && (u32::from(self.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0
                || accepted(VIRTIO_NET_F_GUEST_CSUM))
    }

    /// Whether the frame is as it will be on the wire.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }
}

/// Who a guest's frames may say they are from, and where they may go.
#[derive(Debug, Clone)]
pub struct Filter {
    mac: [u8; 6],
    addresses: Vec<IpAddr>,
    denied: Vec<IpNet>,
    allowed: Vec<SocketAddrV4>,
}

impl Filter {
    /// What `config` says of it.
    #[must_use]
    pub fn new(config: &NetConfig) -> Self {
        Self::pinned(config.mac, &config.sources).walled(&config.denied, &config.allowed)
    }

    /// Of a guest that goes wherever it likes. An address of IPv6 brings with it the link-local one that is made of
    /// the MAC.
    #[must_use]
    pub fn pinned(mac: [u8; 6], sources: &[IpAddr]) -> Self {
        let mut addresses = sources.to_vec();
        if addresses.iter().any(IpAddr::is_ipv6) {
            addresses.push(link_local(mac).into());
        }
        Self {
            mac,
            addresses,
            denied: Vec::new(),
            allowed: Vec::new(),
        }
    }

    /// The same guest, with places where it may not go, and what it may reach in there all the same.
    #[must_use]
    pub fn walled(self, denied: &[IpNet], allowed: &[SocketAddrV4]) -> Self {
        Self {
            denied: denied.to_vec(),
            allowed: allowed.to_vec(),
            ..self
        }
    }

    /// Judges a frame by its first [`INSPECTED`] bytes, or all where it has fewer.
    ///
    /// With addresses, only IPv4, ARP and IPv6 pass, each with its sender pinned: in ARP both that of
    /// the protocol and that of the frame; in a neighbour advertisement the address it is about. Nobody is a router or a
    /// DHCP server to others.
    #[must_use]
    pub fn allows(&self, frame: &[u8]) -> bool {
        let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET) else {
            return false;
        };
        if ethernet[6..12] != self.mac {
            return false;
        }
        let kind = u16::from_be_bytes([ethernet[12], ethernet[13]]);
        if !self.may_go(kind, packet) {
            return false;
        }
        if self.addresses.is_empty() {
            return true;
        }
        match kind {
            IPV4 => {
                matches!(read::<4>(packet, 12), Some(source) if self.is_own(source))
                    && !is_from_dhcp_server(packet)
            }
            // Hardware and protocol addresses of the sender (RFC 826), none yet in a probe.
            ARP => {
                read::<6>(packet, 8) == Some(self.mac)
                    && matches!(read::<4>(packet, 14), Some(ip) if ip == [0; 4] || self.is_own(ip))
            }
            IPV6 => self.allows_ipv6(packet),
            _ => false,
        }
    }

    /// Whether a packet's destination is not denied. What is neither IPv4 nor IPv6 has none.
    fn may_go(&self, kind: u16, packet: &[u8]) -> bool {
        let destination = match kind {
            _ if self.denied.is_empty() => return true,
            IPV4 => read::<4>(packet, 16).map(IpAddr::from),
            IPV6 => read::<16>(packet, 24).map(IpAddr::from),
            _ => return true,
        };
        destination.is_some_and(|destination| {
            !self.denied.iter().any(|net| net.contains(&destination))
                || self.is_allowed(destination, packet)
        })
    }

    /// Whether a packet may go to an address that is denied otherwise.
    fn is_allowed(&self, destination: IpAddr, packet: &[u8]) -> bool {
        let IpAddr::V4(destination) = destination else {
            return false;
        };
        // The port lies behind the header, in the first of the packet's fragments.
        let header = packet[0] & 0xf;
        let is_whole =
            matches!(read::<2>(packet, 6), Some([flags, low]) if flags & 0x3f == 0 && low == 0);
        let has_ports = matches!(packet[9], TCP | UDP);
        match read::<2>(packet, usize::from(header) * 4 + 2).map(u16::from_be_bytes) {
            Some(port) if is_whole && has_ports => {
                self.allowed.contains(&SocketAddrV4::new(destination, port))
            }
            _ => false,
        }
    }

    fn allows_ipv6(&self, packet: &[u8]) -> bool {
        let (Some([next]), Some(source)) = (read::<1>(packet, 6), read::<16>(packet, 8)) else {
            return false;
        };
        // No address yet: a machine that asks whether somebody else has it (RFC 4862, 5.4).
        let has_ipv6 = self.addresses.iter().any(IpAddr::is_ipv6);
        if !has_ipv6 || source != [0; 16] && !self.is_own(source) {
            return false;
        }
        match next {
            // Behind these could be what is not looked at here.
            _ if NEXT_EXTENSION.contains(&next) => self.allows_behind_extension(packet),
            NEXT_ICMPV6 if read::<1>(packet, 40) == Some([NEIGHBOUR_ADVERTISEMENT]) => {
                matches!(read::<16>(packet, 48), Some(target) if self.is_own(target))
            }
            NEXT_ICMPV6 => !matches!(
                read::<1>(packet, 40),
                Some([ROUTER_ADVERTISEMENT | REDIRECT])
            ),
            UDP => read::<2>(packet, 40) != Some(DHCPV6_SERVER),
            _ => true,
        }
    }

    /// Neighbour discovery counts only with the hop limit that no router lets through (RFC 4861,
    /// 7.1.2), which nothing else needs that has extension headers.
    fn allows_behind_extension(&self, packet: &[u8]) -> bool {
        read::<1>(packet, 7) != Some([255])
    }

    fn is_own(&self, address: impl Into<IpAddr>) -> bool {
        self.addresses.contains(&address.into())
    }
}

/// The first fragment tells; others are worth nothing without it.
fn is_from_dhcp_server(packet: &[u8]) -> bool {
    let is_first =
        matches!(read::<2>(packet, 6), Some([flags, low]) if flags & 0x1f == 0 && low == 0);
    let header = packet
        .first()
        .map_or(0, |first| usize::from(first & 0xf) * 4);
    is_first && packet.get(9) == Some(&UDP) && read::<2>(packet, header) == Some(DHCP_SERVER)
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The link-local address that is made of a MAC address, which Linux gives an interface (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
    const IP: [u8; 4] = [172, 29, 0, 7];

    fn ethernet(source: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
        [&[0xff; 6], &source[..], &kind.to_be_bytes(), payload].concat()
    }

    fn ipv4(source: [u8; 4]) -> Vec<u8> {
        [&[0x45; 12], &source[..], &[10, 0, 0, 1], b"payload"].concat()
    }

    fn arp(mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, 2], &mac[..], &ip, &[0xff; 10]].concat()
    }

    fn ipv6(next: u8, hops: u8, source: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let fixed = [0x60, 0, 0, 0, 0, 0, next, hops];
        [&fixed[..], &source.octets(), &[0xfd; 16], payload].concat()
    }

    fn config() -> NetConfig {
        NetConfig {
            descriptors: vec![crate::DescriptorIndex(0)],
            link: crate::NetLink::Stream,
            mac: MAC,
            sources: vec![],
            denied: vec![],
            allowed: vec![],
            mtu: 1500,
        }
    }

    fn pinned() -> Filter {
        Filter::new(&NetConfig {
            sources: vec![IP.into(), IpAddr::from([0xfd00; 8])],
            ..config()
        })
    }

    #[test]
    fn a20_packets_to_denied_places_are_not_sent() {
        let net = |address: [u8; 4], prefix| IpNet::new_assert(address.into(), prefix);
        let filter = Filter::new(&NetConfig {
            denied: vec![
                net([10, 0, 0, 0], 8),
                net([169, 254, 0, 0], 16),
                net([192, 0, 2, 9], 32),
            ],
            allowed: vec![SocketAddrV4::new([10, 0, 2, 3].into(), 53)],
            ..config()
        });
        let packet = |to: [u8; 4], protocol, fragment: u16, port: u16| {
            let mut packet = vec![0x45; 20];
            packet[6..8].copy_from_slice(&fragment.to_be_bytes());
            packet[9] = protocol;
            packet[16..20].copy_from_slice(&to);
            packet.extend([0, 9]);
            packet.extend(port.to_be_bytes());
            ethernet(MAC, IPV4, &packet)
        };
        for (allowed, to, protocol, fragment, port) in [
            (true, [1, 1, 1, 1], TCP, 0, 443),
            (false, [10, 9, 9, 9], TCP, 0, 443),
            (false, [169, 254, 169, 254], TCP, 0, 80),
            (false, [192, 0, 2, 9], TCP, 0, 22),
            (true, [192, 0, 2, 8], TCP, 0, 22),
            (true, [10, 0, 2, 3], UDP, 0, 53),
            (true, [10, 0, 2, 3], TCP, 0x4000, 53),
            (false, [10, 0, 2, 3], UDP, 0, 54),
            (false, [10, 0, 2, 3], 1, 0, 53),
            (false, [10, 0, 2, 3], UDP, 0x2000, 53),
            (false, [10, 0, 2, 3], UDP, 1, 53),
        ] {
            let frame = packet(to, protocol, fragment, port);
            assert_eq!(
                filter.allows(&frame),
                allowed,
                "{to:?} {protocol} {fragment:#x} {port}"
            );
        }
        assert!(!filter.allows(&ethernet(MAC, IPV4, &[0x45; 19])));
        let everywhere = Filter::new(&NetConfig {
            denied: vec![net([0; 4], 0)],
            ..config()
        });
        assert!(!everywhere.allows(&packet([8, 8, 8, 8], TCP, 0, 53)));
    }

    #[test]
    fn a20_packets_of_ipv6_to_denied_places_are_not_sent_and_neighbours_are_found() {
        let own = Ipv6Addr::from([0xfd00; 8]);
        let host: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let filter = Filter::new(&NetConfig {
            sources: vec![own.into()],
            denied: vec![
                IpNet::from(IpAddr::from(host)),
                "fe80::1/128".parse().unwrap(),
                "2001:db8:bad::/48".parse().unwrap(),
                "10.0.0.0/8".parse().unwrap(),
            ],
            ..config()
        });
        let packet = |to: &str, next, hops, payload: &[u8]| {
            let to: Ipv6Addr = to.parse().unwrap();
            let mut packet = ipv6(next, hops, own, payload);
            packet[24..40].copy_from_slice(&to.octets());
            ethernet(MAC, IPV6, &packet)
        };
        let solicit = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &host.octets()].concat();
        let advertise = [
            &[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0],
            &own.octets()[..],
        ]
        .concat();
        for (allowed, to, next, hops, payload) in [
            (true, "2001:db8::2", TCP, 64, &b"x"[..]),
            (false, "2001:db8::1", TCP, 64, b"x"),
            (false, "2001:db8::1", 0, 64, b"x"),
            (false, "fe80::1", UDP, 64, b"x"),
            (true, "fe80::2", UDP, 64, b"x"),
            (false, "2001:db8:bad:1::9", TCP, 64, b"x"),
            (true, "2001:db8:bae::", TCP, 64, b"x"),
            // IPv4 in other clothes is none.
            (true, "::ffff:10.0.0.1", TCP, 64, b"x"),
            (true, "ff02::1:ff00:1", NEXT_ICMPV6, 255, &solicit),
            (true, "fe80::2", NEXT_ICMPV6, 255, &advertise),
        ] {
            let frame = packet(to, next, hops, payload);
            assert_eq!(filter.allows(&frame), allowed, "{to} {next}");
        }
        assert!(!filter.allows(&ethernet(MAC, IPV6, &[0x60; 39])));
    }

    #[test]
    fn a20_frames_with_somebody_elses_address_are_not_sent() {
        let own = Ipv6Addr::from([0xfd00; 8]);
        let other = Ipv6Addr::from([0xfd01; 8]);
        let advertise = |target: Ipv6Addr| {
            [
                &[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0],
                &target.octets()[..],
            ]
            .concat()
        };
        let cases = [
            (true, ethernet(MAC, IPV4, &ipv4(IP))),
            (false, ethernet(OTHER, IPV4, &ipv4(IP))),
            (false, ethernet(MAC, IPV4, &ipv4([172, 29, 0, 8]))),
            (false, ethernet(MAC, IPV4, &ipv4([0; 4]))),
            (true, ethernet(MAC, ARP, &arp(MAC, IP))),
            (true, ethernet(MAC, ARP, &arp(MAC, [0; 4]))),
            (false, ethernet(MAC, ARP, &arp(MAC, [172, 29, 0, 1]))),
            (false, ethernet(MAC, ARP, &arp(OTHER, IP))),
            (true, ethernet(MAC, IPV6, &ipv6(6, 64, own, b"x"))),
            (
                true,
                ethernet(MAC, IPV6, &ipv6(6, 64, link_local(MAC), b"x")),
            ),
            (
                false,
                ethernet(MAC, IPV6, &ipv6(6, 64, link_local(OTHER), b"x")),
            ),
            (false, ethernet(MAC, IPV6, &ipv6(6, 64, other, b"x"))),
            (
                true,
                ethernet(MAC, IPV6, &ipv6(58, 255, own, &advertise(own))),
            ),
            (
                false,
                ethernet(MAC, IPV6, &ipv6(58, 255, own, &advertise(other))),
            ),
            (
                false,
                ethernet(MAC, IPV6, &ipv6(0, 255, own, &advertise(other))),
            ),
            (
                true,
                ethernet(MAC, IPV6, &ipv6(0, 1, own, b"multicast listener")),
            ),
            // A VLAN tag, and a protocol that is nobody's here.
            (false, ethernet(MAC, 0x8100, &ipv4(IP))),
            (false, ethernet(MAC, 0x88cc, b"lldp")),
        ];
        let source = pinned();
        for (position, (allowed, frame)) in cases.iter().enumerate() {
            assert_eq!(source.allows(frame), *allowed, "case {position}");
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_judged_without_a_panic() {
        let source = pinned();
        let whole = [
            ethernet(MAC, IPV4, &ipv4(IP)),
            ethernet(MAC, ARP, &arp(MAC, IP)),
            ethernet(MAC, IPV6, &ipv6(58, 255, [0xfd00; 8].into(), &[136; 24])),
        ];
        for frame in whole {
            for length in 0..ETHERNET + 14 {
                assert!(!source.allows(&frame[..length.min(frame.len())]) || length >= 30);
            }
        }
    }

    #[test]
    fn without_addresses_the_mac_alone_counts() {
        let source = Filter::new(&config());
        assert!(source.allows(&ethernet(MAC, 0x88cc, b"")));
        assert!(!source.allows(&ethernet(OTHER, 0x88cc, b"")));
    }

    #[test]
    fn a_header_asks_for_what_was_negotiated_or_is_refused() {
        let all = !0;
        let checksum = Header {
            flags: 1,
            csum_start: 34,
            csum_offset: 16,
            ..Header::default()
        };
        let segments = Header {
            gso_type: 1,
            gso_size: 1448,
            ..checksum
        };
        assert_eq!(checksum.checked(52, all), Some(checksum));
        assert_eq!(checksum.checked(51, all), None);
        assert_eq!(checksum.checked(1500, 0), None);
        assert_eq!(segments.checked(9000, all), Some(segments));
        assert_eq!(segments.checked(9000, 1 << VIRTIO_NET_F_CSUM), None);
        let refused = [
            Header {
                gso_type: 3,
                ..segments
            },
            Header {
                gso_type: 0x7f,
                ..segments
            },
            Header {
                gso_size: 0,
                ..segments
            },
            Header {
                flags: 0,
                ..segments
            },
        ];
        for header in refused {
            assert_eq!(header.checked(9000, all), None, "{header:?}");
        }
        let noise = Header {
            flags: 6,
            hdr_len: 99,
            gso_size: 7,
            ..Header::default()
        };
        assert!(noise.checked(60, all).unwrap().is_plain());
        assert!(!segments.is_for_guest(1 << VIRTIO_NET_F_GUEST_CSUM));
        assert!(segments.is_for_guest(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4));
    }

    #[test]
    fn a_header_survives_its_encoding() {
        let bytes = std::array::from_fn(|index| index as u8);
        assert_eq!(
            Header::decode(bytes).encode(u16::from_le_bytes([10, 11])),
            bytes
        );
    }
}
