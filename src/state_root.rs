//! Where pillbug keeps its state: one folder, the only truth that two of its processes share.

use std::{
    env,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::unistd::Uid;

/// Environment variable that names the folder.
pub const VARIABLE: &str = "PILLBUG_ROOT";

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StateRootError {
    #[error("cannot tell where to keep state: neither PILLBUG_ROOT, XDG_DATA_HOME nor HOME is set")]
    Unknown,
    #[error("cannot create the state folder {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot look at the state folder {path}")]
    Inspect { path: PathBuf, source: io::Error },
    #[error("{path} is not a folder (a link is not followed): remove it or set PILLBUG_ROOT")]
    NotAFolder { path: PathBuf },
    #[error(
        "{path} belongs to user {owner}, not to user {user}: refusing to keep containers in a \
         folder that somebody else controls"
    )]
    ForeignOwner {
        path: PathBuf,
        owner: u32,
        user: u32,
    },
    #[error("other users may write to {path} (mode {mode:03o}): run `chmod 700 {path}`")]
    Writable { path: PathBuf, mode: u32 },
}

/// The state folder of this user: `PILLBUG_ROOT`, else `/var/lib/pillbug` for root, else
/// `$XDG_DATA_HOME/pillbug` (`~/.local/share/pillbug`).
///
/// # Errors
///
/// [`StateRootError::Unknown`] where nothing says.
pub fn locate() -> Result<PathBuf, StateRootError> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = set(VARIABLE) {
        return Ok(path);
    }
    if Uid::effective().is_root() {
        return Ok("/var/lib/pillbug".into());
    }
    set("XDG_DATA_HOME")
        .or_else(|| Some(set("HOME")?.join(".local/share")))
        .map(|data| data.join("pillbug"))
        .ok_or(StateRootError::Unknown)
}

/// Makes `path` a folder of this user's alone (mode 0700), with its parents, or checks that nobody else
/// controls it.
///
/// # Errors
///
/// Where it cannot be created, is a link, or another user owns it or may write to it.
pub fn private_folder(path: &Path) -> Result<(), StateRootError> {
    let inspect = |source| StateRootError::Inspect {
        path: path.into(),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_durably(path).map_err(|source| StateRootError::Create {
                path: path.into(),
                source,
            })?;
            fs::symlink_metadata(path).map_err(inspect)?
        }
        Err(error) => return Err(inspect(error)),
    };
    let user = Uid::effective().as_raw();
    if !metadata.is_dir() {
        return Err(StateRootError::NotAFolder { path: path.into() });
    }
    if metadata.uid() != user {
        return Err(StateRootError::ForeignOwner {
            path: path.into(),
            owner: metadata.uid(),
            user,
        });
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(StateRootError::Writable {
            path: path.into(),
            mode: metadata.mode() & 0o777,
        });
    }
    Ok(())
}

/// Bytes of disk that a file, or a folder with all that is in it, takes; what cannot be read counts nothing.
#[must_use]
pub fn disk_usage(path: &Path) -> u64 {
    add_up(path, &mut None)
}

/// The same, of folders that may be other users'.
///
/// # Errors
///
/// Where this user may not read all of it. What cannot be read for another reason, or is gone meanwhile, counts nothing.
pub fn permitted_disk_usage(path: &Path) -> io::Result<u64> {
    let mut denied = None;
    let bytes = add_up(path, &mut denied);
    denied.map_or(Ok(bytes), Err)
}

fn add_up(path: &Path, denied: &mut Option<io::Error>) -> u64 {
    let mut note = |error: io::Error| {
        if error.kind() == io::ErrorKind::PermissionDenied {
            *denied = Some(error);
        }
    };
    let Ok(metadata) = fs::symlink_metadata(path).map_err(&mut note) else {
        return 0;
    };
    let within = metadata.is_dir().then(|| fs::read_dir(path));
    let within = within.and_then(|entries| entries.map_err(note).ok());
    let within = within.into_iter().flatten().flatten();
    metadata.blocks() * 512
        + within
            .map(|entry| add_up(&entry.path(), denied))
            .sum::<u64>()
}

/// Makes a folder with its parents, each on disk before anything can be put into it.
fn create_durably(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|folder| fs::symlink_metadata(folder).is_err())
        .collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for folder in missing.iter().rev().filter_map(|folder| folder.parent()) {
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_missing_folder_is_made_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        private_folder(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a64_a_link_and_a_folder_others_may_write_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let (real, link) = (home.path().join("real"), home.path().join("link"));
        fs::create_dir(&real).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o775)).unwrap();
        symlink(&real, &link).unwrap();

        assert!(matches!(
            private_folder(&link),
            Err(StateRootError::NotAFolder { .. })
        ));
        assert!(matches!(
            private_folder(&real),
            Err(StateRootError::Writable { mode: 0o775, .. })
        ));
    }
}
