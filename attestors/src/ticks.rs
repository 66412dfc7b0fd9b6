//! The one place of this crate that reads clocks: durations to report, and the age of a file's ctime.

use std::time::{Instant, SystemTime};

/// Monotonic time; only for durations.
#[expect(clippy::disallowed_methods, reason = "measures how long a read took; never decides anything")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Wall time in nanoseconds since the epoch; only to compare with a file's ctime, which the same clock wrote.
#[expect(clippy::disallowed_methods, reason = "a ctime is wall time, so its age is too")]
pub(crate) fn wall_nanos() -> i128 {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
    }
}
