//! What a request for a task comes to before policy is asked, and what policy leaves of it. The same for one that
//! begins and for one that is delegated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::TaskError;
use crate::audit;
use crate::id::{SpiffeId, TaskId};
use crate::policy::{
    Action, Catalogue, Decision, Engine, Object, Obligations, Phase, PolicySet, Question, Reason, Target,
    TaskFacts, Template, TemplateDetail, UserFacts, Verdict, WorkloadFacts,
};
use crate::task::grant::TARGET_ACCESS;
use crate::task::place::Location;
use crate::task::{Bounds, Detail, Grants, Limit, Limits, RawDetail, Refused, User};

/// What was asked for.
pub(super) struct Wanted<'a> {
    pub(super) template: Option<&'a str>,
    pub(super) params: &'a BTreeMap<String, String>,
    /// Empty: what the template has.
    pub(super) details: &'a [Detail],
    pub(super) life: Option<Duration>,
    pub(super) limits: &'a Limits,
}

/// What it comes to.
pub(super) struct Plan {
    pub(super) grants: Grants,
    pub(super) params: BTreeMap<String, String>,
    pub(super) limits: Limits,
    pub(super) life: Option<Duration>,
    pub(super) credential_ttl: Option<Duration>,
}

impl Plan {
    /// `bounds`: no task has more, whoever asks for it.
    pub(super) fn of(catalogue: &Catalogue, wanted: &Wanted<'_>, bounds: &Bounds) -> Result<Self, TaskError> {
        if wanted.life.is_some_and(|life| life > bounds.life) {
            return Err(Refused::Limit(Limit::Life).into());
        }
        let life = wanted.life;
        // What a task is told is what counts.
        let limits = wanted.limits.within(&bounds.limits());
        // What the catalogue does not know is for policy to deny, with a name for the decision.
        let template = wanted.template.and_then(|name| catalogue.template(name));
        let Some(template) = template else {
            if !wanted.params.is_empty() {
                return Err(TaskError::Malformed("params".to_owned()));
            }
            let grants = Grants::of(wanted.details.to_vec());
            return Ok(Self { grants, params: BTreeMap::new(), limits, life, credential_ttl: None });
        };
        let filled =
            template.fill(wanted.params).map_err(|wrong| TaskError::Malformed(format!("params: {wrong}")))?;
        let own = Grants::of(filled.details.iter().filter_map(|detail| read(catalogue, detail)).collect());
        let grants = if wanted.details.is_empty() {
            own
        } else {
            own.part(wanted.details).map_err(Refused::Exceeds)?
        };
        let limits = limits.within(&ceilings(template));
        let life = life.into_iter().chain(template.ceilings.ttl).min();
        let credential_ttl = template.ceilings.credential_ttl;
        Ok(Self { grants, params: filled.params, limits, life, credential_ttl })
    }
}

fn ceilings(template: &Template) -> Limits {
    let ceilings = &template.ceilings;
    Limits {
        calls: ceilings.max_calls,
        children: ceilings.max_children,
        depth: ceilings.max_depth,
        idle: ceilings.idle,
        ..Limits::default()
    }
}

/// A template's grant as a detail. One that cannot be read, because of what it was filled with, grants nothing.
fn read(catalogue: &Catalogue, detail: &TemplateDetail) -> Option<Detail> {
    let target = catalogue.target(&detail.target)?;
    let list = |all: &std::collections::BTreeSet<String>| all.iter().cloned().collect();
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

/// A task as it would be, for policy.
pub(super) struct ToBe<'a> {
    pub(super) who: WorkloadFacts,
    pub(super) task: TaskFacts,
    /// Who delegated, from the parent to the root.
    pub(super) chain: Vec<SpiffeId>,
    /// In whose name.
    pub(super) user: Option<UserFacts>,
    pub(super) plan: &'a Grants,
    /// Of a credential.
    pub(super) ttl: Duration,
    pub(super) now: SystemTime,
}

impl ToBe<'_> {
    /// One question about it.
    pub(super) fn question(&self, action: Action, object: Object, ttl: Duration) -> Question {
        let (who, task) = (self.who.clone(), self.task.clone());
        let mut question = Question::of_task(who, action, object, Phase::Begin, task, ttl, self.now);
        question.circumstances.chain.clone_from(&self.chain);
        question.circumstances.on_behalf_of.clone_from(&self.user);
        question
    }

    /// What policy does not rule out for good: what it allows, or would with somebody's approval. Targets that the
    /// catalogue does not have are nobody's.
    pub(super) fn left_by(&self, set: &PolicySet) -> Grants {
        let mut known: BTreeMap<(String, Action), bool> = BTreeMap::new();
        let mut may = |target: &Target, action: Action| {
            *known.entry((target.name.clone(), action)).or_insert_with(|| {
                let question = self.question(action, Object::Target(target.name.clone()), self.ttl);
                let decision = set.decide(&question, Engine::new_evaluation());
                // What is frozen goes on one day, and an error is nobody's no: neither is for good.
                decision.verdict != Verdict::Deny
                    || matches!(decision.reason, Reason::Frozen | Reason::EvaluationError)
            })
        };
        let targets: Vec<(&Arc<Target>, Location)> = set
            .catalogue()
            .targets()
            .filter_map(|target| Some((target, Location::parse(&place(target)).ok()?)))
            .collect();
        self.plan.keep(|detail, action| {
            let about = |at: &Location| detail.locations.iter().any(|own| own.overlap(at).is_some());
            targets.iter().filter(|(_, at)| about(at)).any(|(target, _)| may(target, action))
        })
    }
}

impl ToBe<'_> {
    /// For the record, when nothing comes of it.
    pub(super) fn refused(&self, id: TaskId, user: Option<&User>) -> audit::TaskFacts {
        audit::TaskFacts {
            id,
            root: id,
            parent: None,
            depth: 0,
            template: self.task.template.clone(),
            purpose: self.task.purpose.clone(),
            state: "refused",
            deadline: None,
            isolated: false,
            chain: vec![self.who.spiffe_id.to_string()],
            user: user.map(|user| audit::UserPrint::of(&user.iss, &user.sub)),
        }
    }
}

/// The facts of a task that has used up nothing yet.
pub(super) fn unspent(
    id: TaskId,
    (root, depth): (TaskId, u32),
    (purpose, template): (&str, Option<&str>),
    (started, deadline): (SystemTime, SystemTime),
) -> TaskFacts {
    TaskFacts {
        id: id.to_string(),
        root: root.to_string(),
        depth,
        purpose: purpose.to_owned(),
        template: template.map(str::to_owned),
        started,
        deadline,
        calls: 0,
        denials: 0,
        children: 0,
        audiences: 0,
    }
}

/// The catalogue's no to a child by a template that its agent may not use. Policies believe the template's name, so it
/// must not be had by way of somebody else.
pub(super) fn template_denial(set: &PolicySet, agent: &SpiffeId, template: Option<&str>) -> Option<Decision> {
    let name = template?;
    let reason = match set.catalogue().template(name) {
        None => Reason::UnknownTemplate,
        Some(_) if !set.catalogue().may_begin(agent, Some(name)) => Reason::TemplateNotAllowed,
        Some(_) => return None,
    };
    Some(Decision {
        verdict: Verdict::Deny,
        evaluation_id: Engine::new_evaluation(),
        policy_ids: Vec::new(),
        policy_version: set.version(),
        reason,
        obligations: Obligations::default(),
        action: Action::Delegate,
    })
}

/// Asked of policy where nothing says how long.
pub(super) const DEFAULT_CREDENTIAL: Duration = Duration::from_secs(300);
