//! Where the time of a start goes, phase by phase.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of every moment here.
#[must_use]
pub fn now_ns() -> u64 {
    // Every Linux has this clock.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Moments of one run, in nanoseconds of `CLOCK_MONOTONIC`; 0 for what was not reached. Those inside the
/// guest are its own clock's, brought to the host's by the moment at which `Ready` arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The command's `main` began.
    pub command_ns: u64,
    /// The image was found, or loaded.
    pub image_ns: u64,
    /// The container was written down and its VMM process started.
    pub spawned_ns: u64,
    /// The VMM process's `main` began.
    pub vmm_ns: u64,
    /// Memory, kernel and devices were in place; the first vCPU entered the guest.
    pub built_ns: u64,
    /// The guest kernel ran the agent's first instruction.
    pub agent_ns: u64,
    /// The agent was ready for orders.
    pub ready_ns: u64,
    /// Root file system and mounts were in place.
    pub setup_ns: u64,
    /// The container's process was executed.
    pub exec_ns: u64,
    /// Its end was reported.
    pub exited_ns: u64,
    /// Its output was delivered, and its VM ended.
    pub gone_ns: u64,
}

impl Timeline {
    /// Phases in order: name, and how long each took. One that was not reached takes no time.
    #[must_use]
    pub fn phases(&self) -> [(&'static str, Duration); 10] {
        let moments = [
            ("find the image", self.image_ns),
            ("write down, start the VMM", self.spawned_ns),
            ("VMM process begins", self.vmm_ns),
            ("build the VM", self.built_ns),
            ("guest kernel boots", self.agent_ns),
            ("agent connects", self.ready_ns),
            ("mount the root", self.setup_ns),
            ("execute the process", self.exec_ns),
            ("process runs", self.exited_ns),
            ("clean up", self.gone_ns),
        ];
        let mut before = self.command_ns;
        moments.map(|(name, moment)| {
            let took = moment.saturating_sub(before);
            before = before.max(moment);
            (name, Duration::from_nanos(took))
        })
    }

    /// From the command's start to the process's first instruction; `None` where it did not start.
    #[must_use]
    pub fn start(&self) -> Option<Duration> {
        self.exec_ns
            .checked_sub(self.command_ns)
            .map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_whole() {
        let timeline = Timeline {
            command_ns: 100,
            image_ns: 110,
            spawned_ns: 130,
            vmm_ns: 160,
            built_ns: 200,
            agent_ns: 250,
            ready_ns: 310,
            setup_ns: 380,
            exec_ns: 460,
            exited_ns: 550,
            gone_ns: 650,
        };
        let sum: Duration = timeline.phases().iter().map(|(_, took)| *took).sum();
        assert_eq!(sum, Duration::from_nanos(550));
        assert_eq!(timeline.start(), Some(Duration::from_nanos(360)));
    }

    #[test]
    fn what_was_not_reached_takes_no_time() {
        let timeline = Timeline {
            command_ns: 100,
            image_ns: 110,
            gone_ns: 150,
            ..Timeline::default()
        };
        let taken = timeline.phases().map(|(_, took)| took.as_nanos());
        assert_eq!(taken, [10, 0, 0, 0, 0, 0, 0, 0, 0, 40]);
        assert_eq!(timeline.start(), None);
    }
}
