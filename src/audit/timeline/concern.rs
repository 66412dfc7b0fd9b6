//! Which events that name no task concern one all the same: what was frozen and thawed, who
//! was killed, and who is something else than it was.

use serde_json::Value;

use super::{Said, SaidTask, TaskLife, Timeline};

/// Whether it is worth reading.
pub(super) fn may_concern(line: &str) -> bool {
    let events = ["\"freeze\"", "\"thaw\"", "\"agent.killed\"", "\"agent.not_killed\"", "\"agent.attested\""];
    events.iter().any(|event| line.contains(event))
}

impl Timeline {
    /// `None`: it concerns nothing here. If it is of one task of the tree, that is said from now on.
    pub(super) fn concern(&self, said: &mut Said) -> Option<()> {
        match said.event.as_str() {
            "freeze" | "thaw" => {
                let what = text(said, "what")?;
                let own = what.strip_prefix("task ").filter(|task| self.is_known(task)).map(named);
                (own.is_some() || self.is_under(what)).then(|| said.task = own)
            }
            "agent.killed" | "agent.not_killed" => {
                let life = self.tasks.iter().find(|life| is_of(life, said))?;
                said.task = Some(named(&life.id));
                Some(())
            }
            "agent.attested" => {
                let living = |life: &&TaskLife| life.last.is_none() && is_of(life, said);
                let life = self.tasks.iter().find(living)?;
                said.task = Some(named(&life.id));
                Some(())
            }
            _ => None,
        }
    }

    fn is_known(&self, task: &str) -> bool {
        task == self.root || self.places.contains_key(task)
    }

    /// A task that is named counts always, everything else only as long as a task lives that it is about.
    fn is_under(&self, what: &str) -> bool {
        let (kind, name) = what.split_once(' ').unwrap_or((what, ""));
        let mut living = self.tasks.iter().filter(|life| life.last.is_none());
        match kind {
            "everything" => living.next().is_some(),
            "task" => living.next().is_some() && self.is_above(name),
            "agent" => living.any(|life| life.first.chain.iter().any(|one| one == name)),
            _ => false,
        }
    }

    fn is_above(&self, task: &str) -> bool {
        let mut at = self.root.as_str();
        // A log that says that a task is above itself is no reason to go on for ever.
        for _ in 0..self.parents.len() {
            match self.parents.get(at) {
                Some(parent) if parent == task => return true,
                Some(parent) => at = parent,
                None => return false,
            }
        }
        false
    }
}

/// Whether that life was the one that was taken: its process, or what was in its cgroup. A cgroup has others after it.
fn is_of(life: &TaskLife, killed: &Said) -> bool {
    let Some(holder) = &life.first.agent else { return false };
    if let Some(agent) = &killed.agent {
        return (agent.pid, agent.start_time) == (holder.pid, holder.start_time);
    }
    let ended_so = || {
        let end = life.last.as_ref().and_then(|last| last.revocation.as_ref());
        life.last.is_none() || end.is_some_and(|end| text(killed, "initiator") == Some(&end.initiator))
    };
    text(killed, "cgroup").is_some_and(|cgroup| holder.cgroup.as_deref() == Some(cgroup)) && ended_so()
}

fn text<'a>(said: &'a Said, name: &str) -> Option<&'a str> {
    said.detail.as_ref()?.get(name).and_then(Value::as_str)
}

fn named(id: &str) -> SaidTask {
    SaidTask { id: id.to_owned(), ..SaidTask::default() }
}
