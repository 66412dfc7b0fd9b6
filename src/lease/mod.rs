//! The lease core: decides when to issue, renew and revoke. No clock, no I/O, no tasks.
//!
//! A *workload* is one live process; a *slot* is its place for the current SVID of one entry in one [`Form`]; a
//! *ticket* stands for an issuance in flight. The shell tells the core what happened and when, and
//! carries out the [`Action`]s it is given, in order. Four rules hold for every history:
//!
//! 1. A lease ends by expiry or by revocation, and exactly once.
//! 2. When a workload ends, every lease of it that has not expired is revoked in that same step, and an
//!    issuance still in flight is revoked at birth ([`Completion::RevokedAtBirth`]).
//! 3. A slot has at most one issuance in flight, and none while nobody listens for its form.
//! 4. Nothing is issued for a workload that has ended or an entry it does not hold.

#[cfg(test)]
mod closing_tests;
mod core;
#[cfg(test)]
mod simulation;
mod slot;
mod timers;

pub use self::core::{Core, LeaseView, Refused};
pub use self::slot::Jitter;
pub(crate) use self::timers::Timers;

use std::time::Instant;

use crate::id::{EntryId, LeaseId};

/// One live process, as the shell numbers it. Never used twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct WorkloadId(pub u64);

/// An issuance in flight. Never used twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

/// What is kept fresh for whoever listens. (JWT-SVIDs are made on demand and are in no slot.)
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Form {
    /// X.509-SVIDs.
    X509,
    /// WIT-SVIDs.
    Wit,
}

/// An entry a workload matches now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// Which entry.
    pub entry: EntryId,
    /// Stands for the identity the entry yields. When it moves, what was issued under it is revoked: another
    /// identity by the same entry is another identity.
    pub subject: u64,
    /// Moves when what a credential of it would say has changed: it is issued again, the old one runs out.
    pub revision: u64,
}

/// Why a lease was revoked.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Cause {
    /// The process exited.
    Exited,
    /// The watch on the process was lost, which counts as an exit.
    WatchLost,
    /// The process executed or became something that the entry does not describe.
    NoLongerMatches,
    /// What a controller says of the process has changed, and the entry does not describe it any more.
    FactsChanged,
    /// The pod of the process is no more.
    PodDeleted,
    /// The process changed its user or group.
    CredentialsChanged,
    /// The entry was withdrawn.
    EntryWithdrawn,
    /// An operator said so; binds until the process restarts.
    Operator,
    /// Policy does not give it any more.
    Policy,
    /// The issuance failed after its lease was written down.
    Aborted,
}

/// What the shell must do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Issue an SVID, then answer with [`Core::complete`] or [`Core::fail`].
    Issue {
        /// Names this issuance in the answer.
        ticket: Ticket,
        /// For whom.
        workload: WorkloadId,
        /// Under which entry.
        entry: EntryId,
        /// Of which form.
        form: Form,
        /// Whether it replaces one that is still valid.
        renewal: bool,
    },
    /// Refuse these leases from now on and tell the verifiers.
    Revoke {
        /// Whose they were.
        workload: WorkloadId,
        /// Never empty.
        leases: Vec<LeaseId>,
        /// Why.
        cause: Cause,
    },
    /// Forget this lease: it has expired.
    Expire {
        /// Whose it was.
        workload: WorkloadId,
        /// Which.
        lease: LeaseId,
    },
    /// The set of current SVIDs changed: show subscribers the new one.
    Show {
        /// Whose.
        workload: WorkloadId,
    },
}

/// Whether a credential may leave the agent.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub enum Completion {
    /// Hand it over.
    Release(Vec<Action>),
    /// Never hand it over: its lease is already revoked, by the actions beside it.
    RevokedAtBirth(Cause, Vec<Action>),
}

/// The end of a lease on the monotonic clock.
pub type Ends = Instant;
