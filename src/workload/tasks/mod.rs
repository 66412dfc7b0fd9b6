//! The shell around the task core: begins, ends and decides, and issues for tasks.
//!
//! The tree stands beside the lease core behind the same lock, so that whoever ends a task ends its leases in the same
//! step. A task is held by one process, or by a cgroup, and outlives a restart of the agent if its holder does ([`keeping`]):
//! what does not go on is refused before anybody is served.

mod approval_facts;
mod approval_use;
mod approvals;
mod approvers;
mod begin;
mod calls;
mod children;
mod credential;
mod deciding;
mod ending;
mod explain;
mod following;
mod going_on;
mod issue;
mod judging;
mod keeper;
mod keeping;
mod landing;
mod named;
mod operator;
mod pending;
mod piece;
mod plan;
mod probes;
mod renew;
mod restoring;
mod scope;
mod suspended;
mod users;
mod watch;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

pub(super) use self::approvals::Desk;
pub use self::approvals::{AccessRequest, ApprovalView, Asked};
pub use self::approvers::{Answer, AnswerError};
pub use self::begin::Begin;
pub use self::children::{Delegate, Join, OfferView};
pub use self::credential::{Form, TaskCredential};
pub use self::ending::TaskSummary;
pub use self::explain::{AskAs, Explained};
pub use self::following::TaskFollower;
pub use self::issue::{Ask, Authorized, Issued, Proof};
pub(super) use self::judging::Judged;
pub use self::keeper::{Errand, MOST_AUDIENCES};
pub use self::operator::TaskFilter;
pub(super) use self::restoring::{Claim, PastTasks, TasksRestored};
pub use self::scope::ScopeWish;
pub(super) use self::users::look_at;
pub use self::watch::{Look, TaskWatch};

use self::ending::count;
use self::suspended::Suspended;
use self::watch::Watchers;
use super::{Admission, Refusal, Workloads};
use crate::audit;
use crate::id::{LeaseId, SpiffeId, TaskId};
use crate::issue::user::WhyNot;
use crate::policy::{self, Decision};
use crate::task::approval::{ApprovalBounds, ApprovalError};
use crate::task::{Bounds, Caller, Rates, Refused, Scope, Standing, Task, Tree, Usage};

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
    /// An operator froze it while it was under way.
    #[error("an operator has frozen this")]
    Frozen,
    /// A token of a user that proves nobody.
    #[error("{0}")]
    User(WhyNot),
    /// A keeper was named, and the caller's parent is none.
    #[error("the caller's parent cannot keep its credentials")]
    Keeper,
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
    rates: Rates,
    /// SHA-256 of the certificates of tasks, for tokens that are bound to them.
    certificates: HashMap<LeaseId, [u8; 32]>,
    /// Who else may ask for credentials of a task.
    keepers: HashMap<TaskId, keeper::Keeper>,
    watchers: Watchers,
    suspended: Suspended,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new(Bounds::default(), ApprovalBounds::default())
    }
}

impl Tasks {
    pub(super) fn new(bounds: Bounds, approvals: ApprovalBounds) -> Self {
        Self {
            tree: Tree::new(bounds),
            approvals: Desk::new(approvals),
            rates: Rates::default(),
            certificates: HashMap::new(),
            keepers: HashMap::new(),
            watchers: Watchers::default(),
            suspended: Suspended::default(),
        }
    }

    /// The lease is gone, for whatever reason.
    pub(super) fn lease_gone(&mut self, lease: LeaseId) {
        self.tree.lease_gone(lease);
        self.certificates.remove(&lease);
    }

