//! A task begins: what was asked for, no more than its template has, without what policy rules out for good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::keeping::Written;
use super::plan::{DEFAULT_CREDENTIAL, Plan, ToBe, Wanted, unspent};
use super::scope::{Chosen, ScopeWish};
use super::users::user_of;
use super::{TaskError, TaskView};
use crate::audit::{self, Event, PolicyDecision, TaskStep};
use crate::id::{DelegationId, SpiffeId, TaskId};
use crate::issue::user::UserToken;
use crate::policy::{Action, Decision, Engine, Object, Phase, Verdict};
use crate::registration::Identity;
use crate::task::journal::note_keeper;
use crate::task::{
    Bounds, Charter, Detail, Ending, Grants, Key, Limits, NewTask, Refused, Scope, Seat, User,
};
use crate::workload::revoker::Initiator;
use crate::workload::state::State;
use crate::workload::{Admission, Refusal, Shared, Workloads};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Begin {
    /// In the agent's own words.
    pub purpose: String,
    /// By which template.
    pub template: Option<String>,
    /// What to fill it with.
    pub params: BTreeMap<String, String>,
    /// The most it is ever to do; empty: what the template has.
    pub details: Vec<Detail>,
    /// How long.
    pub life: Option<Duration>,
    /// What it may use up.
    pub limits: Limits,
    /// A token of the user in whose name; `None`: in the agent's own.
    pub on_behalf_of: Option<UserToken>,
    /// Which of the caller's identities; `None`: the default one.
    pub spiffe_id: Option<SpiffeId>,
    /// Refuse what is not isolated.
    pub require_isolated: bool,
    /// For which audiences the caller's parent is to keep credentials; `None`: nobody is.
    pub keeper: Option<BTreeSet<String>>,
    /// By what it is to be held.
    pub scope: ScopeWish,
    /// The idempotency key and the digest of the request, if there is one.
    pub key: Option<(String, [u8; 32])>,
}

/// A task to be seated.
pub(super) struct Newcomer {
    pub(super) id: TaskId,
    pub(super) charter: Charter,
    pub(super) life: Option<Duration>,
    pub(super) key: Option<Key>,
    /// What it takes up; `None`: it is a root.
    pub(super) offer: Option<DelegationId>,
    /// For which audiences its holder's parent keeps credentials.
    pub(super) keeper: Option<BTreeSet<String>>,
    /// It waits for people.
    pub(super) pending: bool,
    /// What it is held by.
    pub(super) chosen: Chosen,
}

