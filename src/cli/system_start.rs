//! `pillbug system start`: the containers that run whenever their host does.

use std::process::ExitCode;

use clap::Args;

use crate::{
    container::{launch, lifecycle, state::Containers},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug run -d --restart unless-stopped --name web nginx
  pillbug system start           after the host has started: starts web

Started are containers that ended with the host, or with their supervisor: those with --restart always; with
unless-stopped, where nobody stopped them; with on-failure, where they failed. What runs already is left alone.
The systemd unit pillbug.service does this at boot: `systemctl enable pillbug`.";

/// Start the containers that should run, after the host has started
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SystemStartArgs {}

/// Starts each, and prints its name; an error does not keep it from the others.
pub fn run(_: &SystemStartArgs) -> anyhow::Result<ExitCode> {
    let root = state_root::locate()?;
    let containers = Containers::open(&root)?;
    let mut code = ExitCode::SUCCESS;
    let mut all = containers.list()?;
    // Those that were made first may be what the others need.
    all.reverse();
    for record in all.iter().filter(|record| lifecycle::should_run(record)) {
        let started =
            lifecycle::start(&root, &containers, &record.spec.id, None).and_then(|session| {
                session.map_or(Ok(()), |mut session| launch::wait_started(&mut session))
            });
        match started {
            Ok(()) => super::print(&format!("{}\n", record.spec.name))?,
            Err(error) => {
                super::report(
                    &anyhow::Error::from(error)
                        .context(format!("cannot start {}", record.spec.name)),
                );
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
