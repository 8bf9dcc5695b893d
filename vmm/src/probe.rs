//! Decides whether an open `/dev/kvm` can run a Linux guest, by running a tiny one.
//!
//! Some hosts have a `/dev/kvm` that accepts every call and then fails at the first instruction of
//! kernel code that its software backend does not know, or needs minutes where hardware needs
//! milliseconds. No capability tells them apart; executing what Linux executes does. This module
//! opens nothing and looks at no files: the rest of a host's check-up is its caller's.

mod guest;

use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use guest::Step;

/// Longest that the guest may take. Hardware needs under a millisecond, nested software emulation
/// some ten, and hundreds where the host is overloaded; only a backend that hangs comes here.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest to wait for a vCPU to come back from its kick before its thread is left behind.
const KICK_GRACE: Duration = Duration::from_millis(50);
/// Slowest acceptable kernel-mode instruction. Hardware takes below 1 ns, emulated hardware about
/// 10, a backend that emulates each instruction 600.
const SLOWEST_INSTRUCTION_NS: f64 = 200.0;
/// What every machine of this crate relies on.
const CAPABILITIES: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];
/// Three pages below the BIOS area that Intel's real-mode emulation needs.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// What a good `/dev/kvm` showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProbeReport {
    /// KVM's API version.
    pub api_version: i32,
    /// Most vCPUs that one machine can have.
    pub max_vcpus: usize,
    /// Time of one simple kernel-mode instruction in nanoseconds.
    pub instruction_ns: f64,
    /// How long the probe took.
    pub elapsed: Duration,
}

/// Why a `/dev/kvm` cannot run a Linux guest.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The descriptor is not KVM's, or a KVM from before 2.6.22.
    #[error("this /dev/kvm has API version {found}, not {KVM_API_VERSION}")]
    ApiVersion {
        /// What it said; negative for an error.
        found: i32,
    },
    /// A capability that the machine is built on is absent.
    #[error("this /dev/kvm lacks {name}")]
    MissingCapability {
        /// Name of the constant in KVM's API.
        name: &'static str,
    },
    /// A call that sets up the tiny guest failed.
    #[error("this /dev/kvm cannot {what}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The guest did not get past a step.
    #[error(
        "this /dev/kvm cannot run Linux: a test guest in kernel mode stopped at {step} ({reason})"
    )]
    Stopped {
        /// What the guest was about to execute.
        step: &'static str,
        /// How it ended.
        reason: String,
    },
    /// The guest works, but each of its kernel-mode instructions is emulated one by one.
    #[error(
        "this /dev/kvm is too slow to run Linux: it emulates kernel code \
         ({instruction_ns:.0} ns an instruction)"
    )]
    TooSlow {
        /// Time of one simple instruction in nanoseconds.
        instruction_ns: f64,
    },
}

impl ProbeError {
    fn setup(what: &'static str, source: impl Into<io::Error>) -> Self {
        ProbeError::Setup {
            what,
            source: source.into(),
        }
    }
}

/// Runs the tiny guest on the open `/dev/kvm` behind `kvm`.
///
/// Takes a few milliseconds, and never much over five seconds even where the backend hangs. Uses
/// the first real-time signal to kick the guest in that case.
///
/// # Errors
///
/// Says why no guest can be run.
pub fn probe(kvm: impl AsFd) -> Result<ProbeReport, ProbeError> {
    let started = Instant::now();
    let kvm = kvm
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| ProbeError::setup("be duplicated", error))?;
    let kvm = kvm_of(kvm);
    let api_version = kvm.get_api_version();
    if api_version != KVM_API_VERSION as i32 {
        return Err(ProbeError::ApiVersion { found: api_version });
    }
    if let Some((_, name)) = CAPABILITIES
        .iter()
        .find(|(cap, _)| !kvm.check_extension(*cap))
    {
        return Err(ProbeError::MissingCapability { name });
    }
    let guest = Guest::new(&kvm)?;
    let instruction_ns = run_bounded(guest)?;
    if instruction_ns > SLOWEST_INSTRUCTION_NS {
        return Err(ProbeError::TooSlow { instruction_ns });
    }
    Ok(ProbeReport {
        api_version,
        max_vcpus: kvm.get_max_vcpus(),
        instruction_ns,
        elapsed: started.elapsed(),
    })
}

fn kvm_of(descriptor: OwnedFd) -> Kvm {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor is open, and its ownership moves.
    unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) }
}

/// Runs the guest on a thread of its own, so that a vCPU that never returns holds up nobody.
fn run_bounded(mut guest: Guest) -> Result<f64, ProbeError> {
    extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), on_kick)
        .map_err(|error| ProbeError::setup("be watched: no signal handler", error))?;
    let progress = Arc::new(AtomicU8::new(Step::Start as u8));
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("kvm-probe".into())
        .spawn({
            let progress = progress.clone();
            move || {
                let outcome = guest.run(&progress);
                // A caller that has given up listens no more.
                let _ = sender.send(outcome);
            }
        })
        .map_err(|error| ProbeError::setup("be tried: no thread is left for it (raise ulimit -u, or pids.max of the control group)", error))?;
    let outcome = receiver.recv_timeout(DEADLINE).or_else(|_| {
        // The vCPU returns with EINTR; its thread then reports the step it was in.
        let _ = thread.kill(SIGRTMIN());
        receiver.recv_timeout(KICK_GRACE)
    });
    outcome.unwrap_or_else(|_| {
        let step = Step::from_number(progress.load(Ordering::Relaxed)).unwrap_or(Step::Start);
        Err(ProbeError::Stopped {
            step: step.name(),
            reason: timed_out(),
        })
    })
}

