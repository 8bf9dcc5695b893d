//! `pillbug bench`: honest numbers on this host.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{
    bench::{self, Percentiles, RuntimeReport, StartConfig, StartReport},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug bench start busybox              start busybox 20 times with each runtime there is
  pillbug bench start --runs 100 --json debian > start.json

Each start is timed from just before the command is started; runtimes take turns. `runc` and `crun` are
measured where they and `umoci`, which unpacks the image for them, are installed.";

/// Measure pillbug on this host, beside the container runtimes there are
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How long a start takes, phase by phase, and the memory of every process
    #[command(after_help = EXAMPLES)]
    Start(StartArgs),
}

/// Flags of `bench start`.
#[derive(Debug, Args)]
struct StartArgs {
    /// How often each runtime is started
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Memory of the virtual machine
    #[arg(short, long, default_value = "256m", value_name = "SIZE")]
    memory: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// An image that has `echo` and `cat`
    image: String,
}

/// Measures, and prints the figures.
pub fn run(arguments: BenchArgs) -> anyhow::Result<ExitCode> {
    let What::Start(arguments) = arguments.what;
    let config = StartConfig {
        image: arguments.image,
        runs: arguments.runs as usize,
        memory: arguments.memory,
    };
    let report = bench::start(&config, &state_root::locate()?)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &StartReport) {
    println!(
        "pillbug {}, image {}, {} runs each, host kernel {}, guest kernel {}, {} vCPU, {} memory\n",
        env!("CARGO_PKG_VERSION"),
        super::escape(&report.image),
        report.runs,
        report.host_kernel,
        super::escape(&report.guest_kernel),
        report.vcpus,
        report.memory,
    );
    let phases = report
        .phases
        .iter()
        .map(|(name, figures)| row(name, figures));
    let start = row("command to process", &report.start);
    println!(
        "{}\n",
        super::table(&["PHASE (MS)", "P50", "P90", "P99"], phases.chain([start]))
    );
    let runtimes = report.runtimes.iter().flat_map(|runtime| {
        [
            row(
                &format!("{}: to first output", runtime.name),
                &runtime.first_output,
            ),
            row(&format!("{}: to the end", runtime.name), &runtime.whole),
        ]
    });
    println!(
        "{}\n",
        super::table(&["RUNTIME (MS)", "P50", "P90", "P99"], runtimes)
    );
    let idle = report.runtimes.iter().flat_map(memory_rows);
    println!(
        "{}",
        super::table(
            &["IDLE (KIB)", "PROCESS", "PRIVATE", "PSS", "GUEST RAM"],
            idle
        )
    );
    for (name, reason) in &report.absent {
        println!("\n{name} was not measured: {reason}");
    }
}

fn row(name: &str, figures: &Percentiles) -> Vec<String> {
    let figure = |value: f64| format!("{value:.2}");
    vec![
        name.into(),
        figure(figures.p50),
        figure(figures.p90),
        figure(figures.p99),
    ]
}

fn memory_rows(runtime: &RuntimeReport) -> Vec<Vec<String>> {
    let row = |process: &bench::ProcessMemory| {
        vec![
            runtime.name.into(),
            super::escape(&process.command),
            process.private_kib.to_string(),
            process.pss_kib.to_string(),
            process.guest_kib.to_string(),
        ]
    };
    runtime.idle.iter().map(row).collect()
}
