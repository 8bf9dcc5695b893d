//! The worker of a pair of queues: frames from the back end into the receive queue, frames of the transmit queue to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::block_signal;

use crate::virtio::{
    Buffers, DeviceQueue, Filled, Interrupt, Meter, Poller, QueueError, ServeError,
};

use super::backend::{Backend, Incoming, Outgoing};
use super::frame::{ETHERNET, Filter, HEADER, Header, INSPECTED, MAX_FRAME};
use super::limit::Gate;
use super::pairs::Place;
use super::vectored::MAX_BUFFERS;

/// Frames from outside taken in one round, so that a flood of them leaves the guest's own their turn.
const ROUND: usize = 64;

/// What outlives a reset of the device.
pub struct Port {
    pub backend: Box<dyn Backend>,
    pub filter: Filter,
    pub link_up: Arc<AtomicBool>,
    pub meter: Meter,
    /// Frames to the guest.
    pub receive_gate: Gate,
    /// Frames of the guest.
    pub transmit_gate: Gate,
}

/// What the worker sleeps on.
#[derive(Debug, Clone, Copy)]
enum Token {
    Stop,
    /// The guest added buffers for frames to it.
    Receive,
    /// The guest sent frames.
    Transmit,
    Backend,
    /// Frames to the guest may pass again.
    ReceiveGate,
    /// Those of the guest may.
    TransmitGate,
    /// The guest has commands.
    Control,
    /// The guest uses another number of pairs.
    Pairs,
}

/// The queues that a worker serves.
pub struct Queues {
    pub receive: DeviceQueue,
    pub transmit: DeviceQueue,
    /// The first worker has it, where the driver wants one.
    pub control: Option<DeviceQueue>,
}

/// The worker.
pub struct Server {
    port: Port,
    receive: DeviceQueue,
    transmit: DeviceQueue,
    control: Option<DeviceQueue>,
    place: Place,
    interrupt: Interrupt,
    features: u64,
    poller: Poller<Token>,
    /// Which events of the back end the poller waits for; `None` when it is gone, and while the driver does not use
    /// this pair.
    interest: Option<EventSet>,
    /// A frame waits for buffers of the guest's.
    wants_buffers: bool,
    /// A frame waits for its time.
    wants_time: bool,
    /// A frame of the guest's waits for the back end.
    wants_backend: bool,
}

impl Server {
    /// Takes the queues over.
    pub fn new(
        port: Port,
        queues: Queues,
        place: Place,
        interrupt: Interrupt,
        features: u64,
    ) -> io::Result<Self> {
        let mut poller = Poller::new()?;
        poller.add_queue(&queues.receive, Token::Receive)?;
        poller.add_queue(&queues.transmit, Token::Transmit)?;
        if let Some(control) = &queues.control {
            poller.add_queue(control, Token::Control)?;
        }
        let woken = EventSet::IN | EventSet::EDGE_TRIGGERED;
        poller.add(place.waker(), woken, Token::Pairs)?;
        let gates = [
            (port.receive_gate.timer(), Token::ReceiveGate),
            (port.transmit_gate.timer(), Token::TransmitGate),
        ];
        for (timer, token) in gates {
            if let Some(timer) = timer {
                poller.add(timer, EventSet::IN, token)?;
            }
        }
        let mut server = Self {
            port,
            receive: queues.receive,
            transmit: queues.transmit,
            control: queues.control,
            place,
            interrupt,
            features,
            poller,
            interest: None,
            wants_buffers: false,
            wants_time: false,
            wants_backend: false,
        };
        if server.place.is_in_use() {
            server.plug()?;
        }
        Ok(server)
    }

    /// Serves until it is stopped or the guest breaks a queue, which the queue has told it.
    pub fn run(mut self, stop: &EventFd) -> Port {
        // A peer that is gone is an error of the write and nothing else.
        let _ = block_signal(libc::SIGPIPE);
        let _ = self.serve(stop);
        self.port
    }

    fn serve(&mut self, stop: &EventFd) -> Result<(), ServeError> {
        self.poller.add(stop, EventSet::IN, Token::Stop)?;
        // Frames that the guest sent before the first kick could be waited for.
        let mut has_sent = true;
        let mut has_come = true;
        self.obey()?;
        loop {
            if has_sent || self.wants_backend {
                self.send()?;
            }
            if has_come {
                self.deliver()?;
            }
            self.watch_backend()?;
            (has_sent, has_come) = (false, false);
            for (token, events) in self.poller.wait()? {
                match token {
                    Token::Stop => return Ok(()),
                    Token::Receive => has_come = true,
                    Token::Transmit => has_sent = true,
                    Token::ReceiveGate => {
                        self.port.receive_gate.acknowledge();
                        has_come = true;
                    }
                    Token::TransmitGate => {
                        self.port.transmit_gate.acknowledge();
                        has_sent = true;
                    }
                    Token::Control => self.obey()?,
                    Token::Pairs => {
                        self.follow();
                        (has_sent, has_come) = (true, true);
                    }
                    Token::Backend => {
                        has_sent |= events.contains(EventSet::OUT);
                        has_come |= events.contains(EventSet::IN);
                        let gone = EventSet::HANG_UP | EventSet::ERROR;
                        if events.intersects(gone) && !events.contains(EventSet::IN) {
                            self.cut();
                        }
                    }
                }
            }
        }
    }

