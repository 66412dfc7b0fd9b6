//! Which live tasks are frozen: they, an agent in their chain, a task above them, or everything. That follows from what is
//! frozen, and is worked out again whenever that has changed, so that each step of it is shown and recorded once. Nothing is
//! decided by what is kept here: every decision asks what is frozen itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::TaskView;
use crate::audit::{self, Event, TaskStep};
use crate::id::TaskId;
use crate::policy::{Freezes, PolicySet};
use crate::task::{Standing, Task};
use crate::workload::{Shared, State, lock};

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

impl TaskView {
    /// Whether one of these freezes is about the task, what is above it, or that target.
    pub(super) fn is_frozen_by(&self, freezes: &Freezes, target: Option<&str>) -> bool {
        let own = self.task.id.to_string();
        let tasks = std::iter::once(own.as_str()).chain(self.tasks_above.iter().map(String::as_str));
        freezes.touches(self.chain.iter().map(|id| id.as_str()), tasks, target)
    }
}

impl Shared {
    /// [`Self::tell_suspended`] in a call that is about something else, and has frozen nothing.
    pub(in crate::workload) fn tell_suspended_first(&self) {
        audit::trace::outside(|| self.tell_suspended());
    }

    /// Brings what is shown in line with what is frozen, and records what has changed.
    pub(in crate::workload) fn tell_suspended(&self) {
        let events = self.look_at_suspended(&mut self.lock());
        if !events.is_empty() {
            self.parts.audit.note(events);
        }
    }

    /// What the record of the run before says already is not said again: what was frozen by order, and by the flag file if
    /// it was seen. What has changed while nobody ran is.
    pub(super) fn take_as_told(&self, state: &mut State) {
        let mut freezes = self.parts.policy.in_force().freezes().clone();
        freezes.set_flag(*lock(&self.flag_told));
        drop(self.show_suspended(state, self.parts.policy.in_force_with(freezes)));
    }

    /// Brings what is shown in line with what is frozen; what there is to record of it.
    pub(super) fn look_at_suspended(&self, state: &mut State) -> Vec<Event> {
        self.show_suspended(state, self.parts.policy.in_force())
    }

    fn show_suspended(&self, state: &mut State, set: Arc<PolicySet>) -> Vec<Event> {
        if state.tasks.suspended.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, &set)) {
            return Vec::new();
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let frozen: BTreeSet<TaskId> = if set.freezes().is_empty() {
            BTreeSet::new()
        } else {
            let active = state.tasks.tree.all().into_iter().filter(|task| task.standing == Standing::Active);
            let view = |task: &Task| state.tasks.view(task.id, now, wall);
            let is_frozen =
                |task: &&Task| view(task).is_some_and(|view| view.is_frozen_by(set.freezes(), None));
            active.filter(is_frozen).map(|task| task.id).collect()
        };
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
