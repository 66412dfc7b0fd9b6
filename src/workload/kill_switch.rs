//! The kill switch: an operator freezes, and nothing is decided in favour of what is frozen until it is thawed. What goes
//! through here holds in memory before it is written down, and is written down before it is answered.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::revoker::Initiator;
use super::standstill::{Place, Stilled};
use super::{Workloads, lock};
use crate::audit::{self, Event};
use crate::ledger::Row;
use crate::policy::{Freeze, Freezes, Frozen, Thawed, load_freezes, store_freezes};
use crate::task::Scope;

/// What a freeze did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frost {
    /// Nothing that is known bears the name: what is known instead, for people.
    pub unknown: Option<String>,
    /// Live credentials that it is about: taken back if that was asked for.
    pub credentials: usize,
    /// Live tasks that it is about, with all below them.
    pub tasks: usize,
    /// Cgroups that hold those and stand still now.
    pub still: usize,
    /// Those that do not, and processes that hold a task alone: they cannot be made to.
    pub not_still: usize,
}

/// What a freeze is about.
#[derive(Debug, Default)]
pub(super) struct Concerned {
    pub(super) credentials: usize,
    tasks: usize,
    processes: usize,
    cgroups: BTreeSet<Place>,
}

impl Workloads {
    /// Everything that is frozen.
    pub fn freezes(&self) -> Freezes {
        self.policy().in_force().freezes().clone()
    }

    /// What an operator wants frozen, as it is kept: a target by its name in the catalogue, also where he says its audience.
    pub fn to_freeze(&self, what: Frozen) -> Frozen {
        Freezes::to_freeze(what, self.policy().in_force().catalogue())
    }

    /// What an operator wants thawed, as it is kept.
    pub fn to_thaw(&self, what: Frozen) -> Frozen {
        let set = self.policy().in_force();
        set.freezes().to_thaw(what, set.catalogue())
    }

    /// Freezes. `by` is the operator's process.
    ///
    /// # Errors
    /// It holds in memory, and could not be written down: a restart would thaw it.
    pub fn freeze(&self, what: &Frozen, freeze: Freeze, by: audit::Agent) -> io::Result<Frost> {
        let taken_by = freeze.revoke.then_some(Initiator::OperatorUid(by.uid));
        let by_pid = by.process.pid;
        let unknown = self.freeze_in_memory(what.clone(), freeze, by);
        self.0.tell_suspended();
        let Concerned { credentials, tasks, processes, cgroups } = self.concerned(what, taken_by);
        let written = self.write_freezes();
        let Stilled { still, not_still } = self.make_still(what, cgroups, by_pid);
        written?;
        Ok(Frost { unknown, credentials, tasks, still, not_still: processes + not_still })
    }

    /// From here on nothing is decided in favour of it, and the record says so. The answer: that nothing which is known
    /// bears the name.
    pub(super) fn freeze_in_memory(&self, what: Frozen, freeze: Freeze, by: audit::Agent) -> Option<String> {
        let _one_at_a_time = lock(&self.0.freezing);
        let (named, reason, revoke) = (what.clone(), freeze.reason.clone(), freeze.revoke);
        self.policy().change_freezes(|freezes| freezes.freeze(what, freeze));
        // Afterwards: who is in a hurry does not wait for that.
        let unknown = self.0.unknown(&named);
        let (by, is_unknown) = (Some(by), unknown.is_some());
        let event = Event::Freeze { by, what: named.to_string(), reason, revoke, unknown: is_unknown };
        self.0.parts.audit.note(vec![event]);
        unknown
    }

    /// Live tasks that a freeze names, with all below them.
    pub fn tasks_named(&self, what: &Frozen) -> usize {
        let state = self.0.lock();
        state.tasks.named(what).into_iter().map(|top| state.tasks.tree.subtree(top).len()).sum()
    }

    /// Counts what a freeze is about. What was given for tasks is taken back here, in whoever's name; the rest is when
    /// everybody is judged again.
    pub(super) fn concerned(&self, what: &Frozen, taken_by: Option<Initiator>) -> Concerned {
        let mut state = self.0.lock();
        let fetched = |row: &&Row| row.task.is_none() && concerns(what, &row.spiffe_id);
        let fetched = state.rows.values().filter(fetched).count();
        let tops = state.tasks.named(what);
        let all: Vec<_> = tops.iter().flat_map(|top| state.tasks.tree.subtree(*top)).collect();
        let (mut processes, mut cgroups) = (BTreeSet::new(), BTreeSet::new());
        for task in all.iter().filter_map(|id| state.tasks.tree.get(*id)) {
            match &task.seat.scope {
                Scope::Process => drop(processes.insert(task.seat.holder)),
                Scope::Cgroup { id, path } => drop(cgroups.insert((*id, path.clone()))),
            }
        }
        let given = match taken_by {
            Some(by) => self.0.take_back_frozen(&mut state, what, by),
            None => self.0.frozen_leases(&state, what).len(),
        };
        Concerned { credentials: fetched + given, tasks: all.len(), processes: processes.len(), cgroups }
    }

