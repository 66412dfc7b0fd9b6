//! A credential that has been decided is made: taken from the budgets, minted, written down, and handed over if the
//! task still holds it.

use std::sync::Arc;

use super::approval_use::Approved;
use super::credential::{Form, Shut, TaskCredential, keep_certificate};
use super::{TaskError, TaskView};
use crate::audit::Event;
use crate::id::TaskId;
use crate::issue::access::{self, Binding, TaskTerms};
use crate::issue::{IssueError, jwt, longest_within, wit, x509};
use crate::lease::{Completion, Jitter, Ticket, WorkloadId};
use crate::ledger::{Committed, Reason, Row};
use crate::policy::Permit;
use crate::task::{Flight, Grants, Landing, Limit, Refused, scope};
use crate::workload::issue::{new_lease, remaining};
use crate::workload::revoker::Initiator;
use crate::workload::{Refusal, Shared, State};

impl Shared {
    /// Takes the credential from the budgets of the task and of all above it, and from its user's.
    pub(super) fn take_off(
        &self,
        view: &TaskView,
        uid: u32,
        audience: &str,
    ) -> Result<(Flight, Ticket), TaskError> {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        self.check_user(&state, uid)?;
        let flight = state.tasks.tree.take_off(view.task.id, audience, now)?;
        match state.core.begin(view.task.seat.holder, &view.task.charter.entry) {
            Ok(ticket) => Ok((flight, ticket)),
            Err(_refused) => {
                state.tasks.tree.crash(flight);
                Err(Refusal::NotEntitled.into())
            }
        }
    }

    pub(super) fn mint_for_task(
        &self,
        form: Form,
        permit: Permit,
        view: &TaskView,
        grants: &Grants,
        binding: Option<Binding>,
        approved: Option<&Approved>,
    ) -> Result<Shut, TaskError> {
        let authorities = self.parts.authorities.current();
        mayfly_attestors::failpoint::hit("task.before_mint");
        let (lease, now) = (new_lease()?, self.parts.clock.wall());
        // Time has gone by since it was decided. The wall clock was read first: what is counted from there with what is
        // left a moment later ends no later than the task.
        let left = view.task.deadline.saturating_duration_since(self.parts.clock.monotonic());
        let most = longest_within(now, left, form.kind()).ok_or(Refused::Limit(Limit::Life))?;
        let permit = permit.no_longer_than(most);
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
                    longest: self.settings.tasks.token,
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
        shut.map_err(|why| Refusal::Authority(why).into())
    }

    pub(super) async fn write_down_noted(
        &self,
        row: Row,
        events: Vec<Event>,
    ) -> Result<Committed, (Refusal, bool)> {
        let (committed, recorded) = tokio::join!(self.write_down_used(row), self.parts.audit.record(events));
        let committed = committed.map_err(|error| (Refusal::Ledger(error), false))?;
        recorded.map_err(|error| (Refusal::Audit(error), true))?;
        Ok(committed)
    }

    /// The last step: the lease belongs to the process and to the task, or it is revoked at birth. `asker` is who asked for
    /// it, which in a cgroup is not who holds the task.
    pub(super) fn land(
        self: &Arc<Self>,
        (flight, ticket): (Flight, Ticket),
        asker: WorkloadId,
        row: Row,
        minted: Shut,
        committed: &Committed,
        target: &str,
    ) -> Result<TaskCredential, TaskError> {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let (lease, ends, task) = (row.id, now + remaining(&row, wall), row.task);
        let mut state = self.lock();
        let (holder, lost) = (state.holder_of(task), state.lost_by(asker, &row));
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
            // When the task ended this was in flight.
            holder.into_iter().for_each(|id| self.forget_idle(&mut state, id));
            return Err(refused.into());
        }
        // The ticket is the holder's: what an operator, the entries or an exec took from whoever asked is seen here.
        if let Some((reason, initiator)) = lost {
            drop(state.core.withdraw(lease));
            let rows = state.take_row(lease).into_iter().collect();
            self.refuse(rows, reason, initiator, now, None);
            return Err(Refusal::NotEntitled.into());
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
    pub(super) fn crash(self: &Arc<Self>, flight: Flight, ticket: Ticket, written: Option<Row>) {
        let holder = {
            let mut state = self.lock();
            let task = state.tasks.tree.crash(flight);
            state.holder_of(task)
        };
        self.abandon_jwt(ticket, written);
        let mut state = self.lock();
        holder.into_iter().for_each(|id| self.forget_idle(&mut state, id));
    }
}

impl State {
    /// Why whoever asked for this credential may not have it any more; `None`: it may.
    fn lost_by(&self, asker: WorkloadId, row: &Row) -> Option<(Reason, Initiator)> {
        let Some(member) = self.members.get(&asker) else { return Some((Reason::Exited, Initiator::Kernel)) };
        if self.is_taken(&row.process, &row.entry) {
            return Some((Reason::Operator, Initiator::Operator));
        }
        let identity = member.identity(&row.entry).map(|identity| identity.spiffe_id.to_string());
        let has_it = identity.as_deref() == Some(&*row.spiffe_id) && self.held(asker).contains(&row.entry);
        (!has_it).then_some((Reason::EntryWithdrawn, Initiator::Entries))
    }

    /// Who holds the task, or did.
    fn holder_of(&self, task: Option<TaskId>) -> Option<WorkloadId> {
        task.and_then(|id| self.tasks.tree.get(id)).map(|task| task.seat.holder)
    }
}
