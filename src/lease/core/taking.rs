//! Taking back from a workload that lives: by an operator, or because a credential never arrived.

use super::Core;
use crate::id::{EntryId, LeaseId};
use crate::lease::{Action, Cause, WorkloadId};

impl Core {
    /// An operator takes everything from a live workload; it gets nothing again until it restarts.
    pub fn bar(&mut self, workload: WorkloadId) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(state) = self.workloads.get_mut(&workload) else { return actions };
        state.barred_all = true;
        let slots: Vec<EntryId> = state.slots.x509.keys().cloned().collect();
        for entry in slots {
            self.drop_slot(workload, &entry, Cause::Operator, &mut actions);
        }
        self.drop_rest(workload, Cause::Operator, &mut actions);
        actions.push(Action::Show { workload });
        actions
    }

    /// An operator takes one lease, and with it the entry, from its workload.
    pub fn revoke(&mut self, lease: LeaseId) -> Vec<Action> {
        let Some(found) = self.leases.get(&lease) else { return Vec::new() };
        let (workload, entry) = (found.workload, found.entry.clone());
        self.bar_entry(workload, &entry)
    }

    /// An operator takes one entry from a live workload, with every lease of it and what is in flight.
    pub fn bar_entry(&mut self, workload: WorkloadId, entry: &EntryId) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(state) = self.workloads.get_mut(&workload) else { return actions };
        state.barred.insert(entry.clone());
        self.drop_slot(workload, entry, Cause::Operator, &mut actions);
        actions.push(Action::Show { workload });
        actions
    }

    /// Whether an operator took this entry from the workload.
    pub fn is_barred(&self, workload: WorkloadId, entry: &EntryId) -> bool {
        self.workloads.get(&workload).is_some_and(|w| w.barred_all || w.barred.contains(entry))
    }

    /// Takes back one lease that never reached its holder; the entry stays.
    pub fn withdraw(&mut self, lease: LeaseId) -> Vec<Action> {
        let Some(workload) = self.leases.get(&lease).map(|found| found.workload) else { return Vec::new() };
        self.drop_lease(workload, lease);
        vec![Action::Revoke { workload, leases: vec![lease], cause: Cause::Aborted }]
    }

    /// Revokes leases that belong to no slot (adopted ones).
    fn drop_rest(&mut self, workload: WorkloadId, cause: Cause, actions: &mut Vec<Action>) {
        let Some(state) = self.workloads.get_mut(&workload) else { return };
        let leases: Vec<LeaseId> = std::mem::take(&mut state.leases).into_iter().collect();
        self.drop_leases(&leases);
        if !leases.is_empty() {
            actions.push(Action::Revoke { workload, leases, cause });
        }
    }
}
