//! Measures pillbug, and container runtimes beside it, as a user meets them: as commands.
//!
//! Everything is measured from outside, on the wall clock of `CLOCK_MONOTONIC`, from just before a command
//! is started; only the phases within come from the command itself (`run --timing`).

mod bundle;
mod command;
mod memory;

use std::{path::Path, time::Duration};

use serde::Serialize;

use crate::{container::timeline::Timeline, program};
use bundle::Bundle;
pub use bundle::BundleError;
use command::Measured;
pub use memory::ProcessMemory;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BenchError {
    #[error("cannot run {program}")]
    Spawn {
        program: String,
        source: std::io::Error,
    },
    #[error("{program} failed ({status}): {output}")]
    Failed {
        program: String,
        status: std::process::ExitStatus,
        output: String,
    },
    #[error("{program} printed no times")]
    Timing {
        program: String,
        source: serde_json::Error,
    },
    #[error("cannot look at the processes of {program}")]
    Memory {
        program: String,
        source: std::io::Error,
    },
    #[error("cannot make a bundle of the image for other runtimes")]
    Bundle(#[from] BundleError),
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct StartConfig {
    /// The image, as `run` takes it. It must have the programs `echo` and `cat`.
    pub image: String,
    /// How often each runtime is started.
    pub runs: usize,
    /// Guest memory, as `-m` takes it.
    pub memory: String,
}

/// Percentiles of one figure in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// All but one of a hundred are at most this.
    pub p99: f64,
}

/// One runtime's figures.
#[derive(Debug, Serialize)]
pub struct RuntimeReport {
    /// Which: `pillbug`, `runc`, `crun`.
    pub name: &'static str,
    /// From the command to the first byte of output of the container's process.
    pub first_output: Percentiles,
    /// From the command's start to its end.
    pub whole: Percentiles,
    /// Processes on the host while the container is idle.
    pub idle: Vec<ProcessMemory>,
}

/// What [`start`] measured.
#[derive(Debug, Serialize)]
pub struct StartReport {
    /// Which image.
    pub image: String,
    /// How often each runtime was started.
    pub runs: usize,
    /// Release of the host's kernel.
    pub host_kernel: String,
    /// Release of the guest's kernel.
    pub guest_kernel: String,
    /// Guest memory, as asked for.
    pub memory: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Phases of pillbug's start, in order.
    pub phases: Vec<(&'static str, Percentiles)>,
    /// From the command to the first instruction of the container's process.
    pub start: Percentiles,
    /// Pillbug first, then what else is installed.
    pub runtimes: Vec<RuntimeReport>,
    /// Runtimes that were not measured, and why.
    pub absent: Vec<(&'static str, String)>,
}

/// Starts `config.image` again and again with pillbug and, in turn, with runc and crun where they are
/// installed, and says what each start took.
///
/// # Errors
///
/// Where a command fails that should not.
pub fn start(config: &StartConfig, state_root: &Path) -> Result<StartReport, BenchError> {
    let (bundle, absent) = peers(config, state_root)?;
    let peers: Vec<&'static str> = ["runc", "crun"]
        .into_iter()
        .filter(|name| bundle.is_some() && !absent.iter().any(|(missing, _)| missing == name))
        .collect();
    // Once before it counts, so that every cache is as warm for the first run as for the last.
    let guest_kernel = command::guest_release(config)?;
    let mut timelines = Vec::new();
    let mut measured: Vec<(&'static str, Vec<Measured>)> = std::iter::once("pillbug")
        .chain(peers)
        .map(|name| (name, Vec::new()))
        .collect();
    for round in 0..=config.runs {
        for (name, results) in &mut measured {
            let (result, timeline) = match (*name, &bundle) {
                ("pillbug", _) => command::pillbug(config).map(|(run, time)| (run, Some(time)))?,
                (_, Some(bundle)) => (command::peer(name, bundle, round)?, None),
                (_, None) => continue,
            };
            if round > 0 {
                results.push(result);
                timelines.extend(timeline);
            }
        }
    }
    let runtimes = measured
        .iter()
        .map(|(name, results)| {
            Ok(RuntimeReport {
                name,
                first_output: percentiles(results.iter().map(|run| run.first_output)),
                whole: percentiles(results.iter().map(|run| run.whole)),
                idle: match (&bundle, *name) {
                    (Some(bundle), name) if name != "pillbug" => memory::of_peer(name, bundle)?,
                    _ => memory::of_pillbug(config)?,
                },
            })
        })
        .collect::<Result<_, BenchError>>()?;
    Ok(StartReport {
        image: config.image.clone(),
        runs: config.runs,
        host_kernel: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        guest_kernel,
        memory: config.memory.clone(),
        vcpus: 1,
        phases: phases(&timelines),
        start: percentiles(timelines.iter().filter_map(Timeline::start)),
        runtimes,
        absent,
    })
}

/// A bundle for the other runtimes, and those that cannot be measured.
#[allow(clippy::type_complexity, reason = "one private call")]
fn peers(
    config: &StartConfig,
    state_root: &Path,
) -> Result<(Option<Bundle>, Vec<(&'static str, String)>), BenchError> {
    let missing = |program: &str| format!("{program} is not installed");
    let mut absent: Vec<_> = ["runc", "crun"]
        .into_iter()
        .filter(|name| program::find(name).is_none())
        .map(|name| (name, missing(name)))
        .collect();
    if absent.len() == 2 {
        return Ok((None, absent));
    }
    if program::find("umoci").is_none() {
        absent = ["runc", "crun"]
            .map(|name| (name, missing("umoci, which unpacks for it,")))
            .into();
        return Ok((None, absent));
    }
    Ok((Some(Bundle::make(&config.image, state_root)?), absent))
}

fn phases(timelines: &[Timeline]) -> Vec<(&'static str, Percentiles)> {
    let Some(first) = timelines.first() else {
        return Vec::new();
    };
    let names = first.phases().map(|(name, _)| name);
    let column = |index: usize| {
        timelines
            .iter()
            .map(move |timeline| timeline.phases()[index].1)
    };
    names
        .into_iter()
        .enumerate()
        .map(|(index, name)| (name, percentiles(column(index))))
        .collect()
}

/// Nearest-rank percentiles; zeroes of nothing.
fn percentiles(durations: impl Iterator<Item = Duration>) -> Percentiles {
    let mut sorted: Vec<f64> = durations
        .map(|duration| duration.as_secs_f64() * 1e3)
        .collect();
    sorted.sort_by(f64::total_cmp);
    let rank = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(0.0)
    };
    Percentiles {
        p50: rank(50),
        p90: rank(90),
        p99: rank(99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let of = |values: &[u64]| percentiles(values.iter().map(|ms| Duration::from_millis(*ms)));
        assert_eq!(
            of(&[3, 1, 2]),
            Percentiles {
                p50: 2.0,
                p90: 3.0,
                p99: 3.0
            }
        );
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(
            of(&hundred),
            Percentiles {
                p50: 50.0,
                p90: 90.0,
                p99: 99.0
            }
        );
        assert_eq!(
            of(&[]),
            Percentiles {
                p50: 0.0,
                p90: 0.0,
                p99: 0.0
            }
        );
    }
}
