//! Moments until which something is waited for, as poll(2) takes them.

use std::time::Instant;

use nix::poll::PollTimeout;

/// How long it is until then, in milliseconds; `None` waits for ever.
pub fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else {
        return PollTimeout::NONE;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up, so as not to spin through the last millisecond.
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}
