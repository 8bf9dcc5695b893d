//! From a message to its answer: a pure function of the leases (RFC 1035; EDNS: RFC 6891).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::{
    base::{
        Message, MessageBuilder, Name, Question, Rtype, ToName, Ttl,
        iana::{Class, Opcode, Rcode},
        message_builder::AdditionalBuilder,
        name::ParsedName,
    },
    rdata::{A, Aaaa, Ptr},
};

use super::{
    super::{definition::Definition, lease::Lease},
    Transport,
};

/// A container that is made again has another address: what was true a second ago may not be.
const TTL: Ttl = Ttl::from_secs(1);
/// Longest answer over UDP that everybody takes.
const SHORT: usize = 512;
/// Longest that we send over UDP, and offer to take.
const LONG: u16 = 4096;
/// Longest that there is.
const LONGEST: usize = 65_535;
/// Letters of a container's ID that are a name of it.
const SHORT_ID: usize = 12;

/// What is known here.
pub struct Known<'a> {
    /// All leases, whoever's.
    pub leases: &'a [Lease],
    /// Networks whose containers have names.
    pub networks: &'a [Definition],
    /// Nobody else is asked: what is not known does not exist.
    pub is_all: bool,
    /// Whether a lease is still somebody's.
    pub is_alive: &'a dyn Fn(&Lease) -> bool,
}

/// What becomes of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// This is the answer.
    Message(Vec<u8>),
    /// Others know.
    Elsewhere,
    /// It is none that anybody answers.
    Silence,
}

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It is one of ours, with these addresses.
    Addresses(Vec<IpAddr>),
    /// It is the reverse name of an address of ours, and these are the names there.
    Names(Vec<String>),
    /// It would be one of ours, and is none.
    Nothing,
}

/// Answers a message, or says who does.
pub fn answer(message: &[u8], known: &Known<'_>, transport: Transport) -> Answer {
    let Ok(query) = Message::from_slice(message) else {
        return Answer::Silence;
    };
    if query.header().qr() {
        return Answer::Silence;
    }
    if query.header().opcode() != Opcode::QUERY {
        return Answer::Message(error(query, Rcode::NOTIMP));
    }
    let Ok(question) = query.sole_question() else {
        return Answer::Message(error(query, Rcode::FORMERR));
    };
    let found = match question.qclass() {
        Class::IN => find(&question, known),
        _ => None,
    };
    match found {
        Some(found) => Answer::Message(compose(query, &question, &found, transport)),
        None if known.is_all => {
            Answer::Message(compose(query, &question, &Found::Nothing, transport))
        }
        None => Answer::Elsewhere,
    }
}

/// The answer to a message that cannot be answered now.
pub fn failure(message: &[u8]) -> Vec<u8> {
    Message::from_slice(message).map_or(Vec::new(), |query| error(query, Rcode::SERVFAIL))
}

fn error(query: &Message<[u8]>, rcode: Rcode) -> Vec<u8> {
    MessageBuilder::new_vec().start_error(query, rcode).finish()
}

fn find(question: &Question<ParsedName<&[u8]>>, known: &Known<'_>) -> Option<Found> {
    let name = question.qname().to_string().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    if let Some(address) = reverse(name) {
        return find_address(address, known);
    }
    let mut leases: Vec<&Lease> = known
        .networks
        .iter()
        .flat_map(|network| {
            let suffix = format!(".{}", network.name.to_ascii_lowercase());
            let short = name.strip_suffix(&suffix);
            let on_it = known
                .leases
                .iter()
                .filter(|lease| lease.network == network.name);
            on_it.filter(move |lease| {
                is_called(lease, name) || short.is_some_and(|short| is_called(lease, short))
            })
        })
        .filter(|lease| (known.is_alive)(lease))
        .collect();
    if leases.is_empty() {
        return None;
    }
    // Who shares an alias shares what is asked of it.
    let turn = getrandom::u32().unwrap_or_default() as usize % leases.len();
    leases.rotate_left(turn);
    let addresses = leases
        .iter()
        .flat_map(|lease| [lease.ip.map(IpAddr::from), lease.ip6.map(IpAddr::from)])
        .flatten();
    Some(Found::Addresses(addresses.collect()))
}

fn is_called(lease: &Lease, name: &str) -> bool {
    lease.name.eq_ignore_ascii_case(name)
        || lease.id.get(..SHORT_ID) == Some(name)
        || lease
            .aliases
            .iter()
            .any(|alias| alias.eq_ignore_ascii_case(name))
}

