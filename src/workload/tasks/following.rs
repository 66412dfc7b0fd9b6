//! The tasks as they change, for somebody who watches all of them: each is shown again when something of it is no longer
//! as it was. Looks when something has changed, a few times in a second at most: what changes faster is shown once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{TaskError, TaskFilter, TaskView};
use crate::id::TaskId;
use crate::task::{Standing, Task, Usage};
use crate::workload::Workloads;

/// Somebody who watches.
pub struct TaskFollower {
    workloads: Workloads,
    filter: TaskFilter,
    seen: HashMap<TaskId, Print>,
    news: watch::Receiver<()>,
    fresh: bool,
}

impl std::fmt::Debug for TaskFollower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskFollower").field("filter", &self.filter).finish_non_exhaustive()
    }
}

/// What one can see of a task that changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Print {
    standing: Standing,
    is_suspended: bool,
    deadline: Instant,
    used: Usage,
    denials: u32,
    audiences: usize,
    leases: usize,
    children: (usize, u32),
}

impl Print {
    fn of(task: &Task, is_suspended: bool) -> Self {
        Self {
            standing: task.standing,
            is_suspended,
            deadline: task.deadline,
            used: task.used,
            denials: task.denials,
            audiences: task.audiences.len(),
            leases: task.leases.len(),
            children: (task.children.len(), task.children_ever),
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.standing, Standing::Ended(_))
    }
}

impl TaskFollower {
    pub(super) fn new(workloads: Workloads, filter: TaskFilter) -> Self {
        let news = {
            let mut state = workloads.0.lock();
            state.tasks.tree.follow();
            state.tasks.watchers.follow_all()
        };
        Self { workloads, filter, seen: HashMap::new(), news, fresh: true }
    }

    /// First every task that there is, then those that have changed, at least one.
    ///
    /// # Errors
    /// The task that was named is not there (any more).
    pub async fn next(&mut self) -> Result<Vec<TaskView>, TaskError> {
        loop {
            if !std::mem::take(&mut self.fresh) {
                // Whoever tells is there as long as we are.
                drop(self.news.changed().await);
                tokio::time::sleep(PAUSE).await;
            }
            self.news.mark_unchanged();
            let changed = self.look()?;
            if !changed.is_empty() {
                return Ok(changed);
            }
        }
    }

    /// Those that are not as they were. One that has ended is shown once more, asked for or not.
    fn look(&mut self) -> Result<Vec<TaskView>, TaskError> {
        let Self { workloads, filter, seen, .. } = self;
        workloads.0.tell_suspended_first();
        let (now, wall) = (workloads.0.parts.clock.monotonic(), workloads.0.parts.clock.wall());
        let state = workloads.0.lock();
        let all = filter.chosen(&state.tasks.tree, true)?;
        let mut left = HashMap::with_capacity(seen.len());
        let mut changed = Vec::new();
        for task in all {
            let (print, before) = (Print::of(task, state.tasks.suspended.holds(task.id)), seen.get(&task.id));
            if print.has_ended() && before.is_none() && !filter.include_ended {
                continue;
            }
            left.insert(task.id, print);
            if before != Some(&print) {
                changed.extend(state.tasks.view(task.id, now, wall));
            }
        }
        *seen = left;
        Ok(changed)
    }
}

impl Drop for TaskFollower {
    fn drop(&mut self) {
        self.workloads.0.lock().tasks.tree.unfollow();
    }
}

/// Changes within this time are shown together.
const PAUSE: Duration = Duration::from_millis(200);
