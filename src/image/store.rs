//! The image store: the folder `images` of the state folder, plain files, the only truth that processes share about images.
//!
//! ```text
//! blobs/<algorithm>/<hex>     what was loaded or pulled, byte for byte
//! layers/<algorithm>/<hex>/   a layer taken apart, by diff_id         } rebuildable
//! rootfs/<algorithm>/<hex>    a root file system's metadata, by ChainID } from blobs
//! images/<algorithm>/<hex>    record of an image, by the digest of its manifest; its lease
//! names/<domain>/<path>/:tag  which image a name means
//! partial/<algorithm>-<hex>   a download that is not complete, locked while somebody works on it
//! temp/<random>/              what a running operation has not committed yet
//! lock                        shared by whoever adds, exclusive for whoever removes
//! ```
//!
//! Everything is written aside in `temp`, brought to disk and renamed to its place, a record after everything it
//! needs and a name after its record: whatever is interrupted, a reader finds an image whole or not at all.
//! Nothing is removed but by a sweep, alone under `lock`, of what no record and no running operation needs.
//! How images are read out of archives or registries is not known here.

mod contents;
mod files;
mod images;
mod names;
mod partial;
mod sweep;
mod transaction;
mod usage;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub(crate) use contents::Contents;
pub use contents::Description;
pub use files::FileError;
pub use images::{Image, Listed};
pub use names::NameRecord;
pub(crate) use names::place as name_place;
pub(crate) use partial::Partial;
pub use sweep::{Pruned, Removed};
pub(crate) use transaction::Transaction;
pub use usage::{ImageUsage, Usage};

use crate::{
    image::{
        digest::Digest,
        manifest::{self, Manifest, ManifestError},
        reference::ShortNames,
        rootfs::RootfsError,
    },
    state_root::{StateRootError, private_folder},
};

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StoreError {
    #[error("cannot use the image store")]
    Folder(#[source] StateRootError),
    #[error("the image store is not readable or writable")]
    File(#[from] FileError),
    #[error(
        "no image {0} in the store: `pillbug images` lists what there is, `pillbug pull` adds one"
    )]
    Unknown(String),
    #[error("{id} may be any of {count} images: give more of its digits")]
    AmbiguousId { id: String, count: usize },
    #[error("image {image} is damaged: load it again")]
    Config {
        image: String,
        source: ManifestError,
    },
    #[error("the root file system of image {image} is damaged: load it again")]
    Rootfs { image: String, source: RootfsError },
    #[error("image {0} is in use")]
    InUse(String),
    #[error("image {image} is used by {user}: remove that first, or use force")]
    Wanted { image: String, user: String },
    #[error("image {id} has several names, remove each or use force: {names}")]
    SeveralNames { id: String, names: String },
}

/// The kinds of content that have a digest for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Blobs,
    Layers,
    Rootfs,
    Images,
}

impl Kind {
    /// What a sweep looks through.
    const SWEPT: [Self; 3] = [Self::Blobs, Self::Layers, Self::Rootfs];

    fn folder(self) -> &'static str {
        match self {
            Self::Blobs => "blobs",
            Self::Layers => "layers",
            Self::Rootfs => "rootfs",
            Self::Images => "images",
        }
    }

    /// Where such content lies in the store.
    pub(crate) fn place(self, digest: &Digest) -> PathBuf {
        let mut path = PathBuf::from(self.folder());
        path.push(digest.algorithm().as_str());
        path.push(digest.hex());
        path
    }
}

/// What an image is made of; enough to find and to keep all of it without reading any document again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Blob of the configuration; its digest is the image's ID.
    pub config: Digest,
    /// Layers, lowest first.
    pub layers: Vec<LayerRecord>,
    /// ChainID of the layers: the key of the root file system.
    pub rootfs: Digest,
}

/// One layer of a [`Record`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// As it was distributed.
    pub blob: Digest,
    /// Its uncompressed archive.
    pub diff_id: Digest,
}

