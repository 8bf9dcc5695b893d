//! What is done to containers that exist: one function a verb. Each looks at the disk, talks to the supervisor where there
//! is one, and leaves the rest to it.

use std::{io, os::fd::AsFd, path::Path, thread};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    error::RunError,
    launch::{self, connect, wait_exit},
    limits,
    log::LogWatch,
    name::Id,
    session::{Attach, Exec, Reply, Request, Session},
    state::{Container, Containers, Record, StateError},
    status::Status,
    timeline::{Timeline, now_ns},
    volumes,
};

/// Starts a container that does not run, attached where that is asked for; `None` where it runs already.
///
/// # Errors
///
/// Where there is none, or no supervisor can be started. Whether its process runs, the session tells.
pub fn start(
    state_root: &Path,
    containers: &Containers,
    id: &Id,
    attach: Option<Attach>,
) -> Result<Option<Session>, RunError> {
    let Some(container) = containers.hold(id)? else {
        return match containers.record(id)?.status {
            Status::Created { .. } | Status::Exited(_) => {
                Err(StateError::Busy(id.short().into()).into())
            }
            _ => Ok(None),
        };
    };
    let timeline = Timeline {
        command_ns: now_ns(),
        ..Timeline::default()
    };
    launch::launch(state_root, container, attach, timeline).map(Some)
}

/// Whether a container should be started now that its host has started.
#[must_use]
pub fn should_run(record: &Record) -> bool {
    match &record.status {
        Status::Exited(exited) => {
            let policy = record.spec.restart;
            policy.starts_with_host(exited.code != 0, exited.stopped)
        }
        // It never ran, or it runs.
        _ => false,
    }
}

/// Asks a container to end, and waits until it has. One that does not run has.
///
/// # Errors
///
/// Where its supervisor cannot be talked to.
pub fn stop(
    containers: &Containers,
    id: &Id,
    signal: Option<u8>,
    timeout: Option<i64>,
) -> Result<(), RunError> {
    match connect(containers, id, Request::Stop { signal, timeout })? {
        Some(session) => end(session),
        None => Ok(()),
    }
}

/// Until a container has ended; one whose supervisor is killed has, too.
fn end(mut session: Session) -> Result<(), RunError> {
    match wait_exit(&mut session) {
        Ok(_) | Err(RunError::Lost) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sends a container's process a signal.
///
/// # Errors
///
/// [`StateError::NotRunning`].
pub fn kill(containers: &Containers, id: &Id, signal: u8) -> Result<(), RunError> {
    let Some(mut session) = connect(containers, id, Request::Signal(signal))? else {
        return Err(StateError::NotRunning(id.short().into()).into());
    };
    match session.wait::<Reply>()? {
        Some(_) => Ok(()),
        None => Err(StateError::NotRunning(id.short().into()).into()),
    }
}

/// Lets nothing in a container run for a while, or lets it go on.
///
/// # Errors
///
/// [`StateError::NotRunning`], or where it is paused, or not, already.
pub fn pause(containers: &Containers, id: &Id, pause: bool) -> Result<(), RunError> {
    let not_running = || StateError::NotRunning(id.short().into());
    let session = connect(containers, id, Request::Pause(pause))?;
    match session.ok_or_else(not_running)?.wait::<Reply>()? {
        Some(Reply::Failed { message, code, .. }) => Err(RunError::Supervisor { message, code }),
        Some(_) => Ok(()),
        None => Err(not_running().into()),
    }
}

/// Gives a container another name, by which others on its networks find it at once.
///
/// # Errors
///
/// Where there is none, the name is none or taken, or its supervisor cannot be told.
pub fn rename(containers: &Containers, id: &Id, name: &str) -> Result<(), RunError> {
    containers.rename(id, name)?;
    limits::reload(containers, id).map(drop)
}

/// Waits until a container does not run, and returns its exit code; 0 where it never ran.
///
/// # Errors
///
/// Where there is none, or it was removed meanwhile.
pub fn wait(containers: &Containers, id: &Id) -> Result<u8, RunError> {
    if let Some(mut session) = connect(containers, id, Request::Wait)? {
        match wait_exit(&mut session) {
            Err(RunError::Lost) => {}
            code => return code,
        }
    }
    containers.sweep()?;
    Ok(match containers.record(id)?.status {
        Status::Exited(exited) => exited.code,
        _ => 0,
    })
}

/// Removes a container.
///
/// # Errors
///
/// [`StateError::Running`] without `force`.
pub fn remove(containers: &Containers, id: &Id, removal: Removal) -> Result<(), RunError> {
    let mounts = match removal.volumes {
        true => containers.record(id).map(|record| record.spec.mounts),
        false => Ok(Vec::new()),
    };
    remove_only(containers, id, removal.force)?;
    volumes::remove_anonymous(containers, &mounts.unwrap_or_default())
}

/// What goes with a container, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Removal {
    /// End it first where it runs.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
}

fn remove_only(containers: &Containers, id: &Id, force: bool) -> Result<(), RunError> {
    if !force {
        return Ok(containers.remove(id)?);
    }
    if let Some(session) = connect(containers, id, Request::Kill)? {
        end(session)?;
    }
    let held = match containers.hold(id) {
        Ok(None) => hold_against(containers, id)?,
        Ok(Some(container)) => Ok(container),
        Err(error) => Err(error),
    };
    match held {
        Ok(container) => Ok(containers.remove_held(container)?),
        // It went by itself.
        Err(StateError::NotFound(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Holds a container that somebody else holds, who is about to run it, or to let go of it. Where that one comes to run it,
/// it is ended.
fn hold_against(
    containers: &Containers,
    id: &Id,
) -> Result<Result<Container, StateError>, RunError> {
    // The socket of whoever runs it appears here.
    let watch = LogWatch::new(&containers.container_folder(id)).map_err(RunError::Launch)?;
    let (held, hold) = io::pipe().map_err(RunError::Launch)?;
    Ok(thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                if let Ok(Some(session)) = connect(containers, id, Request::Kill) {
                    // Whatever its end was: the lock says when it is over.
                    let _ = end(session);
                }
                let mut watched = [
                    PollFd::new(watch.descriptor(), PollFlags::POLLIN),
                    PollFd::new(held.as_fd(), PollFlags::POLLIN),
                ];
                let ready = poll(&mut watched, PollTimeout::NONE);
                if ready.is_err_and(|error| error != Errno::EINTR) || watched[1].any() == Some(true)
                {
                    return;
                }
                watch.clear();
            }
        });
        let container = containers.hold_soon(id);
        drop(hold);
        container
    }))
}

/// Connects to the streams of a container that runs.
///
/// # Errors
///
/// [`StateError::NotRunning`].
pub fn attach(containers: &Containers, id: &Id, attach: Attach) -> Result<Session, RunError> {
    connect(containers, id, Request::Attach(attach))?
        .ok_or_else(|| StateError::NotRunning(id.short().into()).into())
}

/// Runs another process in a container that runs.
///
/// # Errors
///
/// [`StateError::NotRunning`]. Whether the process runs, the session tells.
pub fn exec(containers: &Containers, id: &Id, exec: Exec) -> Result<Session, RunError> {
    connect(containers, id, Request::Exec(Box::new(exec)))?
        .ok_or_else(|| StateError::NotRunning(id.short().into()).into())
}
