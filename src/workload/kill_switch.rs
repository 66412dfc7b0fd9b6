//! The kill switch: an operator freezes, and nothing is decided in favour of what is frozen until it is thawed. What goes
//! through here holds in memory before it is written down, and is written down before it is answered; a thaw the other way
//! round.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::revoker::Initiator;
use super::standstill::{Place, Stilled};
use super::{Workloads, lock};
use crate::audit::{self, Event};
use crate::ledger::Row;
use crate::policy::{Freeze, Freezes, Frozen, load_freezes};
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
    pub async fn freeze(&self, what: &Frozen, freeze: Freeze, by: audit::Agent) -> io::Result<Frost> {
        let taken_by = freeze.revoke.then_some(Initiator::OperatorUid(by.uid));
        let by_pid = by.process.pid;
        let unknown = self.freeze_in_memory(what.clone(), freeze, by);
        self.0.tell_suspended();
        let Concerned { credentials, tasks, processes, cgroups } = self.concerned(what, taken_by);
        let what = what.clone();
        let (written, stilled) = self
            .at_disk(move |workloads| {
                let written = workloads.write_freezes();
                (written, workloads.make_still(&what, &cgroups, by_pid))
            })
            .await?;
        written?;
        if taken_by.is_some() {
            self.settle().await.map_err(io::Error::other)?;
        }
        let Stilled { still, not_still } = stilled;
        Ok(Frost { unknown, credentials, tasks, still, not_still: processes + not_still })
    }

    /// From here on nothing is decided in favour of it, and the record says so. The answer: that nothing which is known
    /// bears the name.
    pub(super) fn freeze_in_memory(&self, what: Frozen, freeze: Freeze, by: audit::Agent) -> Option<String> {
        let mut freezing = lock(&self.0.freezing);
        freezing.thawing.take_if(|thawing| *thawing == what);
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

    /// Looks whether the flag file came or went, and records it. So that the next run knows what is on record, that is
    /// written down first. The flag file is for when nothing else works: it freezes whether or not that can be done.
    pub async fn look_at_flag(&self) {
        let Some(event) = self.flag_news() else { return };
        let record = |workloads: &Self| {
            let written = workloads.write_freezes();
            workloads.0.parts.audit.note(vec![event]);
            workloads.0.tell_suspended();
            written
        };
        if let Err(error) = self.at_disk(record).await.and_then(|written| written) {
            tracing::error!(%error, "what is frozen cannot be written down");
        }
    }

    fn flag_news(&self) -> Option<Event> {
        let _one_at_a_time = lock(&self.0.freezing);
        let flagged = self.policy().in_force().freezes().is_flagged();
        if std::mem::replace(&mut *lock(&self.0.flag_told), flagged) == flagged {
            return None;
        }
        let (what, reason) = (Frozen::All.to_string(), "the flag file".to_owned());
        let event = if flagged {
            tracing::error!("everything is frozen by the flag file");
            Event::Freeze { by: None, what, reason, revoke: false, unknown: false }
        } else {
            tracing::warn!("the flag file is gone: what is not frozen by order goes on");
            Event::Thaw { by: None, what, reason, needs_another: false }
        };
        Some(event)
    }

    /// A new catalogue may have said what else frozen targets stand for; that outlives a restart, too.
    pub(super) fn write_frozen_targets(&self) {
        if !self.freezes().has_targets() {
            return;
        }
        let workloads = self.clone();
        self.0.spawn(async move {
            if let Err(error) = workloads.at_disk(Self::write_freezes).await.and_then(|written| written) {
                tracing::error!(%error, "what frozen targets stand for cannot be written down");
            }
        });
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
