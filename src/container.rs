//! Containers: what they are, how they live, and the state of both on disk.
//!
//! This is the one room that brings images, sandboxes and the agent together; those do not know of each
//! other.

pub mod capability;
pub mod name;
pub mod options;
pub mod process;
pub mod state;
