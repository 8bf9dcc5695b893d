//! `pillbug ps`: the containers there are.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    filter::{Filter, Filters},
    format::{Format, LIST_HELP},
    network_settings, units,
};
use crate::{
    container::{
        health::HealthStatus,
        state::{Containers, Record},
        status::Status,
    },
    network::Lease,
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug ps                                  running containers
  pillbug ps -a                               ended ones too
  pillbug ps -a --filter status=exited --filter label=team=web
  pillbug ps --format '{{.ID}} {{.Names}}'    these fields only
  pillbug ps --format json                    one object a line
  pillbug rm $(pillbug ps -aq)                remove all that have ended

Filters: id=, name=, label=NAME[=VALUE], status=created|running|paused|restarting|exited, exited=CODE, ancestor=IMAGE,
health=starting|healthy|unhealthy|none, network=NAME, before=CONTAINER, since=CONTAINER,
volume=NAME|FOLDER. Of several of one kind one must match, labels all.
Fields: ID, Image, Command, CreatedAt, RunningFor, State, Status, Ports, Names, Labels, Networks, Size (with --size).";

/// Longest command that is shown unless --no-trunc is given, in characters.
const SHOWN_COMMAND: usize = 20;

const COLUMNS: [(&str, &str); 7] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
];

const HEADINGS: [(&str, &str); 5] = [
    ("CreatedAt", "CREATED AT"),
    ("State", "STATE"),
    ("Labels", "LABELS"),
    ("Networks", "NETWORKS"),
    ("Size", "SIZE"),
];

/// List containers
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct PsArgs {
    /// Show containers that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole IDs and commands
    #[arg(long)]
    no_trunc: bool,
    /// Show the container that was created last
    #[arg(short, long)]
    latest: bool,
    /// Show this many containers that were created last
    #[arg(short = 'n', long, value_name = "COUNT")]
    last: Option<usize>,
    /// Show how much each has written
    #[arg(short, long)]
    size: bool,
    /// Show only what matches
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    #[arg(long, value_name = "FORMAT", default_value_t, help = LIST_HELP)]
    format: Format,
}

/// Prints the list.
pub fn run(arguments: &PsArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    let mut records = containers.list()?;
    let filters = Filters::new(&arguments.filter, &containers)?;
    let last = arguments.last.or(arguments.latest.then_some(1));
    let all = arguments.all || last.is_some() || filters.choose_status();
    records.retain(|record| (all || record.status.is_up()) && filters.matches(record));
    records.truncate(last.unwrap_or(usize::MAX));
    super::print(&render(&containers, &records, arguments)?)?;
    Ok(ExitCode::SUCCESS)
}

fn render(
    containers: &Containers,
    records: &[Record],
    arguments: &PsArgs,
) -> anyhow::Result<String> {
    if arguments.quiet {
        let ids = records.iter().map(|record| id(record, arguments.no_trunc));
        return Ok(ids.map(|id| id + "\n").collect());
    }
    let leases = network_settings::leases();
    let lines = records
        .iter()
        .map(|record| line(record, &leases, arguments.no_trunc));
    let mut lines: Vec<Value> = lines.collect();
    let mut columns = COLUMNS.to_vec();
    if arguments.size {
        columns.push(("Size", "SIZE"));
        let images = super::image_store()?.list()?;
        for (line, record) in lines.iter_mut().zip(records) {
            let image = images
                .iter()
                .find(|image| image.digest == record.spec.image_digest);
            let written = containers.disk_usage(&record.spec.id);
            let all = written + image.map_or(0, |image| image.size);
            let size = format!("{} (virtual {})", units::size(written), units::size(all));
            line["Size"] = json!(size);
        }
    }
    arguments.format.list(&columns, &HEADINGS, &lines)
}

/// One container, with the names that Docker gives these fields.
fn line(record: &Record, leases: &[Lease], no_trunc: bool) -> Value {
    let spec = &record.spec;
    let own = leases.iter().filter(|lease| lease.id == spec.id.as_str());
    let published: Vec<_> = own.flat_map(|lease| lease.published.clone()).collect();
    let networks = spec
        .network
        .endpoints
        .iter()
        .map(|one| one.network.as_str());
    let created = Timestamp::try_from(spec.created).unwrap_or_default();
    let labels: Vec<String> = spec
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    json!({
        "ID": id(record, no_trunc),
        "Image": super::escape(&spec.image),
        "Command": command(record, no_trunc),
        "CreatedAt": created.to_string(),
        "RunningFor": format!("{} ago", age(spec.created)),
        "State": record.status.word(),
        "Status": status(record),
        "Ports": network_settings::ports(&published),
        "Networks": networks.collect::<Vec<_>>().join(","),
        "Names": spec.name,
        "Labels": super::escape(&labels.join(",")),
        "Size": "",
    })
}

fn id(record: &Record, no_trunc: bool) -> String {
    let id = &record.spec.id;
    if no_trunc {
        id.to_string()
    } else {
        id.short().into()
    }
}

fn command(record: &Record, no_trunc: bool) -> String {
    let whole = super::escape(&record.spec.command().join(" ")).replace('\n', "\\n");
    if no_trunc || whole.chars().count() <= SHOWN_COMMAND {
        return format!("\"{whole}\"");
    }
    let start: String = whole.chars().take(SHOWN_COMMAND - 1).collect();
    format!("\"{start}…\"")
}

fn status(record: &Record) -> String {
    match &record.status {
        Status::Created { .. } | Status::Starting => "Created".into(),
        Status::Running(running) => {
            let remark = match record.health {
                _ if running.paused => " (Paused)",
                Some(HealthStatus::Starting) => " (health: starting)",
                Some(HealthStatus::Healthy) => " (healthy)",
                Some(HealthStatus::Unhealthy) => " (unhealthy)",
                None => "",
            };
            format!("Up {}{remark}", age(running.since))
        }
        Status::Restarting(restarting) => {
            let last = &restarting.last;
            format!("Restarting ({}) {} ago", last.code, age(last.at))
        }
        Status::Exited(exited) => format!("Exited ({}) {} ago", exited.code, age(exited.at)),
    }
}

/// How long ago. A clock that was set back has no better answer than none.
fn age(moment: SystemTime) -> String {
    units::span(moment.elapsed().unwrap_or(Duration::ZERO))
}
