//! What a virtual machine is made of: plain data, and indexes into the descriptors beside it.

use std::net::{IpAddr, SocketAddrV4};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Position of a descriptor in the table that accompanies a [`VmConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorIndex(pub u16);

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// An open `/dev/kvm`.
    pub kvm: DescriptorIndex,
    /// Virtual CPUs, 1 to [`VmConfig::MAX_VCPUS`].
    pub vcpus: u8,
    /// Processor time for all of its process, in billionths of one processor; none is no limit but the number of
    /// vCPUs.
    #[serde(default)]
    pub nano_cpus: Option<u64>,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// What boots.
    pub kernel: KernelConfig,
    /// Block devices in the order in which the guest names them (`/dev/vda`, `/dev/vdb`, ...).
    pub blocks: Vec<BlockConfig>,
    /// Network devices in the order in which the guest names them (`eth0`, `eth1`, ...).
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// What may pass all of them together.
    #[serde(default)]
    pub net_limits: NetLimits,
    /// File system device.
    #[serde(default)]
    pub fs: Option<FsConfig>,
    /// Socket device; the guest's only way to the host but for its networks.
    pub vsock: Option<VsockConfig>,
    /// Virtio console (`/dev/hvc0`), always there: early messages and panics.
    pub console: ConsoleConfig,
    /// Memory balloon, and reports of what the guest does not use.
    #[serde(default)]
    pub balloon: bool,
    /// Entropy device, fed from `getrandom(2)`.
    pub rng: bool,
    /// A 16550 at I/O port 0x3f8, for debugging a guest that does not come far enough for virtio.
    pub serial: Option<SerialConfig>,
}

impl VmConfig {
    /// Most virtual CPUs one machine may have.
    pub const MAX_VCPUS: u8 = 32;
    /// Least guest memory in bytes (32 MiB).
    pub const MIN_MEMORY: u64 = 32 << 20;
}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// A memfd of exactly `bytes` bytes.
    pub memfd: DescriptorIndex,
    /// Size in bytes: a multiple of 4096, at least [`VmConfig::MIN_MEMORY`].
    pub bytes: u64,
}

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelConfig {
    /// An ELF `vmlinux` for x86-64.
    pub image: DescriptorIndex,
    /// Initial RAM file system, unpacked by the kernel; none boots without.
    pub initramfs: Option<DescriptorIndex>,
    /// Kernel command line, at most 2047 bytes with what the devices add.
    pub command_line: String,
}

/// One virtio block device: the concatenation of its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// The parts in order. A writable device has exactly one.
    pub parts: Vec<BlockPart>,
    /// Refuse every write in the device (VIRTIO_BLK_F_RO).
    pub read_only: bool,
    /// Serial number that the guest reads, at most 20 bytes of ASCII.
    pub serial: String,
    /// How much may pass.
    #[serde(default)]
    pub limits: BlockLimits,
}

/// How much may pass a block device in a second; none is no limit. A tenth of a second's worth may pass at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockLimits {
    /// Bytes read.
    pub read_bytes: Option<u64>,
    /// Requests to read.
    pub reads: Option<u64>,
    /// Bytes written, discarded or zeroed.
    pub write_bytes: Option<u64>,
    /// Requests to write, discard or zero.
    pub writes: Option<u64>,
}

/// A run of a block device, taken from the start of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockPart {
    /// A regular file or block device.
    pub file: DescriptorIndex,
    /// How many bytes of it: a multiple of 4096 but for the last part, which is one of 512.
    /// Where the file is shorter the rest reads as zeroes.
    pub bytes: u64,
}

/// One virtio network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// What frames come from and go to, one for each pair of queues: 1 to
    /// [`MAX_PAIRS`](crate::virtio::net::MAX_PAIRS) queues of a TAP device, or a stream. Made nonblocking.
    pub descriptors: Vec<DescriptorIndex>,
    /// What those are.
    pub link: NetLink,
    /// MAC address of the guest; frames from any other are dropped.
    pub mac: [u8; 6],
    /// IP addresses of the guest. Unless there are none, packets from any other are dropped, and so is
    /// all that is neither IPv4, ARP nor IPv6.
    pub sources: Vec<IpAddr>,
    /// Where packets of the guest must not go: they are dropped.
    pub denied: Vec<IpNet>,
    /// What they may reach in there all the same: an address of IPv4 and a port of TCP or UDP.
    pub allowed: Vec<SocketAddrV4>,
    /// Longest IP packet in bytes that the guest is to send, 68 or more.
    pub mtu: u16,
}

/// How much may pass the network devices of a machine; none is no limit. A tenth of a second's worth is saved for a
/// burst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetLimits {
    /// Bytes a second to the guest, at least one, frames counted whole.
    pub receive_bytes: Option<u64>,
    /// Bytes a second from the guest, at least one.
    pub transmit_bytes: Option<u64>,
}

/// The virtio file system device, which carries FUSE requests and looks at none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsConfig {
    /// A `SOCK_SEQPACKET` Unix socket to who answers: a request a datagram, and an answer. Made nonblocking.
    pub server: DescriptorIndex,
    /// What the guest mounts it by: at most 36 bytes.
    pub tag: String,
}

/// What is at the other end of a network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetLink {
    /// A TAP device: `IFF_NO_PI`, `IFF_VNET_HDR` with headers of 12 bytes, `TUN_F_CSUM`, `TUN_F_TSO4`,
    /// `TUN_F_TSO6` and `TUN_F_TSO_ECN` switched on.
    Tap {
        /// `TUN_F_USO4` and `TUN_F_USO6` too, which Linux has since 6.2.
        udp_offload: bool,
    },
    /// A stream socket that carries each frame after its length in four bytes, in network order, as
    /// passt(1) and QEMU do. Its end is a pulled cable to the guest.
    Stream,
}

/// The socket device. Connections that the guest opens to a port of `host_ports` become
/// [`Event::Connected`](crate::Event::Connected); every other one is reset. The host opens none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// Context ID of the guest: 3 or more.
    pub guest_cid: u32,
    /// Host ports that the guest may connect to.
    pub host_ports: Vec<u32>,
}

/// The virtio console. Its last 16 KiB are kept for [`Ending::Panic`](crate::Ending::Panic).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Where output goes besides; made nonblocking and never waited for: what it does not take at
    /// once is dropped.
    pub output: Option<DescriptorIndex>,
}

/// The 16550.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialConfig {
    /// Where output goes; made nonblocking and never waited for.
    pub output: DescriptorIndex,
}
