//! Machines whose whole kernel is a few instructions, on this host's `/dev/kvm`.
//!
//! A host without one skips them and says so on standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{self, Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::time::ClockId;
use nix::unistd::Pid;
use vmm::machine::{Machine, MachineError};
use vmm::{
    Command, ConsoleConfig, DescriptorIndex, Ending, Event, KernelConfig, MemoryConfig, VmConfig,
};

const MEMORY: u64 = 32 << 20;
/// Where the code is, and starts.
const ENTRY: u64 = 0x10_0000;

/// `mov dx, 0x600; out dx, al; hlt`
const POWER_OFF: &[u8] = b"\x66\xba\x00\x06\xee\xf4";
/// `mov al, 0xfe; out 0x64, al; hlt`
const RESET: &[u8] = b"\xb0\xfe\xe6\x64\xf4";
/// `ud2`, without a handler
const TRIPLE_FAULT: &[u8] = b"\x0f\x0b";
/// `jmp $`
const SPIN: &[u8] = b"\xeb\xfe";

/// An ELF file with nothing but `code`.
fn kernel(code: &[u8]) -> OwnedFd {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
    bytes[24..32].copy_from_slice(&ENTRY.to_le_bytes());
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    let size = code.len() as u64;
    for field in [120, ENTRY, ENTRY, size, size, 0] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(code);
    let mut file = File::from(memfd("kernel", 0));
    file.write_all(&bytes).unwrap();
    file.into()
}

fn memfd(name: &str, bytes: u64) -> OwnedFd {
    let memfd = memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&memfd, i64::try_from(bytes).unwrap()).unwrap();
    memfd
}

/// A machine that runs `code`; `None`, said loudly, where there is no KVM.
fn machine(code: &[u8]) -> Option<(VmConfig, Vec<OwnedFd>)> {
    let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            // Past the test harness, which keeps what macros print of tests that pass.
            let text = format!("SKIPPED: cannot open /dev/kvm: {error}\n");
            io::stderr().write_all(text.as_bytes()).unwrap();
            return None;
        }
    };
    let config = VmConfig {
        kvm: DescriptorIndex(0),
        vcpus: 1,
        nano_cpus: None,
        memory: MemoryConfig {
            memfd: DescriptorIndex(1),
            bytes: MEMORY,
        },
        kernel: KernelConfig {
            image: DescriptorIndex(2),
            initramfs: None,
            command_line: String::new(),
        },
        blocks: Vec::new(),
        nets: Vec::new(),
        net_limits: vmm::NetLimits::default(),
        fs: None,
        vsock: None,
        console: ConsoleConfig { output: None },
        balloon: false,
        rng: false,
        serial: None,
    };
    let descriptors = vec![kvm.into(), memfd("guest", MEMORY), kernel(code)];
    Some((config, descriptors))
}

fn build(config: VmConfig, descriptors: Vec<OwnedFd>) -> Result<Machine, MachineError> {
    Machine::new(config, descriptors, Arc::new(|_, _| Ok(())))
}

/// How a machine that runs `code` ends.
fn ending(code: &[u8]) -> Option<Ending> {
    let (config, descriptors) = machine(code)?;
    let running = build(config, descriptors).unwrap().start().unwrap();
    let ending = running.wait();
    running.stop();
    Some(ending)
}

fn assert_ends(code: &[u8], wanted: &Ending) {
    if let Some(ending) = ending(code) {
        assert_eq!(ending, *wanted);
    }
}

#[test]
fn a19_power_off_reset_and_triple_fault_are_told_apart() {
    assert_ends(POWER_OFF, &Ending::PowerOff);
    assert_ends(RESET, &Ending::Reset);
    assert_ends(TRIPLE_FAULT, &Ending::TripleFault);
}

#[test]
fn a08_a_port_that_nothing_has_reads_ones_and_takes_writes() {
    // mov dx, 0x1234; out dx, eax; in eax, dx; cmp eax, -1; jne to the reset
    let mut code = b"\x66\xba\x34\x12\xef\xed\x83\xf8\xff\x75\x06".to_vec();
    code.extend(POWER_OFF);
    code.extend(RESET);
    assert_ends(&code, &Ending::PowerOff);
}

#[test]
fn a_vcpu_finds_the_console_on_the_bus() {
    // Map the device's 2 MiB by a page directory at 0xc000:
    // mov dword [0xa018], 0xc003; mov dword [0xc400], 0xd0000083
    let mut code = b"\xc7\x04\x25\x18\xa0\x00\x00\x03\xc0\x00\x00".to_vec();
    code.extend(b"\xc7\x04\x25\x00\xc4\x00\x00\x83\x00\x00\xd0");
    // mov ebx, 0xd0000000; mov eax, [rbx]; cmp eax, "virt"; jne to the reset
    code.extend(b"\xbb\x00\x00\x00\xd0\x8b\x03\x3dvirt\x75\x06");
    code.extend(POWER_OFF);
    code.extend(RESET);
    assert_ends(&code, &Ending::PowerOff);
}

#[test]
fn a_guest_that_never_exits_is_stopped() {
    let Some((config, descriptors)) = machine(SPIN) else {
        return;
    };
    let running = build(config, descriptors).unwrap().start().unwrap();
    running.stop();
}

