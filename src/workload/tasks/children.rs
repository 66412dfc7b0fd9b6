//! A part of a task for somebody else: offered by its holder, and taken up once by the identity that is named.
//!
//! What the child may do is asked for, inside the parent's, and not ruled out by policy for good. Policy is asked
//! twice whether the parent's holder may hand it on: when it is offered, and when it is taken up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::approval_use::Approved;
use super::begin::{Newcomer, key_of, recorded, version};
use super::keeping::Written;
use super::plan::{DEFAULT_CREDENTIAL, Plan, ToBe, Wanted, template_denial, unspent};
use super::scope::ScopeWish;
use super::users::user_of;
use super::{TaskError, TaskView, caller};
use crate::audit::{self, Event, TaskStep};
use crate::id::{ApprovalId, DelegationId, EntryId, SpiffeId, TaskId};
use crate::policy::{Action, Decision, Engine, Object, Phase, PolicySet, Question, WorkloadFacts};
use crate::registration::Identity;
use crate::task::{Charter, Detail, Grants, Key, Limits, NewOffer, Offer, Refused};
use crate::workload::{Admission, Refusal, Shared, State, Workloads};

/// What is offered.
#[derive(Clone, Debug)]
pub struct Delegate {
    /// The caller's own task.
    pub task: TaskId,
    /// To whom.
    pub to: SpiffeId,
    /// In the agent's own words.
    pub purpose: String,
    /// By which template.
    pub template: Option<String>,
    /// What to fill it with.
    pub params: BTreeMap<String, String>,
    /// What the child may do; empty: what the template has.
    pub details: Vec<Detail>,
    /// How long; `None`: what is left of the parent.
    pub life: Option<Duration>,
    /// What the child may use up.
    pub limits: Limits,
    /// Refuse what is not isolated.
    pub require_isolated: bool,
    /// The child works for itself, not for the parent's user.
    pub drops_user: bool,
    /// The idempotency key and the digest of the request, if there is one.
    pub key: Option<(String, [u8; 32])>,
}

/// What is taken up.
#[derive(Clone, Debug)]
pub struct Join {
    /// Which offer.
    pub offer: DelegationId,
    /// For which audiences the caller's parent is to keep credentials; `None`: nobody is.
    pub keeper: Option<BTreeSet<String>>,
    /// By what it is to be held.
    pub scope: ScopeWish,
    /// The idempotency key and the digest of the request, if there is one.
    pub key: Option<(String, [u8; 32])>,
}

/// An offer as it is now.
#[derive(Clone, Debug)]
pub struct OfferView {
    /// Itself.
    pub offer: Offer,
    /// Until then it can be taken up.
    pub expires: SystemTime,
    /// The child would end then, if it began now.
    pub deadline: SystemTime,
    /// What people are asked first, if they are.
    pub approval: Option<ApprovalId>,
}

/// An offer, and everything that taking it up hangs on.
struct Taken {
    identity: Identity,
    charter: Charter,
    parent: TaskView,
    deadline: SystemTime,
}

impl Workloads {
    /// Offers a part of the caller's task. A repeated request with the same key gives the same offer again.
    ///
    /// # Errors
    /// [`TaskError`]; nothing is offered then.
    pub async fn delegate(&self, admission: &Admission, asked: Delegate) -> Result<OfferView, TaskError> {
        let shared = &self.0;
        let key = key_of(admission, asked.key.clone());
        if shared.known_offer(key.as_ref())?.is_some() {
            return shared.offered_again(key.as_ref()).await;
        }
        let parent = shared.enter(asked.task, admission)?;
        let set = shared.parts.policy.in_force();
        let (to, left) = (asked.to.clone(), shared.left_of(&parent));
        if let Some(denied) = template_denial(&set, &to, asked.template.as_deref()) {
            return Err(shared.note_no_delegation(parent.caller(admission), &parent, &to, denied));
        }
        let id = shared.new_offer_id()?;
        let mut new = shared.new_offer(&set, id, asked, key)?;
        shared.lock().tasks.tree.part_of(&new, &caller(admission))?;
        let ttl = new.life.map_or(left, |life| life.min(left));
        let who = self.facts(admission, &parent.task.charter.entry);
        let decision = shared.decide_delegation(&set, &parent, who, &to, ttl, None)?;
        // Beside a no that people can lift: the offer waits for them.
        let needed = decision.obligations.approval.clone();
        if !decision.is_allowed() && needed.is_none() {
            return Err(shared.note_no_delegation(parent.caller(admission), &parent, &to, decision));
        }
        if decision.obligations.max_ttl.is_some() {
            new.life = Some(decision.obligations.shorten(ttl));
        }
        new.waits = needed.is_some().then(|| shared.wait_of_offers());
        let key = new.key.clone();
        let (view, written) = shared.offer(admission, new, &decision)?;
        if view.offer.id != id {
            // Another request with the same key was faster.
            return shared.offered_again(key.as_ref()).await;
        }
        if let Some(needed) = needed {
            return shared.ask_about_offer(admission, &parent, (view, written), &decision, &needed).await;
        }
        let event = Event::Task {
            step: TaskStep::Delegate,
            agent: parent.caller(admission),
            task: parent.facts(),
            decision: Some(Box::new(recorded(&decision, Phase::Begin, Action::Delegate, to.as_str()))),
            end: None,
        };
        if let Err(refusal) = shared.written_and_recorded(written, vec![event]).await {
            shared.withdraw_offer(id);
            return Err(refusal.into());
        }
        Ok(view)
    }

