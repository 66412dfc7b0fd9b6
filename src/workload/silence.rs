//! What follows when an attestor is silent.
//!
//! Silence takes nothing away: who might match if the attestor answered is told to try again, and who has an identity
//! keeps what the unchanged facts earned. It gives nothing either. Both are decided in [`crate::registration::unknown`].

use mayfly_attestors::{AttestError, Attestation, Depth, Interest, Process};

use super::Shared;
use super::state::{Member, State};
use crate::id::EntryId;
use crate::lease::{Cause, WorkloadId};
use crate::registration::matching::Facts;
use crate::registration::unknown;
use crate::registration::{EntrySet, Identity};

/// An attestor said nothing, and somebody may be entitled by what it would have said.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{attestor} is silent ({why}), and entry {entry} needs it")]
pub struct Silence {
    /// Which attestor.
    pub attestor: &'static str,
    /// What it gave as the reason.
    pub why: String,
    /// The first entry that its answer would decide.
    pub entry: EntryId,
}

/// What the entries in force need of an attestation.
struct Needs<'a>(&'a Shared);

impl Interest for Needs<'_> {
    fn needs_more(&self, so_far: &Attestation) -> bool {
        self.0.open_entry(so_far).is_some() || self.0.parts.policy.in_force().is_about_selectors()
    }
}

impl Shared {
    /// As deep as the entries in force ask; what they do not ask for could change no match, and nobody waits for it.
    pub(super) async fn attest_for_entries(&self, process: &Process) -> Result<Attestation, AttestError> {
        let depth = self.depth();
        self.parts.attestors.attest_for(process, depth, &Needs(self)).await
    }

    /// How far the entries and policies in force look.
    pub(super) fn depth(&self) -> Depth {
        let is_deep = self.parts.policy.in_force().is_about_ancestors();
        if is_deep { Depth::Full } else { self.entries().depth() }
    }

    pub(super) fn entries(&self) -> std::sync::Arc<EntrySet> {
        self.parts.entries.borrow().clone()
    }

    fn open_entry(&self, attestation: &Attestation) -> Option<EntryId> {
        let (entries, now) = (self.entries(), self.parts.clock.wall());
        unknown::undecided(&entries, Facts::from(attestation), now).map(|entry| entry.id.clone())
    }

    /// Whether the entries in force ask for more than this attestation waited for.
    pub(super) fn was_too_hasty(&self, attestation: &Attestation) -> bool {
        let asks =
            || self.open_entry(attestation).is_some() || self.parts.policy.in_force().is_about_selectors();
        attestation.is_hasty() && asks()
    }

    /// Why nobody can say what the process is entitled to; `None` when it is decided.
    pub(super) fn silence(&self, attestation: &Attestation) -> Option<Silence> {
        let entry = self.open_entry(attestation)?;
        let (attestor, why) = attestation.silences().next()?;
        Some(Silence { attestor, why: why.to_owned(), entry })
    }

    /// What a live workload has by a new attestation of it, and that attestation with what silent attestors said
    /// before.
    pub(super) fn match_beside(
        &self,
        state: &State,
        id: WorkloadId,
        attestation: Attestation,
    ) -> (Attestation, Vec<Identity>) {
        let Some(member) = state.members.get(&id) else {
            let identities = self.match_now(&attestation);
            return (attestation, identities);
        };
        let stayed = attestation.is_where(&member.attestation);
        let attestation = attestation.keeping(&member.attestation);
        let held = if stayed { member.identities.as_slice() } else { &[] };
        let identities = self.match_held(&attestation, held);
        (attestation, identities)
    }

    /// What an attestation earns now for who has `held`.
    pub(super) fn match_held(&self, attestation: &Attestation, held: &[Identity]) -> Vec<Identity> {
        if attestation.is_complete() {
            return self.match_now(attestation);
        }
        let (entries, now) = (self.entries(), self.parts.clock.wall());
        unknown::match_held(&entries, Facts::from(attestation), &attestation.fresh(), held, now)
    }

    /// Why a workload would lose an identity by its new attestation.
    pub(super) fn cause_of_loss(member: &Member, after: &Attestation) -> Cause {
        let same_program = member.attestation.fingerprint().same_program(after.fingerprint());
        if same_program && member.execs == member.execs_attested && !after.posture().traced {
            Cause::FactsChanged
        } else {
            Cause::NoLongerMatches
        }
    }
}
