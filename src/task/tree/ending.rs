//! Ends, and what comes before: suspension. An end takes everything below with it, in one step.

use std::collections::{BTreeSet, HashMap};
use std::time::{Instant, SystemTime};

use super::{Repeat, Timer, Tree};
use crate::id::{DelegationId, LeaseId, TaskId};
use crate::lease::WorkloadId;
use crate::task::{Ending, Scope, Standing, Task};

/// What an end has done to the tree, and what the shell has to do about it, in this order: refuse every lease, top
/// down; write down that tasks and offers are gone; tell whoever watches; record.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct Cascade {
    /// Tasks that ended, each after the one above it.
    pub ended: Vec<Ended>,
    /// Offers that are void.
    pub void: Vec<DelegationId>,
}

/// One task that ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// Which.
    pub task: TaskId,
    /// Why.
    pub ending: Ending,
    /// What it held.
    pub leases: Vec<LeaseId>,
}

/// What the end of one task has taken along.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Toll {
    /// Tasks below it.
    pub descendants: usize,
    /// Credentials, its own and theirs.
    pub credentials: usize,
}

impl Cascade {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.ended.is_empty() && self.void.is_empty()
    }

    /// Every lease, top down.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.ended.iter().flat_map(|ended| ended.leases.iter().copied())
    }

    /// For each that ended: how many of those below it did, and how many credentials they and it held.
    pub fn tolls(&self, parent: impl Fn(TaskId) -> Option<TaskId>) -> Vec<Toll> {
        let place: HashMap<TaskId, usize> =
            self.ended.iter().enumerate().map(|(at, ended)| (ended.task, at)).collect();
        let mut tolls: Vec<Toll> =
            self.ended.iter().map(|ended| Toll { descendants: 0, credentials: ended.leases.len() }).collect();
        // From the bottom up: each comes after the one above it.
        for (at, ended) in self.ended.iter().enumerate().rev() {
            let Some(own) = tolls.get(at).copied() else { continue };
            let above = parent(ended.task).and_then(|parent| place.get(&parent)).filter(|above| **above < at);
            if let Some(above) = above.and_then(|above| tolls.get_mut(*above)) {
                above.descendants += own.descendants + 1;
                above.credentials += own.credentials;
            }
        }
        tolls
    }

    /// One after the other.
    pub fn extend(&mut self, other: Self) {
        self.ended.extend(other.ended);
        self.void.extend(other.void);
    }
}

impl Tree {
    /// Ends the task, and everything below it because of that. Nothing, if it has ended.
    pub fn end(&mut self, top: TaskId, ending: Ending, now: Instant, wall: SystemTime) -> Cascade {
        let mut cascade = Cascade::default();
        let parent = match self.tasks.get(&top) {
            Some(task) if !matches!(task.standing, Standing::Ended(_)) => task.parent,
            _ => return cascade,
        };
        if let Some(parent) = parent.and_then(|id| self.tasks.get_mut(&id)) {
            parent.children.remove(&top);
            let above = parent.id;
            self.note_change(above);
        }
        for id in self.subtree(top) {
            let ending = if id == top { ending } else { Ending::ParentEnded };
            self.end_one(id, ending, now, wall, &mut cascade);
        }
        cascade.void = cascade.ended.iter().flat_map(|ended| self.offers.of(ended.task)).collect();
        for id in &cascade.void {
            self.forget_offer(*id);
        }
        self.forget_old(now);
        cascade
    }

    /// Ends every task of a holder that is gone.
    pub fn end_holder(
        &mut self,
        holder: WorkloadId,
        ending: Ending,
        now: Instant,
        wall: SystemTime,
    ) -> Cascade {
        let mut cascade = Cascade::default();
        for id in self.of_holder(holder) {
            cascade.extend(self.end(id, ending, now, wall));
        }
        cascade
    }

    /// The live tasks of a holder, parents first.
    pub fn of_holder(&self, holder: WorkloadId) -> Vec<TaskId> {
        let mut held: Vec<_> = self.by_holder.get(&holder).into_iter().flatten().copied().collect();
        held.sort_by_key(|id| self.tasks.get(id).map(|task| task.depth));
        held
    }