    /// Takes up an offer: a task begins below the one that it is part of. A repeated request with the same key gives
    /// the same task again.
    ///
    /// # Errors
    /// [`TaskError`]; nothing has begun then.
    pub async fn join_task(&self, admission: &Admission, join: Join) -> Result<TaskView, TaskError> {
        let shared = &self.0;
        let key = key_of(admission, join.key);
        if shared.known_task(key.as_ref())?.is_some() {
            return shared.again(key.as_ref()).await;
        }
        let Taken { identity, charter, parent, deadline } = shared.taken(admission, join.offer)?;
        let chosen = shared.choose_scope(admission, join.scope, join.keeper.is_some()).await?;
        let mut who = self.facts(admission, &identity.entry.id).ok_or(Refusal::NotEntitled)?;
        who.posture.isolated = chosen.is_isolated;
        let (set, now) = (shared.parts.policy.in_force(), shared.parts.clock.wall());
        let to = charter.spiffe_id.clone();
        let ttl = deadline.duration_since(now).unwrap_or_default();
        let decision = match template_denial(&set, &to, charter.template.as_deref()) {
            Some(denied) => denied,
            None => {
                let lent = shared.lent(join.offer, &set);
                shared.decide_delegation(&set, &parent, None, &to, ttl, lent.as_ref())?
            }
        };
        if !decision.is_allowed() {
            return Err(shared.note_no_delegation(parent.agent(), &parent, &to, decision));
        }
        let id = shared.new_task_id()?;
        let place = (parent.task.root, parent.task.depth + 1);
        let names = (charter.purpose.as_str(), charter.template.as_deref());
        let task = unspent(id, place, names, (now, deadline));
        let ttl = charter.credential_ttl.unwrap_or(DEFAULT_CREDENTIAL);
        let chain = parent.chain.iter().rev().cloned().collect();
        let user = user_of(&set, charter.user.as_ref());
        let grants = ToBe { who, task, chain, user, plan: &charter.grants, ttl, now }.left_by(&set);
        if grants.is_empty() {
            return Err(Refused::NotGranted.into());
        }
        let charter = Charter {
            grants,
            entry: identity.entry.id.clone(),
            evaluation: decision.evaluation_id.to_string(),
            policy_version: version(&decision),
            ..charter
        };
        let newcomer = Newcomer {
            id,
            charter,
            // No more than policy gives now: it may be less than when it was offered.
            life: decision.obligations.max_ttl,
            key,
            offer: Some(join.offer),
            keeper: join.keeper,
            pending: false,
            chosen,
        };
        let recorded = recorded(&decision, Phase::Begin, Action::Delegate, to.as_str());
        shared.take_in_task(admission, newcomer, TaskStep::Join, recorded).await
    }
}

