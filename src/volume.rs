//! Named volumes: folders that outlive containers, one below the state root each.
//!
//! ```text
//! volumes/lock              held while volumes come and go, and while a container that has some is written down
//! volumes/by-name/NAME/     one volume:
//!     volume.json           what it is
//!     _data/                what is in it: the guests'
//!     filling               there while an image's files are copied into it; what is in it then is not whole
//!     lock                  held meanwhile
//! ```
//!
//! A volume is there when its folder is: it appears and goes by one rename. Which containers have it is not known
//! here.

mod filling;
pub mod tree;

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::state_root::{self, StateRootError};

pub use filling::Filling;

/// Longest name in bytes: what a file's may have.
const MAX_NAME: usize = 255;

/// Label that tells a volume without a name of its own, as Docker's.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// Why volumes cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum VolumeError {
    #[error("cannot use the state folder")]
    Root(#[from] StateRootError),
    #[error(
        "{0:?} includes invalid characters for a volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
         allowed: for a folder of the host give its absolute path"
    )]
    Name(String),
    #[error("get {0}: no such volume")]
    NotFound(String),
    #[error("cannot make a volume name")]
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

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: SystemTime,
    /// The user's own data.
    pub labels: BTreeMap<String, String>,
}

impl Volume {
    /// Whether nobody gave it its name.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS)
    }
}

/// All volumes of one state folder.
#[derive(Debug, Clone)]
pub struct Volumes {
    folder: PathBuf,
}