impl Workloads {
    /// Begins a task in the caller's name. A repeated request with the same key gives the same task again.
    ///
    /// # Errors
    /// [`TaskError`]; nothing has begun then.
    pub async fn begin_task(&self, admission: &Admission, begin: Begin) -> Result<TaskView, TaskError> {
        let shared = &self.0;
        let key = key_of(admission, begin.key.clone());
        if shared.known_task(key.as_ref())?.is_some() {
            return shared.again(key.as_ref()).await;
        }
        let wanted = begin.spiffe_id.as_ref();
        let fits = |one: &&Identity| wanted.is_none_or(|id| *id == one.spiffe_id);
        let identity = admission.identities().iter().find(fits).ok_or(Refusal::NotEntitled)?;
        let user = shared.verify_user(admission, begin.on_behalf_of.as_ref()).await?;
        let chosen = shared.choose_scope(admission, begin.scope, begin.keeper.is_some()).await?;
        let mut who = self.facts(admission, &identity.entry.id).ok_or(Refusal::NotEntitled)?;
        who.posture.isolated = chosen.is_isolated;
        let set = shared.parts.policy.in_force();
        let bounds = shared.bounds();
        let default_life = bounds.default_life;
        let wanted = Wanted { life: Some(begin.life.unwrap_or(default_life)), ..begin.wanted() };
        let plan = Plan::of(set.catalogue(), &wanted, &bounds)?;
        let life = plan.life.unwrap_or(default_life);
        let (id, now) = (shared.new_task_id()?, shared.parts.clock.wall());
        let names = (begin.purpose.as_str(), begin.template.as_deref());
        let ttl = plan.credential_ttl.unwrap_or(DEFAULT_CREDENTIAL);
        let task = unspent(id, (id, 0), names, (now, now + life));
        let for_whom = user_of(&set, user.as_ref());
        let to_be = ToBe { who, task, chain: Vec::new(), user: for_whom, plan: &plan.grants, ttl, now };
        let question = to_be.question(Action::Begin, Object::Template(begin.template.clone()), life);
        let decision = set.decide(&question, Engine::new_evaluation());
        let target = begin.template.clone().unwrap_or_default();
        let recorded = recorded(&decision, Phase::Begin, Action::Begin, &target);
        // Beside a no that people can lift: the task waits for them.
        let needed = decision.obligations.approval.clone();
        if !decision.is_allowed() && needed.is_none() {
            shared.note_no_task(admission, to_be.refused(id, user.as_ref()), recorded);
            return Err(TaskError::Denied(Box::new(decision)));
        }
        let grants = to_be.left_by(&set);
        if grants.is_empty() {
            let (result, reason) = (Verdict::Deny.as_str(), Refused::NotGranted.as_str());
            let recorded = PolicyDecision { result, reason, ..recorded };
            shared.note_no_task(admission, to_be.refused(id, user.as_ref()), recorded);
            return Err(Refused::NotGranted.into());
        }
        let keeper = begin.keeper.clone();
        let charter = begin.charter(identity, user, grants, plan, &decision);
        let life = decision.obligations.shorten(life);
        let pending = needed.is_some();
        let newcomer = Newcomer { id, charter, life: Some(life), key, offer: None, keeper, pending, chosen };
        if let Some(needed) = needed {
            return shared.take_in_pending(admission, newcomer, &decision, &needed).await;
        }
        shared.take_in_task(admission, newcomer, TaskStep::Begin, recorded).await
    }
}

impl Begin {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            template: self.template.as_deref(),
            params: &self.params,
            details: &self.details,
            life: self.life,
            limits: &self.limits,
        }
    }

    fn charter(
        self,
        identity: &Identity,
        user: Option<User>,
        grants: Grants,
        plan: Plan,
        decision: &Decision,
    ) -> Charter {
        Charter {
            spiffe_id: identity.spiffe_id.clone(),
            entry: identity.entry.id.clone(),
            purpose: self.purpose,
            template: self.template,
            params: plan.params,
            grants,
            limits: plan.limits,
            require_isolated: self.require_isolated,
            user,
            credential_ttl: plan.credential_ttl,
            evaluation: decision.evaluation_id.to_string(),
            policy_version: version(decision),
        }
    }
}

/// The policy set that decided, as a charter names it.
pub(super) fn version(decision: &Decision) -> String {
    decision.policy_version.map(|version| version.to_string()).unwrap_or_default()
}

/// An idempotency key is the process's own.
pub(super) fn key_of(admission: &Admission, key: Option<(String, [u8; 32])>) -> Option<Key> {
    key.map(|(text, digest)| Key { process: admission.process().key(), text, digest })
}

/// A decision for the record.
pub(super) fn recorded(decision: &Decision, phase: Phase, action: Action, target: &str) -> PolicyDecision {
    let obligations = &decision.obligations;
    let ttl = obligations.max_ttl.map(|most| format!("max_ttl={}", most.as_secs()));
    let binding = obligations.binding.map(|binding| format!("binding={}", binding.as_str()));
    let log = obligations.log.iter().map(|log| format!("log={}", log.as_str()));
    PolicyDecision {
        evaluation_id: Some(decision.evaluation_id.to_string()),
        result: decision.verdict.as_str(),
        phase: phase.as_str(),
        action: action.as_str(),
        target: target.to_owned(),
        tool: None,
        args_hash: None,
        request: None,
        policy_ids: decision.policy_ids.clone(),
        policy_version: decision.policy_version.map(|version| version.to_string()),
        reason: decision.reason.as_str(),
        obligations: ttl.into_iter().chain(binding).chain(log).collect(),
    }
}

