//! Attest and match: from a pinned process to an [`Admission`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_attestors::{AttestError, Attestation, Process};

use super::shelf::Shelf;
use super::state::Member;
use super::{Connection, Refusal, Shared, Workloads, lock};
use crate::audit::{self, Event};
use crate::lease::{Cause, WorkloadId};
use crate::registration::Identity;
use crate::registration::matching::{self, Facts};

/// How long an attestation of the same, unchanged program serves further calls.
const REUSE: Duration = Duration::from_secs(1);

const BARRED: &str = "an operator took its identities; they come back when it restarts";

/// Proof that a process was pinned, attested and matched to at least one entry just now.
#[derive(Clone, Debug)]
#[must_use]
pub struct Admission {
    id: WorkloadId,
    process: Arc<Process>,
    attestation: Arc<Attestation>,
    identities: Vec<Identity>,
}

impl Admission {
    /// The workload.
    pub fn id(&self) -> WorkloadId {
        self.id
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What the attestors said.
    pub fn attestation(&self) -> &Attestation {
        &self.attestation
    }

    /// Its identities, the default first. Never empty.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }
}

impl Workloads {
    /// Answers without a new attestation when this process was attested within the last second and is
    /// still the same program of the same user in the same cgroup.
    pub fn recall(&self, process: &Process, connection: &Arc<dyn Connection>) -> Option<Admission> {
        let now = self.0.parts.clock.monotonic();
        let (attestation, id) = {
            let state = self.0.lock();
            let id = *state.by_key.get(&process.key())?;
            let member = state.members.get(&id)?;
            let fresh = now.saturating_duration_since(member.attested_at) < REUSE;
            if !fresh || member.suspect || member.identities.is_empty() {
                return None;
            }
            (Arc::clone(&member.attestation), id)
        };
        let unchanged =
            self.0.parts.attestors.fingerprint(process).is_ok_and(|f| f == *attestation.fingerprint());
        if !unchanged {
            return None;
        }
        let mut state = self.0.lock();
        let held = state.held(id);
        let member = state.members.get_mut(&id)?;
        member.join(connection);
        let mut admitted = admission(id, member);
        admitted.identities.retain(|i| held.contains(&i.entry.id));
        (!admitted.identities.is_empty()).then_some(admitted)
    }

    /// Attests the process, matches it, and takes it in. From here on its exit revokes.
    pub async fn admit(
        &self,
        process: &Arc<Process>,
        connection: &Arc<dyn Connection>,
    ) -> Result<Admission, Refusal> {
        let attestation = match self.0.parts.attestors.attest(process).await {
            Ok(attestation) => Arc::new(attestation),
            Err(error) => return Err(self.0.refuse_attest(process, connection, error)),
        };
        let admitted = self.0.take_in(process, Arc::clone(&attestation), connection)?;
        admitted.ok_or_else(|| {
            self.0.note_denied(process, "match", &self.0.why_none(&attestation));
            Refusal::NotEntitled
        })
    }

    /// Records that a process was refused something, and why, for whoever refuses above this layer.
    pub fn note_refused(&self, process: &Process, phase: &'static str, reason: &str) {
        self.0.note_denied(process, phase, reason);
    }

    /// What the attestors and the entries say of a process, without taking it in.
    pub async fn look_at(&self, process: &Arc<Process>) -> Result<(Attestation, Vec<Identity>), Refusal> {
        let attestation = self.0.parts.attestors.attest(process).await.map_err(refusal)?;
        let mut identities = self.0.match_now(&attestation);
        let state = self.0.lock();
        if let Some(id) = state.by_key.get(&process.key()) {
            // What an operator took from this very process is not its own.
            let barred = |entry: &crate::id::EntryId| state.core.is_barred(*id, entry);
            identities.retain(|i| !barred(&i.entry.id));
        }
        drop(state);
        Ok((attestation, identities))
    }
}

impl Shared {
    pub(super) fn match_now(&self, attestation: &Attestation) -> Vec<Identity> {
        let entries = self.parts.entries.borrow().clone();
        matching::match_entries(&entries, facts(attestation), self.parts.clock.wall())
    }

    /// For the audit log only: the caller learns no more than that it has no identity.
    fn why_none(&self, attestation: &Attestation) -> String {
        if !self.match_now(attestation).is_empty() {
            return BARRED.to_owned();
        }
        let entries = self.parts.entries.borrow().clone();
        let held_back = matching::held_back(&entries, facts(attestation), self.parts.clock.wall());
        match held_back {
            Some((entry, why)) if attestation.posture().traced => {
                format!("traced: entry {}: {why}", entry.id)
            }
            Some((entry, why)) => format!("no entry matches; entry {}: {why}", entry.id),
            None => "no entry matches".to_owned(),
        }
    }

