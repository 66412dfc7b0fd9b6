//! After a restart: each task whose holder is found again goes on as it was; every other one ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mayfly_attestors::ProcessKey;

use super::MINUTE;
use super::keeper::Keeper;
use crate::clock::unix_seconds;
use crate::id::{EntryId, LeaseId, TaskId};
use crate::lease::WorkloadId;
use crate::ledger::{Note, Reason, Row, State as RowState};
use crate::task::journal::{self, KeptBy};
use crate::task::{Cascade, Past, Scope, Seat, Task};
use crate::workload::guard::form_of;
use crate::workload::issue::remaining;
use crate::workload::revoker::Initiator;
use crate::workload::scopes::Found;
use crate::workload::standstill::Place;
use crate::workload::{Shared, State};

/// The tasks of the run before, until it is known who of their holders is still there.
#[derive(Debug, Default)]
pub(in crate::workload) struct PastTasks {
    past: Past,
    keepers: Vec<KeptBy>,
    known: BTreeSet<TaskId>,
    /// Those that cgroups hold.
    shared: BTreeSet<TaskId>,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::workload) struct TasksRestored {
    /// They go on.
    pub(in crate::workload) live: usize,
    /// They have ended.
    pub(in crate::workload) ended: usize,
    /// Credentials of those, of processes that live.
    pub(in crate::workload) lost: usize,
}

/// An identity that a task of the run before rests on.
pub(in crate::workload) type Claim = (EntryId, String);

impl PastTasks {
    /// Whether a task was going on.
    pub(in crate::workload) fn knows(&self, task: TaskId) -> bool {
        self.known.contains(&task)
    }

    /// Whether a cgroup held it: what was given for it does not end with the process that asked.
    pub(in crate::workload) fn is_shared(&self, task: TaskId) -> bool {
        self.shared.contains(&task)
    }

    /// The cgroups that have to be found again.
    pub(in crate::workload) fn scopes(&self) -> BTreeSet<Place> {
        let place = |task: &Task| match &task.seat.scope {
            Scope::Process => None,
            Scope::Cgroup { id, path } => Some((*id, path.clone())),
        };
        self.past.tasks.iter().filter_map(place).collect()
    }

    /// Those that have to be found again, for tasks of a cgroup whoever founded them, each with the identities that its tasks rest on.
    pub(in crate::workload) fn holders(&self) -> BTreeMap<ProcessKey, Vec<Claim>> {
        let mut holders: BTreeMap<ProcessKey, Vec<Claim>> = BTreeMap::new();
        for task in &self.past.tasks {
            let claim = (task.charter.entry.clone(), task.charter.spiffe_id.to_string());
            holders.entry(task.seat.process).or_default().push(claim);
        }
        holders
    }
}

impl Shared {
    /// What was noted; notes that say nothing are taken back.
    pub(in crate::workload) fn past_tasks(&self, rows: &[Row]) -> PastTasks {
        let kept = journal::read(self.parts.ledger.found_notes(), &self.epoch);
        self.parts.ledger.note_soon(kept.stray.into_iter().map(|key| Note { key, value: None }).collect());
        let known: BTreeSet<TaskId> = kept.tasks.iter().map(|task| task.id).collect();
        let now = unix_seconds(self.parts.clock.wall());
        let live = rows.iter().filter(|row| row.state == RowState::Live && row.not_after > now);
        let leases: Vec<(LeaseId, TaskId)> = live
            .filter_map(|row| Some((row.id, row.task?)))
            .filter(|(_, task)| known.contains(task))
            .collect();
        let shared = kept.tasks.iter().filter(|task| task.seat.scope != Scope::Process);
        let shared = shared.map(|task| task.id).collect();
        PastTasks {
            past: Past { tasks: kept.tasks, offers: kept.offers, leases },
            keepers: kept.keepers,
            known,
            shared,
        }
    }

