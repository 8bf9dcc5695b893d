//! `pillbug system df`: what takes how much disk.

use std::{collections::HashMap, process::ExitCode};

use clap::Args;
use serde::Serialize;

use super::{
    format::{self, Format},
    image_filter, units, volume,
};
use crate::{
    container::{
        state::{Containers, Record},
        volumes,
    },
    image::{digest::Digest, reference::Reference, store::Usage},
    state_root,
    volume::Volumes,
};

const EXAMPLES: &str = "\
Examples:
  pillbug system df
  pillbug system df -v                                     each image, container and volume
  pillbug system df --format '{{.Type}} {{.Reclaimable}}'

An image takes more than `images` says: that is the root file system alone, this counts the
layers as they came, too, which are kept for push and save. What several images share is
counted once in the total.
Fields: .Type .TotalCount .Active .Size .Reclaimable";

/// Show how much disk is taken
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DfArgs {
    /// Show each image, container and volume
    #[arg(short, long)]
    verbose: bool,
    #[arg(long, default_value_t, hide_default_value = true, help = format::LIST_HELP)]
    format: Format,
}

/// One kind of thing. The fields are those of Docker's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    r#type: &'static str,
    total_count: usize,
    active: usize,
    size: String,
    reclaimable: String,
}

impl Line {
    fn new(r#type: &'static str, total_count: usize, active: usize, bytes: u64, free: u64) -> Self {
        let share = (free * 100).checked_div(bytes).unwrap_or(0);
        Self {
            r#type,
            total_count,
            active,
            size: units::size(bytes),
            reclaimable: format!("{} ({share}%)", units::size(free)),
        }
    }
}

/// One image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ImageLine {
    repository: String,
    tag: String,
    #[serde(rename = "ID")]
    id: String,
    created_since: String,
    size: String,
    shared_size: String,
    unique_size: String,
    containers: usize,
}

/// One container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerLine {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    size: String,
    names: String,
}

/// What there is to report on.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    images: Vec<ImageLine>,
    containers: Vec<ContainerLine>,
    volumes: serde_json::Value,
}

/// Adds up and prints.
pub fn run(arguments: &DfArgs) -> anyhow::Result<ExitCode> {
    let root = state_root::locate()?;
    let containers = Containers::open(&root)?;
    let records: Vec<(Record, u64)> = containers
        .list()?
        .into_iter()
        .map(|record| {
            let bytes = containers.disk_usage(&record.spec.id);
            (record, bytes)
        })
        .collect();
    let mut users: HashMap<Digest, usize> = HashMap::new();
    for (record, _) in &records {
        *users.entry(record.spec.image_digest).or_default() += 1;
    }
    let volumes = volume::usage(&Volumes::open(&root)?, &volumes::users(&containers)?)?;
    let usage = super::image_store()?.usage(|image| users.contains_key(&image.digest))?;
    super::print(&if arguments.verbose {
        verbose(&usage, &records, &users, &volumes, &arguments.format)?
    } else {
        summary(&usage, &records, &users, &volumes, &arguments.format)?
    })?;
    Ok(ExitCode::SUCCESS)
}

fn summary(
    usage: &Usage,
    records: &[(Record, u64)],
    users: &HashMap<Digest, usize>,
    volumes: &volume::Usage,
    format: &Format,
) -> anyhow::Result<String> {
    let used = usage.images.iter();
    let used = used.filter(|part| users.contains_key(&part.image.digest));
    let is_running = |record: &Record| record.status.is_up();
    let idle = records.iter().filter(|(record, _)| !is_running(record));
    let idle: u64 = idle.map(|(_, bytes)| bytes).sum();
    let running = records
        .iter()
        .filter(|(record, _)| is_running(record))
        .count();
    let bytes = records.iter().map(|(_, bytes)| bytes).sum();
    let lines = [
        Line::new(
            "Images",
            usage.images.len(),
            used.count(),
            usage.bytes,
            usage.reclaimable,
        ),
        Line::new("Containers", records.len(), running, bytes, idle),
        Line::new(
            "Local Volumes",
            volumes.count,
            volumes.used,
            volumes.bytes,
            volumes.free,
        ),
    ];
    let columns = [
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ];
    format.list(&columns, &[], &lines)
}

fn verbose(
    usage: &Usage,
    records: &[(Record, u64)],
    users: &HashMap<Digest, usize>,
    volumes: &volume::Usage,
    format: &Format,
) -> anyhow::Result<String> {
    let images = usage.images.iter().map(|part| {
        let name = part.image.names.first().map(|(name, _)| name);
        ImageLine {
            repository: name.map_or("<none>".into(), Reference::familiar_name),
            tag: name.and_then(|name| name.tag()).unwrap_or("<none>").into(),
            id: part.image.id.short(),
            created_since: units::ago(image_filter::created(&part.image)),
            size: units::size(part.bytes),
            shared_size: units::size(part.shared),
            unique_size: units::size(part.bytes - part.shared),
            containers: users.get(&part.image.digest).copied().unwrap_or(0),
        }
    });
    let containers = records.iter().map(|(record, bytes)| ContainerLine {
        id: record.spec.id.short().into(),
        image: record.spec.image.clone(),
        size: units::size(*bytes),
        names: record.spec.name.clone(),
    });
    let report = Report {
        images: images.collect(),
        containers: containers.collect(),
        volumes: volumes.objects()?,
    };
    if !matches!(format, Format::Table(None)) {
        return format.list(&[], &[], &[report]);
    }
    let images = format.list(
        &[
            ("Repository", "REPOSITORY"),
            ("Tag", "TAG"),
            ("ID", "IMAGE ID"),
            ("CreatedSince", "CREATED"),
            ("Size", "SIZE"),
            ("SharedSize", "SHARED SIZE"),
            ("UniqueSize", "UNIQUE SIZE"),
            ("Containers", "CONTAINERS"),
        ],
        &[],
        &report.images,
    )?;
    let containers = format.list(
        &[
            ("ID", "CONTAINER ID"),
            ("Image", "IMAGE"),
            ("Size", "SIZE"),
            ("Names", "NAMES"),
        ],
        &[],
        &report.containers,
    )?;
    Ok(format!(
        "Images space usage:\n\n{images}\nContainers space usage:\n\n{containers}\n\
         Local Volumes space usage:\n\n{}",
        volumes.table(format)?
    ))
}
