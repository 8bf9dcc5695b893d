//! Sandboxes: one virtual machine each, in a process of its own.
//!
//! Lowers what a container needs to a [`VmConfig`] and a list of resources (a pure function), opens
//! the resources, starts the VMM process and listens to it. Knows no images, only files; and no
//! messages of the guest, only connections.

pub mod disk;
mod initramfs;
pub mod kernel;
mod lower;
mod oom;
pub mod share;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Seek, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::PathBuf,
    process::Child,
    thread,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sched::{CpuSet, sched_setaffinity},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{Pid, ftruncate},
};
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
    },
};
use vmm::{
    BlockLimits, Command as VmmCommand, Counters, Ending, Event, NetConfig, NetLimits, VmConfig,
};

use lower::{Resource, lower};
use share::{Share, ShareError, Shares};

use crate::own_process;

/// First argument of the VMM process; whoever parses the command line hands over to it.
pub const VMM_PROCESS: &str = "vmm-process";

/// Largest event of a VMM in bytes; they are short but for messages, and those are capped at 1 KiB.
const MAX_EVENT: usize = 16 << 10;

/// What a sandbox is made of.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// What the VMM process shows in its arguments, so that people can tell it from others.
    pub label: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Processor time in billionths of one processor; none is no limit but the number of vCPUs.
    pub nano_cpus: Option<u64>,
    /// Processors of the host that it runs on; none is all.
    pub cpuset: Option<Vec<u16>>,
    /// How soon the host ends it when memory is used up, -1000 to 1000.
    pub oom_score_adj: i16,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// Parts of the read-only root disk: a file and how many bytes of it each.
    pub root: Vec<(PathBuf, u64)>,
    /// Writable disk, and its size in bytes.
    pub disk: Option<(PathBuf, u64)>,
    /// How fast these disks may be used, in order; none where there are fewer.
    pub disk_limits: Vec<BlockLimits>,
    /// Network devices; the links come beside, in the same order, and their places in the VM's
    /// configuration are filled in here.
    pub nics: Vec<NetConfig>,
    /// What may pass all of these together.
    pub net_limits: NetLimits,
    /// Folders and files of the host that the guest has, in the order in which it names them (`0`, `1`, ...).
    pub shares: Vec<Share>,
    /// File to which the guest kernel's serial console is written; made if missing.
    pub kernel_console: Option<PathBuf>,
    /// File for what the VMM process has to say; made if missing.
    pub log: PathBuf,
}

