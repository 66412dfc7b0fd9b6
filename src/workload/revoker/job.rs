//! What the revoker is told.

use std::sync::{Arc, mpsc};
use std::time::{Instant, SystemTime};

use tokio::sync::oneshot;

use crate::audit::{Event, Trace};
use crate::authority::AuthoritySet;
use crate::ledger::{Note, Reason, Row};

/// Answered with the number of the CRL in force once everything queued before is published.
pub(in crate::workload) type Done = oneshot::Sender<u64>;

/// Leases refused in memory that verifiers do not know of yet.
#[derive(Debug)]
pub(in crate::workload) struct RevokeJob {
    pub(in crate::workload) rows: Vec<Row>,
    pub(in crate::workload) reason: Reason,
    pub(in crate::workload) initiator: Initiator,
    /// When, for the ledger.
    pub(in crate::workload) at: SystemTime,
    /// When the agent learned of the cause.
    pub(in crate::workload) seen: Instant,
    /// When memory began to refuse.
    pub(in crate::workload) refused: Instant,
    pub(in crate::workload) done: Option<Done>,
    /// For the ledger, in the same transaction.
    pub(in crate::workload) notes: Vec<Note>,
    /// Of the call that brought it about.
    pub(in crate::workload) trace: Option<Trace>,
}

/// What the revoker is told.
#[derive(Debug)]
pub(in crate::workload) enum Job {
    /// These leases are refused.
    Revoke(RevokeJob),
    /// For the record, once everything that came before is in the ledger.
    Record(Vec<Event>, Option<Trace>),
    /// These authorities are in force from now on.
    Authorities {
        set: Arc<AuthoritySet>,
        /// Answered when verifiers have been told and signers use it; or why not.
        done: mpsc::SyncSender<Result<(), String>>,
    },
    /// A sign of life that goes the way of a revocation.
    Pulse(Answer),
}

/// Called by the revoker's own thread.
pub(in crate::workload) struct Answer(pub(in crate::workload) Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}

/// Who caused a revocation.
#[derive(Clone, Copy, Debug)]
pub(in crate::workload) enum Initiator {
    Kernel,
    Attestation,
    Entries,
    Policy,
    Operator,
    /// One of them, by uid.
    OperatorUid(u32),
    Agent,
    Holder,
}

impl Initiator {
    pub(in crate::workload) fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Attestation => "attestation",
            Self::Entries => "entries",
            Self::Policy => "policy",
            Self::Operator | Self::OperatorUid(_) => "operator",
            Self::Agent => "agent",
            Self::Holder => "holder",
        }
    }

    /// The same, with the name where one is known.
    pub(in crate::workload) fn named(self) -> String {
        match self {
            Self::OperatorUid(uid) => format!("operator uid {uid}"),
            other => other.as_str().to_owned(),
        }
    }
}
