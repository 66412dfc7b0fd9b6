//! Time as an argument: the wall clock for what verifiers read, the monotonic one for timers.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Both clocks. Cores take the values as arguments; shells hold a `Clock`.
pub trait Clock: Send + Sync {
    /// Wall time, for `notAfter`, `exp` and everything a verifier compares with its own clock.
    fn wall(&self) -> SystemTime;
    /// Monotonic time, for timers and for measuring.
    fn monotonic(&self) -> Instant;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// The clock that [`Clock::monotonic`] reads, as time since the boot: the same for every run of the agent.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Whole seconds since the Unix epoch; times before it count as 0.
pub fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Milliseconds since the Unix epoch; times before it count as 0.
pub fn unix_millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// The wall time that many whole seconds after the Unix epoch.
pub fn from_unix_seconds(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}
