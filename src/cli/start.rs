//! `pillbug start` and `restart`.

use std::process::ExitCode;

use clap::Args;

use super::{
    foreground::{self, Foreground},
    stop::EndingFlags,
};
use crate::{
    container::{
        attach::keys::DetachKeys,
        error::RunError,
        launch, lifecycle,
        name::Id,
        state::{Containers, StateError},
        status::{Running, Status},
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug start web              in the background; prints the name
  pillbug start -ai box          in the foreground, with its terminal if it has one

What the container wrote before is still there.";

/// Start containers that do not run
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct StartArgs {
    /// Connect output and signals, and exit as the process does
    #[arg(short, long)]
    attach: bool,
    /// Connect standard input too
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Starts each, or one in the foreground.
pub fn run(arguments: &StartArgs) -> anyhow::Result<ExitCode> {
    if arguments.attach || arguments.interactive {
        let [container] = arguments.containers.as_slice() else {
            anyhow::bail!("only one container can be in the foreground");
        };
        return in_foreground(container, arguments);
    }
    super::each(&arguments.containers, |containers, id| {
        in_background(containers, id)
    })
}

fn in_background(containers: &Containers, id: &Id) -> Result<(), RunError> {
    let root = state_root::locate().map_err(StateError::from)?;
    match lifecycle::start(&root, containers, id, None)? {
        Some(mut session) => launch::wait_started(&mut session),
        None => match containers.record(id)?.status {
            Status::Running(Running { paused: true, .. }) => {
                Err(StateError::Paused(id.short().into()).into())
            }
            _ => Ok(()),
        },
    }
}

fn in_foreground(wanted: &str, arguments: &StartArgs) -> anyhow::Result<ExitCode> {
    let root = state_root::locate()?;
    let containers = Containers::open(&root)?;
    containers.sweep()?;
    let id = containers.find(wanted)?;
    let spec = containers.record(&id)?.spec;
    let front = Foreground {
        stdin: arguments.interactive && spec.streams.interactive,
        terminal: spec.process.terminal.is_some(),
        owner: false,
        pipeline: true,
        keys: arguments.detach_keys.clone(),
        sig_proxy: true,
    }
    .enter()?;
    let session = match lifecycle::start(&root, &containers, &id, Some(front.attach()))? {
        Some(session) => session,
        None => lifecycle::attach(&containers, &id, front.attach())?,
    };
    match front.relay(session) {
        Ok(finish) => Ok(foreground::exit_code(finish)),
        Err(error) => Ok(super::failure(error)),
    }
}

const RESTART_EXAMPLES: &str = "\
Examples:
  pillbug restart web
  pillbug restart -t 1 web       killed if it has not ended after a second";

/// Stop containers and start them again
#[derive(Debug, Args)]
#[command(after_help = RESTART_EXAMPLES)]
pub struct RestartArgs {
    #[command(flatten)]
    ending: EndingFlags,
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Restarts each.
pub fn restart(arguments: &RestartArgs) -> anyhow::Result<ExitCode> {
    super::each(&arguments.containers, |containers, id| {
        lifecycle::stop(
            containers,
            id,
            arguments.ending.signal,
            arguments.ending.timeout,
        )?;
        in_background(containers, id)?;
        let spec = containers.record(id)?.spec;
        containers.events().record_container(&spec, "restart", &[]);
        Ok(())
    })
}
