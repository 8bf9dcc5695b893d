//! The first process of a pillbug virtual machine: it sets the container up, runs its processes,
//! carries their streams, and powers the machine off. `docs/guest-protocol.md` tells what it is asked
//! and what it answers.
//!
//! It deliberately has no configuration, reads nothing from the kernel command line, listens on
//! nothing, starts no thread, and never panics: that would be the kernel's panic.
#![deny(unsafe_code)]

use std::process::ExitCode;

use rustix::{
    process::{DumpableBehavior, getpid, set_dumpable_behavior},
    time::{ClockId, clock_gettime},
};

mod agent;
mod cgroup;
mod container;
mod control;
mod etc;
mod failure;
mod fill;
mod forward;
mod init;
mod mount;
mod names;
mod network;
mod power;
mod process;
mod program;
mod redirect;
mod relay;
mod rootfs;
mod sandbox;
mod shares;
mod spawn;
mod stream;
mod sys;
mod target;
mod terminal;
mod transfer;
mod usage;
mod user;

fn main() -> ExitCode {
    let started_ns = now_ns();
    if getpid().as_raw_nonzero().get() != 1 {
        eprintln!(
            "this program is the first process of a virtual machine and does nothing elsewhere"
        );
        return ExitCode::FAILURE;
    }
    // Nobody but the kernel looks into the agent or its children before they execute something else.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        power::report("cannot protect memory", &error);
    }
    if let Err(error) = agent::run(started_ns) {
        power::report("cannot go on", &error);
    }
    power::off()
}

/// Nanoseconds of the monotonic clock.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative on a clock that begins at boot.
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
