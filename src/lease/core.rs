//! The state machine itself.

mod closing;
mod ending;
mod forms;
mod renewing;
mod taking;
mod views;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use self::forms::Forms;
pub use self::views::LeaseView;
use super::slot::{Current, Jitter, Slot};
use super::timers::Timers;
use super::{Action, Cause, Completion, Ends, Form, Ticket, Wanted, WorkloadId};
use crate::id::{EntryId, LeaseId};

/// Every workload, slot and lease this agent knows.
#[derive(Debug, Default)]
pub struct Core {
    workloads: HashMap<WorkloadId, Workload>,
    leases: HashMap<LeaseId, Lease>,
    flights: HashMap<Ticket, Flight>,
    timers: Timers<Timer>,
    next_ticket: u64,
}

/// Why nothing may be issued.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The workload has ended.
    #[error("the process has ended")]
    Ended,
    /// The workload does not hold this entry, or an operator took it away.
    #[error("the process does not hold this entry")]
    NotHeld,
}

#[derive(Debug, Default)]
struct Workload {
    slots: Forms<BTreeMap<EntryId, Slot>>,
    leases: BTreeSet<LeaseId>,
    flights: BTreeSet<Ticket>,
    listeners: Forms<usize>,
    holds: usize,
    /// What policy does not give, whatever entry says so.
    closed: Forms<BTreeSet<EntryId>>,
    barred: BTreeSet<EntryId>,
    barred_all: bool,
}

#[derive(Debug)]
struct Lease {
    workload: WorkloadId,
    entry: EntryId,
    /// Of what is kept in slots; `None` for what is made on demand.
    form: Option<Form>,
    ends: Ends,
}

#[derive(Debug)]
struct Flight {
    workload: WorkloadId,
    entry: EntryId,
    fills: Option<Form>,
    revision: u64,
    /// What it brings is to be replaced at once.
    stale: bool,
    doomed: Option<Cause>,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Timer {
    Expiry(LeaseId),
    Slot(WorkloadId, EntryId, Form),
}

impl Core {
    /// Takes in a workload whose exit is being watched. Does nothing when it is known.
    pub fn admit(&mut self, workload: WorkloadId) {
        self.workloads.entry(workload).or_default();
    }

    /// Says which entries the workload matches now. Leases of entries it no longer matches are revoked
    /// for `cause`; new ones are issued if somebody listens.
    pub fn set_entries(
        &mut self,
        workload: WorkloadId,
        wanted: &[Wanted],
        cause: Cause,
        now: Instant,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(state) = self.workloads.get(&workload) else { return actions };
        let allowed = |entry: &EntryId| !state.barred_all && !state.barred.contains(entry);
        let keep: BTreeMap<&EntryId, &Wanted> =
            wanted.iter().filter(|w| allowed(&w.entry)).map(|w| (&w.entry, w)).collect();
        let slots = state.slots.x509.iter();
        let lost = slots.filter(|(entry, slot)| keep.get(entry).is_none_or(|w| w.subject != slot.subject));
        // Leases without a slot (adopted ones) count too.
        let held = state.leases.iter().filter_map(|id| self.leases.get(id)).map(|l| &l.entry);
        let gone: BTreeSet<EntryId> =
            lost.map(|(entry, _)| entry).chain(held.filter(|e| !keep.contains_key(e))).cloned().collect();
        let mut changed = !gone.is_empty();
        for entry in &gone {
            self.drop_slot(workload, entry, cause, &mut actions);
        }
        let Some(state) = self.workloads.get_mut(&workload) else { return actions };
        for (entry, wanted) in keep {
            state.slots.x509.entry(entry.clone()).or_insert_with(|| {
                changed = true;
                Slot::new(wanted.subject, wanted.revision)
            });
            for slot in state.slots.of_entry_mut(entry).filter(|slot| slot.revision != wanted.revision) {
                slot.revision = wanted.revision;
                slot.outdated = true;
            }
        }
        state.open_slots();
        self.pursue(workload, now, &mut actions);
        if changed {
            actions.push(Action::Show { workload });
        }
        actions
    }

