//! `pillbug update`: what containers that exist may use, and when they are started again.

use std::process::ExitCode;

use clap::{ArgGroup, Args};

use crate::container::{
    limits::{self, Change, CpuSet, Cpus},
    options::Memory,
    restart::RestartPolicy,
};

const EXAMPLES: &str = "\
Examples:
  pillbug update --cpus 0.5 web              half a processor, from now on
  pillbug update -m 256m --pids-limit 100 web
  pillbug update --cpuset-cpus 0-1 web db
  pillbug update --restart unless-stopped web

A container that runs has it at once, but for more processors or memory than its machine was started with: those it has when it
is started again. With less memory, what the guest does without goes back to the host.";

/// Change what containers may use, and when they are started again
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
pub struct UpdateArgs {
    /// Processors: how many, or a part of one, from 0.01 to 32
    #[arg(long, value_name = "COUNT", group = "change")]
    cpus: Option<Cpus>,
    /// Processors of the host to run on, such as 0-3,7
    #[arg(long, value_name = "LIST", group = "change")]
    cpuset_cpus: Option<CpuSet>,
    /// Memory, such as 512m or 2g
    #[arg(short, long, value_name = "SIZE", group = "change")]
    memory: Option<Memory>,
    /// Most processes and threads; -1 for no limit
    #[arg(long, value_name = "COUNT", value_parser = limits::pids, allow_negative_numbers = true, group = "change")]
    pids_limit: Option<i64>,
    /// When to start it again: no, on-failure[:RETRIES], always, unless-stopped
    #[arg(long, value_name = "POLICY", group = "change")]
    restart: Option<RestartPolicy>,
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Changes each.
pub fn run(arguments: UpdateArgs) -> anyhow::Result<ExitCode> {
    let change = Change {
        cpus: arguments.cpus,
        cpuset: arguments.cpuset_cpus,
        memory: arguments.memory,
        pids: arguments.pids_limit,
        restart: arguments.restart,
    };
    super::each(&arguments.containers, |containers, id| {
        let later = limits::change(containers, id, &change)?;
        for (is_later, what) in [(later.cpus, "processors"), (later.memory, "memory")] {
            if is_later {
                eprintln!(
                    "pillbug: {} has more {what} when it is started again: its machine was started with less",
                    id.short()
                );
            }
        }
        Ok(())
    })
}
