//! Tasks that are held by a cgroup (decision 0078). In the lease core a *stand-in* is their holder: no process, and watched
//! until the cgroup is empty, so that what one process of it has asked for stays good when that process exits.
//!
//! A stand-in has no attestation. What its tasks rest on is that of their *founder*, the process that began: while it lives
//! it is watched and looked at like every workload, and what it loses its tasks lose; when it has exited, what was last
//! attested of it is matched again whenever the entries change. Whoever acts is attested for himself besides.

mod again;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use mayfly_attestors::{Attestation, CgroupEvents, CgroupScope, Process, ProcessKey, Reaper, ScopeError};

pub(super) use self::again::Found;
use super::issue::Subject;
use super::operator::Target;
use super::revoker::Initiator;
use super::state::{Member, State};
use super::{Refusal, Shared};
use crate::id::{EntryId, LeaseId, TaskId};
use crate::lease::{Cause, Wanted, WorkloadId};
use crate::ledger::Reason;
use crate::policy::WorkloadFacts;
use crate::registration::Identity;
use crate::task::{Charter, Ending, Scope, Seat, Task};

/// A cgroup, and what it is watched by: opened before anything is locked.
pub(super) type Watchable = (CgroupScope, CgroupEvents);

/// The cgroups that hold tasks.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    /// There was one in this run: who calls late learns that its task has ended.
    were_any: bool,
    by_cgroup: HashMap<u64, WorkloadId>,
    stand_ins: HashMap<WorkloadId, StandIn>,
    /// Where each live founder has founded.
    founded: HashMap<WorkloadId, BTreeSet<WorkloadId>>,
}

#[derive(Debug)]
struct StandIn {
    cgroup: u64,
    /// Of all tasks that it ever held.
    entries: BTreeSet<EntryId>,
    founders: HashMap<ProcessKey, Founder>,
}

#[derive(Debug)]
struct Founder {
    member: WorkloadId,
    tasks: BTreeSet<TaskId>,
    left: Option<Left>,
}

/// What is known of a founder that has exited.
#[derive(Debug)]
struct Left {
    uid: u32,
    attestation: Arc<Attestation>,
    attested_at: Instant,
    identities: Vec<Identity>,
}

impl Left {
    fn of(member: &Member) -> Self {
        Self {
            uid: member.process.uid(),
            attestation: Arc::clone(&member.attestation),
            attested_at: member.attested_at,
            identities: member.identities.clone(),
        }
    }

    fn identity(&self, entry: &EntryId) -> Option<&Identity> {
        self.identities.iter().find(|identity| identity.entry.id == *entry)
    }
}

impl Scopes {
    pub(super) fn is_empty(&self) -> bool {
        self.stand_ins.is_empty()
    }

    /// Whether tasks rest on this workload.
    pub(super) fn has_founded(&self, member: WorkloadId) -> bool {
        self.founded.contains_key(&member)
    }

    fn founder(&self, seat: &Seat) -> Option<&Founder> {
        self.stand_ins.get(&seat.holder)?.founders.get(&seat.process)
    }

    /// The stand-in is over.
    pub(super) fn remove(&mut self, id: WorkloadId) {
        if let Some(stand_in) = self.stand_ins.remove(&id) {
            self.by_cgroup.remove(&stand_in.cgroup);
        }
    }

    /// Live or not, the tasks that rest on this founder.
    pub(super) fn founded_by(&self, member: WorkloadId) -> Vec<TaskId> {
        let there = self.founded.get(&member).into_iter().flatten();
        let founders = there.filter_map(|id| self.stand_ins.get(id)).flat_map(|one| one.founders.values());
        founders
            .filter(|founder| founder.member == member)
            .flat_map(|founder| founder.tasks.clone())
            .collect()
    }
}

impl State {
    /// The stand-in for a cgroup, ready to hold a task of that entry. It is watched before anything hangs on it.
    pub(super) fn stand_in(
        &mut self,
        reaper: &Reaper,
        (scope, events): &Watchable,
        entry: &EntryId,
        now: Instant,
    ) -> Result<WorkloadId, Refusal> {
        let id = match self.scopes.by_cgroup.get(&scope.id()) {
            Some(id) => *id,
            None => {
                let id = self.new_workload();
                self.core.admit(id);
                if let Err(error) = reaper.watch_cgroup(events, id.0) {
                    tracing::error!(%error, path = scope.path(), "a cgroup cannot be watched: it holds no task");
                    drop(self.core.end(id, Cause::WatchLost));
                    return Err(Refusal::WatchLost);
                }
                self.scopes.were_any = true;
                self.scopes.by_cgroup.insert(scope.id(), id);
                let (entries, founders) = (BTreeSet::new(), HashMap::new());
                self.scopes.stand_ins.insert(id, StandIn { cgroup: scope.id(), entries, founders });
                id
            }
        };
        if let Some(stand_in) = self.scopes.stand_ins.get_mut(&id)
            && stand_in.entries.insert(entry.clone())
        {
            let wanted = |entry: &EntryId| Wanted { entry: entry.clone(), subject: 0, revision: 0 };
            let wanted: Vec<Wanted> = stand_in.entries.iter().map(wanted).collect();
            // It only ever gets more, and nobody listens: there is nothing to carry out.
            drop(self.core.set_entries(id, &wanted, Cause::EntryWithdrawn, now));
        }
        Ok(id)
    }

