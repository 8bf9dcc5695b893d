//! The processor side of an x86-64 machine: what its firmware would have set up.

pub mod boot;
pub mod cpuid;
pub mod mptable;
pub mod registers;

/// Where things lie in the first MiB of guest memory. None overlap, and all but the MP table are
/// free for the kernel once it has read them.
pub mod layout {
    /// Segment descriptors of the first vCPU.
    pub const GDT: u64 = 0x500;
    /// `struct boot_params`, the "zero page".
    pub const BOOT_PARAMS: u64 = 0x7000;
    /// Top of the first vCPU's stack.
    pub const STACK: u64 = 0x8ff0;
    /// Page tables that map the first GiB to itself: three pages.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// `struct setup_data` with the seed of the kernel's random numbers.
    pub const SETUP_DATA: u64 = 0xd000;
    /// Kernel command line.
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// Most bytes of it with the final NUL (`COMMAND_LINE_SIZE` of x86).
    pub const COMMAND_LINE_SIZE: usize = 2048;
    /// The last KiB of conventional memory, where kernels look for an MP table.
    pub const MP_TABLE: u64 = 0x9_fc00;
    /// Extended memory.
    pub const HIGH_MEMORY: u64 = 0x10_0000;

    /// The local interrupt controller of every vCPU.
    pub const LOCAL_APIC: u32 = 0xfee0_0000;
    /// The one I/O interrupt controller.
    pub const IO_APIC: u32 = 0xfec0_0000;
    /// Interrupt lines of the I/O interrupt controller.
    pub const IO_APIC_PINS: u8 = 24;
    /// Four pages that KVM needs for itself on some processors.
    pub const KVM_TSS: u64 = 0xfffb_d000;
    /// One more.
    pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
}
