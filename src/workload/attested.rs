//! Puts on record what a process was attested as: once, and again when that has changed.
//!
//! Handed to the log like a refusal, and nobody waits for it: whatever the process gets then waits for a record of its own,
//! which is written after this one or not at all.

use mayfly_attestors::ProcessKey;

use super::told::Facts;
use super::{Shared, State, seen};
use crate::audit::Event;
use crate::lease::WorkloadId;

impl Shared {
    /// Of a member that was taken in or attested again. To be called under the state lock, before anything is done for
    /// what it was found to be.
    pub(super) fn note_attested(&self, state: &mut State, id: WorkloadId) {
        let State { told, by_key, members, .. } = state;
        let Some(member) = members.get(&id) else { return };
        let (process, attestation) = (&member.process, &member.attestation);
        let lives = |key: &ProcessKey| by_key.contains_key(key);
        let Some(found) = told.news(process.key(), Facts::of(attestation), lives) else { return };
        let spiffe_id = member.identities.first().map(|identity| identity.spiffe_id.to_string());
        let agent = seen::agent(process, attestation, spiffe_id);
        self.parts.audit.note(vec![Event::Attested { agent, found }]);
    }
}
