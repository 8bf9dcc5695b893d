//! Images: their names, their content on disk, and the root file systems made of it.
//!
//! Everything here treats archives, layouts and registries as hostile. No virtual machine and no container
//! is known here: what comes out is plain data and files that others may open.

pub mod archive;
pub mod change;
pub mod check;
pub mod commit;
pub mod digest;
pub mod erofs;
pub mod healthcheck;
pub mod import;
pub mod layer;
pub mod layout;
pub mod load;
mod made;
pub mod manifest;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registry;
pub mod root_archive;
pub mod rootfs;
pub mod save;
pub mod store;
