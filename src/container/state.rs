//! Containers on disk, the only truth about them: one folder each.
//!
//! ```text
//! containers/lock            held while names are given or taken away
//! containers/names/NAME      the ID that has the name
//! containers/by-id/ID/       one container:
//!     spec.json              what it is; changed by `rename` alone
//!     status.json            how it is: created, running, exited
//!     lock                   held by its supervisor, or whoever is about to start one
//!     ...                    its supervisor's files: disk, logs, socket
//! ```
//!
//! A container is there when its folder is: it appears and goes by one rename. Whoever holds a
//! container's lock runs it; one that is "running" while nobody holds its lock was orphaned, and whoever
//! notices writes down its end.

mod file;

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    name::{self, Id, NameError},
    process::ProcessError,
    spec::Spec,
    status::Status,
};
use crate::{
    image::digest::Digest,
    state_root::{self, StateRootError},
};
use file::{failed, lock_error, open_lock, read_json, sync_folder, write_json};

/// Why containers on disk cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StateError {
    #[error("cannot use the state folder")]
    Root(#[from] StateRootError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(
        "the name {name:?} is in use by container {id}: remove that one or choose another name"
    )]
    NameTaken { name: String, id: String },
    #[error("no such container: {0}")]
    NotFound(String),
    #[error("{prefix:?} is the start of more than one container's ID")]
    Ambiguous { prefix: String },
    #[error("container {0} is running: stop it first, or use force")]
    Running(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot make a container ID")]
    Random(#[source] getrandom::Error),
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} is damaged")]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// All containers of one state folder.
#[derive(Debug)]
pub struct Containers {
    folder: PathBuf,
}

/// One container that this process holds: nobody else runs or removes it.
#[derive(Debug)]
pub struct Container {
    spec: Spec,
    folder: PathBuf,
    lock: File,
}

/// A container as seen from outside.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it is.
    pub spec: Spec,
    /// How it was a moment ago.
    pub status: Status,
}

impl Containers {
    /// The containers below `state_root`; folders that are missing are made.
    ///
    /// # Errors
    ///
    /// Where the folders cannot be made or are not this user's alone.
    pub fn open(state_root: &Path) -> Result<Self, StateError> {
        let folder = state_root.join("containers");
        state_root::private_folder(state_root)?;
        for part in ["", "names", "by-id"] {
            state_root::private_folder(&folder.join(part))?;
        }
        // Whatever stays is there from the first command on.
        open_lock(&folder.join("lock"))?;
        Ok(Self { folder })
    }

    /// Writes down a new container with this status, with a made-up name where `name` is none, and holds
    /// it.
    ///
    /// # Errors
    ///
    /// [`StateError::NameTaken`], [`StateError::Name`], or a file that cannot be written; nothing is
    /// left behind then.
    pub fn create(
        &self,
        name: Option<&str>,
        status: &Status,
        describe: impl FnOnce(Id, String) -> Result<Spec, ProcessError>,
    ) -> Result<Container, StateError> {
        let id = Id::random().map_err(StateError::Random)?;
        let _names = self.lock_names()?;
        let name = match name {
            Some(name) => {
                name::check(name)?;
                self.check_free(name)?;
                name.to_owned()
            }
            None => self.free_name(&id)?,
        };
        let spec = describe(id, name)?;
        let staging = self.folder.join(format!("new-{}", spec.id));
        let container = self.write_new(&spec, status, &staging);
        if container.is_err() {
            // Best effort: what stays is swept by a later command.
            let _ = fs::remove_dir_all(&staging);
            let _ = fs::remove_file(self.name_file(&spec.name));
        }
        container
    }

    fn write_new(
        &self,
        spec: &Spec,
        status: &Status,
        staging: &Path,
    ) -> Result<Container, StateError> {
        DirBuilder::new()
            .mode(0o700)
            .create(staging)
            .map_err(failed("create", staging))?;
        let lock_path = staging.join("lock");
        let lock = open_lock(&lock_path)?;
        lock.try_lock()
            .map_err(|error| lock_error(error, &lock_path))?;
        let durable = !spec.remove;
        write_json(&staging.join("spec.json"), spec, durable)?;
        write_json(&staging.join("status.json"), status, durable)?;
        // A name without a folder is free for the next one who wants it, so it comes first.
        file::write(
            &self.name_file(&spec.name),
            spec.id.as_str().as_bytes(),
            durable,
        )?;
        let folder = self.container_folder(&spec.id);
        fs::rename(staging, &folder).map_err(failed("create", &folder))?;
        if durable {
            sync_folder(&self.folder.join("by-id"))?;
        }
        Ok(Container {
            spec: spec.clone(),
            folder,
            lock,
        })
    }

