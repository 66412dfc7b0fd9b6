//! How long each step of a revocation took: the product's headline figure.
//!
//! It begins when the agent saw the cause. The moment of the exit itself is not told by the kernel (a pidfd
//! only becomes readable, after the address space is gone): `tests/bench/run` measures it from outside.

use std::time::Duration;

use hdrhistogram::Histogram;

/// A gap between two moments of one revocation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// From when the agent saw the exit, or another cause, until every request of that process was refused.
    SeenToRefused,
    /// Until a CRL with its serials was signed.
    RefusedToSigned,
    /// Until that CRL was with the subscribers.
    SignedToPublished,
    /// The whole way.
    SeenToPublished,
}

impl Stage {
    /// All stages, in the order they happen.
    pub const ALL: [Self; 4] =
        [Self::SeenToRefused, Self::RefusedToSigned, Self::SignedToPublished, Self::SeenToPublished];

    /// A stable name for status answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SeenToRefused => "seen_to_refused",
            Self::RefusedToSigned => "refused_to_signed",
            Self::SignedToPublished => "signed_to_published",
            Self::SeenToPublished => "seen_to_published",
        }
    }
}

/// One histogram for each stage, since start. Microseconds, two significant digits, longest one hour.
#[derive(Clone, Debug)]
pub struct Timings {
    seen_to_refused: Histogram<u64>,
    refused_to_signed: Histogram<u64>,
    signed_to_published: Histogram<u64>,
    seen_to_published: Histogram<u64>,
}

impl Timings {
    /// Empty histograms.
    #[expect(clippy::expect_used, reason = "the bounds are constants, and the library accepts them")]
    pub fn new() -> Self {
        let empty = Histogram::new_with_bounds(1, LONGEST_MICROS, 2).expect("constant bounds are sound");
        Self {
            seen_to_refused: empty.clone(),
            refused_to_signed: empty.clone(),
            signed_to_published: empty.clone(),
            seen_to_published: empty,
        }
    }

    /// Counts one measurement.
    pub fn record(&mut self, stage: Stage, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(LONGEST_MICROS);
        self.stage_mut(stage).saturating_record(micros.max(1));
    }

    /// The figures so far, one for each stage.
    pub fn snapshot(&self) -> [(Stage, StageFigures); 4] {
        Stage::ALL.map(|stage| {
            let all = self.stage(stage);
            let micros = |value| if all.is_empty() { Duration::ZERO } else { Duration::from_micros(value) };
            let figures = StageFigures {
                count: all.len(),
                p50: micros(all.value_at_quantile(0.5)),
                p99: micros(all.value_at_quantile(0.99)),
                max: micros(all.max()),
            };
            (stage, figures)
        })
    }

    /// Each stage as a cumulative histogram over [`BUCKETS`].
    pub fn buckets(&self) -> [(Stage, Buckets); 4] {
        Stage::ALL.map(|stage| {
            let all = self.stage(stage);
            let below = BUCKETS.map(|bound| {
                let bound = u64::try_from(bound.as_micros()).unwrap_or(LONGEST_MICROS);
                all.count_between(0, bound)
            });
            // The histogram keeps two digits of each value, and so does its sum.
            let seconds = if all.is_empty() { 0.0 } else { all.mean() / 1e6 };
            let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
            let sum = Duration::try_from_secs_f64(seconds * f64::from(count)).unwrap_or_default();
            (stage, Buckets { below, count: all.len(), sum })
        })
    }

    fn stage(&self, stage: Stage) -> &Histogram<u64> {
        match stage {
            Stage::SeenToRefused => &self.seen_to_refused,
            Stage::RefusedToSigned => &self.refused_to_signed,
            Stage::SignedToPublished => &self.signed_to_published,
            Stage::SeenToPublished => &self.seen_to_published,
        }
    }

    fn stage_mut(&mut self, stage: Stage) -> &mut Histogram<u64> {
        match stage {
            Stage::SeenToRefused => &mut self.seen_to_refused,
            Stage::RefusedToSigned => &mut self.refused_to_signed,
            Stage::SignedToPublished => &mut self.signed_to_published,
            Stage::SeenToPublished => &mut self.seen_to_published,
        }
    }
}

impl Default for Timings {
    fn default() -> Self {
        Self::new()
    }
}

/// What is shown of one stage. All zero while nothing was measured; accurate to 1 %.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StageFigures {
    /// How many measurements.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// One stage as a histogram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Buckets {
    /// How many took no longer than the bound with the same index.
    pub below: [u64; BUCKETS.len()],
    /// How many in all.
    pub count: u64,
    /// All together.
    pub sum: Duration,
}

/// Upper bounds of the histogram's buckets: our aims are 1 ms to memory, 5 ms to a subscriber and 2 s for a storm.
pub const BUCKETS: [Duration; 12] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
];

const LONGEST_MICROS: u64 = 3_600_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_their_sum_is_true() {
        let mut timings = Timings::new();
        for micros in [50, 400, 4_000, 3_000_000] {
            timings.record(Stage::SeenToPublished, Duration::from_micros(micros));
        }
        let buckets = timings.buckets();
        let (stage, whole) = buckets.last().unwrap();
        assert_eq!((*stage, whole.count), (Stage::SeenToPublished, 4));
        assert_eq!(whole.below, [1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4]);
        assert!((3.0..3.04).contains(&whole.sum.as_secs_f64()), "{whole:?}");
        assert!(BUCKETS.is_sorted());
        assert_eq!(Timings::new().buckets()[0].1.sum, Duration::ZERO);
    }

    #[test]
    fn figures_describe_what_was_recorded() {
        let mut timings = Timings::new();
        assert!(timings.snapshot().iter().all(|(_, figures)| *figures == StageFigures::default()));
        for millis in 1..=100 {
            timings.record(Stage::SeenToPublished, Duration::from_millis(millis));
        }
        timings.record(Stage::RefusedToSigned, Duration::ZERO);
        timings.record(Stage::SeenToRefused, Duration::MAX);
        let of = |stage| timings.snapshot().into_iter().find(|(one, _)| *one == stage).unwrap().1;
        let whole = of(Stage::SeenToPublished);
        assert_eq!(whole.count, 100);
        assert!((49..=51).contains(&whole.p50.as_millis()), "{whole:?}");
        assert!((98..=100).contains(&whole.p99.as_millis()), "{whole:?}");
        assert!((99..=101).contains(&whole.max.as_millis()), "{whole:?}");
        assert_eq!(of(Stage::RefusedToSigned).count, 1);
        assert!(of(Stage::SeenToRefused).max >= Duration::from_secs(3_500));
    }
}