impl Shared {
    /// What nobody has more of.
    pub(super) fn bounds(&self) -> Bounds {
        self.lock().tasks.tree.bounds().clone()
    }

    /// What an earlier request with that key made.
    pub(super) fn known_task(&self, key: Option<&Key>) -> Result<Option<TaskView>, TaskError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let state = self.lock();
        let known = state.tasks.tree.task_of_key(key)?;
        Ok(known.and_then(|id| state.tasks.view(id, now, wall)))
    }

    pub(super) fn new_task_id(&self) -> Result<TaskId, TaskError> {
        let (millis, chance) = self.name_parts()?;
        Ok(TaskId::new(millis, chance))
    }

    /// What the names of tasks and offers are made of.
    pub(super) fn name_parts(&self) -> Result<(u64, [u8; 10]), TaskError> {
        let mut random = [0; 10];
        aws_lc_rs::rand::fill(&mut random).map_err(|aws_lc_rs::error::Unspecified| {
            Refusal::Authority(crate::authority::CryptoError.into())
        })?;
        Ok((crate::clock::unix_millis(self.parts.clock.wall()), random))
    }

    /// Seats a task and records that. A task of which no record could be made is none.
    pub(super) async fn take_in_task(
        self: &Arc<Self>,
        admission: &Admission,
        newcomer: Newcomer,
        step: TaskStep,
        decision: PolicyDecision,
    ) -> Result<TaskView, TaskError> {
        let id = newcomer.id;
        mayfly_attestors::failpoint::hit("task.before_seat");
        let key = newcomer.key.clone();
        let (view, written) = self.seat(admission, newcomer)?;
        self.look_if_unseen(admission.id());
        if view.task.id != id {
            // Another request with the same key was faster.
            return self.again(key.as_ref()).await;
        }
        mayfly_attestors::failpoint::hit("task.after_seat");
        let (agent, task, decision) = (view.caller(admission), view.facts(), Some(Box::new(decision)));
        let event = Event::Task { step, agent, task, decision, end: None };
        let done = self.written_and_recorded(written, vec![event]).await;
        mayfly_attestors::failpoint::hit("task.before_answer");
        if let Err(refusal) = done {
            self.end_unrecorded(id);
            return Err(refusal.into());
        }
        self.judge_if_overtaken(&view);
        Ok(view)
    }

    /// Records a task that did not begin: what it was to be for, and what policy said.
    fn note_no_task(&self, admission: &Admission, task: audit::TaskFacts, decision: PolicyDecision) {
        let spiffe_id = task.chain.last().cloned();
        let agent = crate::workload::seen::agent(admission.process(), admission.attestation(), spiffe_id);
        let (task, decision) = (Box::new(task), Box::new(decision));
        self.parts.audit.note(vec![Event::Decided { agent, task, decision }]);
    }

    /// The task that an equal request has made, once it is certain that it was made.
    pub(super) async fn again(&self, key: Option<&Key>) -> Result<TaskView, TaskError> {
        self.catch_up().await?;
        self.known_task(key)?.ok_or(TaskError::Refused(Refused::NoSuchTask))
    }

    /// Undoes a step of which no record could be made. What it took up can be taken up again.
    pub(super) fn end_unrecorded(self: &Arc<Self>, id: TaskId) {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut state = self.lock();
        let cascade = state.tasks.tree.end(id, Ending::Failed, now, wall);
        // Whoever asks again is not shown what never was.
        state.tasks.tree.forget_key(id);
        if let Some(offer) = state.tasks.tree.give_back(id) {
            // In one transaction: no restart finds the offer open and the task alive.
            let tree = &state.tasks.tree;
            let above = tree.offered(offer).map(|offer| tree.notes_of_task(offer.parent, &self.epoch));
            let open = tree.notes_of_offer(offer, &self.epoch);
            let notes = cascade.notes().into_iter().chain(above.unwrap_or_default()).chain(open);
            self.parts.ledger.note_soon(notes.collect());
        }
        self.carry_out(&mut state, &cascade, Initiator::Agent, now, None);
    }

    /// The task of the newcomer, or the one that an equal request has made meanwhile. What was decided may have been
    /// overtaken: whether the process is still here and still has the identity is looked at in the same step.
    pub(super) fn seat(
        &self,
        admission: &Admission,
        newcomer: Newcomer,
    ) -> Result<(TaskView, Written), TaskError> {
        let Newcomer { id, charter, life, key, offer, keeper, pending, chosen } = newcomer;
        let (process, member) = (admission.process(), admission.id());
        let keeper = keeper.map(|audiences| self.look_at_keeper(process, audiences)).transpose()?;
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let seat = Seat { holder: member, process: process.key(), uid: process.uid(), scope: Scope::Process };
        let mut state = self.lock();
        if !state.members.contains_key(&member) {
            return Err(Refusal::Exited.into());
        }
        if !has_identity(&state, &charter, &seat) {
            return Err(Refusal::NotEntitled.into());
        }
        if self.is_frozen_for(&state, &charter.spiffe_id, offer) {
            return Err(TaskError::Frozen);
        }
        if let Some(known) = state.tasks.tree.task_of_key(key.as_ref())? {
            let view = state.tasks.view(known, now, wall).ok_or(TaskError::Refused(Refused::NoSuchTask))?;
            return Ok((view, self.note_down(Vec::new())));
        }
        let seat = self.take_seat(&mut state, seat, &chosen, &charter, now)?;
        let new = NewTask { id, charter, seat: seat.clone(), life, pending, begun_at: wall, key };
        let tree = &mut state.tasks.tree;
        let seated = match offer {
            Some(offer) => tree.join(offer, new, now).map(|task| task.id),
            None => tree.begin(new, now).map(|task| task.id),
        };
        let mut notes = Vec::new();
        if seated == Ok(id) {
            notes = state.tasks.tree.notes_of_task(id, &self.epoch);
            notes.extend(keeper.as_ref().map(|keeper| note_keeper(&keeper.kept(id))));
            state.tasks.keepers.extend(keeper.map(|keeper| (id, keeper)));
            state.core.hold(seat.holder);
            state.found(id, &seat, member);
            if let Some(cgroup) = chosen.beside() {
                state.tasks.tree.note_beside(id, cgroup);
            }
            self.timer.notify_one();
        } else if seat.holder != member {
            self.forget_idle(&mut state, seat.holder);
        }
        let view = state.tasks.view(seated?, now, wall).ok_or(TaskError::Refused(Refused::NoSuchTask))?;
        Ok((view, self.note_down(notes)))
    }
}

impl Shared {
    /// Whether that agent, or what it would join, is frozen as of now. Whoever kills has frozen before he looks for tasks
    /// under this lock: either he finds this one, or we find the freeze.
    pub(super) fn is_frozen_for(&self, state: &State, agent: &SpiffeId, offer: Option<DelegationId>) -> bool {
        let tree = &state.tasks.tree;
        let parent = offer.and_then(|id| tree.offered(id)).map(|offer| offer.parent);
        let chain = parent.map(|id| tree.chain(id)).unwrap_or_default();
        let above: Vec<String> =
            parent.iter().flat_map(|id| tree.lineage(*id)).map(|task| task.id.to_string()).collect();
        let agents = chain.iter().chain([agent]).map(|id| id.as_str());
        let set = self.parts.policy.in_force();
        set.freezes().touches(agents, above.iter().map(String::as_str), None)
    }
}

/// Whether the holder has the identity that the charter rests on.
pub(super) fn has_identity(state: &State, charter: &Charter, seat: &Seat) -> bool {
    state.has_identity(charter, seat)
}
