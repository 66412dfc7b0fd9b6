//! Numbers and dates of CRLs. Pure: no clock, no I/O.
//!
//! OpenSSL orders CRLs of one key by `thisUpdate` alone and takes either of two that are equal, so two
//! revocations in one second need two dates. The dates therefore start ten minutes in the past and each CRL
//! takes the next second: a burst of 600 CRLs, refilled by one a second, without a date in the future. When
//! the burst is used up the planner says how long to wait, and the publisher collects revocations meanwhile.
//!
//! The number is milliseconds of wall time or the last plus one, so that it rises even where the last number
//! is not known any more.
//!
//! A clock that steps back must not hold revocations up. The planner keeps its own estimate of the time, which
//! never goes back: it runs at half speed until the clock has caught up. How fast time passes is told by the
//! uptime, never by the clock: a clock that is set right again has not made a day pass. The estimate survives a
//! restart in the number.

use std::time::{Duration, SystemTime};

use crate::clock::unix_millis;

/// What the next CRL may be called, or when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CrlTurn {
    /// Sign now.
    Now {
        /// CRL number.
        number: u64,
        /// `thisUpdate`, Unix seconds.
        this_update: u64,
    },
    /// Ask again after that long; until then there is no date that is new and not in the future.
    NotBefore(Duration),
}

/// Hands out numbers and dates of one authority's CRLs, both strictly rising.
#[derive(Clone, Debug)]
pub struct CrlNumbering {
    last: Option<(u64, u64)>,
    /// How many were handed out since the last that is on record.
    unrecorded: u64,
    /// Milliseconds. Never goes back, and is never behind the clock.
    estimate: u64,
    /// The clock when it was last read, milliseconds.
    read: u64,
    /// The uptime then.
    read_at: Duration,
}

impl CrlNumbering {
    /// Goes on after the last CRL known to be published, `(number, this_update)`: the higher of what the
    /// witness and the ledger say. Skips [`RESTART_MARGIN`] for CRLs that were pushed and not yet recorded.
    pub fn resume(last: Option<(u64, u64)>, now: SystemTime) -> Self {
        let read = unix_millis(now);
        // A little ahead is a burst, whose numbers rise faster than milliseconds; more is a clock set back.
        let ahead = last.map_or(0, |(number, _)| number).saturating_sub(read);
        let estimate = if ahead > BURST_MILLIS { read + ahead } else { read };
        // A CRL without a record came right after the last with one, or had the oldest date of its moment.
        let last = last.map(|(number, this_update)| {
            let number = number.max(estimate).saturating_add(RESTART_MARGIN);
            let oldest = (estimate / 1000).saturating_sub(BURST);
            (number, this_update.max(oldest).saturating_add(RESTART_MARGIN))
        });
        Self { last, unrecorded: 0, estimate, read, read_at: Duration::ZERO }
    }

    /// The turn of the next CRL. After [`CrlTurn::Now`] that number and date are used up, signed or not.
    /// `uptime` is monotonic time since the planner was made.
    pub fn next(&mut self, now: SystemTime, uptime: Duration) -> CrlTurn {
        self.observe(unix_millis(now), uptime);
        let oldest = (self.estimate / 1000).saturating_sub(BURST);
        let (number, this_update) = match self.last {
            None => (self.estimate, oldest),
            Some((number, this_update)) => ((number + 1).max(self.estimate), (this_update + 1).max(oldest)),
        };
        let mut due = this_update.saturating_mul(1000);
        if self.unrecorded >= RESTART_MARGIN {
            // What a restart skips is used up: no more of the burst, only what time itself brings.
            let by_date =
                this_update.saturating_sub(RESTART_MARGIN).saturating_add(BURST).saturating_mul(1000);
            due = due.max(by_date).max(number.saturating_sub(RESTART_MARGIN));
        }
        if due > self.estimate {
            // While the estimate runs at half speed the wait is twice as long.
            let speed = if self.estimate > self.read { 2 } else { 1 };
            return CrlTurn::NotBefore(Duration::from_millis((due - self.estimate).saturating_mul(speed)));
        }
        self.last = Some((number, this_update));
        self.unrecorded = self.unrecorded.saturating_add(1);
        CrlTurn::Now { number, this_update }
    }

    /// The last one handed out is on record. While none is, [`RESTART_MARGIN`] may go out at once and then one a
    /// second, so that a restart meets none of them again.
    pub fn recorded(&mut self) {
        self.unrecorded = 0;
    }

