//! Tasks: bounded pieces of an agent's work. A pure core like the lease core: no clock, no I/O, no tasks of the
//! runtime. The shell around it is `workload::tasks`.
//!
//! A task is held by a *seat*: one process, or one root-owned cgroup. What it may do is *requested ∩ parent ∩ policy*
//! ([`grant`]); what it may use up it shares with everything above it ([`limits`]). These rules hold for every
//! history, and `simulation` tries them on random ones:
//!
//! 1. No task is allowed what its parent is not allowed at the same time; none outlives its parent.
//! 2. A task ends once, and for good. In the same step everything below it ends, every lease of all of them is given
//!    out for revocation, every offer of all of them is void, and what is in flight for them is revoked at birth.
//! 3. What a task and all below it used up never exceeds a limit of its own or of any task above it.
//! 4. An offer is taken up at most once, by the identity that it names, while its parent lives.
//! 5. Renewal never revives, and never goes beyond the longest life.
//! 6. A restart of the agent revives nothing and widens nothing: what goes on is what went on, with what it had used up.

pub mod approval;
mod follow;
pub mod grant;
pub mod journal;
pub mod limits;
mod narrow;
mod operation;
pub mod place;
mod rate;
mod tree;
mod weight;
mod wish;

#[cfg(test)]
mod attenuation_tests;
#[cfg(test)]
mod part_tests;
#[cfg(test)]
mod pending_tests;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use mayfly_attestors::ProcessKey;

pub use self::follow::{Follower, Held, Note};
pub use self::grant::{Access, Detail, DetailError, Exceeds, Grants, Only, RawDetail};
pub use self::limits::{Bounds, Cost, Limit, Limits, Usage};
pub use self::narrow::only;
pub use self::operation::{Operation, OperationError, scope};
pub use self::rate::Rates;
pub use self::tree::{Cascade, Ended, Flight, Landing, NewOffer, NewTask, Offer, Past, Repeat, Toll, Tree};
pub use self::wish::{Bound, NotHeld, Says, Wish};

use crate::id::{EntryId, LeaseId, SpiffeId, TaskId};
use crate::lease::WorkloadId;
pub use crate::policy::Action;

/// The person in whose name an agent works, as an issuer proved it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct User {
    /// Who says so.
    pub iss: String,
    /// Who it is.
    pub sub: String,
}

/// Which processes can act as the task.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Scope {
    /// One.
    Process,
    /// Every process in this cgroup, which nobody but root can enter or leave.
    Cgroup {
        /// Id in the v2 hierarchy; never used twice in a boot.
        id: u64,
        /// Below the hierarchy's root.
        path: String,
    },
}

/// Who holds a task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seat {
    /// In the lease core: the process, or a stand-in for the cgroup.
    pub holder: WorkloadId,
    /// The process that began or joined.
    pub process: ProcessKey,
    /// Its user.
    pub uid: u32,
    /// Who else can act as the task.
    pub scope: Scope,
}

/// Who calls.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The process.
    pub process: ProcessKey,
    /// The cgroup that it is in, of the v2 hierarchy.
    pub cgroup: Option<u64>,
    /// What it is by its own attestation, and by which entries.
    pub identities: Vec<(EntryId, SpiffeId)>,
}

impl Seat {
    /// Whether the caller sits where the task is held; in a cgroup that is not yet enough ([`Task::admits`]).
    pub fn admits(&self, caller: &Caller) -> bool {
        match &self.scope {
            Scope::Process => self.process == caller.process,
            Scope::Cgroup { id, .. } => caller.cgroup == Some(*id),
        }
    }

    /// Names this run of the agent.
    pub fn instance(&self) -> String {
        match &self.scope {
            Scope::Cgroup { id, .. } => format!("c-{id:x}"),
            Scope::Process => match self.process.pidfs_inode {
                Some(inode) => format!("p-{inode:x}"),
                None => format!("p-{:x}-{:x}", self.process.pid, self.process.start_time),
            },
        }
    }
}

/// What a task is for and may do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Charter {
    /// Whose task it is.
    pub spiffe_id: SpiffeId,
    /// The entry that gives the holder this identity.
    pub entry: EntryId,
    /// The agent's own words.
    pub purpose: String,
    /// By which template.
    pub template: Option<String>,
    /// What the template was filled with.
    pub params: BTreeMap<String, String>,
    /// What it may do.
    pub grants: Grants,
    /// What it may use up.
    pub limits: Limits,
    /// It, and all below it, must be isolated.
    pub require_isolated: bool,
    /// For whom.
    pub user: Option<User>,
    /// The longest life of a credential of it, if the template says one.
    pub credential_ttl: Option<Duration>,
    /// Names the decision that it rests on.
    pub evaluation: String,
    /// The policy set that decided.
    pub policy_version: String,
}

