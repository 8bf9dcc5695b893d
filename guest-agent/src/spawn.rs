//! Starts one process in the container, from the fork to the `execve`.
//!
//! The child reports over a pipe that closes by itself when `execve` succeeds: that the container was
//! set up (or joined), and what failed. Both are frames of the guest protocol, so a failure goes to
//! the host as it is.

use std::{
    convert::Infallible,
    fs::File,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::exit,
};

use protocol::{AgentMessage, Process, ProcessId, Resource, StartStage, frame};
use rustix::{
    fs::{FileType, Mode, OFlags, Uid, fchown, fstat, open},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{
        self as rustix_process, PidfdFlags, Rlimit, getpid, ioctl_tiocsctty, pidfd_open, setrlimit,
        setsid, umask,
    },
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    thread::{
        self, CapabilitySet, CapabilitySets, Gid, ThreadNameSpaceType, move_into_thread_name_spaces,
    },
};

use crate::{
    container,
    failure::{At, Failure},
    init,
    program::Program,
    sandbox::Sandbox,
    sys::{self, Forked},
    target::{self, Kind},
    user::{self, Identity},
};

/// Status of a child that could not start; nobody sees it, since the report tells.
const NOT_STARTED: i32 = 127;

/// Limits that are the kernel's for its first process and far too low for a container: files as
/// systemd has them, and as many processes as the machine can hold.
const DEFAULT_LIMITS: [protocol::Rlimit; 2] = [
    protocol::Rlimit {
        resource: Resource::Nofile,
        soft: 1024,
        hard: 524_288,
    },
    protocol::Rlimit {
        resource: Resource::Nproc,
        soft: u64::MAX,
        hard: u64::MAX,
    },
];

/// What a process has as its standard streams.
pub enum ChildStdio {
    /// One terminal for all, and for control.
    Terminal(OwnedFd),
    /// Standard input, output and error.
    Files([OwnedFd; 3]),
}

/// What to start, and where.
pub struct Spawn<'a> {
    /// Chosen by the host.
    pub id: ProcessId,
    /// What to run.
    pub process: &'a Process,
    /// Its streams; the agent's copies are closed with this.
    pub stdio: ChildStdio,
    /// What the container is made of.
    pub sandbox: &'a Sandbox,
    /// The container's first process, to be joined; `None` to be that.
    pub container: Option<BorrowedFd<'a>>,
}

/// A process that was forked and has not necessarily executed its program.
pub struct Spawned {
    /// Readable when it ends.
    pub pidfd: OwnedFd,
    /// The reading end of the report.
    pub report: OwnedFd,
}

impl Spawn<'_> {
    /// Forks. What fails later is in the report.
    ///
    /// # Errors
    ///
    /// At [`StartStage::Fork`].
    pub fn start(self) -> Result<Spawned, Failure> {
        let pipe = pipe_with(PipeFlags::CLOEXEC).at(StartStage::Fork, "report")?;
        let (report, mut writer) = (pipe.0, File::from(pipe.1));
        match self.fork()? {
            Forked::Parent { pidfd, .. } => Ok(Spawned { pidfd, report }),
            Forked::Child => {
                let Err(failure) = self.become_program(&mut writer);
                // Without a reader there is no agent, hence no machine.
                let _ = frame::write(&mut writer, &failure.into_message(self.id));
                exit(NOT_STARTED);
            }
        }
    }

    fn fork(&self) -> Result<Forked, Failure> {
        let cgroup = Some(self.sandbox.cgroup().folder());
        let Some(container) = self.container else {
            let namespaces =
                libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
            return sys::fork(namespaces, cgroup).at(StartStage::Fork, "container");
        };
        // Only children enter a PID namespace: the agent's next one enters the container's.
        let pid_namespace = ThreadNameSpaceType::PROCESS_ID;
        let own = pidfd_open(getpid(), PidfdFlags::empty()).at(StartStage::Fork, "agent")?;
        move_into_thread_name_spaces(container, pid_namespace).at(StartStage::Fork, "container")?;
        let forked = sys::fork(0, cgroup);
        if !matches!(forked, Ok(Forked::Child)) {
            move_into_thread_name_spaces(own.as_fd(), pid_namespace)
                .at(StartStage::Fork, "agent")?;
        }
        forked.at(StartStage::Fork, "container")
    }

    fn become_program(&self, report: &mut File) -> Result<Infallible, Failure> {
        let process = self.process;
        match self.container {
            Some(container) => join(container).at(StartStage::Fork, "container")?,
            None => container::enter(self.sandbox, self.terminal())?,
        }
        self.report_ready(report);
        let identity = user::lookup(&process.user, &process.additional_groups)?;
        self.take_streams(&identity)?;
        for limit in DEFAULT_LIMITS.iter().chain(&process.rlimits) {
            set_limit(limit).at(
                StartStage::Rlimit,
                &format!("{:?}", limit.resource).to_lowercase(),
            )?;
        }
        enter_folder(&process.cwd)?;
        let program = Program::new(process, &identity.home)?;
        become_user(process, &identity)?;
        if process.init && self.container.is_none() {
            init::split(self.terminal().is_some())?;
        }
        umask(Mode::from_raw_mode(0o022));
        sys::restore_sigpipe();
        sys::close_on_exec_from(3).at(StartStage::Exec, "descriptors")?;
        Err(program.execute())
    }

    fn terminal(&self) -> Option<BorrowedFd<'_>> {
        match &self.stdio {
            ChildStdio::Terminal(slave) => Some(slave.as_fd()),
            ChildStdio::Files(_) => None,
        }
    }

    /// Half of a `Started`: the agent fills in when `execve` succeeded.
    fn report_ready(&self, report: &mut File) {
        let ready = AgentMessage::Started {
            id: self.id,
            setup_ns: crate::now_ns(),
            exec_ns: 0,
        };
        if let Ok(frame) = frame::encode(&ready) {
            let _ = report.write_all(&frame);
        }
    }

    /// Begins a session and puts the streams where programs look for them. They belong to the user, so
    /// that `/proc/self/fd/1` can be opened again.
    fn take_streams(&self, identity: &Identity) -> Result<(), Failure> {
        setsid().at(StartStage::Terminal, "session")?;
        let files = match &self.stdio {
            ChildStdio::Terminal(slave) => [slave, slave, slave],
            ChildStdio::Files([stdin, stdout, stderr]) => [stdin, stdout, stderr],
        };
        let own = || {
            for file in files {
                if FileType::from_raw_mode(fstat(file)?.st_mode) != FileType::CharacterDevice
                    || self.terminal().is_some()
                {
                    fchown(file, Some(Uid::from_raw(identity.uid)), None)?;
                }
            }
            dup2_stdin(files[0])?;
            dup2_stdout(files[1])?;
            dup2_stderr(files[2])
        };
        own().at(StartStage::Stream, "standard streams")?;
        match self.terminal() {
            Some(slave) => ioctl_tiocsctty(slave).at(StartStage::Terminal, "controlling terminal"),
            None => Ok(()),
        }
    }
}

