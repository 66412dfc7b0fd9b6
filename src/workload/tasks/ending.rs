//! How tasks end: by their holders, with them, with their time, with the identity that they rest on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::begin::has_identity;
use super::{TaskError, TaskView, caller};
use crate::audit::{self, Event, TaskStep};
use crate::id::TaskId;
use crate::lease::{Cause, WorkloadId};
use crate::ledger::{Reason, Row};
use crate::task::{Cascade, Ending, Refused, Standing, Toll};
use crate::workload::revoker::Initiator;
use crate::workload::{Admission, Shared, State, Workloads};

/// What an end did.
#[derive(Clone, Debug)]
pub struct TaskSummary {
    /// The task, as it has ended.
    pub view: TaskView,
    /// Tasks that ended, it included.
    pub tasks: usize,
    /// Credentials that are refused from now on.
    pub credentials: usize,
    /// From the order to the ledger.
    pub took: Duration,
}

impl Workloads {
    /// Ends the caller's task and everything below it. When it returns every credential of them is refused, and the
    /// ledger knows. `note`: the agent's own words, for the record.
    ///
    /// # Errors
    /// [`Refused`]: it is not the caller's to end, or has ended.
    pub async fn end_task(
        &self,
        id: TaskId,
        admission: &Admission,
        ending: Ending,
        note: &str,
    ) -> Result<TaskSummary, TaskError> {
        let (now, wall) = (self.0.parts.clock.monotonic(), self.0.parts.clock.wall());
        let (tasks, credentials, view) = {
            let mut state = self.0.lock();
            let task = state.tasks.tree.of_caller(id, &caller(admission))?;
            if let Standing::Ended(ending) = task.standing {
                return Err(Refused::Ended(ending).into());
            }
            let cascade = state.tasks.tree.end(id, ending, now, wall);
            let counts = (cascade.ended.len(), cascade.leases().count());
            let words = (!note.is_empty()).then(|| audit::EndWords::Agent(note.to_owned()));
            self.0.carry_out_saying(&mut state, &cascade, Initiator::Holder, now, None, words);
            let view = state.tasks.view(id, now, wall).ok_or(Refused::NoSuchTask)?;
            (counts.0, counts.1, view)
        };
        self.flush().await;
        self.0.is_written_down()?;
        let took = self.0.parts.clock.monotonic().saturating_duration_since(now);
        Ok(TaskSummary { view, tasks, credentials, took })
    }
}

impl Shared {
    /// Whoever held tasks is gone, or nobody can tell: they end first, so that the record says so of their credentials.
    pub(in crate::workload) fn end_tasks_of(
        self: &Arc<Self>,
        state: &mut State,
        id: WorkloadId,
        cause: Cause,
        seen: Instant,
    ) {
        let wall = self.parts.clock.wall();
        let ending = if cause == Cause::WatchLost { Ending::WatchLost } else { Ending::ProcessExit };
        let cascade = state.tasks.tree.end_holder(id, ending, seen, wall);
        self.carry_out(state, &cascade, Initiator::Kernel, seen, Some(id));
        // It founded these, and nobody can tell any more what it is.
        for task in state.tasks_resting_on(id) {
            let cascade = state.tasks.tree.end(task, ending, seen, wall);
            self.carry_out(state, &cascade, Initiator::Kernel, seen, Some(id));
        }
    }

    /// Ends the tasks whose time is over.
    pub(in crate::workload) fn end_overdue_tasks(self: &Arc<Self>, state: &mut State, now: Instant) {
        let wall = self.parts.clock.wall();
        self.settle_approvals(state, now);
        self.end_unanswered(state, now);
        state.tasks.forget_keepers();
        for cascade in state.tasks.tree.on_timeout(now, wall) {
            self.carry_out(state, &cascade, Initiator::Agent, now, None);
        }
    }

