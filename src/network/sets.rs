//! What a machine adds to the walls, told to the kernel without a program: elements of the sets in our tables
//! (linux/netfilter/nf_tables.h). And whether the rules are still the ones that were put there, and what the kernel tells of
//! changes to them.

use std::{io, thread};

use netlink::{Message, Netlink, Part, attributes};
use sha2::{Digest, Sha256};

use super::lease::Lease;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
/// Requests for tables, chains and rules.
const PARTS: [u16; 3] = [SUBSYSTEM << 8 | 1, SUBSYSTEM << 8 | 4, SUBSYSTEM << 8 | 7];
const NEWSETELEM: u16 = SUBSYSTEM << 8 | 12;
const DELSETELEM: u16 = SUBSYSTEM << 8 | 14;

/// Bytes of `struct nfgenmsg`, which each message begins with.
const HEADER: usize = 4;
/// Attribute of every message that is about something in a table: the table's name.
const NAME: u16 = 1;
/// Of messages about elements: the set's name, and the elements.
const SET: u16 = 2;
const ELEMENTS: u16 = 3;
/// In what lists and nests: an entry, the key of an element, the value of a key.
const ENTRY: u16 = 1;
const KEY: u16 = 1;
const VALUE: u16 = 1;

/// Name of both tables.
const TABLE: &[u8] = b"pillbug\0";

/// Which of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Of a request: any.
    Unspecified = 0,
    Inet = 1,
    Bridge = 7,
}

/// One element of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
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
        message.attribute(NAME, TABLE);
        message.attribute(SET, element.set);
        message.nested(ELEMENTS, |list| {
            list.nested(ENTRY, |entry| {
                entry.nested(KEY, |key| key.attribute(VALUE, &element.key));
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

/// What the machine of a lease needs. The parts of a key are padded to four bytes each.
pub fn elements(lease: &Lease) -> Vec<Element> {
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

/// What both tables are, with their chains and rules, in so many letters; any change to one changes it, and elements of sets
/// do not.
///
/// # Errors
///
/// The kernel's.
pub fn fingerprint() -> io::Result<String> {
    let netlink = Netlink::open(Part::Netfilter)?;
    let mut hash = Sha256::new();
    for part in PARTS {
        let mut request = message(part, libc::NLM_F_DUMP, Family::Unspecified);
        request.attribute(NAME, TABLE);
        netlink.dump(&request.finish(), |payload| {
            // After the family and the version comes a number that counts all changes to all rules.
            if is_ours(payload) {
                hash.update(&payload[..1]);
                hash.update(&payload[HEADER..]);
            }
        })?;
    }
    Ok(hex::encode(hash.finalize()))
}

/// Whether what the kernel says is about one of our tables, or something in it. Of tables and chains it lists those of all.
fn is_ours(payload: &[u8]) -> bool {
    let Some((header, content)) = payload.split_at_checked(HEADER) else {
        return false;
    };
    [Family::Inet as u8, Family::Bridge as u8].contains(&header[0])
        && attributes(content).any(|attribute| attribute == (NAME, TABLE))
}

/// Whether a notice of the kernel's says that somebody changed our tables, other than by elements of others.
pub fn concerns(own: &[Element], kind: u16, payload: &[u8]) -> bool {
    is_ours(payload)
        && match kind {
            NEWSETELEM => false,
            DELSETELEM => own.iter().any(|element| is_named(element, payload)),
            _ => true,
        }
}

/// Whether an element is one of those that a message is about.
fn is_named(element: &Element, message: &[u8]) -> bool {
    let (family, content) = (message.first(), message.get(HEADER..).unwrap_or_default());
    let inside = |row, wanted| attributes(row).filter(move |(kind, _)| *kind == wanted);
    let mut keys = inside(content, ELEMENTS)
        .flat_map(|(_, list)| inside(list, ENTRY))
        .flat_map(|(_, entry)| inside(entry, KEY))
        .flat_map(|(_, key)| inside(key, VALUE));
    family == Some(&(element.family as u8))
        && attributes(content).any(|attribute| attribute == (SET, element.set))
        && keys.any(|(_, key)| key == element.key)
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

    /// What the kernel says of a request, without the header of netlink's.
    fn notice(bytes: &[u8]) -> (u16, &[u8]) {
        (u16::from_ne_bytes([bytes[4], bytes[5]]), &bytes[16..])
    }

    #[test]
    fn a59_a_change_to_our_tables_is_told_from_others() {
        let about = |kind: u16, family, table: &[u8]| {
            let mut message = message(SUBSYSTEM << 8 | kind, 0, family);
            message.attribute(NAME, table);
            message.finish()
        };
        // Tables, chains, rules and sets, made, changed or deleted.
        for kind in [0, 2, 3, 5, 6, 8, 9, 11] {
            for (expected, family, table) in [
                (true, Family::Inet, TABLE),
                (true, Family::Bridge, TABLE),
                (false, Family::Unspecified, TABLE),
                (false, Family::Inet, &b"firewalld\0"[..]),
                (false, Family::Inet, b"pillbug"),
            ] {
                let bytes = about(kind, family, table);
                let (kind, payload) = notice(&bytes);
                assert_eq!(concerns(&[], kind, payload), expected, "{kind} {table:?}");
            }
        }
        let whole = about(2, Family::Inet, TABLE);
        for length in 0..whole.len() - 16 {
            assert!(!concerns(&[], SUBSYSTEM << 8 | 2, &whole[16..16 + length]));
        }
    }

    #[test]
    fn a59_of_elements_ones_own_that_are_deleted_count() {
        let own = elements(&lease::example("web", "bridge", [10, 213, 0, 2]));
        let other = elements(&lease::example("db", "bridge", [10, 213, 0, 3]));
        let told = |kind, elements: &[Element]| {
            let batch = transaction(kind, elements);
            // Between the ends of the transaction.
            let (kind, payload) = notice(&batch[20..batch.len() - 20]);
            let whole = concerns(&own, kind, payload);
            for length in 0..payload.len() - 4 {
                assert!(!concerns(&own, kind, &payload[..length]), "{length}");
            }
            whole
        };
        assert!(told(DELSETELEM, &own));
        assert!(!told(DELSETELEM, &other));
        assert!(!told(NEWSETELEM, &own));
        let elsewhere = Element {
            set: b"hosts\0",
            ..own[0].clone()
        };
        assert!(!told(DELSETELEM, &[elsewhere]));
    }
}
