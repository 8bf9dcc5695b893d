//! The process of a switch: what runs when this program is started to be one.
//!
//! It is two, so that it is nobody's child: the first starts the second, and ends. The second has one socket, on which
//! machines are handed to it, opens nothing, and may make no system call that does.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, ExitCode, Stdio},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rustix::net::{SendFlags, SocketFlags, acceptfrom_with, send};

use super::{
    FULL, JOINED, Member, SWITCH_PROCESS,
    fabric::{Fabric, Side},
    receive,
};
use crate::seccomp::{self, SeccompError};

/// Tells the second process from the first.
const SECOND: &str = "--inside";
/// Most machines of a network.
const MAX_MEMBERS: usize = 1024;
/// Most connections that have not said which machine they are about; further ones wait.
const MAX_GUESTS: usize = 64;

/// What frames between sockets take, and what a Rust program needs beside.
const ALLOWED: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_poll,
    libc::SYS_close,
    libc::SYS_write,
    libc::SYS_futex,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Why there is no switch.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error("cannot start the second process")]
    Second(#[source] io::Error),
    #[error("cannot forbid system calls")]
    Seccomp(#[from] SeccompError),
    #[error("cannot wait for frames")]
    Wait(#[source] nix::Error),
}

/// Becomes the switch whose socket is standard input; `arguments` follow its name.
#[must_use]
pub fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.collect();
    let Ok(listener) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let result = match arguments.iter().any(|argument| argument == SECOND) {
        true => seccomp::enter(ALLOWED)
            .map_err(ProcessError::from)
            .and_then(|()| serve(&listener)),
        false => first(listener, &arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error)
                .map_or(String::new(), |cause| format!(": {cause}"));
            eprintln!("pillbug: the switch of a network: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

fn first(listener: OwnedFd, arguments: &[std::ffi::OsString]) -> Result<(), ProcessError> {
    Command::new("/proc/self/exe")
        .arg0("pillbug")
        .arg(SWITCH_PROCESS)
        .args(arguments)
        .arg(SECOND)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .spawn()
        .map_err(ProcessError::Second)?;
    Ok(())
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
enum Source {
    Listener,
    /// Somebody who has not said which machine it is about.
    Guest(usize),
    /// Who put a machine here.
    Control(usize),
    Line(usize, Side),
}

/// Everybody who is connected.
#[derive(Default)]
struct Switch {
    guests: Vec<Option<OwnedFd>>,
    fabric: Fabric,
}

/// Serves until nobody is connected any more.
fn serve(listener: &OwnedFd) -> Result<(), ProcessError> {
    let mut switch = Switch::default();
    loop {
        switch.accept(listener);
        if switch.guests.is_empty() && switch.fabric.ports().is_empty() {
            return Ok(());
        }
        for (source, flags) in switch.wait(listener)? {
            switch.handle(source, flags);
        }
        switch.guests.retain(Option::is_some);
        switch.fabric.settle();
    }
}

impl Switch {
    fn accept(&mut self, listener: &OwnedFd) {
        while self.guests.len() < MAX_GUESTS
            && let Ok((guest, _)) = acceptfrom_with(listener, SocketFlags::CLOEXEC)
        {
            self.guests.push(Some(guest));
        }
    }

    fn wait(&self, listener: &OwnedFd) -> Result<Vec<(Source, PollFlags)>, ProcessError> {
        let read = PollFlags::POLLIN;
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> = Vec::new();
        if self.guests.len() < MAX_GUESTS {
            watched.push((Source::Listener, listener.as_fd(), read));
        }
        for (number, guest) in self.guests.iter().enumerate() {
            watched.extend(
                guest
                    .iter()
                    .map(|guest| (Source::Guest(number), guest.as_fd(), read)),
            );
        }
        for (number, port) in self.fabric.ports().iter().enumerate() {
            let control = port.control();
            watched.extend(control.map(|control| (Source::Control(number), control, read)));
            for side in [Side::Machine, Side::WayOut] {
                let line = port.watched(side);
                watched.extend(line.map(|(line, flags)| (Source::Line(number, side), line, flags)));
            }
        }
        let mut descriptors: Vec<PollFd<'_>> = watched
            .iter()
            .map(|(_, descriptor, flags)| PollFd::new(*descriptor, *flags))
            .collect();
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(ProcessError::Wait(error)),
        }
        let ready = watched.iter().zip(&descriptors);
        Ok(ready
            .map(|((source, ..), descriptor)| (*source, descriptor.revents()))
            .map(|(source, flags)| (source, flags.unwrap_or(PollFlags::POLLERR)))
            .filter(|(_, flags)| !flags.is_empty())
            .collect())
    }

    fn handle(&mut self, source: Source, flags: PollFlags) {
        match source {
            // The next turn begins with it.
            Source::Listener => {}
            Source::Guest(number) => {
                if let Some(guest) = self.guests[number].take() {
                    self.admit(guest);
                }
            }
            // Nothing is said there but that it is over.
            Source::Control(number) => self.fabric.remove(number),
            Source::Line(number, side) => self.fabric.advance(number, side, flags),
        }
    }

    /// Who says nothing that makes sense is sent away.
    fn admit(&mut self, guest: OwnedFd) {
        let Ok(Some((message, streams))) = receive(guest.as_fd()) else {
            return;
        };
        let Ok(member) = serde_json::from_slice::<Member>(&message) else {
            return;
        };
        let is_full = self.fabric.ports().len() >= MAX_MEMBERS;
        let answer = if is_full { FULL } else { JOINED };
        // Who has gone meanwhile is noticed when it is looked at.
        let _ = send(&guest, answer, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        if !is_full {
            self.fabric.add(guest, &member, streams);
        }
    }
}

#[cfg(test)]
pub(super) mod thread {
    use super::*;

    /// A switch in a thread, which ends as its process would.
    pub fn start(listener: OwnedFd) -> std::thread::JoinHandle<bool> {
        std::thread::spawn(move || serve(&listener).is_ok())
    }
}
