//! The wire between the host and the guest agent: message types and their codec, no I/O on descriptors
//! of its own. `docs/guest-protocol.md` tells the same story in prose.
//!
//! Every connection is opened by the guest, over vsock, to the host (CID 2):
//!
//! * one to [`CONTROL_PORT`], as soon as the agent runs: frames in both directions;
//! * one to [`STREAM_PORT`] for each standard stream the host asked for: the [`StreamToken`] first
//!   (16 raw bytes), then nothing but the stream's bytes. A half-close is the stream's end of file.
//!
//! * with [`Resolver::relay`], any number to [`NAMES_PORT`], one for each connection to the agent's name server, with
//!   the bytes of that: DNS over TCP (RFC 1035, 4.2.2). And one to [`NAME_PACKETS_PORT`] in the same form, for the
//!   messages that reached that server over UDP; what the agent puts in the place of their IDs comes back in answers.
//! * one to [`FORWARD_PORT`] for each [`HostMessage::Forward`]: the [`StreamToken`] first, then what the port is sent and
//!   sends.
//!
//! A frame is a little-endian `u32` payload length, at most [`MAX_FRAME`], and the payload: one
//! message in postcard's wire format. Nothing here trusts the peer: a length is checked before
//! anything is allocated.
#![forbid(unsafe_code)]

pub mod files;
pub mod frame;
mod message;
mod usage;

pub use message::{
    AgentMessage, Capabilities, Exit, HostEntry, HostMessage, Interface, InterfaceAddress, Mount,
    Process, ProcessId, Resolver, Resource, Rlimit, Setup, StartStage, Stdio, StreamToken,
    Transport, Upper, WindowSize,
};
pub use usage::{Limits, ProcessInfo, ProcessList, Usage};

/// Version of this protocol. The host refuses an agent that reports another one.
pub const PROTOCOL_VERSION: u32 = 5;

/// Host vsock port of the control connection.
pub const CONTROL_PORT: u32 = 1;

/// Host vsock port of every standard stream.
pub const STREAM_PORT: u32 = 2;

/// Host vsock port of the connections to the agent's name server.
pub const NAMES_PORT: u32 = 3;

/// Host vsock port of the messages that the agent's name server gets over UDP.
pub const NAME_PACKETS_PORT: u32 = 4;

/// Host vsock port of what goes to and from published ports.
pub const FORWARD_PORT: u32 = 5;

/// What the guest mounts the file system device by that has the host's shared folders.
pub const SHARES_TAG: &str = "shares";

/// Type of a [`Mount`] whose source is a folder of that device, `0`, `1` and so on.
pub const SHARE_TYPE: &str = "virtiofs";

/// Largest payload of one frame in bytes (4 MiB): above Linux's 2 MiB default for argument and
/// environment strings, so that any process that can start can be described.
pub const MAX_FRAME: usize = 4 << 20;
