//! Files on the wire: what the host asks about a container's files, and the form in which trees of files
//! travel, either way, over a stream of their own.
//!
//! Such a stream is frames of [`Item`]s. Behind a [`Item::Entry`] of a regular file follow the bytes of its extents,
//! one extent after the other, and nothing else. An archive format would do as well; this one has each bound in
//! one place ([`Entry::check`]), says holes and deletions plainly, and leaves archives to the host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest path of an entry in bytes: what Linux lets a program name at once (`PATH_MAX`).
pub const MAX_PATH: usize = 4096;

/// Longest name of one file or folder in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Most extents that one file is told in; what lies behind the last but one is told as a single extent.
pub const MAX_EXTENTS: usize = 1 << 16;

/// Most bytes that names and values of extended attributes of one file have together.
pub const MAX_XATTRS: usize = 256 << 10;

/// What the host wants with files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilesOrder {
    /// Send what a path leads to, and everything below. The first entry, with an empty path, is the thing itself.
    Read {
        /// Path in the container.
        path: Vec<u8>,
        /// Whether a link at its end is followed; it is where the path ends with a slash.
        follow: bool,
    },
    /// Say what a path leads to ([`Item::Found`]), then take entries and put them there, or below it.
    Write {
        /// Path in the container.
        path: Vec<u8>,
    },
    /// Send the whole root file system, without what is mounted in it.
    Export,
    /// Send what the container has changed of its image.
    Changes {
        /// With contents, as a layer has them; else only what there is to be told of each path.
        contents: bool,
        /// Let nothing in the container run meanwhile.
        pause: bool,
    },
}

/// One frame of a stream of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// What is where entries shall go.
    Found(Found),
    /// A file or folder.
    Entry(Entry),
    /// All was sent, or put in its place.
    End {
        /// What was left out: sockets, and files that vanished meanwhile.
        left_out: u64,
    },
    /// It could not be done.
    Failed {
        /// What was tried.
        action: Action,
        /// On what; at most [`MAX_PATH`] bytes.
        path: Vec<u8>,
        /// `errno` of the failed call, or 0.
        errno: i32,
    },
}

/// What was tried on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Action {
    Find,
    Read,
    List,
    Write,
    CreateFolder,
    CreateFile,
    CreateLink,
    CreateDevice,
    SetAttributes,
    /// A folder where something else shall be, or the other way round.
    Replace,
    /// What arrived is no stream of files.
    Receive,
}

impl fmt::Display for Action {
    /// As in "cannot read x".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Find => "find",
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
            Self::CreateFolder => "create the folder",
            Self::CreateFile => "create",
            Self::CreateLink => "create the link",
            Self::CreateDevice => "create the device or pipe",
            Self::SetAttributes => "set the attributes of",
            Self::Replace => "put a folder over something else, or something else over the folder",
            Self::Receive => "understand what was sent for",
        })
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// A folder, perhaps at the end of links.
    Folder,
    /// Something else.
    Other,
    /// Nothing, in a folder that is there.
    Nothing,
}

/// A file or folder, without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where, without a leading slash; empty for the thing itself that was asked for.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky: at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last changed.
    pub mtime: Mtime,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
    /// How it differs from the image; `Added` where nobody asked.
    pub change: Change,
}

/// A moment, since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtime {
    /// Seconds, negative before.
    pub seconds: i64,
    /// Less than a billion.
    pub nanoseconds: u32,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Whole name, such as `user.x`.
    pub name: Vec<u8>,
    /// Any bytes.
    pub value: Vec<u8>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A folder.
    Folder {
        /// Nothing that the image has in it is there.
        opaque: bool,
    },
    /// A regular file, whose content follows.
    File {
        /// Its size in bytes.
        size: u64,
        /// What of it is not a hole, in rising order.
        extents: Vec<Extent>,
    },
    /// Another name of a file that came before, at this path.
    HardLink(Vec<u8>),
    /// A symbolic link to anything.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// Something that the image has is gone.
    Whiteout,
}

/// Number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// A piece of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

/// How an entry differs from what the image has at its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The image has nothing there.
    Added,
    /// It has something else.
    Modified,
    /// It has the same folder, but for the time at which something in it came or went.
    Touched,
    /// It has the same.
    Same,
}

