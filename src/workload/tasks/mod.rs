//! The shell around the task core: begins, ends and decides, and issues for tasks.
//!
//! The tree stands beside the lease core behind the same lock, so that whoever ends a task ends its leases in the same
//! step. A task is held by one process. A restart of the agent ends every task: its credentials are refused before
//! anybody is served.

mod approval_facts;
mod approvals;
mod approvers;
mod begin;
mod credential;
mod issue;
mod operator;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use self::approvals::{AccessRequest, ApprovalView, Asked};
pub use self::approvers::{Answer, AnswerError};
pub use self::begin::Begin;
pub use self::credential::{Form, TaskCredential};
pub use self::issue::{Ask, Authorized, Issued, Proof};
pub use self::operator::TaskFilter;

pub(super) use self::approvals::Desk;

use super::revoker::Initiator;
use super::state::State;
use super::{Admission, Refusal, Shared, Workloads};
use crate::audit::{self, Event, TaskStep};
use crate::id::{LeaseId, SpiffeId, TaskId};
use crate::lease::WorkloadId;
use crate::ledger::{Reason, Row};
use crate::policy::{self, Decision};
use crate::task::approval::ApprovalError;
use crate::task::{Bounds, Caller, Cascade, Ending, Limit, Refused, Standing, Task, Tree};

/// Why a task gets something not, or is none. `api::tasks` has a reason for each.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The request is wrong in itself: the field.
    #[error("`{0}` is malformed")]
    Malformed(String),
    /// The task core says no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Policy says no, or not without somebody's approval.
    #[error("policy says no")]
    Denied(Box<Decision>),
    /// Policy says yes to a credential that is bound to a key, and this one would not be.
    #[error("policy allows this only for a credential that is bound to a key")]
    Unbound(Box<Decision>),
    /// What people allowed is not there, not open, or for something else.
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    /// An approval buys one use, which this form of credential cannot be held to.
    #[error("an approval buys an access token, which is good once: nothing else is")]
    NotSingleUse,
    /// As for every workload.
    #[error(transparent)]
    Workload(#[from] Refusal),
}

/// The tasks of this node, behind the state lock.
#[derive(Debug)]
pub(super) struct Tasks {
    pub(super) tree: Tree,
    pub(super) approvals: Desk,
    /// Credentials of each task in the minute that began then.
    rates: HashMap<TaskId, (Instant, u32)>,
    /// SHA-256 of the certificates of tasks, for tokens that are bound to them.
    certificates: HashMap<LeaseId, [u8; 32]>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tree: Tree::new(Bounds::default()),
            approvals: Desk::default(),
            rates: HashMap::new(),
            certificates: HashMap::new(),
        }
    }
}

impl Tasks {
    /// The lease is gone, for whatever reason.
    pub(super) fn lease_gone(&mut self, lease: LeaseId) {
        self.tree.lease_gone(lease);
        self.certificates.remove(&lease);
    }

    /// When something of a task is due next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.tree.deadline().into_iter().chain(self.approvals.deadline()).min()
    }

    /// Takes one credential of the minute.
    fn spend_rate(&mut self, task: TaskId, now: Instant) -> Result<(), Refused> {
        let (since, used) = self.rates.entry(task).or_insert((now, 0));
        if now.saturating_duration_since(*since) >= MINUTE {
            (*since, *used) = (now, 0);
        }
        if *used >= ISSUES_PER_MINUTE {
            return Err(Refused::Limit(Limit::Rate));
        }
        *used += 1;
        Ok(())
    }

    fn view(&self, id: TaskId, now: Instant, wall: SystemTime) -> Option<TaskView> {
        let task = self.tree.get(id)?.clone();
        let at = |moment: Instant| match moment.checked_duration_since(now) {
            Some(ahead) => wall + ahead,
            None => wall.checked_sub(now.saturating_duration_since(moment)).unwrap_or(wall),
        };
        Some(TaskView {
            chain: self.tree.chain(id),
            isolated: self.tree.is_isolated(id),
            deadline: at(task.deadline),
            latest: at(task.latest),
            task,
        })
    }
}

/// A task as it is now.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// Itself.
    pub task: Task,
    /// Identities from the root to its own.
    pub chain: Vec<SpiffeId>,
    /// Whether nobody else can act as it.
    pub isolated: bool,
    /// When it ends.
    pub deadline: SystemTime,
    /// No renewal goes beyond.
    pub latest: SystemTime,
}

/// What an end did.
#[derive(Clone, Debug)]
pub struct TaskSummary {
    /// The task, as it has ended.
    pub view: TaskView,
    /// Tasks that ended, it included.
    pub tasks: usize,
    /// Credentials that are refused from now on.
    pub credentials: usize,
    /// From the order to the ledger.
    pub took: Duration,
}

impl TaskView {
    /// For the record.
    pub(super) fn facts(&self) -> Box<audit::TaskFacts> {
        let Task { id, root, parent, depth, charter, standing, .. } = &self.task;
        let user = charter.user.as_ref().map(|user| audit::UserPrint::of(&user.iss, &user.sub));
        Box::new(audit::TaskFacts {
            id: *id,
            root: *root,
            parent: *parent,
            depth: *depth,
            template: charter.template.clone(),
            purpose: charter.purpose.clone(),
            state: match standing {
                Standing::Pending => "pending_approval",
                Standing::Active => "active",
                Standing::Suspended(_) => "suspended",
                Standing::Ended(_) => "ended",
            },
            deadline: Some(self.deadline),
            isolated: self.isolated,
            chain: self.chain.iter().map(ToString::to_string).collect(),
            user,
        })
    }

