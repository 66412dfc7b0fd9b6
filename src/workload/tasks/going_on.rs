//! What people have allowed goes on: on record first, and only if nothing has overtaken it.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;

use super::TaskView;
use super::approvals::event;
use super::begin::recorded;
use super::pending::Judged;
use crate::audit::{ApprovalStep, Event, TaskStep};
use crate::id::{DelegationId, TaskId};
use crate::policy::Phase;
use crate::task::Standing;
use crate::task::approval::{Approval, ApprovalState};
use crate::workload::revoker::Initiator;
use crate::workload::{Shared, State};

/// What became of something that people have allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum GoesOn {
    Yes,
    /// It was frozen after it was judged: it waits on, allowed.
    Frozen,
    /// It cannot any more.
    No,
}

impl Shared {
    /// On record first, then in memory; whether it goes on. What ends meanwhile is on record as ended after it went on,
    /// never before; what cannot go on any more is not on record at all, or as void. So with a freeze: one that came before
    /// it was put on record is found there, and one that came later suspends it like whatever else goes on.
    pub(super) async fn go_on(
        self: &Arc<Self>,
        approval: &Approval,
        offer: Option<DelegationId>,
        view: &TaskView,
        judged: Judged,
        until: Instant,
    ) -> GoesOn {
        let Judged { decision, cut } = judged;
        let subject = &approval.subject;
        let used = event(ApprovalStep::Used, view.agent(), approval, None);
        let step = if offer.is_some() { TaskStep::Delegate } else { TaskStep::Resume };
        let recorded = Some(Box::new(recorded(&decision, Phase::Begin, subject.action, &subject.target)));
        let mut active = view.clone();
        active.task.standing = Standing::Active;
        let (agent, task) = (view.agent(), active.facts());
        let on = Event::Task { step, agent, task, decision: recorded, end: None };
        mayfly_attestors::failpoint::hit("task.before_go_on");
        match self.record_in_turn(approval, offer, vec![used, on]).await {
            GoesOn::Yes => {}
            other => return other,
        }
        mayfly_attestors::failpoint::hit("task.before_spend");
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut state = self.lock();
        self.settle_approvals(&mut state, now);
        let spent = state.tasks.approvals.book.spend(approval.id, subject, now).is_ok();
        let goes_on = spent
            && match offer {
                Some(offer) => state.tasks.tree.allow_offer(offer, until, now),
                None => state.tasks.tree.activate(subject.task, now),
            };
        if let (true, None, Some(most)) = (goes_on, offer, decision.obligations.max_ttl) {
            // Policy may give less than when people were asked; an offer is decided again when it is taken up.
            state.tasks.tree.curtail(subject.task, view.task.begun + most);
        }
        if !goes_on {
            // It was overtaken: the record says that it was used, and that is not so.
            let is_said = state.tasks.approvals.book.get(approval.id);
            let is_said = is_said.is_some_and(|one| one.state == ApprovalState::Cancelled);
            let void = event(ApprovalStep::Cancelled, view.agent(), approval, None);
            self.parts.audit.note(if is_said { Vec::new() } else { vec![void] });
            return GoesOn::No;
        }
        if let Some(cut) = cut {
            let cascade = state.tasks.tree.narrow(subject.task, &cut, now, wall);
            self.carry_out(&mut state, &cascade, Initiator::Policy, now, None);
        }
        // Before anything that is given out for it: until this is on the disk, a restart ends it as one that waits.
        let tree = &state.tasks.tree;
        self.parts.ledger.note_soon(match offer {
            Some(offer) => tree.notes_of_offer(offer, &self.epoch),
            None => tree.notes_of_task(subject.task, &self.epoch),
        });
        state.tasks.tell_approval(subject.task);
        // Whoever froze meanwhile did not find it among those that go on.
        state.tasks.suspended.look_again();
        let suspended = self.look_at_suspended(&mut state);
        self.parts.audit.note(suspended);
        self.timer.notify_one();
        GoesOn::Yes
    }

    /// Puts on record that it goes on, if it can; an end that comes now is recorded behind that.
    async fn record_in_turn(
        &self,
        approval: &Approval,
        offer: Option<DelegationId>,
        events: Vec<Event>,
    ) -> GoesOn {
        let mut recording = Box::pin(self.parts.audit.record(events));
        let at_once = {
            let (now, mut state) = (self.parts.clock.monotonic(), self.lock());
            self.settle_approvals(&mut state, now);
            if !state.tasks.can_go_on(approval, offer, now) {
                return GoesOn::No;
            }
            // Whoever freezes has frozen before he looks for tasks under this lock.
            if self.is_frozen_now(&state, approval.subject.task, offer) {
                return GoesOn::Frozen;
            }
            // It is in the queue after this, while nothing can end.
            recording.as_mut().now_or_never()
        };
        let recorded = match at_once {
            Some(recorded) => recorded,
            None => recording.await,
        };
        match recorded {
            Ok(()) => GoesOn::Yes,
            Err(error) => {
                tracing::error!(approval = %approval.id, %error, "what people allowed cannot be recorded");
                GoesOn::No
            }
        }
    }

    /// Whether the task that waits, or whoever is to take up the offer, is frozen as of now.
    fn is_frozen_now(&self, state: &State, task: TaskId, offer: Option<DelegationId>) -> bool {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let to =
            offer.and_then(|offer| state.tasks.tree.offered(offer)).map(|offer| &offer.charter.spiffe_id);
        to.is_some_and(|to| self.is_frozen_for(state, to, offer))
            || state.tasks.view(task, now, wall).is_some_and(|view| self.is_frozen(&view, None))
    }
}
