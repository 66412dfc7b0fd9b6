//! The core as others may see it; nothing here changes it.

use std::time::Instant;

use super::Core;
use crate::id::{EntryId, LeaseId};
use crate::lease::slot::Slot;
use crate::lease::{Ends, Form, WorkloadId};

/// A lease as others may see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaseView {
    /// Which.
    pub id: LeaseId,
    /// Under which entry it was issued.
    pub entry: EntryId,
    /// When it ends.
    pub ends: Ends,
}

impl Core {
    /// Whether the workload is live here.
    pub fn knows(&self, workload: WorkloadId) -> bool {
        self.workloads.contains_key(&workload)
    }

    /// Whether the workload has no listener, no lease and nothing in flight.
    pub fn is_idle(&self, workload: WorkloadId) -> bool {
        self.workloads.get(&workload).is_some_and(|w| {
            let holds_nothing = w.leases.is_empty() && w.flights.is_empty();
            w.listeners.x509 + w.listeners.wit + w.holds == 0
                && holds_nothing
                && !w.barred_all
                && w.barred.is_empty()
        })
    }

    /// Current and still valid lease of that form for each entry held, in entry order; `None` where there is none.
    pub fn shown(&self, workload: WorkloadId, form: Form, now: Instant) -> Vec<(EntryId, Option<LeaseId>)> {
        let Some(state) = self.workloads.get(&workload) else { return Vec::new() };
        let lease = |slot: &Slot| slot.current.filter(|_| slot.is_valid(now)).map(|c| c.lease);
        let current = |entry| state.slots.get(form).get(entry).and_then(lease);
        state.slots.x509.keys().map(|entry| (entry.clone(), current(entry))).collect()
    }

    /// The entries that the workload holds: matched, and not taken by an operator.
    pub fn held(&self, workload: WorkloadId) -> Vec<EntryId> {
        self.workloads.get(&workload).map(|w| w.slots.x509.keys().cloned().collect()).unwrap_or_default()
    }

    /// Every unexpired lease of the workload.
    pub fn leases_of(&self, workload: WorkloadId) -> Vec<LeaseView> {
        let held = self.workloads.get(&workload).map(|w| &w.leases);
        held.into_iter()
            .flatten()
            .filter_map(|id| self.leases.get(id).map(|l| (id, l)))
            .map(|(id, l)| LeaseView { id: *id, entry: l.entry.clone(), ends: l.ends })
            .collect()
    }

    /// Issuances in flight for the workload.
    pub fn flights_of(&self, workload: WorkloadId) -> usize {
        self.workloads.get(&workload).map_or(0, |w| w.flights.len())
    }

    /// How many leases are live.
    pub fn live_leases(&self) -> usize {
        self.leases.len()
    }
}
