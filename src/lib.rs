//! pillbug: a container engine whose containers are virtual machines.
#![forbid(unsafe_code)]

pub mod image;
