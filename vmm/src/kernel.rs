//! Loads a Linux kernel and its initial RAM file system into guest memory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::memory::{self, GuestMemory};
use crate::x86::boot::Initramfs;
use crate::x86::layout::HIGH_MEMORY;

const PAGE: u64 = 4096;

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not an ELF file for this machine, cut short, or larger than guest memory.
    #[error(
        "cannot load the guest kernel into {memory} MiB of guest memory; it has to be an ELF \
         vmlinux for x86-64"
    )]
    Load {
        /// Size of guest memory in MiB.
        memory: u64,
        /// From linux-loader.
        #[source]
        source: linux_loader::loader::Error,
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
    /// It could not be read.
    #[error("cannot read the initramfs")]
    ReadInitramfs(#[source] GuestMemoryError),
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Guest address of its first instruction.
    pub entry: u64,
    /// First guest address behind it and its uninitialized data.
    pub end: u64,
}

/// Loads the ELF file `image` to where its program headers say.
///
/// # Errors
///
/// When it is none, or does not fit.
pub fn load(memory: &GuestMemory, image: OwnedFd) -> Result<Kernel, KernelError> {
    let mut image = File::from(image);
    let high_memory = Some(GuestAddress(HIGH_MEMORY));
    let loaded = Elf::load(&**memory, None, &mut image, high_memory).map_err(|source| {
        KernelError::Load {
            memory: memory.last_addr().raw_value() >> 20,
            source,
        }
    })?;
    Ok(Kernel {
        entry: loaded.kernel_load.0,
        end: loaded.kernel_end,
    })
}

/// Loads `file` to the end of memory below the device hole, where the kernel is not.
///
/// # Errors
///
/// When it does not fit or cannot be read.
pub fn load_initramfs(
    memory: &GuestMemory,
    file: OwnedFd,
    kernel: Kernel,
) -> Result<Initramfs, KernelError> {
    let mut file = File::from(file);
    let bytes = file.metadata().map_err(KernelError::StatInitramfs)?.len();
    let too_large = KernelError::InitramfsSize { bytes };
    let memory_end = (memory.last_addr().0 + 1).min(memory::HOLE_START);
    let Some(address) = memory_end
        .checked_sub(bytes)
        .map(|address| address & !(PAGE - 1))
        .filter(|address| *address >= kernel.end)
    else {
        return Err(too_large);
    };
    // Both are below 3 GiB.
    let initramfs = Initramfs {
        address: address as u32,
        bytes: bytes as u32,
    };
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, bytes as usize)
        .map_err(KernelError::ReadInitramfs)?;
    Ok(initramfs)
}
