//! Putting: entries into a folder, each whole or not at all.
//!
//! Names in entries are never paths of this machine: every entry's folder is opened below an open one, under the rules of
//! [`Rules::resolve`], and the entry itself is made by name in it, following nothing. A regular file gets its name when
//! all of it is there, so that who is interrupted leaves no half of one.

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use protocol::{
    files::{Action, Entry, Extent, Found, Kind, Mtime},
    frame::FrameError,
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT,
        Uid, XattrFlags, chownat, fchmod, fchown, fsetxattr, fstat, ftruncate, futimens, linkat,
        makedev, mkdirat, mknodat, openat, openat2, readlinkat, renameat, statat, symlinkat,
        unlinkat, utimensat,
    },
    io::Errno,
};

use crate::{
    FilesError, To,
    stream::{PIECE, Receiver},
};

/// Set-user-ID, set-group-ID: what lends a file's owner's rights to whoever executes it.
const LENT_RIGHTS: u16 = 0o6000;

/// Name that a file has for the moment before it takes the place of another.
const ASIDE: &str = ".pillbug-arriving";

/// Most links at the end of a path, as the kernel's (path_resolution(7)).
const LINKS_LIMIT: usize = 40;

/// What may be made, and how.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How the folder of an entry is found below the root.
    pub resolve: ResolveFlags,
    /// Whether owners are those of the entries, or whoever does this.
    pub owners: bool,
    /// Whether devices are made, and files keep set-user-ID bits and extended attributes.
    pub privileges: bool,
}

/// What was put in its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Placed {
    /// Bytes of content.
    pub bytes: u64,
    /// Devices that were not made, and what the other end left out.
    pub left_out: u64,
}

/// Puts all entries that come below `base`, which is a path below the open folder `root`.
///
/// # Errors
///
/// Where one cannot be put, or the stream ends before its time. Entries before that stay.
pub fn place<R: Read>(
    root: BorrowedFd<'_>,
    base: &[u8],
    rules: Rules,
    receiver: &mut Receiver<R>,
) -> Result<Placed, FilesError> {
    let mut placing = Placing {
        root,
        base,
        rules,
        folder: None,
        open: Vec::new(),
        placed: Placed::default(),
    };
    loop {
        match receiver.next_entry()? {
            Ok(entry) => placing.take(entry, receiver)?,
            Err(left_out) => {
                placing.close(None)?;
                placing.placed.left_out += left_out;
                return Ok(placing.placed);
            }
        }
    }
}

/// What `path` leads to below the open folder `root`, and where that is: behind links at its end, unless they lead to a
/// folder.
///
/// # Errors
///
/// Where not even the folder that it would be in is there.
pub fn find(
    root: BorrowedFd<'_>,
    path: &[u8],
    resolve: ResolveFlags,
) -> Result<(Vec<u8>, Found), FilesError> {
    let mut path = path.to_vec();
    for _ in 0..LINKS_LIMIT {
        while path.ends_with(b"/") {
            path.pop();
        }
        let shown = if path.is_empty() {
            b"."
        } else {
            path.as_slice()
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let open = |flags| openat2(root, shown, flags, Mode::empty(), resolve);
        if open(flags | OFlags::DIRECTORY).is_ok() {
            return Ok((path, Found::Folder));
        }
        let itself = match open(flags | OFlags::NOFOLLOW) {
            Ok(itself) => itself,
            Err(Errno::NOENT) => {
                let (above, _) = split(&path);
                let above = if above.is_empty() { b"." } else { above };
                let folder = openat2(
                    root,
                    above,
                    flags | OFlags::DIRECTORY,
                    Mode::empty(),
                    resolve,
                );
                folder.to(Action::Find, above)?;
                return Ok((path, Found::Nothing));
            }
            Err(error) => return Err(error).to(Action::Find, &path),
        };
        let stat = fstat(&itself).to(Action::Find, &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok((path, Found::Other));
        }
        let link = readlinkat(&itself, "", Vec::new()).to(Action::Find, &path)?;
        path = match (link.to_bytes(), split(&path)) {
            (target, _) if target.starts_with(b"/") => target.to_vec(),
            (target, (above, _)) => [above, b"/", target].concat(),
        };
    }
    Err(Errno::LOOP).to(Action::Find, &path)
}

struct Placing<'a> {
    root: BorrowedFd<'a>,
    base: &'a [u8],
    rules: Rules,
    /// The folder of the last entry, and its path.
    folder: Option<(Vec<u8>, OwnedFd)>,
    /// Folders that more may come into. They get their attributes when that is over: what came in changed their times.
    open: Vec<Entry>,
    placed: Placed,
}

