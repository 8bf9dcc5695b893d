//! Removal: of images that a person names, of what no image needs, and of what crashes left.

use std::{collections::HashSet, io};

use super::{
    Kind, Listed, Lock, Store, StoreError,
    files::{self, FileError},
    transaction,
};
use crate::{
    image::{digest::Digest, reference::Reference},
    state_root::disk_usage,
};

/// What a [`Store::prune`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What went, in order.
    pub removed: Vec<Removed>,
    /// Bytes of disk that are free again.
    pub bytes: u64,
}

/// One thing that a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name is gone.
    Untagged(Reference),
    /// An image is gone: its ID.
    Deleted(Digest),
}

impl Store {
    /// Removes what abandoned operations left, unless somebody works in the store: then the next one does.
    pub(super) fn clean(&self) -> Result<(), StoreError> {
        let temp = self.temp();
        if files::list(&temp)?.is_empty() {
            return Ok(());
        }
        let (file, path) = self.lock_file()?;
        if !files::try_lock_exclusive(&file, &path)? {
            return Ok(());
        }
        let lock = Lock { _file: file };
        let mut was_interrupted = false;
        for name in files::list(&temp)? {
            let path = temp.join(name);
            let is_abandoned = match files::open(&path) {
                Ok(folder) => files::try_lock_exclusive(&folder, &path)?,
                Err(error) if error.is_missing() => false,
                Err(_) => true,
            };
            if is_abandoned {
                files::remove(&path)?;
                was_interrupted = true;
            }
        }
        // Its commit may have been halfway.
        if was_interrupted {
            match self.sweep(&lock) {
                // What is needed cannot be told until that is repaired, for which the store must open.
                Err(StoreError::File(FileError::Record(_) | FileError::Damaged(..))) => {}
                swept => drop(swept?),
            }
        }
        Ok(())
    }

