//! `pillbug ps`: the containers there are.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;

use super::{table, units};
use crate::{
    container::state::{Containers, Record, Status},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug ps                     running containers
  pillbug ps -a                  ended ones too
  pillbug rm $(pillbug ps -aq)   remove all that have ended";

/// Longest command that is shown unless --no-trunc is given, in characters.
const SHOWN_COMMAND: usize = 20;

/// List containers
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PsArgs {
    /// Show containers that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole IDs and commands
    #[arg(long)]
    no_trunc: bool,
}

/// Prints the list.
pub fn run(arguments: &PsArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    let mut records = containers.list()?;
    records.retain(|record| arguments.all || matches!(record.status, Status::Running { .. }));
    if arguments.quiet {
        for record in &records {
            println!("{}", id(record, arguments));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows = records.iter().map(|record| {
        vec![
            id(record, arguments),
            super::escape(&record.spec.image),
            command(record, arguments),
            format!("{} ago", age(record.spec.created)),
            status(&record.status),
            record.spec.name.clone(),
        ]
    });
    println!(
        "{}",
        table(
            &[
                "CONTAINER ID",
                "IMAGE",
                "COMMAND",
                "CREATED",
                "STATUS",
                "NAMES"
            ],
            rows
        )
    );
    Ok(ExitCode::SUCCESS)
}

fn id(record: &Record, arguments: &PsArgs) -> String {
    let id = &record.spec.id;
    if arguments.no_trunc {
        id.to_string()
    } else {
        id.short().into()
    }
}

fn command(record: &Record, arguments: &PsArgs) -> String {
    let whole = super::escape(&record.spec.command.join(" ")).replace('\n', "\\n");
    if arguments.no_trunc || whole.chars().count() <= SHOWN_COMMAND {
        return format!("\"{whole}\"");
    }
    let start: String = whole.chars().take(SHOWN_COMMAND - 1).collect();
    format!("\"{start}…\"")
}

fn status(status: &Status) -> String {
    match status {
        Status::Created => "Created".into(),
        Status::Running { since: started, .. } => format!("Up {}", age(*started)),
        Status::Exited { at, code, .. } => format!("Exited ({code}) {} ago", age(*at)),
    }
}

/// How long ago. A clock that was set back has no better answer than none.
fn age(moment: SystemTime) -> String {
    units::span(moment.elapsed().unwrap_or(Duration::ZERO))
}
