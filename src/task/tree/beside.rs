//! Who sits in the same cgroup: a task in a cgroup is only isolated while nobody in there acts as another task.

use std::collections::HashMap;

use super::Tree;
use crate::id::TaskId;

/// Live tasks that are held by one process, by the cgroup that this process was in when they began; `None`: it could not
/// be told, so that it is feared to be any.
#[derive(Debug, Default)]
pub(super) struct Beside {
    count: HashMap<Option<u64>, usize>,
    cgroup: HashMap<TaskId, Option<u64>>,
}

impl Beside {
    fn add(&mut self, id: TaskId, cgroup: Option<u64>) {
        if self.cgroup.insert(id, cgroup).is_none() {
            *self.count.entry(cgroup).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, id: TaskId) {
        let Some(cgroup) = self.cgroup.remove(&id) else { return };
        if let Some(count) = self.count.get_mut(&cgroup) {
            *count -= 1;
            if *count == 0 {
                self.count.remove(&cgroup);
            }
        }
    }

    pub(super) fn anybody(&self, cgroup: u64) -> bool {
        self.count.contains_key(&Some(cgroup)) || self.count.contains_key(&None)
    }
}

impl Tree {
    /// Whether nobody who holds a live task sits in that cgroup.
    pub fn is_free(&self, cgroup: u64) -> bool {
        !self.by_cgroup.contains_key(&cgroup) && !self.beside.anybody(cgroup)
    }

    /// Whether a live task that must be isolated is held by that cgroup: nobody else may take a seat there.
    pub fn is_reserved(&self, cgroup: u64) -> bool {
        let there = self.by_cgroup.get(&cgroup).into_iter().flatten();
        there.filter_map(|id| self.tasks.get(id)).any(|task| task.charter.require_isolated)
    }

    /// Whether any cgroup holds a live task.
    pub fn has_cgroups(&self) -> bool {
        !self.by_cgroup.is_empty()
    }

    /// Says in which cgroup the process sits that holds the task alone; `None`: it cannot be told.
    pub fn note_beside(&mut self, id: TaskId, cgroup: Option<u64>) {
        if self.tasks.get(&id).is_some_and(|task| task.ended_at.is_none()) {
            self.beside.add(id, cgroup);
        }
    }
}
