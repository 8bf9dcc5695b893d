//! `pillbug doctor`: can this host run containers, and what to do if not.

use std::process::ExitCode;

use clap::Args;

use crate::host::{self, Check, Verdict};

const EXAMPLES: &str = "\
Examples:
  pillbug doctor                 one line for each thing that matters, with the way out
  pillbug doctor --json | jq     the same for programs

The exit code is 1 when `pillbug run` would fail, else 0.";

/// Check whether this host can run containers, and say what to do if not
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what was found.
pub fn run(arguments: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let checks = host::examine();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        checks.iter().for_each(print);
    }
    let works = checks.iter().all(|check| check.verdict != Verdict::Failure);
    Ok(if works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(check: &Check) {
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failure => "FAILED",
    };
    println!(
        "{verdict:<8}{:<14}{}",
        check.name,
        super::escape(&check.found)
    );
    if let Some(way_out) = &check.way_out {
        println!("{:<22}-> {way_out}", "");
    }
}
