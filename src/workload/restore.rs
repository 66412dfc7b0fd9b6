//! After a restart: leases of processes that are gone are revoked, those of living ones taken over, and what
//! an operator took stays taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use mayfly_attestors::{AttestError, Attestation, Process, ProcessKey};

use super::admit::member;
use super::issue::remaining;
use super::revoker::Initiator;
use super::state::{Member, State};
use super::{Shared, Workloads};
use crate::clock::unix_seconds;
use crate::id::EntryId;
use crate::lease::{Cause, WorkloadId};
use crate::ledger::{Reason, Row, State as RowState};
use crate::registration::Identity;

/// How many processes are looked at together.
const AT_ONCE: usize = 8;

/// How often a process is looked at before its leases are given up, and how long between.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// What became of the leases of the run before.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Restored {
    /// Taken over.
    pub adopted: usize,
    /// Revoked, because their process is gone or matches no longer.
    pub revoked: usize,
}

/// What the ledger says of one process.
#[derive(Default)]
struct Past {
    live: Vec<Row>,
    /// Entries an operator took from it.
    barred: BTreeSet<EntryId>,
}

impl Workloads {
    /// Goes through the ledger's rows. Must be done before anybody is served: whoever died while the
    /// agent was down is refused, and in the published CRL, when this returns.
    pub async fn restore(&self, rows: Vec<Row>) -> Restored {
        let now = unix_seconds(self.0.parts.clock.wall());
        self.0.restore_lists(&rows);
        let mut processes: BTreeMap<ProcessKey, Past> = BTreeMap::new();
        for row in rows {
            let past = processes.entry(row.process).or_default();
            match row.state {
                RowState::Live if row.not_after > now => past.live.push(row),
                RowState::Revoked { reason: Reason::Operator, .. } => {
                    past.barred.insert(row.entry);
                }
                _ => {}
            }
        }
        let looked = stream::iter(processes).map(|(key, past)| self.0.adopt(key, past));
        let outcomes: Vec<(usize, Vec<Row>)> = looked.buffer_unordered(AT_ONCE).collect().await;
        let mut restored = Restored::default();
        let mut gone = Vec::new();
        for (adopted, rows) in outcomes {
            restored.adopted += adopted;
            restored.revoked += rows.len();
            gone.extend(rows);
        }
        let (done, published) = tokio::sync::oneshot::channel();
        let seen = self.0.parts.clock.monotonic();
        self.0.refuse(gone, Reason::Restart, Initiator::Agent, seen, Some(done));
        // An error means the revoker is gone; the readiness concern it left says so.
        published.await.ok();
        restored
    }
}

impl Shared {
    /// Answers how many leases were taken over, and gives the others back.
    async fn adopt(self: &Arc<Self>, key: ProcessKey, past: Past) -> (usize, Vec<Row>) {
        if past.live.is_empty() && past.barred.is_empty() {
            return (0, Vec::new());
        }
        let Some((process, attestation)) = self.find(key).await else { return (0, past.live) };
        let mut state = self.lock();
        let identities = self.match_now(&attestation);
        let earned = |row: &Row| row.uid == process.uid() && is_earned(&identities, row);
        let (kept, gone): (Vec<Row>, Vec<Row>) = past.live.into_iter().partition(earned);
        if kept.is_empty() && past.barred.is_empty() {
            return (0, gone);
        }
        let now = self.parts.clock.monotonic();
        let id = state.insert(member(&process, Arc::new(attestation), identities, now));
        if self.reaper.watch(&process, id.0).is_err() {
            state.core.end(id, Cause::WatchLost);
            state.remove(id);
            return (0, kept.into_iter().chain(gone).collect());
        }
        let adopted = kept.len();
        self.take_over(&mut state, id, kept, &past.barred);
        (adopted, gone)
    }

    fn take_over(
        self: &Arc<Self>,
        state: &mut State,
        id: WorkloadId,
        rows: Vec<Row>,
        barred: &BTreeSet<EntryId>,
    ) {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        for row in rows {
            state.core.adopt(id, row.entry.clone(), row.id, now + remaining(&row, wall));
            state.add_row(row);
        }
        for entry in barred {
            let actions = state.core.bar_entry(id, entry);
            self.perform(state, actions, now);
        }
        let wanted = state.members.get(&id).map(Member::wanted).unwrap_or_default();
        let actions = state.core.set_entries(id, &wanted, Cause::NoLongerMatches, now);
        self.perform(state, actions, now);
    }

    /// The process that has this key, pinned and attested; `None` when it is gone or cannot be known.
    async fn find(&self, key: ProcessKey) -> Option<(Arc<Process>, Attestation)> {
        if key.boot_id != self.parts.host.boot_id() {
            return None;
        }
        let process = Arc::new(Process::of_pid(&self.parts.host, key.pid).ok()?);
        if process.key() != key {
            return None;
        }
        // A disk that is cold after a boot, or our own shortage, must not cost a living process its leases.
        for attempt in 1.. {
            match self.parts.attestors.attest(&process).await {
                Ok(attestation) => return Some((process, attestation)),
                Err(AttestError::Exited | AttestError::CredentialsChanged) => return None,
                Err(error) if attempt == ATTEMPTS => {
                    tracing::warn!(pid = key.pid, %error, "its leases are revoked: it cannot be looked at");
                    return None;
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        None
    }
}

fn is_earned(identities: &[Identity], row: &Row) -> bool {
    identities.iter().any(|i| i.entry.id == row.entry && i.spiffe_id.as_str() == row.spiffe_id)
}
