//! `pillbug network`: the networks that containers are on.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use ipnet::{IpNet, Ipv4Net};

use super::{
    image_prune::confirm,
    network_flags,
    network_list::{Filter, InspectArgs, ListArgs, inspect, list, matches},
};
use crate::{
    container::{self, event::Kind, network::MembershipError, state::Containers},
    network::{Definition, Endpoint, NetworkError, Networks, NewNetwork},
    state_root,
};

const MACVLAN: &str = "macvlan";

const CREATE_EXAMPLES: &str = "\
Examples:
  pillbug network create app
  pillbug network create --ipv6 --subnet 10.9.0.0/24 --subnet fd00:9::/64 app
  pillbug network create --internal vault     no way out, and nobody to ask for outside names
  pillbug network create -d macvlan -o parent=eth0 --subnet 192.168.0.0/24 --ip-range 192.168.0.192/27 lan
  pillbug run -d --name db --network app postgresql
  pillbug run --rm --network app client db    finds it by its name

With root it is a bridge of the host's. Without, it is a process that starts with the first container and ends with the
last; for the way out each container has a passt of its own.

Containers of a macvlan network (root only) are on the network of an interface of the host's, as hosts of their own: whoever
is there reaches what they listen on. Its gateway is the first address of the subnet unless another is given.";

const CONNECT_EXAMPLES: &str = "\
Examples:
  pillbug stop web
  pillbug network connect --alias www app web
  pillbug start web

A machine has the network devices that it started with: a container that runs must be stopped first.";

/// Manage networks
#[derive(Debug, Subcommand)]
pub enum NetworkVerb {
    Create(CreateArgs),
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
    Connect(ConnectArgs),
    Disconnect(DisconnectArgs),
    Prune(PruneArgs),
}

/// Create a network whose containers reach each other
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub struct CreateArgs {
    /// Its addresses, such as 10.9.0.0/24; again for those of IPv6
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<IpNet>,
    /// The host's address on it; again for that of IPv6
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Where in the subnet containers get theirs
    #[arg(long, value_name = "RANGE")]
    ip_range: Option<Ipv4Net>,
    /// Give it addresses of IPv6, too
    #[arg(long)]
    ipv6: bool,
    /// Give it no way out
    #[arg(long)]
    internal: bool,
    /// Keep a label with the network
    #[arg(long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// What makes it: bridge, which is a process without root, or macvlan
    #[arg(short, long, default_value = "bridge", value_parser = driver)]
    driver: String,
    /// Option of the driver: parent=INTERFACE for macvlan
    #[arg(short, long = "opt", value_name = "NAME=VALUE")]
    options: Vec<String>,
    /// Its name
    name: String,
}

/// Remove networks
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pillbug network rm app")]
pub struct RemoveArgs {
    /// No error for one that is not there
    #[arg(short, long)]
    force: bool,
    /// Their names or IDs
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// Put a container that is not running on a further network
#[derive(Debug, Args)]
#[command(after_help = CONNECT_EXAMPLES)]
pub struct ConnectArgs {
    /// A further name of the container there
    #[arg(long, value_name = "NAME", value_parser = network_flags::name)]
    alias: Vec<String>,
    /// IPv4 address there
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// IPv6 address there
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
    /// The network
    network: String,
    /// The container
    container: String,
}

/// Take a container that is not running off a network
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pillbug network disconnect app web")]
pub struct DisconnectArgs {
    /// No error where it is not on it
    #[arg(short, long)]
    force: bool,
    /// The network
    network: String,
    /// The container
    container: String,
}

/// Remove all networks that no container is on
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pillbug network prune --filter label=ci")]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only what matches, as in `network ls`
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
}

/// Does what the verb says.
pub fn run(verb: NetworkVerb) -> anyhow::Result<ExitCode> {
    let networks = Networks::open(&state_root::locate()?)?;
    match verb {
        NetworkVerb::Create(arguments) => create(&networks, arguments),
        NetworkVerb::Ls(arguments) => list(&networks, &arguments),
        NetworkVerb::Inspect(arguments) => inspect(&networks, &arguments),
        NetworkVerb::Rm(arguments) => remove(&networks, &arguments),
        NetworkVerb::Connect(arguments) => connect(&networks, arguments),
        NetworkVerb::Disconnect(arguments) => disconnect(&networks, &arguments),
        NetworkVerb::Prune(arguments) => prune(&networks, &arguments),
    }
}

