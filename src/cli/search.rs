//! `pillbug search`: images of a registry by a part of their names.

use std::{process::ExitCode, str::FromStr};

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::format::{self, Format};
use crate::image::registry::{Client, search::Hit};

/// Longest description that is shown unless --no-trunc is given, in characters.
const SHOWN: usize = 45;

const EXAMPLES: &str = "\
Examples:
  pillbug search nginx                              at docker.io
  pillbug search --limit 3 -f is-official=true redis
  pillbug search localhost:5000/app                 at another registry; / alone for all of it

Registries are searched where they offer Docker's search or the catalog of the distribution
project; many public ones offer neither.
Fields: .Name .Description .StarCount .IsOfficial";

/// Search a registry for images
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SearchArgs {
    /// A part of the name, behind the registry where it is not docker.io
    #[arg(value_name = "[REGISTRY/]TERM")]
    term: String,
    /// Most images to show
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..=100))]
    limit: u16,
    /// Only images with these properties: is-official=true|false, stars=LEAST
    #[arg(short, long = "filter", value_name = "NAME=VALUE")]
    filters: Vec<Filter>,
    /// Print whole descriptions
    #[arg(long)]
    no_trunc: bool,
    #[arg(long, default_value_t, hide_default_value = true, help = format::LIST_HELP)]
    format: Format,
}

#[derive(Debug, Clone, Copy)]
enum Filter {
    IsOfficial(bool),
    Stars(u64),
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        Ok(match text.split_once('=') {
            Some(("is-official", value)) => Self::IsOfficial(value.parse()?),
            Some(("stars", value)) => Self::Stars(value.parse()?),
            _ => bail!("a filter is is-official=true, is-official=false or stars=NUMBER"),
        })
    }
}

impl Filter {
    fn has(self, hit: &Hit) -> bool {
        match self {
            Self::IsOfficial(wanted) => hit.is_official == wanted,
            Self::Stars(least) => hit.stars >= least,
        }
    }
}

/// One repository. The fields are those of Docker's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    name: String,
    description: String,
    star_count: u64,
    is_official: &'static str,
}

/// Searches and prints what was found.
pub fn run(arguments: &SearchArgs) -> anyhow::Result<ExitCode> {
    let (domain, term) = split(&arguments.term);
    let hits = Client::new()?.search(domain, term, arguments.limit.into())?;
    let wanted = hits
        .into_iter()
        .filter(|hit| arguments.filters.iter().all(|filter| filter.has(hit)));
    let lines: Vec<Line> = wanted
        .map(|hit| line(hit, domain, arguments.no_trunc))
        .collect();
    let columns = [
        ("Name", "NAME"),
        ("Description", "DESCRIPTION"),
        ("StarCount", "STARS"),
        ("IsOfficial", "OFFICIAL"),
    ];
    super::print(&arguments.format.list(&columns, &[], &lines)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The registry and the term: what is before the first `/` is a registry where it could not be a user.
fn split(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((domain, term)) if domain.contains(['.', ':']) || domain == "localhost" => {
            (domain, term)
        }
        _ => ("docker.io", text),
    }
}

fn line(hit: Hit, domain: &str, no_trunc: bool) -> Line {
    let mut description = hit.description.replace(['\n', '\t'], " ");
    if !no_trunc && description.chars().count() > SHOWN {
        let start = description.chars().take(SHOWN - 1);
        description = start.chain(['\u{2026}']).collect();
    }
    Line {
        name: if domain == "docker.io" {
            hit.name
        } else {
            format!("{domain}/{}", hit.name)
        },
        description,
        star_count: hit.stars,
        is_official: if hit.is_official { "[OK]" } else { "" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_told_from_a_user() {
        assert_eq!(split("nginx"), ("docker.io", "nginx"));
        assert_eq!(split("bitnami/nginx"), ("docker.io", "bitnami/nginx"));
        assert_eq!(split("localhost:5000/a/b"), ("localhost:5000", "a/b"));
        assert_eq!(split("quay.io/"), ("quay.io", ""));
    }
}
