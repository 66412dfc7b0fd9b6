//! What policy would say, for operators: by which policies, and what would have to change. Issues nothing, is recorded
//! nowhere and costs the task nothing.

use std::sync::Arc;

use super::deciding::{find_target, is_new_destination};
use super::{Ask, TaskError, TaskView};
use crate::id::{SpiffeId, TaskId};
use crate::policy::{
    Action, Engine, Explanation, Object, Phase, PolicySet, Principal, Question, Sketch, WorkloadFacts,
};
use crate::task::{Refused, Says, Wish};
use crate::workload::{Refusal, Shared, Workloads};

/// What an operator wants to know.
#[derive(Clone, Debug)]
pub struct AskAs {
    /// In which task; `None`: an agent that has begun none.
    pub task: Option<TaskId>,
    /// As whom; with a task, it must be that task's.
    pub spiffe_id: Option<SpiffeId>,
    /// What; its `task` means nothing here.
    pub ask: Ask,
}

/// The answer.
#[derive(Debug)]
pub struct Explained {
    /// What policy would say.
    pub explanation: Explanation,
    /// What it was asked.
    pub question: Question,
    /// What stands in the way before policy is asked; it would not be, then.
    pub before: Option<Refused>,
}

impl Workloads {
    /// Takes one decision apart, as it would be now.
    ///
    /// # Errors
    /// There is no such task, it is another identity's, or nobody is named.
    pub fn explain_for_task(&self, asked: &AskAs) -> Result<Explained, TaskError> {
        let set = self.0.parts.policy.in_force();
        match (asked.task, &asked.spiffe_id) {
            (Some(id), spiffe_id) => self.0.explain_in_task(&set, id, spiffe_id.as_ref(), &asked.ask),
            (None, Some(spiffe_id)) => self.0.explain_without_task(&set, spiffe_id, &asked.ask),
            (None, None) => Err(TaskError::Malformed("spiffe_id".to_owned())),
        }
    }
}

impl Shared {
    fn explain_in_task(
        &self,
        set: &Arc<PolicySet>,
        id: TaskId,
        spiffe_id: Option<&SpiffeId>,
        ask: &Ask,
    ) -> Result<Explained, TaskError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let (view, standing) = {
            let state = self.lock();
            let view = state.tasks.view(id, now, wall).ok_or(Refused::NoSuchTask)?;
            (view, state.tasks.tree.standing(id))
        };
        if spiffe_id.is_some_and(|named| *named != view.task.charter.spiffe_id) {
            return Err(TaskError::Malformed("spiffe_id".to_owned()));
        }
        let seat = &view.task.seat;
        let Some(who) = self.facts_of_seat(seat, &view.task.charter.entry) else {
            // Its process is gone: there is nobody to ask policy about.
            return Err(standing.err().map_or_else(|| Refusal::NotEntitled.into(), TaskError::Refused));
        };
        let action = ask.action.unwrap_or(Action::Read);
        let (object, phase) = object_of(set, action, ask)?;
        let mut question = self.question(who, &view, action, object, ask, None);
        question.phase = phase;
        question.circumstances.new_destination = action.is_on_target() && is_new_destination(set, &view, ask);
        let covered = || action.is_on_target().then(|| not_granted(set, &view, ask)).flatten();
        let before = standing.err().or_else(covered);
        Ok(Explained { explanation: set.explain(&question, Engine::new_evaluation()), question, before })
    }

    /// As a task of that agent that has just begun; of one of its live processes, if it has any.
    fn explain_without_task(
        &self,
        set: &Arc<PolicySet>,
        spiffe_id: &SpiffeId,
        ask: &Ask,
    ) -> Result<Explained, TaskError> {
        let action = ask.action.unwrap_or(Action::Read);
        let sketch = Sketch {
            agent: Some(spiffe_id.clone()),
            action: Some(action),
            target: Some(ask.target.clone()),
            // What is begun or handed on is asked about for as long as it is to live.
            ttl: ask.ttl.or_else(|| (!action.is_on_target()).then(|| self.bounds().default_life)),
            template: Some(ask.target.clone()).filter(|name| action == Action::Begin && !name.is_empty()),
            to: if action == Action::Delegate { Some(agent_of(ask)?) } else { None },
            ..Sketch::default()
        };
        let question = sketch.question(set.catalogue(), self.parts.clock.wall());
        let mut question = question.map_err(|_why| TaskError::Malformed("request".to_owned()))?;
        if let Some(who) = self.some_process_of(spiffe_id) {
            question.principal = Principal::Workload(who);
        }
        if let Some(operation) = &ask.operation {
            operation.tell(&mut question.circumstances);
        }
        question.circumstances.new_destination = action.is_on_target();
        let explanation = set.explain(&question, Engine::new_evaluation());
        Ok(Explained { explanation, question, before: None })
    }

    /// The one that was attested last.
    fn some_process_of(&self, spiffe_id: &SpiffeId) -> Option<WorkloadFacts> {
        let state = self.lock();
        let with = state.members.values().filter_map(|member| {
            let identity = member.identities.iter().find(|one| one.spiffe_id == *spiffe_id)?;
            Some((member, identity))
        });
        let (member, identity) = with.max_by_key(|(member, _)| (member.attested_at, member.process.pid()))?;
        Some(self.facts(&member.process, &member.attestation, member.attested_at, identity))
    }
}

/// To what it is done, and when policy is asked about that.
fn object_of(set: &PolicySet, action: Action, ask: &Ask) -> Result<(Object, Phase), TaskError> {
    if action == Action::Delegate {
        return Ok((Object::Agent(agent_of(ask)?), Phase::Begin));
    }
    let name = find_target(set, ask).map_or_else(|| ask.target.clone(), |target| target.name.clone());
    Ok((Object::Target(name), Phase::Issue))
}

/// To whom a part is handed.
fn agent_of(ask: &Ask) -> Result<SpiffeId, TaskError> {
    let agent = SpiffeId::parse(ask.target.as_bytes());
    agent.map_err(|_not_one| TaskError::Malformed("request.target".to_owned()))
}

/// Whether the task's own details rule it out.
fn not_granted(set: &PolicySet, view: &TaskView, ask: &Ask) -> Option<Refused> {
    let wish = Wish {
        target: find_target(set, ask)?,
        details: &ask.details,
        operation: ask.operation.as_ref(),
        action: ask.action,
        says: Says::Everything,
    };
    wish.part(&view.task.charter.grants).err()
}
