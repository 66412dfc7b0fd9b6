//! Which live tasks are frozen: they, an agent in their chain, a task above them, or everything. That follows from what is
//! frozen, and is worked out again whenever that has changed, so that each step of it is shown and recorded once. Nothing is
//! decided by what is kept here: every decision asks what is frozen itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::audit::{Event, TaskStep};
use crate::id::TaskId;
use crate::policy::PolicySet;
use crate::task::Standing;
use crate::workload::{Shared, State};

/// Tasks that are shown as suspended.
#[derive(Debug, Default)]
pub(super) struct Suspended {
    tasks: BTreeSet<TaskId>,
    /// By what they are.
    by: Option<Arc<PolicySet>>,
}

impl Suspended {
    pub(super) fn holds(&self, id: TaskId) -> bool {
        self.tasks.contains(&id)
    }

    /// One more goes on: the next look is at all, whether or not what is frozen has changed.
    pub(super) fn look_again(&mut self) {
        self.by = None;
    }

    /// It has ended.
    pub(super) fn forget(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }
}

impl Shared {
    /// Brings what is shown in line with what is frozen, and records what has changed.
    pub(in crate::workload) fn tell_suspended(&self) {
        let events = self.look_at_suspended(&mut self.lock());
        if !events.is_empty() {
            self.parts.audit.note(events);
        }
    }

    /// Brings what is shown in line with what is frozen; what there is to record of it.
    pub(super) fn look_at_suspended(&self, state: &mut State) -> Vec<Event> {
        let set = self.parts.policy.in_force();
        if state.tasks.suspended.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, &set)) {
            return Vec::new();
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let active = state.tasks.tree.all().into_iter().filter(|task| task.standing == Standing::Active);
        let active: Vec<TaskId> = active.map(|task| task.id).collect();
        let is_frozen = |id: &TaskId| {
            let view = state.tasks.view(*id, now, wall).filter(|_| !set.freezes().is_empty());
            view.is_some_and(|view| self.is_frozen(&view, None))
        };
        let frozen: BTreeSet<TaskId> = active.into_iter().filter(is_frozen).collect();
        let before =
            std::mem::replace(&mut state.tasks.suspended, Suspended { tasks: frozen.clone(), by: Some(set) });
        let step = |step: TaskStep, id: &TaskId| {
            let view = state.tasks.view(*id, now, wall)?;
            let (agent, task) = (view.agent(), view.facts());
            Some(Event::Task { step, agent, task, decision: None, end: None })
        };
        let suspended = frozen.difference(&before.tasks).filter_map(|id| step(TaskStep::Suspend, id));
        let resumed = before.tasks.difference(&frozen).filter_map(|id| step(TaskStep::Resume, id));
        let events: Vec<Event> = suspended.chain(resumed).collect();
        if !events.is_empty() {
            state.tasks.watchers.tell_all();
        }
        events
    }
}