fn create(networks: &Networks, arguments: CreateArgs) -> anyhow::Result<ExitCode> {
    let labels = arguments.label.iter().map(|label| {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        (name.to_owned(), value.to_owned())
    });
    let (subnet, subnet6) = one_each(arguments.subnet.into_iter().map(|subnet| match subnet {
        IpNet::V4(subnet) => Ok(subnet),
        IpNet::V6(subnet) => Err(subnet),
    }))
    .context("of --subnet")?;
    let (gateway, gateway6) =
        one_each(arguments.gateway.into_iter().map(|gateway| match gateway {
            IpAddr::V4(gateway) => Ok(gateway),
            IpAddr::V6(gateway) => Err(gateway),
        }))
        .context("of --gateway")?;
    let parent = parent(&arguments.driver, &arguments.options)?;
    let created = networks.create(NewNetwork {
        parent,
        name: arguments.name,
        subnet,
        gateway,
        ip_range: arguments.ip_range,
        ipv6: arguments.ipv6,
        subnet6,
        gateway6,
        internal: arguments.internal,
        labels: labels.collect::<BTreeMap<_, _>>(),
    })?;
    super::record(Kind::Network, "create", &created.name);
    super::print(&format!("{}\n", created.id))?;
    Ok(ExitCode::SUCCESS)
}

/// At most one of each kind.
fn one_each<A, B>(
    given: impl IntoIterator<Item = Result<A, B>>,
) -> anyhow::Result<(Option<A>, Option<B>)> {
    let (mut first, mut second) = (None, None);
    for one in given {
        let is_further = match one {
            Ok(one) => first.replace(one).is_some(),
            Err(one) => second.replace(one).is_some(),
        };
        if is_further {
            bail!("a network has one of IPv4 and one of IPv6 at most");
        }
    }
    Ok((first, second))
}

fn connect(networks: &Networks, arguments: ConnectArgs) -> anyhow::Result<ExitCode> {
    let network = networks.find(&arguments.network)?.name;
    let containers = Containers::open(&state_root::locate()?)?;
    let id = containers.find(&arguments.container)?;
    let endpoint = Endpoint {
        network,
        aliases: arguments.alias,
        ip: arguments.ip,
        ip6: arguments.ip6,
        mac: None,
    };
    container::network::join(&containers, &id, endpoint)?;
    Ok(ExitCode::SUCCESS)
}

fn disconnect(networks: &Networks, arguments: &DisconnectArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    let id = containers.find(&arguments.container)?;
    // One that is gone can be left, too.
    let network = match networks.find(&arguments.network) {
        Ok(found) => found.name,
        Err(_) => arguments.network.clone(),
    };
    match container::network::leave(&containers, &id, &network) {
        Err(MembershipError::NotOn { .. }) if arguments.force => Ok(ExitCode::SUCCESS),
        left => {
            left?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn remove(networks: &Networks, arguments: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in &arguments.names {
        match networks.remove(name) {
            Ok(()) => {
                super::record(Kind::Network, "destroy", name);
                super::print(&format!("{name}\n"))?;
            }
            Err(NetworkError::NotFound(_)) if arguments.force => {}
            Err(error) => {
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn prune(networks: &Networks, arguments: &PruneArgs) -> anyhow::Result<ExitCode> {
    if !arguments.force && !confirm("This will remove all networks that no container is on.")? {
        return Ok(ExitCode::SUCCESS);
    }
    let containers = Containers::open(&state_root::locate()?)?.list()?;
    let is_named = |network: &Definition| {
        let mut endpoints = containers
            .iter()
            .flat_map(|one| &one.spec.network.endpoints);
        endpoints.any(|endpoint| endpoint.network == network.name)
    };
    let mut removed = String::new();
    for (network, members) in networks.list()? {
        let is_idle = members.is_empty() && !is_named(&network) && network.open;
        if is_idle && matches(&arguments.filter, &network) {
            networks.remove(&network.name)?;
            super::record(Kind::Network, "destroy", &network.name);
            removed += &format!("{}\n", network.name);
        }
    }
    if !removed.is_empty() {
        super::print(&format!("Deleted Networks:\n{removed}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The interface that a macvlan network is on; for other networks there is none.
fn parent(driver: &str, options: &[String]) -> anyhow::Result<Option<String>> {
    let mut parent = None;
    for option in options {
        match option.split_once('=') {
            Some(("parent", name)) if driver == MACVLAN => parent = Some(name.to_owned()),
            // The only one there is.
            Some(("macvlan_mode", "bridge")) if driver == MACVLAN => {}
            _ => bail!("driver {driver} has no option {option:?}"),
        }
    }
    match driver == MACVLAN && parent.is_none() {
        true => bail!("say whose network it is, with -o parent=INTERFACE"),
        false => Ok(parent),
    }
}

/// The driver of a network that is made.
fn driver(text: &str) -> anyhow::Result<String> {
    match text {
        "bridge" | MACVLAN => Ok(text.into()),
        "overlay" => bail!(
            "a network over several hosts is a cluster engine's: pillbug knows its own host alone"
        ),
        "ipvlan" => bail!(
            "machines have MAC addresses of their own: use macvlan, or bridge and publish ports"
        ),
        "host" | "none" | "null" | "user" => {
            bail!("there is one of it already: say --network with it")
        }
        _ => bail!("there are two drivers, bridge and macvlan"),
    }
}
