//! `pillbug image prune`: images that nobody needs out of the store.

use std::{
    io::{self, BufRead},
    process::ExitCode,
};

use anyhow::bail;
use clap::Args;

use super::{
    image_filter::{Filter, Wanted},
    units,
};
use crate::{
    container::state::Containers,
    image::{
        digest::Digest,
        store::{Pruned, Removed},
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug image prune                     images that have lost their names
  pillbug image prune -a -f               all that no container is made of, without asking
  pillbug image prune -a --filter until=240h --filter label!=keep";

/// Remove images that are not needed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImagePruneArgs {
    /// Remove images that have names, too, unless a container is made of them
    #[arg(short, long)]
    all: bool,
    /// Only images with these properties: label=, label!=, until=, dangling=
    #[arg(long = "filter", value_name = "NAME=VALUE")]
    filters: Vec<Filter>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Asks and removes.
pub fn run(arguments: &ImagePruneArgs) -> anyhow::Result<ExitCode> {
    let all = arguments.all
        || arguments
            .filters
            .iter()
            .any(|filter| matches!(filter, Filter::Dangling(false)));
    let which = if all {
        "all images without at least one container"
    } else {
        "all images without a name"
    };
    if !arguments.force && !confirm(&format!("This will remove {which}."))? {
        return Ok(ExitCode::SUCCESS);
    }
    let filters = arguments.filters.iter();
    let filters: Vec<Filter> = filters
        .filter(|filter| !matches!(filter, Filter::Dangling(_)))
        .cloned()
        .collect();
    let pruned = prune(all, &filters)?;
    super::print(&format!(
        "{}Total reclaimed space: {}\n",
        words(&pruned),
        units::size(pruned.bytes)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Removes images that no container is made of and that pass the filters: those without a name, or `all`.
pub fn prune(all: bool, filters: &[Filter]) -> anyhow::Result<Pruned> {
    if !filters.iter().all(is_of_prune) {
        bail!("what to prune is said with the filters label=, label!= and until= only");
    }
    let store = super::image_store()?;
    let wanted = Wanted::new(filters, &store)?;
    let containers = Containers::open(&state_root::locate()?)?;
    // What cannot be told is spared.
    let is_free = |image: &Digest| matches!(containers.made_of(image), Ok(None));
    Ok(store.prune(|image| {
        (all || image.names.is_empty()) && wanted.has(image) && is_free(&image.digest)
    })?)
}

fn is_of_prune(filter: &Filter) -> bool {
    matches!(
        filter,
        Filter::Label(..) | Filter::NoLabel(..) | Filter::Until(_)
    )
}

/// What was removed, a line each.
pub fn words(pruned: &Pruned) -> String {
    if pruned.removed.is_empty() {
        return String::new();
    }
    let lines = pruned.removed.iter().map(|removed| match removed {
        Removed::Untagged(reference) => format!("untagged: {}\n", reference.familiar()),
        Removed::Deleted(id) => format!("deleted: {id}\n"),
    });
    format!("Deleted Images:\n{}\n", lines.collect::<String>())
}

/// Whether a person wants what they are warned of.
pub fn confirm(warning: &str) -> anyhow::Result<bool> {
    super::print(&format!(
        "WARNING! {warning}\nAre you sure you want to continue? [y/N] "
    ))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
