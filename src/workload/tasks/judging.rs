//! Another policy set is in force, or the date of a permit has passed: what goes on is asked about once more as if it began
//! now. What policy would clearly not let begin any more ends (decision 82). Everything that is less than a clear no ends
//! nothing: a question that could not be answered, a yes that people can give, a freeze.

use std::sync::Arc;
use std::time::SystemTime;

use super::approval_use::Approved;
use super::{TaskError, TaskView};
use crate::audit::{Event, PolicyDecision};
use crate::id::TaskId;
use crate::policy::{Action, Decision, Freezes, PolicySet, PolicyVersion, Reason, Verdict, WorkloadFacts};
use crate::task::approval::{ApprovalState, Subject};
use crate::task::{Ending, Refused, Seat, Standing};
use crate::workload::revoker::Initiator;
use crate::workload::{Refusal, Shared};

/// By which set tasks were judged last, and how long that holds. Pure: time is passed in.
#[derive(Debug, Default)]
pub(in crate::workload) struct Judged {
    /// `Some(None)`: by none at all.
    by: Option<Option<PolicyVersion>>,
    until: Option<SystemTime>,
}

impl Judged {
    /// Whether they have to be judged now. A freeze makes no other set.
    pub(in crate::workload) fn is_due(&mut self, set: &PolicySet, now: SystemTime) -> bool {
        self.is_due_by(set.version(), set.next_end(now), now)
    }

    fn is_due_by(&mut self, by: Option<PolicyVersion>, until: Option<SystemTime>, now: SystemTime) -> bool {
        let holds = self.by == Some(by) && self.until.is_none_or(|until| now < until);
        (self.by, self.until) = (Some(by), until);
        !holds
    }
}

/// Whether that is a no which says that a task must not be there.
fn is_clear_no(verdict: Verdict, reason: Reason) -> bool {
    use Reason::{Expired, Forbidden, NoPermit, NoPolicy, TemplateNotAllowed, UnknownTemplate};
    verdict == Verdict::Deny
        && matches!(reason, Expired | Forbidden | NoPermit | NoPolicy | TemplateNotAllowed | UnknownTemplate)
}

impl Shared {
    /// Judges all that goes on, some at a time and in nobody's way. A newer set ends this: it is judged by itself.
    pub(in crate::workload) fn judge_tasks_again(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        self.spawn(async move {
            let set = shared.parts.policy.in_force_with(Freezes::default());
            let all: Vec<TaskId> = shared.lock().tasks.tree.all().into_iter().map(|task| task.id).collect();
            for some in all.chunks(AT_ONCE) {
                if shared.parts.policy.in_force().version() != set.version() {
                    return;
                }
                some.iter().for_each(|id| shared.judge(&set, *id));
                tokio::task::yield_now().await;
            }
        });
    }

    /// What was decided by a set that another has replaced meanwhile may have been missed by those who judged by that one.
    pub(super) fn judge_if_overtaken(self: &Arc<Self>, task: &TaskView) {
        let now = self.parts.policy.in_force().version().map(|version| version.to_string());
        if now.unwrap_or_default() != task.task.charter.policy_version {
            let (shared, id) = (Arc::clone(self), task.task.id);
            self.spawn(async move {
                shared.judge(&shared.parts.policy.in_force_with(Freezes::default()), id);
            });
        }
    }

    fn judge(self: &Arc<Self>, set: &Arc<PolicySet>, id: TaskId) {
        let Some(view) = self.active(id) else { return };
        match self.decide_begin_again(set, &view) {
            Ok(Some((decision, recorded))) if is_clear_no(decision.verdict, decision.reason) => {
                self.end_judged(set, &view, recorded);
            }
            Ok(_) => {}
            // Whoever has lost what the task rests on loses it elsewhere.
            Err(why) => tracing::debug!(task = %id, %why, "a task could not be judged again"),
        }
    }

