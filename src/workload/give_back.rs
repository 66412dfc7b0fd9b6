//! A token that its holder does not want any more (RFC 7009). Nothing else of the holder changes: it may have
//! another at once.

use mayfly_attestors::ProcessKey;

use super::revoker::Initiator;
use super::{Workloads, lock};
use crate::id::{LeaseId, SpiffeId};
use crate::ledger::{Kind, Reason, Row};

/// On what ground somebody gives a token back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Claim {
    /// This process was given it, or has one of the identities it is for.
    Workload(Option<ProcessKey>, Vec<SpiffeId>),
    /// Whoever administers the node.
    Operator,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GivenBack {
    /// It is refused from now on, and the ledger knows.
    Revoked,
    /// It is refused from now on, and the ledger does not know yet: a crash would undo it.
    NotWritten,
    /// No live token has this name: expired, taken back already, or never given.
    Unknown,
    /// It is somebody else's; it stands.
    NotTheirs,
}

impl Workloads {
    /// Takes one token back. Memory refuses it before this returns, and the ledger has it if that is the answer.
    pub async fn give_back(&self, lease: LeaseId, claim: &Claim) -> GivenBack {
        let now = self.0.parts.clock.monotonic();
        {
            let mut state = self.0.lock();
            match state.rows.get(&lease) {
                Some(row) if row.kind == Kind::X509 => return GivenBack::Unknown,
                Some(row) if !claim.covers(row) => return GivenBack::NotTheirs,
                Some(_) => {}
                None => return GivenBack::Unknown,
            }
            // The core only forgets it here: the reason is ours to name.
            drop(state.core.withdraw(lease));
            let rows = state.take_row(lease).into_iter().collect();
            let (reason, initiator) = match claim {
                Claim::Workload(..) => (Reason::Returned, Initiator::Holder),
                Claim::Operator => (Reason::Operator, Initiator::Operator),
            };
            self.0.refuse(rows, reason, initiator, now, None);
        }
        let written = self.settle().await;
        debug_assert!(lock(&self.0.denied).contains(lease), "refused in memory");
        if written.is_ok() { GivenBack::Revoked } else { GivenBack::NotWritten }
    }
}

impl Claim {
    fn covers(&self, row: &Row) -> bool {
        match self {
            Self::Operator => true,
            Self::Workload(process, identities) => {
                *process == Some(row.process) || identities.iter().any(|id| id.as_str() == row.spiffe_id)
            }
        }
    }
}
