//! `pillbug system check`: whether the image store is as it should be.

use std::process::ExitCode;

use clap::Args;

use super::progress::Transfers;
use crate::image::{
    check::{Fault, Finding},
    registry::Client,
};

const CHECK_EXAMPLES: &str = "\
Examples:
  pillbug system check              read everything and say what is damaged
  pillbug system check --repair     make or fetch it again

The exit code is 1 when something is, or stays, damaged.";

/// Check the image store for damage
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub struct CheckArgs {
    /// Make what is damaged or missing again, and fetch what cannot be made
    #[arg(long)]
    repair: bool,
}

/// Checks, and repairs.
pub fn run(arguments: &CheckArgs) -> anyhow::Result<ExitCode> {
    let store = super::image_store()?;
    let findings = store.check()?;
    let line = |finding: &Finding| {
        let (path, users) = (finding.path.display(), finding.needed_by.join(", "));
        format!("{path}: {} (needed by {users})\n", words(finding))
    };
    let text: String = findings.iter().map(line).collect();
    if findings.is_empty() {
        super::print("The image store is sound.\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    super::print(&text)?;
    if !arguments.repair {
        super::print("Run `pillbug system check --repair` to repair it.\n")?;
        return Ok(ExitCode::FAILURE);
    }
    let transfers = Transfers::new(false);
    let failures = store.repair(&findings, &Client::new()?, &|progress| {
        transfers.pulling(progress);
    })?;
    let mut code = ExitCode::SUCCESS;
    for (finding, error) in failures {
        let context = format!("cannot repair {}", finding.path.display());
        super::report(&anyhow::Error::from(error).context(context));
        code = ExitCode::FAILURE;
    }
    if code == ExitCode::SUCCESS {
        super::print("Repaired.\n")?;
    }
    Ok(code)
}

fn words(finding: &Finding) -> &'static str {
    match finding.fault {
        Fault::Missing => "missing",
        Fault::Damaged => "damaged",
        Fault::Unknown => "unknown, since what it is made of is damaged",
    }
}
