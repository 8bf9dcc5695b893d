//! `pillbug network ls` and `network inspect`: the networks there are and who is on them, in Docker's shape.

use std::{collections::BTreeMap, process::ExitCode, str::FromStr};

use anyhow::{Context, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::format::{Format, LIST_HELP};
use crate::network::{Definition, Lease, NetworkError, Networks};

const LIST_EXAMPLES: &str = "\
Examples:
  pillbug network ls
  pillbug network ls --filter label=team=web --format '{{.Name}}: {{.IPv6}}'
  pillbug network ls -q --filter internal=true

Filters: name=, id=, driver=, label=NAME[=VALUE], internal=true|false. Of several of one kind one must match, labels
all.
Fields: ID, Name, Driver, Scope, IPv6, Internal, Labels, CreatedAt.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  pillbug network inspect app
  pillbug network inspect -f '{{range .IPAM.Config}}{{println .Subnet}}{{end}}' app";

const COLUMNS: [(&str, &str); 4] = [
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
];

const HEADINGS: [(&str, &str); 4] = [
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

/// List networks
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub struct ListArgs {
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show only what matches
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    #[arg(long, value_name = "FORMAT", default_value_t, help = LIST_HELP)]
    format: Format,
}

/// Show everything about networks
#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub struct InspectArgs {
    /// 'json' for one line, or a Go template such as '{{.Id}}'
    #[arg(short, long)]
    format: Option<Format>,
    /// Names or IDs
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// The start of an ID.
    Id(String),
    /// A part of a name.
    Name(String),
    /// A driver.
    Driver(String),
    /// A label, and what it must be set to.
    Label(String, Option<String>),
    /// Whether there is no way out.
    Internal(bool),
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (key, value) = text
            .split_once('=')
            .with_context(|| format!("{text:?} is no filter: give KEY=VALUE"))?;
        Ok(match key {
            "id" => Self::Id(value.into()),
            "name" => Self::Name(value.into()),
            "driver" => Self::Driver(value.into()),
            "label" => match value.split_once('=') {
                Some((name, value)) => Self::Label(name.into(), Some(value.into())),
                None => Self::Label(value.into(), None),
            },
            "internal" => Self::Internal(value.parse().context("true or false")?),
            _ => bail!("{key:?} is nothing to filter by: one of id, name, driver, label, internal"),
        })
    }
}

impl Filter {
    fn is_met(&self, network: &Definition) -> bool {
        match self {
            Self::Id(start) => network.id.starts_with(start.as_str()),
            Self::Name(part) => network.name.contains(part.as_str()),
            Self::Driver(driver) => driver == network.driver(),
            Self::Label(name, value) => network
                .labels
                .get(name)
                .is_some_and(|is| value.as_ref().is_none_or(|value| value == is)),
            Self::Internal(internal) => network.internal == *internal,
        }
    }
}

/// Whether a network meets, of each kind, one condition; of labels, all.
pub fn matches(filters: &[Filter], network: &Definition) -> bool {
    let kind = std::mem::discriminant::<Filter>;
    filters.iter().all(|filter| {
        filter.is_met(network)
            || !matches!(filter, Filter::Label(..))
                && filters
                    .iter()
                    .any(|other| kind(other) == kind(filter) && other.is_met(network))
    })
}

/// Prints the list.
pub fn list(networks: &Networks, arguments: &ListArgs) -> anyhow::Result<ExitCode> {
    let all = networks.list()?;
    let shown = all
        .iter()
        .map(|(network, _)| network)
        .filter(|network| matches(&arguments.filter, network));
    let id = |network: &Definition| match arguments.no_trunc {
        true => network.id.clone(),
        false => network.short_id().to_owned(),
    };
    let text = if arguments.quiet {
        shown.map(|network| id(network) + "\n").collect()
    } else {
        let lines: Vec<Value> = shown.map(|network| line(network, &id(network))).collect();
        arguments.format.list(&COLUMNS, &HEADINGS, &lines)?
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn line(network: &Definition, id: &str) -> Value {
    let labels: Vec<String> = network
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    json!({
        "ID": id,
        "Name": network.name,
        "Driver": network.driver(),
        "Scope": "local",
        "IPv6": network.subnet6.is_some().to_string(),
        "Internal": network.internal.to_string(),
        "Labels": super::escape(&labels.join(",")),
        "CreatedAt": Timestamp::try_from(network.created).unwrap_or_default().to_string(),
    })
}

/// Prints what there is to know.
pub fn inspect(networks: &Networks, arguments: &InspectArgs) -> anyhow::Result<ExitCode> {
    let all = networks.list()?;
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for name in &arguments.networks {
        match all.iter().find(|(network, _)| network.is_called(name)) {
            Some((network, members)) => found.push(describe(network, members)),
            None => {
                super::report(&NetworkError::NotFound(name.clone()).into());
                code = ExitCode::FAILURE;
            }
        }
    }
    super::print(&Format::objects(arguments.format.as_ref(), &found)?)?;
    Ok(code)
}

fn describe(network: &Definition, members: &[Lease]) -> Value {
    let member = |lease: &Lease| {
        let four = lease
            .ip
            .map(|ip| format!("{ip}/{}", network.subnet.prefix_len()));
        let six = lease.ip6.zip(network.subnet6);
        let six = six.map(|(ip, subnet)| format!("{ip}/{}", subnet.prefix_len()));
        let entry = json!({
            "Name": lease.name,
            "MacAddress": super::network_settings::mac(lease.mac),
            "IPv4Address": four.unwrap_or_default(),
            "IPv6Address": six.unwrap_or_default(),
        });
        (lease.id.clone(), entry)
    };
    let containers: BTreeMap<String, Value> = members.iter().map(member).collect();
    let mut four = json!({ "Subnet": network.subnet, "Gateway": network.gateway });
    if let Some(range) = network.ip_range {
        four["IPRange"] = json!(range);
    }
    let six = network
        .subnet6
        .map(|subnet| json!({ "Subnet": subnet, "Gateway": network.gateway6 }));
    let config: Vec<Value> = std::iter::once(four).chain(six).collect();
    let options = match &network.parent {
        Some(parent) => json!({ "parent": parent }),
        None => json!({ "bridge": network.bridge }),
    };
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": Timestamp::try_from(network.created).unwrap_or_default().to_string(),
        "Scope": "local",
        "Driver": network.driver(),
        "EnableIPv6": network.subnet6.is_some(),
        "IPAM": { "Driver": "default", "Config": config },
        "Internal": network.internal,
        "Containers": containers,
        "Options": options,
        "Labels": network.labels,
    })
}