    /// Somebody listens for the workload's SVIDs of that form.
    pub fn listen(&mut self, workload: WorkloadId, form: Form, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(state) = self.workloads.get_mut(&workload) else { return actions };
        *state.listeners.get_mut(form) += 1;
        state.open_slots();
        state.slots.get_mut(form).values_mut().for_each(Slot::forgive);
        self.pursue(workload, now, &mut actions);
        actions
    }

    /// One listener fewer. Returns true when nothing ties the workload here any longer, so that the
    /// shell may forget it (see [`Core::forget`]).
    pub fn unlisten(&mut self, workload: WorkloadId, form: Form) -> bool {
        if let Some(state) = self.workloads.get_mut(&workload) {
            let listeners = state.listeners.get_mut(form);
            *listeners = listeners.saturating_sub(1);
            if *listeners == 0 {
                for entry in state.slots.get(form).keys() {
                    self.timers.cancel(&Timer::Slot(workload, entry.clone(), form));
                }
            }
        }
        self.is_idle(workload)
    }

    /// Somebody needs the workload to be watched, but none of its SVIDs.
    pub fn hold(&mut self, workload: WorkloadId) {
        if let Some(state) = self.workloads.get_mut(&workload) {
            state.holds += 1;
        }
    }

    /// Undoes one [`Core::hold`]; answers as [`Core::unlisten`] does.
    pub fn unhold(&mut self, workload: WorkloadId) -> bool {
        if let Some(state) = self.workloads.get_mut(&workload) {
            state.holds = state.holds.saturating_sub(1);
        }
        self.is_idle(workload)
    }

    /// Drops an idle workload; does nothing when it is not idle.
    pub fn forget(&mut self, workload: WorkloadId) -> bool {
        self.is_idle(workload) && self.workloads.remove(&workload).is_some()
    }

    /// Begins an issuance that fills no slot (a JWT-SVID).
    pub fn begin(&mut self, workload: WorkloadId, entry: &EntryId) -> Result<Ticket, Refused> {
        let state = self.workloads.get(&workload).ok_or(Refused::Ended)?;
        if !state.slots.x509.contains_key(entry) {
            return Err(Refused::NotHeld);
        }
        Ok(self.take_off(workload, entry.clone(), None))
    }

    /// The lease is durable; may its credential leave? `ends` is the lease's end, `jitter` any random
    /// number.
    pub fn complete(
        &mut self,
        ticket: Ticket,
        lease: LeaseId,
        ends: Ends,
        jitter: Jitter,
        now: Instant,
    ) -> Completion {
        let Some(flight) = self.land(ticket) else {
            // A ticket the core does not know was never its own: refuse.
            return Completion::RevokedAtBirth(Cause::Aborted, Vec::new());
        };
        let workload = flight.workload;
        if let Some(cause) = flight.doomed {
            let revoke = Action::Revoke { workload, leases: vec![lease], cause };
            return Completion::RevokedAtBirth(cause, vec![revoke]);
        }
        let mut actions = Vec::new();
        self.remember(workload, flight.entry.clone(), flight.fills, lease, ends);
        if let Some(form) = flight.fills {
            if let Some(slot) = self.slot_mut(workload, &flight.entry, form) {
                let renew_at = jitter.renew_at(now, ends);
                slot.filled(Current { lease, ends, renew_at }, flight.revision);
                slot.outdated |= flight.stale;
            }
            if flight.stale {
                self.hide_unheard(workload, &flight.entry, form);
            }
            self.pursue(workload, now, &mut actions);
            actions.push(Action::Show { workload });
        }
        Completion::Release(actions)
    }

