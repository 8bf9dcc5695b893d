//! Why a run failed, in the user's words, with Docker's exit codes.

use std::{fs, io, path::Path, time::Duration};

use nix::errno::Errno;
use protocol::{StartStage, frame::FrameError};
use vmm::{Ending, probe::ProbeError};

use super::{
    disk_rate::DiskRateError,
    mount::{MountSyntaxError, SourceError},
    process::ProcessError,
    state::StateError,
};
use crate::{
    agent_client::AgentError,
    image::{load::LoadError, store::StoreError},
    network::NetworkError,
    sandbox::{SandboxError, disk::DiskError, kernel::KernelError},
    volume::VolumeError,
};

/// Most bytes of the VMM's own log that an error quotes.
const MAX_LOG: usize = 2 << 10;

/// Why there is no exit code of the container's process.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] LoadError),
    #[error("cannot make the container's disk")]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("remove {name}: volume is in use - [{containers}]")]
    VolumeInUse { name: String, containers: String },
    #[error(transparent)]
    Mount(#[from] SourceError),
    #[error("a volume of the image")]
    ImageVolume(#[from] MountSyntaxError),
    #[error("Duplicate mount point: {0}")]
    DuplicateMount(String),
    #[error("a container has at most {0} volumes and bind mounts")]
    TooManyMounts(usize),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(
        "a guest of {asked} MiB does not fit this host, which has {available} MiB of memory: \
         give less with -m"
    )]
    Memory { asked: u64, available: u64 },
    #[error("cannot tell how much memory this host has")]
    HostMemory(#[source] io::Error),
    #[error(
        "this host's KVM cannot run a guest; `pillbug doctor` says more, and `make lab` in pillbug's \
         source gives an emulated host that can"
    )]
    Kvm(#[source] ProbeError),
    #[error("{}", ending_text(.ending, .log))]
    Ended { ending: Ending, log: String },
    #[error("the guest broke off")]
    Agent(#[from] AgentError),
    #[error("{}", start_text(*.stage, *.errno, .subject))]
    Start {
        stage: StartStage,
        errno: i32,
        subject: String,
    },
    #[error("{}", fill_text(*.errno, .subject))]
    Fill { errno: i32, subject: String },
    #[error("a standard stream failed")]
    Streams(#[source] io::Error),
    #[error("the guest did not power off within {} s: what it wrote last may be lost", .0.as_secs())]
    PowerOff(Duration),
    #[error("the guest agent does not answer")]
    NoAnswer,
    #[error("container {0} goes with its end (--rm): it cannot be started again")]
    RestartOfTransient(String),
    #[error("cannot limit the rate of a disk")]
    DiskRate(#[from] DiskRateError),
    #[error("killed")]
    Killed,
    #[error("the guest agent goes on sending what nobody asked for")]
    Silent,
    #[error("cannot start or reach the container's supervisor")]
    Launch(#[source] io::Error),
    #[error("cannot talk to the container's supervisor")]
    Session(#[from] FrameError),
    #[error("the container's supervisor was killed")]
    Lost,
    #[error("{message}")]
    Supervisor { message: String, code: u8 },
    #[error("interrupted by signal {signal} before the container's process had started")]
    Interrupted { signal: u8 },
}

impl RunError {
    /// The agent's report of a start that failed.
    #[must_use]
    pub fn start(stage: StartStage, errno: i32, subject: String) -> Self {
        Self::Start {
            stage,
            errno,
            subject,
        }
    }

    /// The agent's report of a volume that it could not fill, or of what it does before that.
    #[must_use]
    pub fn fill(stage: StartStage, errno: i32, subject: String) -> Self {
        match stage {
            StartStage::Mount => Self::Fill { errno, subject },
            _ => Self::start(stage, errno, subject),
        }
    }

    /// Exit code of `pillbug run` for this: 126 and 127 for a program that cannot be executed or is not
    /// there, 128 and the signal for an end by signal, 125 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start {
                stage: StartStage::Exec,
                errno,
                ..
            } => match Errno::from_raw(*errno) {
                Errno::ENOENT => 127,
                _ => 126,
            },
            Self::Killed
            | Self::Ended {
                ending: Ending::Killed | Ending::HostOom,
                ..
            } => 137,
            Self::Interrupted { signal } => 128 + (signal & 0x7f),
            Self::Supervisor { code, .. } => *code,
            _ => 125,
        }
    }

    /// Adds what the VMM process wrote to its log, where that may explain the end.
    #[must_use]
    pub fn with_log(self, path: &Path) -> Self {
        match self {
            Self::Ended {
                ending: ending @ Ending::HostError { .. },
                ..
            } => {
                // A log that cannot be read explains nothing.
                let bytes = fs::read(path).unwrap_or_default();
                let tail = &bytes[bytes.len().saturating_sub(MAX_LOG)..];
                Self::Ended {
                    ending,
                    log: String::from_utf8_lossy(tail).trim().into(),
                }
            }
            error => error,
        }
    }
}

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn ending_text(ending: &Ending, log: &str) -> String {
    let what = match ending {
        Ending::PowerOff => "the virtual machine powered off before its process had ended".into(),
        Ending::Reset => "the guest reset its virtual machine".into(),
        Ending::TripleFault => "the guest crashed (triple fault)".into(),
        Ending::Panic { message } => format!("the guest kernel panicked: {message}"),
        Ending::Killed => "the VMM process was killed, by the host's out-of-memory killer or by \
                           somebody else"
            .into(),
        Ending::HostOom => "the host ran out of memory, or its limit for this did, and its \
                            out-of-memory killer ended the VMM process: give less with -m"
            .into(),
        Ending::HostError { message } => format!("the virtual machine failed: {message}"),
    };
    if log.is_empty() {
        what
    } else {
        format!("{what}; its log ends with: {log}")
    }
}

fn start_text(stage: StartStage, errno: i32, subject: &str) -> String {
    let reason = match Errno::from_raw(errno) {
        Errno::UnknownErrno => String::new(),
        errno => format!(": {}", errno.desc()),
    };
    match (stage, Errno::from_raw(errno)) {
        (StartStage::Exec, Errno::ENOENT) => {
            format!("cannot run {subject:?}: there is no such program in the image")
        }
        (StartStage::User, Errno::UnknownErrno) => {
            format!(
                "no user or group {subject:?}: neither a number in range nor a name in the image's /etc/passwd or /etc/group"
            )
        }
        _ => format!("cannot {} {subject:?}{reason}", attempt(stage)),
    }
}

fn fill_text(errno: i32, subject: &str) -> String {
    let errno = Errno::from_raw(errno);
    let text = format!("cannot fill the volume on {subject:?}: {}", errno.desc());
    // What the host's kernel says to an owner that the user has not.
    match errno == Errno::EINVAL && !rustix::process::geteuid().is_root() {
        true => format!(
            "{text}: the image has files there of users and groups that you do not have: it takes a range in \
             /etc/subuid and one in /etc/subgid, and Debian's package `uidmap`"
        ),
        false => text,
    }
}

fn attempt(stage: StartStage) -> &'static str {
    match stage {
        StartStage::Rootfs => "mount the root file system from",
        StartStage::Mount => "mount on",
        StartStage::Hostname => "set up the host name and /etc with",
        StartStage::Limit => "limit",
        StartStage::Sysctl => "set the sysctl",
        StartStage::Network => "set up the network with",
        StartStage::Stream => "connect the stream",
        StartStage::Terminal => "make a terminal at",
        StartStage::User => "become user",
        StartStage::Rlimit => "set the resource limit",
        StartStage::Capabilities => "set the capabilities of",
        StartStage::WorkingDirectory => "enter the working directory",
        StartStage::Fork => "make a process for",
        StartStage::Exec => "run",
    }
}

/// Refuses guest memory that the host does not have, before anything is allocated (acceptance 65).
///
/// # Errors
///
/// [`RunError::Memory`], or where `/proc/meminfo` cannot be understood.
pub fn check_memory(bytes: u64) -> Result<(), RunError> {
    let meminfo = fs::read_to_string("/proc/meminfo").map_err(RunError::HostMemory)?;
    let total_kib: u64 = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .ok_or_else(|| RunError::HostMemory(io::ErrorKind::InvalidData.into()))?;
    if bytes > total_kib << 10 {
        return Err(RunError::Memory {
            asked: bytes >> 20,
            available: total_kib >> 10,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_dockers() {
        let exec = |errno: Errno| RunError::start(StartStage::Exec, errno as i32, "x".into());
        assert_eq!(exec(Errno::ENOENT).exit_code(), 127);
        assert_eq!(exec(Errno::EACCES).exit_code(), 126);
        assert_eq!(
            RunError::start(StartStage::User, 0, "x".into()).exit_code(),
            125
        );
        assert_eq!(RunError::Interrupted { signal: 2 }.exit_code(), 130);
        assert_eq!(RunError::Killed.exit_code(), 137);
    }

    #[test]
    fn a19_every_ending_has_words_of_its_own() {
        let endings = [
            Ending::PowerOff,
            Ending::Reset,
            Ending::TripleFault,
            Ending::Panic {
                message: "x".into(),
            },
            Ending::Killed,
            Ending::HostOom,
            Ending::HostError {
                message: "x".into(),
            },
        ];
        let texts: std::collections::BTreeSet<String> = endings
            .iter()
            .map(|ending| ending_text(ending, ""))
            .collect();
        assert_eq!(texts.len(), endings.len());
    }

    #[test]
    fn a65_more_memory_than_the_host_has_is_refused() {
        assert!(matches!(
            check_memory(10 << 40),
            Err(RunError::Memory { .. })
        ));
        assert!(check_memory(32 << 20).is_ok());
    }
}