impl Record {
    /// The record of an image with this manifest, the layers of which have these diff_ids. None for no layers.
    pub fn new(manifest: &Manifest, diff_ids: &[Digest]) -> Option<Self> {
        let layers = manifest.layers.iter().zip(diff_ids);
        Some(Self {
            config: manifest.config.digest,
            layers: layers
                .map(|(blob, diff_id)| LayerRecord {
                    blob: blob.digest,
                    diff_id: *diff_id,
                })
                .collect(),
            rootfs: manifest::chain_id(diff_ids)?,
        })
    }

    /// Everything that an image with this record and `manifest` needs.
    pub fn objects(&self, manifest: &Digest) -> Vec<(Kind, Digest)> {
        let mut objects = vec![
            (Kind::Blobs, *manifest),
            (Kind::Blobs, self.config),
            (Kind::Rootfs, self.rootfs),
        ];
        for layer in &self.layers {
            objects.push((Kind::Blobs, layer.blob));
            objects.push((Kind::Layers, layer.diff_id));
        }
        objects
    }
}

/// An open image store. Any number of processes may have it open at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    pub(in crate::image) short_names: ShortNames,
}

/// The store's lock, held until this is dropped.
struct Lock {
    _file: File,
}

impl Store {
    /// Opens the store in the folder `images` of `state_root`, made if it is missing, and removes what interrupted
    /// operations left in it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Folder`] where the store or a folder in it belongs to another user, is open to others or
    /// is a symbolic link.
    pub fn open(state_root: &Path) -> Result<Self, StoreError> {
        let root = state_root.join("images");
        for folder in [state_root, &root] {
            private_folder(folder).map_err(StoreError::Folder)?;
        }
        let kinds = [Kind::Blobs, Kind::Layers, Kind::Rootfs, Kind::Images].map(Kind::folder);
        for folder in kinds.into_iter().chain(["names", partial::FOLDER, "temp"]) {
            private_folder(&root.join(folder)).map_err(StoreError::Folder)?;
        }
        let store = Self {
            root,
            short_names: ShortNames::default(),
        };
        store.clean()?;
        Ok(store)
    }

    /// The same store, for a person who has settled what short names mean.
    #[must_use]
    pub fn with_short_names(self, short_names: ShortNames) -> Self {
        Self {
            short_names,
            ..self
        }
    }

    /// What the name of a person's choosing stands for: an image's name, its ID (`sha256:...`) or the first digits
    /// of its ID. Reads a few small files, whatever the size of the image.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unknown`] where there is no such image, [`StoreError::AmbiguousId`] where there are several.
    pub fn resolve(&self, name: &str) -> Result<Image, StoreError> {
        let (manifest, _, reference) = self.find(name)?;
        self.image(&manifest, reference)
    }

    /// The folder of all blobs, laid out as `blobs` of an OCI image layout. For reading only.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.root.join(Kind::Blobs.folder())
    }

    fn path(&self, kind: Kind, digest: &Digest) -> PathBuf {
        self.root.join(kind.place(digest))
    }

    fn temp(&self) -> PathBuf {
        self.root.join("temp")
    }

    fn lock_file(&self) -> Result<(File, PathBuf), FileError> {
        let path = self.root.join("lock");
        Ok((files::open_lock(&path)?, path))
    }

    /// For adding: nothing is swept meanwhile.
    fn lock_shared(&self) -> Result<Lock, FileError> {
        let (file, path) = self.lock_file()?;
        files::lock_shared(&file, &path)?;
        Ok(Lock { _file: file })
    }

    /// For removing: nothing is added meanwhile.
    fn lock_exclusive(&self) -> Result<Lock, FileError> {
        let (file, path) = self.lock_file()?;
        files::lock_exclusive(&file, &path)?;
        Ok(Lock { _file: file })
    }
}
