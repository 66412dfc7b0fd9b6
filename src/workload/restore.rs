//! After a restart: leases of processes that are gone are revoked, those of living ones taken over.

use std::collections::BTreeMap;
use std::sync::Arc;

use mayfly_attestors::{Process, ProcessKey};

use super::admit::member;
use super::issue::remaining;
use super::revoker::Initiator;
use super::{Shared, Workloads};
use crate::clock::unix_seconds;
use crate::lease::Cause;
use crate::ledger::{Reason, Row, State as RowState};

/// What became of the leases of the run before.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Restored {
    /// Taken over.
    pub adopted: usize,
    /// Revoked, because their process is gone or matches no longer.
    pub revoked: usize,
}

impl Workloads {
    /// Goes through the ledger's rows. Must be done before anybody is served: whoever died while the
    /// agent was down is refused when this returns, and in the CRL when the answer's receiver resolves.
    pub async fn restore(&self, rows: Vec<Row>) -> Restored {
        let now = unix_seconds(self.0.parts.clock.wall());
        let mut by_process: BTreeMap<ProcessKey, Vec<Row>> = BTreeMap::new();
        for row in rows {
            if row.state == RowState::Live && row.not_after > now {
                by_process.entry(row.process).or_default().push(row);
            }
        }
        let mut restored = Restored::default();
        let mut gone = Vec::new();
        for (key, rows) in by_process {
            let count = rows.len();
            match self.0.adopt(key, rows).await {
                Ok(()) => restored.adopted += count,
                Err(rows) => {
                    restored.revoked += rows.len();
                    gone.extend(rows);
                }
            }
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
    /// Gives the rows back when their process cannot be found, watched and matched again.
    async fn adopt(self: &Arc<Self>, key: ProcessKey, rows: Vec<Row>) -> Result<(), Vec<Row>> {
        if key.boot_id != self.parts.host.boot_id() {
            return Err(rows);
        }
        let Ok(process) = Process::of_pid(&self.parts.host, key.pid).map(Arc::new) else { return Err(rows) };
        if process.key() != key || rows.iter().any(|row| row.uid != process.uid()) {
            return Err(rows);
        }
        let Ok(attestation) = self.parts.attestors.attest(&process).await else { return Err(rows) };
        let identities = self.match_now(&attestation);
        let still_earned = |row: &Row| {
            identities.iter().any(|i| i.entry.id == row.entry && i.spiffe_id.as_str() == row.spiffe_id)
        };
        if !rows.iter().all(still_earned) {
            return Err(rows);
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut state = self.lock();
        let id = state.insert(member(&process, Arc::new(attestation), identities, now));
        if self.reaper.watch(&process, id.0).is_err() {
            state.core.end(id, Cause::WatchLost);
            state.remove(id);
            return Err(rows);
        }
        for row in rows {
            state.core.adopt(id, row.entry.clone(), row.id, now + remaining(&row, wall));
            state.add_row(row);
        }
        let wanted = state.members.get(&id).map(super::state::Member::wanted).unwrap_or_default();
        let actions = state.core.set_entries(id, &wanted, Cause::NoLongerMatches, now);
        self.perform(&mut state, actions, now);
        Ok(())
    }
}
