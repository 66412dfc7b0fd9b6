//! What is said of a credential that somebody shows: whether it stands, and, where it is good for one use, that this
//! was it. All from memory; only the use is written down before it is answered.

use super::revoker::Initiator;
use super::{Workloads, lock};
use crate::audit::{Agent, Credential, Event};
use crate::id::LeaseId;
use crate::ledger::{Reason, State};

impl Workloads {
    /// Whether a lease was taken back, asked for a credential that is otherwise good. One that was is recorded, once:
    /// `place` says where it was shown.
    pub fn refuses(&self, lease: LeaseId, place: &str) -> bool {
        if !self.is_revoked(lease) {
            return false;
        }
        let shown = lock(&self.0.denied).first_reuse(lease);
        if let Some(row) = shown {
            let why = match row.state {
                State::Revoked { reason, .. } => reason.as_str(),
                State::Live => "revoked",
            };
            let (agent, credential) = (Agent::of(&row), Credential::of(&row));
            let seen = format!("{why}, {place}");
            self.0.parts.audit.note(vec![Event::CredentialReuse { agent, credential, seen }]);
        }
        true
    }

    /// Whether the lease of a token of a task stands: it must be known, too.
    pub fn stands(&self, lease: LeaseId, place: &str) -> bool {
        !self.refuses(lease, place) && self.0.lock().rows.contains_key(&lease)
    }

    /// Uses up a credential that is good for one use: true for at most one of all who ask, and that it was used is in
    /// the ledger then. Where the ledger cannot be written it is used up for nothing.
    pub async fn use_up(&self, lease: LeaseId) -> bool {
        let now = self.0.parts.clock.monotonic();
        {
            let mut state = self.0.lock();
            let Some(row) = state.take_row(lease) else { return false };
            // The core only forgets it here: the reason is ours to name.
            drop(state.core.withdraw(lease));
            self.0.refuse(vec![row], Reason::Used, Initiator::Holder, now, None);
        }
        self.settle().await.is_ok()
    }
}
