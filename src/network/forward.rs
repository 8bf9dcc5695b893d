//! Ways into a machine that nothing of the host's network leads to: its agent connects whom the host wants connected.
//!
//! Here are only the queues between who wants that and who talks to the agent. A machine answers or does not; what waits
//! is bounded by [`MAX_FORWARDS`].

use std::{
    io::{self, PipeReader, PipeWriter, Read, Write},
    net::SocketAddrV4,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use vmm::NetLimits;

use super::{carried::Carried, port::Protocol};

/// Most connections and peers of a machine's ports at once: fewer than its socket device has, which is there for more than
/// that, and than bytes in a pipe.
pub const MAX_FORWARDS: usize = 384;

/// What is done with a connection when it is there; without one, it is dropped.
pub type Then = Box<dyn FnOnce(UnixStream) + Send>;

/// A connection that somebody wants to have.
pub struct Wanted {
    /// How.
    pub protocol: Protocol,
    /// To which port.
    pub to: SocketAddrV4,
    /// For whom.
    pub then: Then,
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Wanted({}/{})", self.to, self.protocol)
    }
}

/// Where to ask for connections.
#[derive(Debug, Clone)]
pub struct Forwards {
    sender: Sender<Wanted>,
    open: Arc<AtomicUsize>,
    carried: Arc<Carried>,
}

/// One of the [`MAX_FORWARDS`], while it lives.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Forwards {
    /// Where to ask, and what is asked there. What then passes is held to `limits`.
    ///
    /// # Errors
    ///
    /// Where the host has no descriptor left.
    pub fn new(limits: &NetLimits) -> io::Result<(Self, Receiver<Wanted>)> {
        let (sender, receiver) = queue()?;
        let forwards = Self {
            sender,
            open: Arc::default(),
            carried: Arc::new(Carried::new(limits)),
        };
        Ok((forwards, receiver))
    }

    /// What passes all of its connections.
    #[must_use]
    pub fn carried(&self) -> &Arc<Carried> {
        &self.carried
    }

    /// Room for one more; `None` where there is none.
    pub fn place(&self) -> Option<Place> {
        let place = Place(self.open.clone());
        // One too many goes again at once.
        (self.open.fetch_add(1, Ordering::Relaxed) < MAX_FORWARDS).then_some(place)
    }

    /// Asks for a connection, for which there is a [`Place`].
    pub fn ask(&self, wanted: Wanted) {
        self.sender.send(wanted);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One end of a queue.
#[derive(Debug)]
pub struct Sender<T> {
    items: mpsc::Sender<T>,
    bell: Arc<PipeWriter>,
}

/// The other end, which can be polled.
#[derive(Debug)]
pub struct Receiver<T> {
    items: mpsc::Receiver<T>,
    bell: PipeReader,
}

/// A queue; whoever sends bounds what is in it.
///
/// # Errors
///
/// Where the host has no descriptor left.
pub fn queue<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let (bell, rings) = io::pipe()?;
    let (sender, receiver) = mpsc::channel();
    let sender = Sender {
        items: sender,
        bell: Arc::new(rings),
    };
    let receiver = Receiver {
        items: receiver,
        bell,
    };
    Ok((sender, receiver))
}

impl<T> Sender<T> {
    /// Puts something in; it is dropped where nobody takes anything out any more.
    pub fn send(&self, item: T) {
        if self.items.send(item).is_ok() {
            let _ = (&*self.bell).write(&[0]);
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            items: self.items.clone(),
            bell: self.bell.clone(),
        }
    }
}

impl<T> Receiver<T> {
    /// Takes out what is there, when it is readable.
    pub fn take(&mut self) -> Vec<T> {
        let mut rung = [0; MAX_FORWARDS];
        // An item is in before the bell rings, and so none is forgotten.
        let _ = self.bell.read(&mut rung);
        self.items.try_iter().collect()
    }
}

impl<T> AsFd for Receiver<T> {
    /// Readable when there is something to [`take`](Self::take).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
