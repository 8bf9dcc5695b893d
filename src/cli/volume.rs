//! `pillbug volume`: folders that outlive containers.

use std::{collections::BTreeMap, process::ExitCode, str::FromStr};

use anyhow::bail;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    format::{self, Format},
    image_prune::confirm,
    units,
};
use crate::{
    container::{error::RunError, name::Id, state::Containers, volumes},
    state_root,
    volume::{Volume, VolumeError, Volumes},
};

/// Manage volumes
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    Create(CreateArgs),
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
    Prune(PruneArgs),
}

const CREATE_EXAMPLES: &str = "\
Examples:
  pillbug volume create db-data
  pillbug run -d -v db-data:/var/lib/postgresql postgres
  pillbug volume create --label team=web      prints the name that it was given";

/// Create a volume
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub struct CreateArgs {
    /// Keep a label with the volume
    #[arg(long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// What keeps it
    #[arg(short, long, default_value = "local", value_parser = ["local"])]
    driver: String,
    /// Its name; one is made up where there is none
    name: Option<String>,
}

const LIST_EXAMPLES: &str = "\
Examples:
  pillbug volume ls
  pillbug volume ls -q --filter dangling=true       names of those that no container has
  pillbug volume ls --format '{{.Name}} {{.Mountpoint}}'

Filters: dangling=true|false, driver=local, label=NAME[=VALUE], label!=NAME[=VALUE], name=PART
Fields: .Name .Driver .Scope .Mountpoint .Labels .Links .Size";

/// List volumes
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub struct ListArgs {
    /// Only what matches
    #[arg(short, long = "filter", value_name = "NAME=VALUE")]
    filters: Vec<Filter>,
    #[arg(long, default_value_t, hide_default_value = true, help = format::LIST_HELP)]
    format: Format,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  pillbug volume inspect db-data
  pillbug volume inspect --format '{{.Mountpoint}}' db-data";

/// Show everything about volumes
#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub struct InspectArgs {
    /// 'json' for one line, or a Go template such as '{{.Mountpoint}}'
    #[arg(short, long)]
    format: Option<Format>,
    /// Their names
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  pillbug volume rm db-data
  pillbug volume rm $(pillbug volume ls -q --filter dangling=true)";

/// Remove volumes that no container has, with all that is in them
#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub struct RemoveArgs {
    /// Do not mind those that are not there
    #[arg(short, long)]
    force: bool,
    /// Their names
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  pillbug volume prune                        anonymous ones that no container has; asks first
  pillbug volume prune -a -f --filter label!=keep";

/// Remove volumes that no container has
#[derive(Debug, Args)]
#[command(after_help = PRUNE_EXAMPLES)]
pub struct PruneArgs {
    /// Those that have names, too
    #[arg(short, long)]
    all: bool,
    /// Only what matches: label=, label!=
    #[arg(long = "filter", value_name = "NAME=VALUE")]
    filters: Vec<Filter>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// One condition.
#[derive(Debug, Clone)]
pub enum Filter {
    /// No container has it, or one does.
    Dangling(bool),
    /// What keeps it.
    Driver(String),
    /// With a label, and with this value where one is given.
    Label(String, Option<String>),
    /// Without it.
    NoLabel(String, Option<String>),
    /// A part of its name.
    Name(String),
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some((key, value)) = text.split_once('=') else {
            bail!("a filter is NAME=VALUE");
        };
        let (name, of_label) = match value.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (value.to_owned(), None),
        };
        Ok(match (key, value) {
            ("dangling", "true" | "1") => Self::Dangling(true),
            ("dangling", "false" | "0") => Self::Dangling(false),
            ("driver", _) => Self::Driver(value.to_owned()),
            ("label", _) => Self::Label(name, of_label),
            ("label!", _) => Self::NoLabel(name, of_label),
            ("name", _) => Self::Name(value.to_owned()),
            _ => bail!("invalid filter '{text}'"),
        })
    }
}