    /// The container with this name, ID, or start of an ID that no other has.
    ///
    /// # Errors
    ///
    /// [`StateError::NotFound`], [`StateError::Ambiguous`].
    pub fn find(&self, wanted: &str) -> Result<Id, StateError> {
        let not_found = || StateError::NotFound(wanted.into());
        if name::check(wanted).is_ok()
            && let Some(id) = self.named(wanted)?
        {
            return Ok(id);
        }
        let mut matching = self
            .ids()?
            .into_iter()
            .filter(|id| id.as_str().starts_with(wanted));
        match (matching.next(), matching.next()) {
            (Some(id), None) if !wanted.is_empty() => Ok(id),
            (Some(_), Some(_)) => Err(StateError::Ambiguous {
                prefix: wanted.into(),
            }),
            _ => Err(not_found()),
        }
    }

    /// Every container, newest first. Ends that nobody wrote down are written, and orphans that were to
    /// be removed are removed.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Record>, StateError> {
        self.sweep()?;
        let mut records = Vec::new();
        for id in self.ids()? {
            match self.record(&id) {
                Ok(record) => records.push(record),
                // Removed since, or never whole.
                Err(StateError::File { .. } | StateError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.spec.created));
        Ok(records)
    }

    /// A container that was made of an image, running or not.
    ///
    /// # Errors
    ///
    /// As [`list`](Self::list).
    pub fn made_of(&self, image: &Digest) -> Result<Option<Record>, StateError> {
        let mut all = self.list()?.into_iter();
        Ok(all.find(|record| record.spec.image_digest == *image))
    }

    /// Removes a container that is not running.
    ///
    /// # Errors
    ///
    /// [`StateError::Running`] while somebody runs it.
    pub fn remove(&self, id: &Id) -> Result<(), StateError> {
        match self.hold(id)? {
            Some(container) => self.remove_held(container),
            None => Err(StateError::Running(id.short().into())),
        }
    }

