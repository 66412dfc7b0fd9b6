//! Following one task: as it is now, again at each change, and how it ended. Nothing is queued for whoever is slow: a
//! look shows the newest state, and a watch channel says that there is something to look at.

use std::collections::HashMap;
use std::sync::Arc;

use mayfly_attestors::ProcessKey;
use tokio::sync::watch;

use super::{ApprovalView, TaskError, TaskSummary, TaskView, caller};
use crate::clock::from_unix_seconds;
use crate::id::{LeaseId, TaskId};
use crate::ledger;
use crate::policy::PolicySet;
use crate::task::{Held, Limit, Refused, Standing};
use crate::workload::{Admission, Shared, State, Workloads, lock};

/// Who follows what. The channel's value is the end, once there is one.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    of_task: HashMap<TaskId, watch::Sender<Option<TaskSummary>>>,
    /// Moves when any task has changed while somebody follows all of them.
    of_all: watch::Sender<()>,
    /// Open streams of each process.
    of_process: HashMap<ProcessKey, usize>,
}

impl Watchers {
    /// Says that there is something to look at.
    pub(super) fn tell(&self, id: TaskId) {
        if let Some(watchers) = self.of_task.get(&id) {
            watchers.send_modify(|_end| {});
        }
    }

    /// Says to whoever follows all tasks that there is something to look at.
    pub(super) fn tell_all(&self) {
        self.of_all.send_replace(());
    }

    /// Hears of changes of any task.
    pub(super) fn follow_all(&self) -> watch::Receiver<()> {
        self.of_all.subscribe()
    }

    /// Whether anybody follows.
    pub(super) fn follows(&self, id: TaskId) -> bool {
        self.of_task.contains_key(&id)
    }

    /// The last word about a task.
    pub(super) fn tell_end(&mut self, summary: TaskSummary) {
        if let Some(watchers) = self.of_task.remove(&summary.view.task.id) {
            watchers.send_replace(Some(summary));
        }
    }
}

/// What a look shows.
#[derive(Debug)]
pub enum Look {
    /// The task, and the credentials that it holds.
    Live(Box<TaskView>, Vec<Held>),
    /// It has ended.
    Ended(Box<TaskSummary>),
    /// It is not even remembered.
    Forgotten,
    /// An operator has frozen it, or somebody in its chain.
    Frozen,
}

/// One open stream of one task. Whoever may follow it holds it or a task above it, so that it ends before its follower's
/// identity does.
pub struct TaskWatch {
    shared: Arc<Shared>,
    task: TaskId,
    process: ProcessKey,
    end: watch::Receiver<Option<TaskSummary>>,
    policy: watch::Receiver<Arc<PolicySet>>,
}

impl std::fmt::Debug for TaskWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskWatch").field("task", &self.task).finish_non_exhaustive()
    }
}

impl Workloads {
    /// Follows a task of the caller, or one below it.
    ///
    /// # Errors
    /// [`Refused`]: it is not the caller's to see, has ended, or the process follows as much as it may.
    pub fn watch_task(&self, admission: &Admission, id: TaskId) -> Result<TaskWatch, TaskError> {
        let process = admission.process().key();
        let mut state = self.0.lock();
        let State { tasks, .. } = &mut *state;
        let task = tasks.tree.seen_by(id, &caller(admission))?;
        if let Standing::Ended(ending) = task.standing {
            return Err(Refused::Ended(ending).into());
        }
        let open = tasks.watchers.of_process.entry(process).or_default();
        if *open >= tasks.tree.bounds().watches {
            return Err(Refused::Limit(Limit::Streams).into());
        }
        *open += 1;
        let end = tasks.watchers.of_task.entry(id).or_insert_with(|| watch::Sender::new(None)).subscribe();
        tasks.tree.watch(id);
        drop(state);
        let policy = self.0.parts.policy.follow();
        Ok(TaskWatch { shared: Arc::clone(&self.0), task: id, process, end, policy })
    }
}

