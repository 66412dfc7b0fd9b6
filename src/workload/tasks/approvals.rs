//! People in the loop: an agent asks for what policy denies without somebody's approval, and uses a yes once, for exactly
//! what was asked. The book of approvals stands beside the tree behind the same lock, so that what was allowed for a
//! task ends in the same step as the task. Who may answer is in [`super::approvers`].
//!
//! Nothing here is kept over a restart of the agent, also where the task is: whoever needs people asks them again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

use super::approval_facts::{Fact, Place, facts};
use super::deciding::find_target;
use super::issue::Ask;
use super::named::about;
use super::users::user_of;
use super::{TaskError, TaskView, Tasks};
use crate::audit::{self, ApprovalStep, Event};
use crate::id::{ApprovalId, DelegationId, TaskId, hex_text};
use crate::issue::question;
use crate::policy::{Action, ApprovalNeeded, Decision, Object};
use crate::task::approval::{Approval, ApprovalBounds, ApprovalState, Approvals, Jury, Subject, Vote};
use crate::task::{Operation, Refused};
use crate::workload::{Admission, Refusal, Shared, State, Workloads};

/// How an uncatalogued root is called: no name of the catalogue has a colon.
pub(super) const ROOT: &str = "uid:0";

/// Everything that was asked of people, behind the state lock.
#[derive(Debug, Default)]
pub(in crate::workload) struct Desk {
    pub(super) book: Approvals,
    /// Of each that the book remembers.
    pub(super) askers: HashMap<ApprovalId, Asker>,
    /// Of those that something waited for: nobody answered in time, and what waited is still there.
    unanswered: Vec<(Approval, Option<DelegationId>)>,
    /// One answer after the other: what is on record is what counts.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    /// Moves with each change.
    news: watch::Sender<u64>,
}

/// Who asked, and what was found out about it then.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) agent: audit::Agent,
    pub(super) spiffe_id: String,
    pub(super) purpose: String,
    pub(super) operation: Option<Operation>,
    /// What it is done to.
    pub(super) object: Object,
    /// The offer that waits, if it is one.
    pub(super) offer: Option<DelegationId>,
    pub(super) facts: Vec<Fact>,
    /// Where the task and those above it are: nobody answers from there.
    pub(super) places: Vec<Place>,
    pub(super) binding_token: String,
}

/// One approval, for people.
#[derive(Clone, Debug)]
pub struct ApprovalView {
    /// Itself.
    pub approval: Approval,
    /// Which agent asks.
    pub spiffe_id: String,
    /// What the agent's daemon found out itself, in the order in which to show it.
    pub facts: Vec<Fact>,
    /// The agent's own words. Never to be believed.
    pub purpose: String,
    /// The operation, if it was named.
    pub operation: Option<Operation>,
}

/// Beside a denial that people can lift.
#[derive(Clone, Debug)]
pub struct AccessRequest {
    /// Whoever answers is in each of these groups.
    pub groups: BTreeSet<String>,
    /// What they were asked, if they were.
    pub asked: Option<Asked>,
}

/// A request that people have before them, or have granted.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its name.
    pub id: ApprovalId,
    /// Nobody can answer after that.
    pub expires_at: SystemTime,
    /// The question, signed.
    pub binding_token: String,
}

impl Desk {
    /// An empty one that holds to these bounds.
    pub(in crate::workload) fn new(bounds: ApprovalBounds) -> Self {
        Self { book: Approvals::new(bounds), ..Self::default() }
    }

    /// When something runs out next.
    pub(in crate::workload) fn deadline(&self) -> Option<Instant> {
        self.book.deadline()
    }

    pub(super) fn view(&self, id: ApprovalId) -> Option<ApprovalView> {
        let (approval, asker) = (self.book.get(id)?, self.askers.get(&id)?);
        Some(ApprovalView {
            approval: approval.clone(),
            spiffe_id: asker.spiffe_id.clone(),
            facts: asker.facts.clone(),
            purpose: asker.purpose.clone(),
            operation: asker.operation.clone(),
        })
    }

    /// The request that was made for an offer.
    pub(super) fn of_offer(&self, offer: DelegationId) -> Option<ApprovalId> {
        self.askers.iter().find(|(_, asker)| asker.offer == Some(offer)).map(|(id, _)| *id)
    }

    /// Tasks and offers that people have allowed, and that have not gone on.
    pub(super) fn allowed(&self) -> Vec<ApprovalId> {
        let allowed = |one: &&Approval| {
            matches!(one.state, ApprovalState::Approved(_)) && !one.subject.action.is_on_target()
        };
        self.book.list().into_iter().filter(allowed).map(|one| one.id).collect()
    }

    /// What waited for an answer that did not come, once.
    pub(super) fn take_unanswered(&mut self) -> Vec<(Approval, Option<DelegationId>)> {
        std::mem::take(&mut self.unanswered)
    }

    fn tell(&self) {
        self.news.send_modify(|generation| *generation += 1);
    }

