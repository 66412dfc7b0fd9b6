//! What the log says of one task and of everything below it, put in order.

#![expect(missing_docs, reason = "members of lines are named as in the log's schema")]

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

/// A line, as far as it tells of tasks. A member that an older or newer agent does not write is simply not there.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Said {
    pub ts: String,
    pub seq: u64,
    pub event: String,
    pub severity: String,
    pub agent: Option<SaidAgent>,
    pub on_behalf_of: Option<SaidUser>,
    pub task: Option<SaidTask>,
    pub chain: Vec<String>,
    pub decision: Option<SaidDecision>,
    pub credential: Option<SaidCredential>,
    pub approval: Option<SaidApproval>,
    pub revocation: Option<SaidRevocation>,
    pub detail: Option<Value>,
}

/// Who did it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SaidAgent {
    pub spiffe_id: Option<String>,
    pub pid: u32,
    pub uid: u32,
    pub cgroup: Option<String>,
    pub exe_sha256: Option<String>,
}

/// For whom it was done.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SaidUser {
    pub iss: String,
    pub sub_hash: String,
}

/// The task it was done for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SaidTask {
    pub id: String,
    pub root: Option<String>,
    pub parent: Option<String>,
    pub template: Option<String>,
    pub purpose: Option<String>,
    pub state: Option<String>,
    pub deadline: Option<String>,
    pub isolated: Option<bool>,
}

/// What policy said.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SaidDecision {
    pub result: String,
    pub phase: String,
    pub reason: String,
    pub evaluation_id: Option<String>,
    pub action: Option<String>,
    pub target: Option<String>,
    pub tool: Option<String>,
    pub policy_ids: Vec<String>,
    pub obligations: Vec<String>,
}

/// Which credential.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SaidCredential {
    pub format: String,
    pub serial: Option<String>,
    pub jti: Option<String>,
    pub aud: Vec<String>,
    pub ttl: u64,
    pub target: Option<String>,
    pub scope: Option<String>,
    pub binding: Option<String>,
    pub evaluations: Vec<String>,
}

/// What people were asked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SaidApproval {
    pub id: String,
    pub action: String,
    pub target: String,
    pub by: Option<String>,
    pub reason: Option<String>,
    pub until: Option<String>,
}

/// What was taken back.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SaidRevocation {
    pub reason: String,
    pub initiator: String,
    pub credentials: u64,
    pub descendants: Option<u64>,
    pub latency_ms: f64,
}

/// One event of the tree.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The line as it stands in the log.
    pub line: String,
    /// What it says.
    pub said: Said,
    /// Whether the chain proves it.
    pub proven: bool,
}

/// One task of the tree, from its first line to its last.
#[derive(Clone, Debug)]
pub struct TaskLife {
    /// Its name.
    pub id: String,
    /// Its place in the tree: `1`, `1.1`, `1.1.2`, ….
    pub place: String,
    /// The line that says most of how it began.
    pub first: Said,
    /// The line of its end.
    pub last: Option<Said>,
    children: usize,
}

/// Collects what concerns one task, and unless it is asked for alone, everything below it.
#[derive(Clone, Debug)]
pub struct Timeline {
    root: String,
    alone: bool,
    tasks: Vec<TaskLife>,
    places: HashMap<String, usize>,
    moments: Vec<Moment>,
}

impl Timeline {
    /// Nothing seen yet.
    pub fn of(task: &str, alone: bool) -> Self {
        let (root, places) = (task.to_owned(), HashMap::new());
        Self { root, alone, tasks: Vec::new(), places, moments: Vec::new() }
    }

    /// Reads the next line of the log.
    pub fn see(&mut self, line: &str, proven: bool) {
        // Most lines are of something else, and are not worth a parser.
        if !line.contains("\"task\":") {
            return;
        }
        let Ok(said) = serde_json::from_str::<Said>(line) else { return };
        let Some(task) = &said.task else { return };
        if self.place(task, &said).is_none() {
            return;
        }
        self.moments.push(Moment { line: line.to_owned(), said, proven });
    }

