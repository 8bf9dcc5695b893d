//! The share process: what runs when this program is started to be one.
//!
//! It is two, since only a child is in a new PID namespace: the first makes the namespaces and the second, and
//! ends.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, unshare};

use super::{
    FromProcess, SHARE_PROCESS, Share, ShareError,
    jail::{self, JailError},
    seccomp::ALLOWED,
    server::Server,
};
use crate::{
    own_process::{receive, send},
    seccomp::{self, SeccompError},
    user_namespace::{self, UserNamespaceError},
};

/// Tells the second process from the first.
const SECOND: &str = "--inside";

/// Threads that answer: while one waits for a disk, others need not.
const THREADS: usize = 4;

/// Address space of the stack of each in bytes; the library keeps small things only on it.
const STACK: usize = 256 << 10;

/// Why there is no share process.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error("cannot make namespaces")]
    Unshare(#[source] nix::Error),
    #[error(transparent)]
    Users(#[from] UserNamespaceError),
    #[error(transparent)]
    Control(#[from] ShareError),
    #[error("cannot start the second process")]
    Second(#[source] io::Error),
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error("cannot read the shared folders")]
    Server(#[source] io::Error),
    #[error("cannot forbid system calls")]
    Seccomp(#[from] SeccompError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Becomes the share process whose control socket is standard input; `arguments` follow its name.
#[must_use]
pub fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let is_second = arguments.into_iter().any(|argument| argument == SECOND);
    let result = match is_second {
        true => second(&control),
        false => first(&control),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let reason = chain(&error);
            // Whoever started this may be gone.
            let _ = send(control.as_fd(), &FromProcess::Refused(reason), None);
            ExitCode::FAILURE
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn first(control: &OwnedFd) -> Result<(), ProcessError> {
    if !rustix::process::geteuid().is_root() {
        user_namespace::enter(control.as_fd())?;
    }
    let others = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(others).map_err(ProcessError::Unshare)?;
    let label = std::env::args_os().nth(2).unwrap_or_default();
    Command::new("/proc/self/exe")
        .arg0("pillbug")
        .arg(SHARE_PROCESS)
        .arg(label)
        .arg(SECOND)
        .stdin(Stdio::from(clone(control.as_fd())?))
        .stdout(Stdio::null())
        .spawn()
        .map_err(ProcessError::Second)?;
    Ok(())
}

fn clone(fd: BorrowedFd<'_>) -> Result<OwnedFd, ProcessError> {
    fd.try_clone_to_owned().map_err(ProcessError::Second)
}

fn second(control: &OwnedFd) -> Result<(), ProcessError> {
    let message = receive::<Vec<Share>>(control.as_fd()).map_err(ShareError::Talk)?;
    let Some((shares, Some(socket))) = message else {
        return Ok(());
    };
    jail::enter(&shares)?;
    let server = Arc::new(Server::new(jail::SHARES).map_err(ProcessError::Server)?);
    jail::drop_privileges()?;
    seccomp::enter(ALLOWED)?;
    let socket = Arc::new(socket);
    for _ in 0..THREADS {
        let (server, socket) = (server.clone(), socket.clone());
        thread::Builder::new()
            .stack_size(STACK)
            // The device may go before who runs the sandbox says that this is over.
            .spawn(move || server.serve(&socket))
            .map_err(ProcessError::Thread)?;
    }
    send(control.as_fd(), &FromProcess::Ready, None).map_err(ShareError::Talk)?;
    // Nothing more is to be said: what comes is the end.
    let _ = receive::<()>(control.as_fd());
    std::process::exit(0)
}