    /// Takes frames of the guest. Without a link they go nowhere.
    fn send(&mut self) -> Result<(), ServeError> {
        let is_up = self.interest.is_some();
        let mut result = match is_up {
            true => self.port.backend.flush(),
            false => Ok(()),
        };
        if result.is_ok() {
            let (port, features) = (&mut self.port, self.features);
            self.transmit.serve(|chain| {
                if is_up && !port.transmit_gate.is_open() {
                    return None;
                }
                if is_up && result.is_ok() {
                    result = transmit(port, &mut chain.readable, features);
                }
                match &result {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                    _ => Some(0),
                }
            })?;
        }
        // The last frame may have been cut, too.
        if is_up && result.is_ok() {
            result = self.port.backend.flush();
        }
        self.wants_backend = false;
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wants_backend = true,
            Err(_) => self.cut(),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Gives the guest frames from outside, a round of them at most.
    fn deliver(&mut self) -> Result<(), ServeError> {
        (self.wants_buffers, self.wants_time) = (false, false);
        let mut delivered = 0;
        while self.interest.is_some() {
            if delivered == ROUND {
                self.receive.kick();
                break;
            }
            if !self.port.receive_gate.is_open() {
                self.wants_time = true;
                break;
            }
            let incoming = match self.port.backend.receive() {
                Ok(incoming) => incoming,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.cut();
                    break;
                }
            };
            let length = incoming.frame.len() as u64;
            if fill(&mut self.receive, incoming, self.features)? == Filled::NoRoom {
                self.wants_buffers = true;
                break;
            }
            self.port.meter.count_in(length);
            self.port.receive_gate.count(length);
            self.port.backend.taken();
            delivered += 1;
        }
        Ok(self.receive.interrupt()?)
    }

    /// Waits for what can be gone on with: not for frames that there is no room for, which would wake
    /// at once and for ever.
    fn watch_backend(&mut self) -> io::Result<()> {
        let Some(present) = self.interest else {
            return Ok(());
        };
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, !self.wants_buffers && !self.wants_time);
        wanted.set(EventSet::OUT, self.wants_backend);
        if wanted != present {
            self.poller.modify(&*self.port.backend, wanted)?;
            self.interest = Some(wanted);
        }
        Ok(())
    }

    /// Answers commands of the guest's.
    fn obey(&mut self) -> Result<(), ServeError> {
        if let Some(control) = &mut self.control {
            control.serve(|command| Some(self.place.answer(command)))?;
        }
        Ok(())
    }

    /// Begins to serve this pair, or leaves off, as the guest says.
    fn follow(&mut self) {
        let done = match self.place.is_in_use() {
            true => self.port.backend.attach(true).and_then(|()| self.plug()),
            false => {
                self.unplug();
                self.port.backend.attach(false)
            }
        };
        self.place.confirm(done.is_ok());
    }

    /// Waits for the back end, while there is one.
    fn plug(&mut self) -> io::Result<()> {
        if self.interest.is_none() && self.port.link_up.load(Ordering::Acquire) {
            self.poller
                .add(&*self.port.backend, EventSet::IN, Token::Backend)?;
            self.interest = Some(EventSet::IN);
        }
        Ok(())
    }

    /// Whether it was waited for.
    fn unplug(&mut self) -> bool {
        let was_there = self.interest.take().is_some();
        if was_there {
            let _ = self.poller.remove(&*self.port.backend);
        }
        was_there
    }

    /// The other side is gone: the guest sees its cable pulled.
    fn cut(&mut self) {
        if self.unplug() {
            self.port.link_up.store(false, Ordering::Release);
            self.interrupt.config_changed();
        }
    }
}

/// One frame of the guest's. One that is malformed or says it is from somebody else is dropped.
fn transmit(port: &mut Port, frame: &mut Buffers<'_>, features: u64) -> io::Result<()> {
    let Some(length) = frame.len().checked_sub(HEADER) else {
        return Ok(());
    };
    // One place for the device's own part.
    if !(ETHERNET..=MAX_FRAME).contains(&length) || frame.slices().len() >= MAX_BUFFERS {
        return Ok(());
    }
    let mut header = [0; HEADER];
    let mut front = [0; INSPECTED];
    let front = &mut front[..length.min(INSPECTED)];
    // Both are there.
    if frame.read(&mut header).is_err() || frame.read(front).is_err() {
        return Ok(());
    }
    let Some(header) = Header::decode(header).checked(length, features) else {
        return Ok(());
    };
    if !port.filter.allows(front) {
        return Ok(());
    }
    port.backend.send(Outgoing {
        header,
        front,
        rest: frame,
    })?;
    port.meter.count_out(length as u64);
    port.transmit_gate.count(length as u64);
    Ok(())
}

/// Gives the guest one frame. What it cannot take, by what it negotiated or by its buffers, is told
/// to be delivered, that is, dropped.
fn fill(
    queue: &mut DeviceQueue,
    incoming: Incoming<'_>,
    features: u64,
) -> Result<Filled, QueueError> {
    if !incoming.header.is_for_guest(features) {
        return Ok(Filled::TooLong);
    }
    let most = match features & 1 << VIRTIO_NET_F_MRG_RXBUF {
        0 => 1,
        _ => usize::MAX,
    };
    queue.fill(HEADER + incoming.frame.len(), most, |chains| {
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        let header = incoming.header.encode(count);
        let mut parts = [&header[..], incoming.frame];
        for chain in chains {
            for part in &mut parts {
                let (now, later) = part.split_at(part.len().min(chain.len()));
                // As much as there is room for.
                let _ = chain.write(now);
                *part = later;
            }
        }
    })
}
