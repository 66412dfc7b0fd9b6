//! Who answers. The agent that asks must not be able to: not from its task or another, not as its user, not from its
//! cgroup. Whoever answers is a person of the catalogue by his user, in each group that the policy names, and policy
//! lets him `approve`; or he is root.
//!
//! Root writes the policies, so that it would mean nothing to keep him from deciding where one answer is enough. Where
//! several people have to agree, root is nobody: he may be one of those who have answered.

use std::sync::Arc;

use mayfly_attestors::Process;
use tokio::sync::oneshot;

use super::TaskView;
use super::approvals::{ApprovalView, ROOT, event};
use super::named::about;
use crate::audit::{self, ApprovalStep, Event};
use crate::id::{ApprovalId, SpiffeId};
use crate::policy::{
    Action, Circumstances, Decision, Object, Phase, PolicySet, Principal, Question, UserFacts,
};
use crate::task::approval::{Approval, ApprovalError, Jury, Person, Vote};
use crate::workload::{Shared, State, Workloads};

/// An answer, and what it was about.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which.
    pub approval: ApprovalId,
    /// Yes or no.
    pub approve: bool,
    /// For the record.
    pub reason: String,
    /// SHA-256 of the operation that the person was shown; `None`: none was named.
    pub shown: Option<[u8; 32]>,
}

/// Why an answer does not count.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The book says no.
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    /// Whoever answers is the user that the agent, or one it works for, runs as.
    #[error("the agent that asks runs as uid {0}: somebody else must decide")]
    SameUser(u32),
    /// Whoever answers is where the agent is.
    #[error(
        "this process is in the cgroup of the agent that asks: decide from another login session or service"
    )]
    SameCgroup,
    /// The catalogue does not know him.
    #[error(
        "the catalogue has nobody with uid {0}: list them under `[[people]]`, in a group that the policy names"
    )]
    Stranger(u32),
    /// One who may be one of the others.
    #[error(
        "several people have to agree, and root may be one of those who have: decide as yourself, as the catalogue \
         knows you"
    )]
    RootAmongMany,
    /// Somebody said yes to what an operator has frozen.
    #[error("this, or an agent in its chain, is frozen: a yes counts when it is thawed, a no at once")]
    Frozen,
    /// Policy does not let him approve.
    #[error("policy does not let this person approve: {} ({})", .0.reason.as_str(), .0.evaluation_id)]
    Policy(Box<Decision>),
    /// The record takes nothing: nobody has answered.
    #[error("the audit log takes nothing: nobody has answered, say it again when it does")]
    Audit(#[source] audit::AuditError),
}

/// What of an approval its answers hang on.
struct Matter {
    approval: Approval,
    operation: Option<crate::task::Operation>,
    object: Object,
    task: crate::policy::TaskFacts,
    chain: Vec<SpiffeId>,
    /// What waits for the answer could not go on now.
    is_frozen: bool,
}

/// An answer that would count.
struct Weighed {
    who: UserFacts,
    vote: Vote,
    event: Event,
}

impl Workloads {
    /// Takes an answer from the process `by` on the admin socket, which the service has found to be an operator's. It
    /// runs to its end whether or not the caller waits.
    ///
    /// # Errors
    /// [`AnswerError`]; nothing has changed then.
    pub async fn answer(&self, by: &Arc<Process>, answer: Answer) -> Result<ApprovalView, AnswerError> {
        let (send, taken) = oneshot::channel();
        let (shared, by) = (Arc::clone(&self.0), Arc::clone(by));
        self.0.spawn_for_call(async move {
            let taken = shared.take_answer(&by, &answer).await;
            let taken = taken.inspect_err(|why| {
                tracing::warn!(approval = %answer.approval, uid = by.uid(), pid = by.pid(), %why, "an answer does not count");
                shared.note_denied(&by, "approval", &why.to_string());
            });
            send.send(taken).ok();
        });
        // The runtime is only gone when the agent is.
        taken.await.unwrap_or(Err(AnswerError::Audit(audit::AuditError::Closed)))
    }
}

impl Shared {
    /// What is on record is what counts, and nothing counts before it is there.
    async fn take_answer(
        self: &Arc<Self>,
        by: &Process,
        answer: &Answer,
    ) -> Result<ApprovalView, AnswerError> {
        let turn = Arc::clone(&self.lock().tasks.approvals.turn);
        let _turn = turn.lock().await;
        let Weighed { who, vote, event } = self.weigh(by, answer)?;
        self.parts.audit.record(vec![event]).await.map_err(AnswerError::Audit)?;
        let now = self.parts.clock.monotonic();
        let view = {
            let mut state = self.lock();
            self.settle_approvals(&mut state, now);
            let desk = &mut state.tasks.approvals;
            let person = Person { name: &who.name, groups: &who.groups };
            let task = desk.book.vote(answer.approval, person, answer.shown, vote, now)?.subject.task;
            let view = desk.view(answer.approval).ok_or(ApprovalError::Unknown)?;
            state.tasks.tell_approval(task);
            view
        };
        self.timer.notify_one();
        if !view.is_pending() {
            self.settle_pending(answer.approval).await;
        }
        Ok(view)
    }

