//! Starting a container's supervisor, and connecting to one that runs.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    error::RunError,
    name::Id,
    session::{Attach, FromCommand, Launch, Reply, Request, Session},
    state::{Container, Containers, StateError},
    supervisor::{LOG, SOCKET, SUPERVISE},
    timeline::Timeline,
};

/// Starts a supervisor for a container that this process holds, and hands the container over to it. From then on commands
/// find it by its socket, and nothing here needs to live on.
///
/// # Errors
///
/// Where no process or socket can be made; the container is held by nobody then.
#[allow(
    clippy::needless_pass_by_value,
    reason = "nobody may use it afterwards"
)]
pub fn launch(
    state_root: &Path,
    container: Container,
    attach: Option<Attach>,
    timeline: Timeline,
) -> Result<Session, RunError> {
    let launch = Launch {
        state_root: fs::canonicalize(state_root)
            .map_err(RunError::Launch)?
            .to_string_lossy()
            .into_owned(),
        id: container.spec().id.clone(),
        attach,
        timeline,
    };
    let listener = listen(container.folder()).map_err(RunError::Launch)?;
    let (ours, theirs) = UnixStream::pair().map_err(RunError::Launch)?;
    spawn(&container, theirs).map_err(RunError::Launch)?;
    let mut session = Session::new(ours);
    session.send(
        &FromCommand::Request(Request::Launch(launch)),
        &[container.lock(), listener.as_fd()],
    )?;
    Ok(session)
}

fn spawn(container: &Container, session: UnixStream) -> io::Result<()> {
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(container.folder().join(LOG))?;
    // Nobody waits for it: it outlives this process, or ends with its container while this one goes on.
    Command::new("/proc/self/exe")
        .arg0("pillbug")
        .args([SUPERVISE, container.spec().id.short()])
        .stdin(Stdio::from(OwnedFd::from(session)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .current_dir("/")
        .spawn()
        .map(drop)
}

/// A Unix socket in a folder whose own path may be longer than a socket's can be.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    let (_folder, path) = socket_path(folder)?;
    // It appears when it can be connected to, and not before: somebody may be waiting for it.
    let staging = path.with_added_extension("new");
    match fs::remove_file(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&staging)?;
    fs::rename(&staging, &path)?;
    Ok(listener)
}

fn socket_path(folder: &Path) -> io::Result<(File, PathBuf)> {
    let folder = File::open(folder)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    Ok((folder, path.into()))
}

/// Connects to the supervisor of a container, and makes a request; `None` where none runs.
///
/// # Errors
///
/// Where there is no such container, or its supervisor cannot be talked to.
pub fn connect(
    containers: &Containers,
    id: &Id,
    request: Request,
) -> Result<Option<Session>, RunError> {
    let folder = containers.container_folder(id);
    let (_folder, path) = match socket_path(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StateError::NotFound(id.short().into()).into());
        }
        found => found.map_err(RunError::Launch)?,
    };
    match UnixStream::connect(path) {
        Ok(socket) => {
            let mut session = Session::new(socket);
            match session.send(&FromCommand::Request(request), &[]) {
                Ok(()) => Ok(Some(session)),
                // It ended meanwhile.
                Err(protocol::frame::FrameError::Io(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(RunError::Launch(error)),
    }
}

/// Waits until a container that was just launched runs, or has run.
///
/// # Errors
///
/// [`RunError::Supervisor`] with the reason where it does not.
pub fn wait_started(session: &mut Session) -> Result<(), RunError> {
    match wait_reply(session)? {
        Reply::Failed { message, code, .. } => Err(RunError::Supervisor { message, code }),
        _ => Ok(()),
    }
}

/// Waits for the end of a container and of its supervisor; its exit code.
///
/// # Errors
///
/// [`RunError::Lost`] where the supervisor went without a word.
pub fn wait_exit(session: &mut Session) -> Result<u8, RunError> {
    let code = loop {
        match wait_reply(session)? {
            Reply::Exited(outcome) => break outcome.code,
            Reply::Failed { code, .. } => break code,
            _ => {}
        }
    };
    wait_gone(session)?;
    Ok(code)
}

/// Waits for the end of a supervisor that has said its last word, so that nothing of a run is left when its command
/// returns.
///
/// # Errors
///
/// Where the session fails.
pub fn wait_gone(session: &mut Session) -> Result<(), RunError> {
    while session.wait::<Reply>()?.is_some() {}
    Ok(())
}

fn wait_reply(session: &mut Session) -> Result<Reply, RunError> {
    match session.wait() {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(RunError::Lost),
        Err(error) => Err(error.into()),
    }
}