    /// Everything that is due: ends what is over time or idle, forgets offers that nobody took up.
    pub fn on_timeout(&mut self, now: Instant, wall: SystemTime) -> Vec<Cascade> {
        let mut cascades = Vec::new();
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Offer(id) => {
                    self.forget_offer(id);
                    cascades.push(Cascade { void: vec![id], ..Cascade::default() });
                }
                Timer::Task(id) => {
                    let Some(task) = self.tasks.get(&id) else { continue };
                    let at = wakes_at(task);
                    if at > now {
                        // Somebody called since the timer was set.
                        self.timers.set(timer, at);
                        continue;
                    }
                    let ending = if task.deadline <= now { Ending::Deadline } else { Ending::Idle };
                    cascades.push(self.end(id, ending, now, wall));
                }
            }
        }
        cascades
    }

    /// People have allowed a task that waited for them; whether it did.
    pub fn activate(&mut self, id: TaskId, now: Instant) -> bool {
        let Some(task) = self.tasks.get_mut(&id).filter(|task| task.standing == Standing::Pending) else {
            return false;
        };
        (task.standing, task.last_call) = (Standing::Active, now);
        let at = wakes_at(task);
        self.timers.set(Timer::Task(id), at);
        self.note_change(id);
        true
    }

    fn end_one(&mut self, id: TaskId, ending: Ending, now: Instant, wall: SystemTime, cascade: &mut Cascade) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.standing = Standing::Ended(ending);
        task.ended_at = Some(wall);
        task.children.clear();
        let leases: Vec<LeaseId> = std::mem::take(&mut task.leases).into_iter().collect();
        let (seat, agent) = (task.seat.clone(), task.charter.spiffe_id.clone());
        let weight = task.charter.weight();
        for lease in &leases {
            self.leases.remove(lease);
        }
        self.timers.cancel(&Timer::Task(id));
        self.unwatch(id);
        self.note_change(id);
        self.beside.remove(id);
        self.live -= 1;
        if let Some(live) = self.by_agent.get_mut(&agent) {
            *live -= 1;
            if *live == 0 {
                self.by_agent.remove(&agent);
            }
        }
        take(&mut self.by_holder, &seat.holder, id);
        if let Scope::Cgroup { id: cgroup, .. } = seat.scope {
            take(&mut self.by_cgroup, &cgroup, id);
        }
        self.remembered.push(id, agent, weight, now);
        cascade.ended.push(Ended { task: id, ending, leases });
    }

    /// Ended tasks are remembered for a while, so that a late call learns why.
    fn forget_old(&mut self, now: Instant) {
        for id in self.remembered.too_old(now) {
            self.forget_key(id);
            self.tasks.remove(&id);
        }
    }

    /// The request that made the task is answered as if it had never come: it made none after all.
    pub fn forget_key(&mut self, id: TaskId) {
        let Some(key) = self.tasks.get_mut(&id).and_then(|task| task.key.take()) else { return };
        let name = (key.process, key.text);
        if self.keys.get(&name).is_some_and(|(_, what)| *what == Repeat::Task(id)) {
            self.keys.remove(&name);
        }
    }
}

/// When to look at the task again.
pub(super) fn wakes_at(task: &Task) -> Instant {
    // Whoever waits for people is not idle.
    let idle = task.charter.limits.idle.filter(|_| task.standing != Standing::Pending);
    // A length that no clock can add is never over.
    let idle = idle.and_then(|idle| task.last_call.checked_add(idle));
    idle.map_or(task.deadline, |idle| idle.min(task.deadline))
}

/// Takes one name out of an index.
fn take<K: Eq + std::hash::Hash>(index: &mut HashMap<K, BTreeSet<TaskId>>, key: &K, id: TaskId) {
    let Some(all) = index.get_mut(key) else { return };
    all.remove(&id);
    if all.is_empty() {
        index.remove(key);
    }
}