fn find_address(address: IpAddr, known: &Known<'_>) -> Option<Found> {
    let network = known
        .networks
        .iter()
        .find(|network| network.contains(address))?;
    let has_it = |lease: &&Lease| lease.network == network.name && lease.has(address);
    let names = known
        .leases
        .iter()
        .filter(has_it)
        .filter(|lease| (known.is_alive)(lease))
        .map(|lease| format!("{}.{}", lease.name, network.name));
    match names.collect::<Vec<_>>() {
        // Others have no business with the addresses of ours.
        names if names.is_empty() => Some(Found::Nothing),
        names => Some(Found::Names(names)),
    }
}

/// The address whose reverse name this is (RFC 1035, 3.5; RFC 3596, 2.5).
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets: Vec<u8> = labels
            .split('.')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        octets.reverse();
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let digits: String = labels.split('.').rev().collect();
    let is_whole = digits.len() == 32 && labels.len() == 63;
    let bits = u128::from_str_radix(&digits, 16)
        .ok()
        .filter(|_| is_whole)?;
    Some(Ipv6Addr::from_bits(bits).into())
}

fn compose(
    query: &Message<[u8]>,
    question: &Question<ParsedName<&[u8]>>,
    found: &Found,
    transport: Transport,
) -> Vec<u8> {
    let rcode = match found {
        Found::Nothing => Rcode::NXDOMAIN,
        _ => Rcode::NOERROR,
    };
    let edns = query.opt();
    let limit = match (transport, &edns) {
        (Transport::Connection, _) => LONGEST,
        (Transport::Packets, None) => SHORT,
        (Transport::Packets, Some(edns)) => {
            usize::from(edns.udp_payload_size().min(LONG)).max(SHORT)
        }
    };
    let whole = write(query, question, found, rcode, edns.is_some());
    match whole {
        Some(message) if message.len() <= limit => message,
        _ => truncated(query, rcode, edns.is_some()),
    }
}

/// `None` where the answer is longer than any message can be.
fn write(
    query: &Message<[u8]>,
    question: &Question<ParsedName<&[u8]>>,
    found: &Found,
    rcode: Rcode,
    has_edns: bool,
) -> Option<Vec<u8>> {
    let mut answer = MessageBuilder::new_vec().start_answer(query, rcode).ok()?;
    answer.header_mut().set_aa(true);
    answer.header_mut().set_ra(true);
    let owner = question.qname();
    let wants = |rtype| question.qtype() == rtype || question.qtype() == Rtype::ANY;
    match found {
        Found::Addresses(addresses) => {
            for address in addresses {
                match address {
                    IpAddr::V4(ip) if wants(Rtype::A) => {
                        answer.push((owner, TTL, A::new(*ip))).ok()?;
                    }
                    IpAddr::V6(ip) if wants(Rtype::AAAA) => {
                        answer.push((owner, TTL, Aaaa::new(*ip))).ok()?;
                    }
                    // There is the name, and nothing of that type.
                    _ => {}
                }
            }
        }
        Found::Names(names) if wants(Rtype::PTR) => {
            for name in names {
                // A name that DNS cannot carry is none to it.
                if let Ok(name) = name.parse::<Name<Vec<u8>>>() {
                    answer
                        .push((owner, TTL, Ptr::new(name.to_name::<Vec<u8>>())))
                        .ok()?;
                }
            }
        }
        Found::Names(_) | Found::Nothing => {}
    }
    finish(answer.additional(), has_edns)
}

/// As much as fits: the question. Who wants more asks over TCP (RFC 2181, 9).
fn truncated(query: &Message<[u8]>, rcode: Rcode, has_edns: bool) -> Vec<u8> {
    let empty = || {
        let mut answer = MessageBuilder::new_vec().start_answer(query, rcode).ok()?;
        answer.header_mut().set_ra(true);
        answer.header_mut().set_tc(true);
        finish(answer.additional(), has_edns)
    };
    empty().unwrap_or_else(|| error(query, Rcode::SERVFAIL))
}

fn finish(mut answer: AdditionalBuilder<Vec<u8>>, has_edns: bool) -> Option<Vec<u8>> {
    if has_edns {
        answer
            .opt(|opt| {
                opt.set_udp_payload_size(LONG);
                Ok(())
            })
            .ok()?;
    }
    Some(answer.finish())
}