    fn active(&self, id: TaskId) -> Option<TaskView> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let view = self.lock().tasks.view(id, now, wall)?;
        (view.task.standing == Standing::Active).then_some(view)
    }

    /// As for a renewal that asks for no more time. `None`: too little is known of the process just now.
    fn decide_begin_again(
        &self,
        set: &Arc<PolicySet>,
        view: &TaskView,
    ) -> Result<Option<(Decision, PolicyDecision)>, TaskError> {
        let asked = match view.task.parent {
            Some(parent) => self.active(parent).ok_or(Refused::NoSuchTask)?.task.seat,
            None => view.task.seat.clone(),
        };
        if set.is_about_selectors() && !self.is_wholly_known(&asked) {
            return Ok(None);
        }
        let (seat, charter) = (&view.task.seat, &view.task.charter);
        let who = self.facts_of_seat(seat, &charter.entry).ok_or(Refusal::NotEntitled)?;
        let left = view.task.deadline.saturating_duration_since(self.parts.clock.monotonic());
        let given = self.given_at_begin(set, view);
        // Who begins has just been attested, and has nothing below.
        let who = WorkloadFacts { attested_at: self.parts.clock.wall(), ..who };
        let mut began = view.clone().when_it_began();
        began.task.children.clear();
        let to_be = self.renewed(set, &began, who, left);
        self.decide_renewal(set, &began, &to_be, given.as_ref(), true).map(Some)
    }

    /// Whether every attestor has said what it knows of whoever the seat rests on. One that is silent says nothing, and
    /// that must not count as a no.
    fn is_wholly_known(&self, seat: &Seat) -> bool {
        self.lock().attestation_of(seat).is_some_and(|attestation| attestation.is_complete())
    }

    /// What people said when the task was to begin, or was offered, still stands: nobody is asked again for what goes on.
    fn given_at_begin(&self, set: &PolicySet, view: &TaskView) -> Option<Approved> {
        let state = self.lock();
        let desk = &state.tasks.approvals;
        let of_begin = |subject: &Subject| subject.action == Action::Begin && subject.task == view.task.id;
        let approval = match state.tasks.tree.taken_up(view.task.id) {
            Some(offer) => desk.book.get(desk.of_offer(offer.id)?),
            None => {
                let mut all = desk.askers.keys().filter_map(|id| desk.book.get(*id));
                all.find(|approval| of_begin(&approval.subject))
            }
        };
        let approval = approval.filter(|approval| approval.state == ApprovalState::Used)?;
        let mut given = Approved::of(approval, set)?;
        given.facts.until = given.facts.until.max(view.deadline);
        Some(given)
    }

    fn end_judged(self: &Arc<Self>, set: &PolicySet, view: &TaskView, decision: PolicyDecision) {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut state = self.lock();
        // Another set has come meanwhile, and may say otherwise.
        if self.parts.policy.in_force().version() != set.version() {
            return;
        }
        let cascade = state.tasks.tree.end(view.task.id, Ending::Policy, now, wall);
        if cascade.is_empty() {
            return;
        }
        let (agent, task, decision) = (view.agent(), view.facts(), Box::new(decision));
        self.parts.audit.note(vec![Event::Decided { agent, task, decision }]);
        self.carry_out(&mut state, &cascade, Initiator::Policy, now, None);
    }
}

/// How many are judged before others have their turn.
const AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Judged again for each other set and each date that has passed, and for nothing else.
        #[test]
        fn tasks_are_judged_when_the_set_or_what_it_says_has_changed(
            steps in proptest::collection::vec((0..3_u8, 0..100_u64, 1..60_u64), 1..40)
        ) {
            let (mut judged, mut now, mut last) = (Judged::default(), 0, None::<(Option<u8>, u64)>);
            for (set, ahead, passed) in steps {
                now += passed;
                let by = (set > 0).then_some(set);
                let until = now + ahead;
                let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
                let version = by.map(|n| PolicyVersion::from_bytes([n; 32]));
                let is_due = judged.is_due_by(version, Some(at(until)), at(now));
                prop_assert_eq!(is_due, last.is_none_or(|(before, end)| before != by || now >= end));
                last = Some((by, until));
            }
        }
    }

    #[test]
    fn only_a_clear_no_ends_anything() {
        let all = [
            (Reason::NoPolicy, true),
            (Reason::NoPermit, true),
            (Reason::Expired, true),
            (Reason::Forbidden, true),
            (Reason::UnknownTemplate, true),
            (Reason::TemplateNotAllowed, true),
            (Reason::Allowed, false),
            (Reason::ApprovalRequired, false),
            (Reason::UnknownTarget, false),
            (Reason::EvaluationError, false),
            (Reason::Obligations, false),
            (Reason::Frozen, false),
            (Reason::Malformed, false),
        ];
        for (reason, ends) in all {
            assert_eq!(is_clear_no(Verdict::Deny, reason), ends, "{reason:?}");
            assert!(!is_clear_no(Verdict::Requestable, reason) && !is_clear_no(Verdict::Allow, reason));
        }
    }
}
