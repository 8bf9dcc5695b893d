//! A token bucket: so many units a second, and a tenth of a second's worth at once.

use std::time::{Duration, Instant};

/// How long a bucket that was left alone takes to fill.
const BURST: Duration = Duration::from_millis(100);

/// One limit. What is taken may exceed what is there: the debt is waited for by whoever comes next, so that a unit
/// of work larger than the bucket passes too, and the rate holds all the same.
#[derive(Debug)]
pub struct Bucket {
    /// Units a second.
    rate: u64,
    /// From when on there is no debt. Before [`Instant`] minus the burst it is as good as that.
    clear_at: Instant,
}

impl Bucket {
    /// A full bucket; `rate` is in units a second, at least one.
    #[must_use]
    pub fn new(rate: u64, now: Instant) -> Self {
        Self {
            rate: rate.max(1),
            clear_at: now.checked_sub(BURST).unwrap_or(now),
        }
    }

    /// When the next unit may pass; `None` where that is now.
    #[must_use]
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        (self.clear_at > now).then_some(self.clear_at)
    }

    /// Takes `units`.
    pub fn take(&mut self, units: u64, now: Instant) {
        let full = now.checked_sub(BURST).unwrap_or(now);
        let nanoseconds = u128::from(units) * 1_000_000_000 / u128::from(self.rate);
        // A debt of centuries is as good as one of a year.
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            .min(Duration::from_secs(365 * 86_400));
        self.clear_at = self.clear_at.max(full) + cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many units of `size` pass in `seconds`, each as soon as it may.
    fn passed(rate: u64, size: u64, seconds: u64) -> u64 {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate, start);
        let (mut now, mut units) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            match bucket.ready_at(now) {
                Some(later) => now = later,
                None => {
                    bucket.take(size, now);
                    units += size;
                }
            }
        }
        units
    }

    #[test]
    fn the_rate_holds_for_small_and_large_units() {
        for size in [1, 1000, 50_000] {
            let units = passed(10_000, size, 10);
            // The burst, and one unit in debt.
            assert!(
                (100_000..=101_000 + size).contains(&units),
                "{size}: {units}"
            );
        }
    }

    #[test]
    fn idle_time_is_saved_for_a_burst_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        let later = start + Duration::from_secs(3600);
        for _ in 0..101 {
            assert_eq!(bucket.ready_at(later), None);
            bucket.take(1, later);
        }
        assert!(bucket.ready_at(later).is_some());
    }

    #[test]
    fn a_debt_that_no_clock_holds_is_bounded() {
        let now = Instant::now();
        let mut bucket = Bucket::new(0, now);
        bucket.take(u64::MAX, now);
        bucket.take(u64::MAX, now);
        assert!(bucket.ready_at(now).is_some());
    }
}
