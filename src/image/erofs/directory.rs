//! Folders: blocks of sorted names (`struct erofs_dirent`).

use super::layout::Layout;
use super::{BLOCK, Dirent, Inode};

/// Bytes of an entry without its name.
const DIRENT: usize = 12;

/// Cuts the entries of a folder into the groups that share a block each.
pub fn groups<'a, 'b>(entries: &'b [Dirent<'a>]) -> impl Iterator<Item = &'b [Dirent<'a>]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fit = rest
            .iter()
            .take_while(|entry| {
                bytes += DIRENT + entry.name.len();
                bytes <= BLOCK as usize
            })
            .count();
        let group;
        (group, rest) = rest.split_at(fit);
        (fit > 0).then_some(group)
    })
}

/// Bytes that a group takes.
#[must_use]
pub fn size(group: &[Dirent<'_>]) -> usize {
    group.iter().map(|entry| DIRENT + entry.name.len()).sum()
}

/// Writes a group: its entries, then its names.
pub fn encode(group: &[Dirent<'_>], inodes: &[Inode<'_>], layout: &Layout, output: &mut Vec<u8>) {
    let mut name = DIRENT * group.len();
    for entry in group {
        output.extend_from_slice(&layout.nid(entry.inode).to_le_bytes());
        output.extend_from_slice(&(name as u16).to_le_bytes());
        output.push(file_type(inodes[entry.inode as usize].mode));
        output.push(0);
        name += entry.name.len();
    }
    for entry in group {
        output.extend_from_slice(entry.name);
    }
}

/// The number that says a file's type (`EROFS_FT_*`), from `st_mode`.
fn file_type(mode: u16) -> u8 {
    match mode >> 12 {
        0o10 => 1,
        0o4 => 2,
        0o2 => 3,
        0o6 => 4,
        0o1 => 5,
        0o14 => 6,
        0o12 => 7,
        _ => 0,
    }
}
