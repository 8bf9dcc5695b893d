//! The MP table (Intel MultiProcessor Specification 1.4, chapter 4): which processors and which
//! interrupt lines there are, for a guest without ACPI.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;

use super::layout;

/// Version that both processors' and the I/O unit's interrupt controllers report (82489DX+).
const APIC_VERSION: u8 = 0x14;
const SPECIFICATION: u8 = 4;
const FLOATING_POINTER: usize = 16;
const HEADER: usize = 44;
/// ID of the one bus.
const ISA: u8 = 0;
const ISA_BUS_NAME: &[u8; 6] = b"ISA   ";

/// Entry types (4.3) and interrupt types (4.3.4).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;

/// Writes the table of a machine with `vcpus` processors.
///
/// # Errors
///
/// When its place is not in `memory`.
pub fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&build(vcpus), GuestAddress(layout::MP_TABLE))
}

/// Floating pointer and table, one behind the other as they lie at [`layout::MP_TABLE`].
fn build(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        // Enabled, and the first one boots.
        let flags = if id == 0 { 0b11 } else { 0b01 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, id, APIC_VERSION, flags]);
        add(&entry);
    }
    let mut bus = [BUS, ISA, 0, 0, 0, 0, 0, 0];
    bus[2..].copy_from_slice(ISA_BUS_NAME);
    add(&bus);
    let io_apic_id = vcpus;
    let mut io_apic = [IO_APIC, io_apic_id, APIC_VERSION, 1, 0, 0, 0, 0];
    io_apic[4..].copy_from_slice(&layout::IO_APIC.to_le_bytes());
    add(&io_apic);
    // Polarity and trigger 0 conform to the bus: active high, edge.
    for pin in 0..layout::IO_APIC_PINS {
        add(&[IO_INTERRUPT, VECTORED, 0, 0, ISA, pin, io_apic_id, pin]);
    }
    add(&[LOCAL_INTERRUPT, EXTERNAL, 0, 0, ISA, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA, 0, 0xff, 1]);

    let mut table = floating_pointer().to_vec();
    table.extend(header(&entries, count));
    table.extend(entries);
    table
}

fn floating_pointer() -> [u8; FLOATING_POINTER] {
    let mut pointer = [0; FLOATING_POINTER];
    pointer[..4].copy_from_slice(b"_MP_");
    let table = layout::MP_TABLE as u32 + FLOATING_POINTER as u32;
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    // In paragraphs of 16 bytes: itself.
    pointer[8] = 1;
    pointer[9] = SPECIFICATION;
    pointer[10] = checksum(&pointer);
    pointer
}

fn header(entries: &[u8], count: u16) -> [u8; HEADER] {
    let length = (HEADER + entries.len()) as u16;
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&length.to_le_bytes());
    header[6] = SPECIFICATION;
    header[8..16].copy_from_slice(b"PILLBUG ");
    header[16..28].copy_from_slice(b"MICROVM     ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    header[7] = checksum(&header).wrapping_add(checksum(entries));
    header
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;

    #[test]
    fn the_table_fits_and_sums_up_for_every_number_of_vcpus() {
        for vcpus in 1..=VmConfig::MAX_VCPUS {
            let table = build(vcpus);
            assert!(table.len() <= 1024, "{vcpus}");
            assert_eq!(checksum(&table[..FLOATING_POINTER]), 0);
            assert_eq!(checksum(&table[FLOATING_POINTER..]), 0);
            assert_eq!(
                table[FLOATING_POINTER + HEADER + 20 * usize::from(vcpus)],
                BUS
            );
        }
    }
}
