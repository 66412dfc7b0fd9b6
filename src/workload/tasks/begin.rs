//! A task begins: what was asked for, no more than its template has, without what policy rules out for good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{TaskError, TaskView, caller};
use crate::audit::{Event, PolicyDecision, TaskStep};
use crate::id::{SpiffeId, TaskId};
use crate::policy::{
    Action, Catalogue, Decision, Object, Phase, PolicySet, Question, Target, Template, TemplateDetail,
    Verdict, WorkloadFacts,
};
use crate::task::grant::TARGET_ACCESS;
use crate::task::place::Location;
use crate::task::{
    Charter, Detail, Ending, Grants, Key, Limit, Limits, NewTask, RawDetail, Refused, Repeat, Scope, Seat,
};
use crate::workload::revoker::Initiator;
use crate::workload::{Admission, Shared, Workloads};

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
    /// Which of the caller's identities; `None`: the default one.
    pub spiffe_id: Option<SpiffeId>,
    /// Refuse what is not isolated.
    pub require_isolated: bool,
    /// For which audiences the caller's parent is to keep credentials; `None`: nobody is.
    pub keeper: Option<BTreeSet<String>>,
    /// The idempotency key and the digest of the request, if there is one.
    pub key: Option<(String, [u8; 32])>,
}

impl Workloads {
    /// Begins a task in the caller's name. A repeated request with the same key gives the same task again.
    ///
    /// # Errors
    /// [`TaskError`]; nothing has begun then.
    pub async fn begin_task(&self, admission: &Admission, begin: Begin) -> Result<TaskView, TaskError> {
        let shared = &self.0;
        let key =
            begin.key.clone().map(|(text, digest)| Key { process: admission.process().key(), text, digest });
        if let Some(known) = shared.known_task(key.as_ref())? {
            return Ok(known);
        }
        let wanted = begin.spiffe_id.as_ref();
        let fits = |one: &&crate::registration::Identity| wanted.is_none_or(|id| *id == one.spiffe_id);
        let identity =
            admission.identities().iter().find(fits).ok_or(crate::workload::Refusal::NotEntitled)?;
        let who = self.facts(admission, &identity.entry.id).ok_or(crate::workload::Refusal::NotEntitled)?;
        let set = shared.parts.policy.in_force();
        let plan = Plan::of(set.catalogue(), &begin, shared.bounds_life())?;
        let id = shared.new_task_id()?;
        let decision = shared.decide_begin(&set, &who, id, &begin, &plan);
        if !decision.is_allowed() {
            shared.note_denied(admission.process(), "policy", &crate::workload::facts::why(&decision));
            return Err(TaskError::Denied(Box::new(decision)));
        }
        let grants = shared.left_by_policy(&set, &who, id, &begin, &plan);
        if grants.is_empty() {
            return Err(Refused::NotGranted.into());
        }
        let charter = Charter {
            spiffe_id: identity.spiffe_id.clone(),
            entry: identity.entry.id.clone(),
            purpose: begin.purpose.clone(),
            template: begin.template.clone(),
            params: plan.params.clone(),
            grants,
            limits: plan.limits.clone(),
            require_isolated: begin.require_isolated,
            user: None,
            credential_ttl: plan.credential_ttl,
            evaluation: decision.evaluation_id.to_string(),
            policy_version: decision.policy_version.map(|version| version.to_string()).unwrap_or_default(),
        };
        let view = shared.seat_task(admission, id, charter, &plan, key, begin.keeper.as_ref())?;
        let began = Event::Task {
            step: TaskStep::Begin,
            agent: view.agent(),
            task: view.facts(),
            decision: Some(Box::new(recorded(
                &decision,
                Phase::Begin,
                Action::Begin,
                begin.template.as_deref().unwrap_or(""),
            ))),
            end: None,
        };
        // A task of which no record could be made is none.
        if let Err(error) = shared.parts.audit.record(vec![began]).await {
            let (now, wall) = (shared.parts.clock.monotonic(), shared.parts.clock.wall());
            let mut state = shared.lock();
            let cascade = state.tasks.tree.end(id, Ending::Failed, now, wall);
            shared.carry_out(&mut state, &cascade, Initiator::Agent, now, None);
            return Err(crate::workload::Refusal::Audit(error).into());
        }
        Ok(view)
    }
}

