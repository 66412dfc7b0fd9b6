//! A credential between its signature and its release: shut until the ledger has committed to it.

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::digest;
use mayfly_attestors::ProcessKey;

use crate::clock::unix_seconds;
use crate::id::{EntryId, LeaseId, TaskId};
use crate::ledger::{self, Committed, Row, StatusIndex};

/// A credential that nobody may see before its lease is in the ledger. Dropping it is an issuance that never
/// happened.
#[must_use = "commit its row, then release it"]
pub struct Minted<C> {
    credential: C,
    lease: Lease,
}

/// What the ledger keeps of it, without its holder.
pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) kind: ledger::Kind,
    pub(super) issuer: String,
    pub(super) spiffe_id: String,
    pub(super) entry: EntryId,
    pub(super) audience: Vec<String>,
    pub(super) issued_at: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) status: Option<StatusIndex>,
    pub(super) task: Option<TaskId>,
}

/// A credential that is a text.
pub trait Token {
    /// Compact JWS.
    fn token(&self) -> &str;
}

impl<C> Minted<C> {
    pub(super) fn new(credential: C, lease: Lease) -> Self {
        Self { credential, lease }
    }

    /// The lease: the serial number or `jti`.
    pub fn id(&self) -> LeaseId {
        self.lease.id
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.lease.not_after
    }

    /// It was made in the name of a task, and ends with it.
    pub fn in_task(mut self, task: TaskId) -> Self {
        self.lease.task = Some(task);
        self
    }

    /// The row to commit for the process that will hold it.
    pub fn row(&self, process: ProcessKey, uid: u32) -> Row {
        let lease = &self.lease;
        Row {
            id: lease.id,
            kind: lease.kind,
            issuer: lease.issuer.clone(),
            spiffe_id: lease.spiffe_id.clone(),
            entry: lease.entry.clone(),
            process,
            uid,
            audience: lease.audience.clone(),
            issued_at: unix_seconds(lease.issued_at),
            not_after: unix_seconds(lease.not_after),
            state: ledger::State::Live,
            status: lease.status,
            task: lease.task,
        }
    }

    /// Opens it, if that commit wrote its lease; else it is gone for good.
    pub fn release(self, committed: &Committed) -> Option<C> {
        committed.covers(self.lease.id).then_some(self.credential)
    }
}

impl<C: Token> Minted<C> {
    /// SHA-256 of the token, for the audit log: the token itself stays shut.
    pub fn token_sha256(&self) -> digest::Digest {
        digest::digest(&digest::SHA256, self.credential.token().as_bytes())
    }

    /// How long the token is, in bytes.
    pub fn token_bytes(&self) -> usize {
        self.credential.token().len()
    }
}

impl<C> fmt::Debug for Minted<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Minted({})", self.lease.id)
    }
}
