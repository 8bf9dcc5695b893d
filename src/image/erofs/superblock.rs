//! The superblock (`struct erofs_super_block`): 128 bytes, 1 KiB into the image.

use super::layout::Layout;
use super::{BLOCK, Body, Inode};

/// Where it lies.
pub const OFFSET: usize = 1024;
/// How long it is.
pub const SIZE: usize = 128;

const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum; times are those of modification.
const COMPATIBLE: u32 = 0x1 | 0x2;
/// Some files are cut into chunks.
const INCOMPATIBLE_CHUNKS: u32 = 0x4;

/// Puts the superblock into the first block of the image, whose other bytes its checksum covers.
pub fn encode(
    layout: &Layout,
    inodes: &[Inode<'_>],
    blocks: u32,
    first: &mut [u8; BLOCK as usize],
) {
    let chunks = inodes
        .iter()
        .any(|inode| matches!(inode.body, Body::Chunks { .. }));
    let mut put = |at: usize, bytes: &[u8]| {
        first[OFFSET + at..OFFSET + at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPATIBLE.to_le_bytes());
    put(12, &[BLOCK.ilog2() as u8]);
    put(14, &(layout.nid(0) as u16).to_le_bytes());
    put(16, &(inodes.len() as u64).to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(
        80,
        &(if chunks { INCOMPATIBLE_CHUNKS } else { 0 }).to_le_bytes(),
    );
    let checksum = crc32c(&first[OFFSET..]);
    first[OFFSET + 4..OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// CRC-32C with all bits set at first and not inverted at the end, as Linux's `crc32c(~0, ...)`. Three KiB are
/// all it ever sees, so a table would cost more than it saves.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, B.4, without the final inversion.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
