//! Extended attributes behind an inode (`struct erofs_xattr_ibody_header`, `struct erofs_xattr_entry`).

use crate::image::layer::index::Xattr;

/// The header in front of the entries: all zero, as no attribute is shared between inodes.
const HEADER: usize = 12;
/// A name of this prefix is stored as its number and the rest; the ACLs are prefixes with nothing behind.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Bytes that attributes take, a multiple of 4; zero without any.
#[must_use]
pub fn size(xattrs: &[Xattr<'_>]) -> usize {
    let entries: usize = entries(xattrs)
        .map(|(_, name, value)| entry_size(name, value))
        .sum();
    if entries == 0 { 0 } else { HEADER + entries }
}

/// What an inode says of `size` bytes of attributes.
#[must_use]
pub fn count(size: usize) -> u16 {
    match size {
        0 => 0,
        size => ((size - HEADER) / 4 + 1) as u16,
    }
}

/// Writes the attributes.
pub fn encode(xattrs: &[Xattr<'_>], output: &mut Vec<u8>) {
    if size(xattrs) == 0 {
        return;
    }
    output.extend_from_slice(&[0; HEADER]);
    for (prefix, name, value) in entries(xattrs) {
        let end = output.len() + entry_size(name, value);
        output.push(name.len() as u8);
        output.push(prefix);
        output.extend_from_slice(&(value.len() as u16).to_le_bytes());
        output.extend_from_slice(name);
        output.extend_from_slice(value);
        output.resize(end, 0);
    }
}

fn entries<'a>(xattrs: &'a [Xattr<'a>]) -> impl Iterator<Item = (u8, &'a [u8], &'a [u8])> {
    xattrs.iter().filter_map(|&(name, value)| {
        let storable = name.len() <= 255 && value.len() <= usize::from(u16::MAX);
        let (prefix, rest) = PREFIXES
            .iter()
            .find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)))?;
        storable.then_some((prefix, rest, value))
    })
}

fn entry_size(name: &[u8], value: &[u8]) -> usize {
    (4 + name.len() + value.len()).next_multiple_of(4)
}
