//! What is decided about one request of a task: whether the task may ask at all, what its grants have of it, and what
//! policy says of each action.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::approval_use::Approved;
use super::begin::recorded;
use super::credential::Form;
use super::issue::Ask;
use super::named::request_of;
use super::probes::refused_event;
use super::{TaskError, TaskView, caller};
use crate::audit::Event;
use crate::policy::{
    Action, ApprovalFacts, Decision, GrantedActions, Kind, Object, PermitRequest, Phase, PolicySet, Question,
    Target, WorkloadFacts,
};
use crate::registration::Identity;
use crate::task::approval::ApprovalError;
use crate::task::{Grants, Operation, Refused, Says, Wish};
use crate::workload::{Admission, Refusal, Shared};

/// Everything that was decided about one request.
pub(super) struct Decided {
    pub(super) view: TaskView,
    pub(super) target: Arc<Target>,
    pub(super) grants: Grants,
    pub(super) granted: GrantedActions,
    pub(super) approved: Option<Approved>,
}

/// Why nothing was decided, or what: and in which task, if it is the caller's.
pub(super) type NotDecided = (TaskError, Option<TaskView>);

impl Shared {
    /// Everything that has to be a yes, in order: the caller's right to the task, the task's standing, its grants,
    /// policy. Beside an error is the task, if it is the caller's.
    pub(super) fn decide(&self, admission: &Admission, ask: &Ask) -> Result<Decided, Box<NotDecided>> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let view = {
            let mut state = self.lock();
            let entered = state.tasks.tree.enter(ask.task, &caller(admission), now);
            entered.map_err(|refused| Box::new((refused.into(), None)))?;
            if ask.form.is_some() {
                let room = state.tasks.spend_rate(ask.task, now);
                room.map_err(|refused| Box::new((refused.into(), None)))?;
            }
            state
                .tasks
                .view(ask.task, now, wall)
                .ok_or_else(|| Box::new((Refused::NoSuchTask.into(), None)))?
        };
        self.decide_in(admission, ask, &view).map_err(|error| Box::new((error, Some(view))))
    }

    pub(super) fn decide_in(
        &self,
        admission: &Admission,
        ask: &Ask,
        view: &TaskView,
    ) -> Result<Decided, TaskError> {
        let set = self.parts.policy.in_force();
        let approved = ask.approval.map(|id| self.approved(id, ask, view, &set)).transpose();
        let approved = approved.inspect_err(|why| self.note_misuse(admission, why))?;
        let under = approved.as_ref().map(|approved| approved.ask(ask));
        let ask = under.as_ref().unwrap_or(ask);
        let facts = approved.as_ref().map(|approved| &approved.facts);
        let subject = self.subject(admission.id(), &view.task.charter.entry).ok_or(Refusal::NotEntitled)?;
        let who = self.facts(&subject.process, &subject.attestation, subject.attested_at, &subject.identity);
        let Some(target) = find_target(&set, ask) else {
            let object = Object::Target(ask.target.clone());
            let action = ask.action.unwrap_or(Action::Read);
            let question = self.question(who, view, action, object, ask, facts);
            return Err(TaskError::Denied(Box::new(self.parts.policy.decide(&question))));
        };
        let target = Arc::clone(target);
        let wish = Wish {
            target: &target,
            details: &ask.details,
            operation: ask.operation.as_ref(),
            action: ask.action,
            says: match ask.form {
                None => Says::Everything,
                Some(Form::Access) if approved.is_some() => Says::Everything,
                Some(Form::Access) => Says::Details,
                Some(_) => Says::Nothing,
            },
        };
        let grants = wish.part(&view.task.charter.grants)?;
        let questions: Vec<Question> = grants
            .actions()
            .into_iter()
            .map(|action| {
                let object = Object::Target(target.name.clone());
                let mut question = self.question(who.clone(), view, action, object, ask, facts);
                question.circumstances.new_destination = is_new_destination(&set, view, ask);
                question
            })
            .collect();
        let falls_short = |yes: &Approved| questions.iter().find_map(|asked| yes.falls_short(&set, asked));
        if let Some(denied) = approved.as_ref().and_then(falls_short) {
            return Err(TaskError::Denied(Box::new(denied)));
        }
        let all = !ask.details.is_empty() || ask.operation.is_some() || ask.action.is_some();
        let request = permit_request(&subject.identity, ask, &target, self.ttl(view, ask));
        let granted = self.parts.policy.permit_for_actions(request, &questions, all);
        let granted = granted.map_err(|refused| match refused.refused.into_iter().next() {
            Some((_, decision)) => TaskError::Denied(Box::new(decision)),
            None => TaskError::Workload(Refusal::NotEntitled),
        })?;
        let allowed: BTreeSet<Action> = granted.allowed.iter().map(|(action, _)| *action).collect();
        let grants = grants.keep(|_, action| allowed.contains(&action));
        Ok(Decided { view: view.clone(), target, grants, granted, approved })
    }

    /// Somebody wants to do something else than what was approved, or by an approval that is not his.
    pub(super) fn note_misuse(&self, admission: &Admission, why: &TaskError) {
        if matches!(why, TaskError::Approval(ApprovalError::Other | ApprovalError::Unknown)) {
            self.note_denied(admission.process(), "approval", &why.to_string());
        }
    }

    pub(super) fn question(
        &self,
        mut who: WorkloadFacts,
        view: &TaskView,
        action: Action,
        object: Object,
        ask: &Ask,
        approval: Option<&ApprovalFacts>,
    ) -> Question {
        who.posture.isolated = view.isolated;
        let (task, ttl, now) = (view.policy_facts(), self.ttl(view, ask), self.parts.clock.wall());
        let mut question = Question::of_task(who, action, object, Phase::Issue, task, ttl, now);
        let mut above = view.chain.iter().rev();
        above.next();
        question.circumstances.chain = above.cloned().collect();
        question.circumstances.tasks_above.clone_from(&view.tasks_above);
        question.circumstances.on_behalf_of = self.user_facts(view);
        if let Some(operation) = &ask.operation {
            operation.tell(&mut question.circumstances);
        }
        question.circumstances.approval = approval.cloned();
        question
    }

    /// No longer than was asked for, than a credential of this task may live, and than the task does.
    pub(super) fn ttl(&self, view: &TaskView, ask: &Ask) -> Duration {
        let left = view.task.deadline.saturating_duration_since(self.parts.clock.monotonic());
        let (default, most) = {
            let state = self.lock();
            let bounds = state.tasks.tree.bounds();
            (bounds.default_credential, bounds.credential)
        };
        let own = view.task.charter.credential_ttl.unwrap_or(most);
        ask.ttl.unwrap_or(default).min(own).min(most).min(left)
    }

    /// What was decided, for the record, with the operation's tool and digest.
    pub(super) fn decided(
        &self,
        admission: &Admission,
        view: &TaskView,
        (action, decision): (Action, &Decision),
        target: &str,
        operation: Option<&Operation>,
    ) -> Event {
        let mut recorded = recorded(decision, Phase::Issue, action, target);
        recorded.tool = operation.and_then(Operation::tool).map(str::to_owned);
        recorded.args_hash = operation.map(|operation| crate::id::hex_text(&operation.digest()));
        recorded.request = operation.map(|operation| request_of(operation, decision));
        Event::Decided { agent: view.caller(admission), task: view.facts(), decision: Box::new(recorded) }
    }

    pub(super) fn note_task_denial(
        &self,
        admission: &Admission,
        error: &TaskError,
        view: Option<&TaskView>,
        ask: &Ask,
    ) {
        let Some(view) = view else { return };
        self.count_denial(view.task.id);
        let target = self.target_name(ask);
        let event = match error {
            TaskError::Denied(decision) | TaskError::Unbound(decision) => {
                let decided = (decision.action, decision.as_ref());
                self.decided(admission, view, decided, &target, ask.operation.as_ref())
            }
            TaskError::Refused(refused) => {
                refused_event(view.caller(admission), view, *refused, ask, &target)
            }
            _ => return,
        };
        self.parts.audit.note(vec![event]);
    }
}

/// What a permit would be for, if policy gives one.
fn permit_request(identity: &Identity, ask: &Ask, target: &Target, ttl: Duration) -> PermitRequest {
    PermitRequest {
        entry: identity.entry.id.clone(),
        spiffe_id: identity.spiffe_id.clone(),
        kind: ask.form.map_or(Kind::Jwt, Form::kind),
        ttl,
        audience: vec![target.audience.clone()],
        allowed_audiences: None,
        dns_names: Vec::new(),
        hint: identity.hint.clone(),
    }
}

/// Whether the task has had no credential for that target yet, by whichever name it is asked about.
pub(super) fn is_new_destination(set: &PolicySet, view: &TaskView, ask: &Ask) -> bool {
    let audience = find_target(set, ask).map_or(&ask.target, |target| &target.audience);
    !view.task.audiences.contains(audience)
}

/// The target that was asked for. A credential is for an audience; a question can be about a target by its name.
pub(super) fn find_target<'a>(set: &'a PolicySet, ask: &Ask) -> Option<&'a Arc<Target>> {
    let by_audience = set.catalogue().target_for(&ask.target);
    by_audience.or_else(|| set.catalogue().target(&ask.target).filter(|_| ask.form.is_none()))
}
