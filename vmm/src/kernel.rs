//! Puts a Linux kernel and its initial RAM file system into guest memory.
//!
//! Whole pages are not copied but mapped, copy-on-write: a boot touches only part of them, and
//! what no guest writes is in memory once for all guests of a host. So the files must not change
//! while a machine runs; replacing one by renaming another over it is safe.

mod elf;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::memory::{self, GuestMemory, MapFileError, PAGE};
use crate::x86::boot::Initramfs;
use crate::x86::layout::HIGH_MEMORY;

pub use elf::ElfError;
use elf::Segment;

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not a kernel.
    #[error("cannot use the guest kernel; it has to be an ELF vmlinux for x86-64")]
    Elf(#[from] ElfError),
    /// It starts, or has a part, where there is no memory for it.
    #[error("the guest kernel needs memory up to {end:#x}, and the guest has it up to {memory:#x}")]
    Size {
        /// First address behind the part.
        end: u64,
        /// First address behind memory.
        memory: u64,
    },
    /// It has a part in the first MiB, which is for the boot tables.
    #[error("the guest kernel begins at {address:#x}, below 1 MiB")]
    LowMemory {
        /// Guest address.
        address: u64,
    },
    /// The initial RAM file system could not be looked at.
    #[error("cannot find out the size of the initramfs")]
    StatInitramfs(#[source] io::Error),
    /// There is no room for it behind the kernel.
    #[error("initramfs of {bytes} bytes does not fit into guest memory behind the kernel")]
    InitramfsSize {
        /// Its size.
        bytes: u64,
    },
    /// A file could not be read.
    #[error("cannot read the {what}")]
    Read {
        /// Which one.
        what: &'static str,
        /// From `pread(2)`.
        #[source]
        source: io::Error,
    },
    /// What was read does not go where it should.
    #[error("cannot write the {what} into guest memory")]
    Write {
        /// Which one.
        what: &'static str,
        /// From vm-memory.
        #[source]
        source: GuestMemoryError,
    },
    /// A file could not be mapped.
    #[error("cannot map the {what}")]
    Map {
        /// Which one.
        what: &'static str,
        /// From the mapping.
        #[source]
        source: MapFileError,
    },
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Guest address of its first instruction.
    pub entry: u64,
    /// First guest address behind it and its uninitialized data.
    pub end: u64,
}

/// Puts the ELF file `image` to where its program headers say.
///
/// # Errors
///
/// When it is none, or does not fit.
pub fn load(memory: &GuestMemory, image: OwnedFd) -> Result<Kernel, KernelError> {
    let image = File::from(image);
    let (entry, segments) = elf::read(&image)?;
    let available = memory_end(memory);
    let mut end = entry;
    for segment in &segments {
        let address = segment.address;
        if address < HIGH_MEMORY {
            return Err(KernelError::LowMemory { address });
        }
        end = end.max(address + segment.memory_bytes);
    }
    if end >= available {
        return Err(KernelError::Size {
            end,
            memory: available,
        });
    }
    for segment in segments {
        place(memory, &image, segment, "guest kernel")?;
    }
    Ok(Kernel { entry, end })
}

/// Puts `file` at the end of memory below the device hole, where the kernel is not.
///
/// # Errors
///
/// When it does not fit or cannot be read.
pub fn load_initramfs(
    memory: &GuestMemory,
    file: OwnedFd,
    kernel: Kernel,
) -> Result<Initramfs, KernelError> {
    let file = File::from(file);
    let bytes = file.metadata().map_err(KernelError::StatInitramfs)?.len();
    let address = memory_end(memory)
        .checked_sub(bytes)
        .map(|address| address & !(PAGE - 1))
        .filter(|address| *address >= kernel.end)
        .ok_or(KernelError::InitramfsSize { bytes })?;
    let all = Segment {
        offset: 0,
        address,
        file_bytes: bytes,
        memory_bytes: bytes,
    };
    place(memory, &file, all, "initramfs")?;
    // Both are below 3 GiB.
    Ok(Initramfs {
        address: address as u32,
        bytes: bytes as u32,
    })
}

/// First address behind memory below the hole.
fn memory_end(memory: &GuestMemory) -> u64 {
    (memory.last_addr().0 + 1).min(memory::HOLE_START)
}

/// Maps the whole pages of `segment` and copies what is left at its ends.
fn place(
    memory: &GuestMemory,
    file: &File,
    segment: Segment,
    what: &'static str,
) -> Result<(), KernelError> {
    let Segment {
        offset,
        address,
        file_bytes,
        ..
    } = segment;
    // Relative to the segment: where its first whole page begins and its last one ends.
    let head = (address.next_multiple_of(PAGE) - address).min(file_bytes);
    let tail = head + (file_bytes - head) / PAGE * PAGE;
    if (offset + head).is_multiple_of(PAGE) {
        memory::map_file(memory, address + head, tail - head, file, offset + head)
            .map_err(|source| KernelError::Map { what, source })?;
        copy(memory, file, (offset, address, head), what)?;
        let rest = file_bytes - tail;
        copy(memory, file, (offset + tail, address + tail, rest), what)
    } else {
        copy(memory, file, (offset, address, file_bytes), what)
    }
}

/// Copies `(offset, address, bytes)` of a file.
fn copy(
    memory: &GuestMemory,
    file: &File,
    (offset, address, bytes): (u64, u64, u64),
    what: &'static str,
) -> Result<(), KernelError> {
    let mut chunk = [0; 4 * PAGE as usize];
    let mut done = 0;
    while done < bytes {
        let count = (bytes - done).min(chunk.len() as u64);
        let chunk = &mut chunk[..count as usize];
        file.read_exact_at(chunk, offset + done)
            .map_err(|source| KernelError::Read { what, source })?;
        memory
            .write_slice(chunk, GuestAddress(address + done))
            .map_err(|source| KernelError::Write { what, source })?;
        done += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use vm_memory::GuestMemoryRegion;

    use super::*;
    use crate::memory::tests::guest;

    const MEMORY: u64 = 32 << 20;

    /// A file that is all headers and `body`; each segment is `(offset, address, file, memory)`.
    fn image(segments: &[(u64, u64, u64, u64)], body: &[u8]) -> OwnedFd {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
        bytes[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for &(offset, address, file, memory) in segments {
            bytes.extend(1u32.to_le_bytes());
            bytes.extend(0u32.to_le_bytes());
            for field in [offset, 0, address, file, memory, 0] {
                bytes.extend(field.to_le_bytes());
            }
        }
        bytes.resize(4096, 0);
        bytes.extend(body);
        file(&bytes)
    }

    fn file(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    fn bytes_at(memory: &GuestMemory, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Bytes that tell their position.
    fn pattern(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at / 7 % 251) as u8).collect()
    }

    #[test]
    fn segments_lie_where_they_should_however_they_are_aligned() {
        let body = pattern(20_000);
        for (offset, address) in [
            (4096, 0x10_0000),
            (4096 + 100, 0x10_0000 + 100),
            (4096 + 100, 0x10_0000 + 300),
            (4096 + 4095, 0x10_0000 + 4095),
        ] {
            let memory = guest(MEMORY);
            let count = body.len() - (offset - 4096);
            let segment = (offset as u64, address, count as u64, 0x10_000);

            let kernel = load(&memory, image(&[segment], &body)).unwrap();

            assert_eq!(kernel.entry, 0x10_0000);
            assert_eq!(kernel.end, address + 0x10_000);
            let placed = bytes_at(&memory, address - 50, count + 100);
            assert_eq!(placed[..50], [0; 50]);
            assert_eq!(placed[50..50 + count], body[offset - 4096..]);
            assert_eq!(placed[50 + count..], [0; 50]);
        }
    }

    #[test]
    fn the_guest_writes_to_its_own_copy() {
        let memory = guest(MEMORY);
        let image = image(&[(4096, 0x10_0000, 8192, 8192)], &pattern(8192));
        let file = File::from(image.try_clone().unwrap());

        load(&memory, image).unwrap();
        memory
            .write_obj(0xdead_beef_u32, GuestAddress(0x10_0000))
            .unwrap();

        let mut first = [0; 4];
        file.read_exact_at(&mut first, 4096).unwrap();
        assert_eq!(first, pattern(4)[..]);
        let region = memory.iter().next().unwrap();
        let memfd = region.file_offset().unwrap().file();
        memfd.read_exact_at(&mut first, 0x10_0000).unwrap();
        assert_eq!(first, [0; 4]);
    }

    #[test]
    fn an_initramfs_lies_at_the_end_of_memory() {
        let memory = guest(MEMORY);
        let body = pattern(10_000);
        let kernel = Kernel {
            entry: 0x10_0000,
            end: 0x20_0000,
        };

        let placed = load_initramfs(&memory, file(&body), kernel).unwrap();

        assert_eq!(u64::from(placed.address), MEMORY - 3 * 4096);
        assert_eq!(bytes_at(&memory, placed.address.into(), 10_000), body);
        let kernel = Kernel {
            end: MEMORY - 4096,
            ..kernel
        };
        let error = load_initramfs(&memory, file(&body), kernel).unwrap_err();
        assert!(matches!(
            error,
            KernelError::InitramfsSize { bytes: 10_000 }
        ));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let memory = guest(MEMORY);
        assert!(matches!(
            load(&memory, file(b"")).unwrap_err(),
            KernelError::Elf(ElfError::Format)
        ));
        assert!(matches!(
            load(&memory, file(&[b'x'; 8192])).unwrap_err(),
            KernelError::Elf(ElfError::Format)
        ));
        for (segment, wanted) in [
            ((4096, 0x10_0000, 1 << 40, 1 << 40), "makes no sense"),
            ((u64::MAX, 0x10_0000, 2, 2), "makes no sense"),
            ((4096, 0x10_0000, 2, 1), "makes no sense"),
            ((4096, u64::MAX, 1, 2), "makes no sense"),
            ((4096, 0x1000, 1, 1), "below 1 MiB"),
            ((4096, MEMORY, 1, 1), "needs memory up to"),
            ((4096, 0x10_0000, 1, MEMORY), "needs memory up to"),
        ] {
            let error = load(&memory, image(&[segment], b"x")).unwrap_err();
            let text = crate::machine::error_chain(&error);
            assert!(text.contains(wanted), "{segment:x?}: {text}");
        }
    }

    proptest! {
        #[test]
        fn any_headers_are_loaded_or_refused(
            noise in proptest::collection::vec((0..120usize, any::<u8>()), 0..8),
        ) {
            let mut bytes = vec![0; 8192];
            let valid = File::from(image(&[(4096, 0x10_0000, 4096, 8192)], &[1; 4096]));
            valid.read_exact_at(&mut bytes, 0).unwrap();
            for (position, value) in noise {
                bytes[position] = value;
            }
            let memory = guest(MEMORY);
            if let Ok(kernel) = load(&memory, file(&bytes)) {
                prop_assert!(kernel.end < MEMORY);
            }
        }
    }
}
