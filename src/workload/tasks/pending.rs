//! Tasks and offers that wait for people. What policy would allow with somebody's approval is there already, and nothing
//! can be done in it; a yes is held to policy once more, by the set and the catalogue of that moment, and then it goes
//! on. A no, no answer, or a policy that has changed its mind is its end (decision 0079).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::approval_use::Approved;
use super::approvals::{Asked, Asker};
use super::begin::{Newcomer, recorded};
use super::going_on::GoesOn;
use super::keeping::Written;
use super::piece::Piece;
use super::users::user_of;
use super::{OfferView, TaskError, TaskView, Tasks};
use crate::audit::{Event, TaskStep};
use crate::id::{ApprovalId, DelegationId};
use crate::policy::{Action, ApprovalNeeded, Decision, Engine, Object, Phase, PolicySet, Reason};
use crate::task::approval::{Approval, ApprovalError, ApprovalState, Jury, Subject};
use crate::task::journal::forget_offer;
use crate::task::{Ending, Grants, Key, Refused, Standing};
use crate::workload::revoker::Initiator;
use crate::workload::{Admission, Refusal, Shared, State};

/// What waits, as policy sees it now that people have allowed it.
pub(super) struct Judged {
    pub(super) decision: Decision,
    /// Of a task: what is left of it.
    pub(super) cut: Option<Grants>,
}

impl Shared {
    /// Seats a task that waits, and asks people about it. Neither is there without the other, nor without a record.
    pub(super) async fn take_in_pending(
        self: &Arc<Self>,
        admission: &Admission,
        newcomer: Newcomer,
        decision: &Decision,
        needed: &ApprovalNeeded,
    ) -> Result<TaskView, TaskError> {
        let (id, key) = (newcomer.id, newcomer.key.clone());
        let agent = newcomer.charter.spiffe_id.to_string();
        {
            let (now, mut state) = (self.parts.clock.monotonic(), self.lock());
            self.settle_approvals(&mut state, now);
            state.tasks.approvals.book.has_room_for(&agent, now)?;
        }
        mayfly_attestors::failpoint::hit("task.before_seat");
        let (view, written) = self.seat(admission, newcomer)?;
        self.look_if_unseen(admission.id());
        if view.task.id != id {
            // Another request with the same key was faster.
            return self.again(key.as_ref()).await;
        }
        let piece = Piece { charter: &view.task.charter, life: view.life(), task: id, offer: None };
        let asked = self.ask_about(admission, &view, &piece, decision, needed);
        let (_, event) = asked.inspect_err(|_| self.end_unrecorded(id))?;
        let recorded = Some(Box::new(recorded(decision, Phase::Begin, Action::Begin, &piece.target())));
        let (agent, task) = (view.caller(admission), view.facts());
        let begun = Event::Task { step: TaskStep::Begin, agent, task, decision: recorded, end: None };
        if let Err(refusal) = self.written_and_recorded(written, vec![begun, event]).await {
            self.end_unrecorded(id);
            return Err(refusal.into());
        }
        self.tell_approval(&view);
        Ok(view)
    }

    /// Asks people about an offer that waits. Without a record there is none.
    pub(super) async fn ask_about_offer(
        self: &Arc<Self>,
        admission: &Admission,
        parent: &TaskView,
        (offered, written): (OfferView, Written),
        decision: &Decision,
        needed: &ApprovalNeeded,
    ) -> Result<OfferView, TaskError> {
        let (id, charter) = (offered.offer.id, &offered.offer.charter);
        let left = parent.task.deadline.saturating_duration_since(self.parts.clock.monotonic());
        let life = offered.offer.life.map_or(left, |life| life.min(left));
        let piece = Piece { charter, life, task: parent.task.id, offer: Some(id) };
        let asked = self.ask_about(admission, parent, &piece, decision, needed);
        let (asked, event) = asked.inspect_err(|_| self.withdraw_offer(id))?;
        let recorded = Box::new(recorded(decision, Phase::Begin, Action::Delegate, &piece.target()));
        let (agent, task) = (parent.caller(admission), parent.facts());
        // It is on record as handed on when people have allowed it, once.
        let decided = Event::Decided { agent, task, decision: recorded };
        if let Err(refusal) = self.written_and_recorded(written, vec![decided, event]).await {
            self.lock().tasks.approvals.book.cancel(asked.id);
            self.withdraw_offer(id);
            return Err(refusal.into());
        }
        self.tell_approval(parent);
        Ok(OfferView { approval: Some(asked.id), ..offered })
    }

