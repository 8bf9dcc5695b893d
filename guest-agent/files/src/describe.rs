//! From a file to the entry that says all of it but its content.

use std::os::fd::{AsFd, BorrowedFd};

use protocol::files::{Change, Device, Entry, Extent, Kind, MAX_EXTENTS, MAX_XATTRS, Mtime, Xattr};
use rustix::{
    buffer::spare_capacity,
    fs::{FileType, SeekFrom, Stat, fgetxattr, flistxattr, major, minor, seek},
    io::Errno,
};

/// Attributes that overlayfs keeps for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// That a folder hides what lies below it.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// What may be told of a file's extended attributes; the rest is about this machine.
const TOLD: [&[u8]; 4] = [
    b"user.",
    b"trusted.",
    b"security.capability",
    b"system.posix_acl_",
];

/// An entry of this kind, with what `stat` says.
pub fn entry(path: Vec<u8>, kind: Kind, stat: &Stat) -> Entry {
    Entry {
        path,
        kind,
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime(stat),
        xattrs: Vec::new(),
        change: Change::Added,
    }
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the types differ between architectures"
)]
fn mtime(stat: &Stat) -> Mtime {
    Mtime {
        seconds: stat.st_mtime as i64,
        nanoseconds: (stat.st_mtime_nsec as u32).min(999_999_999),
    }
}

/// What kind of file it is, where `stat` alone says that: not for regular files, links and folders.
pub fn special(stat: &Stat) -> Option<Kind> {
    let device = Device {
        major: major(stat.st_rdev),
        minor: minor(stat.st_rdev),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Some(Kind::CharDevice(device)),
        FileType::BlockDevice => Some(Kind::BlockDevice(device)),
        FileType::Fifo => Some(Kind::Fifo),
        _ => None,
    }
}

/// A regular file's size, and what of it is not a hole.
pub fn regular(file: BorrowedFd<'_>, stat: &Stat) -> Kind {
    let size = stat.st_size.max(0).cast_unsigned();
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
    let dense = blocks.saturating_mul(512) >= size;
    let extents = match dense {
        true => Err(Errno::NOTSUP),
        false => extents(file, size),
    };
    // Where holes cannot be told, there are none.
    let extents = extents.unwrap_or_else(|_| match size {
        0 => Vec::new(),
        length => vec![Extent { offset: 0, length }],
    });
    Kind::File { size, extents }
}

fn extents(file: BorrowedFd<'_>, size: u64) -> Result<Vec<Extent>, Errno> {
    let mut extents = Vec::new();
    let mut position = 0;
    while position < size {
        let offset = match seek(file, SeekFrom::Data(position)) {
            Ok(offset) => offset,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let end = match extents.len() + 1 {
            MAX_EXTENTS => size,
            _ => seek(file, SeekFrom::Hole(offset))?.min(size),
        };
        if offset >= end {
            break;
        }
        extents.push(Extent {
            offset,
            length: end - offset,
        });
        position = end;
    }
    Ok(extents)
}

/// The attributes that are told, and whether a folder hides what lies below it.
pub fn xattrs(file: BorrowedFd<'_>) -> Result<(Vec<Xattr>, bool), Errno> {
    let mut names = Vec::with_capacity(1 << 16);
    match flistxattr(file, spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(Errno::NOTSUP) => return Ok((Vec::new(), false)),
        Err(error) => return Err(error),
    }
    let mut told = Vec::new();
    let mut opaque = false;
    let mut bytes = 0;
    for name in names.split(|byte| *byte == 0) {
        if name == OPAQUE {
            opaque = value(file, name)? == b"y";
        }
        if name.starts_with(OVERLAY) || !TOLD.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let value = match value(file, name) {
            Err(Errno::NODATA) => continue,
            value => value?,
        };
        bytes += name.len() + value.len();
        if bytes > MAX_XATTRS {
            return Err(Errno::TOOBIG);
        }
        told.push(Xattr {
            name: name.to_vec(),
            value,
        });
    }
    Ok((told, opaque))
}

fn value(file: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut value = Vec::with_capacity(1 << 16);
    fgetxattr(file.as_fd(), name, spare_capacity(&mut value))?;
    value.shrink_to_fit();
    Ok(value)
}

/// How what is at a path differs from what the image has there, as Docker sees it: by all that stat(2) says but the times
/// of access and of the inode.
pub fn change(now: &Stat, image: Option<&Stat>) -> Change {
    let Some(image) = image else {
        return Change::Added;
    };
    let is_folder = FileType::from_raw_mode(now.st_mode) == FileType::Directory;
    let attributes = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    let same_size = is_folder || now.st_size == image.st_size;
    if attributes(now) != attributes(image) || !same_size {
        Change::Modified
    } else if mtime(now) == mtime(image) {
        Change::Same
    } else if is_folder {
        Change::Touched
    } else {
        Change::Modified
    }
}
