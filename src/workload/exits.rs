//! What happens to a live process: it exits, it executes, its program is looked at again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_attestors::{AttestError, Attestation, ExecNotice, ExitCause, ExitNotice, Process};

use super::issue::Doubt;
use super::revoker::{Initiator, RevokeJob};
use super::state::View;
use super::{Shared, State, Workloads, lock};
use crate::audit::{self, Event};
use crate::lease::{Action, Cause, WorkloadId};
use crate::ledger::Reason;

impl Workloads {
    /// Told by the exec watch. An `Exec` looks again at every workload with that pid, a `Lost` at all.
    pub fn on_exec(&self, notice: &ExecNotice) {
        let suspects: Vec<WorkloadId> = {
            let state = self.0.lock();
            match notice {
                ExecNotice::Exec { pid } => state.by_pid.get(pid).into_iter().flatten().copied().collect(),
                ExecNotice::Lost => state.members.keys().copied().collect(),
            }
        };
        for id in suspects {
            self.0.suspect(id);
        }
    }
}

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
        let actions = state.core.end(id, cause);
        self.perform_seen(&mut state, actions, seen);
        let Some(member) = state.remove(id) else { return };
        drop(state);
        member.view.send_replace(View::Ended);
        for connection in member.connections.iter().filter_map(std::sync::Weak::upgrade) {
            connection.end();
        }
    }

    /// Carries out the core's actions. `now` is when their cause was seen.
    pub(super) fn perform(self: &Arc<Self>, state: &mut State, actions: Vec<Action>, now: Instant) {
        self.perform_seen(state, actions, now);
    }

    fn perform_seen(self: &Arc<Self>, state: &mut State, actions: Vec<Action>, seen: Instant) {
        let mut expired = Vec::new();
        for action in actions {
            match action {
                Action::Issue { ticket, workload, entry, renewal } => {
                    self.spawn_issue(ticket, workload, entry, renewal);
                }
                Action::Revoke { leases, cause, .. } => {
                    let rows = leases.iter().filter_map(|lease| state.take_row(*lease)).collect();
                    self.refuse(rows, reason(cause), initiator(cause), seen, None);
                }
                Action::Expire { lease, .. } => expired.extend(state.take_row(lease)),
                Action::Show { workload } => state.show(workload, self.parts.clock.monotonic()),
            }
        }
        if !expired.is_empty() {
            let events = expired
                .iter()
                .map(|row| Event::CredentialExpire {
                    agent: audit::Agent::of(row),
                    credential: audit::Credential::of(row),
                })
                .collect();
            self.parts.audit.note(events);
        }
        let deadline = state.core.deadline();
        if deadline.is_some_and(|at| state.timer_at.is_none_or(|planned| at < planned)) {
            self.timer.notify_one();
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
        if rows.is_empty() && done.is_none() {
            return;
        }
        let at = self.parts.clock.wall();
        {
            let mut denied = lock(&self.denied);
            for row in &rows {
                denied.add(row.clone(), reason, at);
            }
        }
        let refused = self.parts.clock.monotonic();
        let job = RevokeJob { rows, reason, initiator, at, seen, refused, done };
        if self.jobs.send(job).is_err() {
            // Only when the revoker thread is gone; memory already refuses.
            self.parts.readiness.raise("revoker", "stopped; restart the agent");
        }
    }

    /// Stops pushing to a workload and looks at its program again.
    pub(super) fn suspect(self: &Arc<Self>, id: WorkloadId) {
        {
            let mut state = self.lock();
            let Some(member) = state.members.get_mut(&id) else { return };
            if std::mem::replace(&mut member.suspect, true) {
                return;
            }
        }
        let shared = Arc::clone(self);
        self.spawn(async move { shared.look_again(id).await });
    }

    /// Until it is known what the process is now. Without a descriptor to look with it is asked again, and
    /// meanwhile it gets nothing and loses nothing: what it holds ends with its lifetime at the latest.
    async fn look_again(self: Arc<Self>, id: WorkloadId) {
        while let Some((process, before)) = {
            let state = self.lock();
            state.members.get(&id).map(|m| (Arc::clone(&m.process), Arc::clone(&m.attestation)))
        } {
            match self.compare(&process, &before) {
                Ok(()) => {
                    if let Some(member) = self.lock().members.get_mut(&id) {
                        member.clear();
                    }
                    return;
                }
                Err(Doubt::Changed) => match self.parts.attestors.attest(&process).await {
                    Err(AttestError::Descriptors) => {}
                    outcome => return self.conclude(id, &process, outcome),
                },
                Err(Doubt::NotSeen) => {}
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What follows from a second look that found something else.
    fn conclude(
        self: &Arc<Self>,
        id: WorkloadId,
        process: &Process,
        outcome: Result<Attestation, AttestError>,
    ) {
        match outcome {
            Ok(attestation) => {
                let identities = self.match_now(&attestation);
                let now = self.parts.clock.monotonic();
                let mut state = self.lock();
                let lost = state.members.get(&id).is_some_and(|m| {
                    m.identities.iter().any(|old| !identities.iter().any(|new| new.entry.id == old.entry.id))
                });
                if lost {
                    self.note_cut(process, audit::Cut::ExecMismatch);
                }
                self.renew_member(&mut state, id, Arc::new(attestation), identities, now);
            }
            // The reaper ends it.
            Err(AttestError::Exited) => {}
            Err(AttestError::CredentialsChanged) => {
                self.note_cut(process, audit::Cut::CredentialsChanged);
                for connection in self.drop_all(id) {
                    connection.cut(audit::Cut::CredentialsChanged);
                }
            }
            // A program that cannot be looked at is not the one that was attested.
            Err(_) => {
                self.note_cut(process, audit::Cut::ExecMismatch);
                self.drop_all(id);
            }
        }
    }

    /// Takes everything from a live workload; answers with its connections.
    fn drop_all(self: &Arc<Self>, id: WorkloadId) -> Vec<Arc<dyn super::Connection>> {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        let actions = state.core.set_entries(id, &[], Cause::NoLongerMatches, now);
        self.perform(&mut state, actions, now);
        if let Some(member) = state.members.get_mut(&id) {
            member.identities.clear();
            member.clear();
        }
        state.show(id, now);
        let connections = state.members.get(&id).map(|m| m.connections.as_slice()).unwrap_or_default();
        connections.iter().filter_map(std::sync::Weak::upgrade).collect()
    }

    pub(super) fn note_cut(&self, process: &Process, why: audit::Cut) {
        let agent = audit::Agent::new(process.key(), process.uid());
        self.parts.audit.note(vec![Event::AgentCut { agent, reason: why }]);
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.parts.issuing.spawn(work);
    }
}

/// How long after a look for which no descriptor was free the next one follows.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

fn reason(cause: Cause) -> Reason {
    match cause {
        Cause::Exited => Reason::Exited,
        Cause::WatchLost => Reason::WatchLost,
        Cause::NoLongerMatches => Reason::ExecMismatch,
        Cause::EntryWithdrawn => Reason::EntryWithdrawn,
        Cause::Operator => Reason::Operator,
        Cause::Aborted => Reason::IssueAborted,
    }
}

fn initiator(cause: Cause) -> Initiator {
    match cause {
        Cause::Exited | Cause::WatchLost => Initiator::Kernel,
        Cause::NoLongerMatches => Initiator::Attestation,
        Cause::EntryWithdrawn => Initiator::Entries,
        Cause::Operator => Initiator::Operator,
        Cause::Aborted => Initiator::Agent,
    }
}
