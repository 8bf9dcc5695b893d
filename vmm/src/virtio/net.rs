//! The network device (virtio 1.2, 5.1): one pair of queues, and a [`Backend`](backend::Backend) that
//! frames come from and go to.
//!
//! It switches nothing and routes nothing. What it does decide is who a frame may say it is from: the
//! guest's own addresses, so that no other machine has to trust that.

mod backend;
pub mod frame;
mod limit;
mod server;
pub mod tap;
pub(super) mod vectored;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use crate::config::{NetConfig, NetLink};

use backend::{Backend, Stream, Tap};
use frame::Filter;
pub use limit::NetRates;
use server::{Port, Server};

use super::device::copy_config;
use super::{ActivateContext, ActivateError, Meter, VirtioDevice, Worker};

/// Device ID (5.1.1).
const DEVICE_TYPE: u32 = 1;
const NAME: &str = "net";
/// Of the receive and transmit queue. Linux fills the first with 1.5 KiB buffers to begin with.
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Least MTU (5.1.4): that of IPv4.
const MIN_MTU: u16 = 68;

/// Why a network device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A group address, or none.
    #[error("{} is no MAC address of one machine", .0.map(|byte| format!("{byte:02x}")).join(":"))]
    Mac([u8; 6]),
    /// Below what IP needs.
    #[error("an MTU of {0} bytes is below the least one, {MIN_MTU}")]
    Mtu(u16),
    /// The descriptor.
    #[error("cannot use its descriptor without waiting")]
    Nonblocking(#[source] io::Error),
    /// For its limits.
    #[error("cannot make a timer for its limits")]
    Timer(#[source] io::Error),
}

/// The device.
pub struct Net {
    features: u64,
    mac: [u8; 6],
    mtu: u16,
    /// Shared with the worker, which ends it when the other side of the back end goes.
    link_up: Arc<AtomicBool>,
    meter: Meter,
    /// `None` while a worker has it, and for good where a worker could not be started.
    port: Option<Port>,
    worker: Option<Worker<Port>>,
}

impl Net {
    /// An idle device over `descriptor`, which passes no more than `rates`.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn new(
        config: &NetConfig,
        rates: &NetRates,
        descriptor: OwnedFd,
    ) -> Result<Self, NetError> {
        if config.mac == [0; 6] || config.mac[0] & 1 != 0 {
            return Err(NetError::Mac(config.mac));
        }
        if config.mtu < MIN_MTU {
            return Err(NetError::Mtu(config.mtu));
        }
        crate::output::set_nonblocking(&descriptor).map_err(NetError::Nonblocking)?;
        let backend: Box<dyn Backend> = match config.link {
            NetLink::Tap { udp_offload } => Box::new(Tap::new(descriptor, udp_offload)),
            NetLink::Stream => Box::new(Stream::new(descriptor)),
        };
        let (receive_gate, transmit_gate) = rates.gates().map_err(NetError::Timer)?;
        let link_up = Arc::new(AtomicBool::new(true));
        let meter = Meter::default();
        Ok(Self {
            features: backend.features()
                | 1 << VIRTIO_NET_F_MAC
                | 1 << VIRTIO_NET_F_MTU
                | 1 << VIRTIO_NET_F_MRG_RXBUF
                | 1 << VIRTIO_NET_F_STATUS,
            mac: config.mac,
            mtu: config.mtu,
            port: Some(Port {
                backend,
                filter: Filter::new(config),
                link_up: link_up.clone(),
                meter: meter.clone(),
                receive_gate,
                transmit_gate,
            }),
            meter,
            link_up,
            worker: None,
        })
    }

    /// What passes it: frames without their virtio header.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_net_config` (5.1.4) up to the MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = match self.link_up.load(Ordering::Acquire) {
            true => VIRTIO_NET_S_LINK_UP as u8,
            false => 0,
        };
        let [low, high] = self.mtu.to_le_bytes();
        let [a, b, c, d, e, f] = self.mac;
        // One pair of queues; without the feature the driver does not look.
        let config = [a, b, c, d, e, f, status, 0, 1, 0, low, high];
        copy_config(&config, offset, data);
    }

    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError> {
        let events = ActivateError::events(NAME);
        let port = self
            .port
            .take()
            .ok_or_else(|| events(io::ErrorKind::NotConnected.into()))?;
        let server = Server::new(port, context).map_err(events)?;
        self.worker = Some(Worker::spawn(NAME, move |stop| server.run(&stop))?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.port = Some(worker.stop());
        }
    }
}

#[cfg(test)]
mod tests;
