//! How a device calls its driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A queue has used buffers (virtio 1.2, 4.2.2, `InterruptStatus` bit 0).
const USED_BUFFER: u32 = 1 << 0;
/// The configuration or the device status changed (bit 1).
const CONFIG_CHANGE: u32 = 1 << 1;

/// The interrupt of one device; clones raise the same one.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    line: EventFd,
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
}

impl Interrupt {
    /// An interrupt that is raised by writing to `line`.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self(Arc::new(Shared {
            line,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        }))
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver to read the configuration again. The new contents must be in place.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG_CHANGE);
    }

    /// Tells the driver that the device stopped and only a reset helps (`DEVICE_NEEDS_RESET`,
    /// virtio 1.2, 2.1.2).
    pub fn needs_reset(&self) {
        self.0.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG_CHANGE);
    }

    /// Whether the device asked for a reset since [`clear`](Self::clear).
    #[must_use]
    pub fn is_reset_needed(&self) -> bool {
        self.0.needs_reset.load(Ordering::Acquire)
    }

    /// The `InterruptStatus` register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.0.status.load(Ordering::Acquire)
    }

    /// A write to the `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// The `ConfigGeneration` register.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Forgets what is pending: the device was reset.
    pub fn clear(&self) {
        self.0.status.store(0, Ordering::Release);
        self.0.needs_reset.store(false, Ordering::Release);
    }

    fn raise(&self, bits: u32) {
        self.0.status.fetch_or(bits, Ordering::AcqRel);
        // A nonblocking eventfd refuses a write only when its counter is full: the interrupt is
        // pending already.
        let _ = self.0.line.write(1);
    }
}
