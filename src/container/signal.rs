//! Signals by name or number, as `kill` and `--stop-signal` take them.

/// Text that names no signal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no signal: give a name such as TERM or SIGTERM, or a number from 1 to 64")]
pub struct UnknownSignal(String);

/// Number of the first real-time signal that programs may use (signal(7)), and of the last.
const REAL_TIME: (u8, u8) = (34, 64);

/// The number of a Linux signal.
///
/// # Errors
///
/// [`UnknownSignal`] for anything but a name, `RTMIN+n`, `RTMAX-n` or a number from 1 to 64.
pub fn parse(text: &str) -> Result<u8, UnknownSignal> {
    let unknown = || UnknownSignal(text.into());
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = name.parse() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let (first, last) = REAL_TIME;
    let real_time = match name.split_at_checked(5) {
        Some(("RTMIN", "")) => Some(first),
        Some(("RTMAX", "")) => Some(last),
        Some(("RTMIN", rest)) => offset(rest, '+').and_then(|offset| first.checked_add(offset)),
        Some(("RTMAX", rest)) => offset(rest, '-').and_then(|offset| last.checked_sub(offset)),
        _ => None,
    };
    if let Some(number) = real_time.filter(|number| (first..=last).contains(number)) {
        return Ok(number);
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .and_then(|signal| u8::try_from(signal as i32).ok())
        .ok_or_else(unknown)
}

fn offset(text: &str, sign: char) -> Option<u8> {
    text.strip_prefix(sign)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_signals() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("9", 9),
            ("64", 64),
            ("RTMIN+3", 37),
            ("SIGRTMAX", 64),
            ("rtmax-1", 63),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "-9",
            "NOSUCH",
            "RTMIN+31",
            "RTMAX-40",
            "SIG",
            "RTMIN+999",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
