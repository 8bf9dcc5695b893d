//! Containers: what they are, how they live, and the state of both on disk.
//!
//! This is the one room that brings images, sandboxes and the agent together; those do not know of each
//! other.

pub mod attach;
pub mod capability;
mod create;
mod disk_rate;
pub mod error;
pub mod event;
pub mod files;
pub mod health;
pub mod launch;
pub mod lifecycle;
pub mod limits;
pub mod log;
pub mod mount;
pub mod name;
pub mod network;
pub mod options;
pub mod process;
pub mod restart;
pub mod session;
pub mod signal;
pub mod spec;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod timeline;
pub mod usage;
pub mod volumes;

pub use create::create;
