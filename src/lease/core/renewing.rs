//! Renewing before time: because the key that signed is no longer to be trusted, or because what kept SVIDs from being
//! issued is over.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Core, Slot};
use crate::id::{EntryId, LeaseId};
use crate::lease::{Action, Form, WorkloadId};

impl Core {
    /// Issues the SVIDs of these leases again where somebody listens; where nobody does they are shown to nobody any
    /// more, and whoever comes gets new ones. The leases themselves run out by themselves. What is in flight may have
    /// been signed by the same key: it is issued once more when it lands.
    pub fn renew(&mut self, leases: &BTreeSet<LeaseId>, now: Instant) -> Vec<Action> {
        for flight in self.flights.values_mut() {
            flight.stale = true;
        }
        let mut touched: BTreeSet<WorkloadId> = BTreeSet::new();
        for lease in leases {
            let Some(found) = self.leases.get(lease) else { continue };
            let Some(workload) = self.workloads.get_mut(&found.workload) else { continue };
            for form in Form::ALL {
                let unheard = *workload.listeners.get(form) == 0;
                let slot = workload.slots.get_mut(form).get_mut(&found.entry);
                if let Some(slot) = slot.filter(|slot| slot.current.is_some_and(|c| c.lease == *lease)) {
                    slot.outdated = true;
                    slot.forgive();
                    if unheard {
                        slot.current = None;
                    }
                    touched.insert(found.workload);
                }
            }
        }
        let mut actions = Vec::new();
        for workload in touched {
            self.pursue(workload, now, &mut actions);
            actions.push(Action::Show { workload });
        }
        actions
    }

    /// What kept the workload's SVIDs from being issued is over: what is due does not wait for its back-off.
    pub fn retry(&mut self, workload: WorkloadId, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(state) = self.workloads.get_mut(&workload) else { return actions };
        for form in Form::ALL {
            state.slots.get_mut(form).values_mut().for_each(Slot::forgive);
        }
        self.pursue(workload, now, &mut actions);
        actions
    }

    /// What may have been signed by a key that is no longer to be trusted is not kept for somebody who comes later.
    pub(super) fn hide_unheard(&mut self, workload: WorkloadId, entry: &EntryId, form: Form) {
        let Some(workload) = self.workloads.get_mut(&workload) else { return };
        if *workload.listeners.get(form) > 0 {
            return;
        }
        if let Some(slot) = workload.slots.get_mut(form).get_mut(entry) {
            slot.current = None;
        }
    }
}