    /// An offer of which no record could be made is none; nor is what somebody has made of it meanwhile, quick as people
    /// may have been with their answer.
    pub(super) fn withdraw_offer(self: &Arc<Self>, id: DelegationId) {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut state = self.lock();
        self.parts.ledger.note_soon(vec![forget_offer(id)]);
        let cascade = state.tasks.tree.withdraw(id, now, wall);
        self.carry_out(&mut state, &cascade, Initiator::Agent, now, None);
    }

    fn tell_approval(&self, view: &TaskView) {
        self.lock().tasks.tell_approval(view.task.id);
        self.timer.notify_one();
    }

    /// Puts the question on the desk.
    fn ask_about(
        &self,
        admission: &Admission,
        view: &TaskView,
        piece: &Piece<'_>,
        decision: &Decision,
        needed: &ApprovalNeeded,
    ) -> Result<(Asked, Event), TaskError> {
        let set = self.parts.policy.in_force();
        let charter = &view.task.charter;
        let subject = Subject {
            agent: charter.spiffe_id.to_string(),
            task: view.task.id,
            action: piece.action(),
            target: piece.target(),
            operation: Some(piece.digest()),
        };
        let jury = Jury {
            groups: needed.groups.clone(),
            quorum: needed.quorum,
            not: user_of(&set, charter.user.as_ref()).map(|user| user.name),
        };
        let places = self.places_of(view);
        let asker = Asker {
            agent: view.agent(),
            spiffe_id: charter.spiffe_id.to_string(),
            purpose: piece.charter.purpose.clone(),
            operation: None,
            object: piece.object(),
            offer: piece.offer,
            facts: piece.facts(&set, view, admission.attestation(), &places, decision),
            places,
            binding_token: String::new(),
        };
        let (asked, event) = self.enter_request(subject, jury, decision, asker)?;
        // Each that waits is another: its digest has its name in it.
        event.map(|event| (asked, event)).ok_or_else(|| Refused::Conflict.into())
    }

    /// People have said enough about something that waits: it goes on, or is over.
    pub(super) async fn settle_pending(self: &Arc<Self>, id: ApprovalId) {
        let Some((approval, offer, view)) = self.pending(id) else { return };
        if let ApprovalState::Approved(until) = approval.state {
            mayfly_attestors::failpoint::hit("task.before_judge");
            let judged = self.judge_pending(&approval, offer, &view);
            match judged {
                Ok(judged) if judged.decision.is_allowed() => {
                    match self.go_on(&approval, offer, &view, judged, until).await {
                        GoesOn::Yes => {
                            self.judge_if_overtaken(&view);
                            return;
                        }
                        GoesOn::Frozen => return,
                        GoesOn::No => {}
                    }
                }
                // A freeze takes nothing back: the yes stands as long as any other, and counts when it is thawed.
                Ok(judged) if judged.decision.reason == Reason::Frozen => return,
                Ok(judged) => self.note_mind_changed(&approval, &view, &judged.decision),
                Err(why) => tracing::warn!(approval = %id, %why, "what people allowed cannot go on"),
            }
        }
        let now = self.parts.clock.monotonic();
        self.drop_pending(&mut self.lock(), &approval, offer, now);
    }

    /// What people have allowed, and was frozen when they did, goes on if it is not any more.
    /// Nobody waits for that: the record may be slow.
    pub(in crate::workload) fn settle_allowed(self: &Arc<Self>) {
        let turn = {
            let state = self.lock();
            if state.tasks.approvals.allowed().is_empty() {
                return;
            }
            Arc::clone(&state.tasks.approvals.turn)
        };
        let shared = Arc::clone(self);
        self.spawn(async move {
            let _turn = turn.lock().await;
            let allowed = shared.lock().tasks.approvals.allowed();
            for id in allowed {
                shared.settle_pending(id).await;
            }
        });
    }

