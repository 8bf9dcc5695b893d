//! The walls: two tables of nftables' that are ours, made from networks and leases by a pure function and
//! put in place at once.
//!
//! They are replaced as a whole, so that whatever happened to them, they are right afterwards; and
//! they decide about packets of our machines only.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
};

use super::{bridge::PREFIX, definition::Definition, error::NetworkError, lease::Lease};

/// The program.
pub const PROGRAM: &str = "nft";

/// What no machine reaches unless it is told so: this host's neighbours and what names itself, link-local
/// addresses (metadata servers among them), groups and what is reserved (RFC 6890).
pub const PRIVATE: [(&str, u8); 10] = [
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("224.0.0.0", 3),
];

/// Removes both tables, whether there are any or not.
const CLEAR: &str = "\
add table inet pillbug
delete table inet pillbug
add table bridge pillbug
delete table bridge pillbug
";

/// Everything, as nft(8) reads it. `is_router`: the host forwards packets for our sake only.
pub fn ruleset(networks: &[Definition], leases: &[Lease], is_router: bool) -> String {
    let placed = |lease: &Lease| Some((lease.clone(), lease.ip?));
    let placed: Vec<_> = leases.iter().filter_map(placed).collect();
    let pins: Vec<_> = placed
        .iter()
        .map(|(lease, ip)| {
            let mac = lease.mac.map(|byte| format!("{byte:02x}")).join(":");
            format!("{:?} . {mac} . {ip}", lease.tap)
        })
        .collect();
    let resolvers: Vec<_> = placed
        .iter()
        .flat_map(|(lease, ip)| {
            let servers = lease.servers.iter();
            servers.map(move |server| format!("{ip} . {server}"))
        })
        .collect();
    let outward = networks.iter().filter(|network| !network.internal);
    let subnets: Vec<_> = outward
        .clone()
        .map(|network| network.subnet.to_string())
        .collect();
    let internal: Vec<_> = networks
        .iter()
        .filter(|network| network.internal)
        .map(|network| format!("{:?}", network.bridge))
        .collect();
    // Frames between machines of one bridge come here too where br_netfilter is on.
    let open: String = networks
        .iter()
        .filter(|network| network.open)
        .map(|network| format!("iifname {0:?} oifname {0:?} accept\n    ", network.bridge))
        .collect();
    let private = PRIVATE.map(|(address, prefix)| format!("{address}/{prefix}"));
    let foreign = match is_router {
        true => format!("iifname != \"{PREFIX}*\" oifname != \"{PREFIX}*\" drop"),
        false => String::new(),
    };

    let mut text = String::from(CLEAR);
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "table inet pillbug {{
  set resolvers {{ type ipv4_addr . ipv4_addr; {resolvers} }}
  set subnets {{ type ipv4_addr; flags interval; {subnets} }}
  set internal {{ type ifname; {internal} }}
  set private {{ type ipv4_addr; flags interval; {private} }}
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    {open}iifname \"{PREFIX}*\" jump outward
    oifname \"{PREFIX}*\" ct state established,related accept
    oifname \"{PREFIX}*\" drop
    {foreign}
  }}
  chain outward {{
    ct state established,related accept
    meta nfproto != ipv4 drop
    iifname @internal drop
    oifname \"{PREFIX}*\" drop
    ip saddr . ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr @private reject with icmpx type admin-prohibited
    accept
  }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname \"{PREFIX}*\" ct state established,related accept
    iifname \"{PREFIX}*\" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr @subnets oifname != \"{PREFIX}*\" masquerade
  }}
}}
table bridge pillbug {{
  set pins {{ type ifname . ether_addr . ipv4_addr; {pins} }}
  chain prerouting {{
    type filter hook prerouting priority filter; policy accept;
    iifname \"pb-*\" jump machine
  }}
  chain machine {{
    ether type ip iifname . ether saddr . ip saddr @pins udp sport 67 drop
    ether type ip iifname . ether saddr . ip saddr @pins accept
    ether type arp iifname . arp saddr ether . arp saddr ip @pins iifname . ether saddr . arp saddr ip @pins accept
    drop
  }}
}}
",
        resolvers = elements(&resolvers),
        subnets = elements(&subnets),
        internal = elements(&internal),
        private = elements(&private),
        pins = elements(&pins),
    );
    text
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
pub fn first_line(said: &[u8]) -> String {
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
        let networks = [definition::example("bridge", 0), internal];
        let mut web = lease::example("web", "bridge", [10, 213, 0, 2]);
        web.servers = vec![[192, 168, 0, 1].into()];
        let rules = ruleset(&networks, &[web], false);
        for expected in [
            "elements = { \"pb-web\" . 02:70:0a:d5:00:02 . 10.213.0.2 };",
            "elements = { 10.213.0.2 . 192.168.0.1 };",
            "elements = { 10.213.0.0/24 };",
            "set internal { type ifname; elements = { \"pillbug1\" }; }",
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
