//! One operation that adds to the store: everything at once, or nothing.
//!
//! What is added lies in a folder of `temp` until [`Transaction::commit`]. The folder is locked while its process
//! lives; a folder that nobody holds is what a crash left. What the operation found in the store and relies on it
//! pins first, so that no sweep takes it.

use std::{
    collections::BTreeSet,
    fs::{DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;

use super::{
    Kind, NameRecord, Record, Store, StoreError,
    files::{self, FileError},
    names,
    partial::Partial,
};
use crate::image::{digest::Digest, reference::Reference};

/// A running operation. Dropped without a commit, it leaves nothing behind.
pub(crate) struct Transaction<'s> {
    store: &'s Store,
    folder: PathBuf,
    _alive: File,
    next: AtomicU64,
    staged: Mutex<BTreeSet<(Kind, Digest)>>,
    downloads: Mutex<BTreeSet<Digest>>,
    records: Vec<(Digest, Record)>,
    names: Vec<(Reference, NameRecord)>,
}

impl<'s> Transaction<'s> {
    /// Begins an operation.
    pub fn begin(store: &'s Store) -> Result<Self, FileError> {
        // Under the lock, since a folder without its own lock looks abandoned.
        let _lock = store.lock_shared()?;
        let temp = store.temp();
        let folder = tempfile::Builder::new()
            .prefix("")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&temp)
            .map_err(|source| FileError::Create(temp, source))?
            .keep();
        let alive = files::open(&folder)?;
        files::lock_exclusive(&alive, &folder)?;
        Ok(Self {
            store,
            folder,
            _alive: alive,
            next: AtomicU64::new(0),
            staged: Mutex::default(),
            downloads: Mutex::default(),
            records: Vec::new(),
            names: Vec::new(),
        })
    }

    /// A path in this operation's folder that nobody uses yet.
    pub fn new_path(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.folder.join(number.to_string())
    }

    /// A new file in this operation's folder.
    pub fn new_file(&self) -> Result<(File, PathBuf), FileError> {
        let path = self.new_path();
        Ok((files::create(&path)?, path))
    }

    /// A new folder in this operation's folder.
    pub fn new_folder(&self) -> Result<PathBuf, FileError> {
        let path = self.new_path();
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| FileError::Create(path.clone(), source))?;
        Ok(path)
    }

    /// Removes something of this operation's folder that is of no more use.
    pub fn discard(&self, path: &Path) -> Result<(), FileError> {
        files::remove(path)
    }

    /// Keeps content in the store from now until this operation ends, if it is there.
    pub fn pin(&self, objects: &[(Kind, Digest)]) -> Result<(), FileError> {
        let _lock = self.store.lock_shared()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{PIN_PREFIX}{number}"));
        files::write_record(&path, &objects)
    }

    /// Where content lies that this operation staged, or pinned and found in the store.
    pub fn find(&self, kind: Kind, digest: &Digest) -> Option<PathBuf> {
        let place = kind.place(digest);
        [&self.folder, &self.store.root]
            .map(|root| root.join(&place))
            .into_iter()
            .find(|path| path.symlink_metadata().is_ok())
    }

    /// Takes a complete file or folder, which is on disk, into this operation under its digest.
    pub fn stage(&self, kind: Kind, digest: &Digest, path: &Path) -> Result<PathBuf, FileError> {
        let place = kind.place(digest);
        if let Some(folder) = place.parent() {
            files::create_folders(&self.folder, folder)?;
        }
        let staged = self.folder.join(&place);
        files::publish(path, &staged)?;
        self.staged().insert((kind, *digest));
        Ok(staged)
    }

    /// Makes the download of a blob, if there is one, go when this operation commits, or says so.
    pub fn claim_download(&self, digest: &Digest) {
        self.downloads().insert(*digest);
    }

    /// The partial download of a blob.
    pub fn partial(&self, digest: &Digest) -> Result<Partial, FileError> {
        self.store.partial(digest)
    }

    /// Takes a complete download, which is locked and on disk, into this operation. It stays where it is until a commit,
    /// for the next attempt.
    pub fn stage_download(&self, digest: &Digest, partial: &Partial) -> Result<PathBuf, FileError> {
        let place = Kind::Blobs.place(digest);
        if let Some(folder) = place.parent() {
            files::create_folders(&self.folder, folder)?;
        }
        let staged = self.folder.join(&place);
        files::publish_once(&partial.path, &staged)?;
        self.staged().insert((Kind::Blobs, *digest));
        Ok(staged)
    }

    /// Removes the downloads that this operation has claimed, unless somebody else works on them.
    pub fn forget_downloads(&self) {
        for digest in std::mem::take(&mut *self.downloads()) {
            // One that stays is used or removed later.
            let _ = self.store.discard_download(&digest);
        }
    }

    /// Moves content, which is pinned and on disk, to its place ahead of the commit, for whoever else waits for it.
    pub fn publish_now(
        &self,
        kind: Kind,
        digest: &Digest,
        path: &Path,
    ) -> Result<PathBuf, FileError> {
        let _lock = self.store.lock_shared()?;
        let mut changed = BTreeSet::new();
        let to = self.target(&kind.place(digest), &mut changed)?;
        files::publish(path, &to)?;
        sync_all(&mut changed)?;
        Ok(to)
    }

    fn staged(&self) -> MutexGuard<'_, BTreeSet<(Kind, Digest)>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn downloads(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.downloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image, all of whose content is staged or pinned.
    pub fn add_image(&mut self, manifest: Digest, record: Record) {
        self.records.push((manifest, record));
    }

    /// Gives a name to an image that this operation adds.
    pub fn add_name(&mut self, reference: Reference, record: NameRecord) {
        self.names.push((reference, record));
    }

    /// Makes everything of this operation visible, content first, names last. After an error the store is as it was.
    pub fn commit(self) -> Result<(), StoreError> {
        let store = self.store;
        let mut undo = Vec::new();
        let committed = {
            let _lock = store.lock_shared()?;
            let committed = self.publish(&mut undo);
            if committed.is_err() {
                // The first error is the one to tell; what stays of a record or a name is still whole.
                for step in undo.into_iter().rev() {
                    let _ = step.take_back();
                }
            }
            committed
        };
        self.forget_downloads();
        drop(self);
        if committed.is_err() {
            let _ = store.sweep_all();
        }
        Ok(committed?)
    }

    fn publish(&self, undo: &mut Vec<Undo>) -> Result<(), FileError> {
        // Everything that needs space comes before anything that shows.
        let records = self.prepare(
            self.records
                .iter()
                .map(|(manifest, record)| (Kind::Images.place(manifest), record)),
        )?;
        let names = self.prepare(
            self.names
                .iter()
                .map(|(name, record)| (names::place(name), record)),
        )?;
        let mut changed = BTreeSet::new();
        // What others have just put there may not be on disk yet.
        for (manifest, record) in &self.records {
            let places = record.objects(manifest).into_iter();
            let folders = places.filter_map(|(kind, digest)| {
                let to = self.store.root.join(kind.place(&digest));
                Some(to.parent()?.to_path_buf())
            });
            changed.extend(folders);
        }
        let staged = std::mem::take(&mut *self.staged());
        for (kind, digest) in staged {
            let place = kind.place(&digest);
            let to = self.target(&place, &mut changed)?;
            files::publish(&self.folder.join(&place), &to)?;
        }
        sync_all(&mut changed)?;
        for (from, place) in records {
            let to = self.target(&place, &mut changed)?;
            if files::publish_once(&from, &to)? {
                undo.push(Undo::Remove(to));
            }
        }
        sync_all(&mut changed)?;
        for (from, place) in names {
            let to = self.target(&place, &mut changed)?;
            let before = self.new_path();
            undo.push(match files::keep(&to, &before)? {
                true => Undo::PutBack {
                    before,
                    to: to.clone(),
                },
                false => Undo::Remove(to.clone()),
            });
            files::replace(&from, &to)?;
        }
        sync_all(&mut changed)
    }

    /// Writes records aside, and gives where each is and where it goes.
    fn prepare<'r, R: Serialize + 'r>(
        &self,
        records: impl Iterator<Item = (PathBuf, &'r R)>,
    ) -> Result<Vec<(PathBuf, PathBuf)>, FileError> {
        records
            .map(|(place, record)| {
                let path = self.new_path();
                files::write_record(&path, record)?;
                Ok((path, place))
            })
            .collect()
    }

    /// Where something goes in the store; its folder exists and is noted to be brought to disk.
    fn target(&self, place: &Path, changed: &mut BTreeSet<PathBuf>) -> Result<PathBuf, FileError> {
        let to = self.store.root.join(place);
        if let (Some(below), Some(folder)) = (place.parent(), to.parent()) {
            files::create_folders(&self.store.root, below)?;
            changed.insert(folder.to_path_buf());
        }
        Ok(to)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // What cannot be removed now the next `Store::open` removes: the lock goes with this value.
        let _ = files::remove(&self.folder);
    }
}

