//! The messages. Fields are plain data; whoever receives one checks it before use.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{Limits, ProcessList, Usage, files::FilesOrder};

/// What the host tells the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// Prepare the sandbox: root file system, mounts, host name. Once, before the first `Start`.
    Setup(Box<Setup>),
    /// Start a process. The first one is the container's: it becomes PID 1 of the container's PID
    /// namespace and its end is the end of the container. Later ones join it.
    Start {
        /// Chosen by the host, never used twice.
        id: ProcessId,
        /// What to run.
        process: Box<Process>,
        /// Which of its streams reach the host.
        stdio: Stdio,
    },
    /// Send a signal to a process; one that has ended is ignored.
    Signal {
        /// To which process.
        id: ProcessId,
        /// Linux signal number, 1 to 64.
        signal: u8,
    },
    /// Resize a process's terminal; ignored where it has none.
    Resize {
        /// Of which process.
        id: ProcessId,
        /// The new size.
        size: WindowSize,
    },
    /// Change what the container may use.
    Limit(Limits),
    /// Tell what the container uses: answered with [`AgentMessage::Usage`].
    Measure,
    /// Tell the container's processes: answered with [`AgentMessage::Processes`].
    ListProcesses,
    /// Do something with the container's files, also where no process was started. Answered as a `Start`; how it goes is
    /// told on its stream, which carries `files::Item`s.
    Files {
        /// Chosen by the host, never used twice, nor for a `Start`.
        id: ProcessId,
        /// What to do.
        order: FilesOrder,
        /// The stream.
        stream: StreamToken,
    },
    /// Connect the host with a port, over a connection to [`crate::FORWARD_PORT`]. Has no answer: where nobody is at the port,
    /// that connection ends.
    Forward {
        /// How.
        transport: Transport,
        /// The port, at an address of the machine's own.
        to: SocketAddr,
        /// What the connection begins with.
        stream: StreamToken,
    },
    /// Sync, unmount what is writable and power off; whatever still runs is killed.
    PowerOff,
}

/// What carries a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Connection,
    /// UDP, each packet after its length in two bytes, in network byte order.
    Packets,
}

/// What the agent tells the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// First message of the control connection.
    Ready {
        /// [`crate::PROTOCOL_VERSION`] of the agent.
        protocol_version: u32,
        /// Nanoseconds of the guest's monotonic clock when the agent's first instruction ran.
        started_ns: u64,
        /// The same clock as this message was sent.
        ready_ns: u64,
    },
    /// After a `Setup` with mounts to fill: each is whole. Nothing of the container runs before.
    Filled,
    /// After such a `Setup`, where something failed; the fields are as below.
    FillFailed {
        /// What the agent was doing.
        stage: StartStage,
        /// `errno` of the failed call.
        errno: i32,
        /// What it was done to.
        subject: String,
    },
    /// The process's `execve` succeeded.
    Started {
        /// Which process.
        id: ProcessId,
        /// Nanoseconds of the guest's monotonic clock when `Setup` was done.
        setup_ns: u64,
        /// The same clock when `execve` was known to have succeeded.
        exec_ns: u64,
    },
    /// The process never ran. For the container's process this ends the container.
    StartFailed {
        /// Which process.
        id: ProcessId,
        /// What the agent was doing.
        stage: StartStage,
        /// `errno` of the failed call; 0 where no call failed.
        errno: i32,
        /// What it was done to: a path, a name. Capped by the sender at 1 KiB, by the host again.
        subject: String,
    },
    /// The process was reaped and its output was sent (or the deadline for that passed).
    Exited {
        /// Which process.
        id: ProcessId,
        /// How it ended.
        exit: Exit,
        /// The guest kernel's OOM killer ended a process of the container.
        oom_killed: bool,
    },
    /// What the container uses; `None` where that cannot be read.
    Usage(Option<Usage>),
    /// The container's processes.
    Processes(ProcessList),
}

/// Names one process of a sandbox, chosen by the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId(pub u32);

/// 128 random bits that tie a stream connection to the `Start` that asked for it, so that no other
/// program in the guest can pose as a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StreamToken(pub [u8; 16]);

