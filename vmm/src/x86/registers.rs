//! Registers of a vCPU at its first instruction: 64-bit mode as the Linux boot protocol asks for
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;

use super::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of EFLAGS that is always one.
const FLAGS: u64 = 1 << 1;

/// Page table entries: present and writable; a 2 MiB page.
const TABLE: u64 = 0b11;
const LARGE_PAGE: u64 = TABLE | 1 << 7;
const PAGE: u64 = 4096;

/// Selectors that the boot protocol names.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// General registers of the vCPU that boots, with the kernel at `entry`.
#[must_use]
pub fn general(entry: u64) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rflags: FLAGS,
        rsp: layout::STACK,
        rsi: layout::BOOT_PARAMS,
        ..Default::default()
    }
}

/// Puts `sregs` into 64-bit mode, with paging and segments from what [`write_tables`] wrote.
pub fn set_long_mode(sregs: &mut kvm_sregs) {
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    sregs.cs = segment(CODE);
    let data = segment(DATA);
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = DATA + 7;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

/// Segment descriptors, and page tables that map the first GiB to itself.
///
/// # Errors
///
/// When their place is not in `memory`.
pub fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let selectors = [0, 0, descriptor(CODE), descriptor(DATA)];
    memory.write_slice(bytes(&selectors).as_slice(), GuestAddress(layout::GDT))?;
    let tables = [
        layout::PAGE_TABLES,
        layout::PAGE_TABLES + PAGE,
        layout::PAGE_TABLES + 2 * PAGE,
    ];
    memory.write_obj(tables[1] | TABLE, GuestAddress(tables[0]))?;
    memory.write_obj(tables[2] | TABLE, GuestAddress(tables[1]))?;
    let pages: Vec<u64> = (0..512).map(|index| index << 21 | LARGE_PAGE).collect();
    memory.write_slice(bytes(&pages).as_slice(), GuestAddress(tables[2]))
}

/// Model-specific registers of every vCPU: what firmware sets and kernels rely on. All memory is
/// write-back; without "fast strings" Linux copies by the byte on Intel.
///
/// # Panics
///
/// Never: two entries are far below what KVM takes at once.
#[must_use]
pub fn model_specific() -> Msrs {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[
        entry(MSR_MISC_ENABLE, FAST_STRINGS),
        entry(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED | WRITE_BACK),
    ])
    .expect("two entries are below KVM's limit")
}

fn segment(selector: u16) -> kvm_segment {
    let code = selector == CODE;
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        // Execute and read, or read and write; accessed.
        type_: if code { 0xb } else { 0x3 },
        present: 1,
        db: (!code).into(),
        s: 1,
        l: code.into(),
        g: 1,
        ..Default::default()
    }
}

/// The segment as it stands in the GDT: flat, limit 4 GiB.
fn descriptor(selector: u16) -> u64 {
    match selector {
        CODE => 0x00af_9b00_0000_ffff,
        _ => 0x00cf_9300_0000_ffff,
    }
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
