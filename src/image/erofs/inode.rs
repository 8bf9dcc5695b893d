//! Inodes (`struct erofs_inode_extended`) and the chunk tables behind some.

use super::layout::Place;
use super::{BLOCK, Body, Inode, xattr};
use crate::image::layer::index::Run;

/// Bytes of an extended inode.
pub const SIZE: u64 = 64;
/// The unit in which inodes are numbered.
pub const SLOT: u64 = 32;

/// Bit that tells an extended inode from a compact one.
const EXTENDED: u16 = 1;
/// Layouts, in bits 1 to 3: in blocks; in blocks but for an end behind the inode; in chunks.
const FLAT_PLAIN: u16 = 0 << 1;
const FLAT_INLINE: u16 = 2 << 1;
const CHUNK_BASED: u16 = 4 << 1;
/// What every byte of the address of a hole is.
const HOLE: u8 = 0xff;

/// Writes the inode whose position in the list is `number`; data lies behind `metadata` blocks.
pub fn encode(inode: &Inode<'_>, number: u32, place: &Place, metadata: u64, output: &mut Vec<u8>) {
    let (layout, address) = match &inode.body {
        // The layout has checked that all blocks have numbers under 2^32.
        Body::Extent { block, .. } => (FLAT_PLAIN, (metadata + block) as u32),
        Body::Chunks { bits, .. } => (CHUNK_BASED, u32::from(bits - 12)),
        Body::Node(device) => (FLAT_PLAIN, *device),
        Body::Directory(_) | Body::Inline(_) => {
            let layout = if place.inline {
                FLAT_INLINE
            } else {
                FLAT_PLAIN
            };
            (layout, place.block as u32)
        }
    };
    let mut put = |bytes: &[u8]| output.extend_from_slice(bytes);
    put(&(EXTENDED | layout).to_le_bytes());
    put(&xattr::count(xattr::size(inode.xattrs)).to_le_bytes());
    put(&inode.mode.to_le_bytes());
    put(&[0; 2]);
    put(&place.size.to_le_bytes());
    put(&address.to_le_bytes());
    // Read by 32-bit kernels alone.
    put(&(number + 1).to_le_bytes());
    put(&inode.uid.to_le_bytes());
    put(&inode.gid.to_le_bytes());
    put(&inode.mtime.seconds.to_le_bytes());
    put(&inode.mtime.nanoseconds.to_le_bytes());
    put(&inode.nlink.to_le_bytes());
    put(&[0; 16]);
}

/// Number of chunks of a file.
#[must_use]
pub fn chunks(size: u64, bits: u8) -> u64 {
    size.div_ceil(1 << bits)
}

/// Writes the address of every chunk of a file, whose runs count from block `base` of the image.
pub fn encode_chunks(size: u64, bits: u8, runs: &[Run], base: u64, output: &mut Vec<u8>) {
    let table = output.len();
    output.resize(table + 4 * chunks(size, bits) as usize, HOLE);
    let blocks_per_chunk = (1u64 << bits) / BLOCK;
    for run in runs {
        for nth in 0..run.count {
            let at = table + 4 * (run.chunk + nth) as usize;
            let block = base + u64::from(run.block) + u64::from(nth) * blocks_per_chunk;
            output[at..at + 4].copy_from_slice(&(block as u32).to_le_bytes());
        }
    }
}
