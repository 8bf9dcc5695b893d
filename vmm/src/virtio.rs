//! Virtio 1.2 devices and what they share.
//!
//! A device gets guest memory, queues and an interrupt; it knows neither KVM nor the bus. Its
//! transport negotiates and hands over, then the device's one worker thread owns the queues.

mod balloon;
pub mod block;
mod chain;
mod console;
mod device;
pub mod fs;
mod interrupt;
mod meter;
pub mod net;
mod queue;
mod rate;
mod rng;
pub mod transport;
mod vsock;
mod worker;

#[cfg(test)]
mod fake;

pub use balloon::{Balloon, BalloonSize};
pub use chain::{Buffers, BuffersError, Chain};
pub use console::{Console, ConsoleTail};
pub use device::{ActivateContext, ActivateError, VirtioDevice};
pub use interrupt::Interrupt;
pub use meter::Meter;
pub use queue::{Deferred, DeviceQueue, Filled, QueueError, Taken};
pub use rate::Bucket;
pub use rng::Rng;
pub use vsock::{Connector, Vsock};
pub use worker::{Poller, ServeError, Worker};
