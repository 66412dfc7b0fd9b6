//! Connections that were never served, in the audit log: the first of each kind and user, then at most one
//! a second with the count, so that a flood writes lines, not gigabytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_attestors::{Host, ProcessKey};

use crate::api::listener::{Refusal, Refused};
use crate::audit::{self, Event};
use crate::clock::{Clock, SystemClock};

const QUIET: Duration = Duration::from_secs(1);
/// Kinds and users remembered at once; when full, all are forgotten, which costs some extra lines.
const MAX_KINDS: usize = 1024;

/// What runs on the accept thread.
pub(super) fn recorder(audit: audit::Log, host: Arc<Host>) -> Box<dyn Fn(Refused) + Send> {
    let seen = std::sync::Mutex::new(Tally::default());
    Box::new(move |refused| {
        let Ok(mut tally) = seen.lock() else { return };
        let Some(count) = tally.count(&refused, SystemClock.monotonic()) else { return };
        drop(tally);
        let process = ProcessKey {
            boot_id: host.boot_id(),
            pid: refused.pid.unwrap_or_default(),
            start_time: 0,
            pidfs_inode: None,
        };
        let agent = audit::Agent::new(process, refused.uid.unwrap_or(u32::MAX));
        let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
        let decision = audit::Decision { phase: "pin", reason: format!("{}{times}", refused.reason.name()) };
        audit.note(vec![Event::AttestDenied { agent, decision }]);
    })
}

#[derive(Default)]
struct Tally(HashMap<(Refusal, Option<u32>), (Instant, u64)>);

impl Tally {
    /// How many to report now; `None` while the last report of this kind is fresh.
    fn count(&mut self, refused: &Refused, now: Instant) -> Option<u64> {
        if self.0.len() >= MAX_KINDS {
            self.0.clear();
        }
        match self.0.get_mut(&(refused.reason, refused.uid)) {
            Some((reported, waiting)) => {
                *waiting += 1;
                if now.saturating_duration_since(*reported) < QUIET {
                    return None;
                }
                *reported = now;
                Some(std::mem::take(waiting))
            }
            None => {
                self.0.insert((refused.reason, refused.uid), (now, 0));
                Some(1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_reported_once_a_second_with_its_count() {
        let mut tally = Tally::default();
        let refused = Refused { reason: Refusal::Uid, uid: Some(1000), pid: Some(1) };
        let start = SystemClock.monotonic();
        assert_eq!(tally.count(&refused, start), Some(1));
        for _ in 0..500 {
            assert_eq!(tally.count(&refused, start + QUIET / 2), None);
        }
        assert_eq!(tally.count(&refused, start + QUIET), Some(501));
        let other = Refused { reason: Refusal::Exited, ..refused };
        assert_eq!(tally.count(&other, start), Some(1));
    }
}