    /// Removes a container that this process holds.
    ///
    /// # Errors
    ///
    /// Where its folder cannot be renamed or deleted.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "nobody may use it afterwards"
    )]
    pub fn remove_held(&self, container: Container) -> Result<(), StateError> {
        let gone = self.folder.join(format!("old-{}", container.spec.id));
        {
            let _names = self.lock_names()?;
            // It may have another name by now.
            let spec: Spec = read_json(&container.folder.join("spec.json"))?;
            let has_name = self.named(&spec.name)?.as_ref() == Some(&spec.id);
            fs::rename(&container.folder, &gone).map_err(failed("remove", &container.folder))?;
            if has_name {
                let name = self.name_file(&spec.name);
                fs::remove_file(&name).map_err(failed("remove", &name))?;
            }
        }
        fs::remove_dir_all(&gone).map_err(failed("remove", &gone))
    }

    /// Bytes of disk that a container takes; none where there is no such container.
    #[must_use]
    pub fn disk_usage(&self, id: &Id) -> u64 {
        state_root::disk_usage(&self.container_folder(id))
    }

    /// Clears what killed processes left: half-made and half-removed folders, and orphans. Cheap when
    /// there is nothing.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read or an orphan's end cannot be written.
    pub fn sweep(&self) -> Result<(), StateError> {
        let leftover = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("new-") || name.starts_with("old-")
        };
        let entries = fs::read_dir(&self.folder).map_err(failed("read", &self.folder))?;
        let leftovers: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| leftover(path))
            .collect();
        if !leftovers.is_empty() {
            // Who makes a folder holds the names meanwhile, so none of these is in the making. One in
            // removal has no more use for anybody: its remover may be at it too, and win.
            let _names = self.lock_names()?;
            for path in leftovers {
                let _ = fs::remove_dir_all(path);
            }
        }
        for id in self.ids()? {
            self.repair(&id)?;
        }
        Ok(())
    }

    fn repair(&self, id: &Id) -> Result<(), StateError> {
        let Ok(Record { spec, status }) = self.record(id) else {
            return Ok(());
        };
        let stays = match status {
            Status::Created { .. } => true,
            Status::Exited(_) => !spec.remove,
            Status::Starting | Status::Running(_) => false,
        };
        if stays {
            return Ok(());
        }
        let Some(container) = self.hold(id)? else {
            return Ok(());
        };
        // It may have gone on until it was held.
        let status = container.status()?;
        match status.orphaned(SystemTime::now()) {
            Some(end) if !spec.remove => container.set_status(&end),
            None if !spec.remove && status != Status::Starting => Ok(()),
            _ => self.remove_held(container),
        }
    }

    /// Gives a container another name.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create), and where there is no such container.
    pub fn rename(&self, id: &Id, name: &str) -> Result<(), StateError> {
        name::check(name)?;
        let _names = self.lock_names()?;
        self.check_free(name)?;
        let path = self.container_folder(id).join("spec.json");
        let mut spec: Spec = read_json(&path)?;
        let before = std::mem::replace(&mut spec.name, name.to_owned());
        // Cut short between these, it has two names until it is removed.
        file::write(&self.name_file(name), id.as_str().as_bytes(), !spec.remove)?;
        write_json(&path, &spec, !spec.remove)?;
        let before = self.name_file(&before);
        fs::remove_file(&before).map_err(failed("remove", &before))
    }

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

    /// What a container is and how it was a moment ago.
    ///
    /// # Errors
    ///
    /// Where its files cannot be read.
    pub fn record(&self, id: &Id) -> Result<Record, StateError> {
        let folder = self.container_folder(id);
        Ok(Record {
            spec: read_json(&folder.join("spec.json"))?,
            status: read_json(&folder.join("status.json"))?,
        })
    }

    fn ids(&self) -> Result<Vec<Id>, StateError> {
        let folder = self.folder.join("by-id");
        let entries = fs::read_dir(&folder).map_err(failed("read", &folder))?;
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| Id::try_from(name).ok()).collect())
    }

    fn lock_names(&self) -> Result<File, StateError> {
        let path = self.folder.join("lock");
        let lock = open_lock(&path)?;
        lock.lock().map_err(failed("lock", &path))?;
        Ok(lock)
    }

    fn check_free(&self, name: &str) -> Result<(), StateError> {
        match self.named(name)? {
            Some(id) => Err(StateError::NameTaken {
                name: name.into(),
                id: id.short().into(),
            }),
            None => Ok(()),
        }
    }

    fn free_name(&self, id: &Id) -> Result<String, StateError> {
        let made_up = name::made_up(id);
        Ok(match self.named(&made_up)? {
            None => made_up,
            Some(_) => format!("{made_up}_{}", &id.as_str()[8..16]),
        })
    }

    /// Who has this name. A name whose container is gone is nobody's.
    fn named(&self, name: &str) -> Result<Option<Id>, StateError> {
        let path = self.name_file(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Id::try_from(text)
                .ok()
                .filter(|id| self.container_folder(id).is_dir())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    fn name_file(&self, name: &str) -> PathBuf {
        self.folder.join("names").join(name)
    }

    /// The folder of a container.
    #[must_use]
    pub fn container_folder(&self, id: &Id) -> PathBuf {
        self.folder.join("by-id").join(id.as_str())
    }
}

impl Container {
    /// What it is.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
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
        write_json(&self.folder.join("status.json"), status, !self.spec.remove)
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

#[cfg(test)]
mod tests {
    use super::{
        super::{
            spec::example,
            status::{Exited, ORPHANED, Running},
        },
        *,
    };

    fn describe(remove: bool) -> impl Fn(Id, String) -> Result<Spec, ProcessError> {
        move |id, name| {
            Ok(Spec {
                id,
                remove,
                ..example(&name)
            })
        }
    }

    const CREATED: Status = Status::Created { error: None };

    fn state() -> (tempfile::TempDir, Containers) {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        (root, containers)
    }

    fn statuses(containers: &Containers) -> Vec<Status> {
        containers
            .list()
            .unwrap()
            .into_iter()
            .map(|record| record.status)
            .collect()
    }

    #[test]
    fn a_container_is_found_by_name_id_and_prefix_until_it_is_removed() {
        let (_root, containers) = state();
        let container = containers
            .create(Some("web"), &CREATED, describe(false))
            .unwrap();
        let id = container.spec().id.clone();

        assert_eq!(containers.find("web").unwrap(), id);
        assert_eq!(containers.find(id.as_str()).unwrap(), id);
        assert_eq!(containers.find(id.short()).unwrap(), id);
        assert!(matches!(
            containers.find("../x"),
            Err(StateError::NotFound(_))
        ));
        assert!(matches!(containers.find(""), Err(StateError::NotFound(_))));

        containers.remove_held(container).unwrap();
        assert!(matches!(
            containers.find("web"),
            Err(StateError::NotFound(_))
        ));
        assert_eq!(
            fs::read_dir(containers.folder.join("names"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(
            fs::read_dir(containers.folder.join("by-id"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn a62_of_two_who_want_a_name_one_gets_it() {
        let (_root, containers) = state();
        let created: Vec<_> = std::thread::scope(|scope| {
            let one = || containers.create(Some("web"), &CREATED, describe(false));
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(created.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(
            created
                .iter()
                .flat_map(|result| result.as_ref().err())
                .all(|error| { matches!(error, StateError::NameTaken { .. }) })
        );
        assert!(matches!(
            containers.create(Some("../x"), &CREATED, describe(false)),
            Err(StateError::Name(_))
        ));
    }

    #[test]
    fn a51_an_orphan_gets_an_end_and_a_transient_one_goes() {
        let (_root, containers) = state();
        let running = Status::Running(Running {
            since: SystemTime::now(),
            supervisor_pid: 1,
            vmm_pid: 1,
        });
        let kept = containers.create(None, &CREATED, describe(false)).unwrap();
        let transient = containers.create(None, &CREATED, describe(true)).unwrap();
        kept.set_status(&running).unwrap();
        transient.set_status(&running).unwrap();
        assert_eq!(statuses(&containers), [running.clone(), running]);

        // As the kernel does for a killed process.
        drop((kept, transient));
        assert!(matches!(
            statuses(&containers)[..],
            [Status::Exited(Exited { code: ORPHANED, .. })]
        ));
    }

    #[test]
    fn a51_what_a_killed_process_left_half_made_is_swept() {
        let (_root, containers) = state();
        let id = Id::random().unwrap();
        fs::create_dir(containers.folder.join(format!("new-{id}"))).unwrap();
        fs::create_dir(containers.folder.join(format!("old-{id}"))).unwrap();
        fs::write(containers.name_file("web"), id.as_str()).unwrap();

        containers.sweep().unwrap();
        assert_eq!(fs::read_dir(&containers.folder).unwrap().count(), 3);
        containers
            .create(Some("web"), &CREATED, describe(false))
            .unwrap();
    }

    #[test]
    fn a_held_container_is_not_removed() {
        let (_root, containers) = state();
        let container = containers.create(None, &CREATED, describe(false)).unwrap();
        let id = container.spec().id.clone();
        assert!(matches!(
            containers.remove(&id),
            Err(StateError::Running(_))
        ));
        drop(container);
        containers.remove(&id).unwrap();
    }

    #[test]
    fn a51_what_run_was_about_to_start_goes_and_what_was_created_stays() {
        let (_root, containers) = state();
        let starting = containers.create(None, &Status::Starting, describe(false));
        let created = containers.create(None, &CREATED, describe(true));
        drop((starting, created));
        assert_eq!(statuses(&containers), [CREATED]);
    }

    #[test]
    fn a62_a_container_can_be_renamed_to_what_nobody_has() {
        let (_root, containers) = state();
        let one = containers
            .create(Some("one"), &CREATED, describe(false))
            .unwrap();
        let id = one.spec().id.clone();
        let other = containers.create(Some("other"), &CREATED, describe(false));
        assert!(matches!(
            containers.rename(&id, "other"),
            Err(StateError::NameTaken { .. })
        ));
        assert!(matches!(
            containers.rename(&id, "-x"),
            Err(StateError::Name(_))
        ));
        containers.rename(&id, "first").unwrap();
        assert_eq!(containers.find("first").unwrap(), id);
        assert!(containers.find("one").is_err());
        // Its holder does not know of it.
        containers.remove_held(one).unwrap();
        assert!(containers.find("first").is_err());
        drop(other);
    }
}
