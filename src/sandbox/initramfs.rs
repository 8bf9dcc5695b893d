//! The initial RAM file system of every guest, made by the build script.

/// A `newc` cpio archive: the guest agent as `/init`, `/dev/console`, and the folders that the agent
/// mounts on. Uncompressed, less than 1 MiB and a few hundred bytes.
pub static INITRAMFS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/initramfs.cpio"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_as_the_kernel_expects() {
        // c070701: "newc", Documentation/driver-api/early-userspace/buffer-format.rst
        assert_eq!(INITRAMFS.get(..6), Some(&b"070701"[..]));
    }

    #[test]
    fn the_agent_inside_is_an_elf_program_without_an_interpreter() {
        let start = INITRAMFS
            .windows(4)
            .position(|bytes| bytes == b"\x7fELF")
            .expect("an ELF header");
        let agent = &INITRAMFS[start..];
        let u16_at = |offset| u16::from_le_bytes([agent[offset], agent[offset + 1]]);
        // ELF-64: e_phoff is below 4 GiB here, e_phentsize at 54, e_phnum at 56, p_type first.
        let table = usize::from(u16_at(32));
        for index in 0..usize::from(u16_at(56)) {
            let kind = u16_at(table + index * usize::from(u16_at(54)));
            assert_ne!(kind, 3, "PT_INTERP: the agent is not static");
        }
    }
}
