//! The flags of health checks.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use jiff::SignedDuration;

use crate::container::health::HealthOptions;

/// How it is seen whether a container works.
#[derive(Debug, Args)]
pub struct HealthFlags {
    /// Command for the image's shell that succeeds while the container works
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two health checks, such as 1m30s (30s)
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_interval: Option<Duration>,
    /// Time until a health check is killed and has failed (30s)
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_timeout: Option<Duration>,
    /// Failures in a row that make the container unhealthy (3)
    #[arg(long, value_name = "COUNT")]
    health_retries: Option<u32>,
    /// Time after the start in which failures do not count (0s)
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_start_period: Option<Duration>,
    /// Time between two health checks in that time (5s)
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_start_interval: Option<Duration>,
    /// Do not check the container's health, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthFlags {
    /// As meant.
    pub fn into_options(self) -> anyhow::Result<HealthOptions> {
        let options = HealthOptions {
            none: false,
            command: self.health_cmd,
            interval: self.health_interval,
            timeout: self.health_timeout,
            retries: self.health_retries,
            start_period: self.health_start_period,
            start_interval: self.health_start_interval,
        };
        if self.no_healthcheck && options != HealthOptions::default() {
            bail!("--no-healthcheck conflicts with --health-* options");
        }
        Ok(HealthOptions {
            none: self.no_healthcheck,
            ..options
        })
    }
}

/// A time as Go writes it: 1m30s, 500ms.
fn time(text: &str) -> anyhow::Result<Duration> {
    let refused =
        || format!("{text:?} is no time: give a number with a unit, such as 30s or 1m30s");
    let time: SignedDuration = match text {
        "0" => SignedDuration::ZERO,
        _ => text.parse().with_context(refused)?,
    };
    ensure!(!time.is_negative(), refused());
    Duration::try_from(time).with_context(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_gos() {
        for (text, millis) in [
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(time(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "5", "-1s", "soon"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
