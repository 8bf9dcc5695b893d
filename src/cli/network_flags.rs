//! The flags of `run` and `create` that are about networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, bail};
use clap::Args;
use protocol::HostEntry;
use vmm::NetLimits;

use crate::{
    container::{
        limits,
        network::{HOST_GATEWAY, NetworkSpec},
    },
    network::{
        self, Endpoint, NONE,
        port::{self, Publish},
    },
};

/// The flags.
#[derive(Debug, Args)]
pub struct NetworkFlags {
    /// Network: bridge (root only), user, host, none, or one of `pillbug network create`; again for a further one
    #[arg(long, visible_alias = "net", value_name = "NETWORK[,OPTION=VALUE]", value_parser = endpoint)]
    network: Vec<Endpoint>,
    /// A further name of the container on its network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", value_parser = name)]
    network_alias: Vec<String>,
    /// Publish a port, on 127.0.0.1 unless an address is given, such as 8080:80 or [::1]:8080:80
    #[arg(short, long, value_name = "[ADDRESS:][HOST:]PORT[/udp]", value_parser = publish)]
    publish: Vec<Ports>,
    /// Publish every port that the image exposes, on any free port of 127.0.0.1
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// IPv4 address in the network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// IPv6 address in the network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
    /// MAC address, such as 02:70:00:00:00:01
    #[arg(long, value_name = "ADDRESS", value_parser = mac)]
    mac_address: Option<Mac>,
    /// Name server in place of the host's
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<Ipv4Addr>,
    /// Domain in which names are looked up
    #[arg(long, value_name = "DOMAIN", value_parser = word)]
    dns_search: Vec<String>,
    /// Option of the resolver, such as ndots:2
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION", value_parser = word)]
    dns_option: Vec<String>,
    /// Add a name to /etc/hosts; for the address host-gateway, this host's, which the container reaches then
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host)]
    add_host: Vec<HostEntry>,
    /// Limit what the container receives from its networks, in bytes a second, such as 10mb
    #[arg(long, value_name = "RATE", value_parser = limits::at_least_one)]
    net_rx_rate: Option<u64>,
    /// Limit what the container sends to its networks, in bytes a second
    #[arg(long, value_name = "RATE", value_parser = limits::at_least_one)]
    net_tx_rate: Option<u64>,
}

/// What one `-p` names.
#[derive(Debug, Clone)]
struct Ports(Vec<Publish>);

/// Of a network device.
#[derive(Debug, Clone, Copy)]
struct Mac([u8; 6]);

/// What the flags mean.
pub struct NetworkRequest {
    /// The network.
    pub network: NetworkSpec,
    /// Domains of the resolver.
    pub dns_search: Vec<String>,
    /// Its options.
    pub dns_options: Vec<String>,
    /// Further lines of `/etc/hosts`.
    pub extra_hosts: Vec<HostEntry>,
}

impl NetworkFlags {
    /// As meant; tells what one might not expect.
    pub fn into_request(self) -> anyhow::Result<NetworkRequest> {
        let publish: Vec<Publish> = self.publish.into_iter().flat_map(|ports| ports.0).collect();
        let limits = NetLimits {
            receive_bytes: self.net_rx_rate,
            transmit_bytes: self.net_tx_rate,
        };
        let endpoints = endpoints(
            self.network,
            &Endpoint {
                network: String::new(),
                aliases: self.network_alias,
                ip: self.ip,
                ip6: self.ip6,
                mac: self.mac_address.map(|mac| mac.0),
            },
            !publish.is_empty() || self.publish_all || limits != NetLimits::default(),
        )?;
        if limits != NetLimits::default() && endpoints.iter().all(|one| one.network == NONE) {
            bail!(
                "a container without a network has nothing that --net-rx-rate and --net-tx-rate could limit"
            );
        }
        for port in publish.iter().filter(|port| port.address.is_none()) {
            let at = port.host.map_or_else(
                || "a free port of 127.0.0.1 (`pillbug port` shows it)".to_owned(),
                |host| format!("127.0.0.1:{host}"),
            );
            super::tell(&format!(
                "pillbug: publishing {}/{} on {at}; give an address, such as 0.0.0.0, for others\n",
                port.container, port.protocol,
            ));
        }
        Ok(NetworkRequest {
            network: NetworkSpec {
                endpoints,
                publish,
                publish_all: self.publish_all,
                host_gateway: self
                    .add_host
                    .iter()
                    .any(|host| host.address == HOST_GATEWAY),
                dns: self.dns,
                limits,
            },
            dns_search: self.dns_search,
            dns_options: self.dns_option,
            extra_hosts: self.add_host,
        })
    }
}

/// The endpoints that are meant: those of `--network`, where the other flags are about the first one.
fn endpoints(
    mut given: Vec<Endpoint>,
    first: &Endpoint,
    is_published: bool,
) -> anyhow::Result<Vec<Endpoint>> {
    if given.is_empty() {
        given.push(Endpoint::default());
    }
    let is_needed = is_published || *first != Endpoint::default() || given.len() > 1;
    for (position, endpoint) in given.iter_mut().enumerate() {
        let network = Some(&*endpoint.network).filter(|name| !name.is_empty());
        endpoint.network = choose(network, is_needed)?;
        if position == 0 {
            endpoint.aliases.extend(first.aliases.iter().cloned());
            endpoint.ip = first.ip.or(endpoint.ip);
            endpoint.ip6 = first.ip6.or(endpoint.ip6);
            endpoint.mac = first.mac.or(endpoint.mac);
        }
    }
    Ok(given)
}

