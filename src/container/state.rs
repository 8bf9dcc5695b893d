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
mod held;
mod names;
mod recovery;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::{
    event::Events,
    health::{Health, HealthStatus},
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

pub use held::Container;

/// Name of the file for what probes of a container's health said.
const HEALTH: &str = "health.json";

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
    #[error(
        "container {0} is about to start, or another command is at work on its files: try again when that is done"
    )]
    Busy(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("container {0} is paused: unpause it first")]
    Paused(String),
    #[error("container {0} is not paused")]
    NotPaused(String),
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
    events: Events,
}

/// A container as seen from outside.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it is.
    pub spec: Spec,
    /// How it was a moment ago.
    pub status: Status,
    /// Its health, where it runs and that is checked.
    pub health: Option<HealthStatus>,
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
        Ok(Self {
            folder,
            events: Events::open(state_root)?,
        })
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
        Ok(Container::new(spec.clone(), folder, lock))
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

    /// The folder of all state.
    #[must_use]
    pub fn state_root(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    /// What each container is, as it is written down.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read.
    pub fn specs(&self) -> Result<Vec<Spec>, StateError> {
        let ids = self.ids()?.into_iter();
        // One that cannot be read was removed since, or never whole.
        Ok(ids
            .filter_map(|id| Some(self.record(&id).ok()?.spec))
            .collect())
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
    /// [`StateError::Running`] while somebody runs it, [`StateError::Busy`] while somebody is at work on its files.
    pub fn remove(&self, id: &Id) -> Result<(), StateError> {
        match self.hold(id)? {
            Some(container) => self.remove_held(container),
            None => Err(match self.record(id)?.status {
                Status::Created { .. } | Status::Exited(_) => StateError::Busy(id.short().into()),
                _ => StateError::Running(id.short().into()),
            }),
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
        let gone = self.folder.join(format!("old-{}", container.spec().id));
        {
            let _names = self.lock_names()?;
            // It may have another name by now.
            let spec: Spec = read_json(&container.folder().join("spec.json"))?;
            self.events.record_container(&spec, "destroy", &[]);
            let has_name = self.named(&spec.name)?.as_ref() == Some(&spec.id);
            fs::rename(container.folder(), &gone).map_err(failed("remove", container.folder()))?;
            if has_name {
                let name = self.name_file(&spec.name);
                fs::remove_file(&name).map_err(failed("remove", &name))?;
            }
        }
        fs::remove_dir_all(&gone).map_err(failed("remove", &gone))
    }

    /// The health of a container that has a check, as it was found last; `None` before it first ran.
    #[must_use]
    pub fn health(&self, spec: &Spec) -> Option<Health> {
        spec.health.as_ref()?;
        read_json(&self.container_folder(&spec.id).join(HEALTH)).ok()
    }

    /// Where it is written down what happens to them.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Writes down what happened to one of them; one that is gone has nobody to tell it of.
    pub fn record_event(&self, id: &Id, action: &str, more: &[(&str, String)]) {
        if let Ok(record) = self.record(id) {
            self.events.record_container(&record.spec, action, more);
        }
    }

    /// Bytes of disk that a container takes; none where there is no such container.
    #[must_use]
    pub fn disk_usage(&self, id: &Id) -> u64 {
        state_root::disk_usage(&self.container_folder(id))
    }

    /// What a container is and how it was a moment ago.
    ///
    /// # Errors
    ///
    /// Where its files cannot be read.
    pub fn record(&self, id: &Id) -> Result<Record, StateError> {
        let folder = self.container_folder(id);
        let spec: Spec = read_json(&folder.join("spec.json"))?;
        let status = read_json(&folder.join("status.json"))?;
        let health = match status {
            Status::Running(_) => self.health(&spec).map(|health| health.status),
            _ => None,
        };
        Ok(Record {
            spec,
            status,
            health,
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

    /// The folder of a container.
    #[must_use]
    pub fn container_folder(&self, id: &Id) -> PathBuf {
        self.folder.join("by-id").join(id.as_str())
    }
}
