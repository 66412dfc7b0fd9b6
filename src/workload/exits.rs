//! What happens when a process exits, and what every revocation begins with.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use mayfly_attestors::{ExitCause, ExitNotice, Process};

use super::issue::Order;
use super::revoker::{Initiator, Job, RevokeJob};
use super::{Shared, State, lock};
use crate::audit::{self, Event};
use crate::lease::{Action, Cause, WorkloadId};
use crate::ledger::{Note, Reason};

impl Shared {
    /// Runs on the reaper thread: memory first, then everything that may wait.
    pub(super) fn on_exit(self: &Arc<Self>, notice: &ExitNotice) {
        let id = WorkloadId(notice.token);
        let cause = match notice.cause {
            ExitCause::Exited => Cause::Exited,
            ExitCause::WatchLost => {
                self.parts.readiness.raise("process watch", "lost; restart the agent");
                Cause::WatchLost
            }
        };
        self.end(id, cause, notice.seen);
    }

    /// Ends a workload: refuses in memory, ends its streams, cuts its connections, hands the rest on.
    pub(super) fn end(self: &Arc<Self>, id: WorkloadId, cause: Cause, seen: Instant) {
        let mut state = self.lock();
        if cause == Cause::Exited {
            // What it began in a cgroup goes on while anybody is left there.
            state.founder_left(id);
        }
        self.end_tasks_of(&mut state, id, cause, seen);
        let actions = state.core.end(id, cause);
        self.perform_seen(&mut state, actions, seen);
        state.scopes.remove(id);
        let Some(member) = state.remove(id) else { return };
        self.parts.manager.let_go(&member.process, cause == Cause::Exited);
        // One whose watch was lost may live, and must not come back unbarred.
        if cause == Cause::Exited {
            state.told.forget(&member.process.key());
            self.forget_bars(&mut state, &[member.process.key()]);
        }
        drop(state);
        // The sockets first: whoever inherited one must not read even the end of the stream.
        for connection in member.connections.iter().filter_map(std::sync::Weak::upgrade) {
            connection.end();
        }
        member.end();
    }

    /// Carries out the core's actions. `now` is when their cause was seen.
    pub(super) fn perform(self: &Arc<Self>, state: &mut State, actions: Vec<Action>, now: Instant) {
        self.perform_seen(state, actions, now);
    }

