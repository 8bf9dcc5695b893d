//! `pillbug rm`: remove containers that have ended.

use std::process::ExitCode;

use clap::Args;

use crate::{container::state::Containers, state_root};

const EXAMPLES: &str = "\
Examples:
  pillbug rm web                 by name
  pillbug rm 3f4a                by the start of its ID
  pillbug rm $(pillbug ps -aq)   all of them";

/// Remove containers that have ended, with what they wrote
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RmArgs {
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Removes each, and prints what it was called by; an error does not keep it from the others.
pub fn run(arguments: &RmArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    containers.sweep()?;
    let mut code = ExitCode::SUCCESS;
    for wanted in &arguments.containers {
        match containers
            .find(wanted)
            .and_then(|id| containers.remove(&id))
        {
            Ok(()) => println!("{wanted}"),
            Err(error) => {
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
