//! Tasks as they come, one by one, kept as the trees they are.

use std::collections::BTreeMap;

use mayfly_proto::task::{Task, TaskState};

use super::words::line;
use crate::clock::{Clock, SystemClock};

/// What is known of the tasks now.
#[derive(Debug, Default)]
pub(super) struct Forest {
    tasks: BTreeMap<String, Task>,
}

impl Forest {
    /// A task that is new, or is not as it was.
    pub(super) fn put(&mut self, task: Task) {
        self.tasks.insert(task.id.clone(), task);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// How many of them go on.
    pub(super) fn live(&self) -> usize {
        self.tasks.values().filter(|task| task.state() != TaskState::Ended).count()
    }

    /// A line a task, children below their parents. A task whose parent is not here stands at the top.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut children: BTreeMap<&str, Vec<&Task>> = BTreeMap::new();
        for task in self.tasks.values() {
            // A task that says it is its own parent would never be shown.
            let is_below = self.tasks.contains_key(&task.parent) && task.parent != task.id;
            let parent = if is_below { task.parent.as_str() } else { "" };
            children.entry(parent).or_default().push(task);
        }
        let mut lines = Vec::new();
        let mut open: Vec<(&Task, String, String)> = Vec::new();
        let tops = children.get("").cloned().unwrap_or_default();
        open.extend(tops.into_iter().rev().map(|task| (task, String::new(), String::new())));
        let now = SystemClock.wall();
        // Not by recursion: the depth is somebody else's number.
        while let Some((task, before, below)) = open.pop() {
            lines.push(format!("{before}{}", line(task, now)));
            let below_it = children.remove(task.id.as_str()).unwrap_or_default();
            let last = below_it.len();
            let next = below_it.into_iter().enumerate().rev().map(|(index, child)| {
                let (branch, trunk) =
                    if index + 1 == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                (child, format!("{below}{branch}"), format!("{below}{trunk}"))
            });
            open.extend(next);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::task;
    use super::*;

    #[test]
    fn children_stand_below_their_parents() {
        let mut forest = Forest::default();
        for (id, parent) in [("a", ""), ("b", "a"), ("c", "a"), ("d", "b"), ("e", "gone"), ("f", "f")] {
            forest.put(task(id, parent));
        }
        let shown: Vec<String> =
            forest.lines().iter().map(|line| line.split("  spiffe").next().unwrap().to_owned()).collect();
        assert_eq!(shown, ["a", "├─ b", "│  └─ d", "└─ c", "e", "f"]);
    }

    #[test]
    fn a_task_that_comes_again_replaces_itself() {
        let mut forest = Forest::default();
        forest.put(task("a", ""));
        assert_eq!(forest.live(), 1);
        forest.put(Task { state: TaskState::Ended.into(), reason: "process_exit".into(), ..task("a", "") });
        assert_eq!((forest.live(), forest.lines().len()), (0, 1));
        assert!(forest.lines()[0].contains("ended (process_exit)"), "{:?}", forest.lines());
    }

    #[test]
    fn parents_that_go_in_a_circle_hang_nobody() {
        let mut forest = Forest::default();
        forest.put(task("a", "b"));
        forest.put(task("b", "a"));
        assert!(forest.lines().is_empty());
    }
}