    /// Notes who has begun the task, and keeps its word as long as it lives.
    pub(super) fn found(&mut self, task: TaskId, seat: &Seat, member: WorkloadId) {
        let Some(stand_in) = self.scopes.stand_ins.get_mut(&seat.holder) else { return };
        let new = || Founder { member, tasks: BTreeSet::new(), left: None };
        stand_in.founders.entry(seat.process).or_insert_with(new).tasks.insert(task);
        self.scopes.founded.entry(member).or_default().insert(seat.holder);
        self.core.hold(member);
    }

    /// The task rests on its founder no more: the founder, if it was in a cgroup.
    pub(super) fn unfound(&mut self, task: &Task) -> Option<WorkloadId> {
        let stand_in = self.scopes.stand_ins.get_mut(&task.seat.holder)?;
        let founder = stand_in.founders.get_mut(&task.seat.process)?;
        founder.tasks.remove(&task.id);
        let member = founder.member;
        if founder.tasks.is_empty() {
            stand_in.founders.remove(&task.seat.process);
            if let Some(there) = self.scopes.founded.get_mut(&member) {
                there.remove(&task.seat.holder);
                if there.is_empty() {
                    self.scopes.founded.remove(&member);
                }
            }
        }
        Some(member)
    }

    /// A workload has exited. What it has founded goes on without it, by what was last known of it; unless it may have
    /// been something else by then, which nobody can look at any more.
    pub(super) fn founder_left(&mut self, id: WorkloadId) {
        let Some(member) = self.members.get(&id).filter(|member| member.is_as_attested()) else { return };
        let Some(there) = self.scopes.founded.remove(&id) else { return };
        let key = member.process.key();
        for stand_in in there {
            let stand_in = self.scopes.stand_ins.get_mut(&stand_in);
            if let Some(founder) = stand_in.and_then(|stand_in| stand_in.founders.get_mut(&key)) {
                founder.left = Some(Left::of(member));
            }
        }
    }

    /// The tasks that this workload holds, or has founded while it lives.
    pub(super) fn tasks_resting_on(&self, id: WorkloadId) -> Vec<TaskId> {
        let mut all: Vec<TaskId> = self.tasks.tree.of_holder(id).into_iter().collect();
        all.extend(self.scopes.founded_by(id));
        all
    }

    /// Whether what holds the seat has the identity that the charter rests on.
    pub(super) fn has_identity(&self, charter: &Charter, seat: &Seat) -> bool {
        let holds = |id: WorkloadId| self.held(id).contains(&charter.entry);
        let lives = |id: WorkloadId| {
            let identity = self.members.get(&id).and_then(|member| member.identity(&charter.entry));
            identity.is_some_and(|identity| identity.spiffe_id == charter.spiffe_id) && holds(id)
        };
        if seat.scope == Scope::Process {
            return lives(seat.holder);
        }
        let rests = self.scopes.founder(seat).is_some_and(|founder| match &founder.left {
            None => lives(founder.member),
            Some(left) => {
                left.identity(&charter.entry).is_some_and(|identity| identity.spiffe_id == charter.spiffe_id)
            }
        });
        rests && holds(seat.holder)
    }

    /// What was last attested of whoever the seat rests on.
    pub(super) fn attestation_of(&self, seat: &Seat) -> Option<&Attestation> {
        let id = match (&seat.scope, self.scopes.founder(seat)) {
            (Scope::Process, _) => seat.holder,
            (_, Some(Founder { left: Some(left), .. })) => return Some(&left.attestation),
            (_, founder) => founder?.member,
        };
        self.members.get(&id).map(|member| &*member.attestation)
    }

    /// The process that began, if it lives.
    pub(super) fn process_of(&self, seat: &Seat) -> Option<Arc<Process>> {
        let id = match seat.scope {
            Scope::Process => seat.holder,
            Scope::Cgroup { .. } => self.scopes.founder(seat)?.member,
        };
        self.members.get(&id).map(|member| Arc::clone(&member.process))
    }
}

impl Shared {
    /// What policy may know of whoever holds a task: its process, or the one that began it.
    pub(super) fn facts_of_seat(&self, seat: &Seat, entry: &EntryId) -> Option<WorkloadFacts> {
        let founder = {
            let state = self.lock();
            match (&seat.scope, state.scopes.founder(seat)) {
                (Scope::Process, _) => seat.holder,
                (_, Some(Founder { left: Some(left), .. })) => {
                    let identity = left.identity(entry)?;
                    return Some(self.facts_of(left.uid, &left.attestation, left.attested_at, identity));
                }
                (_, Some(founder)) => founder.member,
                (_, None) => return None,
            }
        };
        let Subject { process, attestation, attested_at, identity } = self.subject(founder, entry)?;
        Some(self.facts(&process, &attestation, attested_at, &identity))
    }

