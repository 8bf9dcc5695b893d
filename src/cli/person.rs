//! The person at the other end: signals and a resized window, as orders to the container, and the terminal.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use nix::sys::{
    signal::{SigSet, Signal, raise},
    signalfd::{SfdFlags, SignalFd},
};

use super::terminal::{self, RawTerminal};
use crate::container::{attach::Orders, session::Order};

/// Signals that are the container's. Those that stop and continue a job are this process's own.
const FORWARDED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// So many SIGINT and SIGTERM mean it, whatever the container makes of them; as Docker's command line.
const INSISTENCE: u8 = 3;

/// Reads this process's signals, and has its terminal as it was when this is dropped.
#[derive(Debug)]
pub struct Person {
    signals: SignalFd,
    /// Those of [`FORWARDED`] are the container's. Otherwise they are read for the terminal's sake alone.
    forwarded: bool,
    raw: Option<RawTerminal>,
    asked_to_end: u8,
}

impl Person {
    /// Takes over the signals of the calling thread and of those it starts from now on, where they are `forwarded`. A
    /// change of window size counts only with a `terminal`, which takes single keys when it is `raw`.
    pub fn new(terminal: bool, raw: bool, forwarded: bool) -> anyhow::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in FORWARDED.into_iter().filter(|_| forwarded || raw) {
            mask.add(signal);
        }
        if terminal {
            mask.add(Signal::SIGWINCH);
        }
        mask.thread_block().context("cannot block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("cannot read signals")?;
        Ok(Self {
            signals,
            forwarded,
            raw: raw.then(RawTerminal::enter).transpose()?,
            asked_to_end: 0,
        })
    }

    /// What the signal would have done, once the terminal is as before.
    fn suffer(&mut self, signal: Signal) {
        self.raw = None;
        // Neither fails with a signal's number.
        let _ = SigSet::from(signal).thread_unblock();
        let _ = raise(signal);
    }
}

impl AsFd for Person {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl Orders for Person {
    fn next(&mut self) -> Option<Order> {
        // An error means that there is nothing to read after all.
        let info = self.signals.read_signal().ok()??;
        let number = u8::try_from(info.ssi_signo).ok()?;
        match Signal::try_from(i32::from(number)).ok()? {
            Signal::SIGWINCH => Some(Order::Resize(terminal::size())),
            signal if !self.forwarded => {
                self.suffer(signal);
                None
            }
            Signal::SIGINT | Signal::SIGTERM if self.asked_to_end + 1 == INSISTENCE => {
                Some(Order::Kill)
            }
            signal => {
                if matches!(signal, Signal::SIGINT | Signal::SIGTERM) {
                    self.asked_to_end += 1;
                }
                Some(Order::Signal(number))
            }
        }
    }
}
