//! How much may pass a block device: a bucket for each limit, and a timer for what has to wait.

use std::io;
use std::time::Instant;

use vmm_sys_util::timerfd::TimerFd;

use crate::config::BlockLimits;
use crate::virtio::Bucket;

use super::request::Work;

/// The limits of one device. Requests are answered in order, so that one which has to wait holds up those behind it.
#[derive(Debug)]
pub struct Limiter {
    /// Bytes and requests read.
    read: [Option<Bucket>; 2],
    /// Bytes and requests written.
    write: [Option<Bucket>; 2],
    /// `None` where there is no limit.
    timer: Option<TimerFd>,
}

impl Limiter {
    /// Nothing has passed yet.
    ///
    /// # Errors
    ///
    /// Those of `timerfd_create(2)`.
    pub fn new(limits: BlockLimits, now: Instant) -> io::Result<Self> {
        let bucket = |rate: Option<u64>| rate.map(|rate| Bucket::new(rate, now));
        let timer = match limits == BlockLimits::default() {
            true => None,
            false => Some(TimerFd::new()?),
        };
        Ok(Self {
            read: [limits.read_bytes, limits.reads].map(bucket),
            write: [limits.write_bytes, limits.writes].map(bucket),
            timer,
        })
    }

    /// Readable when what had to wait may pass.
    pub fn timer(&self) -> Option<&TimerFd> {
        self.timer.as_ref()
    }

    /// The timer has fired.
    pub fn acknowledge(&mut self) {
        if let Some(timer) = &mut self.timer {
            // It fired, so this does not wait.
            let _ = timer.wait();
        }
    }

    /// Whether `work` may pass now, and is counted; else the timer is set.
    pub fn allows(&mut self, work: Work, now: Instant) -> bool {
        let (buckets, bytes) = match work {
            Work::In(bytes) => (&mut self.read, bytes),
            Work::Out(bytes) => (&mut self.write, bytes),
            Work::Other => return true,
        };
        let later = buckets
            .iter()
            .flatten()
            .filter_map(|bucket| bucket.ready_at(now))
            .max();
        if let (Some(later), Some(timer)) = (later, &mut self.timer) {
            // Without a timer it passes rather than hangs.
            return timer.reset(later - now, None).is_err();
        }
        for (bucket, units) in buckets.iter_mut().zip([bytes, 1]) {
            if let Some(bucket) = bucket {
                bucket.take(units, now);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reads_and_writes_have_limits_of_their_own() {
        let now = Instant::now();
        let limits = BlockLimits {
            write_bytes: Some(1 << 20),
            reads: Some(10),
            ..BlockLimits::default()
        };
        let mut limiter = Limiter::new(limits, now).unwrap();
        assert!(limiter.allows(Work::Out(2 << 20), now));
        assert!(!limiter.allows(Work::Out(512), now));
        assert!(limiter.allows(Work::In(1 << 30), now));
        assert!(limiter.allows(Work::In(1), now));
        assert!(!limiter.allows(Work::In(1), now));
        assert!(limiter.allows(Work::Other, now));
        assert!(limiter.allows(Work::Out(512), now + Duration::from_secs(2)));
    }

    #[test]
    fn without_limits_there_is_no_timer() {
        let limiter = Limiter::new(BlockLimits::default(), Instant::now()).unwrap();
        assert!(limiter.timer().is_none());
    }
}
