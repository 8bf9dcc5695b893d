//! A virtual CPU on its own thread.
//!
//! ```text
//!   Created --start--> Running --an exit that ends the machine--> Ended
//!                       ^   |                                       ^
//!          the gate opens   the gate closes (kick)                  |
//!                       |   v                                       |
//!                      Waiting ------ the gate closes for good -----+
//! ```
//!
//! The first end of any vCPU is the machine's; every vCPU reports its own and then its thread is
//! over. What a guest does on a vCPU reaches the host as an exit, and an exit is either one of the
//! few ends below or an access that the bus takes.

mod gate;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::{KvmRunWrapper, VcpuExit, VcpuFd};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::virtio::ActivateError;

pub use gate::{Gate, Reason};

/// A byte written here powers the machine off.
pub const POWER_OFF_PORT: u16 = 0x600;
/// The keyboard controller's command port, of which there is only this: its reset line.
pub const RESET_PORT: u16 = 0x64;
/// The command that pulses it.
pub const RESET_COMMAND: u8 = 0xfe;

/// Address space of a vCPU's stack in bytes; only what it touches becomes memory.
const STACK: usize = 256 << 10;

/// Why a vCPU runs no more.
#[derive(Debug)]
pub enum VcpuEnd {
    /// The guest wrote to [`POWER_OFF_PORT`].
    PowerOff,
    /// The guest pulsed the reset line.
    Reset,
    /// The guest met an exception while it handled an exception.
    TripleFault,
    /// The host could not go on.
    Failed(VcpuError),
    /// The guest set a device going that the host has not the means for.
    Device(ActivateError),
    /// The gate was closed for good.
    Stopped,
}

/// What stops the host from running a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// `KVM_RUN`.
    #[error("KVM cannot run vCPU {id}")]
    Run {
        /// Which one.
        id: u8,
        /// From the ioctl.
        #[source]
        source: Errno,
    },
    /// The processor refused the vCPU's state.
    #[error("the processor refused to enter the guest on vCPU {id}, reason {reason:#x}")]
    FailEntry {
        /// Which one.
        id: u8,
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// The guest did something that KVM has to emulate and cannot.
    #[error("KVM gave up on vCPU {id} at instruction {instruction:#x}, suberror {suberror}")]
    Internal {
        /// Which one.
        id: u8,
        /// Guest address of the instruction.
        instruction: u64,
        /// `KVM_INTERNAL_ERROR_*`: 1 is emulation.
        suberror: u32,
    },
    /// Memory of the guest that the host cannot provide.
    #[error("vCPU {id} touched guest memory at {address:#x} that the host cannot provide")]
    Memory {
        /// Which one.
        id: u8,
        /// Guest address.
        address: u64,
    },
    /// An exit that nothing here asks KVM for.
    #[error("KVM left vCPU {id} for an unknown reason: {exit}")]
    Unexpected {
        /// Which one.
        id: u8,
        /// As kvm-ioctls names it.
        exit: String,
    },
}

/// A vCPU that is ready to run.
pub struct Vcpu {
    fd: VcpuFd,
    id: u8,
    ports: Arc<Bus>,
    mmio: Arc<Bus>,
    gate: Arc<Gate>,
}

/// A vCPU that runs on its thread.
pub struct VcpuHandle {
    /// The handle's own mapping of what KVM shares with the thread, for `immediate_exit`.
    run: KvmRunWrapper,
    thread: JoinHandle<()>,
}

/// Why a vCPU's thread does not run.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStartError {
    /// The signal that takes it out of the guest.
    #[error("cannot install the handler of the signal that kicks vCPUs")]
    Signal(#[source] Errno),
    /// `kvm_run`.
    #[error("cannot map the state that KVM shares for vCPU {id}")]
    Map {
        /// Which one.
        id: u8,
        /// From `mmap(2)`.
        #[source]
        source: Errno,
    },
    /// The thread itself.
    #[error("cannot start the thread of vCPU {id}")]
    Spawn {
        /// Which one.
        id: u8,
        /// From `clone(2)` and what comes before it.
        #[source]
        source: io::Error,
    },
}

