//! Containers that a process holds by their lock, alone.

use std::{
    fs::{File, TryLockError},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    super::{health::Health, name::Id, spec::Spec, status::Status},
    Containers, HEALTH, StateError,
    file::{failed, lock_error, read_json, write_json, write_json_somehow},
};

/// One container that this process holds: nobody else runs or removes it.
#[derive(Debug)]
pub struct Container {
    spec: Spec,
    folder: PathBuf,
    lock: File,
}

impl Containers {
    /// Takes the container's lock; `None` while somebody else has it.
    ///
    /// # Errors
    ///
    /// [`StateError::NotFound`], or where its files cannot be read.
    pub fn hold(&self, id: &Id) -> Result<Option<Container>, StateError> {
        let (lock, path) = self.open_lock_of(id)?;
        match lock.try_lock() {
            Ok(()) => self.held(id, lock),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(error) => Err(lock_error(error, &path)),
        }
    }

    /// Takes the lock of a container whose holder is about to let go of it.
    ///
    /// # Errors
    ///
    /// [`StateError::NotFound`] where it is removed before, or where its files cannot be read.
    pub fn hold_soon(&self, id: &Id) -> Result<Container, StateError> {
        let (lock, path) = self.open_lock_of(id)?;
        lock.lock().map_err(failed("lock", &path))?;
        self.held(id, lock)?
            .ok_or_else(|| StateError::NotFound(id.short().into()))
    }

    fn open_lock_of(&self, id: &Id) -> Result<(File, PathBuf), StateError> {
        let path = self.container_folder(id).join("lock");
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StateError::NotFound(id.short().into()))
            }
            opened => Ok((opened.map_err(failed("open", &path))?, path)),
        }
    }

    /// The container that was just locked; `None` where it was removed between that and its opening.
    fn held(&self, id: &Id, lock: File) -> Result<Option<Container>, StateError> {
        let folder = self.container_folder(id);
        match read_json(&folder.join("spec.json")) {
            Ok(spec) => Ok(Some(Container { spec, folder, lock })),
            Err(StateError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The container whose lock, held by another process until now, came over a socket.
    ///
    /// # Errors
    ///
    /// Where its files cannot be read.
    pub fn adopt(&self, id: &Id, lock: OwnedFd) -> Result<Container, StateError> {
        let folder = self.container_folder(id);
        Ok(Container {
            spec: read_json(&folder.join("spec.json"))?,
            folder,
            lock: lock.into(),
        })
    }
}

impl Container {
    pub(super) fn new(spec: Spec, folder: PathBuf, lock: File) -> Self {
        Self { spec, folder, lock }
    }

    /// What it is.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Reads what it is once more: another process may have changed that.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read; what was known stands then.
    pub fn reload(&mut self) -> Result<(), StateError> {
        self.spec = read_json(&self.folder.join("spec.json"))?;
        Ok(())
    }

    /// Its folder, for files that live as long as it does.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes down how it is now.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written; the old status stands then.
    pub fn set_status(&self, status: &Status) -> Result<(), StateError> {
        write_json_somehow(&self.folder.join("status.json"), status, !self.spec.remove)
    }

    /// Writes down how its health is. That is looked at again soon, so a power cut may take it.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written.
    pub fn set_health(&self, health: &Health) -> Result<(), StateError> {
        write_json(&self.folder.join(HEALTH), health, false)
    }

    /// How it was when it was last written down.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read.
    pub fn status(&self) -> Result<Status, StateError> {
        read_json(&self.folder.join("status.json"))
    }

    /// Its lock, to be handed to whoever shall hold it from now on.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}
