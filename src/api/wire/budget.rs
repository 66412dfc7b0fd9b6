//! What one connection may cost: token buckets over the frames it has sent. Pure; time is passed in.
//!
//! `h2` itself cuts most floods, but its rapid-reset guard counts only resets that are *pending*: 20,000
//! opened-and-reset streams went through in one measured run. Hence a budget for opening streams.

use std::time::{Duration, Instant};

use super::frame::Tally;

/// So many a second, and at most `burst` at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Refill, tokens per second.
    pub per_second: u32,
    /// Size of the bucket, tokens.
    pub burst: u32,
}

/// A token bucket that starts full.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: Rate,
    /// Billionths of a token, so that any interval refills exactly.
    level: u128,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: u128::from(rate.burst) * TOKEN, at: now }
    }

    /// Takes `count` tokens if they are all there.
    pub fn take(&mut self, count: u64, now: Instant) -> bool {
        self.refill(now);
        let cost = u128::from(count) * TOKEN;
        let enough = self.level >= cost;
        if enough {
            self.level -= cost;
        }
        enough
    }

    /// Whether nothing was taken lately; such a bucket can be forgotten and made anew.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.level == u128::from(self.rate.burst) * TOKEN
    }

    /// A `now` before the last one counts as the last one.
    fn refill(&mut self, now: Instant) {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let full = u128::from(self.rate.burst) * TOKEN;
        self.level = (self.level + passed.as_nanos() * u128::from(self.rate.per_second)).min(full);
    }
}

/// Limits for one connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WireLimits {
    /// Opening streams.
    pub streams: Rate,
    /// Frames that carry neither a request nor its content.
    pub control: Rate,
    /// Octets of header blocks.
    pub header_octets: Rate,
}

impl Default for WireLimits {
    fn default() -> Self {
        Self {
            streams: Rate { per_second: 200, burst: 200 },
            control: Rate { per_second: 1_000, burst: 4_000 },
            header_octets: Rate { per_second: 256 * 1024, burst: 1024 * 1024 },
        }
    }
}

/// Which budget a connection has overrun.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overrun {
    /// Streams opened (rapid reset and its kin).
    Streams,
    /// Control frames (PING, SETTINGS, RST_STREAM, CONTINUATION … floods).
    Control,
    /// Header blocks.
    Headers,
}

/// The buckets of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    streams: Bucket,
    control: Bucket,
    header_octets: Bucket,
    charged: Tally,
}

impl Budget {
    /// Full buckets.
    pub fn new(limits: &WireLimits, now: Instant) -> Self {
        Self {
            streams: Bucket::new(limits.streams, now),
            control: Bucket::new(limits.control, now),
            header_octets: Bucket::new(limits.header_octets, now),
            charged: Tally::default(),
        }
    }

    /// Charges what `tally` (a running total) has grown by. An overrun ends the connection.
    pub fn charge(&mut self, tally: &Tally, now: Instant) -> Result<(), Overrun> {
        let before = std::mem::replace(&mut self.charged, *tally);
        let steps = [
            (&mut self.streams, tally.streams, before.streams, Overrun::Streams),
            (&mut self.control, tally.control, before.control, Overrun::Control),
            (&mut self.header_octets, tally.header_octets, before.header_octets, Overrun::Headers),
        ];
        for (bucket, total, before, overrun) in steps {
            let grown = total.saturating_sub(before);
            if grown > 0 && !bucket.take(grown, now) {
                return Err(overrun);
            }
        }
        Ok(())
    }
}

const TOKEN: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any starting point will do")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_two_hundred_and_first_stream_within_a_second_is_an_overrun() {
        let start = start();
        let mut budget = Budget::new(&WireLimits::default(), start);
        let opened = |streams| Tally { streams, ..Tally::default() };
        for streams in 1..=200 {
            assert_eq!(budget.charge(&opened(streams), start), Ok(()));
        }
        assert_eq!(budget.charge(&opened(201), start), Err(Overrun::Streams));
    }

    #[test]
    fn a_steady_client_is_never_cut() {
        let start = start();
        let mut budget = Budget::new(&WireLimits::default(), start);
        for streams in 1..=2_000_u64 {
            let now = start + Duration::from_millis(5 * streams);
            let tally = Tally { streams, control: 4 * streams, ..Tally::default() };
            assert_eq!(budget.charge(&tally, now), Ok(()), "{streams}");
        }
    }

    proptest! {
        #[test]
        fn no_interval_lets_more_through_than_burst_and_refill(
            takes in prop::collection::vec((0..2_000_u64, 0..20_u64), 0..200),
            per_second in 1..500_u32,
            burst in 1..500_u32,
        ) {
            let start = start();
            let mut bucket = Bucket::new(Rate { per_second, burst }, start);
            let (mut elapsed, mut granted) = (0, 0);
            for (millis, count) in takes {
                elapsed += millis;
                if bucket.take(count, start + Duration::from_millis(elapsed)) {
                    granted += count;
                }
                prop_assert!(granted * 1_000 <= u64::from(burst) * 1_000 + u64::from(per_second) * elapsed);
            }
        }
    }
}
