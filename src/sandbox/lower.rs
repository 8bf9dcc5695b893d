//! From a sandbox's configuration to a VM's, and the list of what is to be opened for it. No I/O.

use std::path::PathBuf;

use vmm::{
    BlockConfig, BlockPart, ConsoleConfig, DescriptorIndex, FsConfig, KernelConfig, MemoryConfig,
    SerialConfig, VmConfig, VsockConfig,
};

use super::{SandboxConfig, SandboxError};

/// Most descriptors that one message can carry (`SCM_MAX_FD`, unix(7)).
pub const MAX_DESCRIPTORS: usize = 253;

/// Context ID of every guest. Its connections end in its own VMM, so all can have the same.
const GUEST_CID: u32 = 3;

/// What the kernel is told whatever runs above it; nothing of an image or a user is ever added.
///
/// * `quiet`, `console=hvc0`: say nothing but errors, and those on the virtio console.
/// * `panic=-1 reboot=k`: end at once after a panic, by the keyboard controller's reset line.
/// * `tsc=nowatchdog`: do not wake twice a second to compare clocks. The time is the host's (kvm-clock).
const COMMAND_LINE: &str = "quiet console=hvc0 panic=-1 reboot=k tsc=nowatchdog";

/// Something to open; its place in the list is its [`DescriptorIndex`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// `/dev/kvm`.
    Kvm,
    /// Fresh memory.
    Memory {
        /// Its size.
        bytes: u64,
    },
    /// The agent's initial RAM file system.
    Initramfs,
    /// A file that is only read.
    Read(PathBuf),
    /// A file that the guest writes.
    ReadWrite(PathBuf),
    /// A file that output is added to.
    Append(PathBuf),
    /// The link of a network device, which was opened elsewhere.
    Link(usize),
    /// The socket of the share process.
    Shares,
}

