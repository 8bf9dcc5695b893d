//! `pillbug images`: what is in the image store.

use std::{collections::HashSet, process::ExitCode};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::{table, units};
use crate::image::{digest::Digest, reference::Reference, store::Listed};

const EXAMPLES: &str = "\
Examples:
  pillbug images                        all images
  pillbug images busybox                those of one repository
  pillbug images -q                     IDs only
  pillbug images --format json          one JSON object a line";

/// What stands where there is nothing.
const NONE: &str = "<none>";

/// List images
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImagesArgs {
    /// Only images of this repository, or of this name where it has a tag
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    /// Columns with a heading
    #[default]
    Table,
    /// One JSON object a line
    Json,
}

/// One line: an image under one of its names. The fields are those of Docker's JSON.
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
    let wanted = arguments.name.as_deref().map(Wanted::parse).transpose()?;
    let images = super::image_store()?.list()?;
    let mut lines = Vec::new();
    for image in &images {
        let names = image.names.iter().map(Some);
        let unnamed = image.names.is_empty().then_some(None);
        for name in names.chain(unnamed) {
            if wanted
                .as_ref()
                .is_none_or(|wanted| name.is_some_and(|name| wanted.is(&name.0)))
            {
                lines.push(line(image, name, arguments.no_trunc));
            }
        }
    }
    super::print(&render(&lines, arguments)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Which names are asked for.
struct Wanted {
    name: Reference,
    tag_matters: bool,
}

impl Wanted {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let name: Reference = text.parse()?;
        let last = text.rsplit('/').next().unwrap_or_default();
        Ok(Self {
            name,
            tag_matters: last.contains([':', '@']),
        })
    }

    fn is(&self, name: &Reference) -> bool {
        if self.tag_matters {
            return *name == self.name;
        }
        (name.domain(), name.path()) == (self.name.domain(), self.name.path())
    }
}

fn line(image: &Listed, name: Option<&(Reference, Digest)>, no_trunc: bool) -> Line {
    let created = image
        .config
        .as_ref()
        .and_then(|config| config.created().as_deref()?.parse::<Timestamp>().ok());
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
        created_at: created.map_or_else(|| "N/A".into(), |created| created.to_string()),
        created_since: units::ago(created),
        size: units::size(image.size),
    }
}

fn render(lines: &[Line], arguments: &ImagesArgs) -> anyhow::Result<String> {
    let mut text = String::new();
    if arguments.quiet {
        let mut seen = HashSet::new();
        for line in lines.iter().filter(|line| seen.insert(&line.id)) {
            text.extend([&line.id, "\n"]);
        }
        return Ok(text);
    }
    if arguments.format == Format::Json {
        for line in lines {
            text.extend([&serde_json::to_string(line)?, "\n"]);
        }
        return Ok(text);
    }
    let mut head = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if arguments.digests {
        head.insert(2, "DIGEST");
    }
    let rows = lines.iter().map(|line| {
        let mut row = vec![
            &line.repository,
            &line.tag,
            &line.id,
            &line.created_since,
            &line.size,
        ];
        if arguments.digests {
            row.insert(2, &line.digest);
        }
        row.into_iter().cloned().collect()
    });
    Ok(table(&head, rows) + "\n")
}