/// How a step of a commit that failed later is taken back.
enum Undo {
    /// Nothing was there before.
    Remove(PathBuf),
    /// Something else was.
    PutBack { before: PathBuf, to: PathBuf },
}

impl Undo {
    fn take_back(self) -> Result<(), FileError> {
        match self {
            Self::Remove(path) => files::remove(&path),
            Self::PutBack { before, to } => files::replace(&before, &to),
        }
    }
}

const PIN_PREFIX: &str = "pin-";

/// Everything pinned by the operation in `folder`; nothing where the operation just ended.
pub(super) fn pinned(folder: &Path) -> Result<Vec<(Kind, Digest)>, FileError> {
    let names = match files::list(folder) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        names => names?,
    };
    let mut pinned = Vec::new();
    for name in names.iter().filter(|name| name.starts_with(PIN_PREFIX)) {
        let path = folder.join(name);
        match files::open(&path) {
            Ok(file) => pinned.extend(files::read_record::<Vec<(Kind, Digest)>>(&file, &path)?),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pinned)
}

fn is_gone(error: &FileError) -> bool {
    error.is_missing()
        || matches!(error, FileError::List(_, source) if source.kind() == io::ErrorKind::NotADirectory)
}

/// Brings folders to disk and forgets them.
fn sync_all(folders: &mut BTreeSet<PathBuf>) -> Result<(), FileError> {
    while let Some(folder) = folders.pop_first() {
        files::sync_folder(&folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::store::LayerRecord;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store)
    }

    /// An image all parts of which are the same.
    fn add(store: &Store, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let mut transaction = Transaction::begin(store).unwrap();
        for kind in Kind::SWEPT {
            let path = transaction.new_path();
            files::write(&path, content).unwrap();
            transaction.stage(kind, &digest, &path).unwrap();
        }
        let layers = vec![LayerRecord {
            blob: digest,
            diff_id: digest,
        }];
        transaction.add_image(
            digest,
            Record {
                config: digest,
                layers,
                rootfs: digest,
            },
        );
        transaction.commit().unwrap();
        digest
    }

    #[test]
    fn a67_what_an_operation_relies_on_is_not_swept() {
        let (_folder, store) = store();
        let digest = add(&store, b"x");
        let transaction = Transaction::begin(&store).unwrap();
        transaction.pin(&[(Kind::Blobs, digest)]).unwrap();
        store.prune(|_| true).unwrap();
        assert!(store.record(&digest).unwrap().is_none());
        assert!(transaction.find(Kind::Blobs, &digest).is_some());

        drop(transaction);
        store.prune(|_| true).unwrap();
        assert!(!store.path(Kind::Blobs, &digest).exists());
    }

    #[test]
    fn a51_what_a_dead_operation_left_is_removed_and_what_a_living_one_has_stays() {
        let (folder, store) = store();
        let living = Transaction::begin(&store).unwrap();
        let (_, kept) = living.new_file().unwrap();
        let dead = Transaction::begin(&store).unwrap();
        let (_, left) = dead.new_file().unwrap();
        // As if its process had been killed: the lock goes, the folder stays.
        let Transaction { _alive, .. } = &dead;
        _alive.unlock().unwrap();

        Store::open(folder.path()).unwrap();
        assert!(kept.exists());
        assert!(!left.exists());
    }

    #[test]
    fn a_failed_commit_gives_a_name_back() {
        let (_folder, store) = store();
        let (old, new) = (add(&store, b"old"), add(&store, b"new"));
        let name: Reference = "a:1".parse().unwrap();
        store.tag(&old.to_string(), name.clone()).unwrap();

        let mut transaction = Transaction::begin(&store).unwrap();
        transaction.add_name(
            name.clone(),
            NameRecord {
                manifest: new,
                target: new,
            },
        );
        let blocked: Reference = "b:1".parse().unwrap();
        transaction.add_name(
            blocked.clone(),
            NameRecord {
                manifest: new,
                target: new,
            },
        );
        // Nothing can be renamed to where a folder is.
        let place = store.root.join(names::place(&blocked));
        std::fs::create_dir_all(place.join("x")).unwrap();
        assert!(transaction.commit().is_err());
        assert_eq!(store.name(&name).unwrap().unwrap().manifest, old);
    }
}