    /// Ends the tasks of whoever has lost, by what these actions are about, the identity that they were begun with.
    /// They end before what is lost with it is revoked, so that the record says so of their credentials.
    pub(in crate::workload) fn end_tasks_without_identity(
        self: &Arc<Self>,
        state: &mut State,
        about: &BTreeMap<WorkloadId, Initiator>,
        seen: Instant,
    ) {
        for (holder, initiator) in about {
            for id in state.tasks_resting_on(*holder) {
                // Whoever calls is not done with the holder.
                self.end_if_without_identity(state, id, *initiator, seen, Some(*holder));
            }
        }
    }

    /// Ends a task that rests on an identity which its holder, or founder, has lost.
    pub(in crate::workload) fn end_if_without_identity(
        self: &Arc<Self>,
        state: &mut State,
        id: TaskId,
        initiator: Initiator,
        seen: Instant,
        kept: Option<WorkloadId>,
    ) {
        let task = state.tasks.tree.get(id).filter(|task| task.ended_at.is_none());
        if task.is_none_or(|task| has_identity(state, &task.charter, &task.seat)) {
            return;
        }
        let cascade = state.tasks.tree.end(id, Ending::Policy, seen, self.parts.clock.wall());
        self.carry_out(state, &cascade, initiator, seen, kept);
    }

    /// Carries out an end: memory refuses everything before this returns, the rest is handed on. `kept` is a holder
    /// that whoever calls looks after: it is not forgotten here, though it may have become idle.
    pub(in crate::workload) fn carry_out(
        self: &Arc<Self>,
        state: &mut State,
        cascade: &Cascade,
        initiator: Initiator,
        seen: Instant,
        kept: Option<WorkloadId>,
    ) {
        self.carry_out_saying(state, cascade, initiator, seen, kept, None);
    }

    /// The same, with what whoever ended the topmost task had to say.
    pub(super) fn carry_out_saying(
        self: &Arc<Self>,
        state: &mut State,
        cascade: &Cascade,
        initiator: Initiator,
        seen: Instant,
        kept: Option<WorkloadId>,
        mut words: Option<audit::EndWords>,
    ) {
        if cascade.is_empty() {
            return;
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut rows: Vec<Row> = Vec::new();
        for lease in cascade.leases() {
            // The core only forgets it here: the reason is ours to name.
            drop(state.core.withdraw(lease));
            rows.extend(state.take_row(lease));
        }
        self.refuse_noting(rows, Reason::TaskEnded, initiator, seen, None, cascade.notes());
        let tolls = cascade.tolls(|id| state.tasks.tree.get(id)?.parent);
        let mut events = Vec::with_capacity(cascade.ended.len());
        for (ended, toll) in cascade.ended.iter().zip(tolls) {
            state.tasks.rates.forget(ended.task);
            state.tasks.suspended.forget(ended.task);
            self.void_approvals(state, ended.task);
            let Some(view) = state.tasks.view(ended.task, now, wall) else { continue };
            if state.tasks.watchers.follows(ended.task) {
                let took = self.parts.clock.monotonic().saturating_duration_since(seen);
                let Toll { descendants, credentials } = toll;
                let view = view.clone();
                let summary = TaskSummary { view, tasks: descendants + 1, credentials, took };
                state.tasks.watchers.tell_end(summary);
            }
            let founder = state.unfound(&view.task);
            for holder in std::iter::once(view.task.seat.holder).chain(founder) {
                if state.core.unhold(holder) && kept != Some(holder) {
                    self.forget_idle(state, holder);
                }
            }
            events.push(Event::Task {
                step: TaskStep::Ended,
                agent: view.agent(),
                task: view.facts(),
                decision: None,
                end: Some(audit::TaskEnd {
                    reason: ended.ending.as_str(),
                    initiator: initiator.named(),
                    credentials: count(toll.credentials),
                    descendants: count(toll.descendants),
                    latency: self.parts.clock.monotonic().saturating_duration_since(seen),
                    words: words.take(),
                }),
            });
        }
        self.record_after(events);
    }
}

pub(super) fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
