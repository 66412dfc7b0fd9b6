//! When to fetch next. Pure: the time comes in.

use std::time::{Duration, Instant};

/// The pace of one relationship.
#[derive(Clone, Copy, Debug)]
pub(super) struct Poll {
    due: Instant,
    interval: Duration,
}

impl Poll {
    /// Due at once; until an answer names a pace, [`BEFORE_THE_FIRST`].
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now, interval: BEFORE_THE_FIRST }
    }

    /// Takes up the pace of a bundle that is known from before, due at once.
    pub(super) fn resume(now: Instant, hint: Option<Duration>) -> Self {
        Self { due: now, interval: interval(hint) }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// A fetch begins: whatever becomes of it, the next is one interval away (FED-34).
    pub(super) fn begun(&mut self, now: Instant) {
        self.due = now + self.interval;
    }

    /// A bundle came, with this refresh hint.
    pub(super) fn answered(&mut self, now: Instant, hint: Option<Duration>) {
        self.interval = interval(hint);
        self.due = now + self.interval;
    }
}

/// The hint of the bundle, within bounds; five minutes without one (FED-06, TDB-21, AMB-44).
fn interval(hint: Option<Duration>) -> Duration {
    hint.unwrap_or(DEFAULT).clamp(FLOOR, CEILING)
}

/// Between attempts while no bundle is known: nothing of the domain is trusted meanwhile.
const BEFORE_THE_FIRST: Duration = Duration::from_secs(30);
const DEFAULT: Duration = Duration::from_secs(300);
/// A stranger's hint must not make us a flood.
const FLOOR: Duration = Duration::from_secs(10);
const CEILING: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "an Instant cannot be made up")]
        Instant::now()
    }

    /// Plays `seconds` of a schedule whose fetches end as `answer` says; the moments of the fetches.
    fn play(seconds: u64, answer: impl Fn(usize) -> Option<Option<u64>>) -> Vec<u64> {
        let start = now();
        let mut poll = Poll::new(start);
        let mut fetches = Vec::new();
        for second in 0..seconds {
            let at = start + Duration::from_secs(second);
            if poll.due() <= at {
                poll.begun(at);
                if let Some(hint) = answer(fetches.len()) {
                    poll.answered(at, hint.map(Duration::from_secs));
                }
                fetches.push(second);
            }
        }
        fetches
    }

    #[test]
    fn fed_34_a_failed_poll_waits_for_the_next_interval() {
        // Answered once with a hint of a minute, then three failures: three requests, one each minute.
        assert_eq!(play(200, |n| (n == 0).then_some(Some(60))), [0, 60, 120, 180]);
        assert_eq!(play(100, |_| None), [0, 30, 60, 90]);
    }

    #[test]
    fn fed_06_the_hint_sets_the_pace_within_bounds() {
        assert_eq!(play(601, |_| Some(None)), [0, 300, 600], "five minutes without a hint");
        assert_eq!(play(121, |_| Some(Some(60))), [0, 60, 120]);
        assert_eq!(play(21, |_| Some(Some(1))), [0, 10, 20], "not faster than the floor");
        assert_eq!(interval(Some(Duration::from_secs(u64::MAX))), CEILING);
        let resumed = Poll::resume(now(), Some(Duration::from_secs(60)));
        assert!(resumed.due() <= now());
    }

    proptest! {
        #[test]
        fn two_fetches_are_never_closer_than_the_floor(hints in prop::collection::vec(any::<Option<Option<u64>>>(), 1..20)) {
            let fetches = play(500, |n| hints.get(n).copied().flatten());
            for pair in fetches.windows(2) {
                prop_assert!(pair[1] - pair[0] >= FLOOR.as_secs());
            }
        }
    }
}
