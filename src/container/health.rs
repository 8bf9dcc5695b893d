//! Health checks: what is run in a container to see whether it works, and what the results say. Docker's rules; who runs
//! it is the supervisor.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::process::ProcessError;
use crate::image::healthcheck::Healthcheck;

/// How many results are kept.
const RESULTS: usize = 5;

/// Most that is kept of a probe's output, in bytes.
pub const MAX_OUTPUT: usize = 4096;

/// Shortest time that any may be.
const SHORTEST: Duration = Duration::from_millis(1);

/// What is run, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Between the end of a probe and the next.
    pub interval: Duration,
    /// Until a probe is killed and has failed.
    pub timeout: Duration,
    /// How many failures in a row make the container unhealthy.
    pub retries: u32,
    /// After the start, while failures do not count.
    pub start_period: Duration,
    /// In place of the interval in that time.
    pub start_interval: Duration,
}

/// What a user asked for in place of the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthOptions {
    /// No check at all.
    pub none: bool,
    /// A line for the image's shell.
    pub command: Option<String>,
    /// See [`HealthCheck`].
    pub interval: Option<Duration>,
    /// See there.
    pub timeout: Option<Duration>,
    /// See there.
    pub retries: Option<u32>,
    /// See there.
    pub start_period: Option<Duration>,
    /// See there.
    pub start_interval: Option<Duration>,
}

/// The check of a container, of its image's and the user's words; `None` where there is none.
///
/// # Errors
///
/// [`ProcessError::Health`] for an image's check that cannot be run, or a time that is none.
pub fn check(
    image: Option<&Healthcheck>,
    options: &HealthOptions,
) -> Result<Option<HealthCheck>, ProcessError> {
    let image = image.cloned().unwrap_or_default();
    let command = match &options.command {
        _ if options.none => return Ok(None),
        Some(line) => shell(line),
        None => match image.test.split_first() {
            None => return Ok(None),
            Some((kind, _)) if kind == "NONE" => return Ok(None),
            Some((kind, [line])) if kind == "CMD-SHELL" => shell(line),
            Some((kind, command)) if kind == "CMD" && !command.is_empty() => command.to_vec(),
            Some((kind, _)) => return Err(ProcessError::Health(kind.clone())),
        },
    };
    let time = |given: Option<Duration>, image: i64, default: u64| {
        let image = Duration::from_nanos(u64::try_from(image).unwrap_or(0));
        let time = match given {
            Some(given) if !given.is_zero() => given,
            _ if !image.is_zero() => image,
            _ => Duration::from_secs(default),
        };
        match time < SHORTEST && !time.is_zero() {
            true => Err(ProcessError::HealthTime),
            false => Ok(time),
        }
    };
    let retries = match options.retries {
        Some(given) if given > 0 => given,
        _ => u32::try_from(image.retries).unwrap_or(0),
    };
    Ok(Some(HealthCheck {
        command,
        interval: time(options.interval, image.interval, 30)?,
        timeout: time(options.timeout, image.timeout, 30)?,
        retries: if retries == 0 { 3 } else { retries },
        start_period: time(options.start_period, image.start_period, 0)?,
        start_interval: time(options.start_interval, image.start_interval, 5)?,
    }))
}

fn shell(line: &str) -> Vec<String> {
    ["/bin/sh", "-c", line].map(String::from).into()
}

/// What is known of a container's health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Not yet.
    #[default]
    Starting,
    /// The last probe succeeded, or too few have failed since.
    Healthy,
    /// So many probes failed.
    Unhealthy,
}

impl HealthStatus {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A container's health, and the probes that say so: as it is on disk, and, but for the letters' case, in Docker's `inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// Summed up.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last probes, oldest first.
    pub log: VecDeque<ProbeResult>,
}

/// How one probe went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProbeResult {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Its exit code; -1 where it has none.
    pub exit_code: i32,
    /// What it wrote, or why there is no exit code.
    pub output: String,
}

impl Health {
    /// Takes in a probe's result, `up` after the container's start.
    pub fn take_in(&mut self, result: ProbeResult, up: Duration, check: &HealthCheck) {
        if result.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if self.status != HealthStatus::Starting || up >= check.start_period {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push_back(result);
        while self.log.len() > RESULTS {
            self.log.pop_front();
        }
    }
}

impl HealthCheck {
    /// How long to wait before the next probe, `up` after the container's start.
    #[must_use]
    pub fn wait(&self, status: HealthStatus, up: Duration) -> Duration {
        if status == HealthStatus::Starting && up < self.start_period {
            self.start_interval
        } else {
            self.interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(test: &[&str]) -> Healthcheck {
        Healthcheck {
            test: test.iter().map(ToString::to_string).collect(),
            retries: 2,
            start_period: 10_000_000_000,
            ..Healthcheck::default()
        }
    }

    fn result(exit_code: i32) -> ProbeResult {
        ProbeResult {
            start: Timestamp::UNIX_EPOCH,
            end: Timestamp::UNIX_EPOCH,
            exit_code,
            output: String::new(),
        }
    }

    #[test]
    fn the_users_words_are_over_the_images() {
        let none = HealthOptions::default();
        let shell = image(&["CMD-SHELL", "a b"]);
        let of_image = check(Some(&shell), &none).unwrap().unwrap();
        assert_eq!(of_image.command, ["/bin/sh", "-c", "a b"]);
        assert_eq!((of_image.retries, of_image.interval.as_secs()), (2, 30));
        let options = HealthOptions {
            command: Some("mine".into()),
            interval: Some(Duration::from_secs(1)),
            ..none.clone()
        };
        let given = check(Some(&shell), &options).unwrap().unwrap();
        assert_eq!(
            (given.command[2].as_str(), given.interval.as_secs()),
            ("mine", 1)
        );
        assert_eq!(given.start_period.as_secs(), 10);
        for (image, options) in [
            (None, none.clone()),
            (Some(image(&["NONE"])), none.clone()),
            (
                Some(shell),
                HealthOptions {
                    none: true,
                    ..none.clone()
                },
            ),
        ] {
            assert_eq!(check(image.as_ref(), &options), Ok(None));
        }
        assert!(check(Some(&image(&["RUN", "x"])), &none).is_err());
        let short = HealthOptions {
            timeout: Some(Duration::from_nanos(1)),
            ..options
        };
        assert!(check(None, &short).is_err());
    }

    #[test]
    fn failures_count_after_the_start_period_or_a_success() {
        let check = check(Some(&image(&["CMD", "x"])), &HealthOptions::default());
        let check = check.unwrap().unwrap();
        let (early, late) = (Duration::from_secs(1), Duration::from_secs(11));
        let mut health = Health::default();
        for _ in 0..9 {
            health.take_in(result(1), early, &check);
        }
        assert_eq!(
            (health.status, health.failing_streak),
            (HealthStatus::Starting, 0)
        );
        assert_eq!(check.wait(health.status, early).as_secs(), 5);
        health.take_in(result(0), early, &check);
        assert_eq!(health.status, HealthStatus::Healthy);
        assert_eq!(check.wait(health.status, early).as_secs(), 30);
        health.take_in(result(-1), early, &check);
        assert_eq!(health.status, HealthStatus::Healthy);
        health.take_in(result(3), late, &check);
        assert_eq!(
            (health.status, health.failing_streak),
            (HealthStatus::Unhealthy, 2)
        );
        assert_eq!(health.log.len(), RESULTS);
        health.take_in(result(0), late, &check);
        assert_eq!(
            (health.status, health.failing_streak),
            (HealthStatus::Healthy, 0)
        );
    }
}
