//! Downloads that are not complete: `partial/<algorithm>-<hex>`, each locked by whoever works on it.
//!
//! They belong to nobody for long: a sweep that is asked to removes those that nobody holds.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use super::{
    Store,
    files::{self, FileError},
};
use crate::image::digest::Digest;

/// Folder of partial downloads in the store.
pub(super) const FOLDER: &str = "partial";

/// An open partial download; what it holds is not checked.
pub(crate) struct Partial {
    /// The file, open for reading and writing.
    pub file: File,
    /// Where it lies.
    pub path: PathBuf,
}

impl Store {
    /// Opens the partial download of a blob, empty if there is none. It is not locked.
    pub(super) fn partial(&self, digest: &Digest) -> Result<Partial, FileError> {
        let path = self.partial_path(digest);
        let file = files::open_lock(&path)?;
        Ok(Partial { file, path })
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        self.root.join(FOLDER).join(name)
    }

    /// Removes the download of a blob unless somebody works on it.
    pub(super) fn discard_download(&self, digest: &Digest) -> Result<(), FileError> {
        if !self.partial_path(digest).exists() {
            return Ok(());
        }
        let partial = self.partial(digest)?;
        if partial.try_lock()? && partial.is_current() {
            partial.discard()?;
        }
        Ok(())
    }

    /// Removes the partial downloads that nobody works on, and gives how many bytes they took.
    pub(super) fn discard_partial(&self) -> Result<u64, FileError> {
        let folder = self.root.join(FOLDER);
        let mut bytes = 0;
        for name in files::list(&folder)? {
            let path = folder.join(name);
            let file = files::open(&path)?;
            if files::try_lock_exclusive(&file, &path)? {
                bytes += file
                    .metadata()
                    .map_or(0, |metadata| metadata.blocks() * 512);
                files::remove(&path)?;
            }
        }
        Ok(bytes)
    }
}

impl Partial {
    /// Locks it if nobody else has.
    pub fn try_lock(&self) -> Result<bool, FileError> {
        files::try_lock_exclusive(&self.file, &self.path)
    }

    /// Locks it; waits.
    pub fn lock(&self) -> Result<(), FileError> {
        files::lock_exclusive(&self.file, &self.path)
    }

    /// Whether its path still leads to it.
    pub fn is_current(&self) -> bool {
        match (fs::symlink_metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(here)) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
            _ => false,
        }
    }

    /// Removes it.
    pub fn discard(&self) -> Result<(), FileError> {
        files::remove(&self.path)
    }
}
