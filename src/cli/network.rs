//! `pillbug network`: the networks that containers are on.

use std::{collections::BTreeMap, net::Ipv4Addr, process::ExitCode};

use clap::{Args, Subcommand};
use ipnet::Ipv4Net;
use serde_json::json;

use crate::{
    container::event::Kind,
    network::{Definition, Networks, NewNetwork},
    state_root,
};

/// Manage networks
#[derive(Debug, Subcommand)]
pub enum NetworkVerb {
    Create(CreateArgs),
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    Inspect(NamesArgs),
    #[command(visible_alias = "remove")]
    Rm(NamesArgs),
    Prune(PruneArgs),
}

/// Create a network whose containers reach each other
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its addresses, such as 10.9.0.0/24
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<Ipv4Net>,
    /// The host's address on it
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<Ipv4Addr>,
    /// Give it no way out
    #[arg(long)]
    internal: bool,
    /// Keep a label with the network
    #[arg(long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// What makes it
    #[arg(short, long, default_value = "bridge", value_parser = ["bridge"])]
    driver: String,
    /// Its name
    name: String,
}

/// List networks
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// Networks by name
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// Their names
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// Remove all networks that no container is on
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Does what the verb says.
pub fn run(verb: NetworkVerb) -> anyhow::Result<ExitCode> {
    let networks = Networks::open(&state_root::locate()?)?;
    match verb {
        NetworkVerb::Create(arguments) => create(&networks, arguments),
        NetworkVerb::Ls(arguments) => list(&networks, &arguments),
        NetworkVerb::Inspect(arguments) => inspect(&networks, &arguments.names),
        NetworkVerb::Rm(arguments) => remove(&networks, &arguments.names),
        NetworkVerb::Prune(arguments) => prune(&networks, &arguments),
    }
}

fn create(networks: &Networks, arguments: CreateArgs) -> anyhow::Result<ExitCode> {
    let labels = arguments.label.iter().map(|label| {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        (name.to_owned(), value.to_owned())
    });
    let created = networks.create(NewNetwork {
        name: arguments.name,
        subnet: arguments.subnet,
        gateway: arguments.gateway,
        internal: arguments.internal,
        labels: labels.collect::<BTreeMap<_, _>>(),
    })?;
    super::record(Kind::Network, "create", &created.name);
    super::print(&format!("{}\n", created.name))?;
    Ok(ExitCode::SUCCESS)
}

fn list(networks: &Networks, arguments: &ListArgs) -> anyhow::Result<ExitCode> {
    let all = networks.list()?;
    let text = if arguments.quiet {
        all.iter()
            .map(|(network, _)| format!("{}\n", network.name))
            .collect()
    } else {
        let rows = all.iter().map(|(network, members)| {
            vec![
                network.name.clone(),
                "bridge".into(),
                network.subnet.to_string(),
                if network.internal { "internal" } else { "" }.into(),
                members.len().to_string(),
            ]
        });
        let head = ["NAME", "DRIVER", "SUBNET", "SCOPE", "CONTAINERS"];
        super::table(&head, rows) + "\n"
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(networks: &Networks, names: &[String]) -> anyhow::Result<ExitCode> {
    let all = networks.list()?;
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match all.iter().find(|(network, _)| network.name == *name) {
            Some((network, members)) => found.push(describe(network, members)),
            None => {
                let error = crate::network::NetworkError::NotFound(name.clone());
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    super::print(&format!("{}\n", serde_json::to_string_pretty(&found)?))?;
    Ok(code)
}

fn describe(network: &Definition, members: &[(String, Option<Ipv4Addr>)]) -> serde_json::Value {
    let members: serde_json::Map<_, _> = members
        .iter()
        .map(|(name, ip)| (name.clone(), json!({ "IPv4Address": ip })))
        .collect();
    json!({
        "Name": network.name,
        "Driver": "bridge",
        "Internal": network.internal,
        "IPAM": { "Config": [{ "Subnet": network.subnet, "Gateway": network.gateway }] },
        "Containers": members,
        "Labels": network.labels,
    })
}

fn remove(networks: &Networks, names: &[String]) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match networks.remove(name) {
            Ok(()) => {
                super::record(Kind::Network, "destroy", name);
                super::print(&format!("{name}\n"))?;
            }
            Err(error) => {
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn prune(networks: &Networks, arguments: &PruneArgs) -> anyhow::Result<ExitCode> {
    if !arguments.force {
        anyhow::bail!("this removes every network that no container is on: say --force");
    }
    let idle = networks.list()?.into_iter();
    let idle = idle.filter(|(_, members)| members.is_empty());
    let names: Vec<String> = idle.map(|(network, _)| network.name).collect();
    remove(networks, &names)
}