    /// Removes a name, and the image with it when that was its last; or an image by its ID with its names. `force`
    /// removes an image by its ID though it has several names, and though `user` names something that was made of the
    /// image with this digest and may want it again.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] where an [`Image`](super::Image) of it lives in any process, [`StoreError::Wanted`] for what
    /// `user` names.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        user: impl Fn(&Digest) -> Option<String>,
    ) -> Result<Vec<Removed>, StoreError> {
        let lock = self.lock_exclusive()?;
        let by_name = match self.short_names.parse(name) {
            Ok(reference) if !name.starts_with("sha256:") => self
                .find_name(&reference)?
                .map(|record| (reference, record)),
            _ => None,
        };
        let (manifest, named) = match by_name {
            Some((reference, record)) => (record.manifest, Some(reference)),
            None => (
                self.find_id(name)?
                    .ok_or_else(|| StoreError::Unknown(name.into()))?,
                None,
            ),
        };
        let all: Vec<Reference> = self
            .names()?
            .into_iter()
            .filter(|(_, record)| record.manifest == manifest)
            .map(|(reference, _)| reference)
            .collect();
        let (going, staying): (Vec<_>, Vec<_>) = match &named {
            // A digest that no name of its own was given for stands for all names of the image.
            Some(reference) if all.contains(reference) => {
                all.into_iter().partition(|name| name == reference)
            }
            _ => (all, Vec::new()),
        };
        if named.is_none() && going.len() > 1 && !force {
            let names: Vec<String> = going.iter().map(Reference::familiar).collect();
            return Err(StoreError::SeveralNames {
                id: name.into(),
                names: names.join(", "),
            });
        }
        let record_path = self.path(Kind::Images, &manifest);
        let record_file = files::open(&record_path)?;
        let is_last = staying.is_empty();
        // Held to the end, so that nobody begins to use what is being removed.
        if is_last && !files::try_lock_exclusive(&record_file, &record_path)? {
            return Err(StoreError::InUse(name.into()));
        }
        if is_last
            && !force
            && let Some(user) = user(&manifest)
        {
            let image = name.into();
            return Err(StoreError::Wanted { image, user });
        }
        let mut removed = Vec::new();
        for reference in going {
            self.remove_name(&reference)?;
            removed.push(Removed::Untagged(reference));
        }
        if is_last {
            removed.push(Removed::Deleted(self.remove_record(&manifest)?));
            self.sweep(&lock)?;
        }
        Ok(removed)
    }

    /// Removes the images that `goes` says, told each with its names, of those that nobody uses, and whatever else
    /// nobody needs: what interrupted pulls kept among it.
    ///
    /// # Errors
    ///
    /// Where something cannot be removed.
    pub fn prune(&self, goes: impl Fn(&Listed) -> bool) -> Result<Pruned, StoreError> {
        let lock = self.lock_exclusive()?;
        let mut pruned = Pruned::default();
        for image in self.list()? {
            let path = self.path(Kind::Images, &image.digest);
            let record = files::open(&path)?;
            // Asked when nobody can begin to use it any more.
            if !files::try_lock_exclusive(&record, &path)? || !goes(&image) {
                continue;
            }
            for (reference, _) in image.names {
                self.remove_name(&reference)?;
                pruned.removed.push(Removed::Untagged(reference));
            }
            pruned
                .removed
                .push(Removed::Deleted(self.remove_record(&image.digest)?));
        }
        pruned.bytes = self.sweep(&lock)? + self.discard_partial()?;
        Ok(pruned)
    }

    /// Removes the record of an image that nobody uses. What it needed goes with the next sweep.
    fn remove_record(&self, manifest: &Digest) -> Result<Digest, StoreError> {
        let path = self.path(Kind::Images, manifest);
        let record = self
            .record(manifest)?
            .ok_or_else(|| StoreError::Unknown(manifest.to_string()))?;
        files::remove(&path)?;
        if let Some(folder) = path.parent() {
            files::sync_folder(folder)?;
        }
        Ok(record.config)
    }

    /// Sweeps as soon as nobody adds anything.
    pub(crate) fn sweep_all(&self) -> Result<(), StoreError> {
        let lock = self.lock_exclusive()?;
        self.sweep(&lock).map(|_| ())
    }

    /// Removes all content that no image and no running operation needs, and gives how many bytes it took. Files
    /// that are open elsewhere live on there.
    fn sweep(&self, _lock: &Lock) -> Result<u64, StoreError> {
        let mut needed: HashSet<(Kind, Digest)> = HashSet::new();
        for (manifest, record) in self.records()? {
            needed.extend(record.objects(&manifest));
        }
        for name in files::list(&self.temp())? {
            needed.extend(transaction::pinned(&self.temp().join(name))?);
        }
        let mut bytes = 0;
        for kind in Kind::SWEPT {
            for digest in self.digests(kind)? {
                if !needed.contains(&(kind, digest)) {
                    bytes += self.discard(kind, &digest)?;
                }
            }
        }
        Ok(bytes)
    }

    /// Removes content that images need, because it is damaged.
    pub(crate) fn discard_all(
        &self,
        objects: impl Iterator<Item = (Kind, Digest)>,
    ) -> Result<(), StoreError> {
        let _lock = self.lock_exclusive()?;
        for (kind, digest) in objects {
            match self.discard(kind, &digest) {
                Err(FileError::Rename(_, error)) if error.kind() == io::ErrorKind::NotFound => {}
                result => drop(result?),
            }
        }
        Ok(())
    }

    /// Removes content in one step, also where it is a folder: by way of `temp`.
    fn discard(&self, kind: Kind, digest: &Digest) -> Result<u64, FileError> {
        let aside = self
            .temp()
            .join(format!("discarded-{}-{}", kind.folder(), digest.hex()));
        files::remove(&aside)?;
        files::replace(&self.path(kind, digest), &aside)?;
        let bytes = disk_usage(&aside);
        files::remove(&aside)?;
        Ok(bytes)
    }
}
