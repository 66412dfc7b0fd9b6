//! What a task is held by: a cgroup that only root can enter and leave, where whoever begins has one to itself; else the
//! process that begins (decision 0078).

use std::sync::Arc;
use std::time::Instant;

use mayfly_attestors::{CgroupScope, Process, ScopeError};

use super::TaskError;
use crate::audit;
use crate::task::{Charter, Refused, Scope, Seat, Tree};
use crate::workload::scopes::Watchable;
use crate::workload::state::State;
use crate::workload::{Admission, Refusal, Shared};

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ScopeWish {
    /// The cgroup, where it can be had.
    #[default]
    Any,
    /// The cgroup, or nothing.
    Cgroup,
    /// The process alone.
    Process,
}

/// What is found of the cgroup of whoever begins.
#[derive(Debug)]
enum Place<S> {
    /// Only root enters and leaves it, and nobody else is in it.
    Own(S),
    /// Others are in it, or it cannot be told who is.
    Shared,
    /// There is none that only root enters and leaves: why.
    Nowhere(String),
}

/// What a task is to be held by.
#[derive(Debug)]
pub(super) struct Chosen {
    /// `None`: the process.
    cgroup: Option<Watchable>,
    /// The cgroup that the process is in, whatever holds the task.
    within: Within,
    /// Nobody else could act as the task, when this was looked at.
    pub(super) is_isolated: bool,
}

/// In which cgroup a process is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Within {
    /// In none that could hold a task.
    Nowhere,
    One(u64),
    /// It cannot be told (before Linux 6.13, where files must be opened for it).
    Unknown,
}

impl Within {
    fn of(found: &Result<Option<u64>, ScopeError>) -> Self {
        match found {
            Ok(None) => Self::Nowhere,
            Ok(Some(id)) => Self::One(*id),
            Err(_) => Self::Unknown,
        }
    }

    /// Whether a task that one process holds may sit there, beside those of the tree.
    fn is_open(self, tree: &Tree) -> bool {
        match self {
            Self::Nowhere => true,
            Self::One(cgroup) => !tree.is_reserved(cgroup),
            Self::Unknown => !tree.has_cgroups(),
        }
    }

    /// What the tree is told of it.
    fn beside(self) -> Option<Option<u64>> {
        match self {
            Self::Nowhere => None,
            Self::One(cgroup) => Some(Some(cgroup)),
            Self::Unknown => Some(None),
        }
    }
}

/// The scope, or why it cannot be had.
fn choose<S>(wish: ScopeWish, place: Place<S>) -> Result<Option<S>, String> {
    match (wish, place) {
        (ScopeWish::Process, _) | (ScopeWish::Any, Place::Shared | Place::Nowhere(_)) => Ok(None),
        (ScopeWish::Any | ScopeWish::Cgroup, Place::Own(scope)) => Ok(Some(scope)),
        (ScopeWish::Cgroup, Place::Shared) => {
            Err("others than the caller and its children are in its cgroup".to_owned())
        }
        (ScopeWish::Cgroup, Place::Nowhere(why)) => Err(why),
    }
}

fn place(
    found: Result<CgroupScope, ScopeError>,
    process: &Process,
    besides: Option<u32>,
) -> Place<CgroupScope> {
    match found {
        Ok(scope) => match scope.belongs_to(process, besides) {
            Ok(true) => Place::Own(scope),
            Ok(false) | Err(_) => Place::Shared,
        },
        Err(error) => Place::Nowhere(error.to_string()),
    }
}

impl Shared {
    /// Looks at the cgroup of whoever begins or joins. `has_keeper`: the caller's parent keeps credentials, and does no
    /// harm in there. The caller says how much there is to look at: no thread that serves others waits for it.
    pub(super) async fn choose_scope(
        self: &Arc<Self>,
        admission: &Admission,
        wish: ScopeWish,
        has_keeper: bool,
    ) -> Result<Chosen, TaskError> {
        let (shared, admission) = (Arc::clone(self), admission.clone());
        let trace = audit::trace::current();
        let looked = tokio::task::spawn_blocking(move || {
            mayfly_attestors::failpoint::hit("task.look_at_scope");
            audit::trace::within(trace, || shared.choose_scope_now(&admission, wish, has_keeper))
        });
        // It only fails when the agent stops.
        looked.await.unwrap_or_else(|_stopping| Err(Refusal::WatchLost.into()))
    }

    fn choose_scope_now(
        &self,
        admission: &Admission,
        wish: ScopeWish,
        has_keeper: bool,
    ) -> Result<Chosen, TaskError> {
        let (process, scopes) = (admission.process(), self.parts.attestors.scopes());
        let within = Within::of(&scopes.id_of(process));
        let place = match wish {
            ScopeWish::Process => Place::Shared,
            ScopeWish::Any | ScopeWish::Cgroup => {
                // Whether the parent is a keeper at all is looked at when the seat is taken.
                let keeper = has_keeper.then(|| self.parts.attestors.launches().parent_of(process).ok());
                place(scopes.of(process), process, keeper.flatten().map(|parent| parent.pid()))
            }
        };
        let cgroup = choose(wish, place).map_err(|why| {
            tracing::warn!(pid = process.pid(), why, "a task was to be held by a cgroup, and is not begun");
            self.note_denied(process, "scope", &why);
            Refused::NotIsolated
        })?;
        let watchable = |scope: CgroupScope| scope.events().map(|events| (scope, events));
        let cgroup = cgroup.map(watchable).transpose().map_err(|error| {
            tracing::error!(%error, pid = process.pid(), "a cgroup cannot be watched: it holds no task");
            Refusal::WatchLost
        })?;
        let is_free = |(scope, _): &Watchable| self.lock().tasks.tree.is_free(scope.id());
        let is_isolated = cgroup.as_ref().is_some_and(is_free);
        Ok(Chosen { cgroup, within, is_isolated })
    }