/// Why a task ended. The text is stable.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Ending {
    /// Its holder said so.
    Completed,
    /// Its holder said so, and that it went wrong.
    Failed,
    /// Its time was over.
    Deadline,
    /// Nothing was asked of it for too long.
    Idle,
    /// Its process, or the last one of its cgroup, exited.
    ProcessExit,
    /// The task above it ended.
    ParentEnded,
    /// Policy, or the loss of the identity that it was begun with.
    Policy,
    /// An operator said so.
    Admin,
    /// The kill switch.
    KillSwitch,
    /// An anomaly rule.
    Anomaly,
    /// Its holder could not be found again after a restart of the agent.
    Restart,
    /// Nobody can say any more whether its process lives.
    WatchLost,
}

impl Ending {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Deadline => "deadline",
            Self::Idle => "idle",
            Self::ProcessExit => "process_exit",
            Self::ParentEnded => "parent_ended",
            Self::Policy => "policy",
            Self::Admin => "admin",
            Self::KillSwitch => "kill_switch",
            Self::Anomaly => "anomaly",
            Self::Restart => "restart",
            Self::WatchLost => "watch_lost",
        }
    }
}

/// Where a task stands, by itself: those above it count as well, and so does what is frozen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It waits for people.
    Pending,
    /// It may act.
    Active,
    /// It never will again.
    Ended(Ending),
}

/// One task, as it is now.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name.
    pub id: TaskId,
    /// The top of its tree.
    pub root: TaskId,
    /// Right above it.
    pub parent: Option<TaskId>,
    /// 0 for a root.
    pub depth: u32,
    /// What it is for and may do.
    pub charter: Charter,
    /// Who holds it.
    pub seat: Seat,
    /// Where it stands by itself.
    pub standing: Standing,
    /// When it began.
    pub begun: Instant,
    /// The same, for people.
    pub begun_at: SystemTime,
    /// It ends then.
    pub deadline: Instant,
    /// No renewal goes beyond.
    pub latest: Instant,
    /// Whoever acts as it did so last.
    pub last_call: Instant,
    /// With everything below it.
    pub used: Usage,
    /// For whom credentials were.
    pub audiences: BTreeSet<String>,
    /// How often it was refused something.
    pub denials: u32,
    /// Live children.
    pub children: BTreeSet<TaskId>,
    /// All children it ever had.
    pub children_ever: u32,
    /// Live credentials.
    pub leases: BTreeSet<LeaseId>,
    /// Since when it has ended.
    pub ended_at: Option<SystemTime>,
    /// What the request that made it can be told from another by, if it came with a key.
    pub key: Option<Key>,
}

impl Task {
    /// Whether the caller can act as the task. Of those in a cgroup only who has the task's identity by itself: a tool
    /// that the agent started is in its cgroup, and need not be what the agent is (threats K01).
    pub fn admits(&self, caller: &Caller) -> bool {
        let Charter { entry, spiffe_id, .. } = &self.charter;
        let is_it = || caller.identities.iter().any(|(by, id)| by == entry && id == spiffe_id);
        self.seat.admits(caller) && (self.seat.scope == Scope::Process || is_it())
    }
}

/// An idempotency key, and what it stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// Whose.
    pub process: ProcessKey,
    /// The text.
    pub text: String,
    /// Digest of the request that it came with.
    pub digest: [u8; 32],
}

/// Why something is not done. Callers learn the reason's name and no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// There is no such task (any more).
    #[error("there is no such task")]
    NoSuchTask,
    /// There is no such offer, or it has run out.
    #[error("there is no such delegation, or it has expired")]
    NoSuchDelegation,
    /// The caller is not one of those that can act as the task.
    #[error("the caller is not in this task")]
    NotInTask,
    /// The offer is for somebody else.
    #[error("the delegation is for another identity")]
    NotYours,
    /// It has been taken up.
    #[error("the delegation was used")]
    DelegationUsed,
    /// The task has ended.
    #[error("the task has ended: {}", .0.as_str())]
    Ended(Ending),
    /// The task, or one above it, waits for people.
    #[error("the task waits for approval")]
    Pending,
    /// More than the parent may do.
    #[error(transparent)]
    Exceeds(#[from] Exceeds),
    /// The task may not do that.
    #[error("the task's details do not cover this")]
    NotGranted,
    /// A credential could be used for more than the operation that was named.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
    /// Something is used up.
    #[error("limit reached: {} ({})", .0.as_str(), .0.what())]
    Limit(Limit),
    /// The same idempotency key came with another request before.
    #[error("the idempotency key was used for another request")]
    Conflict,
    /// The task must be isolated and would not be.
    #[error("no isolated scope can be had here")]
    NotIsolated,
}

impl Refused {
    /// The stable name, for the record. Callers are told the same, but for what is not theirs: that there is none.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSuchTask | Self::NoSuchDelegation => "no_such_task",
            Self::NotInTask => "not_in_task",
            Self::NotYours => "not_yours",
            Self::DelegationUsed => "delegation_used",
            Self::Ended(_) => "task_ended",
            Self::Pending => "pending_approval",
            Self::Exceeds(_) => "exceeds_parent",
            Self::NotGranted => "not_granted",
            Self::NotHeld(_) => "operation_not_held",
            Self::Limit(limit) => limit.reason(),
            Self::Conflict => "idempotency_conflict",
            Self::NotIsolated => "scope_unavailable",
        }
    }
}