impl Filter {
    fn has(&self, volume: &Volume, users: usize) -> bool {
        let labelled = |name: &str, wanted: &Option<String>| {
            let value = volume.labels.get(name);
            value.is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
        };
        match self {
            Self::Dangling(dangling) => (users == 0) == *dangling,
            Self::Driver(driver) => driver == "local",
            Self::Label(name, value) => labelled(name, value),
            Self::NoLabel(name, value) => !labelled(name, value),
            Self::Name(part) => volume.name.contains(part),
        }
    }
}

/// One volume of a list. The fields are those of Docker's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    driver: &'static str,
    labels: String,
    links: usize,
    mountpoint: String,
    name: String,
    scope: &'static str,
    size: String,
}

/// Does what the verb says.
pub fn run(verb: VolumeVerb) -> anyhow::Result<ExitCode> {
    let state_root = state_root::locate()?;
    let volumes = Volumes::open(&state_root)?;
    let containers = Containers::open(&state_root)?;
    containers.sweep()?;
    match verb {
        VolumeVerb::Create(arguments) => create(&volumes, &containers, &arguments),
        VolumeVerb::Ls(arguments) => list(&volumes, &containers, &arguments),
        VolumeVerb::Inspect(arguments) => inspect(&volumes, &arguments),
        VolumeVerb::Rm(arguments) => remove(&volumes, &containers, &arguments),
        VolumeVerb::Prune(arguments) => ask_and_prune(&volumes, &containers, &arguments),
    }
}