    /// How far dates run ahead of the clock, when that is more than [`CLOCK_CONCERN`]: the clock was set back,
    /// and verifiers with the same clock may take our CRLs for not yet valid.
    pub fn clock_concern(&mut self, now: SystemTime, uptime: Duration) -> Option<Duration> {
        self.observe(unix_millis(now), uptime);
        let ahead = Duration::from_millis(self.estimate.saturating_sub(unix_millis(now)));
        (ahead > CLOCK_CONCERN).then_some(ahead)
    }

    fn observe(&mut self, now: u64, uptime: Duration) {
        let passed = uptime.saturating_sub(self.read_at).as_millis() / 2;
        (self.read, self.read_at) = (now, uptime.max(self.read_at));
        self.estimate = self.estimate.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)).max(now);
    }
}

/// A clock that is further back than this is worth an alarm and no readiness.
pub const CLOCK_CONCERN: Duration = Duration::from_secs(600);
/// How many CRLs may have been pushed without a record before a restart. (While a clock that was set back has not
/// caught up, their numbers and dates may be met again, should the agent die just then.)
pub const RESTART_MARGIN: u64 = 5;
/// How many dates a burst has, in seconds of the past.
const BURST: u64 = 600;
/// By how much a burst, with restarts in it, can take numbers ahead of the time.
const BURST_MILLIS: u64 = 2_000;

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    const START: u64 = 1_800_000_000_000;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    fn go(numbering: &mut CrlNumbering, millis: u64) -> (u64, u64) {
        match numbering.next(at(millis), Duration::ZERO) {
            CrlTurn::Now { number, this_update } => {
                numbering.recorded();
                (number, this_update)
            }
            CrlTurn::NotBefore(wait) => panic!("has to wait {wait:?}"),
        }
    }

    fn concern(numbering: &mut CrlNumbering, millis: u64) -> Option<Duration> {
        numbering.clock_concern(at(millis), Duration::ZERO)
    }

    #[test]
    fn two_crls_in_one_second_differ_in_number_and_date() {
        let mut numbering = CrlNumbering::resume(None, at(START));
        let first = go(&mut numbering, START);
        assert_eq!(first, (START, START / 1000 - 600));
        assert_eq!(go(&mut numbering, START), (first.0 + 1, first.1 + 1));
    }

    #[test]
    fn a_burst_has_600_dates_and_refills_one_a_second() {
        let mut numbering = CrlNumbering::resume(None, at(START));
        for _ in 0..=600 {
            go(&mut numbering, START);
        }
        assert_eq!(
            numbering.next(at(START + 400), Duration::ZERO),
            CrlTurn::NotBefore(Duration::from_millis(600))
        );
        go(&mut numbering, START + 1_000);
        assert!(matches!(numbering.next(at(START + 1_000), Duration::ZERO), CrlTurn::NotBefore(_)));
        for _ in 0..600 {
            go(&mut numbering, START + 3_600_000);
        }
    }

    #[test]
    fn a_restart_skips_what_may_have_been_pushed() {
        let mut numbering = CrlNumbering::resume(None, at(START));
        let last = go(&mut numbering, START);
        let unrecorded = (0..RESTART_MARGIN).map(|_| go(&mut numbering, START)).last().unwrap();
        let mut restarted = CrlNumbering::resume(Some(last), at(START));
        let next = go(&mut restarted, START);
        assert!(next.0 > unrecorded.0 && next.1 > unrecorded.1);
    }

    /// The ledger is down while processes die as fast as the publisher allows.
    #[test]
    fn what_was_never_recorded_is_never_met_again_after_a_restart() {
        for recorded_burst in [0, 1, 300, 601] {
            let mut numbering = CrlNumbering::resume(None, at(START));
            let mut recorded = go(&mut numbering, START);
            for _ in 1..recorded_burst {
                recorded = go(&mut numbering, START);
            }
            let (mut now, mut last, mut count) = (START, recorded, 0);
            while now < START + 30_000 {
                match numbering.next(at(now), Duration::from_millis(now - START)) {
                    CrlTurn::Now { number, this_update } => {
                        (last, count) = ((number, this_update), count + 1)
                    }
                    CrlTurn::NotBefore(wait) => now += u64::try_from(wait.as_millis()).unwrap(),
                }
                let next = go(&mut CrlNumbering::resume(Some(recorded), at(now)), now + 10_000);
                assert!(next.0 > last.0 && next.1 > last.1, "{next:?} after {last:?}, {count} not on record");
            }
            assert!(
                (20..=40).contains(&count) || recorded_burst > 1,
                "{count} in 30 s: one a second, after the first five"
            );
        }
    }

    #[test]
    fn a_clock_set_back_a_day_holds_nothing_up() {
        const DAY: u64 = 86_400_000;
        let mut numbering = CrlNumbering::resume(None, at(START));
        let before = go(&mut numbering, START);
        assert_eq!(concern(&mut numbering, START), None);
        let after = go(&mut numbering, START - DAY);
        assert_eq!(after, (before.0 + 1, before.1 + 1));
        assert!(concern(&mut numbering, START - DAY).is_some());
        let mut restarted = CrlNumbering::resume(Some(after), at(START - DAY));
        assert!(go(&mut restarted, START - DAY).1 > after.1);
        assert!(concern(&mut restarted, START - DAY).is_some(), "a restart does not forget");
        go(&mut restarted, START + DAY);
        assert_eq!(concern(&mut restarted, START + DAY), None);
    }

    /// A day back and then a day forth is no day that passed: dates must not run ahead of a clock that is right.
    #[test]
    fn g08_a_clock_set_right_again_leaves_no_date_in_the_future() {
        const DAY: u64 = 86_400_000;
        let mut numbering = CrlNumbering::resume(None, at(START));
        go(&mut numbering, START);
        go(&mut numbering, START - DAY);
        let (_, this_update) = go(&mut numbering, START);
        assert!(this_update * 1000 <= START, "{} s ahead", this_update - START / 1000);
        assert_eq!(concern(&mut numbering, START), None);
    }

    #[test]
    fn while_the_clock_is_behind_time_passes_at_half_speed() {
        const DAY: u64 = 86_400_000;
        let mut numbering = CrlNumbering::resume(None, at(START));
        let ahead = |numbering: &mut CrlNumbering, seconds: u64| {
            let wall = at(START - DAY + seconds * 1000);
            numbering.clock_concern(wall, Duration::from_secs(seconds)).map(|ahead| ahead.as_secs())
        };
        assert_eq!(ahead(&mut numbering, 0), Some(86_400));
        assert_eq!(ahead(&mut numbering, 3_600), Some(86_400 - 1_800));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Sign(u8),
        Advance(u64),
        StepBack(u64),
        StepForth(u64),
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => any::<u8>().prop_map(Op::Sign),
            4 => (0_u64..100_000).prop_map(Op::Advance),
            1 => (0_u64..200_000_000).prop_map(Op::StepBack),
            1 => (0_u64..200_000_000).prop_map(Op::StepForth),
            2 => Just(Op::Restart),
        ]
    }

    proptest! {
        #[test]
        fn numbers_and_dates_rise_over_restarts_and_clock_steps(ops in proptest::collection::vec(op(), 0..60)) {
            let (mut now, mut highest) = (START, START);
            let mut numbering = CrlNumbering::resume(None, at(now));
            let mut made: Vec<(u64, u64)> = Vec::new();
            let (mut stepped, mut forward, mut uptime) = (false, 0, 0);
            for op in ops {
                match op {
                    Op::Advance(by) => (now, forward, uptime) = (now + by, forward + by, uptime + by),
                    Op::StepForth(by) => now += by,
                    Op::StepBack(by) => (now, stepped) = (now - by, true),
                    Op::Restart => {
                        uptime = 0;
                        numbering = CrlNumbering::resume(made.last().copied(), at(now));
                    }
                    Op::Sign(times) => for _ in 0..times {
                        match numbering.next(at(now), Duration::from_millis(uptime)) {
                            CrlTurn::Now { number, this_update } => {
                                if let Some(last) = made.last() {
                                    prop_assert!(number > last.0 && this_update > last.1);
                                }
                                prop_assert!(stepped || this_update * 1000 <= now, "a date in the future");
                                prop_assert!(this_update * 1000 <= highest.max(now) + forward / 2 + 60_000);
                                made.push((number, this_update));
                                numbering.recorded();
                            }
                            CrlTurn::NotBefore(wait) => {
                                prop_assert!(!wait.is_zero());
                                let wait = u64::try_from(wait.as_millis()).unwrap();
                                (now, forward, uptime) = (now + wait, forward + wait, uptime + wait);
                                let turn = numbering.next(at(now), Duration::from_millis(uptime));
                                prop_assert!(matches!(turn, CrlTurn::Now { .. }), "waited in vain");
                                made.push(numbering.last.unwrap());
                                numbering.recorded();
                            }
                        }
                    }
                }
                highest = highest.max(now);
            }
        }
    }
}