impl Shared {
    /// The caller does something as the task: the task, if it may.
    pub(super) fn enter(&self, id: TaskId, admission: &Admission) -> Result<TaskView, TaskError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut state = self.lock();
        state.tasks.tree.enter(id, &caller(admission), now)?;
        state.tasks.view(id, now, wall).ok_or(TaskError::Refused(Refused::NoSuchTask))
    }

    /// May the holder of that task hand a part of it to that agent, for so long? `who` is the process that does; `None`:
    /// it does not call now, and is taken as it is known. `approved`: what people said to that.
    pub(super) fn decide_delegation(
        &self,
        set: &Arc<PolicySet>,
        parent: &TaskView,
        who: Option<WorkloadFacts>,
        to: &SpiffeId,
        ttl: Duration,
        approved: Option<&Approved>,
    ) -> Result<Decision, TaskError> {
        let charter = &parent.task.charter;
        let who = who.or_else(|| self.facts_of_seat(&parent.task.seat, &charter.entry));
        let mut who = who.ok_or(Refusal::NotEntitled)?;
        who.posture.isolated = parent.isolated;
        let (object, now) = (Object::Agent(to.clone()), self.parts.clock.wall());
        let task = parent.policy_facts();
        let mut question = Question::of_task(who, Action::Delegate, object, Phase::Begin, task, ttl, now);
        question.circumstances.chain = parent.above();
        question.circumstances.tasks_above.clone_from(&parent.tasks_above);
        question.circumstances.on_behalf_of = user_of(set, charter.user.as_ref());
        question.circumstances.approval = approved.map(|approved| approved.facts.clone());
        if let Some(denied) = approved.and_then(|approved| approved.falls_short(set, &question)) {
            return Ok(denied);
        }
        Ok(set.decide(&question, Engine::new_evaluation()))
    }

    /// Records the no, and what the caller learns of it.
    pub(super) fn note_no_delegation(
        &self,
        agent: audit::Agent,
        parent: &TaskView,
        to: &SpiffeId,
        decision: Decision,
    ) -> TaskError {
        self.count_denial(parent.task.id);
        let recorded = Box::new(recorded(&decision, Phase::Begin, Action::Delegate, to.as_str()));
        let event = Event::Decided { agent, task: parent.facts(), decision: recorded };
        self.parts.audit.note(vec![event]);
        TaskError::Denied(Box::new(decision))
    }

    fn left_of(&self, task: &TaskView) -> Duration {
        task.task.deadline.saturating_duration_since(self.parts.clock.monotonic())
    }

    fn new_offer_id(&self) -> Result<DelegationId, TaskError> {
        let (millis, chance) = self.name_parts()?;
        Ok(DelegationId::new(millis, chance))
    }

    fn new_offer(
        &self,
        set: &PolicySet,
        id: DelegationId,
        asked: Delegate,
        key: Option<Key>,
    ) -> Result<NewOffer, TaskError> {
        let wanted = Wanted {
            template: asked.template.as_deref(),
            params: &asked.params,
            details: &asked.details,
            life: asked.life,
            limits: &asked.limits,
        };
        let plan = Plan::of(set.catalogue(), &wanted, &self.bounds())?;
        let charter = Charter {
            spiffe_id: asked.to,
            // Found when it is taken up, like the decision.
            entry: EntryId::new(""),
            purpose: asked.purpose,
            template: asked.template,
            params: plan.params,
            grants: Grants::default(),
            limits: plan.limits,
            require_isolated: asked.require_isolated,
            user: None,
            credential_ttl: plan.credential_ttl,
            evaluation: String::new(),
            policy_version: String::new(),
        };
        let details = plan.grants.details().to_vec();
        let (life, drops_user) = (plan.life, asked.drops_user);
        Ok(NewOffer { id, parent: asked.task, charter, asked: details, life, drops_user, waits: None, key })
    }

    /// Makes the offer, or finds the one that an equal request has made meanwhile.
    fn offer(
        &self,
        admission: &Admission,
        mut new: NewOffer,
        decision: &Decision,
    ) -> Result<(OfferView, Written), TaskError> {
        new.charter.evaluation = decision.evaluation_id.to_string();
        new.charter.policy_version = version(decision);
        mayfly_attestors::failpoint::hit("task.before_offer");
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        // The answer may have come meanwhile.
        state.tasks.check_answer(new.key.as_ref())?;
        let caller = caller(admission);
        // What exceeds the parent's is refused, so that nothing is left for a cut.
        let cut = state.tasks.tree.get(new.parent).map(|parent| parent.charter.grants.clone());
        let cut = cut.ok_or(Refused::NoSuchTask)?;
        let id = state.tasks.tree.offer(new, &cut, &caller, now)?.id;
        self.timer.notify_one();
        let view = self.offer_view(&state, id).ok_or(TaskError::Refused(Refused::NoSuchDelegation))?;
        Ok((view, self.note_down(state.tasks.tree.notes_of_offer(id, &self.epoch))))
    }

    /// The offer that an equal request has made, once it is certain that it was made.
    async fn offered_again(&self, key: Option<&Key>) -> Result<OfferView, TaskError> {
        self.catch_up().await?;
        self.known_offer(key)?.ok_or(TaskError::Refused(Refused::NoSuchDelegation))
    }

    fn known_offer(&self, key: Option<&Key>) -> Result<Option<OfferView>, TaskError> {
        let state = self.lock();
        state.tasks.check_answer(key)?;
        let known = state.tasks.tree.offer_of_key(key)?.map(|offer| offer.id);
        Ok(known.and_then(|id| self.offer_view(&state, id)))
    }

    fn offer_view(&self, state: &State, id: DelegationId) -> Option<OfferView> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let offer = state.tasks.tree.offered(id)?.clone();
        let end = state.tasks.tree.get(offer.parent)?.deadline;
        let left = end.saturating_duration_since(now);
        let left = offer.life.map_or(left, |life| life.min(left));
        let expires = wall + offer.expires.saturating_duration_since(now);
        let approval = if offer.pending { state.tasks.approvals.of_offer(id) } else { None };
        Some(OfferView { offer, expires, deadline: wall + left, approval })
    }

    /// The offer, if it is for an identity that the caller has, and as much of it as is left.
    fn taken(&self, admission: &Admission, id: DelegationId) -> Result<Taken, TaskError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let state = self.lock();
        let tree = &state.tasks.tree;
        let offer = tree.offered(id).ok_or(Refused::NoSuchDelegation)?;
        let to = &offer.charter.spiffe_id;
        let identity = admission.identities().iter().find(|one| one.spiffe_id == *to);
        let identity = identity.ok_or(Refused::NotYours)?.clone();
        let (charter, deadline) = tree.part_offered(id, to, now)?;
        let deadline = wall + deadline.saturating_duration_since(now);
        let parent = state.tasks.view(offer.parent, now, wall).ok_or(Refused::NoSuchTask)?;
        Ok(Taken { identity, charter, parent, deadline })
    }
}