    /// Lets something go on.
    ///
    /// # Errors
    /// It could not be written down, and stays frozen.
    pub fn thaw(&self, what: &Frozen, reason: &str, by: audit::Agent) -> io::Result<Thawed> {
        let _one_at_a_time = lock(&self.0.freezing);
        let (before, uid, now) = (self.freezes(), by.uid, self.0.parts.clock.wall());
        let alone = self.0.settings.serves_one_user;
        let mut thawed = self.policy().change_freezes(|freezes| {
            if alone { freezes.thaw_alone(what) } else { freezes.thaw(what, uid, now) }
        });
        if thawed == Thawed::Done
            && let Err(error) = self.write_freezes_now()
        {
            self.policy().change_freezes(|freezes| *freezes = before);
            return Err(error);
        }
        // What is not frozen may stand still all the same, where an earlier thaw could not have it go on.
        if thawed != Thawed::NeedsAnother && self.let_go_on(what) {
            thawed = Thawed::Done;
        }
        if thawed != Thawed::Nothing {
            let (what, needs_another) = (what.to_string(), thawed == Thawed::NeedsAnother);
            let event = Event::Thaw { by: Some(by), what, reason: reason.to_owned(), needs_another };
            self.0.parts.audit.note(vec![event]);
            self.0.tell_suspended();
        }
        Ok(thawed)
    }

    /// Looks whether the flag file came or went, and records it.
    pub fn look_at_flag(&self) {
        let _one_at_a_time = lock(&self.0.freezing);
        let flagged = self.policy().in_force().freezes().is_flagged();
        let mut told = lock(&self.0.flag_told);
        if std::mem::replace(&mut *told, flagged) == flagged {
            return;
        }
        drop(told);
        // So that the next run knows what is on record already. The flag file is for when nothing else works.
        if let Err(error) = self.write_freezes_now() {
            tracing::error!(%error, "what is frozen cannot be written down");
        }
        let (what, reason) = (Frozen::All.to_string(), "the flag file".to_owned());
        let event = if flagged {
            tracing::error!("everything is frozen by the flag file");
            Event::Freeze { by: None, what, reason, revoke: false, unknown: false }
        } else {
            tracing::warn!("the flag file is gone: what is not frozen by order goes on");
            Event::Thaw { by: None, what, reason, needs_another: false }
        };
        self.0.parts.audit.note(vec![event]);
        self.0.tell_suspended();
    }

    /// A new catalogue may have said what else frozen targets stand for; that outlives a restart, too.
    pub(super) fn write_frozen_targets(&self) {
        if self.freezes().has_targets()
            && let Err(error) = self.write_freezes()
        {
            tracing::error!(%error, "what frozen targets stand for cannot be written down");
        }
    }

    /// Writes down what is frozen now, one at a time.
    pub(super) fn write_freezes(&self) -> io::Result<()> {
        let _one_at_a_time = lock(&self.0.freezing);
        self.write_freezes_now()
    }

    fn write_freezes_now(&self) -> io::Result<()> {
        let Some(path) = &self.0.settings.freezes else { return Ok(()) };
        let mut freezes = self.freezes();
        freezes.set_flag(*lock(&self.0.flag_told));
        store_freezes(path, &freezes)
    }
}

/// Whether the record of the run before says that the flag file froze everything.
pub(super) fn was_flagged(freezes: Option<&Path>) -> bool {
    // A file that cannot be read has kept the agent from starting.
    freezes.and_then(|path| load_freezes(path).ok()).is_some_and(|freezes| freezes.is_flagged())
}

/// Whether an identity's credentials of the Workload API are concerned.
fn concerns(what: &Frozen, spiffe_id: &str) -> bool {
    match what {
        Frozen::All => true,
        Frozen::Agent(id) => id == spiffe_id,
        Frozen::Task(_) | Frozen::Target(_) => false,
    }
}
