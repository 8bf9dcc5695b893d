//! The first process of a container with `--init`: passes signals on to the program and reaps what
//! the program's orphans leave.

use std::process::exit;

use rustix::{
    process::{Pid, WaitOptions, WaitStatus, wait},
    termios::tcsetpgrp,
};

use crate::{
    failure::{At, Failure},
    sys::{self, Forked},
};

/// Splits the calling process in two: the parent stays as init and never returns, the child goes on
/// to become the program, in a process group of its own, and in front where there is a terminal.
///
/// # Errors
///
/// At [`protocol::StartStage::Fork`].
pub fn split(terminal: bool) -> Result<(), Failure> {
    // Before the fork, so that no signal and no end of the child is missed.
    sys::block_signals();
    match sys::fork(0, None).at(protocol::StartStage::Fork, "init")? {
        Forked::Parent { pid, .. } => run(pid),
        Forked::Child => {
            let set = rustix::process::setpgid(None, None);
            set.at(protocol::StartStage::Fork, "process group")?;
            if terminal {
                // SIGTTOU is among the blocked, or this would stop the process.
                tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid())
                    .at(protocol::StartStage::Terminal, "foreground process group")?;
            }
            sys::unblock_signals();
            Ok(())
        }
    }
}

fn run(program: libc::pid_t) -> ! {
    // The report and the streams are the program's alone.
    let _ = sys::close_all();
    loop {
        match sys::next_signal() {
            Ok(libc::SIGCHLD) => reap(program),
            // The program may be gone already, which the next SIGCHLD tells.
            Ok(signal) => drop(sys::kill(program, signal)),
            Err(_) => {}
        }
    }
}

/// Waits for all that have ended, and ends the container with the program.
fn reap(program: libc::pid_t) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if Pid::as_raw(Some(pid)) == program {
            exit(exit_code(status));
        }
    }
}

fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}
