//! Sizes and ages as Docker prints them.

use std::time::Duration;

use jiff::Timestamp;

/// A size in decimal units with three significant digits: `4.26MB`.
pub fn size(bytes: u64) -> String {
    scaled(bytes, 1000.0, ["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A size of memory, in units of 1024: `4.2MiB`.
pub fn binary_size(bytes: u64) -> String {
    scaled(
        bytes,
        1024.0,
        ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
    )
}

fn scaled(bytes: u64, base: f64, units: [&str; 7]) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    // What would be rounded to all of a unit is 1 of the next.
    while value >= base - 0.5 && unit < units.len() - 1 {
        value /= base;
        unit += 1;
    }
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    let digits = format!("{value:.decimals$}");
    let digits = if decimals > 0 {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        &digits
    };
    format!("{digits}{}", units[unit])
}

/// A moment as lists show it whole: `2026-11-21 02:57:00 +0000 UTC`.
pub fn moment(moment: Option<Timestamp>) -> String {
    moment.map_or_else(
        || "N/A".into(),
        |moment| moment.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
    )
}

/// How long ago something was, where that is known: `3 weeks ago`.
pub fn ago(then: Option<Timestamp>) -> String {
    let Some(then) = then else {
        return "N/A".into();
    };
    let age = Duration::try_from(Timestamp::now() - then).unwrap_or_default();
    format!("{} ago", span(age))
}

/// A span of time in one unit: `3 weeks`.
pub fn span(span: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = span.as_secs();
    let hours = (seconds + HOUR / 2) / HOUR;
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..MINUTE => format!("{seconds} seconds"),
        MINUTE..120 => "About a minute".into(),
        120..HOUR => format!("{} minutes", seconds / MINUTE),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 14 * 24 => format!("{} days", hours / 24),
        _ if hours < 60 * 24 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 730 * 24 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / DAY / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1023, "1.02kB"),
            (4_261_502, "4.26MB"),
            (4_200_000, "4.2MB"),
            (99_960, "100kB"),
            (142_000_000, "142MB"),
            (999_600_000, "1GB"),
            (u64::MAX, "18.4EB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn memory_is_counted_in_units_of_1024() {
        for (bytes, text) in [
            (0, "0B"),
            (1000, "1000B"),
            (1536, "1.5KiB"),
            (512 << 20, "512MiB"),
        ] {
            assert_eq!(binary_size(bytes), text);
        }
    }

    #[test]
    fn spans_have_one_unit() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (15 * 86400, "2 weeks"),
            (61 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ];
        for (seconds, text) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }
}