    /// `Ok(None)`: nothing matches (and what the process held before, it has lost).
    fn take_in(
        self: &Arc<Self>,
        process: &Arc<Process>,
        attestation: Arc<Attestation>,
        connection: &Arc<dyn Connection>,
    ) -> Result<Option<Admission>, Refusal> {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        // Under the lock, so that a reload either sees this member or is seen by it.
        let identities = self.match_now(&attestation);
        let known = state.by_key.get(&process.key()).copied();
        let id = match known {
            Some(id) => {
                self.renew_member(&mut state, id, attestation, identities, now);
                id
            }
            None if identities.is_empty() => return Ok(None),
            None => {
                let id = state.insert(member(process, attestation, identities, now));
                if self.reaper.watch(process, id.0).is_err() {
                    state.core.end(id, Cause::WatchLost);
                    state.remove(id);
                    self.parts.readiness.raise("process watch", "lost; restart the agent");
                    return Err(Refusal::WatchLost);
                }
                let wanted = state.members.get(&id).map(Member::wanted).unwrap_or_default();
                let actions = state.core.set_entries(id, &wanted, Cause::NoLongerMatches, now);
                self.perform(&mut state, actions, now);
                id
            }
        };
        // The exit may have been seen before the row above existed; the pidfd still knows.
        if !process.is_alive() {
            return Err(Refusal::Exited);
        }
        let held = state.held(id);
        let Some(member) = state.members.get_mut(&id) else { return Err(Refusal::Exited) };
        member.join(connection);
        let mut admitted = admission(id, member);
        // An operator may have taken an entry from this very process.
        admitted.identities.retain(|i| held.contains(&i.entry.id));
        Ok((!admitted.identities.is_empty()).then_some(admitted))
    }

    /// Puts a new attestation in place of the old one and lets the core draw the consequences.
    pub(super) fn renew_member(
        self: &Arc<Self>,
        state: &mut super::State,
        id: WorkloadId,
        attestation: Arc<Attestation>,
        identities: Vec<Identity>,
        now: Instant,
    ) {
        let Some(member) = state.members.get_mut(&id) else { return };
        member.attestation = attestation;
        member.attested_at = now;
        member.identities = identities;
        // A suspicion is not lifted here: it may be about something newer than this attestation.
        member.checked_for = None;
        let wanted = member.wanted();
        let actions = state.core.set_entries(id, &wanted, Cause::NoLongerMatches, now);
        self.perform(state, actions, now);
        state.show(id, now);
    }

    fn refuse_attest(
        self: &Arc<Self>,
        process: &Process,
        connection: &Arc<dyn Connection>,
        error: AttestError,
    ) -> Refusal {
        let refusal = refusal(error);
        match &refusal {
            Refusal::CredentialsChanged => {
                // First the refusal: a caller that ends because it was cut would be revoked as one that left.
                self.credentials_changed(process);
                connection.cut(audit::Cut::CredentialsChanged);
            }
            other => self.note_denied(process, "attest", &with_source(other)),
        }
        refusal
    }

    pub(super) fn note_denied(&self, process: &Process, phase: &'static str, reason: &str) {
        let kind = (process.uid(), phase, reason.to_owned());
        let Some(count) = lock(&self.denials).count(kind, self.parts.clock.monotonic()) else { return };
        let agent = audit::Agent::new(process.key(), process.uid());
        let decision = audit::Decision { phase, reason: audit::times(reason, count) };
        self.parts.audit.note(vec![Event::AttestDenied { agent, decision }]);
    }
}

/// What matching needs to know of an attestation.
pub(super) fn facts(attestation: &Attestation) -> Facts<'_> {
    let posture = attestation.posture();
    Facts { selectors: attestation.selectors(), traced: posture.traced, anonymous_exe: posture.anonymous_exe }
}

fn refusal(error: AttestError) -> Refusal {
    match error {
        AttestError::Exited => Refusal::Exited,
        AttestError::CredentialsChanged => Refusal::CredentialsChanged,
        other => Refusal::Attest(other),
    }
}

pub(super) fn member(
    process: &Arc<Process>,
    attestation: Arc<Attestation>,
    identities: Vec<Identity>,
    now: Instant,
) -> Member {
    Member {
        process: Arc::clone(process),
        attestation,
        attested_at: now,
        identities,
        x509: Shelf::default(),
        wit: None,
        connections: Vec::new(),
        suspect: false,
        notices: 0,
        checked_for: None,
    }
}

fn admission(id: WorkloadId, member: &Member) -> Admission {
    Admission {
        id,
        process: Arc::clone(&member.process),
        attestation: Arc::clone(&member.attestation),
        identities: member.identities.clone(),
    }
}

/// The refusal with what is behind it, for the audit log; callers only get the first half.
fn with_source(refusal: &Refusal) -> String {
    use std::error::Error as _;
    match refusal.source() {
        Some(source) => format!("{refusal}: {source}"),
        None => refusal.to_string(),
    }
}