/// What a request comes to before policy is asked.
struct Plan {
    grants: Grants,
    params: BTreeMap<String, String>,
    limits: Limits,
    life: Duration,
    credential_ttl: Option<Duration>,
}

impl Plan {
    fn of(catalogue: &Catalogue, begin: &Begin, bounds: (Duration, Duration)) -> Result<Self, TaskError> {
        let (default_life, most) = bounds;
        if begin.life.is_some_and(|life| life > most) {
            return Err(Refused::Limit(Limit::Life).into());
        }
        let life = begin.life.unwrap_or(default_life);
        // What the catalogue does not know is for policy to deny, with a name for the decision.
        let template = begin.template.as_deref().and_then(|name| catalogue.template(name));
        let Some(template) = template else {
            if !begin.params.is_empty() {
                return Err(TaskError::Malformed("params".to_owned()));
            }
            let grants = Grants::of(begin.details.clone());
            let limits = begin.limits.clone();
            return Ok(Self { grants, params: BTreeMap::new(), limits, life, credential_ttl: None });
        };
        let filled =
            template.fill(&begin.params).map_err(|wrong| TaskError::Malformed(format!("params: {wrong}")))?;
        let own = Grants::of(filled.details.iter().filter_map(|detail| read(catalogue, detail)).collect());
        let grants = if begin.details.is_empty() {
            own
        } else {
            own.part(&begin.details).map_err(Refused::Exceeds)?
        };
        let limits = begin.limits.within(&ceilings(template));
        let life = template.ceilings.ttl.map_or(life, |most| life.min(most));
        let credential_ttl = template.ceilings.credential_ttl;
        Ok(Self { grants, params: filled.params, limits, life, credential_ttl })
    }
}

fn ceilings(template: &Template) -> Limits {
    let ceilings = &template.ceilings;
    Limits {
        calls: ceilings.max_calls,
        bytes: ceilings.max_bytes,
        cost_microusd: ceilings.max_cost_microusd,
        children: ceilings.max_children,
        depth: ceilings.max_depth,
        idle: ceilings.idle,
    }
}

/// A template's grant as a detail. One that cannot be read, because of what it was filled with, grants nothing.
fn read(catalogue: &Catalogue, detail: &TemplateDetail) -> Option<Detail> {
    let target = catalogue.target(&detail.target)?;
    let list = |all: &BTreeSet<String>| all.iter().cloned().collect();
    let locations = if detail.locations.is_empty() { vec![place(target)] } else { detail.locations.clone() };
    Detail::read(&RawDetail {
        kind: TARGET_ACCESS.to_owned(),
        locations,
        actions: detail.actions.iter().map(ToString::to_string).collect(),
        datatypes: list(&detail.datatypes),
        identifier: detail.identifier.clone(),
        tools: list(&detail.tools),
        methods: list(&detail.methods),
        paths: list(&detail.paths),
    })
    .ok()
}

fn place(target: &Target) -> String {
    target.location.clone().unwrap_or_else(|| target.audience.clone())
}

/// A decision for the record.
pub(super) fn recorded(decision: &Decision, phase: Phase, action: Action, target: &str) -> PolicyDecision {
    let obligations = &decision.obligations;
    let ttl = obligations.max_ttl.map(|most| format!("max_ttl={}", most.as_secs()));
    let binding = obligations.binding.map(|binding| format!("binding={}", binding.as_str()));
    let log = obligations.log.iter().map(|log| format!("log={}", log.as_str()));
    PolicyDecision {
        evaluation_id: decision.evaluation_id.to_string(),
        result: decision.verdict.as_str(),
        phase: phase.as_str(),
        action: action.as_str(),
        target: target.to_owned(),
        tool: None,
        args_hash: None,
        policy_ids: decision.policy_ids.clone(),
        policy_version: decision.policy_version.map(|version| version.to_string()),
        reason: decision.reason.as_str(),
        obligations: ttl.into_iter().chain(binding).chain(log).collect(),
    }
}

impl Shared {
    fn bounds_life(&self) -> (Duration, Duration) {
        let state = self.lock();
        let bounds = state.tasks.tree.bounds();
        (bounds.default_life, bounds.life)
    }

    fn known_task(&self, key: Option<&Key>) -> Result<Option<TaskView>, TaskError> {
        let Some(key) = key else { return Ok(None) };
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let state = self.lock();
        match state.tasks.tree.repeated(key)? {
            Some(Repeat::Task(id)) => Ok(state.tasks.view(id, now, wall)),
            Some(Repeat::Offer(_)) => Err(Refused::Conflict.into()),
            None => Ok(None),
        }
    }