    /// The issuance failed. `written` is its lease when that had already been made durable.
    pub fn fail(&mut self, ticket: Ticket, written: Option<LeaseId>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(flight) = self.land(ticket) else { return actions };
        let workload = flight.workload;
        if let Some(lease) = written {
            let cause = flight.doomed.unwrap_or(Cause::Aborted);
            actions.push(Action::Revoke { workload, leases: vec![lease], cause });
        }
        if let Some(form) = flight.fills.filter(|_| flight.doomed.is_none()) {
            if let Some(slot) = self.slot_mut(workload, &flight.entry, form) {
                slot.failed(now);
            }
            self.pursue(workload, now, &mut actions);
            actions.push(Action::Show { workload });
        }
        actions
    }

    /// Takes over a lease that an earlier run of the agent issued to a process that still lives; `form` where it is of
    /// what is kept in slots.
    pub fn adopt(
        &mut self,
        workload: WorkloadId,
        entry: EntryId,
        form: Option<Form>,
        lease: LeaseId,
        ends: Ends,
    ) {
        self.admit(workload);
        self.remember(workload, entry, form, lease, ends);
    }

    /// The earliest moment at which [`Core::on_timeout`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Everything that is due.
    pub fn on_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Slot(workload, ..) => self.pursue(workload, now, &mut actions),
                Timer::Expiry(lease) => self.expire(lease, now, &mut actions),
            }
        }
        actions
    }
}

impl Core {
    /// Issues what is due in each slot, or sets the timer for when it will be.
    fn pursue(&mut self, workload: WorkloadId, now: Instant, actions: &mut Vec<Action>) {
        let Some(state) = self.workloads.get(&workload) else { return };
        let due: Vec<_> = state
            .slots
            .iter()
            .filter(|(form, entry, _)| {
                *state.listeners.get(*form) > 0 && !state.closed.get(*form).contains(*entry)
            })
            .filter_map(|(form, entry, slot)| Some((form, entry.clone(), slot.due(now)?, slot.is_valid(now))))
            .collect();
        for (form, entry, at, renewal) in due {
            if at > now {
                self.timers.set(Timer::Slot(workload, entry, form), at);
                continue;
            }
            let ticket = self.take_off(workload, entry.clone(), Some(form));
            if let Some(slot) = self.slot_mut(workload, &entry, form) {
                slot.in_flight = Some(ticket);
            }
            self.timers.cancel(&Timer::Slot(workload, entry.clone(), form));
            actions.push(Action::Issue { ticket, workload, entry, form, renewal });
        }
    }

    fn slot_mut(&mut self, workload: WorkloadId, entry: &EntryId, form: Form) -> Option<&mut Slot> {
        self.workloads.get_mut(&workload)?.slots.get_mut(form).get_mut(entry)
    }

    fn take_off(&mut self, workload: WorkloadId, entry: EntryId, fills: Option<Form>) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let mut revision = 0;
        if let Some(state) = self.workloads.get_mut(&workload) {
            state.flights.insert(ticket);
            revision = state.slots.x509.get(&entry).map_or(0, |slot| slot.revision);
        }
        let flight = Flight { workload, entry, fills, revision, stale: false, doomed: None };
        self.flights.insert(ticket, flight);
        ticket
    }

    fn land(&mut self, ticket: Ticket) -> Option<Flight> {
        let flight = self.flights.remove(&ticket)?;
        if let Some(state) = self.workloads.get_mut(&flight.workload) {
            state.flights.remove(&ticket);
        }
        Some(flight)
    }

    fn remember(
        &mut self,
        workload: WorkloadId,
        entry: EntryId,
        form: Option<Form>,
        lease: LeaseId,
        ends: Ends,
    ) {
        if let Some(state) = self.workloads.get_mut(&workload) {
            state.leases.insert(lease);
            self.leases.insert(lease, Lease { workload, entry, form, ends });
            self.timers.set(Timer::Expiry(lease), ends);
        }
    }
}
