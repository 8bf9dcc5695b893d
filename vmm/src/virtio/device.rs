//! What a transport asks of a device.

use std::io;

use crate::memory::GuestMemory;

use super::{DeviceQueue, Interrupt};

/// A virtio device as its transport sees it.
///
/// ```text
///             activate                     reset
///   Idle ------------------> Running ------------------> Idle
///    holds its resources      a worker holds them         they came back
/// ```
///
/// `activate` moves the queues and what the device needs to serve them into a [`Worker`]; `reset`
/// stops and joins it. The transport calls `activate` only on an idle device, `reset` at any time
/// (a no-op on an idle one), and neither concurrently with any other call.
///
/// [`Worker`]: super::Worker
pub trait VirtioDevice: Send {
    /// Device ID, virtio 1.2 section 5.
    fn device_type(&self) -> u32;

    /// Feature bits of this device type on offer. The transport adds those of every device:
    /// `VERSION_1`, `INDIRECT_DESC` and `EVENT_IDX`.
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each queue, a power of two up to 32768; one entry a queue.
    fn queue_max_sizes(&self) -> &[u16];

    /// Fills `data` from the configuration space at `offset`. Bytes past its end read as zeroes: all of them, where a
    /// device has none.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    /// Takes a write to the configuration space; most devices have nothing writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts to serve the queues.
    ///
    /// # Errors
    ///
    /// When the host cannot spare what the device needs; the driver then sees
    /// `DEVICE_NEEDS_RESET` and the device stays idle.
    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError>;

    /// Stops serving: on return no thread of the device touches guest memory, and the device can
    /// be activated again.
    fn reset(&mut self);
}

/// Answers a read of a configuration space whose contents are `config`, as
/// [`VirtioDevice::read_config`] is to.
pub fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).map_or(config.len(), |offset| offset.min(config.len()));
    let count = data.len().min(config.len() - start);
    data[..count].copy_from_slice(&config[start..start + count]);
    data[count..].fill(0);
}

/// What a device gets to work with.
#[derive(Debug)]
pub struct ActivateContext {
    /// Guest memory, for devices that need it beyond the chains that the queues yield.
    pub memory: GuestMemory,
    /// Every queue in order. One that the driver left unready yields no chain.
    pub queues: Vec<DeviceQueue>,
    /// Raised by the queues themselves; here for configuration changes and device failures.
    pub interrupt: Interrupt,
    /// The accepted feature bits: a subset of those on offer.
    pub features: u64,
}

/// Why a device could not be activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// No worker thread.
    #[error("cannot start the worker thread of virtio {device}")]
    SpawnWorker {
        /// Which device.
        device: &'static str,
        /// From `clone(2)` and what comes before it.
        #[source]
        source: io::Error,
    },
    /// An event queue or descriptor was not to be had.
    #[error("cannot set up the events of virtio {device}")]
    Events {
        /// Which device.
        device: &'static str,
        /// From the system call.
        #[source]
        source: io::Error,
    },
}

impl ActivateError {
    /// Makes what a system call says about the events of `device` an error.
    pub fn events(device: &'static str) -> impl Fn(io::Error) -> Self + Copy {
        move |source| Self::Events { device, source }
    }
}