/// Nobody else makes or removes volumes while this is held.
#[derive(Debug)]
pub struct Held(#[allow(dead_code, reason = "it is held")] File);

impl Volumes {
    /// The volumes below `state_root`; folders that are missing are made.
    ///
    /// # Errors
    ///
    /// Where the folders cannot be made or are not this user's alone.
    pub fn open(state_root: &Path) -> Result<Self, VolumeError> {
        let folder = state_root.join("volumes");
        state_root::private_folder(state_root)?;
        for part in ["", "by-name"] {
            state_root::private_folder(&folder.join(part))?;
        }
        Ok(Self { folder })
    }

    /// As [`open`](Self::open), to look only: nothing is made.
    #[must_use]
    pub fn below(state_root: &Path) -> Self {
        Self {
            folder: state_root.join("volumes"),
        }
    }

    /// Waits until nobody else makes or removes volumes.
    ///
    /// # Errors
    ///
    /// Where the lock cannot be taken.
    pub fn hold(&self) -> Result<Held, VolumeError> {
        lock(&self.folder.join("lock")).map(Held)
    }

    /// Makes a volume; one that has the name already is returned as it is. Without a name it is anonymous.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Name`], or a file that cannot be written; nothing is left behind then.
    pub fn create(
        &self,
        _held: &Held,
        name: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<Volume, VolumeError> {
        let mut labels = labels.clone();
        let name = match name {
            Some(name) => {
                check_name(name)?;
                match self.get(name) {
                    Err(VolumeError::NotFound(_)) => {}
                    found => return found,
                }
                name.to_owned()
            }
            None => {
                labels.insert(ANONYMOUS.into(), String::new());
                made_up()?
            }
        };
        let volume = Volume {
            name,
            created: SystemTime::now(),
            labels,
        };
        let staging = self.folder.join("new");
        // Whoever left it is gone: the lock is held.
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &staging)(error));
            }
            _ => {}
        }
        let made = self.write_new(&volume, &staging);
        if made.is_err() {
            // Best effort: the next one clears it.
            let _ = fs::remove_dir_all(&staging);
        }
        made.map(|()| volume)
    }

    fn write_new(&self, volume: &Volume, staging: &Path) -> Result<(), VolumeError> {
        let folder = |path: &Path, mode| {
            let made = DirBuilder::new().mode(mode).create(path);
            made.map_err(failed("create", path))
        };
        folder(staging, 0o700)?;
        // For every user of a container, whatever this process's umask.
        let data = staging.join("_data");
        folder(&data, 0o755)?;
        fs::set_permissions(&data, Permissions::from_mode(0o755))
            .map_err(failed("create", &data))?;
        let path = staging.join("volume.json");
        let text = serde_json::to_vec(volume).map_err(|source| VolumeError::Damaged {
            path: path.clone(),
            source,
        })?;
        let mut file = File::create(&path).map_err(failed("create", &path))?;
        io::Write::write_all(&mut file, &text)
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &path))?;
        sync(staging)?;
        let place = self.path(&volume.name);
        fs::rename(staging, &place).map_err(failed("create", &place))?;
        sync(&self.folder.join("by-name"))
    }

    /// One volume.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotFound`], or where it cannot be read.
    pub fn get(&self, name: &str) -> Result<Volume, VolumeError> {
        let not_found = || VolumeError::NotFound(name.to_owned());
        check_name(name).map_err(|_| not_found())?;
        let path = self.path(name).join("volume.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_found()),
            text => text.map_err(failed("read", &path))?,
        };
        serde_json::from_slice(&text).map_err(|source| VolumeError::Damaged { path, source })
    }

    /// All volumes by name.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read, or one of them.
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let folder = self.folder.join("by-name");
        let entries = fs::read_dir(&folder).map_err(failed("read", &folder))?;
        let mut volumes = Vec::new();
        for entry in entries.flatten() {
            match self.get(&entry.file_name().to_string_lossy()) {
                // Removed since.
                Err(VolumeError::NotFound(_)) => {}
                volume => volumes.push(volume?),
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Removes a volume that no container has, with all that is in it.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotFound`], or where it cannot be removed.
    pub fn remove(&self, _held: &Held, name: &str) -> Result<(), VolumeError> {
        self.get(name)?;
        let gone = self.folder.join("old");
        let clear = || match tree::clear(&gone).and_then(|()| fs::remove_dir(&gone)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &gone)(error))
            }
            _ => Ok(()),
        };
        clear()?;
        let place = self.path(name);
        fs::rename(&place, &gone).map_err(failed("remove", &place))?;
        clear()
    }

    /// The folder that containers see.
    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        self.path(name).join("_data")
    }

    /// Bytes of disk that a volume takes.
    ///
    /// # Errors
    ///
    /// Where it cannot be looked at.
    pub fn disk_usage(&self, name: &str) -> Result<u64, VolumeError> {
        let folder = self.path(name);
        tree::disk_usage(&folder).map_err(failed("read", &folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join("by-name").join(name)
    }
}

/// Whether a volume may have this name.
///
/// # Errors
///
/// [`VolumeError::Name`].
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let mut bytes = name.bytes();
    let is_valid = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && (2..=MAX_NAME).contains(&name.len());
    match is_valid {
        true => Ok(()),
        false => Err(VolumeError::Name(name.to_owned())),
    }
}

fn made_up() -> Result<String, VolumeError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(VolumeError::Random)?;
    Ok(hex::encode(bytes))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::File {
        action,
        path,
        source,
    }
}

fn sync(folder: &Path) -> Result<(), VolumeError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("write", folder))
}

fn lock(path: &Path) -> Result<File, VolumeError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed("open", path))?;
    file.lock().map_err(failed("lock", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(root.path()).unwrap();
        (root, volumes)
    }

    #[test]
    fn a_volume_is_there_until_it_is_removed() {
        let (_root, volumes) = volumes();
        let held = volumes.hold().unwrap();
        let labels = BTreeMap::from([("team".to_owned(), "db".to_owned())]);
        let made = volumes.create(&held, Some("data"), &labels).unwrap();
        assert_eq!(
            volumes
                .create(&held, Some("data"), &BTreeMap::new())
                .unwrap(),
            made
        );
        let other = volumes.create(&held, None, &BTreeMap::new()).unwrap();
        assert!(other.is_anonymous() && !made.is_anonymous());
        assert_eq!(volumes.list().unwrap().len(), 2);
        fs::write(volumes.data("data").join("file"), "x").unwrap();
        volumes.remove(&held, "data").unwrap();
        assert!(matches!(volumes.get("data"), Err(VolumeError::NotFound(_))));
        assert_eq!(volumes.list().unwrap(), [other]);
    }

    #[test]
    fn a62_names_that_are_paths_are_refused() {
        let (_root, volumes) = volumes();
        let held = volumes.hold().unwrap();
        for name in [
            "../x",
            "-rf",
            "a",
            "",
            ".",
            "..",
            "a/b",
            "a\0b",
            "_a",
            &"a".repeat(300),
        ] {
            let created = volumes.create(&held, Some(name), &BTreeMap::new());
            assert!(matches!(created, Err(VolumeError::Name(_))), "{name:?}");
            assert!(
                matches!(volumes.get(name), Err(VolumeError::NotFound(_))),
                "{name:?}"
            );
        }
    }

    #[test]
    fn a51_what_a_killed_process_left_is_no_volume_and_holds_up_nobody() {
        let (_root, volumes) = volumes();
        for left in ["new", "old"] {
            fs::create_dir_all(volumes.folder.join(left).join("_data")).unwrap();
        }
        let held = volumes.hold().unwrap();
        assert_eq!(volumes.list().unwrap(), []);
        volumes
            .create(&held, Some("data"), &BTreeMap::new())
            .unwrap();
        volumes.remove(&held, "data").unwrap();
        assert!(!volumes.folder.join("old").exists());
    }
}
