//! The built `pillbug`, driven as a user drives it, on a host whose KVM works.
//!
//! `make test` runs these in the lab with a store that it filled with real images (`tests/images`)
//! beforehand, since converting those on an emulated processor would take long. What hostile images
//! do is tried with small ones that the tests make themselves. Nothing here looks inside pillbug.

mod bad_images;
mod bad_input;
mod command;
mod detached;
mod files;
mod host_faults;
mod image;
mod lifecycle;
mod limits;
mod machine;
mod misbehaving;
mod network;
mod process;
mod real;
mod services;
mod soak;
mod sources;
mod streams;
mod supervision;
mod terminal;
mod user;
mod volumes;
