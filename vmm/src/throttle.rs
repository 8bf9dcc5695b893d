//! How much processor time a machine gets: so much in each tenth of a second, for all threads of its process
//! together, kept without privilege and without any help of the guest's.
//!
//! One thread sleeps on the process's own processor clock, which stands still while the machine does. When the share of a
//! period is used up before the period is over, the vCPUs wait for its end.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// As the kernel's own bandwidth control has it by default.
const PERIOD: Duration = Duration::from_millis(100);
/// Least share: what a clock tick can tell.
const MIN_SHARE: Duration = Duration::from_millis(1);
/// Address space of the thread's stack in bytes.
const STACK: usize = 64 << 10;

/// The limit of one machine.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Nanoseconds in a period; 0 without a limit.
    share: AtomicU64,
    started: Mutex<bool>,
    limited: Condvar,
}

impl Throttle {
    /// Limits the process to `nano_cpus` billionths of a processor from the next period on, or not at all. `hold`
    /// and `release` stop the vCPUs and let them go on; those of the first call are used.
    ///
    /// # Errors
    ///
    /// When the host has no thread left.
    pub fn limit(
        self: &Arc<Self>,
        nano_cpus: Option<u64>,
        hold: impl Fn() + Send + 'static,
        release: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        let share = nano_cpus.map_or(0, |cpus| {
            let share = u128::from(cpus) * PERIOD.as_nanos() / 1_000_000_000;
            u64::try_from(share.max(MIN_SHARE.as_nanos())).unwrap_or(u64::MAX)
        });
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        self.share.store(share, Ordering::Release);
        self.limited.notify_all();
        if share > 0 && !*started {
            let throttle = self.clone();
            Builder::new()
                .name("throttle".to_owned())
                .stack_size(STACK)
                .spawn(move || throttle.run(&hold, &release))?;
            *started = true;
        }
        Ok(())
    }

    fn run(&self, hold: &dyn Fn(), release: &dyn Fn()) {
        loop {
            let share = self.wait_for_share();
            let begin = now(ClockId::CLOCK_MONOTONIC);
            let used = now(ClockId::CLOCK_PROCESS_CPUTIME_ID);
            sleep_until(ClockId::CLOCK_PROCESS_CPUTIME_ID, used + share);
            let end = begin + PERIOD;
            if now(ClockId::CLOCK_MONOTONIC) < end {
                hold();
                // What was used beyond the share, since the clock only ticks, is not had again.
                let over = now(ClockId::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(used + share);
                let debt = over.as_nanos() * PERIOD.as_nanos() / share.as_nanos();
                let debt = Duration::from_nanos(u64::try_from(debt).unwrap_or(u64::MAX));
                sleep_until(ClockId::CLOCK_MONOTONIC, end + debt.min(PERIOD * 10));
                release();
            }
        }
    }

    fn wait_for_share(&self) -> Duration {
        let mut guard = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.share.load(Ordering::Acquire) {
                0 => {}
                share => return Duration::from_nanos(share),
            }
            let woken = self.limited.wait(guard);
            guard = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn now(clock: ClockId) -> Duration {
    // Both clocks are always there.
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

fn sleep_until(clock: ClockId, moment: Duration) {
    let moment = TimeSpec::from_duration(moment);
    // Only ever interrupted by a signal that is handled.
    while clock_nanosleep(clock, ClockNanosleepFlags::TIMER_ABSTIME, &moment)
        == Err(nix::Error::EINTR)
    {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_busy_process_gets_its_share() {
        let held = Arc::new(AtomicBool::new(false));
        let (hold, release) = (held.clone(), held.clone());
        let throttle = Arc::new(Throttle::default());
        throttle
            .limit(
                Some(250_000_000),
                move || hold.store(true, Ordering::Release),
                move || release.store(false, Ordering::Release),
            )
            .unwrap();
        let start = Instant::now();
        let (mut held_for, mut last) = (Duration::ZERO, start);
        while start.elapsed() < Duration::from_secs(2) {
            if held.load(Ordering::Acquire) {
                // As a vCPU would.
                std::thread::sleep(Duration::from_millis(1));
                held_for += last.elapsed();
            }
            last = Instant::now();
        }
        // Three quarters of the time; other threads of this process may use some of the share.
        assert!(held_for > Duration::from_millis(900), "{held_for:?}");
    }
}
