//! A container's files, from outside: copied in and out, told apart from its image, exported, made an image.
//!
//! The host never mounts or reads a container's disk. The container's own guest does the work, and its files travel as
//! `protocol::files` says: over a stream that a running container's supervisor hands on or, where none runs, from a machine
//! that is started for this alone.

pub mod archive;
pub mod changes;
pub mod commit;
pub mod copy;
mod machine;

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use files::{FilesError, stream::Receiver};
use protocol::files::FilesOrder;

use super::{
    error::RunError,
    launch::{connect, wait_gone},
    name::Id,
    session::{Reply, Request, Session},
    state::{Containers, StateError},
};
use archive::ArchiveWriter;
use machine::Machine;

/// Why something with a container's files failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FileWorkError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("cannot write the archive")]
    Archive(#[source] io::Error),
    #[error("cannot commit the container")]
    Commit(#[from] crate::image::commit::CommitError),
    #[error(transparent)]
    Store(#[from] crate::image::store::StoreError),
    #[error("container {0} does not run, and with --rm keeps nothing on disk: start it first")]
    NothingKept(String),
    #[error("cannot read the archive")]
    ArchiveInput(#[source] io::Error),
    #[error("the archive cannot be unpacked")]
    ArchiveMember(#[source] crate::image::layer::archive::ArchiveError),
    #[error("the archive has the path {0:?}, which leads out of the folder it is unpacked into")]
    ArchivePath(String),
    #[error("cannot {action} {path}")]
    Host {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot copy a folder to {0}, which is a file")]
    FolderToFile(String),
    #[error("{0} is no folder")]
    NoFolder(String),
    #[error("more changes than can be shown")]
    TooManyChanges,
}

/// One order under way.
#[derive(Debug)]
struct Work<'a> {
    stream: UnixStream,
    whose: Whose,
    containers: &'a Containers,
    id: &'a Id,
    /// What is written down of it once it is done.
    action: Option<&'static str>,
}

/// Who does it.
#[derive(Debug)]
enum Whose {
    Supervisor(Session),
    Machine(Box<Machine>),
}

impl<'a> Work<'a> {
    /// Has the container's guest do something.
    ///
    /// # Errors
    ///
    /// [`StateError::Busy`] while another command is at it; why the machine or the guest cannot.
    fn begin(
        state_root: &Path,
        containers: &'a Containers,
        id: &'a Id,
        order: FilesOrder,
    ) -> Result<Self, FileWorkError> {
        // Docker's names.
        let action = match &order {
            FilesOrder::Read { .. } => Some("archive-path"),
            FilesOrder::Write { .. } => Some("extract-to-dir"),
            FilesOrder::Export => Some("export"),
            FilesOrder::Changes { .. } => None,
        };
        let work = |stream, whose| Self {
            stream,
            whose,
            containers,
            id,
            action,
        };
        let request = Request::Files(Box::new(order.clone()));
        if let Some(mut session) = connect(containers, id, request)? {
            let stream = stream_of(&mut session)?;
            return Ok(work(stream, Whose::Supervisor(session)));
        }
        let Some(container) = containers.hold(id)? else {
            return Err(StateError::Busy(id.short().into()).into());
        };
        if container.spec().machine.disk_bytes.is_none() {
            return Err(FileWorkError::NothingKept(id.short().into()));
        }
        let (machine, stream) = Machine::start(state_root, container, order)?;
        Ok(work(stream, Whose::Machine(Box::new(machine))))
    }

    /// What comes from the guest.
    fn receiver(&self) -> Result<Receiver<UnixStream>, FileWorkError> {
        Ok(Receiver::new(
            self.stream.try_clone().map_err(RunError::Streams)?,
        ))
    }

    /// Until whatever was started for it is gone. How the work went is said by `result`, but an end of the machine
    /// explains more than a stream that broke off.
    fn finish<T>(self, result: Result<T, FileWorkError>) -> Result<T, FileWorkError> {
        drop(self.stream);
        let finished = match self.whose {
            Whose::Supervisor(mut session) => wait_gone(&mut session),
            Whose::Machine(machine) => machine.power_off(),
        };
        match (result, finished) {
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(FileWorkError::Files(FilesError::Stream(_))), Err(error)) => Err(error.into()),
            (result, _) => {
                if let (Ok(_), Some(action)) = (&result, self.action) {
                    self.containers.record_event(self.id, action, &[]);
                }
                result
            }
        }
    }
}

/// What a running container's supervisor hands on.
fn stream_of(session: &mut Session) -> Result<UnixStream, RunError> {
    loop {
        match session.wait()? {
            Some(Reply::Stream(_)) => {
                let stream = session.descriptor().ok_or(RunError::Lost)?;
                return Ok(stream.into());
            }
            Some(Reply::Failed { message, code, .. }) => {
                return Err(RunError::Supervisor { message, code });
            }
            Some(_) => {}
            None => return Err(RunError::Lost),
        }
    }
}

/// Writes the whole root file system of a container to `output`, as a tar archive. What is mounted in it is left out.
///
/// # Errors
///
/// Where the guest cannot read it, or `output` cannot be written.
pub fn export(
    state_root: &Path,
    containers: &Containers,
    id: &Id,
    output: &mut dyn Write,
) -> Result<(), FileWorkError> {
    let work = Work::begin(state_root, containers, id, FilesOrder::Export)?;
    let mut receiver = work.receiver()?;
    let write = || {
        let mut archive = ArchiveWriter::new(output);
        while let Ok(entry) = receiver.next_entry()? {
            // The folder that an archive is unpacked into is there already.
            if !entry.path.is_empty() {
                archive.append(&entry, &mut receiver)?;
            }
        }
        archive.finish()
    };
    let written = write();
    work.finish(written)
}
