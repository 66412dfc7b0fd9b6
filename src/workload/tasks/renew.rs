//! More time for a task: a new decision, by the policy set in force now. Never past the task above it, nor its longest
//! life; what policy takes away on that occasion, everything below loses as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::approval_use::Approved;
use super::begin::recorded;
use super::keeping::Written;
use super::plan::{DEFAULT_CREDENTIAL, ToBe, template_denial};
use super::users::user_of;
use super::{TaskError, TaskView, caller};
use crate::audit::{Event, PolicyDecision, TaskStep};
use crate::id::TaskId;
use crate::policy::{Action, Decision, Engine, Object, Phase, PolicySet, TaskFacts, WorkloadFacts};
use crate::task::{Grants, Refused};
use crate::workload::revoker::Initiator;
use crate::workload::{Admission, Refusal, Shared, Workloads};

impl Workloads {
    /// Gives the caller's task more time, from now on.
    ///
    /// # Errors
    /// [`TaskError`]; it ends when it would have ended.
    pub async fn renew_task(
        &self,
        admission: &Admission,
        id: TaskId,
        life: Option<Duration>,
    ) -> Result<TaskView, TaskError> {
        let shared = &self.0;
        let view = shared.enter(id, admission)?;
        let set = shared.parts.policy.in_force();
        let life = shared.life_of_renewal(&set, &view, life);
        let now = shared.parts.clock.monotonic();
        // Policy is not asked for what is not to be had anyway.
        let until = shared.lock().tasks.tree.renewed_until(id, life, &caller(admission), now)?;
        let who = self.facts(admission, &view.task.charter.entry).ok_or(Refusal::NotEntitled)?;
        let to_be = shared.renewed(&set, &view, who, until.saturating_duration_since(now));
        let (decision, recorded) = shared.decide_renewal(&set, &view, &to_be, None, false)?;
        if !decision.is_allowed() {
            shared.count_denial(id);
            let (agent, task, recorded) = (view.caller(admission), view.facts(), Box::new(recorded));
            shared.parts.audit.note(vec![Event::Decided { agent, task, decision: recorded }]);
            return Err(TaskError::Denied(Box::new(decision)));
        }
        let cut = to_be.left_by(&set);
        let life = decision.obligations.shorten(life);
        let (before, view, written) = shared.give_time(admission, id, life, &cut)?;
        let (agent, task, decision) = (view.caller(admission), view.facts(), Some(Box::new(recorded)));
        let event = Event::Task { step: TaskStep::Renew, agent, task, decision, end: None };
        if let Err(refusal) = shared.written_and_recorded(written, vec![event]).await {
            // Time of which no record could be made is taken back.
            let mut state = shared.lock();
            state.tasks.tree.curtail(id, before);
            shared.note_undone(&state, id);
            shared.timer.notify_one();
            return Err(refusal.into());
        }
        Ok(view)
    }
}

impl Shared {
    /// What is asked for, or as long as a task lives by default; no longer than its template lets one live.
    fn life_of_renewal(&self, set: &PolicySet, view: &TaskView, life: Option<Duration>) -> Duration {
        let default_life = self.bounds().default_life;
        let template = view.task.charter.template.as_deref();
        let most = template.and_then(|name| set.catalogue().template(name)?.ceilings.ttl);
        let life = life.unwrap_or(default_life);
        most.map_or(life, |most| life.min(most))
    }

    /// The task as it would be with that much time.
    pub(super) fn renewed<'a>(
        &self,
        set: &PolicySet,
        view: &'a TaskView,
        mut who: WorkloadFacts,
        left: Duration,
    ) -> ToBe<'a> {
        let charter = &view.task.charter;
        who.posture.isolated = view.isolated;
        let now = self.parts.clock.wall();
        let task = TaskFacts { deadline: now + left, ..view.policy_facts() };
        let ttl = charter.credential_ttl.unwrap_or(DEFAULT_CREDENTIAL);
        let user = user_of(set, charter.user.as_ref());
        ToBe { who, task, chain: view.above(), user, plan: &charter.grants, ttl, now }
    }

    /// A root is decided as when it began; a child, as when it was handed on. `approved`: what people said to that.
    /// `as_begun`: by what they were then, and not by what they have done since.
    pub(super) fn decide_renewal(
        &self,
        set: &Arc<PolicySet>,
        view: &TaskView,
        to_be: &ToBe<'_>,
        approved: Option<&Approved>,
        as_begun: bool,
    ) -> Result<(Decision, PolicyDecision), TaskError> {
        let left = to_be.task.deadline.duration_since(to_be.now).unwrap_or_default();
        let charter = &view.task.charter;
        let Some(parent) = view.task.parent else {
            let mut question =
                to_be.question(Action::Begin, Object::Template(charter.template.clone()), left);
            question.circumstances.approval = approved.map(|approved| approved.facts.clone());
            let decision = set.decide(&question, Engine::new_evaluation());
            let target = charter.template.as_deref().unwrap_or_default();
            let recorded = recorded(&decision, Phase::Begin, Action::Begin, target);
            return Ok((decision, recorded));
        };
        let mut parent = self.task_now(parent)?;
        // When it was handed on it was not there yet.
        parent.task.children.remove(&view.task.id);
        let mut who = None;
        if as_begun {
            parent = parent.when_it_began();
            let known = self.facts_of_seat(&parent.task.seat, &parent.task.charter.entry);
            who = known.map(|known| WorkloadFacts { attested_at: to_be.now, ..known });
        }
        let decision = match template_denial(set, &charter.spiffe_id, charter.template.as_deref()) {
            Some(denied) => denied,
            None => self.decide_delegation(set, &parent, who, &charter.spiffe_id, left, approved)?,
        };
        let recorded = recorded(&decision, Phase::Begin, Action::Delegate, charter.spiffe_id.as_str());
        Ok((decision, recorded))
    }

    fn task_now(&self, id: TaskId) -> Result<TaskView, TaskError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let state = self.lock();
        state.tasks.view(id, now, wall).ok_or(TaskError::Refused(Refused::NoSuchTask))
    }

    /// When it would have ended, and what it is now.
    fn give_time(
        self: &Arc<Self>,
        admission: &Admission,
        id: TaskId,
        life: Duration,
        cut: &Grants,
    ) -> Result<(Instant, TaskView, Written), TaskError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut state = self.lock();
        let before = state.tasks.tree.get(id).ok_or(Refused::NoSuchTask)?.deadline;
        let cascade = state.tasks.tree.renew(id, life, cut, &caller(admission), now, wall)?;
        self.carry_out(&mut state, &cascade, Initiator::Policy, now, None);
        self.timer.notify_one();
        let view = state.tasks.view(id, now, wall).ok_or(Refused::NoSuchTask)?;
        let written = self.note_down(state.tasks.tree.notes_of_subtree(id, &self.epoch));
        Ok((before, view, written))
    }
}
