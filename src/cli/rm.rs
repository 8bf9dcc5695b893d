//! `pillbug rm` and `container prune`: containers and what they wrote, gone.

use std::process::ExitCode;

use clap::Args;

use super::{
    filter::{Filter, Filters},
    image_prune::confirm,
};
use crate::{
    container::{
        lifecycle::{self, Removal},
        state::{Containers, StateError},
        status::Status,
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug rm web                 by name
  pillbug rm 3f4a                by the start of its ID
  pillbug rm -f web              also where it runs
  pillbug rm -fv db              with the volumes that have no name
  pillbug rm $(pillbug ps -aq)   all that have ended";

/// Remove containers, with what they wrote
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RmArgs {
    /// End those that run, at once; and do not mind those that are not there
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes, too
    #[arg(short, long)]
    volumes: bool,
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Removes each, and prints what it was called by; an error does not keep it from the others.
pub fn run(arguments: &RmArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    containers.sweep()?;
    let removal = Removal {
        force: arguments.force,
        volumes: arguments.volumes,
    };
    let mut code = ExitCode::SUCCESS;
    for wanted in &arguments.containers {
        let removed = match containers.find(wanted) {
            Ok(id) => lifecycle::remove(&containers, &id, removal),
            Err(error) => Err(error.into()),
        };
        match removed {
            Ok(()) => super::print(&format!("{wanted}\n"))?,
            Err(error) => {
                let missing = matches!(
                    error,
                    crate::container::error::RunError::State(StateError::NotFound(_))
                );
                super::report(&error.into());
                if !(missing && arguments.force) {
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    Ok(code)
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  pillbug container prune                     asks first
  pillbug container prune -f --filter label=team=web";

/// Remove all containers that do not run
#[derive(Debug, Args)]
#[command(after_help = PRUNE_EXAMPLES)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only what matches
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
}

/// Asks, removes, and prints IDs.
pub fn prune(arguments: &PruneArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    let filters = Filters::new(&arguments.filter, &containers)?;
    if !arguments.force && !confirm("This will remove all containers that do not run.")? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for record in containers.list()? {
        let ended = matches!(record.status, Status::Created { .. } | Status::Exited(_));
        if !ended || !filters.matches(&record) {
            continue;
        }
        match containers.remove(&record.spec.id) {
            Ok(()) => text += &format!("{}\n", record.spec.id),
            // Started or removed by somebody else meanwhile.
            Err(StateError::Running(_) | StateError::Busy(_) | StateError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !text.is_empty() {
        super::print(&format!("Deleted Containers:\n{text}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
