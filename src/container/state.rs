//! Containers on disk, the only truth about them: one folder each.
//!
//! ```text
//! containers/lock            held while names are given or taken away
//! containers/names/NAME      the ID that has the name
//! containers/by-id/ID/       one container:
//!     spec.json              what it is; written once
//!     status.json            how it is: created, running, exited
//!     lock                   held by the process that runs it
//!     ...                    files of whoever runs it (disk, log)
//! ```
//!
//! A container is there when its folder is: it appears and goes by one rename. Whoever holds a
//! container's lock runs it; one that is "running" while nobody holds its lock was orphaned, and whoever
//! notices writes down its end.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::name::{self, Id, NameError};
use crate::state_root::{self, StateRootError};

/// What a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its ID.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// The image as the user named it.
    pub image: String,
    /// Digest of the image's manifest.
    pub image_digest: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// User's own data.
    pub labels: BTreeMap<String, String>,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Remove it when it ends.
    pub remove: bool,
    /// When it was created.
    pub created: SystemTime,
}

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Not started yet.
    Created,
    /// Its VM runs.
    Running {
        /// Since when.
        since: SystemTime,
        /// Process ID of its VMM.
        vmm_pid: u32,
    },
    /// It ended.
    Exited {
        /// When.
        at: SystemTime,
        /// Exit code in Docker's sense.
        code: u8,
        /// What went wrong, where the process did not just end.
        error: Option<String>,
    },
}

/// Exit code of a container whose end nobody saw: as if killed by SIGKILL.
const ORPHANED: u8 = 137;

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
    #[error("container {0} is running: end it first")]
    Running(String),
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
    _lock: File,
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
        Ok(Self { folder })
    }

    /// Writes down a new container, with a made-up name where `name` is none, and holds it.
    ///
    /// # Errors
    ///
    /// [`StateError::NameTaken`], [`StateError::Name`], or a file that cannot be written; nothing is
    /// left behind then.
    pub fn create(
        &self,
        name: Option<&str>,
        describe: impl FnOnce(Id, String) -> Spec,
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
        let spec = describe(id, name);
        let staging = self.folder.join(format!("new-{}", spec.id));
        let container = self.write_new(&spec, &staging);
        if container.is_err() {
            // Best effort: what stays is swept by a later command.
            let _ = fs::remove_dir_all(&staging);
            let _ = fs::remove_file(self.name_file(&spec.name));
        }
        container
    }

    fn write_new(&self, spec: &Spec, staging: &Path) -> Result<Container, StateError> {
        DirBuilder::new()
            .mode(0o700)
            .create(staging)
            .map_err(file("create", staging))?;
        let lock_path = staging.join("lock");
        let lock = open_lock(&lock_path)?;
        lock.try_lock()
            .map_err(|error| lock_error(error, &lock_path))?;
        let durable = !spec.remove;
        write_json(&staging.join("spec.json"), spec, durable)?;
        write_json(&staging.join("status.json"), &Status::Created, durable)?;
        // A name without a folder is free for the next one who wants it, so it comes first.
        write_file(
            &self.name_file(&spec.name),
            spec.id.as_str().as_bytes(),
            durable,
        )?;
        let folder = self.container_folder(&spec.id);
        fs::rename(staging, &folder).map_err(file("create", &folder))?;
        if durable {
            sync_folder(&self.folder.join("by-id"))?;
        }
        Ok(Container {
            spec: spec.clone(),
            folder,
            _lock: lock,
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
            let has_name = self.named(&container.spec.name)?.as_ref() == Some(&container.spec.id);
            fs::rename(&container.folder, &gone).map_err(file("remove", &container.folder))?;
            if has_name {
                let name = self.name_file(&container.spec.name);
                fs::remove_file(&name).map_err(file("remove", &name))?;
            }
        }
        fs::remove_dir_all(&gone).map_err(file("remove", &gone))
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
        let entries = fs::read_dir(&self.folder).map_err(file("read", &self.folder))?;
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
        let ended = matches!(status, Status::Exited { .. });
        if ended && !spec.remove {
            return Ok(());
        }
        let Some(container) = self.hold(id)? else {
            return Ok(());
        };
        if container.spec.remove {
            return self.remove_held(container);
        }
        if let Status::Running { .. } = container.status()? {
            let error = Some("the process that ran it was killed".to_owned());
            container.set_status(&Status::Exited {
                at: SystemTime::now(),
                code: ORPHANED,
                error,
            })?;
        }
        Ok(())
    }

    /// Takes the container's lock; `None` while somebody else has it.
    fn hold(&self, id: &Id) -> Result<Option<Container>, StateError> {
        let folder = self.container_folder(id);
        let path = folder.join("lock");
        let lock = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NotFound(id.short().into()));
            }
            opened => opened.map_err(file("open", &path))?,
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(error) => return Err(lock_error(error, &path)),
        }
        let spec = read_json(&folder.join("spec.json"))?;
        Ok(Some(Container {
            spec,
            folder,
            _lock: lock,
        }))
    }

    fn record(&self, id: &Id) -> Result<Record, StateError> {
        let folder = self.container_folder(id);
        Ok(Record {
            spec: read_json(&folder.join("spec.json"))?,
            status: read_json(&folder.join("status.json"))?,
        })
    }

    fn ids(&self) -> Result<Vec<Id>, StateError> {
        let folder = self.folder.join("by-id");
        let entries = fs::read_dir(&folder).map_err(file("read", &folder))?;
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| Id::try_from(name).ok()).collect())
    }

    fn lock_names(&self) -> Result<File, StateError> {
        let path = self.folder.join("lock");
        let lock = open_lock(&path)?;
        lock.lock().map_err(file("lock", &path))?;
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
            Err(error) => Err(file("read", &path)(error)),
        }
    }

    fn name_file(&self, name: &str) -> PathBuf {
        self.folder.join("names").join(name)
    }

    fn container_folder(&self, id: &Id) -> PathBuf {
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

    fn status(&self) -> Result<Status, StateError> {
        read_json(&self.folder.join("status.json"))
    }
}