    /// What the answer would do, if it counts.
    fn weigh(&self, by: &Process, answer: &Answer) -> Result<Weighed, AnswerError> {
        let matter = self.matter(by, answer.approval)?;
        let set = self.parts.policy.in_force();
        let who = person(&set, by.uid(), &matter.approval.jury, answer.approve)?;
        if answer.approve && matter.is_frozen {
            return Err(AnswerError::Frozen);
        }
        if answer.approve {
            self.ask_whether_he_may(&set, &who, &matter)?;
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let vote = Vote {
            by: who.name.clone(),
            shown_by: shown(&who, by.uid()),
            approve: answer.approve,
            at: wall,
            reason: answer.reason.clone(),
        };
        let step = if answer.approve { ApprovalStep::Granted } else { ApprovalStep::Denied };
        let mut state = self.lock();
        self.settle_approvals(&mut state, now);
        let book = &mut state.tasks.approvals.book;
        let person = Person { name: &who.name, groups: &who.groups };
        let weighed = book.weigh(answer.approval, person, answer.shown, vote.clone(), now)?;
        let event = event(step, audit::Agent::new(by.key(), by.uid()), &weighed, Some(&vote));
        let event = about(event, matter.operation.as_ref());
        Ok(Weighed { who, vote, event })
    }

    /// The approval, unless whoever answers is too close to whoever asks.
    fn matter(&self, by: &Process, id: ApprovalId) -> Result<Matter, AnswerError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let cgroup = self.parts.attestors.cgroup_of(by);
        let mut state = self.lock();
        self.settle_approvals(&mut state, now);
        check_distance(&state, id, by.uid(), cgroup.as_deref())?;
        let desk = &state.tasks.approvals;
        let (approval, asker) = desk.book.get(id).zip(desk.askers.get(&id)).ok_or(ApprovalError::Unknown)?;
        let view = state.tasks.view(approval.subject.task, now, wall).ok_or(ApprovalError::Unknown)?;
        let waits = !approval.subject.action.is_on_target();
        Ok(Matter {
            is_frozen: waits && self.is_frozen_for_all(&view, &asker.object),
            approval: approval.clone(),
            operation: asker.operation.clone(),
            object: asker.object.clone(),
            task: view.policy_facts(),
            chain: view.chain.iter().rev().skip(1).cloned().collect(),
        })
    }

    /// Whether the task, or whom a part of it is for, is frozen.
    fn is_frozen_for_all(&self, view: &TaskView, object: &Object) -> bool {
        let to = if let Object::Agent(to) = object { Some(to.as_str()) } else { None };
        let set = self.parts.policy.in_force();
        self.is_frozen(view, None) || set.freezes().touches(to, [], None)
    }

    fn ask_whether_he_may(
        &self,
        set: &PolicySet,
        who: &UserFacts,
        matter: &Matter,
    ) -> Result<(), AnswerError> {
        let subject = &matter.approval.subject;
        let not = matter.approval.jury.not.clone();
        let mut circumstances = Circumstances {
            chain: matter.chain.clone(),
            on_behalf_of: not.map(|name| UserFacts { name, ..UserFacts::default() }),
            ..Circumstances::default()
        };
        if let Some(operation) = &matter.operation {
            operation.tell(&mut circumstances);
        }
        let question = Question {
            principal: Principal::User(who.clone()),
            action: Action::Approve,
            object: matter.object.clone(),
            phase: if subject.action.is_on_target() { Phase::Issue } else { Phase::Begin },
            now: self.parts.clock.wall(),
            requested_ttl: std::time::Duration::from_secs(120),
            task: Some(matter.task.clone()),
            circumstances,
        };
        let decision = set.decide(&question, crate::policy::Engine::new_evaluation());
        if decision.is_allowed() { Ok(()) } else { Err(AnswerError::Policy(Box::new(decision))) }
    }
}

fn check_distance(state: &State, id: ApprovalId, uid: u32, cgroup: Option<&str>) -> Result<(), AnswerError> {
    let asker = state.tasks.approvals.askers.get(&id).ok_or(ApprovalError::Unknown)?;
    if asker.places.iter().any(|place| place.uid == uid) {
        return Err(AnswerError::SameUser(uid));
    }
    if asker.places.iter().any(|place| place.holds(cgroup)) {
        return Err(AnswerError::SameCgroup);
    }
    Ok(())
}

/// Who that user is. Whoever the catalogue knows is that person, root too.
fn person(set: &PolicySet, uid: u32, jury: &Jury, approve: bool) -> Result<UserFacts, AnswerError> {
    if let Some(person) = set.catalogue().person_of_uid(uid) {
        return Ok(UserFacts { name: person.name.clone(), groups: person.groups.clone() });
    }
    match uid {
        0 if approve && jury.quorum > 1 => Err(AnswerError::RootAmongMany),
        0 => Ok(UserFacts { name: ROOT.to_owned(), groups: jury.groups.clone() }),
        uid => Err(AnswerError::Stranger(uid)),
    }
}

fn shown(who: &UserFacts, uid: u32) -> String {
    if who.name == ROOT { "uid:0 (root)".to_owned() } else { format!("uid:{uid} ({})", who.name) }
}
