//! pillbug: a container engine whose containers are virtual machines.
//!
//! The library is the engine; [`cli`] is one front of it. `ARCHITECTURE.md` is the map.
#![forbid(unsafe_code)]

pub mod agent_client;
pub mod bench;
pub mod cli;
pub mod container;
mod deadline;
pub mod host;
pub mod image;
pub mod network;
mod own_process;
pub mod program;
pub mod sandbox;
mod seccomp;
pub mod state_root;
pub mod user_namespace;
pub mod volume;