    /// Whoever has just founded may have begun a program since it was admitted, and a look that knew of no tasks may be
    /// under way.
    pub(super) fn look_if_unseen(self: &Arc<Self>, member: WorkloadId) {
        let is_unseen = {
            let state = self.lock();
            let is_as_attested = state.members.get(&member).is_none_or(Member::is_as_attested);
            state.scopes.has_founded(member) && !is_as_attested
        };
        if is_unseen {
            self.suspect(member);
        }
    }

    /// The cgroup that a caller is in, if it matters to anybody. One of which that cannot be told acts in none.
    pub(super) fn cgroup_of_caller(&self, process: &Process) -> Option<u64> {
        self.cgroup_of(process).ok().flatten()
    }

    /// The same, for who must not be taken to be in none because it cannot be told.
    pub(super) fn cgroup_of(&self, process: &Process) -> Result<Option<u64>, ScopeError> {
        if !self.lock().scopes.were_any {
            return Ok(None);
        }
        self.parts.attestors.scopes().id_of(process)
    }

    /// Entries have changed: what rests on founders that have exited is matched again.
    pub(super) fn match_left_again(self: &Arc<Self>) {
        let mut state = self.lock();
        let seen = self.parts.clock.monotonic();
        let mut resting = Vec::new();
        for stand_in in state.scopes.stand_ins.values_mut() {
            for founder in stand_in.founders.values_mut() {
                let Some(left) = &mut founder.left else { continue };
                left.identities = self.match_held(&left.attestation, &left.identities);
                resting.extend(founder.tasks.iter().copied());
            }
        }
        for task in resting {
            self.end_if_without_identity(&mut state, task, Initiator::Entries, seen, None);
        }
    }

    /// What an operator takes from somebody who holds tasks with others: the task of that credential; the tasks that
    /// the process began, and what else it was given there; the tasks of the identity.
    pub(super) fn revoke_in_cgroups(
        self: &Arc<Self>,
        state: &mut State,
        target: &Target,
        seen: Instant,
    ) -> Vec<LeaseId> {
        if state.scopes.is_empty() {
            return Vec::new();
        }
        let (wall, mut leases) = (self.parts.clock.wall(), Vec::new());
        let in_cgroup = |task: &&Task| task.ended_at.is_none() && task.seat.scope != Scope::Process;
        let all = state.tasks.tree.all().into_iter().filter(in_cgroup);
        let named = |task: &&Task| match target {
            Target::Lease(lease) => task.leases.contains(lease),
            // One that has exited has given its number back.
            Target::Pid(pid) => task.seat.process.pid == *pid && state.process_of(&task.seat).is_some(),
            Target::SpiffeId(id) => task.charter.spiffe_id.as_str() == id,
        };
        for id in all.filter(named).map(|task| task.id).collect::<Vec<_>>() {
            let cascade = state.tasks.tree.end(id, Ending::Policy, seen, wall);
            leases.extend(cascade.leases());
            self.carry_out(state, &cascade, Initiator::Operator, seen, None);
        }
        if let Target::Pid(pid) = target {
            let shared =
                |task| state.tasks.tree.get(task).is_some_and(|task| task.seat.scope != Scope::Process);
            let given =
                state.rows.values().filter(|row| row.process.pid == *pid && row.task.is_some_and(shared));
            let given: Vec<LeaseId> = given.map(|row| row.id).collect();
            let mut rows = Vec::with_capacity(given.len());
            for lease in &given {
                drop(state.core.withdraw(*lease));
                rows.extend(state.take_row(*lease));
            }
            self.refuse(rows, Reason::Operator, Initiator::Operator, seen, None);
            leases.extend(given);
        }
        leases
    }

    /// Who holds a task from here on that an earlier run held by a cgroup, watched. `founder` is the process of the seat,
    /// found again and taken in. `None`: the cgroup is not among those that were found again, or cannot be watched; the
    /// task ends.
    pub(super) fn adopt_scope(
        &self,
        state: &mut State,
        task: &Task,
        founder: WorkloadId,
        scopes: &Found,
    ) -> Option<WorkloadId> {
        let Scope::Cgroup { id, path } = &task.seat.scope else { return None };
        let scope = scopes.get(&(*id, path.clone()))?;
        let now = self.parts.clock.monotonic();
        let holder = state.stand_in(&self.reaper, scope, &task.charter.entry, now).ok()?;
        state.found(task.id, &Seat { holder, ..task.seat.clone() }, founder);
        Some(holder)
    }
}
