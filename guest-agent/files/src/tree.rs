//! Reading: one file or a whole tree, entry by entry, folders before what is in them.
//!
//! Each folder is read through its own descriptor and each name in it opened without following links, so whoever moves
//! things about meanwhile can make entries go missing and nothing else. What is held in memory are the folders on the way
//! to the present one, and the files that have more names than were seen yet.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use protocol::files::{Action, Change, Entry, Item, Kind, MAX_PATH};
use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat, openat2,
        readlinkat, statat,
    },
    io::Errno,
};

use crate::{FilesError, To, describe, stream::Sender};

/// Opening a folder to read it.
const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opening a file to read it, of which only a moment ago it was sure that it is one.
const FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// File systems that only look like files: procfs, sysfs and cgroup2 (statfs(2)). Read as a tree, they have no end.
const APPARITIONS: [u64; 3] = [0x9fa0, 0x6265_6572, 0x6367_7270];

/// What is said of files besides what they are.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// Path that stands before every entry's; empty for none.
    pub prefix: Vec<u8>,
    /// Owner and group of all, in place of their own.
    pub owner: Option<(u32, u32)>,
    /// Whether extended attributes are told.
    pub xattrs: bool,
}

/// Sends what `path` leads to below the open folder `root`, and all that is in it; returns how many sockets and vanished
/// files were left out.
///
/// # Errors
///
/// Where something cannot be read, or sent.
pub fn send<W: Write>(
    root: BorrowedFd<'_>,
    path: &[u8],
    follow: bool,
    resolve: ResolveFlags,
    manner: Manner,
    sender: &mut Sender<W>,
) -> Result<u64, FilesError> {
    let mut walk = Walk::new(manner, sender);
    let path = if path.is_empty() { b"." } else { path };
    let last = match follow || path.ends_with(b"/") {
        true => OFlags::empty(),
        false => OFlags::NOFOLLOW,
    };
    let open = |flags: OFlags| {
        let flags = flags.difference(OFlags::NOFOLLOW) | last;
        openat2(root, path, flags, Mode::empty(), resolve)
    };
    let found = open(OFlags::PATH | OFlags::CLOEXEC).to(Action::Find, path)?;
    let stat = fstat(&found).to(Action::Find, path)?;
    let mut top = None;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            top = walk.enter(open(FOLDER).to(Action::List, path)?, None, None)?;
        }
        FileType::RegularFile => walk.file(&open(FILE).to(Action::Read, path)?, None)?,
        FileType::Symlink => {
            let target = readlinkat(&found, "", Vec::new()).to(Action::Read, path)?;
            walk.link(target.into_bytes(), &stat, None)?;
        }
        _ => walk.special(&stat, None)?,
    }
    walk.run(top)
}

/// Sends what the folder `upper` of an overlay changes of the folder `image` below it; with the contents of files, or
/// with all deletions told one by one.
///
/// # Errors
///
/// Where something cannot be read, or sent.
pub fn send_changes<W: Write>(
    upper: OwnedFd,
    image: OwnedFd,
    contents: bool,
    sender: &mut Sender<W>,
) -> Result<u64, FilesError> {
    let manner = Manner {
        xattrs: contents,
        ..Manner::default()
    };
    let mut walk = Walk::new(manner, sender);
    walk.compares = true;
    walk.contents = contents;
    let top = walk.enter(upper, Some(image), None)?;
    walk.run(top)
}

/// A folder that is being read.
struct Level {
    dir: Dir,
    /// Length of its path.
    length: usize,
    device: u64,
    /// The image's folder at the same path.
    image: Option<OwnedFd>,
    /// Nothing of that is seen in the container, but what is in this one.
    hides: bool,
}

impl Level {
    /// The image's folder of that name, where `stat` says that it is one.
    fn image_folder(&self, name: &CStr, stat: Option<Stat>) -> Option<OwnedFd> {
        let is_folder = FileType::from_raw_mode(stat?.st_mode) == FileType::Directory;
        let above = self.image.as_ref().filter(|_| is_folder)?;
        openat(above, name, FOLDER, Mode::empty()).ok()
    }
}

