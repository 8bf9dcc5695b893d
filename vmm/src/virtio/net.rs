//! The network device (virtio 1.2, 5.1): pairs of queues, and for each a [`Backend`](backend::Backend) that
//! frames come from and go to, and a worker.
//!
//! It switches nothing and routes nothing. What it does decide is who a frame may say it is from: the
//! guest's own addresses, so that no other machine has to trust that.

mod backend;
pub mod frame;
mod limit;
mod pairs;
mod server;
pub mod tap;
pub(super) mod vectored;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::config::{NetConfig, NetLink};

use backend::{Backend, Stream, Tap};
use frame::Filter;
pub use limit::NetRates;
use server::{Port, Queues, Server};

use super::device::copy_config;
use super::{ActivateContext, ActivateError, Meter, VirtioDevice, Worker};

/// Device ID (5.1.1).
const DEVICE_TYPE: u32 = 1;
const NAME: &str = "net";
/// Most pairs of queues of one device.
pub const MAX_PAIRS: u16 = 8;
/// Of a receive and a transmit queue. Linux fills the first with 1.5 KiB buffers to begin with.
const PAIR_SIZES: [u16; 2] = [256, 256];
/// Of the control queue. Linux has one command under way.
const CONTROL_SIZE: u16 = 16;
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
    /// None, more than the device has pairs of queues, or a stream with more than one.
    #[error("{0} descriptors are none, or too many for what they are")]
    Pairs(usize),
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
    /// Pairs of queues.
    pairs: u16,
    queue_sizes: Vec<u16>,
    /// Shared with the workers, which end it when the other side of a back end goes.
    link_up: Arc<AtomicBool>,
    meter: Meter,
    /// Of each pair, in order; not those that a worker has, and for good not those whose worker could not be started.
    ports: Vec<Port>,
    workers: Vec<Worker<Port>>,
}

impl Net {
    /// An idle device with a pair of queues over each of `descriptors`, which pass no more than `rates` together. A TAP
    /// device's queues are handed over attached.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn new(
        config: &NetConfig,
        rates: &NetRates,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, NetError> {
        let most = match config.link {
            NetLink::Tap { .. } => MAX_PAIRS,
            NetLink::Stream => 1,
        };
        if !(1..=most.into()).contains(&descriptors.len()) {
            return Err(NetError::Pairs(descriptors.len()));
        }
        let backend = |descriptor: OwnedFd| -> Result<Box<dyn Backend>, NetError> {
            crate::output::set_nonblocking(&descriptor).map_err(NetError::Nonblocking)?;
            Ok(match config.link {
                NetLink::Tap { udp_offload } => Box::new(Tap::new(descriptor, udp_offload)),
                NetLink::Stream => Box::new(Stream::new(descriptor)),
            })
        };
        let backends: Result<Vec<_>, _> = descriptors.into_iter().map(backend).collect();
        Self::over(config, rates, backends?)
    }

    fn over(
        config: &NetConfig,
        rates: &NetRates,
        backends: Vec<Box<dyn Backend>>,
    ) -> Result<Self, NetError> {
        if config.mac == [0; 6] || config.mac[0] & 1 != 0 {
            return Err(NetError::Mac(config.mac));
        }
        if config.mtu < MIN_MTU {
            return Err(NetError::Mtu(config.mtu));
        }
        let pairs = backends.len();
        let mut features = backends.first().map_or(0, |backend| backend.features())
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_STATUS;
        let mut queue_sizes = PAIR_SIZES.repeat(pairs);
        if pairs > 1 {
            features |= 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
            queue_sizes.push(CONTROL_SIZE);
        }
        let link_up = Arc::new(AtomicBool::new(true));
        let meter = Meter::default();
        let port = |backend| -> Result<Port, NetError> {
            let (receive_gate, transmit_gate) = rates.gates().map_err(NetError::Timer)?;
            Ok(Port {
                backend,
                filter: Filter::new(config),
                link_up: link_up.clone(),
                meter: meter.clone(),
                receive_gate,
                transmit_gate,
            })
        };
        Ok(Self {
            features,
            mac: config.mac,
            mtu: config.mtu,
            pairs: u16::try_from(pairs).map_err(|_| NetError::Pairs(pairs))?,
            queue_sizes,
            ports: backends.into_iter().map(port).collect::<Result<_, _>>()?,
            link_up,
            meter,
            workers: Vec::new(),
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
        &self.queue_sizes
    }

    /// `struct virtio_net_config` (5.1.4) up to the MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = match self.link_up.load(Ordering::Acquire) {
            true => VIRTIO_NET_S_LINK_UP as u8,
            false => 0,
        };
        let [pairs, more_pairs] = self.pairs.to_le_bytes();
        let [low, high] = self.mtu.to_le_bytes();
        let [a, b, c, d, e, f] = self.mac;
        let config = [a, b, c, d, e, f, status, 0, pairs, more_pairs, low, high];
        copy_config(&config, offset, data);
    }

    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError> {
        let events = ActivateError::events(NAME);
        if self.ports.len() != usize::from(self.pairs) {
            return Err(events(io::ErrorKind::NotConnected.into()));
        }
        // Without the feature there is one pair, and the control queue comes right after it (5.1.2).
        let used = match context.features & 1 << VIRTIO_NET_F_MQ {
            0 => 1,
            _ => self.ports.len(),
        };
        for unused in &mut self.ports[used..] {
            unused.backend.attach(false).map_err(events)?;
        }
        let places = pairs::places(used).map_err(events)?;
        let mut queues = context.queues.into_iter();
        let both: Vec<_> = (0..used)
            .map_while(|_| Some((queues.next()?, queues.next()?)))
            .collect();
        let has_control = context.features & 1 << VIRTIO_NET_F_CTRL_VQ != 0;
        let mut control = queues.next().filter(|_| has_control);
        let ports: Vec<_> = self.ports.drain(..used).collect();
        for ((port, place), (receive, transmit)) in ports.into_iter().zip(places).zip(both) {
            let queues = Queues {
                receive,
                transmit,
                control: control.take(),
            };
            let interrupt = context.interrupt.clone();
            let server = Server::new(port, queues, place, interrupt, context.features);
            let server = server.map_err(events)?;
            let worker = Worker::spawn(NAME, move |stop| server.run(&stop))?;
            self.workers.push(worker);
        }
        Ok(())
    }

    fn reset(&mut self) {
        let returned = self.workers.drain(..).map(Worker::stop);
        let ports: Vec<_> = returned.chain(self.ports.drain(..)).collect();
        self.ports = ports;
    }
}

#[cfg(test)]
mod tests;