/// The VM that `config` describes.
///
/// # Errors
///
/// [`SandboxError::TooManyParts`] where the descriptors would not fit one message.
pub fn lower(config: &SandboxConfig) -> Result<(VmConfig, Vec<Resource>), SandboxError> {
    let mut resources = Vec::new();
    let mut index = |resource| {
        resources.push(resource);
        // Checked below: far fewer than u16 holds.
        DescriptorIndex(u16::try_from(resources.len() - 1).unwrap_or(u16::MAX))
    };
    let limits = |disk: usize| config.disk_limits.get(disk).copied().unwrap_or_default();
    let root = BlockConfig {
        parts: config
            .root
            .iter()
            .map(|(path, bytes)| BlockPart {
                file: index(Resource::Read(path.clone())),
                bytes: *bytes,
            })
            .collect(),
        read_only: true,
        serial: "root".into(),
        limits: limits(0),
    };
    let disk = config.disk.as_ref().map(|(path, bytes)| BlockConfig {
        parts: vec![BlockPart {
            file: index(Resource::ReadWrite(path.clone())),
            bytes: *bytes,
        }],
        read_only: false,
        serial: "disk".into(),
        limits: limits(1),
    });
    let mut nets = config.nics.clone();
    let descriptors = nets.iter_mut().flat_map(|nic| &mut nic.descriptors);
    for (position, descriptor) in descriptors.enumerate() {
        *descriptor = index(Resource::Link(position));
    }
    let console = config.kernel_console.as_ref();
    let vm_config = VmConfig {
        kvm: index(Resource::Kvm),
        vcpus: config.vcpus,
        nano_cpus: config.nano_cpus,
        memory: MemoryConfig {
            memfd: index(Resource::Memory {
                bytes: config.memory_bytes,
            }),
            bytes: config.memory_bytes,
        },
        kernel: KernelConfig {
            image: index(Resource::Read(config.kernel.clone())),
            initramfs: Some(index(Resource::Initramfs)),
            command_line: match console {
                None => COMMAND_LINE.into(),
                Some(_) => {
                    COMMAND_LINE.replacen("quiet", "earlycon=uart8250,io,0x3f8 console=ttyS0", 1)
                }
            },
        },
        blocks: std::iter::once(root).chain(disk).collect(),
        nets,
        net_limits: config.net_limits,
        fs: (!config.shares.is_empty()).then(|| FsConfig {
            server: index(Resource::Shares),
            tag: protocol::SHARES_TAG.into(),
        }),
        vsock: Some(VsockConfig {
            guest_cid: GUEST_CID,
            host_ports: vec![
                protocol::CONTROL_PORT,
                protocol::STREAM_PORT,
                protocol::NAMES_PORT,
                protocol::NAME_PACKETS_PORT,
                protocol::FORWARD_PORT,
            ],
        }),
        console: ConsoleConfig { output: None },
        balloon: true,
        rng: true,
        serial: console.map(|path| SerialConfig {
            output: index(Resource::Append(path.clone())),
        }),
    };
    match resources.len() {
        count if count <= MAX_DESCRIPTORS => Ok((vm_config, resources)),
        count => Err(SandboxError::TooManyParts(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::NetLimits;

    fn config() -> SandboxConfig {
        SandboxConfig {
            label: "x".into(),
            vcpus: 2,
            nano_cpus: None,
            cpuset: None,
            oom_score_adj: 0,
            disk_limits: Vec::new(),
            net_limits: NetLimits::default(),
            memory_bytes: 64 << 20,
            kernel: "/kernel".into(),
            root: vec![("/meta".into(), 8192), ("/layer".into(), 4096)],
            disk: Some(("/disk".into(), 1 << 30)),
            kernel_console: None,
            nics: vec![],
            shares: vec![],
            log: "/log".into(),
        }
    }

    #[test]
    fn every_descriptor_is_what_its_place_says() {
        let (vm, resources) = lower(&config()).unwrap();
        let at = |index: DescriptorIndex| &resources[usize::from(index.0)];

        assert_eq!(at(vm.kvm), &Resource::Kvm);
        assert_eq!(at(vm.memory.memfd), &Resource::Memory { bytes: 64 << 20 });
        assert_eq!(at(vm.kernel.image), &Resource::Read("/kernel".into()));
        assert_eq!(
            at(vm.blocks[0].parts[1].file),
            &Resource::Read("/layer".into())
        );
        assert_eq!(
            at(vm.blocks[1].parts[0].file),
            &Resource::ReadWrite("/disk".into())
        );
        assert_eq!(resources.len(), 7);
    }

    #[test]
    fn network_devices_have_their_links_in_order() {
        let nic = vmm::NetConfig {
            descriptors: vec![DescriptorIndex(0); 2],
            link: vmm::NetLink::Stream,
            mac: [2, 0, 0, 0, 0, 1],
            sources: vec![],
            denied: vec![],
            allowed: vec![],
            mtu: 1500,
        };
        let config = SandboxConfig {
            nics: vec![nic.clone(), nic],
            ..config()
        };
        let (vm, resources) = lower(&config).unwrap();
        let descriptors = vm.nets.iter().flat_map(|net| &net.descriptors);
        for (position, descriptor) in descriptors.enumerate() {
            let at = usize::from(descriptor.0);
            assert_eq!(resources[at], Resource::Link(position));
        }
        assert_eq!(vm.nets.len(), 2);
    }

    #[test]
    fn a13_the_image_is_a_read_only_device_opened_for_reading() {
        let (vm, resources) = lower(&config()).unwrap();
        assert!(vm.blocks[0].read_only);
        for part in &vm.blocks[0].parts {
            assert!(matches!(
                resources[usize::from(part.file.0)],
                Resource::Read(_)
            ));
        }
    }

    #[test]
    fn a36_the_command_line_is_the_same_for_everything() {
        let other = SandboxConfig {
            label: "init=/bin/sh".into(),
            vcpus: 1,
            nano_cpus: None,
            cpuset: None,
            oom_score_adj: 0,
            disk_limits: Vec::new(),
            net_limits: NetLimits::default(),
            ..config()
        };
        assert_eq!(
            lower(&config()).unwrap().0.kernel.command_line,
            lower(&other).unwrap().0.kernel.command_line,
        );
    }

    #[test]
    fn more_parts_than_a_message_carries_are_refused() {
        let root = vec![("/layer".into(), 4096); 300];
        let error = lower(&SandboxConfig { root, ..config() }).unwrap_err();
        assert!(matches!(error, SandboxError::TooManyParts(_)));
    }
}
