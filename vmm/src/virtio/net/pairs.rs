//! How many pairs of queues the driver uses (virtio 1.2, 5.1.6.5.5): what it says on the control queue, agreed between
//! the workers, of which each serves one pair.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::Chain;

/// Bytes of the one command there is: class, command, and the number.
const COMMAND: usize = 4;

/// A worker's part in what those of a device agree on. After activation the first pair alone is in use.
#[derive(Debug)]
pub struct Place {
    pair: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Wakes the worker of each pair.
    wakers: Vec<EventFd>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    in_use: usize,
    workers: Vec<Progress>,
}

/// How far the worker of a pair is with the last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Asked,
    Done,
    Failed,
    /// It serves no more, or never did.
    Gone,
}

/// One place for each of so many pairs, in order.
///
/// # Errors
///
/// Those of `eventfd(2)`.
pub fn places(count: usize) -> io::Result<Vec<Place>> {
    let wakers = (0..count).map(|_| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK));
    let shared = Arc::new(Shared {
        wakers: wakers.collect::<io::Result<_>>()?,
        state: Mutex::new(State {
            in_use: 1,
            workers: vec![Progress::Done; count],
        }),
        changed: Condvar::new(),
    });
    let place = |pair| Place {
        pair,
        shared: shared.clone(),
    };
    Ok((0..count).map(place).collect())
}

impl Place {
    /// Readable when the worker is to look at [`is_in_use`](Self::is_in_use) and to [confirm](Self::confirm).
    pub fn waker(&self) -> &EventFd {
        &self.shared.wakers[self.pair]
    }

    /// Whether the driver uses this pair.
    pub fn is_in_use(&self) -> bool {
        self.pair < self.state().in_use
    }

    /// The worker did what there was to do, or could not.
    pub fn confirm(&self, done: bool) {
        self.note(match done {
            true => Progress::Done,
            false => Progress::Failed,
        });
    }

    /// Answers a command of the driver's; how many bytes were written. Nobody but the worker of the first pair does this:
    /// what it returns is true of all the others by then.
    pub fn answer(&self, command: &mut Chain<'_>) -> u32 {
        let answer = match self.obey(command) {
            true => VIRTIO_NET_OK,
            false => VIRTIO_NET_ERR,
        };
        match command.writable.write(&[answer as u8]) {
            Ok(()) => 1,
            // The driver does not want to know.
            Err(_) => 0,
        }
    }

    fn obey(&self, command: &mut Chain<'_>) -> bool {
        let mut bytes = [0; COMMAND];
        if command.readable.len() != COMMAND || command.readable.read(&mut bytes).is_err() {
            return false;
        }
        let [class, which, low, high] = bytes;
        let count = usize::from(u16::from_le_bytes([low, high]));
        u32::from(class) == VIRTIO_NET_CTRL_MQ
            && u32::from(which) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
            && (1..=self.shared.wakers.len()).contains(&count)
            && self.set(count)
    }

    /// Tells all others, and waits for them. Whether all did it.
    fn set(&self, count: usize) -> bool {
        let mut state = self.state();
        state.in_use = count;
        let others = state.workers.iter_mut().zip(&self.shared.wakers).skip(1);
        for (progress, waker) in others {
            if *progress != Progress::Gone {
                *progress = Progress::Asked;
                // A full counter wakes as well.
                let _ = waker.write(1);
            }
        }
        let is_waiting = |state: &mut State| state.workers.contains(&Progress::Asked);
        let state = self.shared.changed.wait_while(state, is_waiting);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        !state.workers.contains(&Progress::Failed)
    }

    fn note(&self, progress: Progress) {
        self.state().workers[self.pair] = progress;
        self.shared.changed.notify_all();
    }

    /// It is true after every step.
    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    /// Nobody waits for a worker that is gone.
    fn drop(&mut self) {
        self.note(Progress::Gone);
    }
}
