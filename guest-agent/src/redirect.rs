//! Packets to port 53 of the name server's address go to the ports it has, and its answers come from port 53: so the port
//! stays free for a name server of the container's own, which may listen on all addresses.
//!
//! Rules of nftables' that put another port in the place of the one that is there, and no address translation: that
//! would make the kernel keep track of every connection of the container's.

use std::{io, net::Ipv4Addr};

use libc::{IPPROTO_TCP, IPPROTO_UDP, NLM_F_ACK, NLM_F_CREATE};
use netlink::{Message, Netlink, Part};

/// The port that name servers are asked at.
const DNS: u16 = 53;
/// Of the table and its chain.
const TABLE: &[u8] = b"pillbug\0";
const CHAIN: &[u8] = b"names\0";

// From linux/netfilter/nfnetlink.h, nf_tables.h and netfilter.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const HOOK_OUTPUT: u32 = 3;
/// Before anything else looks at the packet.
const PRIORITY: i32 = -300;
const META_L4PROTO: u32 = 16;
const REGISTER: u32 = 1;

/// Which header of a packet.
#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

/// Puts the rules in place for a server whose sockets have these ports.
///
/// # Errors
///
/// The kernel's.
pub fn redirect(address: Ipv4Addr, udp: u16, tcp: u16) -> io::Result<()> {
    Netlink::open(Part::Netfilter)?.ask(&rules(address, udp, tcp))
}

/// All of it, as one transaction.
fn rules(address: Ipv4Addr, udp: u16, tcp: u16) -> Vec<u8> {
    let mut batch = boundary(BATCH_BEGIN);
    let mut table = message(NEWTABLE, NLM_F_CREATE);
    table.attribute(1, TABLE);
    batch.extend(table.finish());
    let mut chain = message(NEWCHAIN, NLM_F_CREATE);
    chain.attribute(1, TABLE);
    chain.attribute(3, CHAIN);
    chain.nested(4, |hook| {
        hook.attribute(1, &HOOK_OUTPUT.to_be_bytes());
        hook.attribute(2, &PRIORITY.to_be_bytes());
    });
    chain.attribute(7, b"filter\0");
    batch.extend(chain.finish());
    // Offsets of the checksum: RFC 768, RFC 9293.
    let protocols = [(IPPROTO_UDP, udp, 6), (IPPROTO_TCP, tcp, 16)];
    for (last, (protocol, port, checksum)) in [false, true].into_iter().zip(protocols) {
        // Destination address and port, then source address and port: RFC 791, 3.1.
        for (is_answer, addresses, ports, from, to) in
            [(false, 16, 2, DNS, port), (true, 12, 0, port, DNS)]
        {
            let is_last = last && is_answer;
            let mut rule = message(NEWRULE, NLM_F_CREATE | if is_last { NLM_F_ACK } else { 0 });
            rule.attribute(1, TABLE);
            rule.attribute(2, CHAIN);
            rule.nested(4, |rule| {
                expression(rule, b"meta\0", |meta| {
                    meta.attribute(1, &REGISTER.to_be_bytes());
                    meta.attribute(2, &META_L4PROTO.to_be_bytes());
                });
                is_equal(rule, &[protocol as u8]);
                load(rule, Header::Network, addresses, 4);
                is_equal(rule, &address.octets());
                load(rule, Header::Transport, ports, 2);
                is_equal(rule, &from.to_be_bytes());
                store(rule, ports, to, checksum);
            });
            batch.extend(rule.finish());
        }
    }
    batch.extend(boundary(BATCH_END));
    batch
}

/// `struct nfgenmsg` for IPv4 after the header.
fn message(kind: u16, flags: i32) -> Message {
    let mut message = Message::new(kind, flags);
    message.put(&[libc::AF_INET as u8, 0, 0, 0]);
    message
}

fn boundary(kind: u16) -> Vec<u8> {
    let mut message = Message::new(kind, 0);
    message.put(&[0, 0]).put(&SUBSYSTEM.to_be_bytes());
    message.finish()
}

fn expression(rule: &mut Message, name: &[u8], data: impl FnOnce(&mut Message)) {
    rule.nested(1, |element| {
        element.attribute(1, name);
        element.nested(2, data);
    });
}

fn load(rule: &mut Message, header: Header, offset: u32, length: u32) {
    expression(rule, b"payload\0", |payload| {
        payload.attribute(1, &REGISTER.to_be_bytes());
        payload.attribute(2, &(header as u32).to_be_bytes());
        payload.attribute(3, &offset.to_be_bytes());
        payload.attribute(4, &length.to_be_bytes());
    });
}

fn is_equal(rule: &mut Message, value: &[u8]) {
    expression(rule, b"cmp\0", |comparison| {
        comparison.attribute(1, &REGISTER.to_be_bytes());
        // NFT_CMP_EQ.
        comparison.attribute(2, &[0; 4]);
        comparison.nested(3, |data| data.attribute(1, value));
    });
}

fn store(rule: &mut Message, offset: u32, port: u16, checksum: u32) {
    expression(rule, b"immediate\0", |immediate| {
        immediate.attribute(1, &REGISTER.to_be_bytes());
        immediate.nested(2, |data| data.attribute(1, &port.to_be_bytes()));
    });
    expression(rule, b"payload\0", |payload| {
        payload.attribute(5, &REGISTER.to_be_bytes());
        payload.attribute(2, &(Header::Transport as u32).to_be_bytes());
        payload.attribute(3, &offset.to_be_bytes());
        payload.attribute(4, &2_u32.to_be_bytes());
        // NFT_PAYLOAD_CSUM_INET.
        payload.attribute(6, &1_u32.to_be_bytes());
        payload.attribute(7, &checksum.to_be_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transaction_is_whole_messages_of_which_the_last_rule_is_acknowledged() {
        let batch = rules(Ipv4Addr::new(127, 0, 0, 11), 40_000, 40_001);
        let mut kinds = Vec::new();
        let mut rest = &batch[..];
        while let Some(length) = rest.first_chunk::<4>() {
            let (message, after) = rest.split_at(u32::from_ne_bytes(*length) as usize);
            kinds.push((message[4] as u16 | (message[5] as u16) << 8, message[6] & 4));
            rest = after;
        }
        assert!(rest.is_empty());
        let expected = [
            (BATCH_BEGIN, 0),
            (NEWTABLE, 0),
            (NEWCHAIN, 0),
            (NEWRULE, 0),
            (NEWRULE, 0),
            (NEWRULE, 0),
            (NEWRULE, 4),
            (BATCH_END, 0),
        ];
        assert_eq!(kinds, expected);
    }
}