struct Walk<'a, W: Write> {
    sender: &'a mut Sender<W>,
    manner: Manner,
    compares: bool,
    contents: bool,
    /// Where it is.
    path: Vec<u8>,
    levels: Vec<Level>,
    /// Files with several names: device and inode, the first path, names that were not seen yet.
    linked: BTreeMap<(u64, u64), (Vec<u8>, u64)>,
    left_out: u64,
}

impl<'a, W: Write> Walk<'a, W> {
    fn new(manner: Manner, sender: &'a mut Sender<W>) -> Self {
        Self {
            sender,
            path: manner.prefix.clone(),
            manner,
            compares: false,
            contents: true,
            levels: Vec::new(),
            linked: BTreeMap::new(),
            left_out: 0,
        }
    }

    fn run(mut self, top: Option<Level>) -> Result<u64, FilesError> {
        self.levels.extend(top);
        while let Some(mut level) = self.levels.pop() {
            self.path.truncate(level.length);
            let Some(entry) = level.dir.next() else {
                if level.hides && !self.contents {
                    self.deletions(&level)?;
                }
                continue;
            };
            let entry = entry.to(Action::List, &self.path)?;
            let name = entry.file_name();
            let below = match name.to_bytes() {
                b"." | b".." => None,
                _ => self.visit(&level, name)?,
            };
            self.levels.push(level);
            self.levels.extend(below);
        }
        Ok(self.left_out)
    }

    fn append(&mut self, name: &CStr) -> Result<(), FilesError> {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
        match self.path.len() {
            0..=MAX_PATH => Ok(()),
            _ => Err(Errno::NAMETOOLONG).to(Action::Read, &self.path),
        }
    }