fn create(
    volumes: &Volumes,
    containers: &Containers,
    arguments: &CreateArgs,
) -> anyhow::Result<ExitCode> {
    let labels: BTreeMap<String, String> = arguments
        .label
        .iter()
        .map(|label| label.split_once('=').unwrap_or((label, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let held = volumes.hold()?;
    let name = arguments.name.as_deref();
    let is_new = name.is_none_or(|name| volumes.get(name).is_err());
    let created = volumes.create(&held, name, &labels)?;
    if is_new {
        volumes::record(containers.events(), &created.name, "create");
    }
    super::print(&format!("{}\n", created.name))?;
    Ok(ExitCode::SUCCESS)
}

fn list(
    volumes: &Volumes,
    containers: &Containers,
    arguments: &ListArgs,
) -> anyhow::Result<ExitCode> {
    let users = volumes::users(containers)?;
    let lines: Vec<Line> = volumes
        .list()?
        .into_iter()
        .filter_map(|volume| {
            let links = users.get(&volume.name).map_or(0, Vec::len);
            let mut filters = arguments.filters.iter();
            filters
                .all(|filter| filter.has(&volume, links))
                .then(|| line(volumes, &volume, links, "N/A".into()))
        })
        .collect();
    let text = match arguments.quiet {
        true => lines
            .iter()
            .map(|line| format!("{}\n", line.name))
            .collect(),
        false => {
            let columns = [("Driver", "DRIVER"), ("Name", "VOLUME NAME")];
            arguments.format.list(&columns, &HEADINGS, &lines)?
        }
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

const HEADINGS: [(&str, &str); 5] = [
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
];

fn line(volumes: &Volumes, volume: &Volume, links: usize, size: String) -> Line {
    let labels = volume.labels.iter();
    Line {
        driver: "local",
        labels: labels
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(","),
        links,
        mountpoint: volumes.data(&volume.name).to_string_lossy().into_owned(),
        name: volume.name.clone(),
        scope: "local",
        size,
    }
}

fn inspect(volumes: &Volumes, arguments: &InspectArgs) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut objects = Vec::new();
    for name in &arguments.names {
        match volumes.get(name) {
            Ok(volume) => objects.push(object(volumes, &volume)),
            Err(error) => {
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    super::print(&Format::objects(arguments.format.as_ref(), &objects)?)?;
    Ok(code)
}

fn object(volumes: &Volumes, volume: &Volume) -> Value {
    let created = Timestamp::try_from(volume.created).map(|created| created.to_string());
    json!({
        "CreatedAt": created.unwrap_or_default(),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volumes.data(&volume.name).to_string_lossy(),
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    })
}

fn remove(
    volumes: &Volumes,
    containers: &Containers,
    arguments: &RemoveArgs,
) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in &arguments.names {
        match volumes::remove(containers, volumes, name) {
            Ok(()) => super::print(&format!("{name}\n"))?,
            Err(RunError::Volume(VolumeError::NotFound(_))) if arguments.force => {}
            Err(error) => {
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn ask_and_prune(
    volumes: &Volumes,
    containers: &Containers,
    arguments: &PruneArgs,
) -> anyhow::Result<ExitCode> {
    let which = if arguments.all { "all" } else { "anonymous" };
    let warning =
        format!("This will remove {which} local volumes not used by at least one container.");
    if !arguments.force && !confirm(&warning)? {
        return Ok(ExitCode::SUCCESS);
    }
    let is_of_prune = |filter: &Filter| matches!(filter, Filter::Label(..) | Filter::NoLabel(..));
    if !arguments.filters.iter().all(is_of_prune) {
        bail!("what to prune is said with the filters label= and label!= only");
    }
    let (text, bytes) = prune(volumes, containers, |volume| {
        (arguments.all || volume.is_anonymous())
            && arguments.filters.iter().all(|filter| filter.has(volume, 0))
    })?;
    super::print(&format!(
        "{text}Total reclaimed space: {}\n",
        units::size(bytes)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Removes volumes that no container has; what was removed in words, and how many bytes.
pub fn prune(
    volumes: &Volumes,
    containers: &Containers,
    is_wanted: impl Fn(&Volume) -> bool,
) -> anyhow::Result<(String, u64)> {
    let (mut text, mut bytes) = (String::new(), 0);
    for volume in volumes.list()?.iter().filter(|volume| is_wanted(volume)) {
        let size = volumes.disk_usage(&volume.name)?;
        match volumes::remove(containers, volumes, &volume.name) {
            // In use, or removed by somebody else.
            Err(RunError::VolumeInUse { .. } | RunError::Volume(VolumeError::NotFound(_))) => {}
            removed => {
                removed?;
                bytes += size;
                text.push_str(&format!("{}\n", volume.name));
            }
        }
    }
    if !text.is_empty() {
        text = format!("Deleted Volumes:\n{text}\n");
    }
    Ok((text, bytes))
}

/// What `system df` says of volumes.
pub struct Usage {
    lines: Vec<Line>,
    /// How many there are, and how many of them a container has.
    pub count: usize,
    pub used: usize,
    /// Bytes of all, and of those that no container has.
    pub bytes: u64,
    pub free: u64,
}

/// Adds up what volumes take.
pub fn usage(volumes: &Volumes, users: &BTreeMap<String, Vec<Id>>) -> anyhow::Result<Usage> {
    let mut usage = Usage {
        lines: Vec::new(),
        count: 0,
        used: 0,
        bytes: 0,
        free: 0,
    };
    for volume in volumes.list()? {
        let links = users.get(&volume.name).map_or(0, Vec::len);
        let bytes = volumes.disk_usage(&volume.name)?;
        usage.count += 1;
        usage.used += usize::from(links > 0);
        usage.bytes += bytes;
        usage.free += if links == 0 { bytes } else { 0 };
        let size = units::size(bytes);
        usage.lines.push(line(volumes, &volume, links, size));
    }
    Ok(usage)
}

impl Usage {
    /// Each of them in a table.
    pub fn table(&self, format: &Format) -> anyhow::Result<String> {
        let columns = [
            ("Name", "VOLUME NAME"),
            ("Links", "LINKS"),
            ("Size", "SIZE"),
        ];
        format.list(&columns, &[], &self.lines)
    }

    /// Each of them as an object.
    pub fn objects(&self) -> serde_json::Result<Value> {
        serde_json::to_value(&self.lines)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn filters_are_read_and_fit() {
        let volume = Volume {
            name: "db-data".into(),
            created: SystemTime::now(),
            labels: BTreeMap::from([("team".into(), "web".into())]),
        };
        let fits = |text: &str| text.parse::<Filter>().unwrap().has(&volume, 1);
        for text in [
            "dangling=false",
            "driver=local",
            "label=team",
            "label=team=web",
            "label!=x",
            "name=b-d",
        ] {
            assert!(fits(text), "{text}");
        }
        for text in [
            "dangling=1",
            "driver=x",
            "label=team=x",
            "label!=team",
            "name=x",
        ] {
            assert!(!fits(text), "{text}");
        }
        for text in ["dangling=x", "x=y", "label"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}
