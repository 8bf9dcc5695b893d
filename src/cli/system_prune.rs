//! `pillbug system prune`: everything that nobody needs.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::{image_filter::Filter, image_prune, units, volume};
use crate::{
    container::state::{Containers, StateError},
    state_root,
    volume::{Volume, Volumes},
};

const EXAMPLES: &str = "\
Examples:
  pillbug system prune                  containers that have ended, images without a name
  pillbug system prune --volumes        anonymous volumes that no container has, too
  pillbug system prune -a -f            all images that no container is left of, without asking";

/// Remove containers that have ended and images that are not needed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SystemPruneArgs {
    /// Remove images that have names, too, unless a container is made of them
    #[arg(short, long)]
    all: bool,
    /// Only what has these properties: label=, label!=, until=
    #[arg(long = "filter", value_name = "NAME=VALUE")]
    filters: Vec<Filter>,
    /// Remove anonymous volumes that no container has, too
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Asks and removes.
pub fn run(arguments: &SystemPruneArgs) -> anyhow::Result<ExitCode> {
    let images = if arguments.all {
        "all images without at least one container"
    } else {
        "all images without a name"
    };
    let volumes = match arguments.volumes {
        true => "  - all anonymous volumes not used by at least one container\n",
        false => "",
    };
    let warning = format!("This will remove:\n  - all stopped containers\n  - {images}\n{volumes}");
    if !arguments.force && !image_prune::confirm(&warning)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    let mut bytes = 0;
    let root = state_root::locate()?;
    let containers = Containers::open(&root)?;
    for record in containers.list()? {
        let label = |name: &str| record.spec.labels.get(name).map(String::as_str);
        let created = Timestamp::try_from(record.spec.created).ok();
        let is_wanted = arguments
            .filters
            .iter()
            .all(|filter| filter.has(label, created));
        if !is_wanted || record.status.is_up() {
            continue;
        }
        let size = containers.disk_usage(&record.spec.id);
        match containers.remove(&record.spec.id) {
            // Started since, or removed by somebody else.
            Err(StateError::Running(_) | StateError::Busy(_) | StateError::NotFound(_)) => {}
            removed => {
                removed?;
                bytes += size;
                text.push_str(&format!("{}\n", record.spec.id));
            }
        }
    }
    if !text.is_empty() {
        text = format!("Deleted Containers:\n{text}\n");
    }
    if arguments.volumes {
        let label = |volume: &Volume, filter: &Filter| {
            let created = Timestamp::try_from(volume.created).ok();
            filter.has(|name| volume.labels.get(name).map(String::as_str), created)
        };
        let (removed, freed) = volume::prune(&Volumes::open(&root)?, &containers, |volume| {
            let mut filters = arguments.filters.iter();
            volume.is_anonymous() && filters.all(|filter| label(volume, filter))
        })?;
        text += &removed;
        bytes += freed;
    }
    let pruned = image_prune::prune(arguments.all, &arguments.filters)?;
    text.push_str(&image_prune::words(&pruned));
    bytes += pruned.bytes;
    super::print(&format!(
        "{text}Total reclaimed space: {}\n",
        units::size(bytes)
    ))?;
    Ok(ExitCode::SUCCESS)
}
