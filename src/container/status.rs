//! How a container is, as it is written down whenever that changes.
//!
//! ```text
//! create ─► Created ─► Running ◄─► Restarting
//!    run ─► Starting ─────┘ ▲ └───────┐ │
//!                           │         ▼ ▼
//!                           └─ start ─ Exited
//! ```
//!
//! `Starting`, `Running` and `Restarting` hold only while somebody holds the container's lock.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Exit code of a container whose end nobody saw: as if killed by SIGKILL.
pub const ORPHANED: u8 = 137;

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It never ran.
    Created {
        /// Why its last start failed.
        error: Option<String>,
    },
    /// `run` is about to start it for the first time. It goes with whoever does, if that fails.
    Starting,
    /// Its VM runs.
    Running(Running),
    /// It ended, and is about to be started again.
    Restarting(Restarting),
    /// It ended.
    Exited(Exited),
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Since when.
    pub since: SystemTime,
    /// Process ID of its supervisor.
    pub supervisor_pid: u32,
    /// Process ID of its VMM.
    pub vmm_pid: u32,
    /// How often its policy has started it again.
    #[serde(default)]
    pub restarts: u32,
    /// Its machine stands still.
    #[serde(default)]
    pub paused: bool,
}

/// A container between two runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarting {
    /// How the last one ended.
    pub last: Exited,
    /// Process ID of its supervisor.
    pub supervisor_pid: u32,
}

/// A container that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// When it had started.
    pub since: SystemTime,
    /// When it ended.
    pub at: SystemTime,
    /// Exit code in Docker's sense.
    pub code: u8,
    /// The guest ran out of memory and killed a process of the container.
    pub oom_killed: bool,
    /// The host ran out of memory and killed the machine.
    #[serde(default)]
    pub host_oom_killed: bool,
    /// What went wrong, where the process did not just end.
    pub error: Option<String>,
    /// How often its policy had started it again.
    #[serde(default)]
    pub restarts: u32,
    /// Somebody ended it.
    #[serde(default)]
    pub stopped: bool,
}

impl Status {
    /// The word for it that lists and filters use.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created { .. } | Self::Starting => "created",
            Self::Running(Running { paused: true, .. }) => "paused",
            Self::Running(_) => "running",
            Self::Restarting(_) => "restarting",
            Self::Exited(_) => "exited",
        }
    }

    /// What becomes of it when whoever ran it is gone without a word; `None` where nothing does.
    #[must_use]
    pub fn orphaned(&self, now: SystemTime) -> Option<Self> {
        match self {
            Self::Running(running) => Some(Self::Exited(Exited {
                since: running.since,
                at: now,
                code: ORPHANED,
                oom_killed: false,
                host_oom_killed: false,
                error: Some("the process that ran it was killed, or the host went down".into()),
                restarts: running.restarts,
                stopped: false,
            })),
            Self::Restarting(restarting) => Some(Self::Exited(restarting.last.clone())),
            Self::Created { .. } | Self::Starting | Self::Exited(_) => None,
        }
    }

    /// Whether somebody runs it, or is about to run it again.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Running(_) | Self::Restarting(_))
    }

    /// How often its policy has started it again since it was last started by hand.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        match self {
            Self::Created { .. } | Self::Starting => 0,
            Self::Running(running) => running.restarts,
            Self::Restarting(restarting) => restarting.last.restarts,
            Self::Exited(exited) => exited.restarts,
        }
    }
}
