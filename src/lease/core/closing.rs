//! Closing one form of an entry: policy gives its identity in another form, or in none, and the entry stays held.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Core, Slot, Timer};
use crate::id::{EntryId, LeaseId};
use crate::lease::{Action, Cause, Form, WorkloadId};

impl Core {
    /// Says which entries' identities may not be had in which forms from now on. What was given in a form that closes is
    /// revoked, what is in flight for it is revoked at birth, and nothing is issued until it opens again. Say it before
    /// [`Core::set_entries`] names an entry for the first time.
    pub fn close(
        &mut self,
        workload: WorkloadId,
        closed: &BTreeSet<(EntryId, Form)>,
        now: Instant,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(state) = self.workloads.get_mut(&workload) else { return actions };
        let mut changed = false;
        for form in Form::ALL {
            let next: BTreeSet<EntryId> =
                closed.iter().filter(|(_, of)| *of == form).map(|(entry, _)| entry.clone()).collect();
            let before = std::mem::replace(state.closed.get_mut(form), next);
            let opened = before.difference(state.closed.get(form));
            for entry in opened {
                changed = true;
                state.slots.get_mut(form).get_mut(entry).into_iter().for_each(Slot::forgive);
            }
            changed |= state.closed.get(form).difference(&before).next().is_some();
        }
        let leases: Vec<LeaseId> = self.closed_leases(workload);
        self.empty_closed(workload, &leases);
        if !leases.is_empty() {
            actions.push(Action::Revoke { workload, leases, cause: Cause::Policy });
        }
        self.pursue(workload, now, &mut actions);
        if changed {
            actions.push(Action::Show { workload });
        }
        actions
    }

    /// Takes back single leases of a live workload; their entries stay. Leases that are not known are passed over.
    pub fn take_back(&mut self, leases: &[LeaseId], cause: Cause, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for lease in leases {
            let Some(found) = self.leases.get(lease) else { continue };
            let workload = found.workload;
            self.drop_lease(workload, *lease);
            actions.push(Action::Revoke { workload, leases: vec![*lease], cause });
            self.pursue(workload, now, &mut actions);
            actions.push(Action::Show { workload });
        }
        actions
    }

    /// Whether that entry's identity may be had in that form.
    pub fn is_closed(&self, workload: WorkloadId, entry: &EntryId, form: Form) -> bool {
        self.workloads.get(&workload).is_some_and(|state| state.closed.get(form).contains(entry))
    }

    fn closed_leases(&self, workload: WorkloadId) -> Vec<LeaseId> {
        let Some(state) = self.workloads.get(&workload) else { return Vec::new() };
        let is_closed = |id: &&LeaseId| {
            self.leases.get(id).is_some_and(|lease| {
                lease.form.is_some_and(|form| state.closed.get(form).contains(&lease.entry))
            })
        };
        state.leases.iter().filter(is_closed).copied().collect()
    }

    fn empty_closed(&mut self, workload: WorkloadId, leases: &[LeaseId]) {
        for lease in leases {
            self.drop_lease(workload, *lease);
        }
        let Some(state) = self.workloads.get_mut(&workload) else { return };
        for form in Form::ALL {
            for entry in state.closed.get(form) {
                self.timers.cancel(&Timer::Slot(workload, entry.clone(), form));
                for ticket in &state.flights {
                    let flight = self.flights.get_mut(ticket);
                    if let Some(flight) = flight.filter(|f| f.fills == Some(form) && f.entry == *entry) {
                        flight.doomed.get_or_insert(Cause::Policy);
                    }
                }
                if let Some(slot) = state.slots.get_mut(form).get_mut(entry) {
                    slot.in_flight = None;
                    slot.current = None;
                }
            }
        }
    }

    /// Forgets a lease, in its slot, too.
    pub(super) fn drop_lease(&mut self, workload: WorkloadId, lease: LeaseId) {
        let Some(found) = self.leases.remove(&lease) else { return };
        self.timers.cancel(&Timer::Expiry(lease));
        if let Some(state) = self.workloads.get_mut(&workload) {
            state.leases.remove(&lease);
            state.slots.of_entry_mut(&found.entry).for_each(|slot| {
                slot.current.take_if(|c| c.lease == lease);
            });
        }
    }
}
