//! `pillbug images`: what is in the image store.

use std::{collections::HashSet, process::ExitCode};

use clap::Args;
use glob::Pattern;
use serde::Serialize;

use super::{
    format::{self, Format},
    image_filter::{self, Filter, Wanted},
    units,
};
use crate::image::{digest::Digest, reference::Reference, store::Listed};

const EXAMPLES: &str = "\
Examples:
  pillbug images                                   all images
  pillbug images busybox                           those of one repository
  pillbug images 'registry.lan:5000/*/*'           those of one registry
  pillbug images -f dangling=true -q               IDs of those that have lost their names
  pillbug images -f until=24h -f label=team=web    older than a day, with a label
  pillbug images --format '{{.Repository}}:{{.Tag}} {{.Size}}'

Filters: dangling=true|false, label=NAME[=VALUE], label!=NAME[=VALUE], before=IMAGE, since=IMAGE,
reference=PATTERN, until=TIME|DURATION.
Fields: .Repository .Tag .Digest .ID .CreatedAt .CreatedSince .Size";

/// What stands where there is nothing.
const NONE: &str = "<none>";

/// List images
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImagesArgs {
    /// Only images called like this; * and ? stand for what they do in a shell
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<Pattern>,
    /// For scripts made for Docker: all images are shown in any case
    #[arg(short, long)]
    all: bool,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Only images with these properties
    #[arg(short, long = "filter", value_name = "NAME=VALUE")]
    filters: Vec<Filter>,
    #[arg(long, default_value_t, hide_default_value = true, help = format::LIST_HELP)]
    format: Format,
}

/// One line: an image under one of its names. The fields are those of Docker's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    repository: String,
    tag: String,
    digest: String,
    #[serde(rename = "ID")]
    id: String,
    created_at: String,
    created_since: String,
    size: String,
}

/// Prints the list.
pub fn run(arguments: &ImagesArgs) -> anyhow::Result<ExitCode> {
    let store = super::image_store()?;
    let wanted = Wanted::new(&arguments.filters, &store)?;
    let called = |name: Option<&Reference>| match (&arguments.name, name) {
        (None, _) => true,
        (Some(pattern), Some(name)) => image_filter::is_called(name, pattern),
        (Some(_), None) => false,
    };
    let mut lines = Vec::new();
    for image in store.list()?.iter().filter(|image| wanted.has(image)) {
        let names = image.names.iter().map(Some);
        let unnamed = image.names.is_empty().then_some(None);
        for name in names.chain(unnamed) {
            let reference = name.map(|name| &name.0);
            if called(reference) && wanted.has_name(reference) {
                lines.push(line(image, name, arguments.no_trunc));
            }
        }
    }
    super::print(&render(&lines, arguments)?)?;
    Ok(ExitCode::SUCCESS)
}

fn line(image: &Listed, name: Option<&(Reference, Digest)>, no_trunc: bool) -> Line {
    let created = image_filter::created(image);
    let (repository, tag, digest) = match name {
        Some((name, digest)) => (
            name.familiar_name(),
            name.tag().unwrap_or(NONE).into(),
            digest.to_string(),
        ),
        None => (NONE.into(), NONE.into(), image.digest.to_string()),
    };
    Line {
        repository,
        tag,
        digest,
        id: if no_trunc {
            image.id.to_string()
        } else {
            image.id.short()
        },
        created_at: units::moment(created),
        created_since: units::ago(created),
        size: units::size(image.size),
    }
}

fn render(lines: &[Line], arguments: &ImagesArgs) -> anyhow::Result<String> {
    if arguments.quiet {
        let mut seen = HashSet::new();
        let distinct = lines.iter().filter(|line| seen.insert(&line.id));
        return Ok(distinct.map(|line| format!("{}\n", line.id)).collect());
    }
    let mut columns = vec![
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
    ];
    let further = [("Digest", "DIGEST"), ("CreatedAt", "CREATED AT")];
    if arguments.digests {
        columns.insert(2, further[0]);
    }
    arguments.format.list(&columns, &further, lines)
}