fn timed_out() -> String {
    format!("nothing more in {} ms", DEADLINE.as_millis())
}

/// The tiny machine. Fields drop in this order: vCPU and VM before the memory they use.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Guest {
    fn new(kvm: &Kvm) -> Result<Guest, ProbeError> {
        let vm = kvm
            .create_vm()
            .map_err(|error| ProbeError::setup("create a VM", error))?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), guest::MEMORY)])
            .map_err(|error| ProbeError::setup("get guest memory", io::Error::other(error)))?;
        guest::load(&memory)
            .map_err(|error| ProbeError::setup("fill guest memory", io::Error::other(error)))?;
        map_memory(&vm, &memory)?;
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(|error| ProbeError::setup("place the TSS", error))?;
        vm.create_irq_chip()
            .map_err(|error| ProbeError::setup("create an interrupt controller", error))?;
        let vcpu = vm
            .create_vcpu(0)
            .map_err(|error| ProbeError::setup("create a vCPU", error))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| ProbeError::setup("list the CPU's features", error))?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(|error| ProbeError::setup("set the vCPU's features", error))?;
        enter_long_mode(&vcpu).map_err(|error| ProbeError::setup("set registers", error))?;
        Ok(Guest {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Runs to the end; the time of one instruction in nanoseconds.
    fn run(&mut self, progress: &AtomicU8) -> Result<f64, ProbeError> {
        let mut step = Step::Start;
        let mut round_started: Option<Instant> = None;
        let mut fastest = Duration::MAX;
        let reason = loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(guest::PORT, [guest::WRONG])) => {
                    break "it gave a wrong result".to_owned();
                }
                Ok(VcpuExit::IoOut(guest::PORT, [number])) => {
                    let Some(next) = Step::from_number(*number) else {
                        break format!("it reported an unknown step {number}");
                    };
                    // The least of several rounds: the others may hold a preemption.
                    if let Some(round_started) = round_started {
                        fastest = fastest.min(round_started.elapsed());
                    }
                    step = next;
                    progress.store(step as u8, Ordering::Relaxed);
                    match step {
                        Step::Speed => round_started = Some(Instant::now()),
                        Step::Done => {
                            return Ok(fastest.as_nanos() as f64
                                / f64::from(guest::INSTRUCTIONS_PER_ROUND));
                        }
                        _ => {}
                    }
                }
                Ok(exit) => break describe(&exit),
                Err(error) if error.errno() == libc::EINTR => break timed_out(),
                Err(error) => break format!("KVM_RUN: {error}"),
            }
        };
        Err(ProbeError::Stopped {
            step: step.name(),
            reason,
        })
    }
}

fn describe(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::InternalError => "KVM cannot emulate it".into(),
        VcpuExit::Shutdown => "triple fault".into(),
        VcpuExit::Hlt => "the vCPU halted".into(),
        VcpuExit::FailEntry(reason, _) => format!("the CPU refused to enter it: {reason:#x}"),
        other => format!("unexpected exit {other:?}"),
    }
}

fn map_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), ProbeError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is of this length and outlives the VM, by the order of fields in
        // `Guest`; no Rust reference into it exists while the guest runs.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|error| ProbeError::setup("map guest memory", error))?;
    }
    Ok(())
}

/// Registers as at a 64-bit kernel's entry: flat segments, paging on, interrupts off.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
    const CR4_PAE_PGE_OSFXSR_OSXMMEXCPT: u64 = 0x6a0;
    const EFER_SCE_LME_LMA: u64 = 0x501;
    const TYPE_CODE: u8 = 0xb;
    const TYPE_DATA: u8 = 0x3;
    let segment = |selector: u16, type_: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l: u8::from(type_ == TYPE_CODE),
        db: u8::from(type_ == TYPE_DATA),
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = segment(0x08, TYPE_CODE);
    let data = segment(0x10, TYPE_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
    sregs.cr3 = guest::PML4;
    sregs.cr4 = CR4_PAE_PGE_OSFXSR_OSXMMEXCPT;
    sregs.efer = EFER_SCE_LME_LMA;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rsp, regs.rflags) = (guest::CODE, guest::STACK, 0x2);
    vcpu.set_regs(&regs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn every_step_has_its_number() {
        for number in Step::Start as u8..=Step::Done as u8 {
            assert_eq!(
                Step::from_number(number).map(|step| step as u8),
                Some(number)
            );
        }
        assert_eq!(Step::from_number(0), None);
        assert_eq!(Step::from_number(guest::WRONG), None);
    }

    #[test]
    fn guest_fits_between_its_page_tables() {
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), guest::MEMORY)]).unwrap();
        guest::load(&memory).unwrap();
        assert!(
            guest::code_length() <= 0x2000,
            "the code reaches the next page table"
        );
    }

    #[test]
    fn a_file_that_is_not_kvm_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(probe(&null), Err(ProbeError::ApiVersion { .. })));
    }
}
