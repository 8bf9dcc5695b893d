//! What a vCPU says about itself: what KVM and the host's processor can do, less what a guest has
//! no business with, plus its place in the topology.
//!
//! All vCPUs are cores of one package, one thread each. Virtualization extensions are hidden.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1 ECX.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX.
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX.
const CORES_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;

/// Level types of leaf 0xb in their place in ECX.
const SMT_LEVEL: u32 = 1 << 8;
const CORE_LEVEL: u32 = 2 << 8;

/// The leaves of the vCPU with APIC ID `id` of `vcpus`, from what KVM supports.
#[must_use]
pub fn for_vcpu(supported: &CpuId, id: u8, vcpus: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    // Leaves of the extended topology are made anew below.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    for entry in cpuid.as_mut_slice() {
        adjust(entry, id, vcpus, tsc_deadline);
    }
    for entry in topology(id, vcpus) {
        // Fails only past the most entries that KVM takes, 256: it supports some 60.
        let _ = cpuid.push(entry);
    }
    cpuid
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u8, vcpus: u8, tsc_deadline: bool) {
    let several = vcpus > 1;
    let cores = u32::from(vcpus);
    match entry.function {
        0 => entry.eax = entry.eax.max(0xb),
        1 => {
            // Cache line size stays; logical processors and APIC ID are ours.
            entry.ebx = entry.ebx & 0xffff | cores << 16 | u32::from(id) << 24;
            entry.ecx = entry.ecx & !(MONITOR | VMX) | HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, HYPER_THREADING, several);
        }
        // Intel's caches: up to level 2 each core its own, then one for all.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { id_space(vcpus) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (id_space(vcpus) - 1).min(63) << 26;
        }
        // Performance counters take host resources that nothing here accounts for.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !SVM;
            set(&mut entry.ecx, CORES_LEGACY, several);
        }
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xf0ff | id_bits(vcpus) << 12 | (cores - 1);
        }
        // SVM's own leaf.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD's caches, as Intel's above.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { cores - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        // APIC ID; one thread a core; node 0 of one.
        0x8000_001e => {
            (entry.eax, entry.ebx, entry.ecx) = (id.into(), id.into(), 0);
        }
        _ => {}
    }
}

/// Leaf 0xb: threads of a core, cores of the package.
fn topology(id: u8, vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index, eax, ebx, kind| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | kind,
        edx: id.into(),
        ..Default::default()
    };
    [
        level(0, 0, 1, SMT_LEVEL),
        level(1, id_bits(vcpus), vcpus.into(), CORE_LEVEL),
        level(2, 0, 0, 0),
    ]
}

/// Bits of an APIC ID that tell the cores apart.
fn id_bits(vcpus: u8) -> u32 {
    id_space(vcpus).trailing_zeros()
}

fn id_space(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two()
}

fn set(register: &mut u32, bit: u32, on: bool) {
    match on {
        true => *register |= bit,
        false => *register &= !bit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let entries = cpuid.as_slice().iter();
        let mut found = entries.filter(|e| e.function == function && e.index == index);
        let entry = *found.next().unwrap();
        assert!(found.next().is_none());
        entry
    }

    fn supported() -> CpuId {
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0x10, 0, 0, 0),
            leaf(1, 0, 0x0710_0800, u32::MAX, u32::MAX),
            leaf(4, 0xfc00_c121, 0, 0, 0),
            leaf(0xb, 1, 2, 0x100, 7),
            leaf(0x8000_0001, 0, 0, u32::MAX, 0),
            leaf(0x8000_0008, 0, 0, u32::MAX, 0),
            leaf(0x8000_000a, 1, 1, 1, 1),
        ])
        .unwrap()
    }

    #[test]
    fn a21_virtualization_extensions_are_hidden() {
        let cpuid = for_vcpu(&supported(), 0, 1, true);
        assert_eq!(leaf(&cpuid, 1, 0).ecx & VMX, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & SVM, 0);
        assert_eq!(leaf(&cpuid, 0x8000_000a, 0).edx, 0);
        assert_ne!(leaf(&cpuid, 1, 0).ecx & HYPERVISOR, 0);
    }

    #[test]
    fn every_vcpu_knows_its_place() {
        for id in 0..5 {
            let cpuid = for_vcpu(&supported(), id, 5, true);
            assert_eq!(
                leaf(&cpuid, 1, 0).ebx,
                u32::from(id) << 24 | 5 << 16 | 0x800
            );
            assert_eq!(leaf(&cpuid, 0xb, 0).edx, u32::from(id));
            let cores = leaf(&cpuid, 0xb, 1);
            assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 5, 0x201));
            assert_eq!(leaf(&cpuid, 4, 0).eax >> 26, 7);
            assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx & 0xf0ff, 3 << 12 | 4);
        }
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let cpuid = for_vcpu(&supported(), 0, 1, false);
        assert_eq!(leaf(&cpuid, 1, 0).edx & HYPER_THREADING, 0);
        assert_eq!(leaf(&cpuid, 1, 0).ecx & TSC_DEADLINE, 0);
        assert_eq!(leaf(&cpuid, 0xb, 1).eax, 0);
    }
}