    /// The tasks go on, or end, now that it is known who lives: each of `held` was held until this is done. `shared` was
    /// given for tasks that cgroups hold, and is theirs again, or is refused.
    pub(in crate::workload) fn restore_tasks(
        self: &Arc<Self>,
        tasks: PastTasks,
        shared: Vec<Row>,
        scopes: &Found,
        held: &BTreeSet<ProcessKey>,
    ) -> TasksRestored {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let PastTasks { mut past, keepers, known, .. } = tasks;
        let mut state = self.lock();
        let found: BTreeMap<TaskId, WorkloadId> = past
            .tasks
            .iter()
            .filter_map(|task| Some((task.id, self.holder_again(&mut state, task, scopes)?)))
            .collect();
        let orphans = state.take_over_shared(shared, &past.tasks, &found, now, wall);
        // What was refused meanwhile, because its process is gone or has not earned it any more, holds nothing up.
        past.leases.retain(|(lease, _)| state.rows.contains_key(lease));
        let cascades = state.tasks.tree.restore(past, |task| found.get(&task.id).copied(), now, wall);
        self.note_neighbours(&mut state, &found);
        // Each task holds its holder until it ends.
        found.values().for_each(|holder| state.core.hold(*holder));
        state.tasks.keepers.extend(keepers.into_iter().map(Keeper::of));
        state.restore_rates(&known, now, unix_seconds(wall));
        let lost = cascades.iter().flat_map(Cascade::leases).filter(|lease| state.rows.contains_key(lease));
        let (lost, ended) = (lost.count(), cascades.iter().map(|cascade| cascade.ended.len()).sum());
        let live = state.tasks.tree.live();
        for cascade in cascades {
            self.carry_out(&mut state, &cascade, Initiator::Agent, now, None);
        }
        // What its task's end has not taken already.
        let orphans: Vec<Row> = orphans.into_iter().filter_map(|lease| state.take_row(lease)).collect();
        let lost = lost + orphans.len();
        self.refuse(orphans, Reason::Restart, Initiator::Agent, now, None);
        for key in held {
            if let Some(id) = state.by_key.get(key).copied() {
                state.core.unhold(id);
                self.forget_idle(&mut state, id);
            }
        }
        self.take_as_told(&mut state);
        self.timer.notify_one();
        TasksRestored { live, ended, lost }
    }

    /// In which cgroups those sit who hold a task alone: a task that such a cgroup holds is not isolated.
    fn note_neighbours(&self, state: &mut State, found: &BTreeMap<TaskId, WorkloadId>) {
        let scopes = self.parts.attestors.scopes();
        for (task, holder) in found {
            let is_alone = state.tasks.tree.get(*task).is_some_and(|task| task.seat.scope == Scope::Process);
            let member = state.members.get(holder).filter(|_| is_alone);
            match member.map(|member| scopes.id_of(&member.process)) {
                Some(Ok(Some(cgroup))) => state.tasks.tree.note_beside(*task, Some(cgroup)),
                Some(Err(_)) => state.tasks.tree.note_beside(*task, None),
                Some(Ok(None)) | None => {}
            }
        }
    }

    /// Who holds a task of the run before, if whoever began it was found and has still what it rests on: a cgroup is
    /// taken for what its founder is, so that one whose founder has left is not known again.
    fn holder_again(&self, state: &mut State, task: &Task, scopes: &Found) -> Option<WorkloadId> {
        let founder = state.by_key.get(&task.seat.process).copied()?;
        let same_user = state.members.get(&founder)?.process.uid() == task.seat.uid;
        let alone = Seat { holder: founder, scope: Scope::Process, ..task.seat.clone() };
        if !same_user || !state.has_identity(&task.charter, &alone) {
            return None;
        }
        match &task.seat.scope {
            Scope::Process => Some(founder),
            Scope::Cgroup { .. } => self.adopt_scope(state, task, founder, scopes),
        }
    }
}

impl State {
    /// Gives leases back to the cgroups that hold their tasks. Those of nobody are only written down, to be refused.
    fn take_over_shared(
        &mut self,
        rows: Vec<Row>,
        tasks: &[Task],
        found: &BTreeMap<TaskId, WorkloadId>,
        now: Instant,
        wall: SystemTime,
    ) -> Vec<LeaseId> {
        let entries: BTreeMap<TaskId, &EntryId> =
            tasks.iter().map(|task| (task.id, &task.charter.entry)).collect();
        let mut orphans = Vec::new();
        for row in rows {
            let rests = |task: &TaskId| entries.get(task).is_some_and(|entry| **entry == row.entry);
            match row.task.filter(rests).and_then(|task| found.get(&task)) {
                Some(holder) => {
                    let ends = now + remaining(&row, wall);
                    self.core.adopt(*holder, row.entry.clone(), form_of(&row), row.id, ends);
                }
                None => orphans.push(row.id),
            }
            self.add_row(row);
        }
        orphans
    }

    /// What was given in the last minute counts.
    fn restore_rates(&mut self, known: &BTreeSet<TaskId>, now: Instant, wall: u64) {
        let mut lately: BTreeMap<TaskId, u32> = BTreeMap::new();
        let fresh = |row: &&Row| wall.saturating_sub(row.issued_at) < MINUTE.as_secs();
        for task in self.rows.values().filter(fresh).filter_map(|row| row.task) {
            if known.contains(&task) {
                *lately.entry(task).or_default() += 1;
            }
        }
        let most = self.tasks.tree.bounds().issues;
        let rates = lately.into_iter().map(|(task, used)| (task, (now, used.min(most))));
        self.tasks.rates.extend(rates);
    }
}
