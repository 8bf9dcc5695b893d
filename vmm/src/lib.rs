//! Boots and runs one virtual machine from a [`VmConfig`] and a table of open descriptors.
//!
//! This crate knows no containers, images or agents. It opens nothing: every resource arrives as a
//! descriptor, so that the process around it needs no path, no network and no privilege.

pub mod bus;
mod config;
mod control;
pub mod kernel;
pub mod machine;
pub mod memory;
pub mod output;
mod panic;
pub mod probe;
pub mod process;
pub mod serial;
mod throttle;
pub mod vcpu;
pub mod virtio;
mod x86;

pub use config::{
    BlockConfig, BlockLimits, BlockPart, ConsoleConfig, DescriptorIndex, FsConfig, KernelConfig,
    MemoryConfig, NetConfig, NetLimits, NetLink, SerialConfig, VmConfig, VsockConfig,
};
pub use control::{Command, Counters, Ending, Event, Traffic};
