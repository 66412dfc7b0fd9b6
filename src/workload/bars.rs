//! What operators took from processes. It stands until the process has ended, over restarts of the agent, and
//! whether or not the process holds anything or has ever called.

use std::collections::BTreeSet;
use std::sync::Arc;

use mayfly_attestors::ProcessKey;

use super::operator::Target;
use super::{Shared, State};
use crate::clock::unix_millis;
use crate::id::EntryId;
use crate::lease::{Action, WorkloadId};
use crate::ledger::{Bar, LedgerError};

/// What one process must not have.
#[derive(Debug, Default)]
pub(super) struct Standing {
    everything: bool,
    entries: BTreeSet<EntryId>,
}

impl State {
    /// The bars that an order comes to. A process that is not known here has none: see `hold_stranger`.
    pub(super) fn bars_for(&self, target: &Target) -> Vec<Bar> {
        let key = |id: &WorkloadId| Some(self.members.get(id)?.process.key());
        match target {
            Target::Lease(lease) => {
                // Of a task in a cgroup it may be a process that has exited: there is nobody to be barred.
                let row = self.rows.get(lease).filter(|row| self.by_key.contains_key(&row.process));
                row.into_iter()
                    .map(|row| Bar { process: row.process, entry: Some(row.entry.clone()) })
                    .collect()
            }
            Target::Pid(pid) => {
                let ids = self.by_pid.get(pid).into_iter().flatten();
                ids.filter_map(|id| Some(Bar { process: key(id)?, entry: None })).collect()
            }
            // By entry, not by lease: what is in flight must not slip through.
            Target::SpiffeId(spiffe_id) => {
                let holders = self.holders(spiffe_id).into_iter();
                holders
                    .filter_map(|(id, entry)| Some(Bar { process: key(&id)?, entry: Some(entry) }))
                    .collect()
            }
        }
    }

    /// Puts a bar up, in memory.
    pub(super) fn bar(&mut self, bar: &Bar) -> Vec<Action> {
        let standing = self.standing.entry(bar.process).or_default();
        match &bar.entry {
            None => standing.everything = true,
            Some(entry) => drop(standing.entries.insert(entry.clone())),
        }
        let id = self.by_key.get(&bar.process).copied();
        id.map(|id| self.apply_bars(id, bar.process)).unwrap_or_default()
    }

    /// Whether an operator took the identity of that entry from the process.
    pub(super) fn is_taken(&self, process: &ProcessKey, entry: &EntryId) -> bool {
        let standing = self.standing.get(process);
        standing.is_some_and(|standing| standing.everything || standing.entries.contains(entry))
    }

    /// Takes from a workload what it must not have.
    pub(super) fn apply_bars(&mut self, id: WorkloadId, process: ProcessKey) -> Vec<Action> {
        let Some(standing) = self.standing.get(&process) else { return Vec::new() };
        let mut actions = Vec::new();
        if standing.everything {
            actions.extend(self.core.bar(id));
        }
        for entry in &standing.entries {
            actions.extend(self.core.bar_entry(id, entry));
        }
        actions
    }
}

impl Shared {
    /// Makes bars outlive this run. They hold in memory already; a ledger that cannot be written keeps them until
    /// it can, and is a readiness concern of its own.
    pub(super) async fn write_bars(&self, bars: &[Bar]) -> Result<(), LedgerError> {
        if bars.is_empty() {
            return Ok(());
        }
        let at = unix_millis(self.parts.clock.wall());
        self.parts.ledger.bar(bars, at).await.inspect_err(|error| {
            tracing::error!(%error, "an operator's order holds, but would not outlive a restart of the agent yet");
        })
    }

    /// Forgets what was taken from processes that have ended.
    pub(super) fn forget_bars(self: &Arc<Self>, state: &mut State, ended: &[ProcessKey]) {
        let known = |process: &&ProcessKey| state.standing.remove(process).is_some();
        let known: Vec<ProcessKey> = ended.iter().filter(known).copied().collect();
        if known.is_empty() {
            return;
        }
        let ledger = self.parts.ledger.clone();
        self.spawn(async move {
            if let Err(error) = ledger.unbar(known).await {
                tracing::warn!(%error, "bars of processes that have ended stay in the ledger until the next start");
            }
        });
    }
}
