//! What is in a volume, seen from outside: whether that is anything, how much, and the end of it.
//!
//! Containers of an ordinary user leave files there that are those of other users, and folders that this user may not look
//! into. So what the kernel refuses is done again by a process in a user namespace that has these users (see
//! [`user_namespace`]). It does this one thing and ends.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::{Deserialize, Serialize};

use crate::{
    own_process::{self, receive, send},
    state_root,
    user_namespace::{self, UserNamespaceError},
};

/// First argument of that process; whoever parses the command line hands over to it.
pub const VOLUME_PROCESS: &str = "volume-process";

/// What can be done with all that is in a folder. Links are not followed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Work {
    /// Look whether there is anything: 1, or 0.
    Look,
    /// Add up the bytes of disk.
    Measure,
    /// Remove it; 0.
    Clear,
}

impl Work {
    fn perform(self, folder: &Path) -> io::Result<u64> {
        match self {
            Self::Look => match fs::read_dir(folder)?.next() {
                Some(entry) => entry.map(|_| 1),
                None => Ok(0),
            },
            Self::Measure => state_root::permitted_disk_usage(folder),
            Self::Clear => remove_entries(folder).map(|()| 0),
        }
    }
}

/// Whether nothing is in a folder.
///
/// # Errors
///
/// Where it cannot be read, by nobody of the user's either.
pub fn is_empty(folder: &Path) -> io::Result<bool> {
    perform(Work::Look, folder).map(|found| found == 0)
}

/// Bytes of disk that a folder takes with all that is in it.
///
/// # Errors
///
/// As [`is_empty`].
pub fn disk_usage(folder: &Path) -> io::Result<u64> {
    perform(Work::Measure, folder)
}

/// Removes all that is in a folder of a guest's, but not the folder.
///
/// # Errors
///
/// Where something cannot be removed.
pub fn clear(folder: &Path) -> io::Result<()> {
    perform(Work::Clear, folder).map(drop)
}

fn perform(work: Work, folder: &Path) -> io::Result<u64> {
    match work.perform(folder) {
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied
                && !rustix::process::geteuid().is_root() =>
        {
            in_namespace(work, folder)
        }
        done => done,
    }
}

/// A guest may have made folders in folders without end: each is moved up to be emptied, and none is gone down into.
fn remove_entries(folder: &Path) -> io::Result<()> {
    let mut moved = 0;
    loop {
        let mut is_done = true;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            is_done = false;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            for inner in fs::read_dir(entry.path())? {
                let inner = inner?;
                match inner.file_type()?.is_dir() {
                    true => move_up(&inner.path(), folder, &mut moved)?,
                    false => fs::remove_file(inner.path())?,
                }
            }
            fs::remove_dir(entry.path())?;
        }
        if is_done {
            return Ok(());
        }
    }
}

/// Gives it a name in `folder` that nothing there has.
fn move_up(path: &Path, folder: &Path, moved: &mut u64) -> io::Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotADirectory};
    loop {
        *moved += 1;
        match fs::rename(path, folder.join(moved.to_string())) {
            Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotADirectory) => {}
            result => return result,
        }
    }
}

/// Has a process do it.
fn in_namespace(work: Work, folder: &Path) -> io::Result<u64> {
    let log = io::stderr().as_fd().try_clone_to_owned()?.into();
    let (mut child, control) = own_process::start(VOLUME_PROCESS, "-", log)?;
    let talk = || {
        user_namespace::give_users(&child, control.as_fd()).map_err(io::Error::other)?;
        send(control.as_fd(), &(work, folder), None)?;
        receive::<Result<u64, Failure>>(control.as_fd())
    };
    let said = talk();
    // One that was told nothing ends with this.
    drop(control);
    child.wait()?;
    match said? {
        Some((done, _)) => done.map_err(Into::into),
        None => Err(io::Error::other(UserNamespaceError::Lost)),
    }
}

/// Why it could not: a system call's error, or in words.
#[derive(Debug, Serialize, Deserialize)]
enum Failure {
    System(i32),
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Self::System(number),
            None => Self::Other(error.to_string()),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::System(number) => Self::from_raw_os_error(number),
            Failure::Other(text) => Self::other(text),
        }
    }
}

/// Becomes the process, whose control socket is standard input.
#[must_use]
pub fn run() -> ExitCode {
    let serve = || -> io::Result<()> {
        let control = io::stdin().as_fd().try_clone_to_owned()?;
        let control = control.as_fd();
        // Who started it is told why not.
        user_namespace::enter(control).map_err(io::Error::other)?;
        if let Some(((work, folder), _)) = receive::<(Work, PathBuf)>(control)? {
            let done = work.perform(&folder).map_err(Failure::from);
            send(control, &done, None)?;
        }
        Ok(())
    };
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_is_looked_at_measured_and_cleared_without_following_links() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        let beside = root.path().join("beside");
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("canary"), vec![0; 1 << 20]).unwrap();
        fs::write(folder.join("a/b/file"), vec![1; 8192]).unwrap();
        symlink(&beside, folder.join("link")).unwrap();
        symlink(&beside, folder.join("a/link")).unwrap();

        assert!(!is_empty(&folder).unwrap());
        let bytes = disk_usage(&folder).unwrap();
        assert!((8192..1 << 20).contains(&bytes), "{bytes}");
        clear(&folder).unwrap();
        assert!(is_empty(&folder).unwrap());
        assert!(beside.join("canary").exists());
        assert!(is_empty(&root.path().join("none")).is_err());
    }

    #[test]
    fn a29_folders_too_deep_for_any_path_are_removed() {
        use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
        let root = tempfile::tempdir().unwrap();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut deepest = open(root.path(), flags, Mode::empty()).unwrap();
        for _ in 0..2500 {
            mkdirat(&deepest, "1", Mode::RWXU).unwrap();
            mkdirat(&deepest, "2", Mode::RWXU).unwrap();
            deepest = openat(&deepest, "1", flags, Mode::empty()).unwrap();
        }
        fs::write(root.path().join("3"), "in the way").unwrap();
        clear(root.path()).unwrap();
        assert!(is_empty(root.path()).unwrap());
    }

    #[test]
    fn what_went_wrong_inside_is_told_outside() {
        let missing = io::Error::from(Failure::from(io::Error::from_raw_os_error(2)));
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let other = io::Error::from(Failure::from(io::Error::other("words")));
        assert_eq!(other.to_string(), "words");
    }
}
