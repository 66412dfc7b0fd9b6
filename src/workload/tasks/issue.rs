//! One credential for one audience, decided now. Asked, decided, taken from the budgets, minted, written down, looked
//! at again, and only then handed over; what the caller no longer takes, and what a task no longer holds, is revoked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::approvals::{AccessRequest, Approved};
use super::begin::recorded;
use super::credential::{Form, Shut, TaskCredential, keep_certificate};
use super::{TaskError, TaskView, caller};
use crate::audit::Event;
use crate::id::{ApprovalId, LeaseId, TaskId};
use crate::issue::access::{self, Binding, TaskTerms};
use crate::issue::{IssueError, jwt, wit, x509};
use crate::lease::{Completion, Jitter, Ticket};
use crate::ledger::{Committed, Reason, Row};
use crate::policy::{
    Action, ApprovalFacts, Decision, GrantedActions, Kind, Object, Permit, PermitRequest, Phase, PolicySet,
    Question, Target,
};
use crate::task::approval::ApprovalError;
use crate::task::{Bound, Detail, Flight, Grants, Landing, Operation, Refused, Wish, only, scope};
use crate::workload::issue::{Subject, issue_event, new_lease, remaining};
use crate::workload::revoker::Initiator;
use crate::workload::{Admission, Refusal, Shared, Workloads};

/// What an access token is to be bound to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Proof {
    /// A key of the caller: its thumbprint.
    Jkt(String),
    /// A certificate of the same task.
    Certificate(LeaseId),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// In whose name.
    pub task: TaskId,
    /// In which form; `None`: nothing is to be issued.
    pub form: Option<Form>,
    /// For whom: an audience, or with no form also a target's name.
    pub target: String,
    /// Which of the task's details; empty: whatever policy allows now.
    pub details: Vec<Detail>,
    /// One action class, where nothing is to be issued.
    pub action: Option<Action>,
    /// How long.
    pub ttl: Option<Duration>,
    /// What an access token is bound to.
    pub proof: Option<Proof>,
    /// The operation itself.
    pub operation: Option<Operation>,
    /// What people allowed, to be used for exactly this.
    pub approval: Option<ApprovalId>,
    /// Where nothing is to be issued: ask people, if they could lift a denial.
    pub ask_people: bool,
}

/// What was issued.
#[derive(Debug)]
pub struct Issued {
    /// The credential.
    pub credential: TaskCredential,
    /// For whom.
    pub audience: String,
    /// What it is for.
    pub grants: Grants,
    /// The decision, the first where there were several.
    pub decision: Decision,
}

/// What policy would say.
#[derive(Debug)]
pub struct Authorized {
    /// It.
    pub decision: Decision,
    /// Beside a denial that people could lift: whom it takes, and what they were asked if it was asked.
    pub access_request: Option<AccessRequest>,
}

/// Everything that was decided about one request.
struct Decided {
    view: TaskView,
    target: Arc<Target>,
    grants: Grants,
    granted: GrantedActions,
    approved: Option<Approved>,
}

/// Why nothing was decided, or what: and in which task, if it is the caller's.
type NotDecided = (TaskError, Option<TaskView>);

impl Workloads {
    /// Says what policy would say now, and issues nothing.
    ///
    /// # Errors
    /// [`TaskError`]: nothing was decided. A no is no error.
    pub async fn authorize(&self, admission: &Admission, ask: Ask) -> Result<Authorized, TaskError> {
        let decided = self.0.decide(admission, &ask).map_err(|refused| *refused);
        let (view, name, decision) = match decided {
            Ok(Decided { view, target, granted, .. }) => {
                let (action, decision) = first(granted.allowed)?;
                (view, target.name.clone(), (action, decision))
            }
            Err((TaskError::Denied(decision), Some(view))) => {
                (view, ask.target.clone(), (decision.action, *decision))
            }
            Err((error, _)) => return Err(error),
        };
        let (action, decision) = decision;
        let event = self.0.decided(&view, &decision, action, &name, ask.operation.as_ref());
        self.0.parts.audit.record(vec![event]).await.map_err(Refusal::Audit)?;
        let access_request = match &decision.obligations.approval {
            Some(needed) if ask.ask_people => {
                Some(self.0.ask_people(admission, &ask, &view, &decision, needed).await?)
            }
            needed => needed.as_ref().map(AccessRequest::possible),
        };
        Ok(Authorized { decision, access_request })
    }