    /// One name in a folder; the folder that it is, to be read.
    fn visit(&mut self, level: &Level, name: &CStr) -> Result<Option<Level>, FilesError> {
        let folder = level.dir.fd().to(Action::List, &self.path)?;
        let image = match &level.image {
            Some(image) => statat(image, name, AtFlags::SYMLINK_NOFOLLOW).ok(),
            None => None,
        };
        self.append(name)?;
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return self.leave_out().map(|()| None),
            stat => stat.to(Action::Read, &self.path)?,
        };
        let open = |flags| openat(folder, name, flags, Mode::empty());
        let done = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                return match open(FOLDER) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        self.leave_out().map(|()| None)
                    }
                    opened => {
                        let opened = opened.to(Action::List, &self.path)?;
                        self.enter(opened, level.image_folder(name, image), Some(level))
                    }
                };
            }
            FileType::RegularFile if !self.contents => {
                let kind = Kind::File {
                    size: stat.st_size.max(0).cast_unsigned(),
                    extents: Vec::new(),
                };
                self.tell(kind, &stat, image.as_ref())
            }
            FileType::RegularFile => match open(FILE) {
                Err(Errno::NOENT | Errno::LOOP) => self.leave_out(),
                opened => {
                    let opened = opened.to(Action::Read, &self.path)?;
                    self.file(&opened, image.as_ref())
                }
            },
            FileType::Symlink => {
                let target = readlinkat(folder, name, Vec::new()).to(Action::Read, &self.path)?;
                self.link(target.into_bytes(), &stat, image.as_ref())
            }
            FileType::CharacterDevice if self.compares && stat.st_rdev == 0 => {
                self.tell(Kind::Whiteout, &stat, image.as_ref())
            }
            _ => self.special(&stat, image.as_ref()),
        };
        done.map(|()| None)
    }

    fn leave_out(&mut self) -> Result<(), FilesError> {
        self.left_out += 1;
        Ok(())
    }

    /// Tells of an open folder, which is to be read where it has an end.
    fn enter(
        &mut self,
        folder: OwnedFd,
        image: Option<OwnedFd>,
        above: Option<&Level>,
    ) -> Result<Option<Level>, FilesError> {
        let stat = fstat(&folder).to(Action::List, &self.path)?;
        let mut opaque = false;
        let mut xattrs = Vec::new();
        if self.manner.xattrs || self.compares {
            (xattrs, opaque) = describe::xattrs(folder.as_fd()).to(Action::Read, &self.path)?;
        }
        let below = image.as_ref().map(fstat);
        let below = below.transpose().to(Action::Read, &self.path)?;
        let hides = opaque || above.is_some_and(|level| level.hides);
        let opaque = opaque && below.is_some();
        let mut entry = self.entry(Kind::Folder { opaque }, &stat, below.as_ref());
        entry.xattrs = xattrs;
        self.sender.send(&Item::Entry(entry))?;
        let device = stat.st_dev;
        let crossed = above.is_some_and(|level| level.device != device);
        if crossed && is_apparition(&folder).to(Action::List, &self.path)? {
            return Ok(None);
        }
        Ok(Some(Level {
            dir: Dir::new(folder).to(Action::List, &self.path)?,
            length: self.path.len(),
            device,
            image,
            hides,
        }))
    }

    /// Sends an open file, or that it is another name of one that was sent.
    fn file(&mut self, file: &OwnedFd, image: Option<&Stat>) -> Result<(), FilesError> {
        let stat = fstat(file).to(Action::Read, &self.path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return self.leave_out();
        }
        if let Some(first) = self.seen(&stat) {
            return self.tell(Kind::HardLink(first), &stat, image);
        }
        let kind = describe::regular(file.as_fd(), &stat);
        let mut entry = self.entry(kind.clone(), &stat, image);
        if self.manner.xattrs {
            entry.xattrs = describe::xattrs(file.as_fd())
                .to(Action::Read, &self.path)?
                .0;
        }
        self.sender.send(&Item::Entry(entry))?;
        match kind {
            Kind::File { extents, .. } => {
                let read = self.sender.content(file.as_fd(), &extents)?;
                read.to(Action::Read, &self.path)
            }
            _ => Ok(()),
        }
    }

    fn link(
        &mut self,
        target: Vec<u8>,
        stat: &Stat,
        image: Option<&Stat>,
    ) -> Result<(), FilesError> {
        match self.seen(stat) {
            Some(first) => self.tell(Kind::HardLink(first), stat, image),
            None => self.tell(Kind::Symlink(target), stat, image),
        }
    }

    /// A device or a pipe; a socket is nothing without the program that made it.
    fn special(&mut self, stat: &Stat, image: Option<&Stat>) -> Result<(), FilesError> {
        match describe::special(stat) {
            Some(kind) => self.tell(kind, stat, image),
            None => self.leave_out(),
        }
    }

    fn tell(&mut self, kind: Kind, stat: &Stat, image: Option<&Stat>) -> Result<(), FilesError> {
        let entry = self.entry(kind, stat, image);
        self.sender.send(&Item::Entry(entry))
    }

    fn entry(&self, kind: Kind, stat: &Stat, image: Option<&Stat>) -> Entry {
        let mut entry = describe::entry(self.path.clone(), kind, stat);
        if self.compares {
            entry.change = describe::change(stat, image);
        }
        if let Some((uid, gid)) = self.manner.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        entry
    }

    /// The path at which a file with several names was sent already.
    #[allow(
        clippy::unnecessary_cast,
        reason = "the types differ between architectures"
    )]
    fn seen(&mut self, stat: &Stat) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let key = (stat.st_dev as u64, stat.st_ino as u64);
        let Some((first, left)) = self.linked.get_mut(&key) else {
            let first = (self.path.clone(), stat.st_nlink as u64 - 1);
            self.linked.insert(key, first);
            return None;
        };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return Some(first.clone());
        }
        self.linked.remove(&key).map(|(first, _)| first)
    }

    /// Tells what the image has in a folder that hides it.
    fn deletions(&mut self, level: &Level) -> Result<(), FilesError> {
        let Some(image) = &level.image else {
            return Ok(());
        };
        let folder = level.dir.fd().to(Action::List, &self.path)?;
        for entry in Dir::read_from(image).to(Action::List, &self.path)? {
            let entry = entry.to(Action::List, &self.path)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if let Err(Errno::NOENT) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                let stat = statat(image, name, AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.to(Action::Read, &self.path)?;
                self.path.truncate(level.length);
                self.append(name)?;
                let entry = Entry {
                    change: Change::Modified,
                    ..describe::entry(self.path.clone(), Kind::Whiteout, &stat)
                };
                self.sender.send(&Item::Entry(entry))?;
            }
        }
        self.path.truncate(level.length);
        Ok(())
    }
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the types differ between architectures"
)]
fn is_apparition(folder: &OwnedFd) -> Result<bool, Errno> {
    let kind = fstatfs(folder)?.f_type as u64;
    Ok(APPARITIONS.contains(&kind))
}
