//! What a machine's agent carries between its published ports and their clients: counted, and held to the rates of its
//! networks. It passes no network device, which would see to that, so it has an allowance of its own.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use vmm::{
    NetLimits, Traffic,
    virtio::{Bucket, Meter},
};

/// All connections and packets of one machine's together.
#[derive(Debug)]
pub struct Carried {
    meter: Meter,
    inward: Option<Mutex<Bucket>>,
    outward: Option<Mutex<Bucket>>,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the machine.
    In,
    /// From it.
    Out,
}

impl Carried {
    /// Nothing has passed yet.
    #[must_use]
    pub fn new(limits: &NetLimits) -> Self {
        let bucket =
            |rate: Option<u64>| rate.map(|rate| Mutex::new(Bucket::new(rate, Instant::now())));
        Self {
            meter: Meter::default(),
            inward: bucket(limits.receive_bytes),
            outward: bucket(limits.transmit_bytes),
        }
    }

    fn bucket(&self, direction: Direction) -> Option<&Mutex<Bucket>> {
        match direction {
            Direction::In => self.inward.as_ref(),
            Direction::Out => self.outward.as_ref(),
        }
    }

    /// Whether anything ever has to wait.
    pub fn is_limited(&self, direction: Direction) -> bool {
        self.bucket(direction).is_some()
    }

    /// When the next bytes may pass; `None` where that is now.
    pub fn ready_at(&self, direction: Direction, now: Instant) -> Option<Instant> {
        let bucket = self.bucket(direction)?.lock();
        // A bucket is true after every step of its own.
        bucket.unwrap_or_else(PoisonError::into_inner).ready_at(now)
    }

    /// So many bytes pass.
    pub fn pass(&self, direction: Direction, bytes: usize, now: Instant) {
        let bytes = bytes as u64;
        match direction {
            Direction::In => self.meter.count_in(bytes),
            Direction::Out => self.meter.count_out(bytes),
        }
        if let Some(bucket) = self.bucket(direction) {
            let bucket = bucket.lock();
            let mut bucket = bucket.unwrap_or_else(PoisonError::into_inner);
            bucket.take(bytes, now);
        }
    }

    /// All of it so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_direction_has_a_rate_of_its_own_and_both_are_counted() {
        let limits = NetLimits {
            receive_bytes: Some(1000),
            transmit_bytes: None,
        };
        let carried = Carried::new(&limits);
        let now = Instant::now();
        carried.pass(Direction::In, 1100, now);
        carried.pass(Direction::Out, 1 << 30, now);
        assert_eq!(carried.ready_at(Direction::Out, now), None);
        assert!(!carried.is_limited(Direction::Out));
        // A tenth of a second's worth was saved.
        let later = carried.ready_at(Direction::In, now).unwrap();
        let wait = later.duration_since(now);
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert!(wait > Duration::from_millis(990), "{wait:?}");
        assert_eq!(carried.ready_at(Direction::In, later), None);
        let traffic = carried.traffic();
        assert_eq!((traffic.in_bytes, traffic.out_bytes), (1100, 1 << 30));
    }
}