    /// One credential for one audience. It runs to its end whether or not the caller waits.
    ///
    /// # Errors
    /// [`TaskError`]; no credential stands then.
    pub async fn issue_for_task(&self, admission: &Admission, ask: Ask) -> Result<Issued, TaskError> {
        let (send, answer) = oneshot::channel();
        let (shared, admission) = (Arc::clone(&self.0), admission.clone());
        self.0.spawn(async move {
            let issued = shared.issue_for_task(&admission, ask).await;
            if let Err(Ok(unclaimed)) = send.send(issued) {
                shared.withdraw(std::iter::once(unclaimed.credential.lease()));
            }
        });
        // The runtime is only gone when the agent is.
        answer.await.unwrap_or(Err(TaskError::Workload(Refusal::WatchLost)))
    }
}

impl Shared {
    async fn issue_for_task(self: &Arc<Self>, admission: &Admission, ask: Ask) -> Result<Issued, TaskError> {
        let form = ask.form.ok_or_else(|| TaskError::Malformed("format".to_owned()))?;
        if ask.approval.is_some() && form != Form::Access {
            return Err(TaskError::NotSingleUse);
        }
        let decided = match self.decide(admission, &ask) {
            Ok(decided) => decided,
            Err(refused) => {
                let (error, view) = *refused;
                self.note_task_denial(&error, view.as_ref(), &ask);
                return Err(error);
            }
        };
        let binding = self.binding(&ask, form, &decided)?;
        let Decided { view, target, grants, granted, approved } = decided;
        let subject = self.subject(admission.id(), &view.task.charter.entry).ok_or(Refusal::NotEntitled)?;
        let events = granted.allowed.iter().chain(&granted.denied).map(|(action, decision)| {
            self.decided(&view, decision, *action, &target.name, ask.operation.as_ref())
        });
        let mut events: Vec<Event> = events.collect();
        let (_, decision) = first(granted.allowed)?;
        let (flight, ticket) = self.take_off(&view, &target.audience)?;
        let minted = self.mint_for_task(form, granted.permit, &view, &grants, binding, approved.as_ref());
        let minted = match minted {
            Ok(minted) => minted,
            Err(error) => {
                self.crash(flight, ticket, None);
                return Err(error.into());
            }
        };
        let row = minted.row(&subject);
        events.push(issue_event(&subject, &row, false, minted.print()));
        let committed = match self.write_down_noted(row.clone(), events).await {
            Ok(committed) => committed,
            Err((refusal, written)) => {
                self.crash(flight, ticket, written.then_some(row));
                return Err(refusal.into());
            }
        };
        if let Err(why) = self.verify_closely(&subject.process, &subject.attestation) {
            self.doubt(admission.id(), &why);
            self.crash(flight, ticket, Some(row));
            return Err(Refusal::from(why).into());
        }
        mayfly_attestors::failpoint::hit("task.before_land");
        let credential = self.land(flight, ticket, row, minted, &committed, &target.name)?;
        Ok(Issued { credential, audience: target.audience.clone(), grants, decision })
    }

