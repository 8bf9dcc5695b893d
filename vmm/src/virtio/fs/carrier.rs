//! The worker: requests from the queues to the server, answers from it back to where they are waited for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::block_signal;

use crate::virtio::net::vectored;
use crate::virtio::{
    ActivateContext, Buffers, Chain, Deferred, DeviceQueue, Poller, QueueError, Taken,
};

use super::request::{self, Header, Kind, LONGEST, Unique};

/// Most requests that wait for answers at once. A driver has no more places in its ring; the rest of them
/// stay there.
const PENDING: usize = 128;
/// Answers taken in one round, so that requests have their turn.
const ROUND: usize = 64;

/// The way to the server, which outlives a reset of the device.
pub struct Link {
    /// `None` once the server is gone.
    server: Option<OwnedFd>,
    /// Names of requests so far: an answer to what was asked before a reset names none that is waited for.
    named: u64,
}

impl Link {
    pub fn new(server: OwnedFd) -> Self {
        Self {
            server: Some(server),
            named: 0,
        }
    }
}

/// What the worker sleeps on.
#[derive(Debug, Clone, Copy)]
enum Token {
    Stop,
    Requests,
    Server,
}

/// Why the worker ends before it is stopped.
#[derive(Debug, thiserror::Error)]
enum CarryError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Events(#[from] io::Error),
}

/// A request that the server has.
#[derive(Debug)]
struct Pending {
    /// What the server knows it by.
    name: u64,
    unique: Unique,
    queue: usize,
    deferred: Deferred,
}

/// The worker.
pub struct Carrier {
    link: Link,
    queues: Vec<DeviceQueue>,
    /// Each at the place that the end of its name says.
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    poller: Poller<Token>,
    /// The socket takes no more for now.
    is_full: bool,
    /// For answers.
    buffer: Vec<u8>,
}

impl Carrier {
    /// Takes the queues over.
    pub fn new(link: Link, context: ActivateContext) -> io::Result<Self> {
        let mut poller = Poller::new()?;
        for queue in &context.queues {
            poller.add_queue(queue, Token::Requests)?;
        }
        if let Some(server) = &link.server {
            poller.add(server, EventSet::IN, Token::Server)?;
        }
        Ok(Self {
            link,
            queues: context.queues,
            pending: (0..PENDING).map(|_| None).collect(),
            free: (0..PENDING).rev().collect(),
            poller,
            is_full: false,
            buffer: vec![0; LONGEST],
        })
    }

    /// Carries until it is stopped or the guest breaks a queue, which the queue has told it.
    pub fn run(mut self, stop: &EventFd) -> Link {
        // A server that is gone is an error of the write and nothing else.
        let _ = block_signal(libc::SIGPIPE);
        let _ = self.carry(stop);
        self.link
    }

    fn carry(&mut self, stop: &EventFd) -> Result<(), CarryError> {
        self.poller.add(stop, EventSet::IN, Token::Stop)?;
        loop {
            let mut is_full = false;
            for queue in 0..self.queues.len() {
                is_full |= self.send(queue)?;
            }
            self.watch_server(is_full)?;
            for (token, _) in self.poller.wait()? {
                match token {
                    Token::Stop => return Ok(()),
                    Token::Requests => {}
                    Token::Server => self.receive()?,
                }
            }
        }
    }