    fn perform_seen(self: &Arc<Self>, state: &mut State, actions: Vec<Action>, seen: Instant) {
        self.end_tasks_without_identity(state, &about(&actions), seen);
        let mut expired = Vec::new();
        let mut orders: BTreeMap<WorkloadId, Vec<Order>> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Issue { ticket, workload, entry, form, renewal } => {
                    orders.entry(workload).or_default().push(Order { ticket, entry, form, renewal });
                }
                Action::Revoke { leases, cause, .. } => {
                    let rows = leases.iter().filter_map(|lease| state.take_row(*lease)).collect();
                    self.refuse(rows, reason(cause), initiator(cause), seen, None);
                }
                Action::Expire { workload, lease } => {
                    expired.extend(state.take_row(lease));
                    self.forget_idle(state, workload);
                }
                Action::Show { workload } => state.show(workload, self.parts.clock.monotonic()),
            }
        }
        for (workload, orders) in orders {
            self.spawn_issue(workload, orders);
        }
        if !expired.is_empty() {
            let events = expired
                .iter()
                .map(|row| Event::CredentialExpire {
                    agent: audit::Agent::of(row),
                    credential: audit::Credential::of(row),
                })
                .collect();
            // Its time was over, whoever it is that finds that.
            audit::trace::outside(|| self.parts.audit.note(events));
        }
        let deadline = state.core.deadline();
        if deadline.is_some_and(|at| state.timer_at.is_none_or(|planned| at < planned)) {
            self.timer.notify_one();
        }
    }

    /// A process that holds nothing, and for which nobody listens, costs no descriptor until it calls again.
    pub(super) fn forget_idle(&self, state: &mut State, id: WorkloadId) {
        if state.core.forget(id) {
            if let Some(member) = state.remove(id) {
                self.parts.manager.let_go(&member.process, false);
            }
            state.scopes.remove(id);
            self.reaper.forget(id.0);
        }
    }

    /// The first step of a revocation, in memory, and the hand-over to the revoker.
    pub(super) fn refuse(
        &self,
        rows: Vec<crate::ledger::Row>,
        reason: Reason,
        initiator: Initiator,
        seen: Instant,
        done: Option<super::revoker::Done>,
    ) {
        if !rows.is_empty() || done.is_some() {
            self.refuse_noting(rows, reason, initiator, seen, done, Vec::new());
        }
    }

    /// The same, and notes for the ledger with it.
    pub(super) fn refuse_noting(
        &self,
        rows: Vec<crate::ledger::Row>,
        reason: Reason,
        initiator: Initiator,
        seen: Instant,
        done: Option<super::revoker::Done>,
        notes: Vec<Note>,
    ) {
        let at = self.parts.clock.wall();
        {
            let mut denied = lock(&self.denied);
            for row in &rows {
                denied.add(row.clone(), reason, at);
            }
        }
        self.list_as_revoked(&rows);
        let refused = self.parts.clock.monotonic();
        let trace = audit::trace::current();
        let job = RevokeJob { rows, reason, initiator, at, seen, refused, done, notes, trace };
        if self.jobs.send(Job::Revoke(job)).is_err() {
            // Only when the revoker thread is gone; memory already refuses.
            self.parts.readiness.raise("revoker", "stopped; restart the agent");
        }
    }

    /// Puts something on record once everything that was refused before is in the ledger: a crash must not leave a record
    /// of an end that a restart undoes.
    pub(super) fn record_after(&self, events: Vec<Event>) {
        let record = Job::Record(events, audit::trace::current());
        if let Err(mpsc::SendError(Job::Record(events, _))) = self.jobs.send(record) {
            // Only when the revoker thread is gone.
            self.parts.audit.note(events);
        }
    }

    pub(super) fn note_cut(&self, process: &Process, why: audit::Cut) {
        let agent = audit::Agent::new(process.key(), process.uid());
        self.parts.audit.note(vec![Event::AgentCut { agent, reason: why }]);
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.parts.issuing.spawn(work);
    }

    /// The work of the call that is being answered, which runs to its end whether or not the caller waits.
    pub(super) fn spawn_for_call(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(audit::trace::scope(audit::trace::current(), work));
    }
}

/// Whose identities may have changed, and by what.
fn about(actions: &[Action]) -> BTreeMap<WorkloadId, Initiator> {
    let mut about = BTreeMap::new();
    for action in actions {
        match action {
            Action::Revoke { workload, cause, .. } => drop(about.insert(*workload, initiator(*cause))),
            Action::Show { workload } => drop(about.entry(*workload).or_insert(Initiator::Agent)),
            Action::Issue { .. } | Action::Expire { .. } => {}
        }
    }
    about
}

fn reason(cause: Cause) -> Reason {
    match cause {
        Cause::Exited => Reason::Exited,
        Cause::WatchLost => Reason::WatchLost,
        Cause::NoLongerMatches => Reason::ExecMismatch,
        Cause::FactsChanged => Reason::FactsChanged,
        Cause::PodDeleted => Reason::PodDeleted,
        Cause::CredentialsChanged => Reason::CredentialsChanged,
        Cause::EntryWithdrawn => Reason::EntryWithdrawn,
        Cause::Policy => Reason::Policy,
        Cause::Operator => Reason::Operator,
        Cause::Aborted => Reason::IssueAborted,
    }
}

fn initiator(cause: Cause) -> Initiator {
    match cause {
        Cause::Exited | Cause::WatchLost => Initiator::Kernel,
        Cause::NoLongerMatches | Cause::FactsChanged | Cause::PodDeleted | Cause::CredentialsChanged => {
            Initiator::Attestation
        }
        Cause::EntryWithdrawn => Initiator::Entries,
        Cause::Policy => Initiator::Policy,
        Cause::Operator => Initiator::Operator,
        Cause::Aborted => Initiator::Agent,
    }
}
