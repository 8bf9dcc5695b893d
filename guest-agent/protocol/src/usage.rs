//! What the container uses and may use, and its processes.

use serde::{Deserialize, Serialize};

/// What the container may use of its machine, kept by the guest's kernel; none is no limit. The host keeps the
/// machine as a whole to its own limits; these let the container's accounts add up and leave the agent its part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time in billionths of one processor, 10⁷ or more (`cpu.max`).
    pub nano_cpus: Option<u64>,
    /// Memory in bytes (`memory.max`).
    pub memory_bytes: Option<u64>,
    /// Processes and threads (`pids.max`).
    pub pids: Option<u64>,
}

/// What the container uses, as its control group says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Nanoseconds of the guest's monotonic clock when this was so.
    pub at_ns: u64,
    /// Processor time so far in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in bytes, without the page cache that nobody has used lately.
    pub memory_bytes: u64,
    /// All memory that the guest's kernel has to give, in bytes.
    pub memory_total_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// The processes of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessList {
    /// Hundredths of a second since the machine started.
    pub at_ticks: u64,
    /// By their IDs in the container, at most [`MAX_COUNT`](Self::MAX_COUNT).
    pub processes: Vec<ProcessInfo>,
}

impl ProcessList {
    /// Most processes that are told of.
    pub const MAX_COUNT: usize = 4096;
}

/// A process of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its ID in the container.
    pub pid: u32,
    /// That of its parent; 0 where that is outside of the container.
    pub ppid: u32,
    /// Effective user ID.
    pub uid: u32,
    /// One letter: `R`, `S`, `D`, `Z`, `T` and so on, as ps(1) has it.
    pub state: char,
    /// When it started, in hundredths of a second since the machine did.
    pub started_ticks: u64,
    /// Processor time so far in hundredths of a second.
    pub cpu_ticks: u64,
    /// Device number of its terminal; 0 for none.
    pub terminal: u32,
    /// Memory that is its own or shared and resident, in bytes.
    pub resident_bytes: u64,
    /// Arguments separated by spaces, or its name in brackets where it has none; at most
    /// [`MAX_COMMAND`](Self::MAX_COMMAND) bytes.
    pub command: String,
}

impl ProcessInfo {
    /// Longest command that is told, in bytes.
    pub const MAX_COMMAND: usize = 512;
}
