//! Restart policies: whether a container that ended is started again, and after how long. Docker's rules; no clock and no
//! process here.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Wait before the first restart.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Longest wait.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A container that was up for this long is not failing again and again.
const STEADY: Duration = Duration::from_secs(10);

/// When a container is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Where it fails, and at most so often; 0: without limit.
    OnFailure {
        /// Most restarts in a row.
        retries: u32,
    },
    /// Whenever nobody stopped it, and after the host has started again even then.
    Always,
    /// Whenever nobody stopped it.
    UnlessStopped,
}

/// A policy that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no restart policy: one of no, on-failure[:RETRIES], always, unless-stopped")]
pub struct UnknownPolicy(String);

impl FromStr for RestartPolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let unknown = || UnknownPolicy(text.into());
        Ok(match text.split_once(':') {
            Some(("on-failure", retries)) => Self::OnFailure {
                retries: retries.parse().map_err(|_| unknown())?,
            },
            Some(_) => return Err(unknown()),
            None => match text {
                "no" | "" => Self::No,
                "on-failure" => Self::OnFailure { retries: 0 },
                "always" => Self::Always,
                "unless-stopped" => Self::UnlessStopped,
                _ => return Err(unknown()),
            },
        })
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnFailure { retries } if *retries > 0 => write!(f, "on-failure:{retries}"),
            policy => f.write_str(policy.name()),
        }
    }
}

impl RestartPolicy {
    /// Its name, without the number of retries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure { .. } => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }

    /// How often a container that fails is started again at most; 0: without limit.
    #[must_use]
    pub fn retries(self) -> u32 {
        match self {
            Self::OnFailure { retries } => retries,
            _ => 0,
        }
    }

    /// Whether a container that nobody stopped is started again, after `restarts` that there were.
    #[must_use]
    pub fn restarts(self, failed: bool, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { retries } => failed && (retries == 0 || restarts < retries),
            Self::Always | Self::UnlessStopped => true,
        }
    }

    /// Whether a container that ran before is started when the host has started.
    #[must_use]
    pub fn starts_with_host(self, failed: bool, was_stopped: bool) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { .. } => failed && !was_stopped,
            Self::Always => true,
            Self::UnlessStopped => !was_stopped,
        }
    }
}

/// How long to wait before each restart.
#[derive(Debug, Default)]
pub struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// The wait after a container that was up for so long.
    pub fn after(&mut self, up: Duration) -> Duration {
        let wait = match self.last {
            Some(last) if up < STEADY => (last * 2).min(MAX_WAIT),
            _ => FIRST_WAIT,
        };
        self.last = Some(wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_shown_as_dockers() {
        for text in [
            "no",
            "on-failure",
            "on-failure:3",
            "always",
            "unless-stopped",
        ] {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text);
        }
        for text in ["never", "on-failure:", "on-failure:-1", "always:3", "No"] {
            assert!(text.parse::<RestartPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_ten_seconds() {
        let mut backoff = Backoff::default();
        let mut waits = || backoff.after(Duration::from_secs(9)).as_millis();
        assert_eq!([waits(), waits(), waits()], [100, 200, 400]);
        for _ in 0..20 {
            waits();
        }
        assert_eq!(waits(), 60_000);
        assert_eq!(backoff.after(STEADY), FIRST_WAIT);
    }

    #[test]
    fn each_policy_restarts_what_it_says() {
        let few = RestartPolicy::OnFailure { retries: 2 };
        assert!(few.restarts(true, 1) && !few.restarts(true, 2) && !few.restarts(false, 0));
        assert!(RestartPolicy::OnFailure { retries: 0 }.restarts(true, 1_000_000));
        assert!(RestartPolicy::Always.restarts(false, 7));
        assert!(!RestartPolicy::No.restarts(true, 0));
        assert!(RestartPolicy::Always.starts_with_host(false, true));
        assert!(!RestartPolicy::UnlessStopped.starts_with_host(false, true));
        assert!(RestartPolicy::UnlessStopped.starts_with_host(false, false));
        assert!(!few.starts_with_host(false, false) && few.starts_with_host(true, false));
    }
}
