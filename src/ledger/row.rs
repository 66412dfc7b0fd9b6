//! One lease as the ledger keeps it.

use std::fmt;

use mayfly_attestors::ProcessKey;

use crate::id::{EntryId, LeaseId, TaskId};

/// One issued credential.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// X.509 serial number or `jti`.
    pub id: LeaseId,
    /// What was issued.
    pub kind: Kind,
    /// Key that signed it: authority key identifier in hex, or `kid`.
    pub issuer: String,
    /// The subject.
    pub spiffe_id: String,
    /// The registration entry it came from.
    pub entry: EntryId,
    /// The process that holds it.
    pub process: ProcessKey,
    /// That process's user.
    pub uid: u32,
    /// Audiences of a JWT; empty for the others.
    pub audience: Vec<String>,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds; it is worthless after that.
    pub not_after: u64,
    /// Whether it still stands.
    pub state: State,
    /// Where a token's status is published; only for tokens, and only where lists are published.
    pub status: Option<StatusIndex>,
    /// The task in whose name it was issued, if it was in one's.
    pub task: Option<TaskId>,
}

/// Something that belongs to the ledger's rows and that only its writer can read: a key, and its value, or none any
/// more. Tasks are kept so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Note {
    /// Its name.
    pub key: Vec<u8>,
    /// `None`: it is gone.
    pub value: Option<Vec<u8>>,
}

/// A token's place in a published status list.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StatusIndex {
    /// Which list: the hour of the token's end, counted from the Unix epoch.
    pub list: u64,
    /// Which bit.
    pub index: u32,
}

/// What an operator took from one process until it restarts. It stands whether or not the process holds a
/// lease, so it is no property of a row.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Bar {
    /// From which process.
    pub process: ProcessKey,
    /// One entry; `None`: everything.
    pub entry: Option<EntryId>,
}

/// What kind of credential a lease is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// X.509-SVID.
    X509,
    /// JWT-SVID.
    Jwt,
    /// WIT-SVID.
    Wit,
    /// Access token of a task.
    Access,
}

/// Whether a lease still stands.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// In force until it expires.
    Live,
    /// Taken back.
    Revoked {
        /// When, Unix milliseconds.
        at_millis: u64,
        /// Why.
        reason: Reason,
    },
}

/// Why a lease was taken back. The text is stable: it is in the audit log and in admin answers.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The process ended.
    Exited,
    /// Nobody can say any more whether the process lives.
    WatchLost,
    /// The process became another program that the entry does not match.
    ExecMismatch,
    /// The entry is gone, or matches no longer.
    EntryWithdrawn,
    /// An operator asked for it.
    Operator,
    /// The process ended while the agent was down.
    Restart,
    /// It was never released: the caller left, or died, before it was ready.
    IssueAborted,
    /// The process changed its user or group.
    CredentialsChanged,
    /// A newer credential took its place.
    Superseded,
    /// Its holder gave it back.
    Returned,
    /// What a container engine, the service manager or another controller says of the process has changed.
    FactsChanged,
    /// The task that it was issued for has ended.
    TaskEnded,
    /// Its pod was deleted, and it lived on.
    PodDeleted,
    /// It was good for one use, and was used.
    Used,
    /// Policy does not give it any more.
    Policy,
}

impl Kind {
    /// `x509`, `jwt`, `wit` or `access`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
            Self::Access => "access",
        }
    }
}

impl Reason {
    /// Every reason, in the order of its code in the ledger.
    pub const ALL: [Self; 15] = [
        Self::Exited,
        Self::WatchLost,
        Self::ExecMismatch,
        Self::EntryWithdrawn,
        Self::Operator,
        Self::Restart,
        Self::IssueAborted,
        Self::CredentialsChanged,
        Self::Superseded,
        Self::Returned,
        Self::FactsChanged,
        Self::TaskEnded,
        Self::PodDeleted,
        Self::Used,
        Self::Policy,
    ];

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::WatchLost => "watch_lost",
            Self::ExecMismatch => "exec_mismatch",
            Self::EntryWithdrawn => "entry_withdrawn",
            Self::Operator => "operator",
            Self::Restart => "restart",
            Self::IssueAborted => "issue_aborted",
            Self::CredentialsChanged => "credentials_changed",
            Self::Superseded => "superseded",
            Self::Returned => "returned",
            Self::FactsChanged => "facts_changed",
            Self::TaskEnded => "task_ended",
            Self::PodDeleted => "pod_deleted",
            Self::Used => "used",
            Self::Policy => "policy",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
