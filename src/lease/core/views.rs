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

    /// Current and still valid lease of that form for each entry held whose identity may be had in it, in entry order;
    /// `None` where there is none.
    pub fn shown(&self, workload: WorkloadId, form: Form, now: Instant) -> Vec<(EntryId, Option<LeaseId>)> {
        let Some(state) = self.workloads.get(&workload) else { return Vec::new() };
        let lease = |slot: &Slot| slot.current.filter(|_| slot.is_valid(now)).map(|c| c.lease);
        let current = |entry| state.slots.get(form).get(entry).and_then(lease);
        let open = state.slots.x509.keys().filter(|entry| !state.closed.get(form).contains(*entry));
        open.map(|entry| (entry.clone(), current(entry))).collect()
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

    /// Issuances on demand ([`Core::begin`]) in flight for the workload; what fills a slot is not among them.
    pub fn on_demand(&self, workload: WorkloadId) -> usize {
        let flights = self.workloads.get(&workload).map(|w| &w.flights);
        let flights = flights.into_iter().flatten().filter_map(|ticket| self.flights.get(ticket));
        flights.filter(|flight| flight.fills.is_none()).count()
    }

    /// How many leases are live.
    pub fn live_leases(&self) -> usize {
        self.leases.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::lease::{Action, Cause, Ticket, Wanted};

    const ONE: WorkloadId = WorkloadId(1);

    /// A workload that listens, and its first issuance.
    fn listening(core: &mut Core, now: Instant) -> (EntryId, Ticket) {
        let entry = EntryId::new("e");
        core.admit(ONE);
        let wanted = Wanted { entry: entry.clone(), subject: 1, revision: 1 };
        core.set_entries(ONE, &[wanted], Cause::NoLongerMatches, now);
        match core.listen(ONE, Form::X509, now).as_slice() {
            [Action::Issue { ticket, .. }] => (entry, *ticket),
            other => panic!("{other:?}"),
        }
    }

    /// A limit on tokens is no limit on certificates that are being made at that moment.
    #[test]
    fn what_fills_a_slot_is_not_on_demand() {
        let (mut core, now) = (Core::default(), SystemClock.monotonic());
        let (entry, _) = listening(&mut core, now);
        assert_eq!(core.on_demand(ONE), 0);
        let ticket = core.begin(ONE, &entry).unwrap();
        assert_eq!(core.on_demand(ONE), 1);
        core.fail(ticket, None, now);
        assert_eq!(core.on_demand(ONE), 0);
    }

    #[test]
    fn a_retry_waits_for_no_back_off_and_issues_nothing_twice() {
        let (mut core, now) = (Core::default(), SystemClock.monotonic());
        let (_, ticket) = listening(&mut core, now);
        assert!(core.retry(ONE, now).is_empty(), "one is in flight");
        core.fail(ticket, None, now);
        assert!(core.deadline().unwrap() > now + Duration::from_millis(100), "it backs off");
        assert!(matches!(core.retry(ONE, now).as_slice(), [Action::Issue { .. }]));
        assert!(core.retry(ONE, now).is_empty());
        assert!(core.retry(WorkloadId(2), now).is_empty(), "a stranger");
    }
}
