//! One layer of an image, from its archive to the two files that root file systems are made of.
//!
//! A layer is a stream: it is decompressed, hashed and taken apart while it arrives and no path in it is ever
//! used on the host. What stays is `data`, the contents of its files, and `index`, everything else. Who fetches
//! the blob, checks its own digest and size and decides where the folder lies is somebody else's business.

pub(crate) mod archive;
mod data;
mod decompress;
pub mod index;
pub mod name;
mod pax;
mod pipe;
mod sparse;
mod store;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::image::digest::{Digest, Hasher};
use archive::ArchiveError;
use name::NameError;

/// Name of the file with the contents, in a layer's folder.
pub const DATA: &str = "data";
/// Name of the file with the entries, in a layer's folder.
pub const INDEX: &str = "index";

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

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
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
    /// Uncompressed bytes for each compressed byte.
    pub ratio: u64,
    /// Bytes of the uncompressed archive from which on the ratio is judged: small layers may well be nearly all zeros.
    pub ratio_from: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2 << 20,
            index_bytes: 512 << 20,
            ratio: 200,
            ratio_from: 1 << 30,
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
    #[error("cannot write {0}")]
    Store(PathBuf, #[source] io::Error),
    /// The blob fails while it is read, or is not what its media type says.
    #[error("cannot read the layer as {0}")]
    Decompress(Compression, #[source] io::Error),
    /// The archive inside is damaged.
    #[error("the layer's archive is damaged behind {behind}")]
    Archive {
        /// The last entry that was whole.
        behind: String,
        /// What is wrong.
        #[source]
        source: ArchiveError,
    },
    /// An entry that no file system could hold or that is an attack.
    #[error("the layer's entry {entry} is refused")]
    Entry {
        /// The entry's path.
        entry: String,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
    /// Extended attributes larger than the file system allows.
    #[error("the extended attributes of the layer's entry {0} are too large")]
    Xattrs(String),
    /// Over the byte budget.
    #[error("the layer unpacks to more than {0} bytes")]
    TooLarge(u64),
    /// Compressed beyond what is plausible.
    #[error("the layer unpacks to more than {0} times its size")]
    Ratio(u64),
    /// Over the number of entries.
    #[error("the layer has more than {0} entries")]
    TooManyEntries(u64),
    /// Over the budget for names, attributes and tables.
    #[error("the names and attributes in the layer take more than {0} bytes")]
    IndexTooLarge(u64),
    /// The archive is not the one that the image's configuration names.
    #[error("the layer's archive is {actual}, but the image's configuration says {expected}")]
    DiffId {
        /// What the configuration says.
        expected: Box<Digest>,
        /// What arrived.
        actual: Box<Digest>,
    },
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
    let data = Created::new(into.join(DATA))?;
    let index = Created::new(into.join(INDEX))?;
    let (output, input) = pipe::pipe(Hasher::new(diff_id.algorithm()));
    let (decompressed, stored) = std::thread::scope(|scope| {
        let store = scope.spawn(|| store::store(input, diff_id, limits, &data, &index));
        let decompressed = decompress::decompress(blob, compression, limits, output);
        let stored = store.join();
        (
            decompressed,
            stored.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    // A stream that broke off explains whatever the other end made of it.
    decompressed?;
    let summary = stored?;
    data.keep();
    index.keep();
    File::open(into)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| LayerError::Store(into.into(), error))?;
    Ok(summary)
}

/// A new file that goes away again unless it is kept.
struct Created {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Created {
    fn new(path: PathBuf) -> Result<Self, LayerError> {
        let file =
            File::create_new(&path).map_err(|error| LayerError::Store(path.clone(), error))?;
        Ok(Self {
            path,
            file,
            kept: false,
        })
    }

    fn keep(mut self) {
        self.kept = true;
    }

    fn failed(&self, error: io::Error) -> LayerError {
        LayerError::Store(self.path.clone(), error)
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if !self.kept {
            // The error on the way out is what the caller needs to hear of.
            let _ = fs::remove_file(&self.path);
        }
    }
}
