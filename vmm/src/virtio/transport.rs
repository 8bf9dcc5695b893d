//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2): registers, negotiation, the device
//! status state machine.
//!
//! ```text
//!   reset -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK
//!     ^                               features       queues are fixed,
//!     |                               are fixed      the device is activated
//!     +--- 0 written, from anywhere ---------------------+
//! ```
//!
//! What a driver writes in a state that does not allow it is ignored: after FEATURES_OK the
//! features, after DRIVER_OK or while a queue is ready its size and addresses. The data path does
//! not pass here: kicks and interrupts are eventfds.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::memory::GuestMemory;

use super::{ActivateContext, ActivateError, DeviceQueue, Interrupt, VirtioDevice};

/// Bytes of address space one transport takes.
pub const SIZE: u64 = 0x1000;
/// Offset of the register a driver writes a queue's index to (4.2.2, `QueueNotify`).
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// In the range for those who have no PCI vendor ID: "pill".
const VENDOR: u32 = 0x6c6c_6970;
/// Where the device's own configuration begins.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// Features of every device here.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// Is told of a device that cannot begin its work because the host lacks something. The machine is of no use then.
pub type OnFailure = Box<dyn Fn(ActivateError) + Send>;

/// One device at its place on the memory-mapped bus.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Interrupt,
    on_failure: OnFailure,
    queues: Vec<QueueState>,
    /// `NEEDS_RESET` is not kept here but asked of `interrupt`.
    status: u32,
    driver_features: u64,
    /// Which half of the features the driver looks at and writes; other values have none.
    device_features_page: u32,
    driver_features_page: u32,
    queue_select: u32,
}

/// A queue as its driver configures it.
struct QueueState {
    kick: EventFd,
    max_size: u16,
    size: u32,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl MmioTransport {
    /// Puts `device` behind registers. `kicks` has one nonblocking eventfd for each of the
    /// device's queues; what makes them fire is the caller's to arrange.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: Interrupt,
        kicks: Vec<EventFd>,
        on_failure: OnFailure,
    ) -> Self {
        let sizes = device.queue_max_sizes().iter();
        let queues = kicks
            .into_iter()
            .zip(sizes)
            .map(|(kick, &max_size)| QueueState {
                kick,
                max_size,
                size: 0,
                ready: false,
                descriptors: 0,
                available: 0,
                used: 0,
            });
        Self {
            queues: queues.collect(),
            device,
            memory,
            interrupt,
            on_failure,
            status: 0,
            driver_features: 0,
            device_features_page: 0,
            driver_features_page: 0,
            queue_select: 0,
        }
    }

    fn register(&self, offset: u32) -> u32 {
        let queue = self.queues.get(self.queue_select as usize);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered(), self.device_features_page),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size.into()),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => self.status(),
            // There is no shared memory region: its length and base are all ones.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.in_state(DRIVER, FEATURES_OK) => {
                set_half(&mut self.driver_features, self.driver_features_page, value);
            }
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = value,
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ if self.in_state(FEATURES_OK, DRIVER_OK) => {
                if let Some(queue) = self.queues.get_mut(self.queue_select as usize) {
                    queue.set_register(offset, value);
                }
            }
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn status(&self) -> u32 {
        match self.interrupt.is_reset_needed() {
            true => self.status | NEEDS_RESET,
            false => self.status,
        }
    }

    /// Whether the driver got as far as `reached` but not to `not_yet`, and nothing is wrong.
    fn in_state(&self, reached: u32, not_yet: u32) -> bool {
        self.status() & (reached | not_yet | FAILED | NEEDS_RESET) == reached
    }

    /// A kick that KVM did not turn into an event itself, by an unusual width for example.
    fn kick(&self, queue: u32) {
        if let Some(queue) = self.queues.get(queue as usize) {
            // Nonblocking; full means kicked.
            let _ = queue.kick.write(1);
        }
    }

    /// A write to `Status` (2.1, 3.1.1): the driver adds bits one step at a time, or resets.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // Bits are never taken back, but for FEATURES_OK that was not accepted.
        let added = value & !self.status;
        self.status |= added & FAILED;
        if added & ACKNOWLEDGE != 0 && self.status & FAILED == 0 {
            self.status |= ACKNOWLEDGE;
        }
        if added & DRIVER != 0 && self.in_state(ACKNOWLEDGE, DRIVER) {
            self.status |= DRIVER;
        }
        if added & FEATURES_OK != 0
            && self.in_state(DRIVER, FEATURES_OK)
            && self.are_features_valid()
        {
            self.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && self.in_state(FEATURES_OK, DRIVER_OK) {
            self.status |= DRIVER_OK;
            self.activate();
        }
    }

    fn are_features_valid(&self) -> bool {
        let unknown = self.driver_features & !self.offered();
        unknown == 0 && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// Hands the queues to the device. What stands in the way is the driver's doing or the lack
    /// of a host resource. The driver is told of both in the one way there is: NEEDS_RESET.
    fn activate(&mut self) {
        let queues: Option<Vec<_>> = self.queues.iter().map(|queue| self.build(queue)).collect();
        let Some(queues) = queues else {
            return self.interrupt.needs_reset();
        };
        let context = ActivateContext {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        };
        if let Err(error) = self.device.activate(context) {
            self.interrupt.needs_reset();
            (self.on_failure)(error);
        }
    }

    /// The queue for the device; `None` for a ready one whose rings are not in guest memory.
    fn build(&self, state: &QueueState) -> Option<DeviceQueue> {
        let mut queue = Queue::new(state.max_size).ok()?;
        if state.ready {
            queue.try_set_size(u16::try_from(state.size).ok()?).ok()?;
            queue
                .try_set_desc_table_address(GuestAddress(state.descriptors))
                .ok()?;
            queue
                .try_set_avail_ring_address(GuestAddress(state.available))
                .ok()?;
            queue
                .try_set_used_ring_address(GuestAddress(state.used))
                .ok()?;
            queue.set_event_idx(self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            queue.set_ready(true);
            if !queue.is_valid(&*self.memory) {
                return None;
            }
        }
        let kick = state.kick.try_clone().ok()?;
        // A kick from before a reset is not one for this life of the queue.
        let _ = kick.read();
        Some(DeviceQueue::new(
            queue,
            self.memory.clone(),
            kick,
            self.interrupt.clone(),
        ))
    }

    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.clear();
        self.status = 0;
        self.driver_features = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
    }
}

impl QueueState {
    fn set_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_QUEUE_READY => self.ready = value == 1,
            _ if self.ready => {}
            VIRTIO_MMIO_QUEUE_NUM => self.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut self.descriptors, 0, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut self.descriptors, 1, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut self.available, 0, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut self.available, 1, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut self.used, 0, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut self.used, 1, value),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.size = 0;
        self.ready = false;
        self.descriptors = 0;
        self.available = 0;
        self.used = 0;
    }
}

/// The low (0) or high (1) half of `value`.
fn half(value: u64, index: u32) -> u32 {
    match index {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, index: u32, half: u32) {
    match index {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            self.device.read_config(offset - CONFIG, data);
            return;
        }
        // Registers are 32 bits wide and accessed whole (4.2.2.2); anything else reads zeroes.
        data.fill(0);
        if let Ok(register) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *register = self.register(offset as u32).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            if self.in_state(DRIVER, 0) {
                self.device.write_config(offset - CONFIG, data);
            }
            return;
        }
        if let Ok(register) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.set_register(offset as u32, u32::from_le_bytes(register));
        }
    }
}

#[cfg(test)]
mod tests;
