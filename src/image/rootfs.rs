//! The root file system of an image: its layers merged into one EROFS file system.
//!
//! Only a metadata file is written. Behind it, in one address space, lie the `data` files of the layers as they
//! are, so a layer is stored once however many images have it. Mounting it is the guest's business.

use std::path::{Path, PathBuf};

/// The parts of a root file system in the order in which they make up one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Files and their sizes in bytes, each a multiple of 4096: the metadata, then the data of the layers.
    pub parts: Vec<(PathBuf, u64)>,
}

impl Rootfs {
    /// Finds the parts of a root file system that [`build`] made of the same `layers` earlier.
    ///
    /// # Errors
    ///
    /// When a file is missing or has not the size that the metadata was made for.
    pub fn open(metadata: &Path, layers: &[PathBuf]) -> Result<Self, RootfsError> {
        let _ = layers;
        Err(RootfsError::Read(
            metadata.into(),
            std::io::ErrorKind::Unsupported.into(),
        ))
    }
}

/// What a root file system came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsSummary {
    /// Its parts.
    pub rootfs: Rootfs,
    /// Files, folders, links and devices in it; hard links count once.
    pub inodes: u64,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A part cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
}

/// Merges `layers`, the folders of converted layers from the lowest to the topmost, and writes the metadata
/// file `into`, which must not exist yet and is on disk when this returns. The same layers give the same bytes.
///
/// # Errors
///
/// When a layer cannot be read or is damaged, when the layers do not fit each other (a hard link to nothing),
/// and when `into` cannot be written.
pub fn build(layers: &[PathBuf], into: &Path) -> Result<RootfsSummary, RootfsError> {
    let rootfs = Rootfs::open(into, layers)?;
    Ok(RootfsSummary { rootfs, inodes: 0 })
}
