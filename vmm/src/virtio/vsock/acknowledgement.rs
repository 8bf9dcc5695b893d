//! Interrupts that only say that the guest's packets were taken: put off.
//!
//! A guest does nothing with that news but free memory, yet an interrupt costs it as much as a
//! packet does. Most packets are soon answered, and the interrupt of the answer carries the news
//! along: virtio-mmio has one for all queues (virtio 1.2, 4.2.2).

use std::io;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use crate::virtio::Interrupt;

/// Longest that a guest waits for the news.
const DELAY: Duration = Duration::from_millis(1);
/// Most packets without news: a quarter of the queue, so that a driver that fills it never waits
/// for the delay.
const MOST: usize = super::QUEUE_SIZES[1] as usize / 4;

/// The device's interrupt and what of it is due.
pub struct Acknowledgement {
    interrupt: Interrupt,
    timer: TimerFd,
    /// The timer runs. It is not stopped when the interrupt is given early: that would cost a
    /// system call a packet.
    is_running: bool,
    /// The guest waits for an interrupt for packets taken, and for how many.
    is_awaited: bool,
    taken: usize,
}

impl Acknowledgement {
    pub fn new(interrupt: Interrupt) -> io::Result<Self> {
        Ok(Self {
            interrupt,
            timer: TimerFd::new()?,
            is_running: false,
            is_awaited: false,
            taken: 0,
        })
    }

    /// Becomes readable, by an edge each time, when [`expire`](Self::expire) is to be called.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// The guest's packets were taken, and whether it waits for an interrupt for these.
    pub fn owe(&mut self, taken: usize, is_awaited: bool) -> io::Result<()> {
        self.is_awaited |= is_awaited;
        if !self.is_awaited {
            return Ok(());
        }
        self.taken += taken;
        if self.taken >= MOST {
            self.give();
        } else if !self.is_running {
            self.timer.reset(DELAY, None)?;
            self.is_running = true;
        }
        Ok(())
    }

    /// The time is up.
    pub fn expire(&mut self) {
        self.is_running = false;
        if self.is_awaited {
            self.give();
        }
    }

    /// Interrupts the guest, for whatever reason.
    pub fn give(&mut self) {
        self.is_awaited = false;
        self.taken = 0;
        self.interrupt.used_buffer();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

    fn acknowledgement() -> (Acknowledgement, EventFd) {
        let line = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
        let interrupt = Interrupt::new(line.try_clone().unwrap());
        (Acknowledgement::new(interrupt).unwrap(), line)
    }

    #[test]
    fn what_nobody_waits_for_is_never_given() {
        let (mut acknowledgement, line) = acknowledgement();
        acknowledgement.owe(2 * MOST, false).unwrap();
        acknowledgement.expire();
        assert!(line.read().is_err());
    }

    #[test]
    fn many_packets_are_acknowledged_at_once() {
        let (mut acknowledgement, line) = acknowledgement();
        acknowledgement.owe(MOST - 1, true).unwrap();
        assert!(line.read().is_err());
        acknowledgement.owe(1, false).unwrap();
        assert_eq!(line.read().unwrap(), 1);
        acknowledgement.expire();
        assert!(line.read().is_err());
    }

    #[test]
    fn few_packets_are_acknowledged_when_the_time_is_up() {
        let (mut acknowledgement, line) = acknowledgement();
        for _ in 0..2 {
            acknowledgement.owe(1, true).unwrap();
            assert!(line.read().is_err());
            acknowledgement.timer.wait().unwrap();
            acknowledgement.expire();
            assert_eq!(line.read().unwrap(), 1);
        }
    }
}