    /// When something of a task is due next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.tree.deadline().into_iter().chain(self.approvals.deadline()).min()
    }

    /// Tells whoever follows a task that it has changed.
    pub(super) fn tell_changes(&mut self) {
        let changed = self.tree.take_changed();
        if !changed.is_empty() {
            self.watchers.tell_all();
        }
        for id in changed {
            self.watchers.tell(id);
        }
    }

    /// A keeper is known as long as its task is, the ended ones too: it is told so.
    fn forget_keepers(&mut self) {
        let tree = &self.tree;
        self.keepers.retain(|id, _| tree.get(*id).is_some());
    }

    /// Takes one credential of the minute.
    fn spend_rate(&mut self, task: TaskId, now: Instant) -> Result<(), Refused> {
        self.rates.spend(task, self.tree.bounds().issues, now)
    }

    fn view(&self, id: TaskId, now: Instant, wall: SystemTime) -> Option<TaskView> {
        let task = self.tree.get(id)?.clone();
        let at = |moment: Instant| match moment.checked_duration_since(now) {
            Some(ahead) => wall + ahead,
            None => wall.checked_sub(now.saturating_duration_since(moment)).unwrap_or(wall),
        };
        Some(TaskView {
            chain: self.tree.chain(id),
            tasks_above: self.tree.lineage(id).iter().skip(1).map(|task| task.id.to_string()).collect(),
            isolated: self.tree.is_isolated(id),
            is_suspended: self.suspended.holds(id),
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
    /// Tasks above it, from the parent to the root.
    pub tasks_above: Vec<String>,
    /// Whether nobody else can act as it.
    pub isolated: bool,
    /// Whether it is frozen, or something above it.
    pub is_suspended: bool,
    /// When it ends.
    pub deadline: SystemTime,
    /// No renewal goes beyond.
    pub latest: SystemTime,
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
                Standing::Active if self.is_suspended => "suspended",
                Standing::Active => "active",
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

    /// The task as policy saw it when it began: nothing used, nothing refused, alone in its cgroup if it is held by one.
    /// What it has done since is no reason to end it.
    pub(super) fn when_it_began(mut self) -> Self {
        self.task.used = Usage::default();
        self.task.denials = 0;
        self.task.audiences.clear();
        self.isolated |= matches!(self.task.seat.scope, Scope::Cgroup { .. });
        self
    }

    /// Who delegated, from the parent to the root.
    fn above(&self) -> Vec<SpiffeId> {
        let mut chain = self.chain.clone();
        chain.pop();
        chain.reverse();
        chain
    }

    /// Whoever speaks for the task in this call, as it was attested for it.
    fn caller(&self, admission: &Admission) -> audit::Agent {
        let spiffe_id = Some(self.task.charter.spiffe_id.to_string());
        super::seen::agent(admission.process(), admission.attestation(), spiffe_id)
    }

    /// Its holder, where nobody calls: of what it is now nothing is said.
    fn agent(&self) -> audit::Agent {
        let seat = &self.task.seat;
        let spiffe_id = Some(self.task.charter.spiffe_id.to_string());
        audit::Agent { spiffe_id, ..audit::Agent::new(seat.process, seat.uid) }
    }
}

/// Who calls, for the task core.
pub(super) fn caller(admission: &Admission) -> Caller {
    let identities = admission.identities().iter();
    let identities = identities.map(|one| (one.entry.id.clone(), one.spiffe_id.clone())).collect();
    Caller { process: admission.process().key(), cgroup: admission.cgroup(), identities }
}

impl Workloads {
    /// The task as it is, for a process of it or of one above it.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn task(&self, id: TaskId, admission: &Admission) -> Result<TaskView, TaskError> {
        self.0.tell_suspended_first();
        let (now, wall) = (self.0.parts.clock.monotonic(), self.0.parts.clock.wall());
        let state = self.0.lock();
        state.tasks.tree.seen_by(id, &caller(admission))?;
        state.tasks.view(id, now, wall).ok_or(TaskError::Refused(Refused::NoSuchTask))
    }

    /// Live tasks.
    pub fn live_tasks(&self) -> usize {
        self.0.lock().tasks.tree.live()
    }
}

const MINUTE: Duration = Duration::from_secs(60);