#[test]
fn a65_configurations_that_make_no_sense_are_refused() {
    let Some((config, _)) = machine(POWER_OFF) else {
        return;
    };
    let refused = |change: &dyn Fn(&mut VmConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let (_, descriptors) = machine(POWER_OFF).unwrap();
        build(config, descriptors).err().unwrap()
    };
    for vcpus in [0, 33, 255] {
        let error = refused(&|config| config.vcpus = vcpus);
        assert!(matches!(error, MachineError::Vcpus(count) if count == vcpus));
    }
    let error = refused(&|config| config.memory.bytes = 10 << 40);
    assert!(matches!(error, MachineError::Memory(_)));
    let error = refused(&|config| config.memory.memfd = DescriptorIndex(7));
    assert!(matches!(error, MachineError::Descriptor(_)));
    let error = refused(&|config| config.memory.memfd = config.kvm);
    assert!(matches!(error, MachineError::Descriptor(_)));
    let error = refused(&|config| config.kernel.command_line = "x".repeat(2048));
    assert!(matches!(error, MachineError::CommandLine(_)));
}

/// Not a test: the process of a machine, which the tests below start by name.
#[test]
#[ignore = "only together with a parent"]
fn machine_process() {
    let control = io::stdin().as_fd().try_clone_to_owned().unwrap();
    let _ = vmm::process::run(control);
}

/// A machine in a process of its own, and the parent's end of its control socket.
fn spawn() -> (Child, OwnedFd) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    let child = process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "machine_process"])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, ours)
}

fn send(control: &OwnedFd, text: &[u8], descriptors: &[OwnedFd]) {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let vectors = [IoSlice::new(text)];
    let flags = MsgFlags::empty();
    sendmsg::<()>(control.as_raw_fd(), &vectors, &rights, flags, None).unwrap();
}

/// A machine that runs `code`, in a process of its own.
fn spawn_machine(code: &[u8]) -> Option<(Child, OwnedFd)> {
    let (config, descriptors) = machine(code)?;
    let (child, control) = spawn();
    send(
        &control,
        &serde_json::to_vec(&config).unwrap(),
        &descriptors,
    );
    Some((child, control))
}

/// The next event; `None` when the machine's process is gone.
fn receive(control: &OwnedFd) -> Option<Event> {
    let mut buffer = [0; 4096];
    let mut vectors = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::empty();
    let received = recvmsg::<()>(control.as_raw_fd(), &mut vectors, None, flags);
    // A peer that went without reading all it was sent resets the connection.
    let length = received.map_or(0, |message| message.bytes);
    (length > 0).then(|| serde_json::from_slice(&buffer[..length]).unwrap())
}

#[test]
fn a_process_tells_its_parent_how_its_machine_fares() {
    let Some((mut child, control)) = spawn_machine(POWER_OFF) else {
        return;
    };

    let Some(Event::Running {
        process_started_ns,
        built_ns,
    }) = receive(&control)
    else {
        panic!("not running");
    };
    assert!(process_started_ns < built_ns);
    assert_eq!(receive(&control), Some(Event::Ended(Ending::PowerOff)));
    assert_eq!(receive(&control), None);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a51_a_machine_goes_with_its_parent() {
    let Some((mut child, control)) = spawn_machine(SPIN) else {
        return;
    };
    assert!(matches!(receive(&control), Some(Event::Running { .. })));
    drop(control);
    child.wait().unwrap();

    // Nor does it wait for a configuration that nobody will send.
    let (mut child, control) = spawn();
    drop(control);
    child.wait().unwrap();
}

#[test]
fn a_process_says_why_there_is_no_machine() {
    for (text, wanted) in [
        (
            &b"{}"[..],
            "the configuration cannot be understood: missing field",
        ),
        (b"\xff", "the configuration cannot be understood"),
    ] {
        let (mut child, control) = spawn();
        send(&control, text, &[]);
        let Some(Event::Ended(Ending::HostError { message })) = receive(&control) else {
            panic!("no reason");
        };
        assert!(message.contains(wanted), "{message}");
        child.wait().unwrap();
    }
}

/// Processor time of a process so far.
fn used(child: &Child) -> Duration {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let clock = ClockId::pid_cpu_clock_id(pid).unwrap();
    clock.now().unwrap().into()
}

fn tell(control: &OwnedFd, command: &Command) {
    send(control, &serde_json::to_vec(command).unwrap(), &[]);
}

/// Everything that was said before has been heard.
fn settle(control: &OwnedFd) {
    tell(control, &Command::Count);
    assert!(matches!(receive(control), Some(Event::Counters(_))));
}

#[test]
fn a_machine_pauses_resumes_and_keeps_to_its_share() {
    let Some((mut child, control)) = spawn_machine(SPIN) else {
        return;
    };
    assert!(matches!(receive(&control), Some(Event::Running { .. })));
    let moment = Duration::from_millis(200);

    tell(&control, &Command::Pause);
    settle(&control);
    // The kick is on its way.
    thread::sleep(moment);
    let before = used(&child);
    thread::sleep(moment);
    let paused = used(&child) - before;
    assert!(paused < moment / 10, "{paused:?}");

    tell(
        &control,
        &Command::Throttle {
            nano_cpus: Some(200_000_000),
        },
    );
    tell(&control, &Command::Resume);
    settle(&control);
    let (start, before) = (Instant::now(), used(&child));
    thread::sleep(moment * 10);
    let share = (used(&child) - before).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!((0.02..0.35).contains(&share), "{share}");
    drop(control);
    child.wait().unwrap();
}
