//! What a Linux kernel is told at its entry: `struct boot_params`, the memory map, the command
//! line, and a seed for its random numbers.

use linux_loader::loader::bootparam::boot_params;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use crate::memory::GuestMemory;

use super::layout;

/// `boot_flag`, `header` ("HdrS") and "a loader without a number of its own".
const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = 0x5372_6448;
const LOADER: u8 = 0xff;
const ALIGNMENT: u32 = 0x20_0000;
/// `SETUP_RNG_SEED`.
const RNG_SEED: u32 = 9;
/// Types of memory map entries.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Bytes of the seed: what Linux's generator takes for a full one.
pub const SEED: usize = 32;

/// Where the initial RAM file system lies: guest address and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initramfs {
    /// Guest address.
    pub address: u32,
    /// Bytes.
    pub bytes: u32,
}

/// Writes all of it. `command_line` has no NUL and fits (see [`layout::COMMAND_LINE_SIZE`]).
///
/// # Errors
///
/// When a place is not in `memory`.
pub fn write(
    memory: &GuestMemory,
    command_line: &str,
    initramfs: Option<Initramfs>,
    seed: &[u8; SEED],
) -> Result<(), GuestMemoryError> {
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    memory.write_slice(&line, GuestAddress(layout::COMMAND_LINE))?;
    memory.write_slice(&setup_data(seed), GuestAddress(layout::SETUP_DATA))?;

    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER;
    params.hdr.type_of_loader = LOADER;
    params.hdr.kernel_alignment = ALIGNMENT;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = layout::COMMAND_LINE_SIZE as u32 - 1;
    params.hdr.setup_data = layout::SETUP_DATA;
    if let Some(Initramfs { address, bytes }) = initramfs {
        params.hdr.ramdisk_image = address;
        params.hdr.ramdisk_size = bytes;
    }
    for (start, bytes, kind) in memory_map(memory) {
        let index = usize::from(params.e820_entries);
        let entry = &mut params.e820_table[index];
        entry.addr = start;
        entry.size = bytes;
        entry.r#type = kind;
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(layout::BOOT_PARAMS))
}

/// `(start, bytes, type)`: all memory, less the end of the first MiB.
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::MP_TABLE, RAM),
        (
            layout::MP_TABLE,
            layout::HIGH_MEMORY - layout::MP_TABLE,
            RESERVED,
        ),
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(layout::HIGH_MEMORY);
        let end = region.start_addr().0 + region.len();
        map.push((start, end - start, RAM));
    }
    map
}

/// `struct setup_data`, the last of its list, with `seed`.
fn setup_data(seed: &[u8; SEED]) -> Vec<u8> {
    let mut data = 0u64.to_le_bytes().to_vec();
    data.extend(RNG_SEED.to_le_bytes());
    data.extend((SEED as u32).to_le_bytes());
    data.extend(seed);
    data
}