    /// Everything that has to be a yes, in order: the caller's right to the task, the task's standing, its grants,
    /// policy. Beside an error is the task, if it is the caller's.
    fn decide(&self, admission: &Admission, ask: &Ask) -> Result<Decided, Box<NotDecided>> {
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

    fn decide_in(&self, admission: &Admission, ask: &Ask, view: &TaskView) -> Result<Decided, TaskError> {
        let set = self.parts.policy.in_force();
        let approved = ask.approval.map(|id| self.approved(id, ask, view, &set)).transpose();
        let approved = approved.inspect_err(|why| self.note_misuse(admission, why))?;
        let under = approved.as_ref().map(|approved| approved.ask(ask));
        let ask = under.as_ref().unwrap_or(ask);
        let facts = approved.as_ref().map(|approved| &approved.facts);
        let subject = self.subject(admission.id(), &view.task.charter.entry).ok_or(Refusal::NotEntitled)?;
        let Some(target) = find_target(&set, ask) else {
            let object = Object::Target(ask.target.clone());
            let action = ask.action.unwrap_or(Action::Read);
            let question = self.question(&subject, view, action, object, ask, facts);
            return Err(TaskError::Denied(Box::new(self.parts.policy.decide(&question))));
        };
        let target = Arc::clone(target);
        let wish = Wish {
            target: &target,
            details: &ask.details,
            operation: ask.operation.as_ref(),
            action: ask.action,
            carries_details: matches!(ask.form, None | Some(Form::Access)),
        };
        let grants = wish.part(&view.task.charter.grants)?;
        let questions: Vec<Question> = grants
            .actions()
            .into_iter()
            .map(|action| {
                let object = Object::Target(target.name.clone());
                self.question(&subject, view, action, object, ask, facts)
            })
            .collect();
        if let Some(approved) = &approved {
            self.is_still_enough(approved, &questions)?;
        }
        let all = !ask.details.is_empty() || ask.operation.is_some() || ask.action.is_some();
        let identity = &subject.identity;
        let request = PermitRequest {
            entry: identity.entry.id.clone(),
            spiffe_id: identity.spiffe_id.clone(),
            kind: ask.form.map_or(Kind::Jwt, Form::kind),
            ttl: self.ttl(view, ask),
            audience: vec![target.audience.clone()],
            allowed_audiences: None,
            dns_names: Vec::new(),
            hint: identity.hint.clone(),
        };
        let granted = self.parts.policy.permit_for_actions(request, &questions, all);
        let granted = granted.map_err(|refused| match refused.refused.into_iter().next() {
            Some((_, decision)) => TaskError::Denied(Box::new(decision)),
            None => TaskError::Workload(Refusal::NotEntitled),
        })?;
        let allowed: BTreeSet<Action> = granted.allowed.iter().map(|(action, _)| *action).collect();
        let mut grants = grants.keep(|_, action| allowed.contains(&action));
        if let (Some(_), Some(operation)) = (&approved, &ask.operation) {
            // What people allowed was this operation: not what else the task may do there.
            grants = only(&grants, operation);
            if grants.is_empty() {
                return Err(Refused::NotGranted.into());
            }
        }
        Ok(Decided { view: view.clone(), target, grants, granted, approved })
    }

    /// Somebody wants to do something else than what was approved, or by an approval that is not his.
    fn note_misuse(&self, admission: &Admission, why: &TaskError) {
        if matches!(why, TaskError::Approval(ApprovalError::Other | ApprovalError::Unknown)) {
            self.note_denied(admission.process(), "approval", &why.to_string());
        }
    }

    pub(super) fn question(
        &self,
        subject: &Subject,
        view: &TaskView,
        action: Action,
        object: Object,
        ask: &Ask,
        approval: Option<&ApprovalFacts>,
    ) -> Question {
        let mut who =
            self.facts(&subject.process, &subject.attestation, subject.attested_at, &subject.identity);
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
        let audiences = &view.task.audiences;
        question.circumstances.new_destination = !audiences.contains(&ask.target);
        question
    }

    /// No longer than was asked for, than a credential of this task may live, and than the task does.
    fn ttl(&self, view: &TaskView, ask: &Ask) -> Duration {
        let left = view.task.deadline.saturating_duration_since(self.parts.clock.monotonic());
        let (default, most) = {
            let state = self.lock();
            let bounds = state.tasks.tree.bounds();
            (bounds.default_credential, bounds.credential)
        };
        let own = view.task.charter.credential_ttl.unwrap_or(most);
        ask.ttl.unwrap_or(default).min(own).min(most).min(left)
    }

    /// What the credential is bound to, if that is enough for every decision.
    fn binding(&self, ask: &Ask, form: Form, decided: &Decided) -> Result<Option<Binding>, TaskError> {
        let binding = match (&ask.proof, form) {
            (None, _) => None,
            (Some(Proof::Jkt(thumbprint)), Form::Access) => Some(Binding::Jkt(thumbprint.clone())),
            (Some(Proof::Certificate(lease)), Form::Access) => {
                let state = self.lock();
                let own = state.tasks.tree.task_of(*lease) == Some(ask.task);
                let certificate = state.tasks.certificates.get(lease).filter(|_| own);
                let malformed = || TaskError::Malformed("x509_credential_id".to_owned());
                Some(Binding::Certificate(*certificate.ok_or_else(malformed)?))
            }
            (Some(_), _) => return Err(TaskError::Malformed("binding".to_owned())),
        };
        let bound = match (form, &binding) {
            (Form::Access, Some(Binding::Jkt(_))) | (Form::Wit, _) => Bound::Dpop,
            (Form::Access, Some(Binding::Certificate(_))) | (Form::X509, _) => Bound::Mtls,
            (Form::Access, None) | (Form::Jwt, _) => Bound::No,
        };
        let decisions: Vec<Decision> = decided.granted.allowed.iter().map(|(_, one)| one.clone()).collect();
        match decisions.iter().find(|one| !bound.satisfies(std::slice::from_ref(*one))) {
            Some(decision) => Err(TaskError::Unbound(Box::new(decision.clone()))),
            None => Ok(binding),
        }
    }

    /// Takes the credential from the budgets of the task and of all above it, and from its user's.
    fn take_off(&self, view: &TaskView, audience: &str) -> Result<(Flight, Ticket), TaskError> {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        self.check_user(&state, view.task.seat.uid)?;
        let flight = state.tasks.tree.take_off(view.task.id, audience, now)?;
        match state.core.begin(view.task.seat.holder, &view.task.charter.entry) {
            Ok(ticket) => Ok((flight, ticket)),
            Err(_refused) => {
                state.tasks.tree.crash(flight);
                Err(Refusal::NotEntitled.into())
            }
        }
    }

    fn mint_for_task(
        &self,
        form: Form,
        permit: Permit,
        view: &TaskView,
        grants: &Grants,
        binding: Option<Binding>,
        approved: Option<&Approved>,
    ) -> Result<Shut, Refusal> {
        let authorities = self.parts.authorities.current();
        let (lease, now) = (new_lease()?, self.parts.clock.wall());
        let place = |not_after| self.list_token(not_after);
        let (task, scope) = (&view.task, scope(&grants.actions()));
        let charter = &task.charter;
        let shut = match form {
            Form::Access => {
                let terms = access::Terms {
                    issuer: &self.settings.jwt_issuer,
                    user: charter
                        .user
                        .as_ref()
                        .map(|user| access::Subject { iss: &user.iss, sub: &user.sub }),
                    chain: &view.chain,
                    details: grants.details().iter().map(|detail| detail.raw().to_json()).collect(),
                    scope,
                    binding,
                    task: TaskTerms {
                        id: task.id,
                        root: task.root,
                        parent: task.parent,
                        depth: task.depth,
                        template: charter.template.clone(),
                        instance: task.seat.instance(),
                        approval: approved.map(|approved| approved.terms),
                    },
                    longest: crate::task::Bounds::default().token,
                    status: Some(&place),
                };
                access::mint(permit, authorities.active_jwt(), lease, &terms, now).map(Shut::Access)
            }
            Form::Jwt => {
                let claims =
                    jwt::TaskClaims { id: task.id, template: charter.template.as_deref(), actions: &scope };
                let terms = jwt::Terms {
                    issuer: &self.settings.jwt_issuer,
                    status: Some(&place),
                    task: Some(claims),
                };
                jwt::mint_listed(permit, authorities.active_jwt(), lease, &terms, now).map(Shut::Jwt)
            }
            Form::X509 => {
                let minted = x509::mint(permit, authorities.active_x509(), lease, now);
                minted.map(|minted| Shut::X509(minted.in_task(task.id)))
            }
            Form::Wit => {
                let authority =
                    authorities.active_wit().ok_or(Refusal::Authority(IssueError::SwitchedOff))?;
                let minted = wit::mint(permit, authority, lease, &self.settings.wit, now);
                minted.map(|minted| Shut::Wit(minted.in_task(task.id)))
            }
        };
        shut.map_err(Refusal::Authority)
    }

    async fn write_down_noted(&self, row: Row, events: Vec<Event>) -> Result<Committed, (Refusal, bool)> {
        let (committed, recorded) = tokio::join!(self.write_down_used(row), self.parts.audit.record(events));
        let committed = committed.map_err(|error| (Refusal::Ledger(error), false))?;
        recorded.map_err(|error| (Refusal::Audit(error), true))?;
        Ok(committed)
    }

    /// The last step: the lease belongs to the process and to the task, or it is revoked at birth.
    fn land(
        self: &Arc<Self>,
        flight: Flight,
        ticket: Ticket,
        row: Row,
        minted: Shut,
        committed: &Committed,
        target: &str,
    ) -> Result<TaskCredential, TaskError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let (lease, ends, task) = (row.id, now + remaining(&row, wall), row.task);
        let mut state = self.lock();
        state.add_row(row);
        let landing = state.tasks.tree.land(flight, lease);
        let (released, actions) = match state.core.complete(ticket, lease, ends, Jitter(0), now) {
            Completion::Release(actions) => (true, actions),
            Completion::RevokedAtBirth(_, actions) => (false, actions),
        };
        self.perform(&mut state, actions, now);
        if let Landing::Doomed(refused) = landing {
            drop(state.core.withdraw(lease));
            let rows = state.take_row(lease).into_iter().collect();
            self.refuse(rows, Reason::TaskEnded, Initiator::Agent, now, None);
            return Err(refused.into());
        }
        // A freeze that came after the decision has looked for what is out under this lock: either it finds this
        // credential, or we find the freeze.
        let view = task.and_then(|id| state.tasks.view(id, now, wall));
        if view.is_some_and(|view| self.is_frozen(&view, Some(target))) {
            drop(state.core.withdraw(lease));
            let rows = state.take_row(lease).into_iter().collect();
            self.refuse(rows, Reason::Operator, Initiator::Agent, now, None);
            return Err(TaskError::Frozen);
        }
        let credential = minted.release(committed).filter(|_| released).ok_or(Refusal::NotEntitled)?;
        if let TaskCredential::X509(svid) = &credential {
            keep_certificate(&mut state, lease, svid);
        }
        Ok(credential)
    }

