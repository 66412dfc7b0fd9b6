//! What this agent knows by a name that an operator freezes. To freeze ahead of time is right, and so nothing is refused; but
//! whoever mistypes a name in a hurry must be told that it stops nobody.

use std::collections::BTreeSet;

use super::{Shared, State};
use crate::diag::near_enough;
use crate::id::TaskId;
use crate::policy::Frozen;
use crate::task::{Standing, Task};

impl Shared {
    /// That nothing bears the name, and what is known instead; `None`: something does.
    pub(super) fn unknown(&self, what: &Frozen) -> Option<String> {
        match what {
            Frozen::All => None,
            Frozen::Agent(id) => self.unknown_agent(id),
            Frozen::Task(id) => self.unknown_task(id),
            Frozen::Target(word) => self.unknown_target(word),
        }
    }

    fn unknown_agent(&self, id: &str) -> Option<String> {
        let entries = self.entries();
        let borne = borne(&self.lock());
        if borne.contains(id) || entries.iter().any(|entry| entry.spiffe_id.gives(id)) {
            return None;
        }
        // What has placeholders is nobody's name.
        let written = entries.iter().filter(|entry| entry.spiffe_id.placeholders().next().is_none());
        let written = written.map(|entry| entry.spiffe_id.to_string());
        let near = near(id, borne.into_iter().chain(written).collect());
        Some(format!("no entry gives that identity, and no process, credential or task has it{near}"))
    }

    fn unknown_task(&self, id: &str) -> Option<String> {
        let state = self.lock();
        let task = id.parse::<TaskId>().ok().and_then(|id| state.tasks.tree.get(id));
        match task.map(|task| task.standing) {
            Some(Standing::Ended(ending)) => {
                Some(format!("the task has ended ({}), and no other ever has its name", ending.as_str()))
            }
            Some(Standing::Pending | Standing::Active) => None,
            None => {
                let live = |task: &&Task| task.ended_at.is_none();
                let all = state.tasks.tree.all().into_iter().filter(live);
                let near = near(id, all.map(|task| task.id.to_string()).collect());
                Some(format!("no task has that name, or it has ended and is not remembered any more{near}"))
            }
        }
    }

    fn unknown_target(&self, word: &str) -> Option<String> {
        let set = self.parts.policy.in_force();
        let catalogue = set.catalogue();
        let is_out = || self.lock().rows.values().any(|row| row.audience.iter().any(|one| one == word));
        let had_another = || set.freezes().audiences(&Frozen::Target(word.to_owned())).len() > 1;
        let is_target = catalogue.target(word).is_some() || catalogue.target_for(word).is_some();
        if is_target || had_another() || is_out() {
            return None;
        }
        let known = catalogue.targets().flat_map(|target| [&target.name, &target.audience]).cloned();
        Some(format!(
            "no target has that name or audience, and no token is for it{}",
            near(word, known.collect())
        ))
    }
}

/// The identities that somebody or something has now.
fn borne(state: &State) -> BTreeSet<String> {
    let members = state.members.values().flat_map(|member| &member.identities);
    let members = members.map(|identity| identity.spiffe_id.to_string());
    let leased = state.rows.values().map(|row| row.spiffe_id.clone());
    let tasks = state.tasks.tree.all().into_iter().filter(|task| task.ended_at.is_none());
    let tasks = tasks.map(|task| task.charter.spiffe_id.to_string());
    members.chain(leased).chain(tasks).collect()
}

/// What may have been meant.
fn near(name: &str, known: BTreeSet<String>) -> String {
    near_enough(name, known).map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_said_where_it_is_near() {
        let known =
            || ["spiffe://example.org/agent/a".to_owned(), "spiffe://example.org/web".to_owned()].into();
        assert_eq!(
            near("spiffe://example.org/agnet/a", known()),
            "; did you mean `spiffe://example.org/agent/a`?"
        );
        assert_eq!(near("spiffe://example.com/something", known()), "");
        assert_eq!(near("a", BTreeSet::new()), "");
    }
}
