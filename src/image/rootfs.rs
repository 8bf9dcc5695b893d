//! The root file system of an image: its layers merged into one EROFS file system.
//!
//! Only a metadata file is written. Behind it, in one address space, lie the `data` files of the layers as they
//! are, so a layer is stored once however many images have it. Mounting it is the guest's business.

mod flatten;
mod tree;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::erofs::{self, BLOCK, ErofsError};
use super::layer::index::{self, IndexError};
use super::layer::name::shown;
use super::layer::{DATA, INDEX};
use tree::{Tree, TreeError};

/// The parts of a root file system in the order in which they make up one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Files and their sizes in bytes, each a multiple of 4096: the metadata, then the data of the layers.
    pub parts: Vec<(PathBuf, u64)>,
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
    Read(PathBuf, #[source] io::Error),
    /// A layer's index is not one.
    #[error("{0} is damaged: remove the image and pull or load it again")]
    Index(PathBuf, #[source] IndexError),
    /// A part has not the size that it had when it was written.
    #[error(
        "{path} has {actual} bytes, not {expected}: remove the image and pull or load it again"
    )]
    Size {
        /// The part.
        path: PathBuf,
        /// Its size.
        actual: u64,
        /// The size it should have.
        expected: u64,
    },
    /// A layer's entry does not fit what lies below it.
    #[error("cannot apply entry {entry} of layer {number}")]
    Entry {
        /// Which layer, the lowest being 1.
        number: usize,
        /// The entry's path.
        entry: String,
        /// What is wrong.
        #[source]
        source: Box<TreeError>,
    },
    /// The metadata cannot be written.
    #[error("cannot write the metadata {0}")]
    Write(PathBuf, #[source] ErofsError),
}

impl Rootfs {
    /// Finds the parts of a root file system that [`build`] made of the same `layers` earlier.
    ///
    /// # Errors
    ///
    /// When a file is missing or is not of whole blocks.
    pub fn open(metadata: &Path, layers: &[PathBuf]) -> Result<Self, RootfsError> {
        let data = distinct(layers).into_iter().map(|layer| layer.join(DATA));
        let mut parts = Vec::new();
        for path in std::iter::once(metadata.to_owned()).chain(data) {
            let bytes = size(&path)?;
            let expected = bytes.next_multiple_of(BLOCK);
            if bytes != expected {
                return Err(RootfsError::Size {
                    path,
                    actual: bytes,
                    expected,
                });
            }
            // A layer without larger files has no data.
            if bytes > 0 {
                parts.push((path, bytes));
            }
        }
        Ok(Self { parts })
    }
}

/// Merges `layers`, the folders of converted layers from the lowest to the topmost, and writes the metadata
/// file `into`, which must not exist yet and is on disk when this returns. The same layers give the same bytes.
///
/// # Errors
///
/// When a layer cannot be read or is damaged, when the layers do not fit each other (a hard link to nothing),
/// and when `into` cannot be written.
pub fn build(layers: &[PathBuf], into: &Path) -> Result<RootfsSummary, RootfsError> {
    let stored = distinct(layers);
    let mut indexes = Vec::new();
    for layer in &stored {
        let path = layer.join(INDEX);
        indexes.push(fs::read(&path).map_err(|error| RootfsError::Read(path, error))?);
    }
    // Where the data of each distinct layer starts, in blocks of the data area.
    let mut bases = Vec::new();
    let mut data_blocks = 0;
    for (layer, index) in stored.iter().zip(&indexes) {
        bases.push(data_blocks);
        data_blocks += check_data(layer, index)?;
    }
    let mut tree = Tree::new();
    for (at, layer) in layers.iter().enumerate() {
        let Some(nth) = stored.iter().position(|stored| *stored == layer) else {
            continue;
        };
        tree.start_layer(bases[nth]);
        let damaged = |error| RootfsError::Index(layer.join(INDEX), error);
        for entry in index::Reader::new(&indexes[nth]).map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            let path = entry.path;
            tree.apply(entry).map_err(|source| RootfsError::Entry {
                number: at + 1,
                entry: shown(path),
                source: Box::new(source),
            })?;
        }
    }
    let inodes = flatten::flatten(&tree);
    write(&inodes, data_blocks, into).inspect_err(|_| {
        // A file that is not whole must not be taken for one that is.
        let _ = fs::remove_file(into);
    })?;
    Ok(RootfsSummary {
        rootfs: Rootfs::open(into, layers)?,
        inodes: inodes.len() as u64,
    })
}

fn write(inodes: &[erofs::Inode<'_>], data_blocks: u64, into: &Path) -> Result<(), RootfsError> {
    let failed = |error: ErofsError| RootfsError::Write(into.into(), error);
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(into);
    let file = file.map_err(|error| failed(error.into()))?;
    erofs::write(inodes, data_blocks, &file).map_err(failed)?;
    file.sync_all().map_err(|error| failed(error.into()))?;
    let folder = match into.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| failed(error.into()))
}

/// The layers without those that come again: their data is needed once.
fn distinct(layers: &[PathBuf]) -> Vec<&PathBuf> {
    let mut distinct: Vec<&PathBuf> = Vec::new();
    for layer in layers {
        if !distinct.contains(&layer) {
            distinct.push(layer);
        }
    }
    distinct
}

/// Number of blocks of a layer's data, which must be as its index says.
fn check_data(layer: &Path, index: &[u8]) -> Result<u64, RootfsError> {
    let reader = index::Reader::new(index);
    let reader = reader.map_err(|error| RootfsError::Index(layer.join(INDEX), error))?;
    let path = layer.join(DATA);
    let actual = size(&path)?;
    let expected = reader.data_blocks.saturating_mul(BLOCK);
    if actual != expected {
        return Err(RootfsError::Size {
            path,
            actual,
            expected,
        });
    }
    Ok(reader.data_blocks)
}

fn size(path: &Path) -> Result<u64, RootfsError> {
    let metadata = fs::metadata(path);
    let metadata = metadata.map_err(|error| RootfsError::Read(path.to_owned(), error))?;
    Ok(metadata.len())
}