impl Placing<'_> {
    fn take<R: Read>(
        &mut self,
        entry: Entry,
        receiver: &mut Receiver<R>,
    ) -> Result<(), FilesError> {
        self.close(Some(&entry.path))?;
        let full = self.full(&entry.path);
        let (above, name) = split(&full);
        if name.is_empty() || name == b"." || name == b".." {
            // The target itself, by a path that gives it no name; it is there already.
            return Ok(());
        }
        let folder = self.folder(above)?;
        let before = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let before = before.map(|stat| FileType::from_raw_mode(stat.st_mode));
        let is_folder = matches!(entry.kind, Kind::Folder { .. });
        match before {
            Some(FileType::Directory) if !is_folder => {
                return Err(Errno::ISDIR).to(Action::Replace, &full);
            }
            Some(FileType::Directory) | None => {}
            // A folder that is there by way of a link stays what it is, but only as the target itself.
            Some(FileType::Symlink) if is_folder && entry.path.is_empty() => return Ok(()),
            Some(_) if is_folder => return Err(Errno::NOTDIR).to(Action::Replace, &full),
            Some(_) => {}
        }
        let replaces = before.is_some();
        match &entry.kind {
            Kind::Folder { .. } => {
                if !replaces {
                    let private = Mode::from_raw_mode(0o700);
                    mkdirat(&folder, name, private).to(Action::CreateFolder, &full)?;
                }
                if !(replaces && entry.path.is_empty()) {
                    self.open.push(entry);
                }
                Ok(())
            }
            Kind::File { size, extents } => {
                self.file(&folder, name, &entry, (*size, extents), receiver)
            }
            Kind::HardLink(target) => {
                let target = self.full(target);
                let (above, first) = split(&target);
                let from = self.open_folder(above).to(Action::Find, &target)?;
                clear(&folder, name, replaces).to(Action::Write, &full)?;
                linkat(&from, first, &folder, name, AtFlags::empty()).to(Action::CreateLink, &full)
            }
            Kind::Symlink(target) => {
                clear(&folder, name, replaces).to(Action::Write, &full)?;
                symlinkat(target.as_slice(), &folder, name).to(Action::CreateLink, &full)?;
                self.dress_by_name(&folder, name, &entry)
                    .to(Action::SetAttributes, &full)
            }
            Kind::CharDevice(device) | Kind::BlockDevice(device) if self.rules.privileges => {
                let kind = match entry.kind {
                    Kind::BlockDevice(_) => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                let device = makedev(device.major, device.minor);
                self.special(&folder, name, &entry, (kind, device), replaces)
            }
            Kind::Fifo => self.special(&folder, name, &entry, (FileType::Fifo, 0), replaces),
            Kind::CharDevice(_) | Kind::BlockDevice(_) => {
                self.placed.left_out += 1;
                Ok(())
            }
            Kind::Whiteout => Err(FilesError::Unexpected),
        }
    }

    fn full(&self, path: &[u8]) -> Vec<u8> {
        match (self.base, path) {
            ([], path) => path.to_vec(),
            (base, []) => base.to_vec(),
            (base, path) => [base, b"/", path].concat(),
        }
    }

    /// The folder at a path below the root. One that no entry spoke of is made, as root's own or the user's.
    fn folder(&mut self, path: &[u8]) -> Result<OwnedFd, FilesError> {
        if let Some((known, folder)) = &self.folder
            && known == path
        {
            return rustix::io::fcntl_dupfd_cloexec(folder, 0).to(Action::Find, path);
        }
        let folder = match self.open_folder(path) {
            Err(Errno::NOENT) if path.len() > self.base.len() => {
                let (above, name) = split(path);
                let above = self.folder(above)?;
                let usual = Mode::from_raw_mode(0o755);
                match mkdirat(&above, name, usual) {
                    Err(Errno::EXIST) => {}
                    made => made.to(Action::CreateFolder, path)?,
                }
                self.open_folder(path)
            }
            opened => opened,
        };
        let folder = folder.to(Action::Find, path)?;
        let kept = rustix::io::fcntl_dupfd_cloexec(&folder, 0).to(Action::Find, path)?;
        self.folder = Some((path.to_vec(), kept));
        Ok(folder)
    }

    fn open_folder(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        loop {
            match openat2(self.root, path, flags, Mode::empty(), self.rules.resolve) {
                // Somebody moved folders about while the kernel followed a `..` among them.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
    }

    /// Gives attributes to the folders that `path` is not in.
    fn close(&mut self, path: Option<&[u8]>) -> Result<(), FilesError> {
        while let Some(last) = self.open.last() {
            let is_above = |path: &[u8]| {
                last.path.is_empty()
                    || path
                        .strip_prefix(last.path.as_slice())
                        .is_some_and(|rest| rest.starts_with(b"/"))
            };
            if path.is_some_and(is_above) {
                break;
            }
            let Some(entry) = self.open.pop() else { break };
            let full = self.full(&entry.path);
            let (above, name) = split(&full);
            let folder = self.folder(above)?;
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(&folder, name, flags, Mode::empty());
            let opened = opened.to(Action::SetAttributes, &full)?;
            self.dress(opened.as_fd(), &entry)
                .to(Action::SetAttributes, &full)?;
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        folder: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        (size, extents): (u64, &[Extent]),
        receiver: &mut Receiver<R>,
    ) -> Result<(), FilesError> {
        let full = self.full(&entry.path);
        let (file, aside) = create(folder).to(Action::CreateFile, &full)?;
        let made = self
            .fill(&file, entry, (size, extents), receiver)
            .and_then(|()| settle(&file, aside, folder, name).to(Action::CreateFile, &full));
        if made.is_err() && aside {
            let _ = unlinkat(folder, ASIDE, AtFlags::empty());
        }
        made
    }

    fn fill<R: Read>(
        &mut self,
        file: &File,
        entry: &Entry,
        (size, extents): (u64, &[Extent]),
        receiver: &mut Receiver<R>,
    ) -> Result<(), FilesError> {
        let full = self.full(&entry.path);
        let mut piece = vec![0; PIECE];
        for extent in extents {
            let (mut at, mut left) = (extent.offset, extent.length);
            while left > 0 {
                let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
                let read = receiver.read(&mut piece[..most]);
                let count = read.map_err(FrameError::from)?;
                let written = file.write_all_at(&piece[..count], at);
                written.map_err(|source| FilesError::File {
                    action: Action::Write,
                    path: full.clone(),
                    remote: false,
                    source,
                })?;
                at += count as u64;
                left -= count as u64;
                self.placed.bytes += count as u64;
            }
        }
        ftruncate(file, size).to(Action::Write, &full)?;
        self.dress(file.as_fd(), entry)
            .to(Action::SetAttributes, &full)
    }

    fn special(
        &self,
        folder: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        (kind, device): (FileType, u64),
        replaces: bool,
    ) -> Result<(), FilesError> {
        let full = self.full(&entry.path);
        clear(folder, name, replaces).to(Action::Write, &full)?;
        let mode = Mode::from_raw_mode(self.mode(entry));
        mknodat(folder, name, kind, mode, device).to(Action::CreateDevice, &full)?;
        self.dress_by_name(folder, name, entry)
            .to(Action::SetAttributes, &full)
    }

    fn mode(&self, entry: &Entry) -> u32 {
        match self.rules.privileges {
            true => entry.mode.into(),
            false => (entry.mode & !LENT_RIGHTS).into(),
        }
    }

    /// Gives an open file or folder its attributes; the owner first, since a change of that takes others away.
    fn dress(&self, file: BorrowedFd<'_>, entry: &Entry) -> Result<(), Errno> {
        if self.rules.owners {
            let (uid, gid) = owner(entry);
            fchown(file, Some(uid), Some(gid))?;
        }
        fchmod(file, Mode::from_raw_mode(self.mode(entry)))?;
        if self.rules.privileges {
            for xattr in &entry.xattrs {
                let set = fsetxattr(
                    file,
                    xattr.name.as_slice(),
                    &xattr.value,
                    XattrFlags::empty(),
                );
                match set {
                    // A file system without them, or without this kind.
                    Err(Errno::NOTSUP) => {}
                    set => set?,
                }
            }
        }
        futimens(file, &times(entry.mtime))
    }

    /// As [`dress`](Self::dress) for what cannot be opened, and has its mode from the beginning.
    fn dress_by_name(&self, folder: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Errno> {
        let itself = AtFlags::SYMLINK_NOFOLLOW;
        if self.rules.owners {
            let (uid, gid) = owner(entry);
            chownat(folder, name, Some(uid), Some(gid), itself)?;
        }
        utimensat(folder, name, &times(entry.mtime), itself)
    }
}

fn owner(entry: &Entry) -> (Uid, Gid) {
    (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))
}

fn times(mtime: Mtime) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.into(),
        },
    }
}

