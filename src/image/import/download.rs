//! Layers from far away: each is fetched and taken apart once however many want it, and what has arrived is kept for
//! the next attempt.
//!
//! A download lies in `partial` under its digest until an image that needs it is there. Whoever works on the layer has
//! it locked; whoever else wants the layer waits for that lock and then finds it done, or goes on where the other was
//! stopped.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{Arrived, Import, ImportError, Progress, Remote, write};
use crate::image::{
    digest::Digest,
    manifest::Blob,
    store::{FileError, Kind, Partial},
};

impl Import<'_> {
    /// Makes a layer ready and gives its folder, which is in the store for everybody before this import is done.
    pub(super) fn download(
        &self,
        remote: &dyn Remote,
        blob: &Blob,
        diff_id: &Digest,
    ) -> Result<PathBuf, ImportError> {
        let transaction = self.transaction;
        let (_partial, path) = loop {
            let partial = transaction.partial(&blob.digest)?;
            if !partial.try_lock()? {
                (self.observer)(Progress::Waiting(blob.digest));
                partial.lock()?;
            }
            // Otherwise finished or given up by another, and gone since.
            if !partial.is_current() {
                continue;
            }
            match transaction.find(Kind::Blobs, &blob.digest) {
                Some(path) => {
                    partial.discard()?;
                    break (partial, path);
                }
                None => {
                    self.complete(remote, blob, &partial)?;
                    let path = transaction.stage_download(&blob.digest, &partial)?;
                    break (partial, path);
                }
            }
        };
        if let Some(folder) = transaction.find(Kind::Layers, diff_id) {
            (self.observer)(Progress::Ready(blob.digest));
            return Ok(folder);
        }
        let made = self.convert(blob, &path, diff_id)?;
        let folder = transaction.publish_now(Kind::Layers, diff_id, &made)?;
        (self.observer)(Progress::Ready(blob.digest));
        Ok(folder)
    }

    /// Completes a partial download. What an earlier attempt left may have been damaged by a power cut: then it is
    /// begun again, once.
    fn complete(
        &self,
        remote: &dyn Remote,
        blob: &Blob,
        partial: &Partial,
    ) -> Result<(), ImportError> {
        let Partial { file, path } = partial;
        let failed = |source| FileError::Read(path.clone(), source);
        let was_begun = file.metadata().map_err(failed)?.len() > 0;
        let mut fetched = self.resume(remote, blob, file, path);
        if was_begun && matches!(fetched, Err(ImportError::Digest { .. })) {
            restart(file, path)?;
            fetched = self.resume(remote, blob, file, path);
        }
        if fetched.as_ref().is_err_and(|error| !error.may_pass()) {
            partial.discard()?;
        }
        fetched
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
            restart(&file, path)?;
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
            write(file, path, piece)?;
            bytes += piece.len() as u64;
            (self.observer)(Progress::Received {
                layer: digest,
                bytes,
                total: size,
            });
            match remote.is_over() {
                true => Err(ImportError::GivenUp(digest)),
                false => Ok(()),
            }
        })
    }
}

fn restart(file: &File, path: &Path) -> Result<(), FileError> {
    file.set_len(0)
        .map_err(|source| FileError::Write(path.into(), source))
}
