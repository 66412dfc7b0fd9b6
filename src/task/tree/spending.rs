//! What a task uses up, and what it holds: budgets up the tree, credentials in flight, leases.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Tree;
use crate::id::{LeaseId, TaskId};
use crate::task::{Caller, Cost, Refused, Task, Usage};

/// A credential in the making. Never used twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Flight(u64);

/// Whether a credential may leave the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Landing {
    /// It belongs to the task from now on.
    Stands,
    /// Never hand it over: revoke its lease.
    Doomed(Refused),
}

impl Task {
    /// Whether it may have asked for one of these audiences. Not all of many are remembered: any may be among them.
    pub fn may_have_asked_for(&self, is_one: impl Fn(&str) -> bool) -> bool {
        may_be_among(&self.audiences, is_one)
    }
}

impl Tree {
    /// The caller does something as the task: it is not idle, nor are those above it.
    ///
    /// # Errors
    /// [`Refused`]: the caller cannot, or not now.
    pub fn enter(&mut self, id: TaskId, caller: &Caller, now: Instant) -> Result<(), Refused> {
        self.of_caller(id, caller)?;
        self.standing(id)?;
        self.check_time(id, now)?;
        self.touch(id, now);
        Ok(())
    }

    /// Takes the cost of one operation from the task and everything above it, or from none of them.
    ///
    /// # Errors
    /// [`Refused`]; nothing was taken then.
    pub fn spend(&mut self, id: TaskId, cost: Cost, audience: &str, now: Instant) -> Result<(), Refused> {
        self.standing(id)?;
        self.check_time(id, now)?;
        let line = self.lineage(id);
        let after: Vec<(TaskId, Usage)> = line
            .iter()
            .map(|task| Ok((task.id, task.used.plus(cost, &task.charter.limits)?)))
            .collect::<Result<_, Refused>>()?;
        for (id, used) in after {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            task.used = used;
            task.last_call = now;
            if task.audiences.len() < MAX_AUDIENCES {
                task.audiences.insert(audience.to_owned());
            }
            self.note_change(id);
        }
        Ok(())
    }

    /// [`Tree::spend`] for a credential. End it with [`Tree::land`] or [`Tree::crash`].
    ///
    /// # Errors
    /// As for [`Tree::spend`].
    pub fn take_off(&mut self, id: TaskId, audience: &str, now: Instant) -> Result<Flight, Refused> {
        self.spend(id, Cost::CREDENTIAL, audience, now)?;
        let flight = Flight(self.next_flight);
        self.next_flight += 1;
        self.flights.insert(flight, id);
        Ok(flight)
    }

    /// The lease is durable; may its credential leave?
    pub fn land(&mut self, flight: Flight, lease: LeaseId) -> Landing {
        let Some(id) = self.flights.remove(&flight) else { return Landing::Doomed(Refused::NoSuchTask) };
        if let Err(refused) = self.standing(id) {
            return Landing::Doomed(refused);
        }
        self.hold(id, lease);
        Landing::Stands
    }

    /// Nothing came of it. What it cost is spent. The answer is for which task it was.
    pub fn crash(&mut self, flight: Flight) -> Option<TaskId> {
        self.flights.remove(&flight)
    }

    /// Takes over a lease of an earlier run.
    pub fn hold(&mut self, id: TaskId, lease: LeaseId) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.leases.insert(lease);
            self.leases.insert(lease, id);
            self.note_change(id);
        }
    }

    /// The lease has expired, or was revoked by itself.
    pub fn lease_gone(&mut self, lease: LeaseId) -> Option<TaskId> {
        let id = self.leases.remove(&lease)?;
        if let Some(task) = self.tasks.get_mut(&id) {
            task.leases.remove(&lease);
        }
        self.note_change(id);
        Some(id)
    }

    /// The task that holds the lease.
    pub fn task_of(&self, lease: LeaseId) -> Option<TaskId> {
        self.leases.get(&lease).copied()
    }

    /// Something was refused to the task.
    pub fn note_denial(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.denials = task.denials.saturating_add(1);
        }
        self.note_change(id);
    }

    /// The timer may be late; the deadline is not.
    fn check_time(&self, id: TaskId, now: Instant) -> Result<(), Refused> {
        let task = self.tasks.get(&id).ok_or(Refused::NoSuchTask)?;
        if task.deadline <= now { Err(Refused::Ended(crate::task::Ending::Deadline)) } else { Ok(()) }
    }

    fn touch(&mut self, id: TaskId, now: Instant) {
        let line: Vec<TaskId> = self.lineage(id).iter().map(|task| task.id).collect();
        for id in line {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.last_call = now;
            }
        }
    }
}

/// So many audiences of a task are told apart.
const MAX_AUDIENCES: usize = 64;

fn may_be_among(audiences: &BTreeSet<String>, is_one: impl Fn(&str) -> bool) -> bool {
    audiences.len() >= MAX_AUDIENCES || audiences.iter().any(|audience| is_one(audience))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_asked_for_more_than_is_remembered_may_have_asked_for_anything() {
        let mut audiences = BTreeSet::new();
        let frozen = |audience: &str| audience == "urn:frozen";
        for n in 0..MAX_AUDIENCES {
            assert!(!may_be_among(&audiences, frozen), "after {n}");
            audiences.insert(format!("urn:{n}"));
        }
        assert!(may_be_among(&audiences, frozen));
        assert!(may_be_among(&BTreeSet::from(["urn:frozen".to_owned()]), frozen));
    }
}