impl TaskWatch {
    /// The newest state.
    pub fn look(&mut self) -> Look {
        self.policy.borrow_and_update();
        let (now, wall) = (self.shared.parts.clock.monotonic(), self.shared.parts.clock.wall());
        let (view, held) = {
            // An end is told of under the same lock.
            let state = self.shared.lock();
            if let Some(summary) = &*self.end.borrow_and_update() {
                return Look::Ended(Box::new(summary.clone()));
            }
            let Some(view) = state.tasks.view(self.task, now, wall) else { return Look::Forgotten };
            let held = view.task.leases.iter().filter_map(|lease| held(&state, *lease)).collect();
            (view, held)
        };
        if self.shared.is_frozen(&view, None) {
            return Look::Frozen;
        }
        Look::Live(Box::new(view), held)
    }

    /// Resolves when a look may show something else.
    pub async fn changed(&mut self) {
        tokio::select! {
            // An error means that the agent stops.
            _ = self.end.changed() => {}
            _ = self.policy.changed() => {}
        }
    }

    /// What people were asked for this task, closed ones included.
    pub fn approvals(&self) -> Vec<ApprovalView> {
        Workloads(Arc::clone(&self.shared)).approvals(Some(self.task), true)
    }

    /// Resolves when the task has ended.
    pub async fn ended(&mut self) {
        drop(self.end.wait_for(Option::is_some).await);
    }

    /// Why a credential is refused, by the ledger's word.
    pub fn why_refused(&self, lease: LeaseId) -> &'static str {
        lock(&self.shared.denied).reason(lease).map_or("", ledger::Reason::as_str)
    }
}

impl Drop for TaskWatch {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let tasks = &mut state.tasks;
        if let Some(open) = tasks.watchers.of_process.get_mut(&self.process) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                tasks.watchers.of_process.remove(&self.process);
            }
        }
        // Our own receiver is still there.
        let last = |watchers: &watch::Sender<_>| watchers.receiver_count() <= 1;
        if tasks.watchers.of_task.get(&self.task).is_some_and(last) {
            tasks.watchers.of_task.remove(&self.task);
            tasks.tree.unwatch(self.task);
        }
    }
}

fn held(state: &State, lease: LeaseId) -> Option<Held> {
    let row = state.rows.get(&lease)?;
    Some(Held {
        lease,
        audience: row.audience.first().cloned().unwrap_or_default(),
        issued: from_unix_seconds(row.issued_at),
        expires: from_unix_seconds(row.not_after),
    })
}

impl Shared {
    /// Whether nothing is decided in favour of the task, or nothing about that target, as of now.
    pub(super) fn is_frozen(&self, view: &TaskView, target: Option<&str>) -> bool {
        view.is_frozen_by(self.parts.policy.in_force().freezes(), target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tasks::Tasks;

    #[test]
    fn news_of_an_approval_wake_those_who_follow_its_task_and_nobody_else() {
        let mut tasks = Tasks::default();
        let [own, other] = [1, 2].map(|n| TaskId::from_bytes([n; 16]));
        let mut follow = |id| {
            let watchers = tasks.watchers.of_task.entry(id).or_insert_with(|| watch::Sender::new(None));
            watchers.subscribe()
        };
        let (mut of_own, mut of_other) = (follow(own), follow(other));
        let mut of_all = tasks.watchers.follow_all();
        tasks.tell_approval(own);
        assert!(of_own.has_changed().unwrap() && !of_other.has_changed().unwrap());
        assert!(!of_all.has_changed().unwrap(), "no task has changed");
        of_own.mark_unchanged();
        tasks.tell_changes();
        assert!(!of_own.has_changed().unwrap() && !of_all.has_changed().unwrap(), "nothing has");
        tasks.tell_approval(other);
        assert!(!of_own.has_changed().unwrap() && of_other.has_changed().unwrap());
        of_other.mark_unchanged();
        of_all.mark_unchanged();
    }
}
