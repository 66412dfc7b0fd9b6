//! What an operator asks and orders of tasks. Who is in a task is no operator: an agent decides nothing about agents.

use mayfly_attestors::Process;

use super::{TaskError, TaskFollower, TaskSummary, TaskView};
use crate::audit::{self, Event};
use crate::id::{SpiffeId, TaskId};
use crate::task::{Caller, Ending, Refused, Standing, Task, Tree};
use crate::workload::Workloads;
use crate::workload::revoker::Initiator;

/// Which tasks to list; an empty filter wants every live one.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    /// Only this one and what is below it.
    pub top: Option<TaskId>,
    /// Only those of this identity.
    pub spiffe_id: Option<SpiffeId>,
    /// Those that ended lately, too.
    pub include_ended: bool,
}

impl TaskFilter {
    /// Those of the tree that it wants, parents first; the ended ones too, or not.
    pub(super) fn chosen<'a>(&self, tree: &'a Tree, with_ended: bool) -> Result<Vec<&'a Task>, Refused> {
        if let Some(top) = self.top {
            tree.get(top).ok_or(Refused::NoSuchTask)?;
        }
        let wanted = |task: &&Task| {
            (with_ended || !matches!(task.standing, Standing::Ended(_)))
                && self.spiffe_id.as_ref().is_none_or(|id| *id == task.charter.spiffe_id)
                && self.top.is_none_or(|top| tree.is_within(task.id, top))
        };
        Ok(tree.all().into_iter().filter(wanted).collect())
    }
}

impl Workloads {
    /// Whether the process may give operators' orders: neither it nor one that it descends from can act as a live task.
    /// Looks at parents as well, because an agent's tools are its children: one that hides from that has nothing here
    /// that its user has not. A refusal is recorded.
    pub fn may_order(&self, process: &Process) -> bool {
        if self.live_tasks() == 0 {
            return true;
        }
        let cgroup = self.0.cgroup_of_caller(process);
        let keys = std::iter::once(process.key()).chain(process.ancestors(MOST_ANCESTORS));
        let callers: Vec<Caller> =
            keys.map(|process| Caller { process, cgroup, identities: Vec::new() }).collect();
        let in_task = self.0.lock().tasks.tree.seats_any(&callers);
        if in_task {
            self.0.note_denied(process, "operator", "in_task");
        }
        !in_task
    }

    /// Tasks, parents before their children.
    ///
    /// # Errors
    /// [`Refused::NoSuchTask`]: the one that was named is not here, or no more.
    pub fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskView>, TaskError> {
        self.0.tell_suspended();
        let (now, wall) = (self.0.parts.clock.monotonic(), self.0.parts.clock.wall());
        let state = self.0.lock();
        let found = filter.chosen(&state.tasks.tree, filter.include_ended)?;
        Ok(found.into_iter().filter_map(|task| state.tasks.view(task.id, now, wall)).collect())
    }

    /// The same, and each again when it changes.
    pub fn follow_tasks(&self, filter: TaskFilter) -> TaskFollower {
        TaskFollower::new(self.clone(), filter)
    }

    /// Ends a task and everything below it by an operator's order. When it returns every credential of them is refused,
    /// and the ledger knows.
    ///
    /// # Errors
    /// [`Refused`]: there is no such task, or it has ended.
    pub async fn revoke_task(
        &self,
        id: TaskId,
        reason: &str,
        by: audit::Agent,
    ) -> Result<TaskSummary, TaskError> {
        let now = self.0.parts.clock.monotonic();
        let (tasks, credentials) = {
            let mut state = self.0.lock();
            let task = state.tasks.tree.get(id).ok_or(Refused::NoSuchTask)?;
            if let Standing::Ended(ending) = task.standing {
                return Err(Refused::Ended(ending).into());
            }
            let cascade = state.tasks.tree.end(id, Ending::Admin, now, self.0.parts.clock.wall());
            let counts = (cascade.ended.len(), cascade.leases().count());
            let order = Event::AdminRevoke {
                target: if reason.is_empty() { format!("task {id}") } else { format!("task {id}: {reason}") },
                credentials: super::count(counts.1),
                by: by.clone(),
            };
            self.0.parts.audit.note(vec![order]);
            self.0.carry_out(&mut state, &cascade, Initiator::OperatorUid(by.uid), now, None);
            counts
        };
        self.flush().await;
        self.0.is_written_down()?;
        let (after, wall) = (self.0.parts.clock.monotonic(), self.0.parts.clock.wall());
        let view = self.0.lock().tasks.view(id, after, wall).ok_or(Refused::NoSuchTask)?;
        Ok(TaskSummary { view, tasks, credentials, took: after.saturating_duration_since(now) })
    }
}

/// Further up there is only what starts everything.
const MOST_ANCESTORS: usize = 64;