fn open_lock(path: &Path) -> Result<File, StateError> {
    let options = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .clone();
    options.open(path).map_err(file("open", path))
}

fn lock_error(error: TryLockError, path: &Path) -> StateError {
    let source = match error {
        TryLockError::Error(source) => source,
        TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
    };
    StateError::File {
        action: "lock",
        path: path.into(),
        source,
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::File {
        action,
        path: path.into(),
        source,
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, StateError> {
    let bytes = fs::read(path).map_err(file("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| StateError::Damaged {
        path: path.into(),
        source,
    })
}

fn write_json<T: Serialize>(path: &Path, value: &T, durable: bool) -> Result<(), StateError> {
    let bytes = serde_json::to_vec(value).map_err(|source| StateError::Damaged {
        path: path.into(),
        source,
    })?;
    write_file(path, &bytes, durable)
}

/// New file, fsync, rename, fsync of the folder; the fsyncs only for what shall outlive a power cut.
fn write_file(path: &Path, bytes: &[u8], durable: bool) -> Result<(), StateError> {
    let staging = path.with_added_extension("new");
    let mut new = File::create(&staging).map_err(file("create", &staging))?;
    new.write_all(bytes).map_err(file("write", &staging))?;
    if durable {
        new.sync_all().map_err(file("write", &staging))?;
    }
    fs::rename(&staging, path).map_err(file("write", path))?;
    match path.parent() {
        Some(folder) if durable => sync_folder(folder),
        _ => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> Result<(), StateError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(file("write", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(remove: bool) -> impl Fn(Id, String) -> Spec {
        move |id, name| Spec {
            id,
            name,
            image: "busybox".into(),
            image_digest: "sha256:00".into(),
            command: vec!["true".into()],
            labels: BTreeMap::new(),
            vcpus: 1,
            memory_bytes: 1 << 28,
            remove,
            created: SystemTime::now(),
        }
    }

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
        let container = containers.create(Some("web"), describe(false)).unwrap();
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
            let one = || containers.create(Some("web"), describe(false));
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
            containers.create(Some("../x"), describe(false)),
            Err(StateError::Name(_))
        ));
    }

    #[test]
    fn a51_an_orphan_gets_an_end_and_a_transient_one_goes() {
        let (_root, containers) = state();
        let running = Status::Running {
            since: SystemTime::now(),
            vmm_pid: 1,
        };
        let kept = containers.create(None, describe(false)).unwrap();
        let transient = containers.create(None, describe(true)).unwrap();
        kept.set_status(&running).unwrap();
        transient.set_status(&running).unwrap();
        assert_eq!(statuses(&containers), [running.clone(), running]);

        // As the kernel does for a killed process.
        drop((kept, transient));
        assert!(matches!(
            statuses(&containers)[..],
            [Status::Exited { code: ORPHANED, .. }]
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
        containers.create(Some("web"), describe(false)).unwrap();
    }

    #[test]
    fn a_held_container_is_not_removed() {
        let (_root, containers) = state();
        let container = containers.create(None, describe(false)).unwrap();
        let id = container.spec().id.clone();
        assert!(matches!(
            containers.remove(&id),
            Err(StateError::Running(_))
        ));
        drop(container);
        containers.remove(&id).unwrap();
    }
}
