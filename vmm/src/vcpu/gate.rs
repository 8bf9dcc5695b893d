//! What all vCPUs of a machine pass before they enter the guest: open, closed for a while, or closed for good.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Why a gate is closed; it opens when no reason is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The parent asked for it.
    Paused = 1,
    /// The machine has used up its processor time for now.
    Throttled = 2,
    /// The machine is to end. This one stays.
    Stopped = 4,
}

/// The gate.
#[derive(Debug, Default)]
pub struct Gate {
    /// Bits of [`Reason`].
    reasons: AtomicU8,
    lock: Mutex<()>,
    opened: Condvar,
}

impl Gate {
    /// Adds a reason. Who is in the guest already has to be taken out.
    pub fn close(&self, reason: Reason) {
        self.reasons.fetch_or(reason as u8, Ordering::AcqRel);
        if reason == Reason::Stopped {
            self.wake();
        }
    }

    /// Takes a reason away.
    pub fn open(&self, reason: Reason) {
        self.reasons.fetch_and(!(reason as u8), Ordering::AcqRel);
        self.wake();
    }

    /// Whether it can be passed without [waiting](Self::wait).
    pub fn is_open(&self) -> bool {
        self.reasons.load(Ordering::Acquire) == 0
    }

    /// Waits until it is open; `false` where it never will be.
    pub fn wait(&self) -> bool {
        let mut guard = self.guard();
        loop {
            match self.reasons.load(Ordering::Acquire) {
                0 => return true,
                reasons if reasons & Reason::Stopped as u8 != 0 => return false,
                _ => {}
            }
            let woken = self.opened.wait(guard);
            guard = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// With the lock held, so that nobody is between looking and waiting.
    fn wake(&self) {
        let _guard = self.guard();
        self.opened.notify_all();
    }

    fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn it_opens_when_no_reason_is_left() {
        let gate = Gate::default();
        gate.close(Reason::Paused);
        gate.close(Reason::Throttled);
        gate.open(Reason::Throttled);
        assert!(!gate.is_open());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.wait());
            gate.open(Reason::Paused);
            assert!(waiter.join().unwrap());
        });
        assert!(gate.is_open());
    }

    #[test]
    fn an_end_lets_nobody_wait() {
        let gate = Gate::default();
        gate.close(Reason::Paused);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.wait());
            gate.close(Reason::Stopped);
            assert!(!waiter.join().unwrap());
        });
    }
}
