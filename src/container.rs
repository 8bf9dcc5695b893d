//! Containers: what they are, how they live, and the state of both on disk.
//!
//! This is the one room that brings images, sandboxes and the agent together; those do not know of each
//! other.

pub mod capability;
mod create;
pub mod error;
pub mod name;
pub mod options;
pub mod process;
pub mod run;
pub mod state;
pub mod timeline;

pub use create::create_and_run;