/// A network, or as Docker writes one with more to say of it: `name=NETWORK,alias=NAME,ip=ADDRESS`.
fn endpoint(text: &str) -> anyhow::Result<Endpoint> {
    let mut endpoint = Endpoint::default();
    if !text.contains(['=', ',']) {
        endpoint.network = text.into();
        return Ok(endpoint);
    }
    for part in text.split(',') {
        match part.split_once('=') {
            None | Some(("name", _)) if endpoint.network.is_empty() => {
                endpoint.network = part.strip_prefix("name=").unwrap_or(part).into();
            }
            Some(("alias", alias)) => endpoint.aliases.push(name(alias)?),
            Some(("ip", ip)) => endpoint.ip = Some(ip.parse().context("of ip=")?),
            Some(("ip6", ip)) => endpoint.ip6 = Some(ip.parse().context("of ip6=")?),
            Some(("mac-address", address)) => endpoint.mac = Some(mac(address)?.0),
            _ => bail!(
                "{part:?} is none of name=, alias=, ip=, ip6= and mac-address=, each after a comma"
            ),
        }
    }
    match endpoint.network.is_empty() {
        true => bail!("it names no network"),
        false => Ok(endpoint),
    }
}

/// A name that can be asked for: labels of up to 63 letters, digits, hyphens and underscores (RFC 1035, 2.3.4).
pub fn name(text: &str) -> anyhow::Result<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(is_plain);
    match text.len() <= 253 && text.split('.').all(is_label) {
        true => Ok(text.to_owned()),
        false => bail!("it is no name: letters, digits, `-` and `_`, with dots between"),
    }
}

/// The network that is meant.
fn choose(given: Option<&str>, is_needed: bool) -> anyhow::Result<String> {
    match given {
        Some("overlay" | "macvlan") => bail!("a network is given by its name, not by its driver"),
        Some(NONE) if is_needed => {
            bail!("without a network there is no address, no name and no port to publish")
        }
        Some(name) if name != "default" => return Ok(name.to_owned()),
        _ => {}
    }
    let (name, reason) = network::default_network();
    if let Some(reason) = reason {
        if is_needed {
            bail!("there is no network for it: {reason}");
        }
        super::tell(&format!(
            "pillbug: the container has no network: {reason}, or say --network none\n"
        ));
    }
    Ok(name.to_owned())
}

fn publish(text: &str) -> Result<Ports, port::PortError> {
    port::parse(text).map(Ports)
}

/// Six bytes in hexadecimal, of one machine and not of a group.
fn mac(text: &str) -> anyhow::Result<Mac> {
    let bytes: Vec<u8> = text
        .split([':', '-'])
        .map(|byte| match byte.len() {
            2 => u8::from_str_radix(byte, 16).context("not hexadecimal"),
            _ => bail!("not two digits"),
        })
        .collect::<anyhow::Result<_>>()?;
    match <[u8; 6]>::try_from(bytes) {
        Ok(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Mac(mac)),
        _ => bail!("it is no MAC address of one machine, such as 02:70:00:00:00:01"),
    }
}

/// What is one word of a configuration file and nothing more.
fn word(text: &str) -> anyhow::Result<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => bail!("it may have letters, digits, `.`, `_`, `-` and `:` only"),
    }
}

fn host(text: &str) -> anyhow::Result<HostEntry> {
    let Some((name, address)) = text.split_once([':', '=']) else {
        bail!("it is no NAME:ADDRESS");
    };
    let address = match address {
        HOST_GATEWAY => address.to_owned(),
        address => address
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .context("the address is none")?
            .to_string(),
    };
    Ok(HostEntry {
        address,
        name: word(name)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_given_by_name_or_with_more_to_say() {
        assert_eq!(endpoint("app").unwrap().network, "app");
        let whole =
            "name=app,alias=db,alias=data,ip=10.9.0.7,ip6=fd00::7,mac-address=02:00:00:00:00:07";
        let expected = Endpoint {
            network: "app".into(),
            aliases: vec!["db".into(), "data".into()],
            ip: Some([10, 9, 0, 7].into()),
            ip6: Some("fd00::7".parse().unwrap()),
            mac: Some([2, 0, 0, 0, 0, 7]),
        };
        assert_eq!(endpoint(whole).unwrap(), expected);
        let both = endpoints(
            vec![endpoint(whole).unwrap(), endpoint("b").unwrap()],
            &Endpoint {
                aliases: vec!["x".into()],
                ip: Some([10, 9, 0, 8].into()),
                ..Endpoint::default()
            },
            false,
        )
        .unwrap();
        assert_eq!(both[0].aliases, ["db", "data", "x"]);
        assert_eq!((both[0].ip, both[1].ip), (Some([10, 9, 0, 8].into()), None));
        for text in [
            "alias=x",
            "app,ip=x",
            "app,alias=a b",
            "app,alias=",
            "app,more=1",
            "app,db",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_and_hosts_are_read_or_refused() {
        assert_eq!(mac("02:70:00:00:00:0a").unwrap().0, [2, 0x70, 0, 0, 0, 10]);
        for text in [
            "",
            "02:70:00:00:00",
            "03:70:00:00:00:01",
            "0:0:0:0:0:0",
            "zz:70:00:00:00:01",
        ] {
            assert!(mac(text).is_err(), "{text}");
        }
        assert_eq!(host("db:10.0.0.7").unwrap().address, "10.0.0.7");
        assert_eq!(host("db:[fd00::1]").unwrap().address, "fd00::1");
        for text in [
            "db",
            "db:",
            "db:x",
            "a b:10.0.0.1",
            "a\n:10.0.0.1",
            ":10.0.0.1",
        ] {
            assert!(host(text).is_err(), "{text}");
        }
        assert!(word("ndots:2").is_ok());
        assert!(word("a\nnameserver 1.1.1.1").is_err());
    }
}
