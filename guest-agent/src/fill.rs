//! Copies a folder into another, as it is: owners, modes, times, extended attributes and links; but no devices,
//! which a shared folder has none of.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid,
        XattrFlags, chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens,
        mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
};

/// Longest list of names and longest value of extended attributes, of Linux (xattr(7)).
const XATTR_LIMIT: usize = 64 << 10;

/// A folder under way: what is left to read of it, its copy, and its name.
struct Level {
    left: Dir,
    from: OwnedFd,
    to: OwnedFd,
    name: CString,
}

impl Level {
    fn new(from: OwnedFd, to: OwnedFd, name: CString) -> io::Result<Self> {
        Ok(Self {
            left: Dir::read_from(&from)?,
            from,
            to,
            name,
        })
    }
}

/// Copies what is in `from`, and how that is itself, to `to`.
///
/// # Errors
///
/// Those of the system calls, and the path below `from` where it happened.
pub fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<(), (io::Error, String)> {
    let mut levels = Vec::new();
    let mut step = || {
        levels.push(Level::new(
            from.try_clone()?,
            to.try_clone()?,
            CString::default(),
        )?);
        while let Some(level) = levels.last_mut() {
            match level.left.read() {
                None => {
                    set_attributes(&level.from, &level.to)?;
                    levels.pop();
                }
                Some(entry) => {
                    let entry = entry?;
                    if [c".", c".."].contains(&entry.file_name()) {
                        continue;
                    }
                    if let Some(deeper) = copy_entry(level, entry.file_name())? {
                        levels.push(deeper);
                    }
                }
            }
        }
        Ok(())
    };
    let result = step();
    result.map_err(|error| {
        let names = levels.iter().map(|level| level.name.to_string_lossy());
        (error, names.collect::<Vec<_>>().join("/"))
    })
}

/// Copies one entry; a folder is only made, and gone into by the caller.
fn copy_entry(level: &Level, name: &CStr) -> io::Result<Option<Level>> {
    let (from, to) = (level.from.as_fd(), level.to.as_fd());
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let private = Mode::from_raw_mode(0o600);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = openat(from, name, flags, Mode::empty())?;
            let copy = openat(to, name, flags, Mode::empty())?;
            return Level::new(source, copy, name.to_owned()).map(Some);
        }
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
            let new = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let copy = openat(to, name, new, private)?;
            let (mut source, mut copy) = (File::from(source), File::from(copy));
            io::copy(&mut source, &mut copy)?;
            set_attributes(&source, &copy)?;
        }
        FileType::Symlink => {
            symlinkat(&readlinkat(from, name, Vec::new())?, to, name)?;
            set_owner_and_times(to, name, &stat)?;
        }
        kind @ (FileType::Fifo | FileType::Socket) => {
            mknodat(to, name, kind, mode(&stat), 0)?;
            set_owner_and_times(to, name, &stat)?;
        }
        _ => {}
    }
    Ok(None)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

fn set_owner_and_times(folder: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    chownat(folder, name, Some(owner), Some(group), no_follow)?;
    Ok(utimensat(folder, name, &times(stat), no_follow)?)
}

/// Everything that is not content. The owner comes first, since a change of it takes set-user-ID bits and
/// capabilities away.
fn set_attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let stat = fstat(from)?;
    fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    fchmod(to, mode(&stat))?;
    copy_xattrs(from, to)?;
    Ok(futimens(to, &times(&stat))?)
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0; XATTR_LIMIT];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        length => length?,
    };
    let mut value = Vec::new();
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        value.resize(XATTR_LIMIT, 0);
        let length = fgetxattr(from, name, &mut value[..])?;
        match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // The host's file system has none of this kind.
            Err(Errno::NOTSUP) => {}
            set => set?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn a_copy_is_as_the_original() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/b/file"), "text").unwrap();
        let mode = |path: &str, mode| {
            fs::set_permissions(from.join(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("a/b/file", 0o4751);
        mode("a/b", 0o500);
        mode("", 0o2750);
        symlink("/nowhere", from.join("link")).unwrap();
        let open = |path| OwnedFd::from(File::open(path).unwrap());

        copy(&open(&from), &open(&to)).unwrap();

        assert_eq!(fs::read_to_string(to.join("a/b/file")).unwrap(), "text");
        assert_eq!(
            fs::read_link(to.join("link")).unwrap().as_os_str(),
            "/nowhere"
        );
        for path in ["", "a", "a/b", "a/b/file"] {
            let (from, to) = (from.join(path), to.join(path));
            let (from, to) = (fs::metadata(from).unwrap(), fs::metadata(to).unwrap());
            assert_eq!((to.mode(), to.uid()), (from.mode(), from.uid()), "{path}");
            assert_eq!(to.mtime_nsec(), from.mtime_nsec(), "{path}");
        }
        assert_eq!(
            copy(&open(&from), &open(&to)).unwrap_err().0.kind(),
            io::ErrorKind::AlreadyExists
        );
    }
}