    fn pending(&self, id: ApprovalId) -> Option<(Approval, Option<DelegationId>, TaskView)> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let state = self.lock();
        let desk = &state.tasks.approvals;
        let (approval, asker) = (desk.book.get(id)?, desk.askers.get(&id)?);
        let view = state.tasks.view(approval.subject.task, now, wall)?;
        (!approval.subject.action.is_on_target()).then(|| (approval.clone(), asker.offer, view))
    }

    fn judge_pending(
        self: &Arc<Self>,
        approval: &Approval,
        offer: Option<DelegationId>,
        view: &TaskView,
    ) -> Result<Judged, TaskError> {
        let set = self.parts.policy.in_force();
        let approved = Approved::of(approval, &set).ok_or(ApprovalError::Unknown)?;
        if let Some(offer) = offer {
            let (to, life) = {
                let state = self.lock();
                let offer = state.tasks.tree.offered(offer).ok_or(Refused::NoSuchDelegation)?;
                (offer.charter.spiffe_id.clone(), offer.life)
            };
            let left = view.task.deadline.saturating_duration_since(self.parts.clock.monotonic());
            let ttl = life.map_or(left, |life| life.min(left));
            let decision = self.decide_delegation(&set, view, None, &to, ttl, Some(&approved))?;
            return Ok(Judged { decision, cut: None });
        }
        let left = view.task.deadline.saturating_duration_since(self.parts.clock.monotonic());
        let who =
            self.facts_of_seat(&view.task.seat, &view.task.charter.entry).ok_or(Refusal::NotEntitled)?;
        let to_be = self.renewed(&set, view, who, left);
        let object = Object::Template(view.task.charter.template.clone());
        let mut question = to_be.question(Action::Begin, object, left);
        question.circumstances.approval = Some(approved.facts.clone());
        let decision = match approved.falls_short(&set, &question) {
            Some(denied) => denied,
            None => set.decide(&question, Engine::new_evaluation()),
        };
        Ok(Judged { decision, cut: Some(to_be.left_by(&set)) })
    }

    fn note_mind_changed(&self, approval: &Approval, view: &TaskView, decision: &Decision) {
        let Subject { action, target, .. } = &approval.subject;
        let decision = Box::new(recorded(decision, Phase::Begin, *action, target));
        let (agent, task) = (view.agent(), view.facts());
        self.parts.audit.note(vec![Event::Decided { agent, task, decision }]);
    }

    /// Nothing comes of it.
    fn drop_pending(
        self: &Arc<Self>,
        state: &mut State,
        approval: &Approval,
        offer: Option<DelegationId>,
        now: Instant,
    ) {
        let task = approval.subject.task;
        match offer {
            Some(offer) => {
                if state.tasks.tree.offered(offer).is_some_and(|offer| offer.pending) {
                    self.parts.ledger.note_soon(vec![forget_offer(offer)]);
                    state.tasks.tree.refuse_offer(offer);
                }
                self.void_approval(state, approval.id);
            }
            None if state.tasks.tree.get(task).is_some_and(|task| task.standing == Standing::Pending) => {
                let cascade = state.tasks.tree.end(task, Ending::Policy, now, self.parts.clock.wall());
                self.carry_out(state, &cascade, Initiator::Policy, now, None);
            }
            None => {}
        }
    }

    /// Ends what waited for an answer that did not come in time.
    pub(super) fn end_unanswered(self: &Arc<Self>, state: &mut State, now: Instant) {
        for (approval, offer) in state.tasks.approvals.take_unanswered() {
            self.drop_pending(state, &approval, offer, now);
        }
    }

    /// What people allowed when an offer was made, as long as it stands; for whoever takes it up.
    pub(super) fn lent(&self, offer: DelegationId, set: &PolicySet) -> Option<Approved> {
        let state = self.lock();
        let desk = &state.tasks.approvals;
        let approval = desk.book.get(desk.of_offer(offer)?)?;
        (approval.state == ApprovalState::Used).then(|| Approved::of(approval, set)).flatten()
    }

    /// So long an offer waits: longer than people have, so that their time is what counts.
    pub(super) fn wait_of_offers(&self) -> Duration {
        self.settings.approvals.wait + Duration::from_secs(60)
    }
}

impl Tasks {
    /// Whether people have not allowed what an equal request offered, as long as it is remembered what they said.
    pub(super) fn check_answer(&self, key: Option<&Key>) -> Result<(), ApprovalError> {
        let approval = self.tree.not_allowed(key).and_then(|offer| self.approvals.of_offer(offer));
        match approval.and_then(|id| self.approvals.book.get(id)) {
            Some(approval) => Err(ApprovalError::State(approval.state)),
            None => Ok(()),
        }
    }

    /// Whether what people have allowed is still there, and waits.
    pub(super) fn can_go_on(
        &mut self,
        approval: &Approval,
        offer: Option<DelegationId>,
        now: Instant,
    ) -> bool {
        let waits = match offer {
            Some(offer) => self.tree.offered(offer).is_some_and(|offer| offer.pending),
            None => self.tree.standing(approval.subject.task) == Err(Refused::Pending),
        };
        waits && self.approvals.book.check(approval.id, &approval.subject, now).is_ok()
    }
}

impl TaskView {
    /// How long it was begun for.
    fn life(&self) -> Duration {
        self.task.deadline.saturating_duration_since(self.task.begun)
    }
}