/// Enters the container's namespaces; the PID namespace was entered by being forked.
fn join(container: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_thread_name_spaces(
        container,
        ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::CONTROL_GROUP,
    )
}

fn set_limit(limit: &protocol::Rlimit) -> Result<(), Errno> {
    use rustix_process::Resource as Kernel;
    let resource = match limit.resource {
        Resource::As => Kernel::As,
        Resource::Core => Kernel::Core,
        Resource::Cpu => Kernel::Cpu,
        Resource::Data => Kernel::Data,
        Resource::Fsize => Kernel::Fsize,
        Resource::Locks => Kernel::Locks,
        Resource::Memlock => Kernel::Memlock,
        Resource::Msgqueue => Kernel::Msgqueue,
        Resource::Nice => Kernel::Nice,
        Resource::Nofile => Kernel::Nofile,
        Resource::Nproc => Kernel::Nproc,
        Resource::Rss => Kernel::Rss,
        Resource::Rtprio => Kernel::Rtprio,
        Resource::Rttime => Kernel::Rttime,
        Resource::Sigpending => Kernel::Sigpending,
        Resource::Stack => Kernel::Stack,
    };
    let bound = |value: u64| (value != u64::MAX).then_some(value);
    setrlimit(
        resource,
        Rlimit {
            current: bound(limit.soft),
            maximum: bound(limit.hard),
        },
    )
}

/// Makes the working directory where it is missing, as root's, and enters it while nothing can be
/// refused. No link of `/proc` is followed: those to this process's own descriptors lead out of the container.
fn enter_folder(path: &str) -> Result<(), Failure> {
    let enter = || -> std::io::Result<()> {
        let root = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let folder = target::ensure(root.as_fd(), path, Kind::Folder)?;
        Ok(rustix_process::fchdir(folder.fd)?)
    };
    enter().at(StartStage::WorkingDirectory, path)
}

/// Gives up all that the process may not have. As in Docker, a user that is not root keeps the
/// capabilities only until `execve` clears them, and none is inheritable.
fn become_user(process: &Process, identity: &Identity) -> Result<(), Failure> {
    let allowed = CapabilitySet::from_bits_retain(process.capabilities.0);
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (
        thread::Uid::from_raw(identity.uid),
        Gid::from_raw(identity.gid),
    );
    limit_bounding_set(allowed).at(StartStage::Capabilities, "bounding set")?;
    thread::set_keep_capabilities(true).at(StartStage::Capabilities, "keep capabilities")?;
    thread::set_thread_groups(&groups).at(StartStage::User, "supplementary groups")?;
    thread::set_thread_res_gid(gid, gid, gid).at(StartStage::User, &process.user)?;
    thread::set_thread_res_uid(uid, uid, uid).at(StartStage::User, &process.user)?;
    let held = thread::capabilities(None)
        .at(StartStage::Capabilities, "permitted set")?
        .permitted;
    let sets = CapabilitySets {
        effective: allowed & held,
        permitted: allowed & held,
        inheritable: CapabilitySet::empty(),
    };
    thread::set_capabilities(None, sets).at(StartStage::Capabilities, "permitted set")?;
    if process.no_new_privileges {
        thread::set_no_new_privs(true).at(StartStage::Capabilities, "no_new_privs")?;
    }
    Ok(())
}

fn limit_bounding_set(allowed: CapabilitySet) -> Result<(), Errno> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if allowed.contains(capability) {
            continue;
        }
        match thread::remove_capability_from_bounding_set(capability) {
            // The first one that this kernel does not have.
            Err(Errno::INVAL) => break,
            result => result?,
        }
    }
    Ok(())
}
