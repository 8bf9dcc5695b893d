//! The tiny guest: its code, its page tables and what its progress reports mean.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Port on which the guest says which step it is about to take.
pub const PORT: u16 = 0x10;
/// How often the guest runs the timed loop.
pub const ROUNDS: usize = 4;
/// Instructions in one timed loop.
pub const INSTRUCTIONS_PER_ROUND: u32 = 4000;
/// Size of guest memory in bytes, from address zero.
pub const MEMORY: usize = 0x10_000;
/// Where the code is put and entered.
pub const CODE: u64 = 0x5000;
/// Initial stack pointer; the stack may grow down to 0xb000.
pub const STACK: u64 = 0xf000;
/// Address of the top page table.
pub const PML4: u64 = 0x1000;

const PDPT: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PAGE_TABLE: u64 = 0x4000;
const PD_HIGH: u64 = 0x7000;

/// What the guest reports before it does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Start = 1,
    Cpuid,
    Tables,
    Breakpoint,
    Undefined,
    PageFault,
    String,
    CompareExchange,
    Fpu,
    Xsave,
    Msr,
    SwapGs,
    User,
    Apic,
    Speed,
    Done,
}

impl Step {
    /// In order, as the guest takes them.
    const ALL: [Step; 16] = [
        Step::Start,
        Step::Cpuid,
        Step::Tables,
        Step::Breakpoint,
        Step::Undefined,
        Step::PageFault,
        Step::String,
        Step::CompareExchange,
        Step::Fpu,
        Step::Xsave,
        Step::Msr,
        Step::SwapGs,
        Step::User,
        Step::Apic,
        Step::Speed,
        Step::Done,
    ];

    pub fn from_number(number: u8) -> Option<Step> {
        Step::ALL.into_iter().find(|step| *step as u8 == number)
    }

    /// What is being tried, in words that fit after "at".
    pub fn name(self) -> &'static str {
        match self {
            Step::Start => "its first instruction",
            Step::Cpuid => "cpuid",
            Step::Tables => "lgdt, lidt and ltr",
            Step::Breakpoint => "int3",
            Step::Undefined => "an undefined-instruction exception",
            Step::PageFault => "a page fault",
            Step::String => "string instructions",
            Step::CompareExchange => "cmpxchg16b",
            Step::Fpu => "fninit",
            Step::Xsave => "xsave and xrstor",
            Step::Msr => "rdmsr and wrmsr",
            Step::SwapGs => "swapgs",
            Step::User => "the way to user mode and back (iretq, syscall, sysret)",
            Step::Apic => "an interrupt of the local APIC",
            Step::Speed => "a loop",
            Step::Done => "its end",
        }
    }
}

/// Reported when an instruction ran but gave a wrong result.
pub const WRONG: u8 = 0xff;

std::arch::global_asm!(
    include_str!("guest.s"),
    port = const PORT,
    code = const CODE,
    page_table = const PAGE_TABLE,
    rounds = const ROUNDS,
    iterations = const INSTRUCTIONS_PER_ROUND / 2,
    start = const Step::Start as u8,
    cpuid = const Step::Cpuid as u8,
    tables = const Step::Tables as u8,
    breakpoint = const Step::Breakpoint as u8,
    undefined = const Step::Undefined as u8,
    page_fault = const Step::PageFault as u8,
    string = const Step::String as u8,
    cmpxchg16b = const Step::CompareExchange as u8,
    fpu = const Step::Fpu as u8,
    xsave = const Step::Xsave as u8,
    msr = const Step::Msr as u8,
    swapgs = const Step::SwapGs as u8,
    user = const Step::User as u8,
    apic = const Step::Apic as u8,
    speed = const Step::Speed as u8,
    done = const Step::Done as u8,
    wrong = const WRONG,
);

unsafe extern "C" {
    #[link_name = "pillbug_probe_start"]
    static CODE_START: u8;
    #[link_name = "pillbug_probe_end"]
    static CODE_END: u8;
}

/// Size of the code in bytes.
#[cfg(test)]
pub fn code_length() -> usize {
    code().len()
}

fn code() -> &'static [u8] {
    let start = &raw const CODE_START;
    let length = (&raw const CODE_END).addr() - start.addr();
    // SAFETY: both symbols are labels of guest.s in this order in one read-only section, so the
    // bytes between them are initialised, never written and live as long as the program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Fills guest memory: identity page tables (the first 64 KiB by 4 KiB pages, open to user mode,
/// and the local APIC's 2 MiB) and the code.
pub fn load(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITE_USER: u64 = 0x7;
    const LARGE_UNCACHED: u64 = 0x80 | 0x10;
    let entry = |table: u64, index: u64, value: u64| {
        memory.write_obj(value, GuestAddress(table + index * 8))
    };
    entry(PML4, 0, PDPT | PRESENT_WRITE_USER)?;
    entry(PDPT, 0, PD_LOW | PRESENT_WRITE_USER)?;
    entry(PDPT, 3, PD_HIGH | PRESENT_WRITE_USER)?;
    entry(PD_LOW, 0, PAGE_TABLE | PRESENT_WRITE_USER)?;
    entry(
        PD_HIGH,
        0x1f7,
        0xfee0_0000 | LARGE_UNCACHED | PRESENT_WRITE_USER,
    )?;
    for page in 0..(MEMORY as u64 >> 12) {
        entry(PAGE_TABLE, page, page << 12 | PRESENT_WRITE_USER)?;
    }
    memory.write_slice(code(), GuestAddress(CODE))
}