/// Everything the sandbox needs before a process can start in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Block device with the image's EROFS, such as `/dev/vda`.
    pub lower_device: String,
    /// What lies above it.
    pub upper: Upper,
    /// Make the container's root read-only (`--read-only`); volumes and tmpfs stay writable.
    pub read_only_root: bool,
    /// Host name, also in `/etc/hostname` and `/etc/hosts`.
    pub hostname: String,
    /// Further lines of `/etc/hosts`: address, then name.
    pub extra_hosts: Vec<HostEntry>,
    /// The machine's network devices, in order: `eth0`, `eth1` and so on.
    pub interfaces: Vec<Interface>,
    /// Who is asked for names.
    pub resolver: Resolver,
    /// Mounts beyond the default ones, in order (`--tmpfs`).
    pub mounts: Vec<Mount>,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
    /// What the container may use from its start on.
    #[serde(default)]
    pub limits: Limits,
    /// Settings of the kernel: a name with dots, and its value.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// Leave nothing masked or read-only below `/proc` and `/sys`, and give all of `/dev`.
    pub privileged: bool,
}

/// One extra line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// IPv4 or IPv6 address in text.
    pub address: String,
    /// The name it gets.
    pub name: String,
}

/// What a network device is given. Its MAC address and MTU come with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Routers on the way to everywhere else, one of each IP version at most.
    pub gateways: Vec<IpAddr>,
}

/// An address, and how many bits of it all machines of its subnet share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Up to 32 or 128.
    pub prefix: u8,
}

/// Content of `/etc/resolv.conf` (resolv.conf(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Ahead of them one at 127.0.0.11, the agent's, which asks the host: see [`crate::NAMES_PORT`].
    pub relay: bool,
    /// Domains in which a name without dots is looked up.
    pub search: Vec<String>,
    /// Such as `ndots:2`.
    pub options: Vec<String>,
}

/// The writable side of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// A tmpfs of at most this many bytes (0: the kernel's default, half of memory).
    Tmpfs {
        /// Size limit in bytes.
        size_bytes: u64,
    },
    /// An ext4 file system on this block device.
    Ext4 {
        /// Such as `/dev/vdb`.
        device: String,
    },
}

/// One mount inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// File system type, such as `tmpfs`.
    pub fs_type: String,
    /// What to mount; the type's name where it needs nothing.
    pub source: String,
    /// Absolute path in the container; created if missing.
    pub target: String,
    /// As in mount(8): `ro`, `nosuid`, `nodev`, `noexec`, and options of the file system itself.
    pub options: Vec<String>,
    /// Copy what the image has at the target into it first, with owners, modes and attributes.
    pub fill: bool,
}

/// What to run, after image configuration and command line were merged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; never empty. A program without `/` is looked up in `PATH` of `env`.
    pub args: Vec<String>,
    /// `NAME=value`, in order. The agent adds `HOME` where it is missing.
    pub env: Vec<String>,
    /// Absolute working directory, created if missing.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved with the container's own `/etc/passwd` and
    /// `/etc/group`; empty is root.
    pub user: String,
    /// Further groups (`--group-add`), names or numbers.
    pub additional_groups: Vec<String>,
    /// Controlling terminal of this size; then `stdout` carries the terminal and `stderr` is unused.
    pub terminal: Option<WindowSize>,
    /// Capabilities the process may have.
    pub capabilities: Capabilities,
    /// `no_new_privs` (prctl(2)).
    pub no_new_privileges: bool,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Run it as the child of a small reaping init (`--init`).
    pub init: bool,
}

/// Bit n is capability n of capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

/// One resource limit, `getrlimit(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Of what.
    pub resource: Resource,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// Resources of `getrlimit(2)`, by the names that `--ulimit` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is RLIMIT_ and its name")]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// Streams that the agent connects, each with its token. Where there is none, the process has
/// `/dev/null`, or its terminal's output is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Host to guest.
    pub stdin: Option<StreamToken>,
    /// Guest to host.
    pub stdout: Option<StreamToken>,
    /// Guest to host.
    pub stderr: Option<StreamToken>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// `_exit(code)`.
    Code(u8),
    /// Killed by this signal number.
    Signal(u8),
}

/// Where a start failed; the host turns it into Docker's exit codes and a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartStage {
    /// Mounting the root file system.
    Rootfs,
    /// One of the mounts; the subject is its target.
    Mount,
    /// Host name or the files below `/etc`.
    Hostname,
    /// What the container may use; the subject is the setting of its control group.
    Limit,
    /// A setting of the kernel; the subject is its name.
    Sysctl,
    /// The network interfaces; the subject is one of them or an address.
    Network,
    /// Connecting a standard stream.
    Stream,
    /// The terminal.
    Terminal,
    /// User or group; with errno 0 the name is unknown or out of range.
    User,
    /// A resource limit.
    Rlimit,
    /// Capabilities or `no_new_privs`.
    Capabilities,
    /// Creating or entering the working directory.
    WorkingDirectory,
    /// fork or clone.
    Fork,
    /// Finding or executing the program: ENOENT is Docker's 127, EACCES and ENOEXEC its 126.
    Exec,
}
