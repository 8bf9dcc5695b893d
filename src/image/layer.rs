//! One layer of an image, from its archive to the two files that root file systems are made of.
//!
//! A layer is a stream: it is decompressed, hashed and taken apart while it arrives and no path in it is ever
//! used on the host. What stays is `data`, the contents of its files, and `index`, everything else. Who fetches
//! the blob, checks its own digest and size and decides where the folder lies is somebody else's business.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::image::digest::Digest;

/// How a layer's archive is packed, as its media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

/// What a layer may cost. Every field is a cap that refuses the layer when it is passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerLimits {
    /// Bytes of the uncompressed archive, and bytes written to `data`.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of `index`: names, extended attributes and link targets.
    pub index_bytes: u64,
    /// Uncompressed bytes for each compressed byte, judged once the archive has passed 1 GiB.
    pub ratio: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2 << 20,
            index_bytes: 512 << 20,
            ratio: 200,
        }
    }
}

/// What a layer came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSummary {
    /// Bytes of the uncompressed archive.
    pub archive_bytes: u64,
    /// Bytes of `data`, a multiple of 4096.
    pub data_bytes: u64,
    /// Bytes of `index`.
    pub index_bytes: u64,
    /// Entries of the archive, whiteouts among them.
    pub entries: u64,
}

/// Why a layer was refused or could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The folder for the layer is not usable.
    #[error("cannot store a layer in {0}")]
    Store(PathBuf, #[source] std::io::Error),
}

/// Takes a layer's blob apart into `data` and `index` in the existing, empty folder `into`, both on disk when
/// this returns.
///
/// `blob` is read to its end, so that a reader that hashes what passes has seen all of it. After an error
/// the folder is empty again.
///
/// # Errors
///
/// When the archive is damaged, does not hash to `diff_id`, passes one of `limits` or holds an entry that no
/// file system could hold, and when the folder cannot be written.
pub fn convert(
    blob: impl Read,
    compression: Compression,
    diff_id: &Digest,
    limits: &LayerLimits,
    into: &Path,
) -> Result<LayerSummary, LayerError> {
    let _ = (blob, compression, diff_id, limits);
    Err(LayerError::Store(
        into.into(),
        std::io::ErrorKind::Unsupported.into(),
    ))
}
