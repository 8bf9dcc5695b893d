//! Guest memory: one memfd mapped shared, below and above the hole for devices.
//!
//! It deliberately hands out no reference into the guest's memory: vm-memory's volatile slices are
//! the only way to it, and what is read through them is copied once, then validated, then used.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, mmap::FromRangesError};

use crate::config::VmConfig;

/// All of a guest's memory, shared by vCPUs and devices.
pub type GuestMemory = Arc<GuestMemoryMmap>;

/// Where the hole below 4 GiB begins. It takes the devices, the interrupt controllers and KVM's
/// own pages; memory that does not fit below it goes on at [`HOLE_END`].
pub const HOLE_START: u64 = 3 << 30;
/// The first address above the hole.
pub const HOLE_END: u64 = 4 << 30;

/// Most guest memory in bytes: what fits under 1 TiB, the least that any x86-64 with hardware
/// virtualization can address in a guest.
const MAX_MEMORY: u64 = (1 << 40) - (HOLE_END - HOLE_START);

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Not a size this machine can have.
    #[error(
        "guest memory of {0} bytes is not a multiple of 4096 from {least} to {MAX_MEMORY}",
        least = VmConfig::MIN_MEMORY
    )]
    Size(u64),
    /// The memfd could not be looked at.
    #[error("cannot find out the size of the guest memory's memfd")]
    Stat(#[source] io::Error),
    /// Touching what lies beyond a file's end would kill the process.
    #[error("the memfd for {wanted} bytes of guest memory has {actual}")]
    MemfdSize {
        /// As configured.
        wanted: u64,
        /// As it is.
        actual: u64,
    },
    /// `mmap(2)` and what surrounds it.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// As configured.
        bytes: u64,
        /// From vm-memory.
        #[source]
        source: FromRangesError,
    },
}

/// Maps `bytes` of `memfd` as guest memory.
///
/// # Errors
///
/// For a size out of range, a memfd of another size, or when the host cannot map it.
pub(crate) fn map(memfd: OwnedFd, bytes: u64) -> Result<GuestMemory, MemoryError> {
    if !(VmConfig::MIN_MEMORY..=MAX_MEMORY).contains(&bytes) || !bytes.is_multiple_of(4096) {
        return Err(MemoryError::Size(bytes));
    }
    let file = File::from(memfd);
    let actual = file.metadata().map_err(MemoryError::Stat)?.len();
    if actual != bytes {
        return Err(MemoryError::MemfdSize {
            wanted: bytes,
            actual,
        });
    }
    let file = Arc::new(file);
    let ranges = ranges(bytes).into_iter().map(|(start, length, offset)| {
        let offset = FileOffset::from_arc(file.clone(), offset);
        (GuestAddress(start), length as usize, Some(offset))
    });
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges)
        .map_err(|source| MemoryError::Map { bytes, source })?;
    Ok(Arc::new(memory))
}

/// `(guest address, bytes, offset in the memfd)` of each run of memory.
fn ranges(bytes: u64) -> Vec<(u64, u64, u64)> {
    let low = bytes.min(HOLE_START);
    let mut ranges = vec![(0, low, 0)];
    if bytes > low {
        ranges.push((HOLE_END, bytes - low, low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    fn memfd(bytes: u64) -> OwnedFd {
        let memfd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memfd, i64::try_from(bytes).unwrap()).unwrap();
        memfd
    }

    #[test]
    fn memory_past_3_gib_goes_on_above_the_hole() {
        let memory = map(memfd(4 << 30), 4 << 30).unwrap();

        assert_eq!(memory.num_regions(), 2);
        assert_eq!(memory.last_addr(), GuestAddress((5 << 30) - 1));
        assert!(memory.find_region(GuestAddress(HOLE_START)).is_none());
        memory.write_obj(7u8, GuestAddress(HOLE_END)).unwrap();
        memory.write_obj(8u8, GuestAddress(HOLE_START - 1)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(HOLE_END)).unwrap(), 7);
    }

    #[test]
    fn a65_sizes_out_of_range_are_refused() {
        for bytes in [0, 1 << 20, (32 << 20) + 1, 10 << 40, u64::MAX] {
            let error = map(memfd(0), bytes).unwrap_err();
            assert!(matches!(error, MemoryError::Size(size) if size == bytes));
        }
    }

    #[test]
    fn a_memfd_of_another_size_is_refused() {
        let error = map(memfd(32 << 20), 64 << 20).unwrap_err();
        assert!(matches!(error, MemoryError::MemfdSize { .. }));
    }
}
