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
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Kind, NameRecord, Record, Store, StoreError,
    files::{self, FileError},
    names,
};
use crate::image::{digest::Digest, reference::Reference};

/// A running operation. Dropped without a commit, it leaves nothing behind.
pub(crate) struct Transaction<'s> {
    store: &'s Store,
    folder: PathBuf,
    _alive: File,
    next: AtomicU64,
    staged: Mutex<BTreeSet<(Kind, Digest)>>,
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
        self.staged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((kind, *digest));
        Ok(staged)
    }

    /// Adds an image, all of whose content is staged or pinned.
    pub fn add_image(&mut self, manifest: Digest, record: Record) {
        self.records.push((manifest, record));
    }

    /// Gives a name to an image that this operation adds.
    pub fn add_name(&mut self, reference: Reference, record: NameRecord) {
        self.names.push((reference, record));
    }

    /// Makes everything of this operation visible, content first, names last. After an error nothing is visible
    /// that was not before, but that some names may have moved already.
    pub fn commit(self) -> Result<(), StoreError> {
        let store = self.store;
        let _lock = store.lock_shared()?;
        let staged =
            std::mem::take(&mut *self.staged.lock().unwrap_or_else(PoisonError::into_inner));
        let mut changed = BTreeSet::new();
        for (kind, digest) in staged {
            let place = kind.place(&digest);
            let to = self.target(&place, &mut changed)?;
            files::publish(&self.folder.join(&place), &to)?;
        }
        sync_all(&changed)?;
        changed.clear();
        for (manifest, record) in &self.records {
            let to = self.target(&Kind::Images.place(manifest), &mut changed)?;
            let from = self.new_path();
            files::write_record(&from, record)?;
            files::publish_once(&from, &to)?;
        }
        sync_all(&changed)?;
        changed.clear();
        for (reference, record) in &self.names {
            let to = self.target(&names::place(reference), &mut changed)?;
            let from = self.new_path();
            files::write_record(&from, record)?;
            files::replace(&from, &to)?;
        }
        sync_all(&changed)?;
        Ok(())
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

fn sync_all(folders: &BTreeSet<PathBuf>) -> Result<(), FileError> {
    folders
        .iter()
        .try_for_each(|folder| files::sync_folder(folder))
}
