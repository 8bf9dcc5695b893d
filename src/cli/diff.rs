//! `pillbug diff`: what a container has changed of its image.

use std::process::ExitCode;

use clap::Args;

use crate::{
    container::{files::changes::changes, state::Containers},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug diff web

Each line is a path that the container has added (A), changed (C) or deleted (D). A folder counts as changed with what is in
it, and a folder that is gone stands for all that was in it. The container may run or not.";

/// Show what a container has changed of its image
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DiffArgs {
    /// Name, ID, or start of an ID
    container: String,
}

/// Prints a line for each path.
pub fn run(arguments: &DiffArgs) -> anyhow::Result<ExitCode> {
    let state_root = state_root::locate()?;
    let containers = Containers::open(&state_root)?;
    let id = containers.find(&arguments.container)?;
    let lines: String = changes(&state_root, &containers, &id)?
        .iter()
        .map(|changed| {
            let path = String::from_utf8_lossy(&changed.path);
            // A name may have a line feed in it, which is none here.
            let path = super::escape(&path).replace('\n', "\\n");
            format!("{} {path}\n", changed.how.letter())
        })
        .collect();
    super::print(&lines)?;
    Ok(ExitCode::SUCCESS)
}