    /// A step that whoever asked, or time, has taken; `None` of one that is forgotten.
    pub(super) fn step(&self, id: ApprovalId, step: ApprovalStep) -> Option<Event> {
        let asker = self.askers.get(&id)?;
        let event = event(step, asker.agent.clone(), self.book.get(id)?, None);
        Some(about(event, asker.operation.as_ref()))
    }
}

/// For the record.
pub(super) fn event(
    step: ApprovalStep,
    agent: audit::Agent,
    approval: &Approval,
    vote: Option<&Vote>,
) -> Event {
    let Approval { id, subject, evaluation, approved_until, .. } = approval;
    let facts = audit::ApprovalFacts {
        id: id.to_string(),
        task: subject.task,
        action: subject.action.as_str(),
        target: subject.target.clone(),
        operation_sha256: subject.operation.as_ref().map(|digest| hex_text(digest)),
        request: None,
        evaluation_id: evaluation.clone(),
        by: vote.map(|vote| vote.shown_by.clone()),
        reason: vote.map(|vote| vote.reason.clone()).filter(|reason| !reason.is_empty()),
        at: vote.map(|vote| vote.at),
        until: *approved_until,
    };
    Event::Approval { step, agent, approval: Box::new(facts) }
}

impl AccessRequest {
    /// Nobody was asked.
    pub(super) fn possible(needed: &ApprovalNeeded) -> Self {
        Self { groups: needed.groups.clone(), asked: None }
    }
}

impl Workloads {
    /// What people were asked, the oldest first. `task`: only of that one. `closed`: also what nothing comes of any more.
    pub fn approvals(&self, task: Option<TaskId>, closed: bool) -> Vec<ApprovalView> {
        let now = self.0.parts.clock.monotonic();
        let mut state = self.0.lock();
        self.0.settle_approvals(&mut state, now);
        let desk = &state.tasks.approvals;
        let wanted = |one: &&Approval| {
            task.is_none_or(|task| one.subject.task == task) && (closed || one.state.is_open())
        };
        desk.book.list().into_iter().filter(wanted).filter_map(|one| desk.view(one.id)).collect()
    }

    /// Puts on record that people could not be told that they are asked.
    pub fn note_not_told(&self, id: ApprovalId, why: &str) {
        let state = self.0.lock();
        let event = state.tasks.approvals.step(id, ApprovalStep::NotTold).map(|mut event| {
            if let Event::Approval { approval, .. } = &mut event {
                approval.reason = Some(why.to_owned());
            }
            event
        });
        self.0.parts.audit.note(event.into_iter().collect());
    }

    /// Moves when an approval is asked for, answered, used or void.
    pub fn approval_news(&self) -> watch::Receiver<u64> {
        self.0.lock().tasks.approvals.news.subscribe()
    }
}

impl Shared {
    /// Asks people, or finds that they have been asked exactly this.
    pub(super) async fn ask_people(
        &self,
        admission: &Admission,
        ask: &Ask,
        view: &TaskView,
        decision: &Decision,
        needed: &ApprovalNeeded,
    ) -> Result<AccessRequest, TaskError> {
        let set = self.parts.policy.in_force();
        let target = Arc::clone(find_target(&set, ask).ok_or(Refused::NotGranted)?);
        let subject = Subject {
            agent: view.task.charter.spiffe_id.to_string(),
            task: ask.task,
            action: ask.action.unwrap_or(Action::Read),
            target: target.name.clone(),
            operation: ask.operation.as_ref().map(Operation::digest),
        };
        let jury = Jury {
            groups: needed.groups.clone(),
            quorum: needed.quorum,
            not: user_of(&set, view.task.charter.user.as_ref()).map(|user| user.name),
        };
        let places = self.places_of(view);
        let asker = Asker {
            agent: view.agent(),
            spiffe_id: view.task.charter.spiffe_id.to_string(),
            purpose: view.task.charter.purpose.clone(),
            operation: ask.operation.clone(),
            object: Object::Target(target.name.clone()),
            offer: None,
            facts: facts(view, admission.attestation(), &places, &target, ask, decision),
            places,
            binding_token: String::new(),
        };
        let task = subject.task;
        let (asked, event) = self.enter_request(subject, jury, decision, asker)?;
        if let Some(event) = event {
            // What is not on record was not asked.
            if let Err(error) = self.parts.audit.record(vec![event]).await {
                self.lock().tasks.approvals.book.cancel(asked.id);
                return Err(Refusal::Audit(error).into());
            }
            self.lock().tasks.tell_approval(task);
            self.timer.notify_one();
        }
        Ok(AccessRequest { groups: needed.groups.clone(), asked: Some(asked) })
    }

