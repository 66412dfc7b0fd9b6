//! One credential for one audience, decided now. Asked, decided, taken from the budgets, minted, written down, looked
//! at again, and only then handed over; what the caller no longer takes, and what a task no longer holds, is revoked.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::TaskError;
use super::approvals::AccessRequest;
use super::credential::{Form, TaskCredential};
use super::deciding::Decided;
use super::named::request;
use crate::audit::{self, Event};
use crate::id::{ApprovalId, LeaseId, TaskId};
use crate::issue::access::Binding;
use crate::policy::{Action, Decision};
use crate::task::{Bound, Detail, Grants, Operation, scope};
use crate::workload::issue::issue_event;
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
                (view, self.0.target_name(&ask), (decision.action, *decision))
            }
            Err((error, view)) => {
                self.0.note_task_denial(admission, &error, view.as_ref(), &ask);
                return Err(error);
            }
        };
        let (action, decision) = decision;
        let decided = (action, &decision);
        let event = self.0.decided(admission, &view, decided, &name, ask.operation.as_ref());
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
        self.0.spawn_for_call(async move {
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
                self.note_task_denial(admission, &error, view.as_ref(), &ask);
                return Err(error);
            }
        };
        let (binding, bound) = self.binding(&ask, form, &decided)?;
        let Decided { view, target, grants, granted, approved } = decided;
        let subject = self.subject(admission.id(), &view.task.charter.entry).ok_or(Refusal::NotEntitled)?;
        let events = granted.allowed.iter().chain(&granted.denied).map(|(action, decision)| {
            self.decided(admission, &view, (*action, decision), &target.name, ask.operation.as_ref())
        });
        let mut events: Vec<Event> = events.collect();
        let granted_as = audit::Grant {
            target: target.name.clone(),
            scope: scope(&grants.actions()),
            binding: bound.as_str(),
            evaluations: granted.allowed.iter().map(|(_, one)| one.evaluation_id.to_string()).collect(),
            request: ask.operation.as_ref().map(request),
        };
        let (_, decision) = first(granted.allowed)?;
        let taken_off = self.take_off(&view, subject.process.uid(), &target.audience);
        let (flight, ticket) =
            taken_off.inspect_err(|error| self.note_task_denial(admission, error, Some(&view), &ask))?;
        let minted = self.mint_for_task(form, granted.permit, &view, &grants, binding, approved.as_ref());
        let minted = match minted {
            Ok(minted) => minted,
            Err(error) => {
                self.crash(flight, ticket, None);
                return Err(error);
            }
        };
        let row = minted.row(&subject);
        events.push(issue_event(&subject, &row, false, minted.print()).granted(granted_as));
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
        let credential =
            self.land((flight, ticket), admission.id(), row, minted, &committed, &target.name)?;
        Ok(Issued { credential, audience: target.audience.clone(), grants, decision })
    }

    /// What the credential is bound to, if that is enough for every decision.
    fn binding(
        &self,
        ask: &Ask,
        form: Form,
        decided: &Decided,
    ) -> Result<(Option<Binding>, Bound), TaskError> {
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
            None => Ok((binding, bound)),
        }
    }
}

fn first(decisions: Vec<(Action, Decision)>) -> Result<(Action, Decision), TaskError> {
    decisions.into_iter().next().ok_or(TaskError::Workload(Refusal::NotEntitled))
}