/// Why a sandbox could not start, or was lost.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SandboxError {
    #[error(
        "/dev/kvm is not there: this host has no KVM, or its module is not loaded; \
         `pillbug doctor` says more"
    )]
    NoKvm,
    #[error("no permission to use /dev/kvm: add this user to the group `kvm`, and log in again")]
    KvmPermission,
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot get {bytes} bytes of guest memory")]
    Memory { bytes: u64, source: io::Error },
    #[error("cannot hand over the initial RAM file system")]
    Initramfs(#[source] io::Error),
    #[error("network device {0} has no link")]
    NoLink(usize),
    #[error("nobody serves the shared folders")]
    NoShares,
    #[error("cannot start the VMM process")]
    Spawn(#[source] io::Error),
    #[error("the VMM process did not take its configuration")]
    Configure(#[source] io::Error),
    #[error("the image has too many layers: {0} files, above the limit of {max}", max = lower::MAX_DESCRIPTORS)]
    TooManyParts(usize),
    #[error("cannot run on the processors {cpus:?} of this host")]
    Affinity { cpus: Vec<u16>, source: io::Error },
    #[error("cannot give the machine the OOM score {score}: lowering it takes CAP_SYS_RESOURCE")]
    OomScore { score: i16, source: io::Error },
    #[error("cannot share folders with the guest")]
    Share(#[from] ShareError),
    #[error("lost the VMM process")]
    Listen(#[source] io::Error),
    #[error("the VMM process said what nobody understands")]
    Event(#[source] serde_json::Error),
}

/// A running sandbox. Dropping it ends it: the VMM process is killed, and reaped in the background.
#[derive(Debug)]
pub struct Sandbox {
    /// `None` once it was waited for.
    vmm: Option<Child>,
    vmm_pid: u32,
    control: OwnedFd,
    /// Ends after the VMM, whose requests it answers.
    shares: Option<Shares>,
}

/// What a sandbox tells.
#[derive(Debug)]
pub enum SandboxEvent {
    /// The first vCPU is about to run; times of the VMM as [`Event::Running`] gives them.
    Running {
        /// The VMM process's `main` began.
        process_started_ns: u64,
        /// Memory, kernel and devices were in place.
        built_ns: u64,
    },
    /// The guest opened a connection to this host port.
    Connected {
        /// Which port.
        port: u32,
        /// The host's end.
        stream: UnixStream,
    },
    /// The answer to [`VmmCommand::Count`].
    Counters(Counters),
    /// It is over.
    Ended(Ending),
}

impl Sandbox {
    /// Opens everything the sandbox needs but the `links` of its network devices, and starts its VMM
    /// process.
    ///
    /// # Errors
    ///
    /// [`SandboxError`]; nothing is left running.
    pub fn start(config: &SandboxConfig, links: Vec<OwnedFd>) -> Result<Self, SandboxError> {
        let mut links: Vec<_> = links.into_iter().map(Some).collect();
        let (vm_config, resources) = lower(config)?;
        let (shares, mut shares_socket) = match &config.shares[..] {
            [] => (None, None),
            shares => {
                let (process, socket) = Shares::start(&config.label, shares, append(&config.log)?)?;
                (Some(process), Some(socket))
            }
        };
        let descriptors: Vec<OwnedFd> = resources
            .iter()
            .map(|resource| match resource {
                Resource::Shares => shares_socket.take().ok_or(SandboxError::NoShares),
                resource => resource.open(&mut links),
            })
            .collect::<Result<_, _>>()?;
        let log = append(&config.log)?;
        let (vmm, control) =
            own_process::start(VMM_PROCESS, &config.label, log).map_err(SandboxError::Spawn)?;
        let sandbox = Self {
            vmm_pid: vmm.id(),
            vmm: Some(vmm),
            control,
            shares,
        };
        // Before it has any thread but the first.
        if let Some(cpus) = &config.cpuset {
            sandbox.set_affinity(cpus)?;
        }
        if config.oom_score_adj != 0 {
            sandbox.set_oom_score(config.oom_score_adj)?;
        }
        sandbox
            .configure(&vm_config, &descriptors)
            .map_err(SandboxError::Configure)?;
        Ok(sandbox)
    }

    /// Who serves the shared folders, where there are any.
    pub fn shares(&mut self) -> Option<&mut Shares> {
        self.shares.as_mut()
    }

    /// What is readable when that one has something to say.
    #[must_use]
    pub fn shares_fd(&self) -> Option<BorrowedFd<'_>> {
        self.shares.as_ref().map(AsFd::as_fd)
    }

    /// Process ID of the VMM.
    #[must_use]
    pub fn vmm_pid(&self) -> u32 {
        self.vmm_pid
    }

    /// Ends the VMM process, where it has not ended, and waits until it is gone.
    pub fn end(&mut self) {
        if let Some(mut vmm) = self.vmm.take() {
            // Either it is dead already, or nobody can be told.
            let _ = vmm.kill();
            let _ = vmm.wait();
        }
    }

    /// The next event that has arrived, without waiting for one. A VMM process that dies without a word has
    /// [`Ending::Killed`], [`Ending::HostOom`] or [`Ending::HostError`] as its last one.
    ///
    /// # Errors
    ///
    /// Where the VMM process breaks the protocol; the sandbox is of no use then.
    pub fn next_event(&mut self) -> Result<Option<SandboxEvent>, SandboxError> {
        let mut bytes = vec![0; MAX_EVENT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.control,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            )
        });
        let length = match received {
            Ok(message) if message.bytes > 0 => message.bytes,
            Ok(_) | Err(rustix::io::Errno::CONNRESET) => {
                return Ok(Some(SandboxEvent::Ended(self.unexplained_ending()?)));
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(SandboxError::Listen(error.into())),
        };
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let event = serde_json::from_slice(&bytes[..length]).map_err(SandboxError::Event)?;
        Ok(Some(match (event, descriptor) {
            (
                Event::Running {
                    process_started_ns,
                    built_ns,
                },
                _,
            ) => SandboxEvent::Running {
                process_started_ns,
                built_ns,
            },
            (Event::Connected { port }, Some(descriptor)) => SandboxEvent::Connected {
                port,
                stream: descriptor.into(),
            },
            (Event::Connected { .. }, None) => {
                return Err(SandboxError::Listen(io::Error::other(
                    "a connection without a descriptor",
                )));
            }
            (Event::Counters(counters), _) => SandboxEvent::Counters(counters),
            (Event::Ended(ending), _) => SandboxEvent::Ended(ending),
        }))
    }

    /// Lets the VMM process run on these processors of the host only.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Affinity`] where the host has none of them.
    pub fn set_affinity(&self, cpus: &[u16]) -> Result<(), SandboxError> {
        let refused = |source| SandboxError::Affinity {
            cpus: cpus.to_vec(),
            source,
        };
        let mut set = CpuSet::new();
        for cpu in cpus {
            set.set((*cpu).into())
                .map_err(|error| refused(error.into()))?;
        }
        let tasks = format!("/proc/{}/task", self.vmm_pid);
        for task in fs::read_dir(tasks).map_err(refused)? {
            let name = task.map_err(refused)?.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            let id = Pid::from_raw(id.ok_or_else(|| refused(io::ErrorKind::InvalidData.into()))?);
            match sched_setaffinity(id, &set) {
                // A thread that has ended.
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(refused(error.into())),
            }
        }
        Ok(())
    }

    fn set_oom_score(&self, score: i16) -> Result<(), SandboxError> {
        fs::write(
            format!("/proc/{}/oom_score_adj", self.vmm_pid),
            score.to_string(),
        )
        .map_err(|source| SandboxError::OomScore { score, source })
    }

    /// Asks something of the machine. One that has ended is not asked: its end is an event of its own.
    ///
    /// # Errors
    ///
    /// Where the VMM process does not listen.
    pub fn tell(&self, command: &VmmCommand) -> Result<(), SandboxError> {
        let message = serde_json::to_vec(command).map_err(SandboxError::Event)?;
        match send(
            &self.control,
            &message,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        ) {
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Ok(()),
            Err(error) => Err(SandboxError::Listen(error.into())),
        }
    }

    fn configure(&self, config: &VmConfig, descriptors: &[OwnedFd]) -> io::Result<()> {
        let message = serde_json::to_vec(config)?;
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(lower::MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = sendmsg(
            &self.control,
            &[IoSlice::new(&message)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        if sent < message.len() {
            Err(io::ErrorKind::WriteZero.into())
        } else {
            Ok(())
        }
    }

    /// The control socket closed before the VMM said why.
    fn unexplained_ending(&mut self) -> Result<Ending, SandboxError> {
        let status = match self.vmm.take() {
            // One that exits keeps its status; one that only closed the socket has no more business.
            Some(mut vmm) => vmm
                .kill()
                .and_then(|()| vmm.wait())
                .map_err(SandboxError::Listen)?,
            None => return Err(SandboxError::Listen(io::ErrorKind::NotConnected.into())),
        };
        Ok(match status.signal() {
            Some(9) if oom::killed(self.vmm_pid) => Ending::HostOom,
            Some(9) => Ending::Killed,
            _ => Ending::HostError {
                message: format!("the VMM process ended early ({status})"),
            },
        })
    }
}

impl AsFd for Sandbox {
    /// Readable when there is an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Either it is dead already, or nobody can be told. From here on no guest code runs; that the
        // host then takes its time to free guest memory and devices need not keep anybody waiting.
        let Some(mut vmm) = self.vmm.take() else {
            return;
        };
        let _ = vmm.kill();
        let reaper = thread::Builder::new().name("reaper".into());
        // Without a thread for it, the process is reaped when this one ends.
        let _ = reaper.spawn(move || vmm.wait());
    }
}

impl Resource {
    /// Opens it, or takes it out of `links`.
    fn open(&self, links: &mut [Option<OwnedFd>]) -> Result<OwnedFd, SandboxError> {
        match self {
            Self::Kvm => open_kvm(),
            Self::Memory { bytes } => guest_memory(*bytes).map_err(|source| SandboxError::Memory {
                bytes: *bytes,
                source,
            }),
            Self::Initramfs => initramfs().map_err(SandboxError::Initramfs),
            Self::Read(path) => {
                File::open(path)
                    .map(OwnedFd::from)
                    .map_err(|source| SandboxError::Open {
                        path: path.clone(),
                        source,
                    })
            }
            Self::ReadWrite(path) => OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map(OwnedFd::from)
                .map_err(|source| SandboxError::Open {
                    path: path.clone(),
                    source,
                }),
            Self::Append(path) => append(path).map(OwnedFd::from),
            Self::Link(position) => links
                .get_mut(*position)
                .and_then(Option::take)
                .ok_or(SandboxError::NoLink(*position)),
            // It is taken by who started that process.
            Self::Shares => Err(SandboxError::NoShares),
        }
    }
}

/// Opens `/dev/kvm`.
///
/// # Errors
///
/// [`SandboxError::NoKvm`] and [`SandboxError::KvmPermission`] with the way out, or as opening fails.
pub fn open_kvm() -> Result<OwnedFd, SandboxError> {
    let path = "/dev/kvm";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(kvm) => Ok(kvm.into()),
        Err(source) => Err(match source.kind() {
            io::ErrorKind::NotFound => SandboxError::NoKvm,
            io::ErrorKind::PermissionDenied => SandboxError::KvmPermission,
            _ => SandboxError::Open {
                path: path.into(),
                source,
            },
        }),
    }
}

fn guest_memory(bytes: u64) -> io::Result<OwnedFd> {
    let memfd = memfd_create(
        "guest-memory",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    ftruncate(
        &memfd,
        i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?,
    )?;
    // Whoever else gets this memory cannot make the VMM fault by cutting it short.
    fcntl(
        &memfd,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
    )?;
    Ok(memfd)
}

fn initramfs() -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("initramfs", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(initramfs::INITRAMFS)?;
    file.rewind()?;
    Ok(file.into())
}

fn append(path: &PathBuf) -> Result<File, SandboxError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| SandboxError::Open {
            path: path.clone(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn an_event_is_never_waited_for() {
        let pair = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (control, vmm_end) = pair.unwrap();
        let vmm = std::process::Command::new("sleep").arg("1000").spawn();
        let vmm = vmm.unwrap();
        let mut sandbox = Sandbox {
            vmm_pid: vmm.id(),
            vmm: Some(vmm),
            control,
            shares: None,
        };
        assert!(sandbox.next_event().unwrap().is_none());
        let event = serde_json::to_vec(&Event::Ended(Ending::PowerOff)).unwrap();
        send(&vmm_end, &event, SendFlags::empty()).unwrap();
        let event = sandbox.next_event().unwrap();
        assert!(matches!(event, Some(SandboxEvent::Ended(Ending::PowerOff))));
        assert!(sandbox.next_event().unwrap().is_none());
    }
}
