//! What a container has changed of its image, path by path.

use std::path::Path;

use protocol::files::{Change, Entry, FilesOrder, Kind};

use super::{FileWorkError, Work};
use crate::container::{name::Id, state::Containers};

/// Most bytes of paths that are held.
const MAX_BYTES: usize = 256 << 20;

/// What pillbug itself makes in a root file system where the image lacks it, for something to be mounted on.
const MOUNT_POINTS: [&[u8]; 6] = [
    b"dev",
    b"proc",
    b"sys",
    b"etc/hostname",
    b"etc/hosts",
    b"etc/resolv.conf",
];

/// One path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Changed {
    /// Absolute.
    pub path: Vec<u8>,
    /// How it changed.
    pub how: How,
}

/// How a path changed, in Docker's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// `A`.
    Added,
    /// `C`; a folder also where something in it did.
    Changed,
    /// `D`; a folder with all that was in it.
    Deleted,
}

impl How {
    /// Docker's letter.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// All changes of a container, by path.
///
/// # Errors
///
/// Where its guest cannot tell them.
pub fn changes(
    state_root: &Path,
    containers: &Containers,
    id: &Id,
) -> Result<Vec<Changed>, FileWorkError> {
    let order = FilesOrder::Changes {
        contents: false,
        pause: false,
    };
    let work = Work::begin(state_root, containers, id, order)?;
    let mut receiver = work.receiver()?;
    let mut list = || {
        let mut listing = Listing::default();
        while let Ok(entry) = receiver.next_entry()? {
            listing.add(&entry)?;
        }
        listing.found.sort();
        Ok(listing.found)
    };
    let listed = list();
    work.finish(listed)
}

/// Whether an entry is only there for something to be mounted on.
#[must_use]
pub fn is_mount_point(entry: &Entry) -> bool {
    let is_empty = match entry.kind {
        Kind::Folder { .. } => true,
        Kind::File { size, .. } => size == 0,
        _ => false,
    };
    is_empty && entry.change == Change::Added && MOUNT_POINTS.contains(&entry.path.as_slice())
}

/// Changes as they come in: folders before what is in them.
#[derive(Default)]
struct Listing {
    found: Vec<Changed>,
    /// Folders on the way to the last entry that have not changed by themselves.
    above: Vec<Vec<u8>>,
    bytes: usize,
}

impl Listing {
    fn add(&mut self, entry: &Entry) -> Result<(), FileWorkError> {
        let path = entry.path.as_slice();
        while let Some(folder) = self.above.last() {
            let rest = path.strip_prefix(folder.as_slice());
            if rest.is_some_and(|rest| rest.starts_with(b"/")) {
                break;
            }
            self.above.pop();
        }
        if path.is_empty() {
            return Ok(());
        }
        let is_folder = matches!(entry.kind, Kind::Folder { .. });
        let how = match (&entry.kind, entry.change) {
            (Kind::Whiteout, _) => Some(How::Deleted),
            _ if is_mount_point(entry) => None,
            (_, Change::Added) => Some(How::Added),
            (_, Change::Modified) => Some(How::Changed),
            // Mount points came into these.
            (_, Change::Touched) => (path != b"etc").then_some(How::Changed),
            (_, Change::Same) => None,
        };
        match how {
            Some(how) => {
                for folder in std::mem::take(&mut self.above) {
                    self.push(&folder, How::Changed)?;
                }
                self.push(path, how)
            }
            None if is_folder => {
                self.above.push(path.to_vec());
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn push(&mut self, path: &[u8], how: How) -> Result<(), FileWorkError> {
        self.bytes += path.len() + size_of::<Changed>();
        if self.bytes > MAX_BYTES {
            return Err(FileWorkError::TooManyChanges);
        }
        let path = [b"/", path].concat();
        self.found.push(Changed { path, how });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use protocol::files::Mtime;

    use super::*;

    #[test]
    fn a_folder_is_told_with_what_changed_in_it_and_mount_points_are_not() {
        let folder = Kind::Folder { opaque: false };
        let file = Kind::File {
            size: 0,
            extents: Vec::new(),
        };
        let mut listing = Listing::default();
        for (path, kind, change) in [
            ("", folder.clone(), Change::Touched),
            ("etc", folder.clone(), Change::Touched),
            ("etc/hosts", file.clone(), Change::Added),
            ("etc/deep", folder.clone(), Change::Same),
            ("etc/deep/er", folder.clone(), Change::Same),
            ("etc/deep/er/file", file.clone(), Change::Modified),
            ("proc", folder.clone(), Change::Added),
            ("same", folder.clone(), Change::Same),
            ("same/file", file.clone(), Change::Same),
            ("tmp", folder.clone(), Change::Touched),
            ("tmp/new", file, Change::Added),
            ("var", Kind::Whiteout, Change::Modified),
        ] {
            let entry = Entry {
                path: path.into(),
                kind,
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: Mtime::default(),
                xattrs: Vec::new(),
                change,
            };
            listing.add(&entry).unwrap();
        }
        let lines: Vec<String> = listing
            .found
            .iter()
            .map(|one| {
                format!(
                    "{} {}",
                    one.how.letter(),
                    String::from_utf8_lossy(&one.path)
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                "C /etc",
                "C /etc/deep",
                "C /etc/deep/er",
                "C /etc/deep/er/file",
                "C /tmp",
                "A /tmp/new",
                "D /var",
            ]
        );
    }
}