/// Prepares the process for [`VcpuHandle::kick`]: the signal that kicks a vCPU only interrupts.
///
/// # Errors
///
/// Those of `sigaction(2)`.
pub fn install_kick() -> Result<(), VcpuStartError> {
    extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore).map_err(VcpuStartError::Signal)
}

impl Vcpu {
    /// A vCPU whose registers are in place, with what answers its accesses and what it has to pass.
    #[must_use]
    pub fn new(fd: VcpuFd, id: u8, ports: Arc<Bus>, mmio: Arc<Bus>, gate: Arc<Gate>) -> Self {
        Self {
            fd,
            id,
            ports,
            mmio,
            gate,
        }
    }

    /// Runs it on a thread of its own, which sends its end to `ends`. `run_size` is the size of
    /// what KVM shares of a vCPU.
    ///
    /// # Errors
    ///
    /// When the host has no thread or memory left.
    pub fn start(
        mut self,
        run_size: usize,
        ends: Sender<VcpuEnd>,
    ) -> Result<VcpuHandle, VcpuStartError> {
        let id = self.id;
        let run = KvmRunWrapper::mmap_from_fd(&self.fd, run_size)
            .map_err(|source| VcpuStartError::Map { id, source })?;
        let thread = Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(STACK)
            .spawn(move || {
                let end = self.run();
                // Nobody listens any more when the machine ended by another vCPU.
                let _ = ends.send(end);
            })
            .map_err(|source| VcpuStartError::Spawn { id, source })?;
        Ok(VcpuHandle { run, thread })
    }

    fn run(&mut self) -> VcpuEnd {
        let id = self.id;
        while self.pass_gate() {
            match self.fd.run() {
                Ok(VcpuExit::MmioRead(address, data)) => self.mmio.read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => self.mmio.write(address, data),
                Ok(VcpuExit::IoOut(POWER_OFF_PORT, _)) => return VcpuEnd::PowerOff,
                Ok(VcpuExit::IoOut(RESET_PORT, [RESET_COMMAND, ..])) => return VcpuEnd::Reset,
                // No input, no output pending: ready for a command.
                Ok(VcpuExit::IoIn(RESET_PORT, data)) => data.fill(0),
                Ok(VcpuExit::IoIn(port, data)) => self.ports.read(port.into(), data),
                Ok(VcpuExit::IoOut(port, data)) => self.ports.write(port.into(), data),
                Ok(VcpuExit::Shutdown) => return VcpuEnd::TripleFault,
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    return VcpuEnd::Failed(VcpuError::FailEntry { id, reason });
                }
                Ok(VcpuExit::MemoryFault { gpa: address, .. }) => {
                    return VcpuEnd::Failed(VcpuError::Memory { id, address });
                }
                Ok(VcpuExit::InternalError) => return VcpuEnd::Failed(self.internal_error()),
                Ok(exit) => {
                    let exit = format!("{exit:?}");
                    return VcpuEnd::Failed(VcpuError::Unexpected { id, exit });
                }
                // A signal, or a vCPU that another one has not started yet.
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
                Err(source) => return VcpuEnd::Failed(VcpuError::Run { id, source }),
            }
        }
        VcpuEnd::Stopped
    }

    /// Waits at the gate where it is closed; `false` where it stays so.
    fn pass_gate(&mut self) -> bool {
        while !self.gate.is_open() {
            if !self.gate.wait() {
                return false;
            }
            // Whoever closes the gate after this sets it again, after the gate that is looked at next.
            self.fd.set_kvm_immediate_exit(0);
        }
        true
    }

    fn internal_error(&mut self) -> VcpuError {
        // SAFETY: The exit reason says that this is the member of the union that KVM filled in.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        VcpuError::Internal {
            id: self.id,
            instruction: self.fd.get_regs().map_or(0, |registers| registers.rip),
            suberror,
        }
    }
}

impl VcpuHandle {
    /// Takes the vCPU out of the guest, so that it looks at the gate.
    pub fn kick(&mut self) {
        // A thread that is about to enter the guest when the signal comes does not miss it: KVM
        // looks at this flag on entry.
        self.run.as_mut_ref().immediate_exit = 1;
        // Fails only for a thread that has ended.
        let _ = self.thread.kill(SIGRTMIN());
    }

    /// Waits for the end of its thread.
    pub fn join(self) {
        let _ = self.thread.join();
    }
}
