//! What goes beyond a freeze: what was given for tasks is taken back, or the tasks end and their processes are killed.
//! In this order: nothing new is decided, what is out is refused, then the processes go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_attestors::{Process, ProcessKey};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::revoker::Initiator;
use super::standstill::Place;
use super::state::State;
use super::{Shared, Workloads};
use crate::audit::{self, Event};
use crate::id::{LeaseId, SpiffeId, TaskId};
use crate::ledger::{Reason, Row};
use crate::policy::{Freeze, Frozen};
use crate::task::{Ending, Scope, Standing, Task};

/// What a kill did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Killed {
    /// Nothing that is known bears the name: what is known instead, for people.
    pub unknown: Option<String>,
    /// Tasks that ended.
    pub tasks: usize,
    /// Credentials that are refused from now on; those of the Workload API follow in a moment.
    pub credentials: usize,
    /// Processes that were killed, or whole cgroups.
    pub scopes: usize,
    /// Those that the kernel would not let us kill.
    pub not_killed: usize,
    /// From the order to the ledger.
    pub took: Duration,
}

impl Workloads {
    /// Freezes, ends every task that the freeze names, takes back what is for it, kills the tasks' processes, and writes
    /// the freeze down.
    ///
    /// # Errors
    /// All is done, but it could not be written down: a restart would not know of it.
    pub async fn kill(&self, what: &Frozen, freeze: Freeze, by: audit::Agent) -> std::io::Result<Killed> {
        let now = self.0.parts.clock.monotonic();
        let initiator = Initiator::OperatorUid(by.uid);
        let by_pid = by.process.pid;
        let unknown = self.freeze_in_memory(what.clone(), Freeze { revoke: true, ..freeze }, by);
        let concerned = self.concerned(what, None);
        let mut killed = Killed { unknown, credentials: concerned.credentials, ..Killed::default() };
        let mut seats = Seats::default();
        {
            let mut state = self.0.lock();
            for top in state.tasks.named(what) {
                killed.tasks += self.0.end_killed(&mut state, top, initiator, now, &mut seats);
            }
            self.0.take_back_frozen(&mut state, what, initiator);
        }
        // Before anything is waited for: a disk that hangs saves nobody.
        self.0.parts.audit.note(seats.kill(&self.0, by_pid, &mut killed, &initiator.named()));
        self.at_disk(Self::write_freezes).await??;
        self.settle().await.map_err(std::io::Error::other)?;
        killed.took = self.0.parts.clock.monotonic().saturating_duration_since(now);
        Ok(killed)
    }
}

/// Who held the tasks that ended together.
#[derive(Default)]
struct Seats {
    processes: Processes,
    /// With who began there, as far as it lives: where the cgroup cannot be killed, at least those are.
    cgroups: BTreeMap<Place, Processes>,
}

type Processes = BTreeMap<ProcessKey, Arc<Process>>;

impl Seats {
    /// For the record: each that was killed, or could not be. `by` is the process of whoever gave the order.
    fn kill(&self, shared: &Shared, by: u32, killed: &mut Killed, named: &str) -> Vec<Event> {
        let mut events = Vec::new();
        let mut note = |agent, cgroup, failed: Option<&dyn std::fmt::Display>| {
            let failed = failed.map(ToString::to_string);
            events.push(Event::Killed { agent, cgroup, initiator: named.to_owned(), failed });
        };
        let mut alone = self.processes.clone();
        for (place, founders) in &self.cgroups {
            let cgroup = || Some(place.1.clone());
            match shared.scope_apart_from(place, by).and_then(|scope| scope.kill()) {
                Ok(()) => {
                    note(None, cgroup(), None);
                    killed.scopes += 1;
                    continue;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    note(None, cgroup(), Some(&error));
                    tracing::error!(%error, path = place.1, "the cgroup of a killed task lives on");
                    killed.not_killed += 1;
                }
            }
            let others = founders.iter().filter(|(key, _)| ![std::process::id(), by].contains(&key.pid));
            alone.extend(others.map(|(key, process)| (*key, Arc::clone(process))));
        }
        for process in alone.values() {
            let agent = || Some(audit::Agent::new(process.key(), process.uid()));
            // The pidfd was pinned when the task began: whoever has the number now is not hit.
            match pidfd_send_signal(process.pidfd(), Signal::KILL) {
                Ok(()) => {
                    note(agent(), None, None);
                    killed.scopes += 1;
                }
                Err(Errno::SRCH) => {}
                Err(error) => {
                    note(agent(), None, Some(&error));
                    tracing::error!(%error, pid = process.pid(), "a process of a killed task lives on");
                    killed.not_killed += 1;
                }
            }
        }
        events
    }
}

