//! Entries and policies come, go, change, and end at their date: every live workload is matched and decided again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::tasks::Judged;
use super::{Shared, State, Workloads};
use crate::drain::Watch;
use crate::lease::{Cause, WorkloadId};
use crate::registration::{Entry, EntrySet};

impl Workloads {
    /// Follows the entries and the policies until the drain starts.
    pub async fn follow_entries(self, mut drain: Watch) {
        let (mut entries, mut policies) = (self.entries(), self.0.parts.policy.follow());
        let mut judged = Judged::default();
        loop {
            let set = Arc::clone(&entries.borrow_and_update());
            let policy = Arc::clone(&policies.borrow_and_update());
            self.write_frozen_targets();
            self.0.match_all_again();
            self.0.match_left_again();
            self.0.settle_allowed();
            let now = self.0.parts.clock.wall();
            if judged.is_due(&policy, now) {
                self.0.judge_tasks_again();
            }
            let policy_end = policy.next_end(now).and_then(|end| end.duration_since(now).ok());
            let next_end = next_end(&set, now).into_iter().chain(policy_end.map(soon_after)).min();
            tokio::select! {
                changed = entries.changed() => if changed.is_err() { return },
                changed = policies.changed() => if changed.is_err() { return },
                () = wait(next_end) => {}
                () = drain.stopping() => return,
            }
        }
    }
}

async fn wait(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// How long until the first dated entry ends; at most a day, so that a clock that was set is noticed.
fn next_end(set: &EntrySet, now: SystemTime) -> Option<Duration> {
    set.iter()
        .filter_map(|entry| entry.conditions.until?.duration_since(now).ok())
        .filter(|left| !left.is_zero())
        .min()
        .map(soon_after)
}

fn soon_after(left: Duration) -> Duration {
    left.min(Duration::from_secs(86_400)) + Duration::from_millis(1)
}

impl Shared {
    fn match_all_again(self: &Arc<Self>) {
        let ids: Vec<WorkloadId> = self.lock().members.keys().copied().collect();
        for id in ids {
            // One lock for each, so that a reload of many workloads holds up no exit.
            let shallow = self.match_again(&mut self.lock(), id);
            if shallow {
                self.suspect(id);
            }
        }
    }

    /// Takes away at once what the entries no longer give; answers whether it must be looked at again for what they
    /// newly give: they ask for more than was looked at, or for what a back-end said some time ago.
    fn match_again(self: &Arc<Self>, state: &mut State, id: WorkloadId) -> bool {
        let Some(member) = state.members.get_mut(&id) else { return false };
        let shallow = self.is_too_shallow(&member.attestation);
        let found = self.match_held(&member.attestation, &member.identities);
        let (kept, gained): (Vec<_>, Vec<_>) = found.into_iter().partition(|identity| {
            let had = member.identities.iter().any(|had| had.same_as(identity));
            had || !self.rests_on_backend(&identity.entry)
        });
        member.identities = kept;
        member.stale |= !gained.is_empty();
        let now = self.parts.clock.monotonic();
        let actions = self.hold_matched(state, id, Cause::EntryWithdrawn, now);
        self.perform(state, actions, now);
        state.show(id, now);
        shallow || !gained.is_empty()
    }

    fn rests_on_backend(&self, entry: &Entry) -> bool {
        let attestors = &self.parts.attestors;
        let asked = entry.selectors.iter().map(|wanted| wanted.kind_and_key().0);
        asked.chain(entry.spiffe_id.placeholders().map(|(kind, _)| kind)).any(|kind| attestors.asks(kind))
    }
}
