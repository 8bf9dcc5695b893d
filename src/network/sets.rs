//! What a machine adds to the walls, told to the kernel without a program: elements of the sets in our tables
//! (linux/netfilter/nf_tables.h). And whether the rules are still the ones that were put there.

use std::{io, thread};

use netlink::{Message, Netlink, Part};
use sha2::{Digest, Sha256};

use super::lease::Lease;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const GETRULE: u16 = SUBSYSTEM << 8 | 7;
const NEWSETELEM: u16 = SUBSYSTEM << 8 | 12;
const DELSETELEM: u16 = SUBSYSTEM << 8 | 14;

/// Name of both tables.
const TABLE: &[u8] = b"pillbug\0";

/// Which of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Inet = 1,
    Bridge = 7,
}

/// One element of a set.
#[derive(Debug, PartialEq, Eq)]
struct Element {
    family: Family,
    set: &'static [u8],
    key: Vec<u8>,
}

/// Adds what the machine of a lease needs.
///
/// # Errors
///
/// The kernel's, such as `ENOENT` where the tables are not there; nothing is changed then.
pub fn admit(leases: &[&Lease]) -> io::Result<()> {
    change(NEWSETELEM, leases)
}

/// Takes it away again.
///
/// # Errors
///
/// As [`admit`], and where an element is not there.
pub fn dismiss(leases: &[&Lease]) -> io::Result<()> {
    change(DELSETELEM, leases)
}

fn change(kind: u16, leases: &[&Lease]) -> io::Result<()> {
    let elements: Vec<Element> = leases.iter().flat_map(|lease| elements(lease)).collect();
    match elements.is_empty() {
        true => Ok(()),
        false => {
            let netlink = Netlink::open(Part::Netfilter)?;
            let changed = netlink.ask(&transaction(kind, &elements));
            close_aside(netlink);
            changed
        }
    }
}

/// Lets go of a connection over which something was removed. The kernel frees that when nobody can look at it any more,
/// and keeps who closes the connection waiting until then, for some ten milliseconds.
fn close_aside(netlink: Netlink) {
    let aside = thread::Builder::new().name("netlink".into());
    // Without a thread it is closed here.
    let _ = aside.spawn(move || drop(netlink));
}

/// All changes or none, of which the last is acknowledged.
fn transaction(kind: u16, elements: &[Element]) -> Vec<u8> {
    let mut batch = boundary(BATCH_BEGIN);
    for (position, element) in elements.iter().enumerate() {
        let mut flags = libc::NLM_F_CREATE;
        if position + 1 == elements.len() {
            flags |= libc::NLM_F_ACK;
        }
        let mut message = message(kind, flags, element.family);
        message.attribute(1, TABLE);
        message.attribute(2, element.set);
        message.nested(3, |list| {
            list.nested(1, |entry| {
                entry.nested(1, |key| key.attribute(1, &element.key));
            });
        });
        batch.extend(message.finish());
    }
    batch.extend(boundary(BATCH_END));
    batch
}

/// A `struct nfgenmsg` after the header.
fn message(kind: u16, flags: i32, family: Family) -> Message {
    let mut message = Message::new(kind, flags);
    message.put(&[family as u8, 0, 0, 0]);
    message
}

fn boundary(kind: u16) -> Vec<u8> {
    let mut message = Message::new(kind, 0);
    message.put(&[0, 0]).put(&SUBSYSTEM.to_be_bytes());
    message.finish()
}

/// The parts of a key are padded to four bytes each.
fn elements(lease: &Lease) -> Vec<Element> {
    if !lease.is_walled() {
        return Vec::new();
    }
    let mut name = lease.tap.clone().into_bytes();
    // IFNAMSIZ.
    name.resize(16, 0);
    let pin = [&name[..], &lease.mac, &[0; 2]].concat();
    let element = |family, set, parts: &[&[u8]]| Element {
        family,
        set,
        key: parts.concat(),
    };
    let mut found = Vec::new();
    if let Some(ip) = lease.ip {
        found.push(element(Family::Bridge, b"pins\0", &[&pin, &ip.octets()]));
        if let Some(host) = lease.host {
            let key: &[&[u8]] = &[&ip.octets(), &host.octets()];
            found.push(element(Family::Inet, b"hosts\0", key));
        }
        for server in &lease.servers {
            let key: &[&[u8]] = &[&ip.octets(), &server.octets()];
            let resolver = element(Family::Inet, b"resolvers\0", key);
            // A server that is named twice is one.
            if !found.contains(&resolver) {
                found.push(resolver);
            }
        }
    }
    for ip in lease.addresses6() {
        for set in [&b"pins6\0"[..], b"targets\0"] {
            found.push(element(Family::Bridge, set, &[&pin, &ip.octets()]));
        }
    }
    found
}

/// What the rules of both tables are, in so many letters; any change to one changes it, and elements of sets do not.
///
/// # Errors
///
/// The kernel's.
pub fn fingerprint() -> io::Result<String> {
    let netlink = Netlink::open(Part::Netfilter)?;
    let mut hash = Sha256::new();
    for family in [Family::Inet, Family::Bridge] {
        let mut request = message(GETRULE, libc::NLM_F_DUMP, family);
        request.attribute(1, TABLE);
        netlink.dump(&request.finish(), |payload| {
            // After the family and the version comes a number that counts all changes to all rules.
            if let Some(rule) = payload.get(4..) {
                hash.update(rule);
            }
        })?;
    }
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::lease;

    #[test]
    fn keys_are_laid_out_as_the_kernel_compares_them() {
        let mut web = lease::example("web", "bridge", [10, 213, 0, 2]);
        web.host = Some([10, 213, 0, 1].into());
        web.servers = vec![[192, 168, 0, 1].into(), [192, 168, 0, 1].into()];
        let found = elements(&web);
        assert_eq!(found.len(), 3);
        assert_eq!(found[1].key, [10, 213, 0, 2, 10, 213, 0, 1]);
        assert_eq!(
            found[0].key,
            b"pb-web\0\0\0\0\0\0\0\0\0\0\x02\x70\x0a\xd5\0\x02\0\0\x0a\xd5\0\x02"
        );
        assert_eq!(found[2].key, [10, 213, 0, 2, 192, 168, 0, 1]);
        web.ip6 = Some("fd00::2".parse().unwrap());
        let lengths: Vec<_> = elements(&web).iter().map(|one| one.key.len()).collect();
        assert_eq!(lengths, [28, 8, 8, 40, 40, 40, 40]);
        // One that is on no bridge has no element.
        web.tap = String::new();
        assert_eq!(elements(&web), []);
    }
}
