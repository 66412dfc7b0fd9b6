//! How often a refusal is worth a line: the first of each kind at once, then at most one a second with the
//! count of those in between, so that a flood writes lines, not gigabytes, and none goes unsaid.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

const QUIET: Duration = Duration::from_secs(1);
/// Kinds remembered at once; when full, all are forgotten, which costs some extra lines.
const MAX_KINDS: usize = 1024;

/// Counts refusals by kind. Pure: time is passed in.
#[derive(Debug)]
pub struct Tally<K>(HashMap<K, (Instant, u64)>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// How many to report now, this one included; `None` while the last report of this kind is fresh.
    pub fn count(&mut self, kind: K, now: Instant) -> Option<u64> {
        if self.0.len() >= MAX_KINDS {
            self.0.clear();
        }
        match self.0.get_mut(&kind) {
            Some((reported, waiting)) => {
                *waiting += 1;
                if now.saturating_duration_since(*reported) < QUIET {
                    return None;
                }
                *reported = now;
                Some(std::mem::take(waiting))
            }
            None => {
                self.0.insert(kind, (now, 0));
                Some(1)
            }
        }
    }
}

/// `reason`, with how often it was given since the last report.
pub fn times(reason: &str, count: u64) -> String {
    if count > 1 { format!("{reason} ({count} times)") } else { reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn a_flood_is_reported_once_a_second_with_its_count() {
        let mut tally = Tally::default();
        let start = SystemClock.monotonic();
        assert_eq!(tally.count((1000, "uid"), start), Some(1));
        for _ in 0..500 {
            assert_eq!(tally.count((1000, "uid"), start + QUIET / 2), None);
        }
        assert_eq!(tally.count((1000, "uid"), start + QUIET), Some(501));
        assert_eq!(tally.count((1000, "exited"), start), Some(1));
        assert_eq!(times("uid", 501), "uid (501 times)");
    }
}
