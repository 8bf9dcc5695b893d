//! How a container is, as it is written down whenever that changes.
//!
//! ```text
//! create ─► Created ─► Running ─► Exited
//!    run ─► Starting ─────┘ ▲        │
//!                           └─ start ┘
//! ```
//!
//! `Starting` and `Running` hold only while somebody holds the container's lock.

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
    /// What went wrong, where the process did not just end.
    pub error: Option<String>,
}

impl Status {
    /// The word for it that lists and filters use.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created { .. } | Self::Starting => "created",
            Self::Running(_) => "running",
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
                error: Some("the process that ran it was killed, or the host went down".into()),
            })),
            _ => None,
        }
    }
}
