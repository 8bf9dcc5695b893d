//! Files and folders of the container that must exist before something is mounted on them.
//!
//! The image decides what lies on the way: links that lead nowhere yet (`/etc/resolv.conf` into
//! `/run` is usual) are followed, and what is missing at their end is created. Nothing on the way,
//! neither an absolute link nor `..`, leads out of the container's root.

use std::{
    collections::VecDeque,
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat},
    io::Errno,
};

/// Most symbolic links on one path, as the kernel's (path_resolution(7)).
const LINKS_LIMIT: usize = 40;

/// What must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// Anything but a folder; created as an empty file.
    File,
}

/// A target that was found or made.
pub struct Target {
    /// Opened with `O_PATH`.
    pub fd: OwnedFd,
    /// Whether it had to be made.
    pub created: bool,
}

/// Opens what the absolute `path` leads to in the folder `root`, or makes it together with the
/// folders above it: owned by root, with mode 0755 or 0644 less the umask.
///
/// # Errors
///
/// `ENOTDIR` or `EISDIR` for the wrong kind, `ELOOP` for too many links, and those of the calls.
pub fn ensure(root: BorrowedFd<'_>, path: &str, kind: Kind) -> io::Result<Target> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let target = match openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(fd) => Target { fd, created: false },
        Err(Errno::NOENT) => create(root, path, kind)?,
        Err(error) => return Err(error.into()),
    };
    let is_folder = file_type(&target.fd)? == FileType::Directory;
    match kind {
        Kind::Folder if !is_folder => Err(Errno::NOTDIR.into()),
        Kind::File if is_folder => Err(Errno::ISDIR.into()),
        _ => Ok(target),
    }
}

fn file_type(fd: impl AsFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

/// Walks `path` component by component, with the folders walked through on a stack: its bottom is the
/// root, where `..` stays.
fn create(root: BorrowedFd<'_>, path: &str, kind: Kind) -> io::Result<Target> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut left = VecDeque::new();
    push_front(&mut left, path.as_bytes())?;
    let mut walked: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    let mut created = false;
    while let Some(name) = left.pop_front() {
        if name.as_bytes() == b".." {
            walked.pop();
            continue;
        }
        let at = walked.last().map_or(root, AsFd::as_fd);
        let next = match openat(at, &name, flags, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                created = true;
                make(at, &name, kind == Kind::File && left.is_empty())?;
                openat(at, &name, flags, Mode::empty())?
            }
            Err(error) => return Err(error.into()),
        };
        if file_type(&next)? != FileType::Symlink {
            walked.push(next);
            continue;
        }
        links += 1;
        if links > LINKS_LIMIT {
            return Err(Errno::LOOP.into());
        }
        let link = readlinkat(&next, "", Vec::new())?;
        push_front(&mut left, link.as_bytes())?;
        if link.as_bytes().starts_with(b"/") {
            walked.clear();
        }
    }
    let fd = match walked.pop() {
        Some(fd) => fd,
        None => root.try_clone_to_owned()?,
    };
    Ok(Target { fd, created })
}

/// Puts the components of `path` in front of those that are left.
fn push_front(left: &mut VecDeque<CString>, path: &[u8]) -> io::Result<()> {
    let names = path.split(|byte| *byte == b'/').rev();
    for name in names.filter(|name| !name.is_empty() && *name != b".") {
        left.push_front(CString::new(name)?);
    }
    Ok(())
}

fn make(parent: BorrowedFd<'_>, name: &CString, file: bool) -> io::Result<()> {
    if file {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        openat(parent, name, flags, Mode::from_raw_mode(0o644))?;
    } else {
        mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::symlink,
        path::Path,
    };

    use super::*;

    /// A root with `outside` beside it, which must stay empty.
    struct Roots {
        folder: tempfile::TempDir,
    }

    impl Roots {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("outside")).unwrap();
            fs::create_dir_all(folder.path().join("root/etc")).unwrap();
            Self { folder }
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.folder.path().join("root").join(name)
        }

        fn link(&self, name: &str, to: &str) {
            symlink(to, self.path(name)).unwrap();
        }

        fn ensure(&self, path: &str, kind: Kind) -> io::Result<bool> {
            let root = File::open(self.path("")).unwrap();
            let result = ensure(root.as_fd(), path, kind).map(|target| target.created);
            let mut outside = fs::read_dir(self.folder.path().join("outside")).unwrap();
            assert!(outside.next().is_none(), "{path} led out of the root");
            result
        }

        fn error(&self, path: &str, kind: Kind) -> Option<i32> {
            self.ensure(path, kind).unwrap_err().raw_os_error()
        }
    }

    #[test]
    fn what_exists_is_found_and_what_is_missing_is_made() {
        let roots = Roots::new();
        assert!(!roots.ensure("/etc", Kind::Folder).unwrap());
        assert!(roots.ensure("/var/lib/data/", Kind::Folder).unwrap());
        assert!(roots.path("var/lib/data").is_dir());
        assert!(roots.ensure("/etc/hosts", Kind::File).unwrap());
        assert!(roots.path("etc/hosts").is_file());
        assert!(!roots.ensure("/", Kind::Folder).unwrap());
    }

    #[test]
    fn the_end_of_a_dangling_link_is_made() {
        let roots = Roots::new();
        roots.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
        assert!(roots.ensure("/etc/resolv.conf", Kind::File).unwrap());
        assert!(roots.path("run/systemd/resolve/stub-resolv.conf").is_file());
        assert!(!roots.ensure("/etc/resolv.conf", Kind::File).unwrap());
    }

    #[test]
    fn a24_links_stay_inside_the_root() {
        let roots = Roots::new();
        let outside = roots.folder.path().join("outside");
        roots.link("etc/up", "../../../../outside/file");
        roots.link("etc/absolute", outside.join("file").to_str().unwrap());
        roots.link("escape", outside.to_str().unwrap());
        roots.ensure("/etc/up", Kind::File).unwrap();
        roots.ensure("/etc/absolute", Kind::File).unwrap();
        roots.ensure("/escape/folder", Kind::Folder).unwrap();
        roots.ensure("/../../outside/file", Kind::File).unwrap();
        assert!(roots.path("outside/file").is_file());
        let inside = outside.strip_prefix("/").unwrap();
        assert!(
            roots
                .path("")
                .join(Path::new(inside))
                .join("folder")
                .is_dir()
        );
    }

    #[test]
    fn links_in_a_circle_and_the_wrong_kind_are_refused() {
        let roots = Roots::new();
        roots.link("a", "b");
        roots.link("b", "a");
        roots.link("c", "c/missing");
        assert_eq!(roots.error("/a", Kind::File), Some(libc::ELOOP));
        assert_eq!(roots.error("/c", Kind::Folder), Some(libc::ELOOP));
        assert_eq!(roots.error("/etc", Kind::File), Some(libc::EISDIR));
        roots.ensure("/etc/file", Kind::File).unwrap();
        assert_eq!(roots.error("/etc/file", Kind::Folder), Some(libc::ENOTDIR));
        assert_eq!(
            roots.error("/etc/file/below", Kind::Folder),
            Some(libc::ENOTDIR)
        );
    }
}
