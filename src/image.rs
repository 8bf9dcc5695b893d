//! Images: their names, their content on disk, and the root file systems made of it.
//!
//! Everything here treats archives, layouts and registries as hostile. No virtual machine and no container
//! is known here: what comes out is plain data and files that others may open.

pub mod digest;
pub mod layer;
pub mod reference;
pub mod rootfs;
