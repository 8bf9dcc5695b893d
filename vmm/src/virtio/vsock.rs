//! The socket device (virtio 1.2, 5.10) in user space: streams that the guest opens to the host.
//!
//! Each one becomes a Unix socket pair, whose other end the [`Connector`] takes. The host opens
//! none, and there are no sockets but streams. One worker serves the queues and all connections.

mod acknowledgement;
mod connection;
mod mux;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::block_signal;

use crate::config::VsockConfig;

use super::device::copy_config;
use super::{
    ActivateContext, ActivateError, DeviceQueue, Poller, ServeError, VirtioDevice, Worker,
};
use acknowledgement::Acknowledgement;
use mux::{ConnectionId, Mux};

/// Takes the host's end of a new connection, with the host port that the guest wants. An error
/// refuses the connection. Called by the worker, which serves nobody meanwhile.
pub type Connector = Arc<dyn Fn(u32, OwnedFd) -> io::Result<()> + Send + Sync>;

/// Device ID (virtio 1.2, 5.10.1).
const DEVICE_TYPE: u32 = 19;
/// Stream sockets (`VIRTIO_VSOCK_F_STREAM`, virtio 1.2, 5.10.3).
const F_STREAM: u64 = 1 << 0;
/// Of the receive, transmit and event queue: Linux fills the first with 4 KiB buffers and asks for
/// more when half are used.
const QUEUE_SIZES: [u16; 3] = [128, 128, 4];

/// The device.
pub struct Vsock {
    config: VsockConfig,
    connector: Connector,
    worker: Option<Worker<()>>,
}

/// What the worker sleeps on.
#[derive(Debug, Clone, Copy)]
enum Token {
    Stop,
    /// The guest added buffers for packets to it.
    Receive,
    /// The guest sent packets.
    Transmit,
    /// The guest has waited long enough to hear that its packets were taken.
    Acknowledge,
    Connection(ConnectionId),
}

impl Vsock {
    /// An idle device.
    #[must_use]
    pub fn new(config: VsockConfig, connector: Connector) -> Self {
        Self {
            config,
            connector,
            worker: None,
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// The configuration space is the guest's context ID (virtio 1.2, 5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.config.guest_cid).to_le_bytes();
        copy_config(&config, offset, data);
    }

    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError> {
        let events = ActivateError::events("vsock");
        let mut queues = context.queues.into_iter();
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return Err(events(io::ErrorKind::NotFound.into()));
        };
        let mut poller = Poller::new().map_err(events)?;
        poller.add_queue(&receive, Token::Receive).map_err(events)?;
        poller
            .add_queue(&transmit, Token::Transmit)
            .map_err(events)?;
        let acknowledgement = Acknowledgement::new(context.interrupt).map_err(events)?;
        poller
            .add(
                acknowledgement.timer(),
                EventSet::IN | EventSet::EDGE_TRIGGERED,
                Token::Acknowledge,
            )
            .map_err(events)?;
        let server = Server {
            mux: Mux::new(&self.config, self.connector.clone(), poller),
            receive,
            transmit,
            acknowledgement,
        };
        self.worker = Some(Worker::spawn("vsock", move |stop| server.run(&stop))?);
        Ok(())
    }

    /// Closes every connection.
    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

/// The worker.
struct Server {
    mux: Mux,
    receive: DeviceQueue,
    transmit: DeviceQueue,
    acknowledgement: Acknowledgement,
}

impl Server {
    /// Serves until it is stopped or the guest breaks a queue, which the queue has told it.
    fn run(mut self, stop: &EventFd) {
        // A write to a host that closed its end is an error here, whatever the process around
        // makes of the signal. It fails where the signal is blocked already.
        let _ = block_signal(libc::SIGPIPE);
        let _ = self.serve(stop);
    }

    fn serve(&mut self, stop: &EventFd) -> Result<(), ServeError> {
        self.mux.watch_stop(stop)?;
        // Packets that arrived before the first kick could be waited for.
        let mut has_sent = true;
        loop {
            self.serve_queues(&mut has_sent)?;
            self.mux.settle();
            for (token, events) in self.mux.wait()? {
                match token {
                    Token::Stop => return Ok(()),
                    Token::Receive => {}
                    Token::Transmit => has_sent = true,
                    Token::Acknowledge => self.acknowledgement.expire(),
                    Token::Connection(id) => self.mux.on_socket(id, events),
                }
            }
        }
    }

    /// Takes packets of the guest while refusals do not pile up, then gives it those for it. Twice,
    /// for the second makes room for more of the first; each queue kicks itself where even that
    /// was not all.
    fn serve_queues(&mut self, has_sent: &mut bool) -> Result<(), ServeError> {
        for _ in 0..2 {
            if *has_sent && self.mux.accepts() {
                *has_sent = false;
                let mut taken = 0;
                let is_awaited = self.transmit.serve_quietly(|chain| {
                    self.mux.receive(&mut chain.readable);
                    taken += 1;
                    Some(0)
                })?;
                self.acknowledgement.owe(taken, is_awaited)?;
            }
            if self.mux.has_packet()
                && self
                    .receive
                    .serve_quietly(|chain| self.mux.transmit(&mut chain.writable))?
            {
                self.acknowledgement.give();
            }
            if !*has_sent {
                break;
            }
        }
        Ok(())
    }
}