    /// Parents before their children.
    pub fn tasks(&self) -> &[TaskLife] {
        &self.tasks
    }

    /// As they stand in the log.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// Where in the tree a task is.
    pub fn place_of(&self, task: &str) -> Option<&str> {
        self.places.get(task).and_then(|index| self.tasks.get(*index)).map(|life| life.place.as_str())
    }

    fn place(&mut self, task: &SaidTask, said: &Said) -> Option<()> {
        let index = match self.places.get(&task.id) {
            Some(index) => *index,
            None => self.add(task, said)?,
        };
        let life = self.tasks.get_mut(index)?;
        // A credential's line only names its task; another may say more, later.
        if life.first.task.as_ref().is_none_or(|known| known.state.is_none()) && task.state.is_some() {
            life.first = said.clone();
        }
        if said.event == "task.ended" {
            life.last = Some(said.clone());
        }
        Some(())
    }

    /// A task that belongs to the tree and was not seen before.
    fn add(&mut self, task: &SaidTask, said: &Said) -> Option<usize> {
        let place = if task.id == self.root {
            "1".to_owned()
        } else if self.alone {
            return None;
        } else {
            let parent = self.places.get(task.parent.as_deref()?).copied()?;
            let parent = self.tasks.get_mut(parent)?;
            parent.children += 1;
            format!("{}.{}", parent.place, parent.children)
        };
        let index = self.tasks.len();
        let (id, first) = (task.id.clone(), said.clone());
        self.tasks.push(TaskLife { id, place, first, last: None, children: 0 });
        self.places.insert(task.id.clone(), index);
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(event: &str, id: &str, parent: Option<&str>) -> String {
        let task = json!({"id": id, "root": "r", "parent": parent, "state": "active"});
        json!({"ts": "t", "seq": 1, "event": event, "task": task}).to_string()
    }

    fn places(timeline: &Timeline) -> Vec<(&str, &str)> {
        timeline.tasks().iter().map(|life| (life.id.as_str(), life.place.as_str())).collect()
    }

    #[test]
    fn a_timeline_holds_the_tree_below_a_task_and_no_other() {
        let mut timeline = Timeline::of("a", false);
        for (event, id, parent) in [
            ("task.begin", "r", None),
            ("task.join", "a", Some("r")),
            ("task.join", "b", Some("r")),
            ("task.join", "a1", Some("a")),
            ("task.join", "b1", Some("b")),
            ("task.join", "a2", Some("a")),
            ("task.join", "a11", Some("a1")),
            ("task.ended", "a1", Some("a")),
        ] {
            timeline.see(&line(event, id, parent), true);
        }
        timeline.see(r#"{"event":"credential.issue","task":{"id":"a2"},"credential":{"jti":"x"}}"#, true);
        timeline.see(r#"{"event":"credential.issue","task":{"id":"b"},"credential":{"jti":"y"}}"#, true);
        timeline.see("rubbish with \"task\":", false);
        assert_eq!(places(&timeline), [("a", "1"), ("a1", "1.1"), ("a2", "1.2"), ("a11", "1.1.1")]);
        assert_eq!(timeline.moments().len(), 6);
        assert_eq!(timeline.place_of("a11"), Some("1.1.1"));
        let ended: Vec<bool> = timeline.tasks().iter().map(|life| life.last.is_some()).collect();
        assert_eq!(ended, [false, true, false, false]);
    }

    #[test]
    fn a_task_alone_is_without_those_below_it() {
        let mut timeline = Timeline::of("a", true);
        timeline.see(&line("task.begin", "a", None), true);
        timeline.see(&line("task.join", "a1", Some("a")), true);
        assert_eq!(places(&timeline), [("a", "1")]);
        assert_eq!(timeline.moments().len(), 1);
    }

    #[test]
    fn what_a_later_line_says_of_the_task_completes_an_earlier_one() {
        let mut timeline = Timeline::of("a", false);
        timeline.see(r#"{"event":"credential.issue","task":{"id":"a"}}"#, true);
        timeline.see(&line("task.ended", "a", None), true);
        assert_eq!(timeline.tasks()[0].first.event, "task.ended");
    }
}
