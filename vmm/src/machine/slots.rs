//! Places for virtio devices: an address range and an interrupt line each, wired to KVM so that
//! kicks and interrupts pass as events.

use std::fmt::Write;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, Overlap};
use crate::memory::GuestMemory;
use crate::vcpu::VcpuEnd;
use crate::virtio::transport::{self, MmioTransport};
use crate::virtio::{Interrupt, VirtioDevice};
use crate::x86::layout::IO_APIC_PINS;

/// Where the first device is; the others follow.
const FIRST_ADDRESS: u64 = 0xd000_0000;
/// The lines below belong to what PCs have there.
const FIRST_LINE: u8 = 5;
/// Places in all.
const SLOTS: u8 = IO_APIC_PINS - FIRST_LINE;

/// Why a device has no place.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// All interrupt lines are taken.
    #[error("a machine has no more than {SLOTS} virtio devices")]
    Full,
    /// Out of descriptors.
    #[error("cannot create an event for a virtio device")]
    Event(#[source] std::io::Error),
    /// `KVM_IRQFD`.
    #[error("KVM cannot connect interrupt line {line}")]
    Irqfd {
        /// Which one.
        line: u8,
        /// From the ioctl.
        #[source]
        source: Errno,
    },
    /// `KVM_IOEVENTFD`.
    #[error("KVM cannot connect the kick of queue {queue} at {address:#x}")]
    Ioeventfd {
        /// Which one.
        queue: u32,
        /// Of the register.
        address: u64,
        /// From the ioctl.
        #[source]
        source: Errno,
    },
    /// The addresses are taken.
    #[error("cannot place a virtio device")]
    Place(#[source] Overlap),
}

/// The devices placed so far.
pub struct Slots<'vm> {
    vm: &'vm VmFd,
    memory: GuestMemory,
    bus: Bus,
    count: u8,
    command_line: String,
    ends: Sender<VcpuEnd>,
}

impl<'vm> Slots<'vm> {
    /// All places are free. `ends` is told of a device that the host has not the means for.
    pub fn new(vm: &'vm VmFd, memory: GuestMemory, ends: Sender<VcpuEnd>) -> Self {
        Self {
            vm,
            memory,
            bus: Bus::default(),
            count: 0,
            command_line: String::new(),
            ends,
        }
    }

    /// Puts `device` into the next place.
    pub fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), SlotError> {
        if self.count == SLOTS {
            return Err(SlotError::Full);
        }
        let line = FIRST_LINE + self.count;
        let address = FIRST_ADDRESS + u64::from(self.count) * transport::SIZE;
        let raise = event()?;
        self.vm
            .register_irqfd(&raise, line.into())
            .map_err(|source| SlotError::Irqfd { line, source })?;
        let mut kicks = Vec::new();
        for queue in 0..device.queue_max_sizes().len() as u32 {
            let kick = event()?;
            let address = address + transport::QUEUE_NOTIFY;
            self.vm
                .register_ioevent(&kick, &IoEventAddress::Mmio(address), queue)
                .map_err(|source| SlotError::Ioeventfd {
                    queue,
                    address,
                    source,
                })?;
            kicks.push(kick);
        }
        let interrupt = Interrupt::new(raise);
        let ends = self.ends.clone();
        let on_failure = Box::new(move |error| {
            // Nobody listens to a machine that has ended.
            let _ = ends.send(VcpuEnd::Device(error));
        });
        let transport =
            MmioTransport::new(device, self.memory.clone(), interrupt, kicks, on_failure);
        self.bus
            .insert(address, transport::SIZE, Arc::new(Mutex::new(transport)))
            .map_err(SlotError::Place)?;
        // Writing to a string does not fail.
        let _ = write!(
            self.command_line,
            " virtio_mmio.device={}@{address:#x}:{line}",
            transport::SIZE,
        );
        self.count += 1;
        Ok(())
    }

    /// The bus with all devices, and what tells the kernel of them, to be appended to its command
    /// line.
    pub fn finish(self) -> (Bus, String) {
        (self.bus, self.command_line)
    }
}

fn event() -> Result<EventFd, SlotError> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(SlotError::Event)
}