    /// Puts it on the desk, if it is not there. With an event if it is new.
    pub(super) fn enter_request(
        &self,
        subject: Subject,
        jury: Jury,
        decision: &Decision,
        mut asker: Asker,
    ) -> Result<(Asked, Option<Event>), TaskError> {
        let (id, evaluation) = (self.new_approval_id()?, decision.evaluation_id.to_string());
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        asker.binding_token = self.sign_question(id, &subject, &evaluation, wall)?;
        let agent = asker.agent.clone();
        mayfly_attestors::failpoint::hit("task.before_ask");
        let mut state = self.lock();
        self.settle_approvals(&mut state, now);
        // It may have ended since policy was asked; and whoever ends it looks here afterwards.
        match state.tasks.tree.standing(subject.task) {
            Err(Refused::Pending) if subject.action == Action::Begin => {}
            standing => standing?,
        }
        let desk = &mut state.tasks.approvals;
        let (approval, new) = desk.book.request(id, subject, jury, evaluation, now, wall)?;
        if new {
            desk.askers.insert(id, asker);
        }
        let known = desk.askers.get(&approval.id).ok_or(Refused::NoSuchTask)?;
        let asked = Asked {
            id: approval.id,
            expires_at: approval.expires_at,
            binding_token: known.binding_token.clone(),
        };
        let event = || event(ApprovalStep::Requested, agent, approval, None);
        Ok((asked, new.then(|| about(event(), known.operation.as_ref()))))
    }

    fn new_approval_id(&self) -> Result<ApprovalId, TaskError> {
        let mut random = [0; 10];
        aws_lc_rs::rand::fill(&mut random).map_err(|aws_lc_rs::error::Unspecified| {
            Refusal::Authority(crate::authority::CryptoError.into())
        })?;
        Ok(ApprovalId::new(crate::clock::unix_millis(self.parts.clock.wall()), random))
    }

    fn sign_question(
        &self,
        id: ApprovalId,
        subject: &Subject,
        evaluation: &str,
        now: SystemTime,
    ) -> Result<String, TaskError> {
        let asked = question::Asked {
            issuer: &self.settings.jwt_issuer,
            approval: id,
            evaluation,
            task: subject.task,
            action: subject.action.as_str(),
            target: &subject.target,
            operation: subject.operation,
            expires_at: now + self.settings.approvals.wait,
        };
        let authorities = self.parts.authorities.current();
        let signed = question::sign(&asked, authorities.active_jwt(), now);
        signed.map_err(|error| Refusal::Authority(error).into())
    }

    /// What has run out is so from now on, and on record.
    pub(in crate::workload) fn settle_approvals(&self, state: &mut State, now: Instant) {
        let desk = &mut state.tasks.approvals;
        let over = desk.book.settle(now);
        let events: Vec<Event> = over.iter().filter_map(|id| desk.step(*id, ApprovalStep::Expired)).collect();
        let of = |id: &ApprovalId| Some((desk.book.get(*id)?.clone(), desk.askers.get(id)?.offer));
        let ran_out: Vec<_> = over.iter().filter_map(of).collect();
        let tasks: BTreeSet<TaskId> = ran_out.iter().map(|(approval, _)| approval.subject.task).collect();
        let waited = ran_out.into_iter().filter(|(approval, _)| !approval.subject.action.is_on_target());
        desk.unanswered.extend(waited);
        if !desk.unanswered.is_empty() {
            // Whoever waited is told by the timer: this may be in the middle of something else.
            self.timer.notify_one();
        }
        let book = &desk.book;
        let tree = &mut state.tasks.tree;
        desk.askers.retain(|id, asker| {
            let stays = book.get(*id).is_some();
            asker.offer.filter(|_| !stays).into_iter().for_each(|offer| tree.forget_answer(offer));
            stays
        });
        // Time has done that, in whoever's call it is found.
        audit::trace::outside(|| self.parts.audit.note(events));
        tasks.into_iter().for_each(|task| state.tasks.tell_approval(task));
    }

    /// The task has ended: nothing comes of what was asked or allowed for it.
    pub(super) fn void_approvals(&self, state: &mut State, task: TaskId) {
        let desk = &mut state.tasks.approvals;
        let void = desk.book.end_task(task);
        let events: Vec<Event> =
            void.iter().filter_map(|id| desk.step(*id, ApprovalStep::Cancelled)).collect();
        if !events.is_empty() {
            self.parts.audit.note(events);
            state.tasks.tell_approval(task);
        }
    }

    /// Nothing comes of one of them, though its task goes on.
    pub(super) fn void_approval(&self, state: &mut State, id: ApprovalId) {
        let desk = &mut state.tasks.approvals;
        if desk.book.cancel(id) {
            self.parts.audit.note(desk.step(id, ApprovalStep::Cancelled).into_iter().collect());
        }
        let task = desk.book.get(id).map(|approval| approval.subject.task);
        task.into_iter().for_each(|task| state.tasks.tell_approval(task));
    }
}

impl Tasks {
    /// Something has become of an approval: whoever follows its task is told, and nobody who follows another.
    pub(super) fn tell_approval(&self, task: TaskId) {
        self.approvals.tell();
        self.watchers.tell(task);
    }
}

impl ApprovalView {
    /// Whether people can still answer.
    pub fn is_pending(&self) -> bool {
        self.approval.state == ApprovalState::Pending
    }
}
