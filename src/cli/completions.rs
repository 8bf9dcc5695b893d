//! `pillbug completions`: a completion script for the user's shell.

use std::{io, process::ExitCode};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pillbug completions bash > /etc/bash_completion.d/pillbug")]
pub struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "pillbug", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}
