//! `pillbug export`: the root file system of a container as an archive.

use std::{
    io::{self, BufWriter, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::bail;
use clap::Args;

use super::save;
use crate::{
    container::{files, state::Containers},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug export -o web.tar web
  pillbug export web | pillbug import - web:flat      an image of one layer

What is mounted in the container, such as volumes, is left out. The container may run or not.";

/// Write the root file system of a container as a tar archive
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    /// File to write instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name, ID, or start of an ID
    container: String,
}

/// Exports. A file appears when it is complete.
pub fn run(arguments: &ExportArgs) -> anyhow::Result<ExitCode> {
    let state_root = state_root::locate()?;
    let containers = Containers::open(&state_root)?;
    let id = containers.find(&arguments.container)?;
    let write = |output: &mut dyn io::Write| {
        files::export(&state_root, &containers, &id, output).map_err(anyhow::Error::from)
    };
    match &arguments.output {
        Some(path) => save::to_file(path, write)?,
        None if io::stdout().is_terminal() => bail!(
            "an archive is nothing for a terminal: name a file with -o, or redirect standard output"
        ),
        None => write(&mut BufWriter::new(io::stdout().lock()))?,
    }
    Ok(ExitCode::SUCCESS)
}