    fn new_task_id(&self) -> Result<TaskId, TaskError> {
        let mut random = [0; 10];
        aws_lc_rs::rand::fill(&mut random).map_err(|aws_lc_rs::error::Unspecified| {
            crate::workload::Refusal::Authority(crate::authority::CryptoError.into())
        })?;
        Ok(TaskId::new(crate::clock::unix_millis(self.parts.clock.wall()), random))
    }

    /// The facts of a task that does not exist yet.
    fn facts_to_be(&self, id: TaskId, begin: &Begin, plan: &Plan) -> crate::policy::TaskFacts {
        let now = self.parts.clock.wall();
        crate::policy::TaskFacts {
            id: id.to_string(),
            root: id.to_string(),
            depth: 0,
            purpose: begin.purpose.clone(),
            template: begin.template.clone(),
            started: now,
            deadline: now + plan.life,
            calls: 0,
            denials: 0,
            children: 0,
            audiences: 0,
        }
    }

    fn decide_begin(
        &self,
        set: &Arc<PolicySet>,
        who: &WorkloadFacts,
        id: TaskId,
        begin: &Begin,
        plan: &Plan,
    ) -> Decision {
        let task = self.facts_to_be(id, begin, plan);
        let object = Object::Template(begin.template.clone());
        let now = self.parts.clock.wall();
        let question =
            Question::of_task(who.clone(), Action::Begin, object, Phase::Begin, task, plan.life, now);
        set.decide(&question, crate::policy::Engine::new_evaluation())
    }

    /// What policy does not rule out for good: what it allows, or would with somebody's approval. Targets that the
    /// catalogue does not have are nobody's.
    fn left_by_policy(
        &self,
        set: &Arc<PolicySet>,
        who: &WorkloadFacts,
        id: TaskId,
        begin: &Begin,
        plan: &Plan,
    ) -> Grants {
        let now = self.parts.clock.wall();
        let mut known: BTreeMap<(String, Action), bool> = BTreeMap::new();
        let mut may = |target: &Target, action: Action| {
            *known.entry((target.name.clone(), action)).or_insert_with(|| {
                let task = self.facts_to_be(id, begin, plan);
                let object = Object::Target(target.name.clone());
                let ttl = plan.credential_ttl.unwrap_or(DEFAULT_CREDENTIAL);
                let question = Question::of_task(who.clone(), action, object, Phase::Begin, task, ttl, now);
                set.decide(&question, crate::policy::Engine::new_evaluation()).verdict != Verdict::Deny
            })
        };
        let targets: Vec<(&Arc<Target>, Location)> = set
            .catalogue()
            .targets()
            .filter_map(|target| Some((target, Location::parse(&place(target)).ok()?)))
            .collect();
        plan.grants.keep(|detail, action| {
            let about = |at: &Location| detail.locations.iter().any(|own| own.overlap(at).is_some());
            targets.iter().filter(|(_, at)| about(at)).any(|(target, _)| may(target, action))
        })
    }

    fn seat_task(
        &self,
        admission: &Admission,
        id: TaskId,
        charter: Charter,
        plan: &Plan,
        key: Option<Key>,
        keeper: Option<&BTreeSet<String>>,
    ) -> Result<TaskView, TaskError> {
        let process = admission.process();
        let keeper = keeper.map(|audiences| self.look_at_keeper(process, audiences)).transpose()?;
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let seat = Seat {
            holder: admission.id(),
            process: caller(admission).process,
            uid: process.uid(),
            scope: Scope::Process,
        };
        let new = NewTask { id, charter, seat, life: Some(plan.life), pending: false, begun_at: wall, key };
        let mut state = self.lock();
        if !state.members.contains_key(&admission.id()) {
            return Err(crate::workload::Refusal::Exited.into());
        }
        state.tasks.tree.begin(new, now)?;
        state.tasks.keepers.extend(keeper.map(|keeper| (id, keeper)));
        state.core.hold(admission.id());
        self.timer.notify_one();
        state.tasks.view(id, now, wall).ok_or(TaskError::Refused(Refused::NoSuchTask))
    }
}

/// Asked of policy where nothing says how long.
const DEFAULT_CREDENTIAL: Duration = Duration::from_secs(300);
