//! `pillbug image prune`: images that nobody needs out of the store.

use std::{
    collections::HashSet,
    io::{self, BufRead},
    process::ExitCode,
};

use clap::Args;

use super::units;
use crate::{container::state::Containers, image::store::Removed, state_root};

const EXAMPLES: &str = "\
Examples:
  pillbug image prune           images that have lost their names
  pillbug image prune -a -f     all that no container is made of, without asking";

/// Remove images that are not needed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImagePruneArgs {
    /// Remove images that have names, too, unless a container is made of them
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Asks and removes.
pub fn run(arguments: &ImagePruneArgs) -> anyhow::Result<ExitCode> {
    let store = super::image_store()?;
    if !arguments.force && !confirm(arguments.all)? {
        return Ok(ExitCode::SUCCESS);
    }
    let containers = Containers::open(&state_root::locate()?)?.list()?;
    let used: HashSet<String> = containers
        .into_iter()
        .map(|container| container.spec.image_digest)
        .collect();
    let pruned = store.prune(|image| {
        let is_wanted = used.contains(&image.digest.to_string());
        !is_wanted && (arguments.all || image.names.is_empty())
    })?;
    let mut text = String::new();
    if !pruned.removed.is_empty() {
        text.push_str("Deleted Images:\n");
        text.extend(pruned.removed.iter().map(|removed| match removed {
            Removed::Untagged(reference) => format!("untagged: {}\n", reference.familiar()),
            Removed::Deleted(id) => format!("deleted: {id}\n"),
        }));
        text.push('\n');
    }
    text.extend(["Total reclaimed space: ", &units::size(pruned.bytes), "\n"]);
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn confirm(all: bool) -> anyhow::Result<bool> {
    let which = if all {
        "all images without at least one container"
    } else {
        "all images without a name"
    };
    super::print(&format!(
        "WARNING! This will remove {which}.\nAre you sure you want to continue? [y/N] "
    ))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
