//! Work on the container's files: each order is done by a process of its own, which may wait for the disk and for the
//! host as long as it takes while the agent goes on.
//!
//! It is a copy of the agent outside the container's PID namespace and control group. To see what is mounted in the
//! container it enters the container's mount namespace or, where no container runs, makes one of its own; every path is
//! taken below the root there. It executes nothing, and opens nothing for writing but what it puts in its place.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::exit,
};

use files::{
    FilesError,
    place::{self, Rules},
    stream::{Receiver, Sender},
    tree::{self, Manner},
};
use protocol::{
    AgentMessage, ProcessId, STREAM_PORT, StartStage, StreamToken,
    files::{FilesOrder, Item},
    frame,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, ResolveFlags, open},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    pipe::{PipeFlags, pipe_with},
    process::umask,
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use crate::{
    cgroup::Cgroup,
    container,
    failure::{At, Failure},
    mount, rootfs,
    sandbox::Sandbox,
    spawn::Spawned,
    sys::{self, Forked},
};

/// Longest that a container may take to stand still.
const FREEZE_LIMIT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// What a container's processes may do: make anything, anywhere below the root.
const RULES: Rules = Rules {
    resolve: ResolveFlags::IN_ROOT,
    owners: true,
    privileges: true,
};

/// One order, and where to do it.
pub struct Transfer<'a> {
    /// Chosen by the host.
    pub id: ProcessId,
    /// What to do.
    pub order: &'a FilesOrder,
    /// The stream's name.
    pub token: StreamToken,
    /// What the container is made of.
    pub sandbox: &'a Sandbox,
    /// The container's first process, where there is one.
    pub container: Option<BorrowedFd<'a>>,
}

impl Transfer<'_> {
    /// Whether the container stands still until it is done.
    pub fn pauses(&self) -> bool {
        matches!(self.order, FilesOrder::Changes { pause: true, .. }) && self.container.is_some()
    }

    /// Forks the process that does it. How that goes, its stream tells.
    ///
    /// # Errors
    ///
    /// At [`StartStage::Fork`] or [`StartStage::Stream`].
    pub fn start(&self) -> Result<Spawned, Failure> {
        let (report, writer) = pipe_with(PipeFlags::CLOEXEC).at(StartStage::Fork, "report")?;
        let namespaces = match self.container {
            Some(_) => 0,
            None => libc::CLONE_NEWNS,
        };
        match sys::fork(namespaces, None).at(StartStage::Fork, "files")? {
            Forked::Parent { pidfd, .. } => Ok(Spawned { pidfd, report }),
            Forked::Child => exit(match self.become_worker(writer.into()) {
                Ok(()) => 0,
                Err(_) => 1,
            }),
        }
    }

    fn become_worker(&self, report: File) -> io::Result<()> {
        if self.pauses() {
            wait_frozen(self.sandbox.cgroup())?;
        }
        let root = self.root();
        let stream = connect(self.token);
        // The copies of the agent's descriptors: as long as they are open, nobody learns that the agent has closed its own.
        dup2_stdin(stream?)?;
        let (root, lower) = match root {
            Ok((root, lower)) => {
                dup2_stdout(root)?;
                dup2_stderr(&lower)?;
                (Ok(rustix::stdio::stdout()), rustix::stdio::stderr())
            }
            Err(error) => (Err(error), rustix::stdio::stderr()),
        };
        report_started(self.id, report);
        sys::close_from(3)?;
        umask(Mode::empty());
        let stream = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
        let mut sender = Sender::new(stream.try_clone()?);
        let done = root
            .map_err(|error| failed(&error))
            .and_then(|root| self.work(root, lower, stream, &mut sender));
        let end = match done {
            Ok(left_out) => Some(Item::End { left_out }),
            Err(error) => error.as_item(),
        };
        // Without a host nobody is to be told.
        let told = end.map(|end| sender.send(&end).and_then(|()| sender.flush()));
        told.transpose().map(drop).map_err(io::Error::other)
    }

    /// The folder that all paths are taken below, and the image's.
    fn root(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let image = open(rootfs::LOWER, folder, Mode::empty())?;
        if matches!(self.order, FilesOrder::Changes { .. }) {
            return Ok((open(rootfs::CHANGES, folder, Mode::empty())?, image));
        }
        let Some(container) = self.container else {
            container::show(self.sandbox)?;
            return Ok((self.sandbox.rootfs.overlay().try_clone_to_owned()?, image));
        };
        move_into_thread_name_spaces(container, ThreadNameSpaceType::MOUNT)?;
        let root = match self.order {
            // A copy of the one mount shows what lies below the others.
            FilesOrder::Export => mount::duplicate("/")?,
            _ => open("/", folder, Mode::empty())?,
        };
        Ok((root, image))
    }

    fn work(
        &self,
        root: BorrowedFd<'_>,
        image: BorrowedFd<'_>,
        stream: UnixStream,
        sender: &mut Sender<UnixStream>,
    ) -> Result<u64, FilesError> {
        let in_root = ResolveFlags::IN_ROOT;
        let manner = Manner {
            xattrs: true,
            ..Manner::default()
        };
        match self.order {
            FilesOrder::Read { path, follow } => {
                tree::send(root, path, *follow, in_root, manner, sender)
            }
            FilesOrder::Export => tree::send(root, b"", true, in_root, manner, sender),
            FilesOrder::Changes { contents, .. } => {
                let list = |folder| {
                    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
                    rustix::fs::openat(folder, ".", flags, Mode::empty())
                        .map_err(|error| failed(&error.into()))
                };
                tree::send_changes(list(root)?, list(image)?, *contents, sender)
            }
            FilesOrder::Write { path } => {
                let (base, found) = place::find(root, path, in_root)?;
                sender.send(&Item::Found(found))?;
                sender.flush()?;
                let placed = place::place(root, &base, RULES, &mut Receiver::new(stream))?;
                Ok(placed.left_out)
            }
        }
    }
}

/// An error of the work as a whole.
fn failed(error: &io::Error) -> FilesError {
    FilesError::File {
        action: protocol::files::Action::Find,
        path: Vec::new(),
        remote: false,
        source: error
            .raw_os_error()
            .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
    }
}

fn connect(token: StreamToken) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sys::connect_to_host(socket.as_fd(), STREAM_PORT)?;
    let mut socket = File::from(socket);
    socket.write_all(&token.0)?;
    Ok(socket.into())
}

fn report_started(id: ProcessId, mut report: File) {
    let started = AgentMessage::Started {
        id,
        setup_ns: crate::now_ns(),
        exec_ns: 0,
    };
    if let Ok(frame) = frame::encode(&started) {
        // Without a reader there is no agent, hence no machine.
        let _ = report.write_all(&frame);
    }
}

/// Until nothing in the group runs; one that takes too long is read as it is.
fn wait_frozen(cgroup: &Cgroup) -> io::Result<()> {
    let events = cgroup.events()?;
    while !cgroup.is_frozen(&events)? {
        let mut changed = [PollFd::new(&events, PollFlags::PRI)];
        if poll(&mut changed, Some(&FREEZE_LIMIT))? == 0 {
            break;
        }
    }
    Ok(())
}
