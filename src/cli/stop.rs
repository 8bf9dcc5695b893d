//! `pillbug stop`, `kill` and `wait`: the end of containers.

use std::process::ExitCode;

use clap::Args;

use crate::container::{lifecycle, signal};

const STOP_EXAMPLES: &str = "\
Examples:
  pillbug stop web               SIGTERM, or the container's own signal; killed after 10 seconds
  pillbug stop -t 60 db          killed after a minute
  pillbug stop -s INT web        another signal";

/// How a container is asked to end.
#[derive(Debug, Args)]
pub struct EndingFlags {
    /// Seconds until it is killed; -1 waits for ever
    #[arg(
        short = 't',
        long = "timeout",
        alias = "time",
        value_name = "SECONDS",
        allow_negative_numbers = true
    )]
    pub timeout: Option<i64>,
    /// Signal to send in place of the container's own
    #[arg(short, long, value_name = "SIGNAL", value_parser = signal::parse)]
    pub signal: Option<u8>,
}

/// Ask containers to end, kill them if they do not
#[derive(Debug, Args)]
#[command(after_help = STOP_EXAMPLES)]
pub struct StopArgs {
    #[command(flatten)]
    ending: EndingFlags,
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Stops each.
pub fn run(arguments: &StopArgs) -> anyhow::Result<ExitCode> {
    super::each(&arguments.containers, |containers, id| {
        lifecycle::stop(
            containers,
            id,
            arguments.ending.signal,
            arguments.ending.timeout,
        )
    })
}

const KILL_EXAMPLES: &str = "\
Examples:
  pillbug kill web               SIGKILL
  pillbug kill -s HUP web        any other signal, by name or number";

/// Send containers a signal
#[derive(Debug, Args)]
#[command(after_help = KILL_EXAMPLES)]
pub struct KillArgs {
    /// Which signal
    #[arg(short, long, value_name = "SIGNAL", value_parser = signal::parse, default_value = "KILL")]
    signal: u8,
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Sends it to each.
pub fn kill(arguments: &KillArgs) -> anyhow::Result<ExitCode> {
    super::each(&arguments.containers, |containers, id| {
        lifecycle::kill(containers, id, arguments.signal)
    })
}

const WAIT_EXAMPLES: &str = "\
Examples:
  pillbug wait job               blocks until it has ended, and prints its exit code";

/// Wait until containers have ended, and print their exit codes
#[derive(Debug, Args)]
#[command(after_help = WAIT_EXAMPLES)]
pub struct WaitArgs {
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Waits for each in turn.
pub fn wait(arguments: &WaitArgs) -> anyhow::Result<ExitCode> {
    super::each_printing(&arguments.containers, |containers, id, _| {
        Ok(lifecycle::wait(containers, id)?.to_string())
    })
}