    /// For policy.
    pub(super) fn policy_facts(&self) -> policy::TaskFacts {
        let Task { id, root, depth, charter, begun_at, used, denials, children, audiences, .. } = &self.task;
        policy::TaskFacts {
            id: id.to_string(),
            root: root.to_string(),
            depth: *depth,
            purpose: charter.purpose.clone(),
            template: charter.template.clone(),
            started: *begun_at,
            deadline: self.deadline,
            calls: used.calls,
            denials: u64::from(*denials),
            children: u64::try_from(children.len()).unwrap_or(u64::MAX),
            audiences: u64::try_from(audiences.len()).unwrap_or(u64::MAX),
        }
    }

    fn agent(&self) -> audit::Agent {
        let seat = &self.task.seat;
        let spiffe_id = Some(self.task.charter.spiffe_id.to_string());
        audit::Agent { spiffe_id, ..audit::Agent::new(seat.process, seat.uid) }
    }
}

/// Who calls, for the task core.
pub(super) fn caller(admission: &Admission) -> Caller {
    Caller { process: admission.process().key(), cgroup: None }
}

impl Workloads {
    /// The task as it is, for a process of it or of one above it.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn task(&self, id: TaskId, admission: &Admission) -> Result<TaskView, TaskError> {
        let (now, wall) = (self.0.parts.clock.monotonic(), self.0.parts.clock.wall());
        let state = self.0.lock();
        state.tasks.tree.seen_by(id, &caller(admission))?;
        state.tasks.view(id, now, wall).ok_or(TaskError::Refused(Refused::NoSuchTask))
    }

    /// Ends the caller's task and everything below it. When it returns every credential of them is refused, and the
    /// ledger knows.
    ///
    /// # Errors
    /// [`Refused`]: it is not the caller's to end, or has ended.
    pub async fn end_task(
        &self,
        id: TaskId,
        admission: &Admission,
        ending: Ending,
    ) -> Result<TaskSummary, TaskError> {
        let (now, wall) = (self.0.parts.clock.monotonic(), self.0.parts.clock.wall());
        let (tasks, credentials, view) = {
            let mut state = self.0.lock();
            let task = state.tasks.tree.of_caller(id, &caller(admission))?;
            if let Standing::Ended(ending) = task.standing {
                return Err(Refused::Ended(ending).into());
            }
            let cascade = state.tasks.tree.end(id, ending, now, wall);
            let counts = (cascade.ended.len(), cascade.leases().count());
            self.0.carry_out(&mut state, &cascade, Initiator::Holder, now, None);
            let view = state.tasks.view(id, now, wall).ok_or(Refused::NoSuchTask)?;
            (counts.0, counts.1, view)
        };
        self.flush().await;
        let took = self.0.parts.clock.monotonic().saturating_duration_since(now);
        Ok(TaskSummary { view, tasks, credentials, took })
    }

    /// Live tasks.
    pub fn live_tasks(&self) -> usize {
        self.0.lock().tasks.tree.live()
    }
}

impl Shared {
    /// Whoever held tasks is gone: they end first, so that the record says so of their credentials.
    pub(super) fn end_tasks_of(self: &Arc<Self>, state: &mut State, id: WorkloadId, seen: Instant) {
        let wall = self.parts.clock.wall();
        let cascade = state.tasks.tree.end_holder(id, Ending::ProcessExit, seen, wall);
        self.carry_out(state, &cascade, Initiator::Kernel, seen, Some(id));
    }

    /// Ends the tasks whose time is over.
    pub(super) fn end_overdue_tasks(self: &Arc<Self>, state: &mut State, now: Instant) {
        let wall = self.parts.clock.wall();
        self.settle_approvals(state, now);
        for cascade in state.tasks.tree.on_timeout(now, wall) {
            self.carry_out(state, &cascade, Initiator::Agent, now, None);
        }
    }

    /// Carries out an end: memory refuses everything before this returns, the rest is handed on. `gone` is a holder
    /// that is being removed by whoever calls.
    pub(super) fn carry_out(
        self: &Arc<Self>,
        state: &mut State,
        cascade: &Cascade,
        initiator: Initiator,
        seen: Instant,
        gone: Option<WorkloadId>,
    ) {
        if cascade.is_empty() {
            return;
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut rows: Vec<Row> = Vec::new();
        for lease in cascade.leases() {
            // The core only forgets it here: the reason is ours to name.
            drop(state.core.withdraw(lease));
            rows.extend(state.take_row(lease));
        }
        self.refuse(rows, Reason::TaskEnded, initiator, seen, None);
        let descendants = cascade.ended.len().saturating_sub(1);
        let credentials = cascade.leases().count();
        let mut events = Vec::with_capacity(cascade.ended.len());
        for (at, ended) in cascade.ended.iter().enumerate() {
            state.tasks.rates.remove(&ended.task);
            self.void_approvals(state, ended.task);
            let Some(view) = state.tasks.view(ended.task, now, wall) else { continue };
            let holder = view.task.seat.holder;
            if gone != Some(holder) && state.core.unhold(holder) {
                self.forget_idle(state, holder);
            }
            let is_top = at == 0;
            let own = ended.leases.len();
            events.push(Event::Task {
                step: TaskStep::Ended,
                agent: view.agent(),
                task: view.facts(),
                decision: None,
                end: Some(audit::TaskEnd {
                    reason: ended.ending.as_str(),
                    initiator: initiator.named(),
                    credentials: count(if is_top { credentials } else { own }),
                    descendants: count(if is_top { descendants } else { 0 }),
                    latency: self.parts.clock.monotonic().saturating_duration_since(seen),
                }),
            });
        }
        self.parts.audit.note(events);
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

const MINUTE: Duration = Duration::from_secs(60);
const ISSUES_PER_MINUTE: u32 = 60;
