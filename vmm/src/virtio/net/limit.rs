//! How much may pass the network devices of a machine: a bucket for each direction, which all of them share, and a
//! timer for what has to wait.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vmm_sys_util::timerfd::TimerFd;

use crate::config::NetLimits;
use crate::virtio::Bucket;

/// The limits of a machine, for each of its network devices.
#[derive(Debug, Clone, Default)]
pub struct NetRates {
    receive: Option<Rate>,
    transmit: Option<Rate>,
}

/// What all devices together may pass in one direction.
type Rate = Arc<Mutex<Bucket>>;

impl NetRates {
    /// Nothing has passed yet.
    #[must_use]
    pub fn new(limits: &NetLimits) -> Self {
        let rate = |bytes: Option<u64>| {
            bytes.map(|bytes| Arc::new(Mutex::new(Bucket::new(bytes, Instant::now()))))
        };
        Self {
            receive: rate(limits.receive_bytes),
            transmit: rate(limits.transmit_bytes),
        }
    }

    /// Of one device: what comes to the guest, and what it sends.
    ///
    /// # Errors
    ///
    /// Those of `timerfd_create(2)`.
    pub fn gates(&self) -> io::Result<(Gate, Gate)> {
        Ok((
            Gate::new(self.receive.clone())?,
            Gate::new(self.transmit.clone())?,
        ))
    }
}

/// One direction of one device.
#[derive(Debug)]
pub struct Gate(Option<(Rate, TimerFd)>);

impl Gate {
    fn new(rate: Option<Rate>) -> io::Result<Self> {
        let limited = rate.map(|rate| TimerFd::new().map(|timer| (rate, timer)));
        Ok(Self(limited.transpose()?))
    }

    /// Readable when what had to wait may pass; `None` where nothing ever has to.
    pub fn timer(&self) -> Option<&TimerFd> {
        self.0.as_ref().map(|(_, timer)| timer)
    }

    /// The timer has fired.
    pub fn acknowledge(&mut self) {
        if let Some((_, timer)) = &mut self.0 {
            // It fired, so this does not wait.
            let _ = timer.wait();
        }
    }

    /// Whether a frame may pass now; else the timer is set.
    pub fn is_open(&mut self) -> bool {
        let Some((rate, timer)) = &mut self.0 else {
            return true;
        };
        let now = Instant::now();
        let later = bucket(rate).ready_at(now);
        // Without a timer it passes rather than hangs.
        later.is_none_or(|later| timer.reset(later - now, None).is_err())
    }

    /// A frame of so many bytes has passed.
    pub fn count(&self, bytes: u64) {
        if let Some((rate, _)) = &self.0 {
            bucket(rate).take(bytes, Instant::now());
        }
    }
}

/// A bucket is true after every step of its own.
fn bucket(rate: &Rate) -> std::sync::MutexGuard<'_, Bucket> {
    rate.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_machine_share_a_limit_and_directions_do_not() {
        let rates = NetRates::new(&NetLimits {
            receive_bytes: Some(1000),
            transmit_bytes: Some(1000),
        });
        let (mut receive, mut transmit) = rates.gates().unwrap();
        let (mut other, _) = rates.gates().unwrap();
        assert!(receive.is_open() && other.is_open());
        receive.count(10_000);
        assert!(!receive.is_open());
        assert!(!other.is_open());
        assert!(transmit.is_open());
    }

    #[test]
    fn what_has_to_wait_is_told_when_it_may_pass() {
        let rates = NetRates::new(&NetLimits {
            receive_bytes: None,
            transmit_bytes: Some(100_000),
        });
        let (receive, mut transmit) = rates.gates().unwrap();
        assert!(receive.timer().is_none());
        let start = Instant::now();
        transmit.count(20_000);
        assert!(!transmit.is_open());
        // 200 ms of debt, of which 100 were saved. Ends when the timer fires.
        transmit.acknowledge();
        assert!(transmit.is_open());
        assert!(start.elapsed().as_millis() >= 99);
    }
}
