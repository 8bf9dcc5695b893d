//! What `inspect` and `ps` say of a container's networks and ports, in Docker's shape.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    network::{Definition, Lease, Networks, Published},
    state_root,
};

/// What there is to see of networks; nothing where it cannot be read, which is no reason to show nothing else.
fn glance() -> (Vec<Definition>, Vec<Lease>) {
    let networks = state_root::locate()
        .ok()
        .and_then(|root| Networks::open(&root).ok());
    networks
        .and_then(|networks| networks.glance().ok())
        .unwrap_or_default()
}

/// The leases of all containers that run.
pub fn leases() -> Vec<Lease> {
    glance().1
}

/// `NetworkSettings` of the container with this ID.
pub fn of(id: &str) -> Value {
    let (networks, mut leases) = glance();
    leases.retain(|lease| lease.id == id);
    settings(&leases, &networks)
}

/// `NetworkSettings`, from the container's leases and the networks they are of.
fn settings(leases: &[Lease], networks: &[Definition]) -> Value {
    let mut ports: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in leases.iter().flat_map(|lease| &lease.published) {
        let bindings = ports
            .entry(format!("{}/{}", port.container, port.protocol))
            .or_default();
        bindings.push(json!({
            "HostIp": port.host.ip().to_string(),
            "HostPort": port.host.port().to_string(),
        }));
    }
    let ended =
        json!({ "IPAddress": "", "Gateway": "", "MacAddress": "", "GlobalIPv6Address": "" });
    let all: Map<String, Value> = leases
        .iter()
        .map(|lease| (lease.network.clone(), endpoint(lease, networks)))
        .collect();
    let first = leases
        .first()
        .map_or(ended, |lease| endpoint(lease, networks));
    json!({
        "Ports": ports,
        "IPAddress": first["IPAddress"],
        "Gateway": first["Gateway"],
        "MacAddress": first["MacAddress"],
        "GlobalIPv6Address": first["GlobalIPv6Address"],
        "Networks": all,
    })
}

fn endpoint(lease: &Lease, networks: &[Definition]) -> Value {
    let network = networks
        .iter()
        .find(|network| network.name == lease.network);
    let text = |value: Option<String>| value.unwrap_or_default();
    let six = network.and_then(|network| network.subnet6);
    json!({
        "NetworkID": text(network.map(|network| network.id.clone())),
        "Aliases": lease.aliases,
        "DNSNames": names(lease, network),
        "MacAddress": mac(lease.mac),
        "IPAddress": text(lease.ip.map(|ip| ip.to_string())),
        "IPPrefixLen": network.map_or(0, |network| network.subnet.prefix_len()),
        "Gateway": text(network.map(|network| network.gateway.to_string())),
        "GlobalIPv6Address": text(lease.ip6.map(|ip| ip.to_string())),
        "GlobalIPv6PrefixLen": six.map_or(0, |subnet| subnet.prefix_len()),
        "IPv6Gateway": text(network.and_then(|network| Some(network.gateway6?.to_string()))),
    })
}

/// What others on the network call it.
fn names(lease: &Lease, network: Option<&Definition>) -> Vec<String> {
    match network {
        Some(network) if network.open => {
            let short = lease.id.get(..12).unwrap_or(&lease.id);
            [lease.name.clone(), short.to_owned()]
                .into_iter()
                .chain(lease.aliases.iter().cloned())
                .collect()
        }
        _ => Vec::new(),
    }
}

/// As Docker writes published ports in lists.
pub fn ports(published: &[Published]) -> String {
    let words: Vec<String> = published
        .iter()
        .map(|port| format!("{}->{}/{}", port.host, port.container, port.protocol))
        .collect();
    words.join(", ")
}

/// Of a network device.
pub fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}
