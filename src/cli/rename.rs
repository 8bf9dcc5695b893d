//! `pillbug rename`: another name for a container.

use std::process::ExitCode;

use clap::Args;

use crate::{
    container::{lifecycle, state::Containers},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug rename web old-web";

/// Give a container another name
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RenameArgs {
    /// Name, ID, or start of an ID
    container: String,
    /// The new name
    name: String,
}

/// Renames it.
pub fn run(arguments: &RenameArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    let id = containers.find(&arguments.container)?;
    lifecycle::rename(&containers, &id, &arguments.name)?;
    Ok(ExitCode::SUCCESS)
}
