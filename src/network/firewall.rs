//! The walls: two tables of nftables' that are ours, made from networks and leases by a pure function and put in place at
//! once by nft(8). They decide about packets of our machines only.
//!
//! What a machine adds to them are elements of sets, so that one that comes or goes changes nothing else and takes no
//! program (see [`sets`](super::sets)).

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use ipnet::Ipv4Net;

use super::{bridge::PREFIX, definition::Definition, error::NetworkError, lease::Lease};

/// The program.
pub const PROGRAM: &str = "nft";

/// What no machine reaches unless it is told so: this host's neighbours and what names itself, link-local
/// addresses (metadata servers among them), groups and what is reserved (RFC 6890).
pub const PRIVATE: [Ipv4Net; 10] = [
    net([0, 0, 0, 0], 8),
    net([10, 0, 0, 0], 8),
    net([100, 64, 0, 0], 10),
    net([127, 0, 0, 0], 8),
    net([169, 254, 0, 0], 16),
    net([172, 16, 0, 0], 12),
    net([192, 0, 0, 0], 24),
    net([192, 168, 0, 0], 16),
    net([198, 18, 0, 0], 15),
    net([224, 0, 0, 0], 3),
];

/// The same of IPv6, and what leads to addresses of IPv4 by way of others: NAT64, 6to4 and Teredo.
const PRIVATE6: [&str; 8] = [
    "::/8",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "2001::/32",
    "2002::/16",
    "fc00::/7",
    "fe80::/9",
    "ff00::/8",
];

const fn net([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// Removes both tables, whether there are any or not.
const CLEAR: &str = "\
add table inet pillbug
delete table inet pillbug
add table bridge pillbug
delete table bridge pillbug
";

/// Everything, as nft(8) reads it. `is_router`: the host forwards packets for our sake only.
pub fn ruleset(networks: &[Definition], leases: &[Lease], is_router: bool) -> String {
    let mut text = String::from(CLEAR);
    let mut pins = Vec::new();
    let mut pins6 = Vec::new();
    let mut targets = Vec::new();
    let mut resolvers = Vec::new();
    let mut hosts = Vec::new();
    for lease in leases.iter().filter(|lease| lease.is_walled()) {
        let mac = lease.mac.map(|byte| format!("{byte:02x}")).join(":");
        let pin = |address: String| format!("{:?} . {mac} . {address}", lease.tap);
        if let Some(ip) = lease.ip {
            pins.push(pin(ip.to_string()));
            hosts.extend(lease.host.map(|host| format!("{ip} . {host}")));
            resolvers.extend(
                lease
                    .servers
                    .iter()
                    .map(|server| format!("{ip} . {server}")),
            );
        }
        for ip in lease.addresses6() {
            pins6.push(pin(ip.to_string()));
            targets.push(pin(format!("{:#034x}", ip.to_bits())));
        }
    }
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "table inet pillbug {{
  set resolvers {{ type ipv4_addr . ipv4_addr; {resolvers} }}
  set hosts {{ type ipv4_addr . ipv4_addr; {hosts} }}
{walls}}}
table bridge pillbug {{
  set pins {{ type ifname . ether_addr . ipv4_addr; {pins} }}
  set pins6 {{ type ifname . ether_addr . ipv6_addr; {pins6} }}
  set targets {{ typeof iifname . ether saddr . @th,64,128; {targets} }}
{PINS}}}
",
        resolvers = elements(&resolvers),
        hosts = elements(&hosts),
        pins = elements(&pins),
        pins6 = elements(&pins6),
        targets = elements(&targets),
        walls = walls(networks, is_router),
    );
    text
}

/// Who a machine may say it is, whatever has become of its VMM.
const PINS: &str = "  chain prerouting {
    type filter hook prerouting priority filter; policy accept;
    iifname \"pb-*\" jump machine
  }
  chain machine {
    ether type ip iifname . ether saddr . ip saddr @pins udp sport 67 drop
    ether type ip iifname . ether saddr . ip saddr @pins accept
    ether type arp iifname . arp saddr ether . arp saddr ip @pins iifname . ether saddr . arp saddr ip @pins accept
    ether type ip6 iifname . ether saddr . ip6 saddr @pins6 jump machine6
    drop
  }
  chain machine6 {
    udp sport 547 drop
    icmpv6 type { nd-router-advert, nd-redirect } drop
    icmpv6 type nd-neighbor-advert iifname . ether saddr . @th,64,128 @targets accept
    icmpv6 type nd-neighbor-advert drop
    accept
  }
";

