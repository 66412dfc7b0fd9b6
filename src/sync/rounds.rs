//! When a set is written and the program told. No clock, no I/O.
//!
//! A *round* is: write what is wanted by then, tell whoever wants to know. The first change after a quiet time
//! waits for `settle`, so that what comes together goes together. Rounds are `pause` apart, counted from the end
//! of telling: a program that is reading its files does not have them swapped under its hands, and a hundred
//! exits on the node cost it one reload. A round that failed is repeated, later and later.

use std::time::{Duration, Instant};

/// Decides about rounds.
#[derive(Debug)]
pub(super) struct Rounds {
    settle: Duration,
    pause: Duration,
    changed: Option<Instant>,
    not_before: Option<Instant>,
    running: bool,
    failures: u32,
}

impl Rounds {
    /// Longest time between two attempts at a failing round.
    const LONGEST: Duration = Duration::from_secs(60);

    pub(super) fn new(settle: Duration, pause: Duration) -> Self {
        Self { settle, pause, changed: None, not_before: None, running: false, failures: 0 }
    }

    /// Something is to be written.
    pub(super) fn changed(&mut self, now: Instant) {
        self.changed.get_or_insert(now);
    }

    /// When the next round is due, if one is wanted and none runs.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let settled = self.changed.filter(|_| !self.running)? + self.settle;
        Some(self.not_before.map_or(settled, |earliest| earliest.max(settled)))
    }

    /// Starts the round that is due; false if none is.
    pub(super) fn start(&mut self, now: Instant) -> bool {
        let due = self.deadline().is_some_and(|deadline| deadline <= now);
        if due {
            self.changed = None;
            self.running = true;
        }
        due
    }

    /// The round is over.
    pub(super) fn finish(&mut self, succeeded: bool, now: Instant) {
        self.running = false;
        if succeeded {
            self.failures = 0;
            self.not_before = Some(now + self.pause);
        } else {
            let wait = self.pause.max(Duration::from_millis(100)) * 2_u32.pow(self.failures.min(10));
            self.failures += 1;
            self.changed.get_or_insert(now);
            self.not_before = Some(now + wait.min(Self::LONGEST));
        }
    }

    /// Forgets what was wanted: there is nothing to write any more.
    pub(super) fn cancel(&mut self) {
        self.changed = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    const SETTLE: Duration = Duration::from_millis(50);
    const PAUSE: Duration = Duration::from_millis(1000);

    #[test]
    fn a_failed_round_is_repeated_later_and_later() {
        let mut now = SystemClock.monotonic();
        let mut rounds = Rounds::new(SETTLE, PAUSE);
        rounds.changed(now);
        let mut waits = Vec::new();
        for _ in 0..9 {
            let due = rounds.deadline().expect("wanted");
            waits.push((due - now).as_millis());
            now = due;
            assert!(rounds.start(now));
            rounds.finish(false, now);
        }
        assert_eq!(waits, [50, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        now = rounds.deadline().expect("wanted");
        assert!(rounds.start(now));
        rounds.finish(true, now);
        assert_eq!(rounds.deadline(), None, "done");
    }

    #[test]
    fn what_comes_together_goes_together() {
        let now = SystemClock.monotonic();
        let mut rounds = Rounds::new(SETTLE, PAUSE);
        rounds.changed(now);
        rounds.changed(now + SETTLE / 2);
        assert!(!rounds.start(now + SETTLE / 2));
        assert!(rounds.start(now + SETTLE), "the second change does not push the first away");
        rounds.changed(now + SETTLE);
        assert!(!rounds.start(now + PAUSE * 2), "one at a time");
        rounds.finish(true, now + PAUSE * 2);
        assert_eq!(rounds.deadline(), Some(now + PAUSE * 3));
        rounds.cancel();
        assert_eq!(rounds.deadline(), None);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Change,
        Wait(u64),
        Finish(bool),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => Just(Op::Change),
            4 => (1_u64..2000).prop_map(Op::Wait),
            3 => prop::bool::weighted(0.8).prop_map(Op::Finish),
        ]
    }

    proptest! {
        /// No change is lost, no two rounds overlap or come closer than `pause`, and a change waits no longer
        /// than `settle` once that pause is over.
        #[test]
        fn every_change_has_its_round_and_rounds_keep_apart(ops in proptest::collection::vec(op(), 0..60)) {
            let mut now = SystemClock.monotonic();
            let mut rounds = Rounds::new(SETTLE, PAUSE);
            let (mut unserved, mut running, mut ended): (Option<Instant>, bool, Option<Instant>) = (None, false, None);
            for op in ops {
                match op {
                    Op::Change => {
                        rounds.changed(now);
                        unserved.get_or_insert(now);
                    }
                    Op::Finish(good) => {
                        if running {
                            rounds.finish(good, now);
                            running = false;
                            ended = Some(now);
                            if !good {
                                unserved.get_or_insert(now);
                            }
                        }
                    }
                    Op::Wait(millis) => now += Duration::from_millis(millis),
                }
                if rounds.start(now) {
                    prop_assert!(!running, "overlap");
                    let since = unserved.take();
                    prop_assert!(since.is_some_and(|since| since + SETTLE <= now), "a round for nothing");
                    prop_assert!(ended.is_none_or(|ended| ended + PAUSE <= now), "too soon");
                    running = true;
                }
                prop_assert_eq!(rounds.deadline().is_some(), unserved.is_some() && !running);
            }
        }
    }
}
