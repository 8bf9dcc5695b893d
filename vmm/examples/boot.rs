//! Boots a kernel in a machine of its own and prints what the machine says, one event a line after
//! the milliseconds since the start:
//!
//! ```text
//! boot KERNEL INITRAMFS VCPUS MEBIBYTES COMMAND_LINE [DISK[:ro] ...]
//! ```
//!
//! The console goes to standard output. The machine is this program again, started as
//! `boot machine`, as `vmm::process` asks for.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use nix::cmsg_space;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::unistd::ftruncate;
use vmm::{
    BlockConfig, BlockPart, ConsoleConfig, DescriptorIndex, Event, KernelConfig, MemoryConfig,
    VmConfig,
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["machine"] {
        let control = std::io::stdin().as_fd().try_clone_to_owned()?;
        return Ok(vmm::process::run(control));
    }
    let started = Instant::now();
    let (config, descriptors) = machine(&arguments)?;
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("machine")
        .stdin(Stdio::from(theirs))
        .spawn()?;
    let text = serde_json::to_vec(&config)?;
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let vectors = [IoSlice::new(&text)];
    sendmsg::<()>(ours.as_raw_fd(), &vectors, &rights, MsgFlags::empty(), None)?;
    drop(descriptors);

    loop {
        let mut buffer = [0; 4096];
        let mut space = cmsg_space!([RawFd; 1]);
        let mut vectors = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::empty();
        let length = recvmsg::<()>(ours.as_raw_fd(), &mut vectors, Some(&mut space), flags)?.bytes;
        if length == 0 {
            break;
        }
        let event: Event = serde_json::from_slice(&buffer[..length])?;
        println!("{:9.3} {event:?}", started.elapsed().as_secs_f64() * 1e3);
        if matches!(event, Event::Ended(_)) {
            break;
        }
    }
    child.wait()?;
    Ok(ExitCode::SUCCESS)
}

/// The configuration that the arguments ask for, with its descriptors.
fn machine(arguments: &[String]) -> Result<(VmConfig, Vec<OwnedFd>), Box<dyn Error>> {
    let [
        kernel,
        initramfs,
        vcpus,
        mebibytes,
        command_line,
        disks @ ..,
    ] = arguments
    else {
        return Err("boot KERNEL INITRAMFS VCPUS MEBIBYTES COMMAND_LINE [DISK[:ro] ...]".into());
    };
    let mut descriptors = Vec::new();
    let mut add = |descriptor: OwnedFd| {
        descriptors.push(descriptor);
        DescriptorIndex(descriptors.len() as u16 - 1)
    };
    let bytes = mebibytes.parse::<u64>()? << 20;
    let memfd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC)?;
    ftruncate(&memfd, i64::try_from(bytes)?)?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let mut config = VmConfig {
        kvm: add(kvm.into()),
        vcpus: vcpus.parse()?,
        nano_cpus: None,
        memory: MemoryConfig {
            memfd: add(memfd),
            bytes,
        },
        kernel: KernelConfig {
            image: add(File::open(kernel)?.into()),
            initramfs: Some(add(File::open(initramfs)?.into())),
            command_line: command_line.clone(),
        },
        blocks: Vec::new(),
        nets: Vec::new(),
        net_limits: vmm::NetLimits::default(),
        fs: None,
        vsock: None,
        console: ConsoleConfig {
            output: Some(add(std::io::stdout().as_fd().try_clone_to_owned()?)),
        },
        balloon: false,
        rng: false,
        serial: None,
    };
    for disk in disks {
        let (path, read_only) = match disk.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (disk.as_str(), false),
        };
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        let bytes = file.metadata()?.len();
        config.blocks.push(BlockConfig {
            parts: vec![BlockPart {
                file: add(file.into()),
                bytes,
            }],
            read_only,
            serial: "example".to_owned(),
            limits: vmm::BlockLimits::default(),
        });
    }
    Ok((config, descriptors))
}
