//! Moments and lengths of time in Cedar's terms, remembered. For each value Cedar parses the name of its constructor
//! anew, which costs more than anything else in a question; and most moments of a question (when the process was
//! attested, when its task began and must end) are those of the question before.

use std::cell::RefCell;
use std::collections::HashMap;
use std::thread::LocalKey;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cedar_policy::RestrictedExpression;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::clock::unix_millis;

/// So many of each are remembered, by each thread that decides.
const MOST: usize = 1024;

/// By number of milliseconds. A thread has its own, so that nobody waits.
type Known = RefCell<HashMap<u128, RestrictedExpression>>;

thread_local! {
    static MOMENTS: Known = RefCell::default();
    static LENGTHS: Known = RefCell::default();
}

/// To the millisecond, rounded down. What Cedar cannot say becomes a text that it refuses, which denies.
pub(super) fn datetime(at: SystemTime) -> RestrictedExpression {
    let millis = unix_millis(at.max(UNIX_EPOCH));
    remembered(&MOMENTS, millis.into(), || {
        let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok();
        let text = at.and_then(|at| at.format(form).ok()).unwrap_or_default();
        RestrictedExpression::new_datetime(text)
    })
}

/// To the millisecond, rounded down.
pub(super) fn duration(length: Duration) -> RestrictedExpression {
    let millis = length.as_millis();
    remembered(&LENGTHS, millis, || RestrictedExpression::new_duration(format!("{millis}ms")))
}

/// When there are too many, all are forgotten: that is rare, and costs what it cost to begin with.
fn remembered(
    known: &'static LocalKey<Known>,
    millis: u128,
    make: impl FnOnce() -> RestrictedExpression,
) -> RestrictedExpression {
    known.with_borrow_mut(|known| {
        if known.len() >= MOST && !known.contains_key(&millis) {
            known.clear();
        }
        known.entry(millis).or_insert_with(make).clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_millisecond_is_a_moment_and_a_length_of_its_own_however_many_were_asked_for() {
        let shown = |expression: RestrictedExpression| format!("{expression:?}");
        let start = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        for n in 0..u64::try_from(3 * MOST).unwrap() {
            let (at, length) = (start + Duration::from_millis(n), Duration::from_millis(n));
            let (second, milli) = (n / 1_000, n % 1_000);
            for _again in 0..2 {
                let moment = shown(datetime(at));
                assert!(moment.contains(&format!("14:13:2{second}.{milli:03}Z")), "{moment}");
                let length = shown(duration(length));
                assert!(length.contains(&format!("\"{n}ms\"")), "{length}");
            }
        }
        MOMENTS.with_borrow(|known| assert!(known.len() <= MOST));
    }
}