/// Why an entry is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MalformedEntry {
    #[error("a path is not clean or too long")]
    Path,
    #[error("the target of a link is empty or too long")]
    Link,
    #[error("the extents of a file overlap, are out of order or leave it")]
    Extents,
    #[error("mode or time is out of range")]
    Attributes,
    #[error("the extended attributes are malformed or too long")]
    Xattrs,
}

impl Entry {
    /// Checks all that whoever uses an entry counts on, as the fields say it.
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn check(&self) -> Result<(), MalformedEntry> {
        if !is_clean(&self.path) {
            return Err(MalformedEntry::Path);
        }
        if self.mode > 0o7777 || self.mtime.nanoseconds >= 1_000_000_000 {
            return Err(MalformedEntry::Attributes);
        }
        let mut bytes = 0;
        for Xattr { name, value } in &self.xattrs {
            bytes += name.len() + value.len();
            if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) || bytes > MAX_XATTRS {
                return Err(MalformedEntry::Xattrs);
            }
        }
        match &self.kind {
            Kind::File { size, extents } => check_extents(*size, extents),
            Kind::HardLink(target) if target.is_empty() || !is_clean(target) => {
                Err(MalformedEntry::Link)
            }
            Kind::Symlink(target)
                if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) =>
            {
                Err(MalformedEntry::Link)
            }
            _ => Ok(()),
        }
    }

    /// Bytes that follow it.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        match &self.kind {
            // Checked not to overflow.
            Kind::File { extents, .. } => extents.iter().map(|extent| extent.length).sum(),
            _ => 0,
        }
    }
}

/// Whether a path has only names, divided by single slashes; the empty one has none.
#[must_use]
pub fn is_clean(path: &[u8]) -> bool {
    let is_name =
        |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && name.len() <= MAX_NAME;
    path.is_empty()
        || path.len() <= MAX_PATH
            && !path.contains(&0)
            && path.split(|byte| *byte == b'/').all(is_name)
}

fn check_extents(size: u64, extents: &[Extent]) -> Result<(), MalformedEntry> {
    let mut end = 0;
    let in_order = extents.iter().all(|extent| {
        let begins = extent.offset >= end;
        match extent.offset.checked_add(extent.length) {
            Some(next) if begins && extent.length > 0 => {
                end = next;
                true
            }
            _ => false,
        }
    });
    let in_range = end <= size && i64::try_from(size).is_ok();
    if in_order && in_range && extents.len() <= MAX_EXTENTS {
        Ok(())
    } else {
        Err(MalformedEntry::Extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            xattrs: Vec::new(),
            change: Change::Added,
        }
    }

    #[test]
    fn a23_only_clean_paths_are_entries() {
        for path in ["", "a", "a/b", "...", "a/..b"] {
            assert_eq!(entry(path, Kind::Fifo).check(), Ok(()), "{path}");
        }
        let long = "x/".repeat(2100) + "x";
        let name = "x".repeat(256);
        for path in [
            "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0", &long, &name,
        ] {
            let checked = entry(path, Kind::Fifo).check();
            assert_eq!(checked, Err(MalformedEntry::Path), "{path}");
            let link = entry("l", Kind::HardLink(path.into())).check();
            assert_eq!(link, Err(MalformedEntry::Link), "{path}");
        }
        assert!(entry("l", Kind::Symlink(Vec::new())).check().is_err());
        assert!(entry("l", Kind::Symlink(vec![b'x'; 4096])).check().is_err());
        assert!(entry("l", Kind::Symlink(b"../../x".into())).check().is_ok());
    }

    #[test]
    fn extents_rise_inside_their_file() {
        let file = |size, extents: &[(u64, u64)]| {
            let extents = extents
                .iter()
                .map(|&(offset, length)| Extent { offset, length });
            let extents = extents.collect();
            entry("f", Kind::File { size, extents }).check().is_ok()
        };
        assert!(file(10, &[(0, 4), (4, 2), (8, 2)]));
        assert!(file(1 << 60, &[]));
        assert!(!file(10, &[(0, 11)]));
        assert!(!file(10, &[(4, 2), (0, 1)]));
        assert!(!file(10, &[(0, 4), (3, 1)]));
        assert!(!file(10, &[(0, 0)]));
        assert!(!file(u64::MAX, &[(u64::MAX, 1)]));
        assert!(!file(u64::MAX, &[]));
    }
}