    /// Nothing comes of it. `written`: its row, when the ledger has it already.
    fn crash(self: &Arc<Self>, flight: Flight, ticket: Ticket, written: Option<Row>) {
        self.lock().tasks.tree.crash(flight);
        self.abandon_jwt(ticket, written);
    }

    /// What was decided, for the record, with the operation's tool and digest.
    fn decided(
        &self,
        view: &TaskView,
        decision: &Decision,
        action: Action,
        target: &str,
        operation: Option<&Operation>,
    ) -> Event {
        let mut recorded = recorded(decision, Phase::Issue, action, target);
        recorded.tool = operation.and_then(Operation::tool).map(str::to_owned);
        recorded.args_hash = operation.map(|operation| crate::id::hex_text(&operation.digest()));
        Event::Decided { agent: view.agent(), task: view.facts(), decision: Box::new(recorded) }
    }

    fn note_task_denial(&self, error: &TaskError, view: Option<&TaskView>, ask: &Ask) {
        let Some(view) = view else { return };
        self.count_denial(view.task.id);
        if let TaskError::Denied(decision) | TaskError::Unbound(decision) = error {
            let event = self.decided(view, decision, decision.action, &ask.target, ask.operation.as_ref());
            self.parts.audit.note(vec![event]);
        }
    }
}

/// The target that was asked for. A credential is for an audience; a question can be about a target by its name.
pub(super) fn find_target<'a>(set: &'a PolicySet, ask: &Ask) -> Option<&'a Arc<Target>> {
    let by_audience = set.catalogue().target_for(&ask.target);
    by_audience.or_else(|| set.catalogue().target(&ask.target).filter(|_| ask.form.is_none()))
}

fn first(decisions: Vec<(Action, Decision)>) -> Result<(Action, Decision), TaskError> {
    decisions.into_iter().next().ok_or(TaskError::Workload(Refusal::NotEntitled))
}
