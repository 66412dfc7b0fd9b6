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
        let mut seen = vec![self.see(process)];
        seen.extend(process.ancestors(MOST_ANCESTORS, |above| self.see(above)));
        let in_task = is_in_task(&self.0.lock().tasks.tree, &seen);
        if in_task {
            self.0.note_denied(process, "operator", "in_task");
        }
        !in_task
    }

    /// In its own cgroup: a child is easily moved to another one than its parents are in.
    fn see(&self, process: &Process) -> Seen {
        let cgroup = self.0.cgroup_of(process);
        // Who has exited meanwhile is in none, and nobody's parent.
        let is_placed = cgroup.is_ok() || !process.is_alive();
        let cgroup = cgroup.ok().flatten();
        (Caller { process: process.key(), cgroup, identities: Vec::new() }, is_placed)
    }

    /// Tasks, parents before their children.
    ///
    /// # Errors
    /// [`Refused::NoSuchTask`]: the one that was named is not here, or no more.
    pub fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskView>, TaskError> {
        self.0.tell_suspended_first();
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
            let words = (!reason.is_empty()).then(|| audit::EndWords::Operator(reason.to_owned()));
            let by = Initiator::OperatorUid(by.uid);
            self.0.carry_out_saying(&mut state, &cascade, by, now, None, words);
            counts
        };
        self.flush().await;
        self.0.is_written_down()?;
        let (after, wall) = (self.0.parts.clock.monotonic(), self.0.parts.clock.wall());
        let view = self.0.lock().tasks.view(id, after, wall).ok_or(Refused::NoSuchTask)?;
        Ok(TaskSummary { view, tasks, credentials, took: after.saturating_duration_since(now) })
    }
}

/// A process, and whether it is known in which cgroup it is.
type Seen = (Caller, bool);

/// Whether one of these can act as a live task, or could: one of which it cannot be told may be in any cgroup.
fn is_in_task(tree: &Tree, seen: &[Seen]) -> bool {
    let callers: Vec<Caller> = seen.iter().map(|(caller, _)| caller.clone()).collect();
    tree.seats_any(&callers) || (tree.has_cgroups() && !seen.iter().all(|(_, is_placed)| *is_placed))
}

/// Further up there is only what starts everything.
const MOST_ANCESTORS: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::scope::tests::{process, tree};
    use super::*;

    /// Before Linux 6.13 files are opened to tell where a process is.
    #[test]
    fn one_of_which_it_cannot_be_told_where_it_is_gives_no_orders_while_a_cgroup_holds_a_task() {
        let seen = |pid, cgroup, is_placed| {
            (Caller { process: process(pid), cgroup, identities: Vec::new() }, is_placed)
        };
        let outside = || seen(2, Some(8), true);
        for (held_by, above, in_task) in [
            (Some(7), seen(3, Some(8), true), false),
            (Some(7), seen(3, None, true), false),
            (Some(7), seen(3, Some(7), true), true),
            (Some(7), seen(1, Some(8), true), true),
            (Some(7), seen(3, None, false), true),
            (None, seen(3, None, false), false),
            (None, seen(1, None, false), true),
        ] {
            let text = format!("{held_by:?} {above:?}");
            assert_eq!(is_in_task(&tree(held_by, false), &[outside(), above]), in_task, "{text}");
        }
    }
}