    /// The seat in the chosen scope, for a process that has the charter's identity. What was looked at may be overtaken:
    /// who was to be alone is.
    pub(super) fn take_seat(
        &self,
        state: &mut State,
        own: Seat,
        chosen: &Chosen,
        charter: &Charter,
        now: Instant,
    ) -> Result<Seat, TaskError> {
        let tree = &state.tasks.tree;
        let Some(watchable) = &chosen.cgroup else {
            return if chosen.within.is_open(tree) { Ok(own) } else { Err(Refused::NotIsolated.into()) };
        };
        let (scope, _) = watchable;
        if chosen.is_isolated && !tree.is_free(scope.id()) {
            return Err(Refused::NotIsolated.into());
        }
        let holder = state.stand_in(&self.reaper, watchable, &charter.entry, now)?;
        if !state.held(holder).contains(&charter.entry) {
            self.forget_idle(state, holder);
            return Err(Refusal::NotEntitled.into());
        }
        let scope = Scope::Cgroup { id: scope.id(), path: scope.path().to_owned() };
        Ok(Seat { holder, scope, ..own })
    }
}

impl Chosen {
    /// The cgroup beside which a task sits that is held by one process, as [`Tree::note_beside`] takes it.
    pub(super) fn beside(&self) -> Option<Option<u64>> {
        if self.cgroup.is_none() { self.within.beside() } else { None }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mayfly_attestors::{BootId, ProcessKey};

    use super::*;
    use crate::clock::{Clock as _, SystemClock, from_unix_seconds};
    use crate::id::{EntryId, SpiffeId, TaskId};
    use crate::lease::WorkloadId;
    use crate::task::{Bounds, Grants, Limits, NewTask};

    pub(in crate::workload::tasks) fn process(pid: u32) -> ProcessKey {
        ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid, start_time: 1, pidfs_inode: None }
    }

    /// With one task, held by this cgroup if by any, and begun by process 1.
    pub(in crate::workload::tasks) fn tree(cgroup: Option<u64>, require_isolated: bool) -> Tree {
        let mut tree = Tree::new(Bounds::default());
        let charter = Charter {
            spiffe_id: SpiffeId::parse(b"spiffe://example.org/a").unwrap(),
            entry: EntryId::new("a"),
            purpose: String::new(),
            template: None,
            params: [].into(),
            grants: Grants::default(),
            limits: Limits::default(),
            require_isolated,
            user: None,
            credential_ttl: None,
            evaluation: String::new(),
            policy_version: String::new(),
        };
        let scope = cgroup.map_or(Scope::Process, |id| Scope::Cgroup { id, path: format!("/{id}") });
        let seat = Seat { holder: WorkloadId(1), process: process(1), uid: 1, scope };
        let (id, begun_at) = (TaskId::from_bytes([1; 16]), from_unix_seconds(1));
        let new = NewTask { id, charter, seat, life: None, pending: false, begun_at, key: None };
        tree.begin(new, SystemClock.monotonic()).unwrap();
        tree
    }

    /// Before Linux 6.13 files are opened to tell where a process is: want of a descriptor must not seat it in a cgroup
    /// that somebody is to have alone.
    #[test]
    fn a_task_may_not_sit_where_it_cannot_be_told_where_it_sits() {
        let unknown = || Within::of(&Err(ScopeError::Descriptors));
        let (one, nowhere) = (|id| Within::of(&Ok(Some(id))), || Within::of(&Ok(None)));
        for (tree, within, open) in [
            (tree(Some(7), true), one(7), false),
            (tree(Some(7), true), one(8), true),
            (tree(Some(7), true), unknown(), false),
            (tree(Some(7), true), nowhere(), true),
            (tree(Some(7), false), one(7), true),
            (tree(Some(7), false), unknown(), false),
            (tree(None, false), unknown(), true),
        ] {
            assert_eq!(within.is_open(&tree), open, "{within:?}");
        }
        assert_eq!([unknown(), one(7), nowhere()].map(Within::beside), [Some(None), Some(Some(7)), None]);
    }

    #[test]
    fn a_cgroup_of_ones_own_is_taken_unless_it_is_not_wanted_and_nothing_else_is_taken_for_one() {
        let nowhere = || Place::Nowhere("why".to_owned());
        for (wish, place, scope) in [
            (ScopeWish::Any, Place::Own(7), Ok(Some(7))),
            (ScopeWish::Any, Place::Shared, Ok(None)),
            (ScopeWish::Any, nowhere(), Ok(None)),
            (ScopeWish::Cgroup, Place::Own(7), Ok(Some(7))),
            (ScopeWish::Cgroup, Place::Shared, Err(())),
            (ScopeWish::Cgroup, nowhere(), Err(())),
            (ScopeWish::Process, Place::Own(7), Ok(None)),
            (ScopeWish::Process, Place::Shared, Ok(None)),
            (ScopeWish::Process, nowhere(), Ok(None)),
        ] {
            let text = format!("{wish:?} {place:?}");
            assert_eq!(choose(wish, place).map_err(drop), scope, "{text}");
        }
        assert_eq!(choose(ScopeWish::Cgroup, Place::<u8>::Nowhere("why".to_owned())), Err("why".to_owned()));
    }
}
