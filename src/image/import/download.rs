//! Blobs from far away: each is fetched once however many want it, and what has arrived is kept for the next attempt.
//!
//! A download lies in `partial` under its digest, locked by whoever fetches it. Whoever else wants the blob waits for
//! that lock and then finds the blob in the store, or goes on where the other was stopped.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{Arrived, Import, ImportError, Progress, Remote, write};
use crate::image::{
    manifest::Blob,
    store::{FileError, Kind},
};

impl Import<'_> {
    /// Brings a blob into the store, where it stays, pinned, even if this import fails.
    pub(super) fn download(
        &self,
        remote: &dyn Remote,
        blob: &Blob,
    ) -> Result<PathBuf, ImportError> {
        loop {
            let partial = self.transaction.partial(&blob.digest)?;
            if !partial.try_lock()? {
                (self.observer)(Progress::Waiting(blob.digest));
                partial.lock()?;
            }
            if let Some(path) = self.transaction.find(Kind::Blobs, &blob.digest) {
                return Ok(path);
            }
            if !partial.is_current() {
                // Finished or given up by another, and gone since.
                continue;
            }
            let fetched = self.resume(remote, blob, &partial.file, &partial.path);
            return match fetched {
                Ok(()) => Ok(self.transaction.publish_blob(&blob.digest, &partial)?),
                Err(error) => {
                    if !is_worth_keeping(&error) {
                        partial.discard()?;
                    }
                    Err(error)
                }
            };
        }
    }

    /// Completes a partial download and checks the whole.
    fn resume(
        &self,
        remote: &dyn Remote,
        blob: &Blob,
        file: &File,
        path: &Path,
    ) -> Result<(), ImportError> {
        let mut arrived = Arrived::new(blob);
        let failed = |source| FileError::Read(path.into(), source);
        let mut file = file.try_clone().map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > blob.size {
            restart(&mut file, path)?;
        }
        file.rewind().map_err(failed)?;
        arrived.take_from(&mut file.try_clone().map_err(failed)?, &mut |_| Ok(()))?;
        let mut retry = 0;
        while arrived.bytes < blob.size {
            let before = arrived.bytes;
            let outcome = self.continue_at(remote, &mut arrived, &mut file, path);
            match outcome {
                Ok(()) if arrived.bytes == blob.size => {}
                Err(error) if !matches!(error, ImportError::Read { .. }) => return Err(error),
                // The connection broke, or was closed too early.
                broken => {
                    if arrived.bytes > before {
                        retry = 0;
                    }
                    if !remote.wait(retry) {
                        return broken.and_then(|()| arrived.check());
                    }
                    retry += 1;
                }
            }
        }
        arrived.check()?;
        file.sync_all()
            .map_err(|source| FileError::Sync(path.into(), source).into())
    }

    fn continue_at(
        &self,
        remote: &dyn Remote,
        arrived: &mut Arrived<'_>,
        file: &mut File,
        path: &Path,
    ) -> Result<(), ImportError> {
        let Blob { digest, size, .. } = *arrived.blob;
        let from = arrived.bytes;
        let mut reader = remote
            .open_at(arrived.blob, from)
            .map_err(|source| ImportError::Open { digest, source })?;
        file.seek(SeekFrom::Start(from))
            .map_err(|source| FileError::Write(path.into(), source))?;
        let mut bytes = from;
        arrived.take_from(&mut *reader, &mut |piece| {
            bytes += piece.len() as u64;
            (self.observer)(Progress::Received {
                layer: digest,
                bytes,
                total: size,
            });
            write(file, path, piece)
        })
    }
}

fn restart(file: &mut File, path: &Path) -> Result<(), FileError> {
    file.set_len(0)
        .map_err(|source| FileError::Write(path.into(), source))
}

/// Whether the next attempt is better off with what has arrived: not when it is wrong, nor when the disk is full.
fn is_worth_keeping(error: &ImportError) -> bool {
    match error {
        ImportError::Open { .. } | ImportError::Read { .. } => true,
        ImportError::Store(FileError::Write(_, source)) => !matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ),
        _ => false,
    }
}
