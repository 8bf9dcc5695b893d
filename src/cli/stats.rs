//! `pillbug stats`: what containers use, as their guests say and as the host pays.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use nix::poll::{PollTimeout, poll};
use serde_json::{Value, json};

use super::{
    format::{Format, LIST_HELP},
    units,
};
use crate::{
    container::{
        name::Id,
        spec::Spec,
        state::Containers,
        status::Status,
        usage::{self, Sample},
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug stats                        all that run, anew each second
  pillbug stats --no-stream web db     these, once
  pillbug stats --no-stream --format json

CPU %, MEM USAGE and PIDS are what the guest says of the container; LIMIT is the memory of its machine. HOST CPU % and HOST MEM
are what the host pays for all processes of the container, guest memory included (proportional set size). NET and BLOCK I/O
are what its machine's devices have counted, in and out.
Fields: Container, ID, Name, CPUPerc, MemUsage, MemPerc, NetIO, BlockIO, PIDs, HostCPUPerc, HostMem.";

const COLUMNS: [(&str, &str); 10] = [
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
    ("HostCPUPerc", "HOST CPU %"),
    ("HostMem", "HOST MEM"),
];

const HEADINGS: [(&str, &str); 1] = [("Container", "CONTAINER")];

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show what containers use
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct StatsArgs {
    /// Show containers that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Print once
    #[arg(long)]
    no_stream: bool,
    /// Print whole IDs
    #[arg(long)]
    no_trunc: bool,
    #[arg(long, value_name = "FORMAT", default_value_t, help = LIST_HELP)]
    format: Format,
    /// Names, IDs, or starts of IDs; all that run where there is none
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Prints a table, once or again and again.
pub fn run(arguments: &StatsArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    let wanted: Vec<(Id, String)> = arguments
        .containers
        .iter()
        .map(|wanted| Ok((containers.find(wanted)?, wanted.clone())))
        .collect::<anyhow::Result<_>>()?;
    let redraws = !arguments.no_stream && io::stdout().is_terminal();
    let mut before = BTreeMap::new();
    for (spec, _) in chosen(&containers, &wanted, arguments.all)? {
        if let Some(sample) = usage::measure(&containers, &spec.id)? {
            before.insert(spec.id.to_string(), sample);
        }
    }
    loop {
        // What is told is what was used meanwhile.
        poll(&mut [], PollTimeout::try_from(INTERVAL)?)?;
        let mut lines = Vec::new();
        let mut now = BTreeMap::new();
        for (spec, called) in chosen(&containers, &wanted, arguments.all)? {
            let sample = usage::measure(&containers, &spec.id)?;
            let id = spec.id.to_string();
            lines.push(line(
                &spec,
                &called,
                sample.as_ref(),
                before.get(&id),
                arguments.no_trunc,
            ));
            if let Some(sample) = sample {
                now.insert(id, sample);
            }
        }
        before = now;
        let text = arguments.format.list(&COLUMNS, &HEADINGS, &lines)?;
        match redraws {
            // From the top, and nothing left below it.
            true => super::print(&format!("\x1b[H\x1b[2J\x1b[3J{text}"))?,
            false => super::print(&text)?,
        }
        if arguments.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The containers that are shown, and what they were called by.
fn chosen(
    containers: &Containers,
    wanted: &[(Id, String)],
    all: bool,
) -> anyhow::Result<Vec<(Spec, String)>> {
    if wanted.is_empty() {
        let records = containers.list()?.into_iter();
        let shown = records.filter(|record| all || matches!(record.status, Status::Running(_)));
        return Ok(shown
            .map(|record| {
                let called = record.spec.id.short().to_owned();
                (record.spec, called)
            })
            .collect());
    }
    wanted
        .iter()
        .map(|(id, called)| Ok((containers.record(id)?.spec, called.clone())))
        .collect()
}

/// One container; one that does not run uses nothing.
fn line(
    spec: &Spec,
    called: &str,
    sample: Option<&Sample>,
    before: Option<&Sample>,
    no_trunc: bool,
) -> Value {
    let share = sample
        .zip(before)
        .map(|(now, before)| now.share_since(before));
    let guest = sample.and_then(|sample| sample.measured.guest);
    let memory = guest.map_or(0, |guest| guest.memory_bytes);
    let limit = sample.map_or(0, |sample| sample.measured.memory_bytes);
    let network = sample.map(Sample::network).unwrap_or_default();
    let disks = sample.map(Sample::disks).unwrap_or_default();
    let id = match no_trunc {
        true => spec.id.to_string(),
        false => spec.id.short().into(),
    };
    json!({
        "Container": called,
        "ID": id,
        "Name": spec.name,
        "CPUPerc": format!("{:.2}%", share.map_or(0.0, |share| share.guest)),
        "MemUsage": format!("{} / {}", units::binary_size(memory), units::binary_size(limit)),
        "MemPerc": format!("{:.2}%", percent(memory, limit)),
        "NetIO": both(network.in_bytes, network.out_bytes),
        "BlockIO": both(disks.in_bytes, disks.out_bytes),
        "PIDs": guest.map_or(0, |guest| guest.pids).to_string(),
        "HostCPUPerc": format!("{:.2}%", share.map_or(0.0, |share| share.host)),
        "HostMem": units::binary_size(sample.map_or(0, |sample| sample.host.pss_bytes)),
    })
}

fn both(inwards: u64, outwards: u64) -> String {
    format!("{} / {}", units::size(inwards), units::size(outwards))
}

#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn percent(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        _ => 100.0 * part as f64 / whole as f64,
    }
}