impl Shared {
    /// Ends a task and all below it; how many that were.
    fn end_killed(
        self: &Arc<Self>,
        state: &mut State,
        top: TaskId,
        initiator: Initiator,
        now: Instant,
        seats: &mut Seats,
    ) -> usize {
        let cascade = state.tasks.tree.end(top, Ending::KillSwitch, now, self.parts.clock.wall());
        // Now, because who holds nothing any more is forgotten.
        for task in cascade.ended.iter().filter_map(|ended| state.tasks.tree.get(ended.task)) {
            match &task.seat.scope {
                Scope::Cgroup { id, path } => {
                    let founder = state.process_of(&task.seat).map(|process| (task.seat.process, process));
                    seats.cgroups.entry((*id, path.clone())).or_default().extend(founder);
                }
                Scope::Process => {
                    let member = state.members.get(&task.seat.holder);
                    let process = member.map(|member| (task.seat.process, Arc::clone(&member.process)));
                    seats.processes.extend(process);
                }
            }
        }
        self.carry_out(state, &cascade, initiator, now, None);
        cascade.ended.len()
    }

    /// Takes back what was given for tasks, of all that the freeze is about. The tasks go on.
    pub(super) fn take_back_frozen(
        self: &Arc<Self>,
        state: &mut State,
        what: &Frozen,
        initiator: Initiator,
    ) -> usize {
        let now = self.parts.clock.monotonic();
        let leases = self.frozen_leases(state, what);
        let mut rows: Vec<Row> = Vec::with_capacity(leases.len());
        for lease in leases {
            // The core only forgets it here: the reason is ours to name.
            drop(state.core.withdraw(lease));
            rows.extend(state.take_row(lease));
        }
        let count = rows.len();
        self.refuse(rows, Reason::Operator, initiator, now, None);
        count
    }

    /// Live credentials of tasks that a freeze is about; of a target, every token for it, whoever asked, and what its
    /// tasks have that says no audience. What else the Workload API gave is judged again by itself.
    pub(super) fn frozen_leases(&self, state: &State, what: &Frozen) -> Vec<LeaseId> {
        if let Frozen::Target(_) = what {
            let audiences = self.parts.policy.in_force().freezes().audiences(what);
            let is_for = |row: &&Row| {
                row.audience.iter().any(|one| audiences.contains(one))
                    || row.audience.is_empty() && state.tasks.has_to_do_with(row.task, &audiences)
            };
            return state.rows.values().filter(is_for).map(|row| row.id).collect();
        }
        let tops: BTreeSet<TaskId> = state.tasks.named(what).into_iter().collect();
        let named = |row: &&Row| row.task.is_some_and(|task| state.tasks.is_below(task, &tops));
        state.rows.values().filter(named).map(|row| row.id).collect()
    }
}

impl super::tasks::Tasks {
    /// The topmost live tasks that a freeze names: none of them is below another.
    pub(super) fn named(&self, what: &Frozen) -> Vec<TaskId> {
        let named = |task: &Task| match what {
            Frozen::All => true,
            Frozen::Agent(id) => is(id, &task.charter.spiffe_id),
            Frozen::Task(id) => task.id.to_string() == *id,
            Frozen::Target(_) => false,
        };
        let live = |task: &&Task| !matches!(task.standing, Standing::Ended(_));
        let mut tops = BTreeSet::new();
        for task in self.tree.all().into_iter().filter(live) {
            if named(task) && !self.is_below(task.id, &tops) {
                tops.insert(task.id);
            }
        }
        tops.into_iter().collect()
    }

    /// Whether the task is one of these or below one.
    pub(super) fn is_below(&self, task: TaskId, tops: &BTreeSet<TaskId>) -> bool {
        !tops.is_empty() && self.tree.lineage(task).iter().any(|above| tops.contains(&above.id))
    }

    fn has_to_do_with(&self, task: Option<TaskId>, audiences: &BTreeSet<String>) -> bool {
        let task = task.and_then(|id| self.tree.get(id));
        task.is_some_and(|task| task.may_have_asked_for(|one| audiences.contains(one)))
    }
}

fn is(text: &str, id: &SpiffeId) -> bool {
    id.to_string() == text
}
