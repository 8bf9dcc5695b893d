//! Sparse files: the maps of GNU tar and the chunks that they become.

use super::archive::ArchiveError;
use super::index::Run;

/// Bytes of a block of the file system.
pub const BLOCK: u64 = 4096;
/// Most extents of one file, so that a map takes at most 4 MiB of memory.
pub const MAX_EXTENTS: usize = 1 << 18;
/// Most chunks of one file; larger files get larger chunks.
pub const MAX_CHUNKS: u64 = 1 << 18;
/// Largest chunk that the format can say: 2^31 blocks.
pub const MAX_CHUNK_BITS: u8 = 12 + 31;

/// A piece of a sparse file that is not a hole, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// Checks a map: rising, inside the file, and as long as what is stored.
///
/// # Errors
///
/// When it is not.
pub fn check(map: &[Extent], size: u64, stored: u64) -> Result<(), ArchiveError> {
    if map.len() > MAX_EXTENTS {
        return Err(ArchiveError::SparseMapSize);
    }
    let mut end = 0;
    let mut total = 0u64;
    for extent in map {
        if extent.offset < end {
            return Err(ArchiveError::Sparse);
        }
        end = extent
            .offset
            .checked_add(extent.length)
            .filter(|&end| end <= size)
            .ok_or(ArchiveError::Sparse)?;
        total += extent.length;
    }
    if total != stored {
        return Err(ArchiveError::Sparse);
    }
    Ok(())
}

/// A sparse file cut into chunks of one size, each of which is a hole or wholly stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Binary logarithm of the chunk size in bytes.
    pub bits: u8,
    /// Number of chunks, holes among them.
    pub count: u64,
    /// The stored ones.
    pub runs: Vec<Run>,
    /// First block behind the file's last.
    pub end: u64,
}

/// Lays the chunks that a checked map touches one behind the other from block `start` of `data` on.
///
/// # Errors
///
/// When the file is larger than the format allows.
pub fn lay_out(map: &[Extent], size: u64, start: u64) -> Result<Chunks, ArchiveError> {
    let mut bits = 12;
    while size.div_ceil(1 << bits) > MAX_CHUNKS {
        bits += 1;
    }
    if bits > MAX_CHUNK_BITS {
        return Err(ArchiveError::SparseMapSize);
    }
    let blocks = size.div_ceil(BLOCK);
    let per_chunk = 1u64 << (bits - 12);
    let mut runs: Vec<Run> = Vec::new();
    let mut next = 0;
    let mut end = start;
    for extent in map.iter().filter(|extent| extent.length > 0) {
        let first = (extent.offset >> bits).max(next);
        let last = (extent.offset + extent.length - 1) >> bits;
        if first > last {
            continue;
        }
        let run = Run {
            // Both are under MAX_CHUNKS.
            chunk: first as u32,
            count: (last - first + 1) as u32,
            block: u32::try_from(end).map_err(|_| ArchiveError::SparseMapSize)?,
        };
        end += ((last + 1) * per_chunk).min(blocks) - first * per_chunk;
        match runs.last_mut() {
            Some(before) if before.chunk + before.count == run.chunk => before.count += run.count,
            _ => runs.push(run),
        }
        next = last + 1;
    }
    Ok(Chunks {
        bits,
        count: size.div_ceil(1 << bits),
        runs,
        end,
    })
}

impl Chunks {
    /// Position in `data`, in bytes, of a byte of the file that lies in a stored chunk.
    #[must_use]
    pub fn position(&self, offset: u64) -> Option<u64> {
        let chunk = offset >> self.bits;
        let after = self
            .runs
            .partition_point(|run| u64::from(run.chunk) <= chunk);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let start = u64::from(run.chunk) << self.bits;
        (chunk < u64::from(run.chunk) + u64::from(run.count))
            .then(|| u64::from(run.block) * BLOCK + (offset - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { offset, length }
    }

    #[test]
    fn maps_are_checked() {
        assert!(check(&[extent(0, 5), extent(5, 5), extent(20, 0)], 20, 10).is_ok());
        assert!(check(&[extent(5, 5), extent(0, 5)], 20, 10).is_err());
        assert!(check(&[extent(0, 6), extent(5, 5)], 20, 11).is_err());
        assert!(check(&[extent(15, 6)], 20, 6).is_err());
        assert!(check(&[extent(u64::MAX, 2)], u64::MAX, 2).is_err());
        assert!(check(&[extent(0, 5)], 20, 6).is_err());
    }

    #[test]
    fn a28_a_huge_file_has_a_small_table() {
        let size = (1 << 60) - 1;
        let chunks = lay_out(&[extent(size - 1, 1)], size, 0).unwrap();
        assert!(chunks.count <= MAX_CHUNKS);
        assert!(lay_out(&[], u64::MAX, 0).is_err());
    }

    proptest! {
        #[test]
        fn every_stored_byte_has_its_own_place(gaps in prop::collection::vec((0u64..20_000, 0u64..20_000), 0..20), large: bool) {
            let mut map = Vec::new();
            let mut at = 0;
            for (hole, length) in gaps {
                at += hole;
                map.push(extent(at, length));
                at += length;
            }
            let size = if large { at + (3 << 31) } else { at };
            let chunks = lay_out(&map, size, 7).unwrap();
            let mut last = None;
            for byte in map.iter().filter(|e| e.length > 0).flat_map(|e| [e.offset, e.offset + e.length - 1]) {
                let position = chunks.position(byte).unwrap();
                prop_assert!(position >= 7 * BLOCK && position < chunks.end * BLOCK);
                prop_assert_eq!(position % BLOCK, byte % BLOCK);
                prop_assert!(last.is_none_or(|(b, p)| (b == byte && p == position) || (b < byte && p < position)));
                last = Some((byte, position));
            }
            for run in chunks.runs.windows(2) {
                prop_assert!(run[0].chunk + run[0].count < run[1].chunk);
            }
        }
    }
}
