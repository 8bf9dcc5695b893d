//! Small files that appear whole or not at all: new file, (fsync,) rename.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

use super::StateError;

/// Opens the file for a lock, made if missing.
pub fn open_lock(path: &Path) -> Result<File, StateError> {
    let options = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .clone();
    options.open(path).map_err(failed("open", path))
}

/// A lock that cannot be had.
pub fn lock_error(error: TryLockError, path: &Path) -> StateError {
    let source = match error {
        TryLockError::Error(source) => source,
        TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
    };
    failed("lock", path)(source)
}

/// What was tried on what.
pub fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::File {
        action,
        path: path.into(),
        source,
    }
}

/// Reads a document.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, StateError> {
    let bytes = fs::read(path).map_err(failed("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| StateError::Damaged {
        path: path.into(),
        source,
    })
}

/// Writes a document in the place of the one that was there.
pub fn write_json<T: Serialize>(path: &Path, value: &T, durable: bool) -> Result<(), StateError> {
    let bytes = serde_json::to_vec(value).map_err(|source| StateError::Damaged {
        path: path.into(),
        source,
    })?;
    write(path, &bytes, durable)
}

/// As [`write_json`], and in place where the disk has no room for a new file: a status of few bytes then goes where the
/// one before was, which is less than safe should the power fail just now, and better than none.
pub fn write_json_somehow<T: Serialize>(
    path: &Path,
    value: &T,
    durable: bool,
) -> Result<(), StateError> {
    let result = write_json(path, value, durable);
    let Err(StateError::File { source, .. }) = &result else {
        return result;
    };
    if !matches!(
        source.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) {
        return result;
    }
    let Ok(mut bytes) = serde_json::to_vec(value) else {
        return result;
    };
    let mut overwrite = || {
        let file = OpenOptions::new().write(true).open(path)?;
        // What was longer must not show behind it, and readers find one or the other: spaces, in one piece.
        let before = usize::try_from(file.metadata()?.len()).unwrap_or_default();
        bytes.resize(bytes.len().max(before), b' ');
        file.write_all_at(&bytes, 0)?;
        file.sync_all()
    };
    overwrite().map_err(failed("write", path))
}

/// New file, fsync, rename, fsync of the folder; the fsyncs only for what shall outlive a power cut.
pub fn write(path: &Path, bytes: &[u8], durable: bool) -> Result<(), StateError> {
    let staging = path.with_added_extension("new");
    let mut new = File::create(&staging).map_err(failed("create", &staging))?;
    let written = new.write_all(bytes).and_then(|()| match durable {
        true => new.sync_all(),
        false => Ok(()),
    });
    if let Err(error) = written {
        // What is left of it takes room, and is written anew next time in any case.
        let _ = fs::remove_file(&staging);
        return Err(failed("write", &staging)(error));
    }
    fs::rename(&staging, path).map_err(failed("write", path))?;
    match path.parent() {
        Some(folder) if durable => sync_folder(folder),
        _ => Ok(()),
    }
}

/// Makes renames in a folder last.
pub fn sync_folder(folder: &Path) -> Result<(), StateError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("write", folder))
}
