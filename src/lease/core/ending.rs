//! How leases end: with their workload, with their entry, with their time.

use std::time::Instant;

use super::{Core, Lease, Timer};
use crate::id::{EntryId, LeaseId};
use crate::lease::slot::Slot;
use crate::lease::{Action, Cause, Form, WorkloadId};

impl Core {
    /// The workload is over: every lease it has is revoked, and so is every issuance in flight for it,
    /// at birth.
    pub fn end(&mut self, workload: WorkloadId, cause: Cause) -> Vec<Action> {
        let Some(state) = self.workloads.remove(&workload) else { return Vec::new() };
        for (form, entry) in state.slots.keys() {
            self.timers.cancel(&Timer::Slot(workload, entry.clone(), form));
        }
        for ticket in &state.flights {
            if let Some(flight) = self.flights.get_mut(ticket) {
                flight.doomed.get_or_insert(cause);
            }
        }
        let leases: Vec<LeaseId> = state.leases.into_iter().collect();
        self.drop_leases(&leases);
        if leases.is_empty() { Vec::new() } else { vec![Action::Revoke { workload, leases, cause }] }
    }

    pub(super) fn expire(&mut self, lease: LeaseId, now: Instant, actions: &mut Vec<Action>) {
        let Some(Lease { workload, entry, .. }) = self.leases.remove(&lease) else { return };
        if let Some(state) = self.workloads.get_mut(&workload) {
            state.leases.remove(&lease);
            let take = |slot: &mut Slot| slot.current.take_if(|c| c.lease == lease).is_some();
            let was_shown = state.slots.of_entry_mut(&entry).any(take);
            if was_shown {
                self.pursue(workload, now, actions);
                actions.push(Action::Show { workload });
            }
        }
        actions.push(Action::Expire { workload, lease });
    }

    /// Removes the slots of an entry with every lease of it, and dooms what is in flight for it.
    pub(super) fn drop_slot(
        &mut self,
        workload: WorkloadId,
        entry: &EntryId,
        cause: Cause,
        actions: &mut Vec<Action>,
    ) {
        for form in Form::ALL {
            self.timers.cancel(&Timer::Slot(workload, entry.clone(), form));
        }
        let Some(state) = self.workloads.get_mut(&workload) else { return };
        for ticket in &state.flights {
            if let Some(flight) = self.flights.get_mut(ticket).filter(|f| f.entry == *entry) {
                flight.doomed.get_or_insert(cause);
            }
        }
        state.slots.remove(entry);
        let leases: Vec<LeaseId> = state
            .leases
            .iter()
            .filter(|id| self.leases.get(id).is_some_and(|l| l.entry == *entry))
            .copied()
            .collect();
        for id in &leases {
            state.leases.remove(id);
        }
        self.drop_leases(&leases);
        if !leases.is_empty() {
            actions.push(Action::Revoke { workload, leases, cause });
        }
    }

    pub(super) fn drop_leases(&mut self, leases: &[LeaseId]) {
        for lease in leases {
            self.leases.remove(lease);
            self.timers.cancel(&Timer::Expiry(*lease));
        }
    }
}
