//! `pillbug pause` and `unpause`: containers that stand still.

use std::process::ExitCode;

use clap::Args;

use crate::container::lifecycle;

const EXAMPLES: &str = "\
Examples:
  pillbug pause web
  pillbug ps --filter status=paused
  pillbug unpause web

The processors of the container's virtual machine stop: nothing in it runs, and it keeps its memory. `exec` and `attach`
are refused meanwhile; `stop` and `kill` let it go on first.";

/// Let nothing in containers run for a while
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PauseArgs {
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Let paused containers go on
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct UnpauseArgs {
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Pauses each.
pub fn run(arguments: &PauseArgs) -> anyhow::Result<ExitCode> {
    super::each(&arguments.containers, |containers, id| {
        lifecycle::pause(containers, id, true)
    })
}

/// Lets each go on.
pub fn unpause(arguments: &UnpauseArgs) -> anyhow::Result<ExitCode> {
    super::each(&arguments.containers, |containers, id| {
        lifecycle::pause(containers, id, false)
    })
}
