//! `pillbug attach`: back to the streams of a container that runs.

use std::process::ExitCode;

use clap::Args;

use super::foreground::{self, Foreground};
use crate::{
    container::{attach::keys::DetachKeys, lifecycle, state::Containers},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug attach box                         ctrl-p ctrl-q leaves it again
  pillbug attach --no-stdin web              its output only
  pillbug attach --sig-proxy=false web       ctrl-c ends this command and not the container";

/// Connect to the streams of a container that runs
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AttachArgs {
    /// Keys that leave the container, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,
    /// Leave standard input out
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    /// Name, ID, or start of an ID
    container: String,
}

/// Until the container ends or is left; exits as its process does.
pub fn run(arguments: AttachArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    containers.sweep()?;
    let id = containers.find(&arguments.container)?;
    let spec = containers.record(&id)?.spec;
    let front = Foreground {
        stdin: spec.streams.interactive && !arguments.no_stdin,
        terminal: spec.process.terminal.is_some(),
        owner: false,
        pipeline: false,
        keys: arguments.detach_keys,
        sig_proxy: arguments.sig_proxy,
    }
    .enter()?;
    let finish = lifecycle::attach(&containers, &id, front.attach())
        .and_then(|session| front.relay(session));
    match finish {
        Ok(finish) => Ok(foreground::exit_code(finish)),
        Err(error) => Ok(super::failure(error)),
    }
}