    /// Passes requests on, as many as the server takes; whether it would not take more.
    fn send(&mut self, index: usize) -> Result<bool, CarryError> {
        let (link, pending, free) = (&mut self.link, &mut self.pending, &mut self.free);
        let (mut is_full, mut is_lost) = (false, false);
        let queue = &mut self.queues[index];
        queue.take(|chain, deferred| {
            let Some(header) = Header::take(&mut chain.readable) else {
                return Taken::Answered(request::put(
                    &mut chain.writable,
                    Unique(0),
                    &request::plain(Unique(0), libc::EINVAL),
                ));
            };
            let (unique, kind) = (header.unique, header.kind);
            let answer = |chain: &mut Chain<'_>, errno| {
                let answer = request::plain(unique, errno);
                Taken::Answered(request::put(&mut chain.writable, unique, &answer))
            };
            if kind == Kind::Needless {
                return answer(chain, 0);
            }
            let Some(server) = link.server.as_ref().filter(|_| !is_lost) else {
                return answer(chain, libc::ENOTCONN);
            };
            let Some(&place) = free.last() else {
                return Taken::Not;
            };
            let name = link.named << 8 | place as u64;
            let header = header.renamed(name);
            match vectored::write(server.as_fd(), &header, &chain.readable) {
                Ok(_) => link.named += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    is_full = true;
                    return Taken::Not;
                }
                // More buffers than one call takes or bytes than the socket does, or no memory for them.
                Err(error) if is_of_request(&error) => return answer(chain, libc::EIO),
                Err(_) => {
                    is_lost = true;
                    return answer(chain, libc::ENOTCONN);
                }
            }
            match kind {
                Kind::Answered => {
                    free.pop();
                    pending[place] = Some(Pending {
                        name,
                        unique,
                        queue: index,
                        deferred,
                    });
                    Taken::Later
                }
                Kind::Confirmed => answer(chain, 0),
                Kind::Silent | Kind::Needless => Taken::Answered(0),
            }
        })?;
        queue.interrupt()?;
        if is_lost {
            self.lose()?;
        }
        Ok(is_full)
    }

    /// Wakes when the socket takes more, where it does not.
    fn watch_server(&mut self, is_full: bool) -> Result<(), CarryError> {
        if let Some(server) = &self.link.server
            && self.is_full != is_full
        {
            let mut events = EventSet::IN;
            events.set(EventSet::OUT, is_full);
            self.poller.modify(server, events)?;
            self.is_full = is_full;
        }
        Ok(())
    }

    /// Takes answers, a round of them at most: for more, the poller wakes again at once.
    fn receive(&mut self) -> Result<(), CarryError> {
        for _ in 0..ROUND {
            let Some(server) = &self.link.server else {
                break;
            };
            match recv(server.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                // An end, or what no server sends.
                Ok(0) => return self.lose(),
                Ok(length) => {
                    self.answer(length)?;
                    // Nothing more is asked for: what comes unasked, the poller sees.
                    if self.free.len() == PENDING {
                        break;
                    }
                }
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => {}
                Err(_) => return self.lose(),
            }
        }
        for queue in &mut self.queues {
            queue.interrupt()?;
        }
        Ok(())
    }

    /// Gives the answer of `length` bytes to who waits for it. One that nobody waits for, or that is none,
    /// is dropped.
    fn answer(&mut self, length: usize) -> Result<(), CarryError> {
        let Some(answer) = self.buffer.get_mut(..length) else {
            return Ok(());
        };
        let Some(name) = request::answered(answer) else {
            return Ok(());
        };
        let place = (name & 0xff) as usize;
        let waiting = self.pending.get_mut(place);
        let Some(waiting) = waiting.and_then(|waiting| waiting.take_if(|w| w.name == name)) else {
            return Ok(());
        };
        self.free.push(place);
        request::rename(answer, waiting.unique);
        let put = |writable: &mut Buffers<'_>| request::put(writable, waiting.unique, answer);
        Ok(self.queues[waiting.queue].answer(&waiting.deferred, put)?)
    }

    /// The server is gone: whoever waits for it, and whoever will, gets an error.
    fn lose(&mut self) -> Result<(), CarryError> {
        if let Some(server) = self.link.server.take() {
            self.poller.remove(&server)?;
        }
        for place in 0..self.pending.len() {
            let Some(waiting) = self.pending[place].take() else {
                continue;
            };
            self.free.push(place);
            let answer = request::plain(waiting.unique, libc::ENOTCONN);
            let put = |writable: &mut Buffers<'_>| request::put(writable, waiting.unique, &answer);
            self.queues[waiting.queue].answer(&waiting.deferred, put)?;
        }
        for queue in &mut self.queues {
            queue.interrupt()?;
            queue.kick();
        }
        Ok(())
    }
}

/// Whether sending failed for what was sent, and not because nobody listens.
fn is_of_request(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    [libc::EINVAL, libc::EMSGSIZE, libc::ENOBUFS, libc::ENOMEM]
        .iter()
        .any(|known| errno == Some(*known))
}
