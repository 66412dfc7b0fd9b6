//! Who keeps the credentials of a task whose program knows nothing of tasks: the `mayfly run` that started it
//! (decision 0076).
//!
//! A keeper is the direct parent of the process that begins or joins, at that moment, runs the agent's own file and is
//! of the same user. It calls in the stead of the task's process, which is attested each time as if it had called
//! itself; and only for what it was named for.

use std::collections::BTreeSet;
use std::sync::Arc;

use mayfly_attestors::{ParentError, Process, ProcessKey};

use super::TaskError;
use crate::id::TaskId;
use crate::task::journal::KeptBy;
use crate::task::{Refused, Standing};
use crate::workload::{Refusal, Shared, Workloads};

/// The most audiences that one keeper may be named for.
pub const MOST_AUDIENCES: usize = 16;

/// Proof that somebody may keep a task's credentials.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    process: ProcessKey,
    audiences: BTreeSet<String>,
}

impl Keeper {
    /// To be kept over a restart of the agent.
    pub(super) fn kept(&self, task: TaskId) -> KeptBy {
        KeptBy { task, process: self.process, audiences: self.audiences.clone() }
    }

    /// One that was.
    pub(super) fn of(kept: KeptBy) -> (TaskId, Self) {
        (kept.task, Self { process: kept.process, audiences: kept.audiences })
    }

    /// Only what it was named for.
    fn may(&self, errand: Errand<'_>) -> Result<(), Refused> {
        match errand {
            Errand::Issue(audience) if !self.audiences.contains(audience) => Err(Refused::NotGranted),
            Errand::Issue(_) | Errand::Tend => Ok(()),
        }
    }
}

/// What somebody wants to do in a task.
#[derive(Clone, Copy, Debug)]
pub enum Errand<'a> {
    /// Ask for a credential for this audience.
    Issue(&'a str),
    /// Look at it, watch it, ask for more time for it, end it.
    Tend,
}

impl Workloads {
    /// The process in whose stead `caller` may do that, if it is the keeper of this task; `None` if it is not, and so
    /// speaks for itself.
    ///
    /// # Errors
    /// It is the keeper, and this is not for a keeper to do; or the task has ended.
    pub fn kept_by(
        &self,
        caller: &ProcessKey,
        task: TaskId,
        errand: Errand<'_>,
    ) -> Result<Option<Arc<Process>>, TaskError> {
        let state = self.0.lock();
        let Some(keeper) = state.tasks.keepers.get(&task).filter(|keeper| keeper.process == *caller) else {
            return Ok(None);
        };
        keeper.may(errand)?;
        let kept = state.tasks.tree.get(task).ok_or(Refused::NoSuchTask)?;
        if let Standing::Ended(ending) = kept.standing {
            return Err(Refused::Ended(ending).into());
        }
        state.process_of(&kept.seat).map(Some).ok_or_else(|| Refusal::Exited.into())
    }
}

impl Shared {
    /// Looks at the parent of whoever begins or joins.
    pub(super) fn look_at_keeper(
        &self,
        child: &Process,
        audiences: BTreeSet<String>,
    ) -> Result<Keeper, TaskError> {
        let parent = self.parts.attestors.launches().parent_of(child);
        let parent = parent.map_err(|error| {
            self.note_denied(child, "keeper", &error.to_string());
            match error {
                ParentError::Exited => TaskError::Workload(Refusal::Exited),
                _ => TaskError::Keeper,
            }
        })?;
        Ok(Keeper { process: parent.key(), audiences })
    }
}

#[cfg(test)]
mod tests {
    use mayfly_attestors::BootId;

    use super::*;

    #[test]
    fn a_keeper_asks_for_the_audiences_that_it_was_named_for_and_no_other() {
        let boot_id = BootId::from_bytes([1; 16]);
        let process = ProcessKey { boot_id, pid: 7, start_time: 7, pidfs_inode: None };
        let audiences = ["https://wiki.example.org".to_owned()].into();
        let keeper = Keeper { process, audiences };
        assert_eq!(keeper.may(Errand::Issue("https://wiki.example.org")), Ok(()));
        for other in ["https://vault.example.org", "https://wiki.example.org/", "https://wiki", ""] {
            assert_eq!(keeper.may(Errand::Issue(other)), Err(Refused::NotGranted), "{other}");
        }
        assert_eq!(keeper.may(Errand::Tend), Ok(()));
    }

    #[test]
    fn a_keeper_is_forgotten_with_its_task() {
        let boot_id = BootId::from_bytes([1; 16]);
        let process = ProcessKey { boot_id, pid: 7, start_time: 7, pidfs_inode: None };
        let mut tasks = super::super::Tasks::default();
        tasks.keepers.insert(TaskId::from_bytes([1; 16]), Keeper { process, audiences: BTreeSet::new() });
        tasks.forget_keepers();
        assert!(tasks.keepers.is_empty(), "no tree knows that task");
    }
}
