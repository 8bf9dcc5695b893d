//! The one thread of a device, and the events it sleeps on.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivateError, DeviceQueue, QueueError};

/// Address space of a worker's stack in bytes; only what it touches becomes memory.
const STACK: usize = 128 << 10;

/// Why a worker ends before it is stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The guest broke a queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The host refused to wait for events, or to serve one.
    #[error(transparent)]
    Events(#[from] io::Error),
}

/// A device's thread. What it works with (`S`) comes back when it is stopped.
#[derive(Debug)]
pub struct Worker<S> {
    stop: EventFd,
    thread: JoinHandle<S>,
}

impl<S: Send + 'static> Worker<S> {
    /// Starts the thread of `device`, named after it, that runs `run`, which has to return soon after the eventfd
    /// it is given becomes readable.
    ///
    /// # Errors
    ///
    /// When the host has no thread or descriptor left. What `run` holds is dropped then.
    pub fn spawn(
        device: &'static str,
        run: impl FnOnce(EventFd) -> S + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let start = || {
            let stop = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
            let seen = stop.try_clone()?;
            let thread = Builder::new()
                .name(device.to_owned())
                .stack_size(STACK)
                .spawn(move || run(seen))?;
            Ok(Self { stop, thread })
        };
        start().map_err(|source| ActivateError::SpawnWorker { device, source })
    }

    /// Stops the thread, waits for its end and returns what it worked with.
    pub fn stop(self) -> S {
        // The counter cannot be full: this is its only write.
        let _ = self.stop.write(1);
        match self.thread.join() {
            Ok(state) => state,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Descriptors to wait for, each with a token that says what it is.
///
/// A descriptor must be removed before it is closed.
#[derive(Debug)]
pub struct Poller<T> {
    epoll: Epoll,
    tokens: BTreeMap<RawFd, T>,
}

impl<T: Copy> Poller<T> {
    /// Waits for nothing yet.
    ///
    /// # Errors
    ///
    /// Those of `epoll_create1(2)`.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            tokens: BTreeMap::new(),
        })
    }

    /// Waits for `events` on `source` too, level-triggered unless they say otherwise; `ERROR` and
    /// `HANG_UP` are always among them.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`, `EEXIST` for one that is already there.
    pub fn add(
        &mut self,
        source: &(impl AsRawFd + ?Sized),
        events: EventSet,
        token: T,
    ) -> io::Result<()> {
        self.control(ControlOperation::Add, source.as_raw_fd(), events)?;
        self.tokens.insert(source.as_raw_fd(), token);
        Ok(())
    }

    /// Waits for kicks of `queue` too. Each wakes once and none is ever read, which spares a system
    /// call: a counter of 64 bits does not fill up.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_queue(&mut self, queue: &DeviceQueue, token: T) -> io::Result<()> {
        self.add(queue, EventSet::IN | EventSet::EDGE_TRIGGERED, token)
    }

    /// Changes which events of `source` to wait for.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub fn modify(&mut self, source: &(impl AsRawFd + ?Sized), events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Modify, source.as_raw_fd(), events)
    }

    /// No longer waits for `source`.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub fn remove(&mut self, source: &(impl AsRawFd + ?Sized)) -> io::Result<()> {
        self.tokens.remove(&source.as_raw_fd());
        self.control(
            ControlOperation::Delete,
            source.as_raw_fd(),
            EventSet::empty(),
        )
    }

    /// Sleeps until something happens and returns what.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait(2)` but for `EINTR`, which is tried again.
    pub fn wait(&self) -> io::Result<Vec<(T, EventSet)>> {
        let mut ready = [EpollEvent::default(); 16];
        let count = loop {
            match self.epoll.wait(-1, &mut ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        let happened = ready[..count].iter().filter_map(|event| {
            let token = *self.tokens.get(&event.fd())?;
            Some((token, EventSet::from_bits_truncate(event.events())))
        });
        Ok(happened.collect())
    }

    fn control(&self, operation: ControlOperation, fd: RawFd, events: EventSet) -> io::Result<()> {
        // An open descriptor is never negative.
        let data = u64::try_from(fd).unwrap_or_default();
        self.epoll.ctl(operation, fd, EpollEvent::new(events, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::FakeDriver;

    #[derive(Clone, Copy)]
    enum Token {
        Stop,
        Queue,
    }

    #[test]
    fn a_worker_answers_kicks_until_it_is_stopped_and_gives_its_state_back() {
        let mut driver = FakeDriver::new(&[16]);
        let mut queue = driver.context(0).queues.remove(0);
        let worker = Worker::spawn("echo", move |stop| {
            let mut poller = Poller::new().unwrap();
            poller.add(&stop, EventSet::IN, Token::Stop).unwrap();
            poller.add_queue(&queue, Token::Queue).unwrap();
            let mut served = 0;
            loop {
                for (token, _) in poller.wait().unwrap() {
                    if let Token::Stop = token {
                        return served;
                    }
                    queue
                        .serve(|chain| {
                            chain.writable.write(b"hello").unwrap();
                            served += 1;
                            Some(5)
                        })
                        .unwrap();
                }
            }
        })
        .unwrap();

        for _ in 0..2 {
            driver.add(0, &[], &[5]);
            driver.kick(0);
            assert_eq!(driver.wait_used(0).data, b"hello");
        }

        assert_eq!(worker.stop(), 2);
    }
}
