//! Files that are whole or absent: the few operations that all of the store's durability rests on.
//!
//! What an image is, nothing here knows.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use serde::{Serialize, de::DeserializeOwned};

use crate::image::digest::Digest;

/// A failed operation on a file of the store.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FileError {
    #[error("cannot create {0}")]
    Create(PathBuf, #[source] io::Error),
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{0} is larger than the {1} bytes that such a file may have")]
    TooLarge(PathBuf, u64),
    #[error("{0} is damaged: run `pillbug system check --repair`")]
    Record(PathBuf),
    #[error("{0} is damaged: run `pillbug system check --repair`")]
    Damaged(PathBuf, #[source] serde_json::Error),
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    #[error("cannot bring {0} to disk")]
    Sync(PathBuf, #[source] io::Error),
    #[error("cannot rename to {0}")]
    Rename(PathBuf, #[source] io::Error),
    #[error("cannot remove {0}")]
    Remove(PathBuf, #[source] io::Error),
    #[error("cannot list {0}")]
    List(PathBuf, #[source] io::Error),
    #[error("cannot lock {0}")]
    Lock(PathBuf, #[source] io::Error),
}

impl FileError {
    /// The file is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Open(_, source) | Self::List(_, source) if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Opens a file for reading; a symbolic link or a pipe in its place is an error.
pub fn open(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
        .map_err(|source| FileError::Open(path.into(), source))
}

/// Creates a file that must not exist yet, mode 0600.
pub fn create(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| FileError::Create(path.into(), source))
}

/// Opens the file that a lock is held on, creating it if need be.
pub fn open_lock(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
        .map_err(|source| FileError::Open(path.into(), source))
}

/// The whole of an open file of at most `limit` bytes.
pub fn read(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Read(path.into(), source))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge(path.into(), limit));
    }
    Ok(bytes)
}

/// One of the store's own small records: a line of JSON, and a line with the digest of the first.
pub fn read_record<T: DeserializeOwned>(file: &File, path: &Path) -> Result<T, FileError> {
    const MAX_RECORD: u64 = 1 << 20;
    let bytes = read(file, path, MAX_RECORD)?;
    let text = bytes.trim_ascii_end();
    let end = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .unwrap_or_default();
    let (json, digest) = (&text[..end], &text[end..]);
    if digest.trim_ascii() != Digest::of(json).to_string().as_bytes() {
        return Err(FileError::Record(path.into()));
    }
    serde_json::from_slice(json).map_err(|source| FileError::Damaged(path.into(), source))
}

/// Writes a record to the new file `path` and brings it to disk.
pub fn write_record<T: Serialize>(path: &Path, record: &T) -> Result<(), FileError> {
    let json =
        serde_json::to_string(record).map_err(|source| FileError::Damaged(path.into(), source))?;
    let digest = Digest::of(json.as_bytes());
    write(path, format!("{json}\n{digest}\n").as_bytes())
}

/// Writes the new file `path` and brings it to disk.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = create(path)?;
    file.write_all(bytes)
        .map_err(|source| FileError::Write(path.into(), source))?;
    sync(&file, path)
}

/// Brings an open file or folder to disk.
pub fn sync(file: &File, path: &Path) -> Result<(), FileError> {
    file.sync_all()
        .map_err(|source| FileError::Sync(path.into(), source))
}

/// Brings the entries of a folder to disk.
pub fn sync_folder(path: &Path) -> Result<(), FileError> {
    sync(&open(path)?, path)
}

/// Makes `below`'s folders under `root`, each mode 0700, those that are new brought to disk.
pub fn create_folders(root: &Path, below: &Path) -> Result<(), FileError> {
    let mut folder = root.to_path_buf();
    for component in below.components() {
        let parent = folder.clone();
        folder.push(component);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => sync_folder(&parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(FileError::Create(folder, source)),
        }
    }
    Ok(())
}

/// Names in a folder, in no order; names that are no UTF-8 are nobody's.
pub fn list(folder: &Path) -> Result<Vec<String>, FileError> {
    let error = |source| FileError::List(folder.into(), source);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        if let Ok(name) = entry.map_err(error)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Renames a file over what is there.
pub fn replace(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(|source| FileError::Rename(to.into(), source))
}

/// Moves a file or folder to its place. A folder that is there already stays, and `from` is removed.
pub fn publish(from: &Path, to: &Path) -> Result<(), FileError> {
    match fs::rename(from, to) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            ) =>
        {
            remove(from)
        }
        Err(source) => Err(FileError::Rename(to.into(), source)),
    }
}

/// Gives a file its second name `to` and says so, unless something has that name already. Locks that others hold
/// on what is there stay meaningful, which a rename over it would take from them.
pub fn publish_once(from: &Path, to: &Path) -> Result<bool, FileError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(FileError::Create(to.into(), source)),
    }
}

/// Keeps the file that is at `path`, if there is one, under the new name `kept` as well, and says so.
pub fn keep(path: &Path, kept: &Path) -> Result<bool, FileError> {
    match fs::hard_link(path, kept) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FileError::Create(kept.into(), source)),
    }
}

/// Removes a file, or a folder with everything in it; that it is gone already is no error.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::Remove(path.into(), error))
        }
        _ => Ok(()),
    }
}

/// Takes a lock that nobody else holds exclusively; waits.
pub fn lock_shared(file: &File, path: &Path) -> Result<(), FileError> {
    file.lock_shared()
        .map_err(|source| FileError::Lock(path.into(), source))
}

/// Takes a lock alone; waits.
pub fn lock_exclusive(file: &File, path: &Path) -> Result<(), FileError> {
    file.lock()
        .map_err(|source| FileError::Lock(path.into(), source))
}

/// Takes a lock alone if that is possible at once.
pub fn try_lock_exclusive(file: &File, path: &Path) -> Result<bool, FileError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(source)) => Err(FileError::Lock(path.into(), source)),
    }
}