/// A path's folder and its last name.
#[must_use]
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Makes room for something that cannot take the place of another in one step.
fn clear(folder: &OwnedFd, name: &[u8], replaces: bool) -> Result<(), Errno> {
    match replaces {
        true => unlinkat(folder, name, AtFlags::empty()),
        false => Ok(()),
    }
}

/// A new file without a name or, on a file system that has no such thing, [`ASIDE`]; and whether that is so.
fn create(folder: &OwnedFd) -> Result<(File, bool), Errno> {
    let private = Mode::from_raw_mode(0o600);
    let nameless = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(folder, ".", nameless, private) {
        Err(Errno::NOTSUP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
            // One that a power cut left is nobody's.
            let _ = unlinkat(folder, ASIDE, AtFlags::empty());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            Ok((openat(folder, ASIDE, flags, private)?.into(), true))
        }
        made => Ok((made?.into(), false)),
    }
}

/// Gives a whole file its name, in place of what has it.
fn settle(file: &File, aside: bool, folder: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    if !aside {
        match name_open(file, folder, name) {
            Err(Errno::EXIST) => {}
            named => return named,
        }
        let _ = unlinkat(folder, ASIDE, AtFlags::empty());
        name_open(file, folder, ASIDE.as_bytes())?;
    }
    let moved = renameat(folder, ASIDE, folder, name);
    if moved.is_err() {
        let _ = unlinkat(folder, ASIDE, AtFlags::empty());
    }
    moved
}

/// Names an open file that has no name: by its descriptor, or by way of `/proc` without the right to that.
fn name_open(file: &File, folder: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match linkat(file, "", folder, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT) => {
            let own = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(CWD, own, folder, name, AtFlags::SYMLINK_FOLLOW)
        }
        named => named,
    }
}
