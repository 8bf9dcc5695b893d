//! Guest memory: one memfd mapped shared, below and above the hole for devices.
//!
//! It deliberately hands out no reference into the guest's memory: vm-memory's volatile slices are
//! the only way to it, and what is read through them is copied once, then validated, then used.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use crate::config::VmConfig;

/// Bytes of a page, of guest and host.
pub const PAGE: u64 = 4096;

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
        "guest memory of {0} bytes is not a multiple of {PAGE} from {least} to {MAX_MEMORY}",
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
    if !(VmConfig::MIN_MEMORY..=MAX_MEMORY).contains(&bytes) || !bytes.is_multiple_of(PAGE) {
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

/// Why a file is not in guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MapFileError {
    /// There is no such memory.
    #[error("{bytes} bytes at {address:#x} are not guest memory in whole pages")]
    Range {
        /// Guest address.
        address: u64,
        /// Bytes.
        bytes: u64,
    },
    /// `mmap(2)`.
    #[error("mapping {bytes} bytes failed")]
    Mmap {
        /// Bytes.
        bytes: u64,
        /// From the system call.
        #[source]
        source: io::Error,
    },
}

/// Puts `bytes` from `offset` of `file` in place of guest memory at `address`, all of them whole
/// pages, without copying: a page is the guest's own from its first write on.
///
/// These pages leave the memfd: who maps that sees the zeroes below them.
///
/// # Errors
///
/// When the range is not memory in whole pages, or for those of `mmap(2)`.
pub(crate) fn map_file(
    memory: &GuestMemory,
    address: u64,
    bytes: u64,
    file: &File,
    offset: u64,
) -> Result<(), MapFileError> {
    let aligned = [address, bytes, offset]
        .iter()
        .all(|n| n.is_multiple_of(PAGE));
    let range = || MapFileError::Range { address, bytes };
    if bytes == 0 {
        return Ok(());
    }
    let slice = memory
        .get_slice(GuestAddress(address), bytes as usize)
        .ok()
        .filter(|_| aligned)
        .ok_or_else(range)?;
    let start = slice.ptr_guard_mut().as_ptr().cast();
    let offset = libc::off_t::try_from(offset).map_err(|_| range())?;
    // SAFETY: The range is inside of a mapping of guest memory, to which there are no references:
    // replacing its pages changes contents, as the guest may at any time. What unmaps guest memory
    // unmaps this too.
    let mapped = unsafe {
        libc::mmap(
            start,
            slice.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    match mapped == libc::MAP_FAILED {
        true => Err(MapFileError::Mmap {
            bytes,
            source: io::Error::last_os_error(),
        }),
        false => Ok(()),
    }
}

/// Gives the whole pages of `range` back to the host; they read as zeroes from then on. Those that are a file's (see
/// [`map_file`]) stay as they are, and what the host does not take stays too.
pub(crate) fn discard(range: &VolatileSlice<'_>) {
    let start = range.ptr_guard_mut().as_ptr() as usize;
    let (first, end) = (
        start.next_multiple_of(PAGE as usize),
        (start + range.len()) / PAGE as usize * PAGE as usize,
    );
    if first >= end {
        return;
    }
    // SAFETY: The range is inside of a mapping of guest memory, to which there are no references: this changes
    // contents, as the guest may at any time.
    let _ = unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_REMOVE) };
}

/// As [`discard`], for the guest's addresses; what is not memory is passed over.
pub(crate) fn discard_range(memory: &GuestMemory, address: u64, bytes: u64) {
    if let Ok(slice) = memory.get_slice(GuestAddress(address), bytes as usize) {
        discard(&slice);
    }
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
pub(crate) mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::Bytes;

    use super::*;

    fn memfd(bytes: u64) -> OwnedFd {
        let memfd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memfd, i64::try_from(bytes).unwrap()).unwrap();
        memfd
    }

    /// Memory of `bytes` bytes as a machine has it.
    pub fn guest(bytes: u64) -> GuestMemory {
        map(memfd(bytes), bytes).unwrap()
    }

    #[test]
    fn memory_past_3_gib_goes_on_above_the_hole() {
        let memory = guest(4 << 30);

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
    fn a_file_goes_only_where_memory_is() {
        let memory = guest(32 << 20);
        let file = File::from(memfd(8192));
        for (address, bytes) in [
            (32 << 20, 4096),
            ((32 << 20) - 4096, 8192),
            (HOLE_START, 4096),
            (100, 4096),
            (4096, 100),
            (u64::MAX - 4095, 4096),
        ] {
            let error = map_file(&memory, address, bytes, &file, 0).unwrap_err();
            assert!(matches!(error, MapFileError::Range { .. }), "{address:#x}");
        }
    }

    #[test]
    fn a_memfd_of_another_size_is_refused() {
        let error = map(memfd(32 << 20), 64 << 20).unwrap_err();
        assert!(matches!(error, MemoryError::MemfdSize { .. }));
    }
}