/// What machines reach, and what reaches them.
fn walls(networks: &[Definition], is_router: bool) -> String {
    // Frames between machines of one bridge come here too where br_netfilter is on.
    let open: String = networks
        .iter()
        .filter(|network| network.open)
        .map(|network| format!("    iifname {0:?} oifname {0:?} accept\n", network.bridge))
        .collect();
    let internal = networks.iter().filter(|network| network.internal);
    let internal = rule(
        "iifname",
        internal.map(|one| format!("{:?}", one.bridge)),
        "drop",
    );
    let foreign = match is_router {
        true => format!("    iifname != \"{PREFIX}*\" oifname != \"{PREFIX}*\" drop\n"),
        false => String::new(),
    };
    let private = PRIVATE.map(|net| net.to_string());
    let refuse = "reject with icmpx type admin-prohibited";
    let private = rule("ip daddr", private, refuse);
    let private6 = rule("ip6 daddr", PRIVATE6.map(str::to_owned), refuse);
    let outward = networks.iter().filter(|network| !network.internal);
    let masquerade = format!("oifname != \"{PREFIX}*\" masquerade");
    let subnets = outward.clone().map(|network| network.subnet.to_string());
    let nat = rule("ip saddr", subnets, &masquerade);
    let subnets6 = outward.filter_map(|network| Some(network.subnet6?.to_string()));
    let nat6 = rule("ip6 saddr", subnets6, &masquerade);
    format!(
        "  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
{open}    iifname \"{PREFIX}*\" jump outward
    oifname \"{PREFIX}*\" ct state established,related accept
    oifname \"{PREFIX}*\" drop
{foreign}  }}
  chain outward {{
    ct state established,related accept
{internal}    oifname \"{PREFIX}*\" drop
    ip saddr . ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
{private}{private6}    accept
  }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname \"{PREFIX}*\" ct state established,related accept
    iifname \"{PREFIX}*\" ip saddr . ip daddr @hosts accept
    iifname \"{PREFIX}*\" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    iifname \"{PREFIX}*\" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{nat}{nat6}  }}
"
    )
}

/// A line with a set of its own in it, which nobody can change but with the rule; none where the set is empty.
fn rule(what: &str, items: impl IntoIterator<Item = String>, verdict: &str) -> String {
    match &*items.into_iter().collect::<Vec<_>>() {
        [] => String::new(),
        items => format!("    {what} {{ {} }} {verdict}\n", items.join(", ")),
    }
}

/// The contents of a set, which nft does not want to see empty.
fn elements(items: &[String]) -> String {
    match items {
        [] => String::new(),
        items => format!("elements = {{ {} }};", items.join(", ")),
    }
}

/// Puts rules in place, all or none.
///
/// # Errors
///
/// Where nft is missing, or refuses.
pub fn apply(rules: &str) -> Result<(), NetworkError> {
    let failed = |source: io::Error| NetworkError::Program {
        program: PROGRAM,
        source,
    };
    let path =
        crate::program::find(PROGRAM).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let mut nft = Command::new(path)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = nft.stdin.take() {
        // Who does not read it says why.
        let _ = input.write_all(rules.as_bytes());
    }
    let output = nft.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(NetworkError::Refused {
            program: PROGRAM,
            said: first_line(&output.stderr),
        }),
    }
}

/// Removes all rules.
///
/// # Errors
///
/// As [`apply`].
pub fn clear() -> Result<(), NetworkError> {
    apply(CLEAR)
}

/// Of what a program said.
fn first_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    text.lines().next().unwrap_or("it does not say why").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{definition, lease};

    #[test]
    fn a20_rules_name_every_machine_with_its_own_addresses() {
        let internal = Definition {
            internal: true,
            ..definition::example("vault", 1)
        };
        let six = Definition {
            subnet6: Some("fd00:0:0:1::/64".parse().unwrap()),
            ..definition::example("six", 2)
        };
        let networks = [definition::example("bridge", 0), internal, six];
        let mut web = lease::example("web", "bridge", [10, 213, 0, 2]);
        web.servers = vec![[192, 168, 0, 1].into()];
        web.ip6 = Some("fd00:0:0:1::2".parse().unwrap());
        let rules = ruleset(&networks, &[web], false);
        for expected in [
            "elements = { \"pb-web\" . 02:70:0a:d5:00:02 . 10.213.0.2 };",
            "elements = { \"pb-web\" . 02:70:0a:d5:00:02 . fd00:0:0:1::2, \
             \"pb-web\" . 02:70:0a:d5:00:02 . fe80::70:aff:fed5:2 };",
            "02:70:0a:d5:00:02 . 0xfd000000000000010000000000000002",
            "elements = { 10.213.0.2 . 192.168.0.1 };",
            "ip saddr { 10.213.0.0/24, 10.213.2.0/24 } oifname != \"pillbug*\" masquerade",
            "ip6 saddr { fd00:0:0:1::/64 } oifname != \"pillbug*\" masquerade",
            "iifname { \"pillbug1\" } drop",
            "169.254.0.0/16",
        ] {
            assert!(rules.contains(expected), "no {expected} in\n{rules}");
        }
        assert!(!rules.contains("oifname != \"pillbug*\" drop"));
        assert!(ruleset(&networks, &[], true).contains("oifname != \"pillbug*\" drop"));
    }

    #[test]
    fn a59_rules_begin_by_removing_what_is_left_of_others() {
        assert!(ruleset(&[], &[], false).starts_with(CLEAR));
    }
}
