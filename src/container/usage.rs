//! What a container uses: what its guest says beside what the host pays for all of its processes.

use std::{
    collections::BTreeSet,
    fs, io,
    time::{Duration, Instant},
};

use nix::unistd::{SysconfVar, sysconf};
use protocol::ProcessList;
use serde::{Deserialize, Serialize};
use vmm::{Counters, Traffic};

use super::{
    error::RunError,
    launch::connect,
    name::Id,
    session::{Reply, Request, Session},
    state::{Containers, StateError},
};

/// What a supervisor tells of its container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// What the guest says; none from one that does not answer.
    pub guest: Option<protocol::Usage>,
    /// What the VMM has counted.
    pub counters: Counters,
    /// What passed published ports and none of its devices.
    pub carried: Traffic,
    /// Bytes of memory that the machine was given.
    pub memory_bytes: u64,
    /// Process ID of the supervisor, whose children all others are.
    pub supervisor_pid: u32,
}

/// What a container uses at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What its supervisor told.
    pub measured: Measured,
    /// What the host pays.
    pub host: HostCost,
    /// When this was so.
    pub at: Instant,
}

/// What the host pays for all processes of a container: supervisor, VMM, and what serves them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostCost {
    /// Processor time so far.
    pub cpu: Duration,
    /// Proportional set size in bytes: memory, each shared page divided by who shares it.
    pub pss_bytes: u64,
    /// Processes.
    pub processes: u64,
}

/// How much of one processor, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// By the guest's own account.
    pub guest: f64,
    /// By the host's.
    pub host: f64,
}

impl Sample {
    /// What was used since an earlier sample.
    #[must_use]
    pub fn share_since(&self, earlier: &Self) -> Share {
        let guest = match (self.measured.guest, earlier.measured.guest) {
            (Some(now), Some(then)) => percent(
                Duration::from_nanos(now.cpu_ns.saturating_sub(then.cpu_ns)),
                Duration::from_nanos(now.at_ns.saturating_sub(then.at_ns)),
            ),
            _ => 0.0,
        };
        let host = percent(
            self.host.cpu.saturating_sub(earlier.host.cpu),
            self.at.saturating_duration_since(earlier.at),
        );
        Share { guest, host }
    }

    /// What passed all network devices, and published ports beside them.
    #[must_use]
    pub fn network(&self) -> Traffic {
        let nets = &self.measured.counters.nets;
        sum(nets.iter().chain([&self.measured.carried]))
    }

    /// What passed all disks.
    #[must_use]
    pub fn disks(&self) -> Traffic {
        sum(self.measured.counters.blocks.iter())
    }
}

fn percent(used: Duration, passed: Duration) -> f64 {
    match passed.is_zero() {
        true => 0.0,
        false => 100.0 * used.as_secs_f64() / passed.as_secs_f64(),
    }
}

fn sum<'a>(all: impl Iterator<Item = &'a Traffic>) -> Traffic {
    let mut sum = Traffic::default();
    for one in all {
        sum.in_bytes = sum.in_bytes.saturating_add(one.in_bytes);
        sum.ins = sum.ins.saturating_add(one.ins);
        sum.out_bytes = sum.out_bytes.saturating_add(one.out_bytes);
        sum.outs = sum.outs.saturating_add(one.outs);
    }
    sum
}

/// What a container uses now; `None` where it does not run.
///
/// # Errors
///
/// Where there is no such container, or its supervisor cannot be talked to.
pub fn measure(containers: &Containers, id: &Id) -> Result<Option<Sample>, RunError> {
    let Some(mut session) = connect(containers, id, Request::Measure)? else {
        return Ok(None);
    };
    Ok(match session.wait()? {
        Some(Reply::Measured(measured)) => Some(Sample {
            host: host_cost(measured.supervisor_pid),
            measured,
            at: Instant::now(),
        }),
        _ => None,
    })
}

/// The processes of a container that runs.
///
/// # Errors
///
/// [`StateError::NotRunning`], and where its guest does not answer.
pub fn processes(containers: &Containers, id: &Id) -> Result<ProcessList, RunError> {
    let not_running = || RunError::from(StateError::NotRunning(id.short().into()));
    let mut session: Session =
        connect(containers, id, Request::ListProcesses)?.ok_or_else(not_running)?;
    match session.wait()? {
        Some(Reply::Processes(list)) => Ok(list),
        Some(Reply::Failed { message, code, .. }) => Err(RunError::Supervisor { message, code }),
        _ => Err(not_running()),
    }
}

/// What the host pays for a process and all of its descendants. One that ends meanwhile counts as far as it was seen.
fn host_cost(supervisor: u32) -> HostCost {
    let mut cost = HostCost::default();
    let mut seen = BTreeSet::new();
    let mut left = vec![supervisor];
    while let Some(pid) = left.pop() {
        if !seen.insert(pid) {
            continue;
        }
        cost.processes += 1;
        cost.cpu += processor_time(pid).unwrap_or_default();
        cost.pss_bytes += proportional(pid).unwrap_or(0);
        left.extend(children(pid).unwrap_or_default());
    }
    cost
}

fn processor_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in parentheses and may hold anything. The first field behind it is the third (proc_pid_stat(5)).
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let ticks: u64 = fields.iter().skip(11).take(2).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let per_second = u64::try_from(per_second).unwrap_or(100).max(1);
    Ok(Duration::from_millis(
        ticks.saturating_mul(1000) / per_second,
    ))
}

fn proportional(pid: u32) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) << 10)
}

fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let list = fs::read_to_string(thread?.path().join("children"))?;
        children.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_pays_for_a_process_and_its_children() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let cost = host_cost(std::process::id());
        assert!(cost.processes >= 2);
        assert!(cost.pss_bytes > 100 << 10);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn shares_are_of_the_time_between_samples() {
        let sample = |cpu_ns, at_ns| Sample {
            measured: Measured {
                guest: Some(protocol::Usage {
                    cpu_ns,
                    at_ns,
                    ..protocol::Usage::default()
                }),
                counters: Counters::default(),
                carried: Traffic::default(),
                memory_bytes: 0,
                supervisor_pid: 0,
            },
            host: HostCost::default(),
            at: Instant::now(),
        };
        let share = sample(3_000_000_000, 4_000_000_000).share_since(&sample(1_000_000_000, 0));
        assert!((share.guest - 50.0).abs() < 0.01);
        // A guest may say what it likes.
        assert!(sample(0, 0).share_since(&sample(5, 5)).guest.abs() < 0.01);
    }
}
