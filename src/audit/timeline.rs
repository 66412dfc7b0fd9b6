//! What the log says of one task and of everything below it, put in order.

#![expect(missing_docs, reason = "members of lines are named as in the log's schema")]

mod concern;

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::Request;

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
    pub request: Option<Request>,
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
    pub start_time: u64,
    pub uid: u32,
    pub cgroup: Option<String>,
    pub exe_sha256: Option<String>,
    pub image_digest: Option<String>,
    pub k8s: Option<SaidPod>,
}

/// In which pod it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SaidPod {
    pub ns: Option<String>,
    pub pod: Option<String>,
    pub sa: Option<String>,
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
    pub untrusted_note: Option<String>,
    pub operator_note: Option<String>,
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
    /// The parent of each task of the log: whoever freezes one freezes what is below.
    parents: HashMap<String, String>,
    moments: Vec<Moment>,
}

impl Timeline {
    /// Nothing seen yet.
    pub fn of(task: &str, alone: bool) -> Self {
        Self {
            root: task.to_owned(),
            alone,
            tasks: Vec::new(),
            places: HashMap::new(),
            parents: HashMap::new(),
            moments: Vec::new(),
        }
    }

    /// Reads the next line of the log.
    pub fn see(&mut self, line: &str, proven: bool) {
        if let Some(said) = self.concerned(line) {
            self.moments.push(Moment { line: line.to_owned(), said, proven });
        }
    }

    /// Reads the next line of the log, and keeps nothing of it: what it says, if it concerns the task.
    pub fn concerned(&mut self, line: &str) -> Option<Said> {
        // Most lines are of something else, and are not worth a parser.
        let of_task = line.contains("\"task\":");
        if !of_task && !concern::may_concern(line) {
            return None;
        }
        let mut said = serde_json::from_str::<Said>(line).ok()?;
        match &said.task {
            Some(task) => {
                let parent = task.parent.as_ref().map(|parent| (task.id.clone(), parent.clone()));
                self.parents.extend(parent);
                self.place(task, &said)?;
            }
            None => self.concern(&mut said)?,
        }
        Some(said)
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

    /// With who it is, and in which chain.
    fn begun(id: &str, parent: Option<&str>, chain: &[&str], pid: u32) -> String {
        let mut line: Value = serde_json::from_str(&line("task.begin", id, parent)).unwrap();
        line["chain"] = json!(chain);
        line["agent"] = json!({"pid": pid, "start_time": 9, "cgroup": format!("/unit-{pid}")});
        line.to_string()
    }

    /// The events that concern `b`, of a tree r > a > b > c, where each has its own agent, and of another, x.
    fn concerning_b(lines: &[Value]) -> Vec<String> {
        let mut timeline = Timeline::of("b", false);
        timeline.see(&json!({"event": "freeze", "detail": {"what": "everything"}}).to_string(), true);
        timeline.see(&begun("r", None, &["R"], 1), true);
        timeline.see(&begun("a", Some("r"), &["R", "A"], 2), true);
        timeline.see(&begun("b", Some("a"), &["R", "A", "B"], 3), true);
        timeline.see(&begun("c", Some("b"), &["R", "A", "B", "C"], 4), true);
        timeline.see(&begun("x", Some("r"), &["R", "X"], 5), true);
        lines.iter().for_each(|line| timeline.see(&line.to_string(), true));
        let later = timeline.moments().iter().skip(2);
        later.map(|moment| moment.said.detail.as_ref().unwrap_or(&Value::Null).to_string()).collect()
    }

    #[test]
    fn a_freeze_of_a_task_is_of_everything_that_it_names_or_is_above() {
        let frozen = |what: &str| json!({"event": "freeze", "detail": {"what": what}});
        for what in
            ["everything", "task b", "task a", "task r", "task c", "agent R", "agent A", "agent B", "agent C"]
        {
            assert_eq!(concerning_b(&[frozen(what)]).len(), 1, "{what}");
        }
        for what in ["task x", "agent X", "agent", "target wiki", "task ", "task bb", "all b"] {
            assert_eq!(concerning_b(&[frozen(what)]), Vec::<String>::new(), "{what}");
        }
        let thaw = json!({"event": "thaw", "detail": {"what": "task a"}});
        assert_eq!(concerning_b(&[frozen("task a"), thaw]).len(), 2);
    }

    #[test]
    fn what_is_frozen_after_the_end_is_no_part_of_it_unless_it_is_named() {
        let frozen = |what: &str| json!({"event": "freeze", "detail": {"what": what}});
        let end = |id: &str, parent: &str| json!({"event": "task.ended", "task": {"id": id, "parent": parent, "state": "ended"}});
        let after = |what: &str| concerning_b(&[end("b", "a"), end("c", "b"), frozen(what)]).len();
        assert_eq!((after("everything"), after("agent A"), after("task r")), (2, 2, 2));
        assert_eq!(after("task b"), 3);
    }

    #[test]
    fn whoever_is_killed_is_known_by_his_process_or_his_cgroup() {
        let process = |pid: u32, start: u64| json!({"event": "agent.killed", "agent": {"pid": pid, "start_time": start}, "detail": {"initiator": "operator uid 0"}});
        let cgroup = |path: &str| json!({"event": "agent.not_killed", "detail": {"cgroup": path, "initiator": "operator uid 0"}});
        for mine in [process(3, 9), process(4, 9), cgroup("/unit-3")] {
            assert_eq!(concerning_b(std::slice::from_ref(&mine)).len(), 1, "{mine}");
        }
        for other in [
            process(3, 8),
            process(2, 9),
            cgroup("/unit-5"),
            cgroup("/unit-3/a"),
            json!({"event": "agent.killed"}),
        ] {
            assert_eq!(concerning_b(std::slice::from_ref(&other)).len(), 0, "{other}");
        }
        let ended = |by: &str| json!({"event": "task.ended", "task": {"id": "b", "parent": "a", "state": "ended"}, "revocation": {"initiator": by}});
        assert_eq!(concerning_b(&[ended("operator uid 0"), cgroup("/unit-3")]).len(), 2);
        assert_eq!(
            concerning_b(&[ended("kernel"), cgroup("/unit-3")]).len(),
            1,
            "whoever came after it there"
        );
    }

    #[test]
    fn a_process_that_becomes_something_else_is_part_of_its_task_while_that_lives() {
        let attested = |pid: u32, start: u64| json!({"event": "agent.attested", "agent": {"pid": pid, "start_time": start}, "detail": {"reason": "changed"}});
        for mine in [attested(3, 9), attested(4, 9)] {
            assert_eq!(concerning_b(std::slice::from_ref(&mine)).len(), 1, "{mine}");
        }
        for other in [attested(3, 8), attested(2, 9), attested(6, 9)] {
            assert_eq!(concerning_b(std::slice::from_ref(&other)).len(), 0, "{other}");
        }
        let end = json!({"event": "task.ended", "task": {"id": "b", "parent": "a", "state": "ended"}});
        assert_eq!(concerning_b(&[end, attested(3, 9)]).len(), 1, "the end alone");
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
