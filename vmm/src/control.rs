//! What a running machine tells its parent.

use serde::{Deserialize, Serialize};

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
    /// The host could not go on.
    HostError {
        /// The error and its causes.
        message: String,
    },
}
