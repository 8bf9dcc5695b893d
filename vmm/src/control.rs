//! What a running machine and its parent tell each other.

use serde::{Deserialize, Serialize};

/// Sent by the parent over the control socket, one a datagram, once the machine is [`Event::Running`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Ask the guest to do without this many bytes of its memory.
    Balloon {
        /// Rounded down to pages.
        bytes: u64,
    },
    /// Let no vCPU run until [`Command::Resume`].
    Pause,
    /// Let the vCPUs go on.
    Resume,
    /// Limit the processor time of the whole process.
    Throttle {
        /// In billionths of one processor; none is no limit.
        nano_cpus: Option<u64>,
    },
    /// Tell what passed the devices so far: answered with [`Event::Counters`].
    Count,
}

/// What passed a device since the machine was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes to the guest: read from a disk, received from a network.
    pub in_bytes: u64,
    /// In how many requests or frames.
    pub ins: u64,
    /// Bytes from the guest: written to a disk, sent to a network.
    pub out_bytes: u64,
    /// In how many requests or frames.
    pub outs: u64,
}

/// What a machine counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Of each block device, in order.
    pub blocks: Vec<Traffic>,
    /// Of each network device, in order.
    pub nets: Vec<Traffic>,
    /// Bytes that the guest does without, as it says.
    pub balloon_bytes: u64,
}

/// Sent by the machine over its control socket, one a datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// All is built and the first vCPU is about to enter the guest.
    Running {
        /// `CLOCK_MONOTONIC` in nanoseconds when the process's `main` began.
        process_started_ns: u64,
        /// ... when guest memory, kernel and devices were in place.
        built_ns: u64,
    },
    /// The guest connected to this host port. The datagram carries one descriptor: a Unix stream
    /// socket that is the host's end.
    Connected {
        /// Of [`VsockConfig::host_ports`](crate::VsockConfig::host_ports).
        port: u32,
    },
    /// The answer to [`Command::Count`].
    Counters(Counters),
    /// The machine has ended; the last event.
    Ended(Ending),
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest triple-faulted.
    TripleFault,
    /// The guest kernel panicked, with the line that says why where it was seen (at most 1 KiB).
    Panic {
        /// From the console.
        message: String,
    },
    /// The parent closed the control socket.
    Killed,
    /// The host's out-of-memory killer ended the VMM: what its parent finds out, since the VMM cannot say so.
    HostOom,
    /// The host could not go on.
    HostError {
        /// The error and its causes.
        message: String,
    },
}
