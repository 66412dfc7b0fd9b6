//! Attest and match: from a pinned process to an [`Admission`].

mod admission;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_attestors::origin::ContainerId;
use mayfly_attestors::{AttestError, Attestation, Depth, Everything, Process};

pub use self::admission::Admission;
use self::admission::Held;
use super::seen;
use super::shelf::Shelf;
use super::state::{Member, federates_with};
use super::{Connection, Refusal, Shared, Workloads, lock, told};
use crate::audit::{self, Event};
use crate::lease::{Cause, WorkloadId};
use crate::registration::Identity;
use crate::registration::matching::{self, Facts};

/// How long an attestation of the same, unchanged program serves further calls.
const REUSE: Duration = Duration::from_secs(1);

/// How often a process is attested because it changed, or what is said of it, while it was being looked at.
const MOST_TRIES: usize = 8;

const RESTLESS: &str = "what is said of it changed each time it was looked at";

/// The admission, if anything matches, and by what.
type Taken = (Option<Admission>, Arc<Attestation>);

const BARRED: &str = "an operator took its identities; they come back when it restarts";

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
            let shallow = self.0.is_too_shallow(&member.attestation);
            // After an exec, be it of the same program, an attestation of before says nothing.
            let same_life = member.execs == member.execs_attested;
            let usable = fresh && same_life && !shallow && !member.suspect;
            if !usable || member.identities.is_empty() {
                return None;
            }
            (Arc::clone(&member.attestation), id)
        };
        let unchanged =
            self.0.parts.attestors.fingerprint(process).is_ok_and(|f| f == *attestation.fingerprint());
        if !unchanged {
            return None;
        }
        let admission = self.0.join(&mut self.0.lock(), id, connection)?;
        Some(Admission { cgroup: self.0.cgroup_of_caller(process), ..admission })
    }

    /// Attests the process, matches it, and takes it in. From here on its exit revokes.
    pub async fn admit(
        &self,
        process: &Arc<Process>,
        connection: &Arc<dyn Connection>,
    ) -> Result<Admission, Refusal> {
        let mut tries = 0..MOST_TRIES;
        let (admitted, attestation) = loop {
            if tries.next().is_none() {
                return Err(Refusal::Attest(AttestError::Failed { kind: "news", why: RESTLESS.to_owned() }));
            }
            let since = self.0.lock().news.now();
            let attestation = match self.0.attest_for_entries(process).await {
                Ok(attestation) => attestation,
                Err(error) => return Err(self.0.refuse_attest(process, connection, error)),
            };
            let taken = self.0.take_in(process, attestation, since, connection);
            let taken = taken.inspect_err(|refusal| self.0.note_silence(process, refusal))?;
            let Some(taken) = taken else { continue };
            // Asked after the match: entries that ask for more may have come while the process was looked at.
            if !self.0.is_too_shallow(&taken.1) {
                break taken;
            }
        };
        let cgroup = admitted.as_ref().and_then(|_| self.0.cgroup_of_caller(process));
        admitted.map(|admission| Admission { cgroup, ..admission }).ok_or_else(|| {
            let mut why = self.0.why_none(&attestation);
            let odd = self.0.posture(process, &attestation);
            if !odd.is_empty() {
                why = format!("{why}; posture: {}", odd.join(", "));
            }
            self.0.note_denied_of(process, "match", &why, || seen::agent(process, &attestation, None));
            Refusal::NotEntitled
        })
    }

    /// Measures the agent's own program. The hash of a file counts for others while a process runs it that was
    /// measured with it, and the agent runs as long as anybody asks: its own commands never wait for a reading.
    pub async fn know_own_program(self) {
        let own = Process::of_pid(&self.0.parts.host, std::process::id());
        let Ok(own) = own.inspect_err(|error| tracing::debug!(%error, "own program not measured")) else {
            return;
        };
        if let Err(error) =
            self.0.parts.attestors.attest_for(&own, Depth::WithoutAncestors, &Everything).await
        {
            tracing::debug!(%error, "own program not measured");
        }
    }

    /// Whether containers are told apart.
    pub fn tells_containers(&self) -> bool {
        self.0.parts.attestors.tells_containers()
    }

    /// The container that a process is charged for, where containers are told apart.
    pub fn container_of(&self, process: &Process) -> Option<ContainerId> {
        self.0.parts.attestors.container_of(process)
    }

    /// Records that a process was refused something, and why, for whoever refuses above this layer.
    pub fn note_refused(&self, process: &Process, phase: &'static str, reason: &str) {
        self.0.note_denied(process, phase, reason);
    }

    /// What the attestors and the entries say of a process, without taking it in.
    pub async fn look_at(&self, process: &Arc<Process>) -> Result<(Attestation, Vec<Identity>), Refusal> {
        let attestation = self.0.parts.attestors.attest(process).await.map_err(refusal)?;
        let state = self.0.lock();
        let Some(id) = state.by_key.get(&process.key()).copied() else {
            let identities = self.0.match_now(&attestation);
            return Ok((attestation, identities));
        };
        let (attestation, mut identities) = self.0.match_beside(&state, id, attestation);
        // What an operator took from this very process is not its own.
        identities.retain(|i| !state.core.is_barred(id, &i.entry.id));
        Ok((attestation, identities))
    }
}

impl Shared {
    /// Whether the entries in force ask for more than this attestation looked at.
    pub(super) fn is_too_shallow(&self, attestation: &Attestation) -> bool {
        let asks_deeper = attestation.depth() != Depth::Full && self.depth() == Depth::Full;
        asks_deeper || self.was_too_hasty(attestation)
    }

    pub(super) fn match_now(&self, attestation: &Attestation) -> Vec<Identity> {
        matching::match_entries(&self.entries(), Facts::from(attestation), self.parts.clock.wall())
    }

    /// What is odd about a process, by stable names: what its attestation says, and what is remembered of it.
    pub(super) fn posture(&self, process: &Process, attestation: &Attestation) -> Vec<&'static str> {
        let mut names = attestation.posture().names();
        let state = self.lock();
        let member = state.by_key.get(&process.key()).and_then(|id| state.members.get(id));
        if member.is_some_and(|m| m.execs > 0) {
            names.push("reexec");
        }
        names
    }

    /// For the audit log only: the caller learns no more than that it has no identity.
    fn why_none(&self, attestation: &Attestation) -> String {
        if !self.match_now(attestation).is_empty() {
            return BARRED.to_owned();
        }
        let entries = self.entries();
        let held_back = matching::held_back(&entries, Facts::from(attestation), self.parts.clock.wall());
        match held_back {
            Some((entry, why)) if attestation.posture().traced => {
                format!("traced: entry {}: {why}", entry.id)
            }
            Some((entry, why)) => format!("no entry matches; entry {}: {why}", entry.id),
            None => "no entry matches".to_owned(),
        }
    }

    /// With `None` nothing matches (and what the process held before, it has lost). The attestation comes back with
    /// what silent attestors said of a live workload before.
    fn take_in(
        self: &Arc<Self>,
        process: &Arc<Process>,
        attestation: Attestation,
        since: u64,
        connection: &Arc<dyn Connection>,
    ) -> Result<Option<Taken>, Refusal> {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        if state.news.overtook(since, &attestation) {
            return Ok(None);
        }
        // Matched under the lock, so that a reload either sees this member or is seen by it.
        let known = state.by_key.get(&process.key()).copied();
        let (attestation, id) = match known {
            Some(id) => (self.renew_known(&mut state, id, attestation, now), id),
            None => {
                if let Some(silence) = self.silence(&attestation) {
                    return Err(Refusal::Silent(silence));
                }
                let (identities, attestation) = (self.match_now(&attestation), Arc::new(attestation));
                if identities.is_empty() {
                    return Ok(Some((None, attestation)));
                }
                let id = self.insert_new(&mut state, process, &attestation, identities, now)?;
                (attestation, id)
            }
        };
        // The exit may have been seen before the row above existed; the pidfd still knows.
        if !process.is_alive() || !state.members.contains_key(&id) {
            return Err(Refusal::Exited);
        }
        if state.members.get(&id).is_some_and(|member| member.identities.is_empty())
            && let Some(silence) = self.silence(&attestation)
        {
            return Err(Refusal::Silent(silence));
        }
        Ok(Some((self.join(&mut state, id, connection), attestation)))
    }

    /// A live workload that calls again.
    fn renew_known(
        self: &Arc<Self>,
        state: &mut super::State,
        id: WorkloadId,
        attestation: Attestation,
        now: Instant,
    ) -> Arc<Attestation> {
        let (attestation, identities) = self.match_beside(state, id, attestation);
        let attestation = Arc::new(attestation);
        self.note_loss(state, id, &attestation, &identities);
        self.renew_member(state, id, Arc::clone(&attestation), identities, now);
        attestation
    }

    fn insert_new(
        self: &Arc<Self>,
        state: &mut super::State,
        process: &Arc<Process>,
        attestation: &Arc<Attestation>,
        identities: Vec<Identity>,
        now: Instant,
    ) -> Result<WorkloadId, Refusal> {
        let id = state.insert(member(process, Arc::clone(attestation), identities, now));
        if self.reaper.watch(process, id.0).is_err() {
            state.core.end(id, Cause::WatchLost);
            state.remove(id);
            self.parts.readiness.raise("process watch", "lost; restart the agent");
            return Err(Refusal::WatchLost);
        }
        self.parts.manager.keep_process(process);
        self.note_attested(state, id);
        let actions = self.hold_matched(state, id, Cause::NoLongerMatches, now);
        self.perform(state, actions, now);
        Ok(id)
    }

    /// Adds the connection, and admits the process if anything is left to it.
    fn join(
        self: &Arc<Self>,
        state: &mut super::State,
        id: WorkloadId,
        connection: &Arc<dyn Connection>,
    ) -> Option<Admission> {
        let held = state.held(id);
        let member = state.members.get_mut(&id)?;
        member.join(connection);
        // An operator may have taken an entry from this very process.
        let own = |identity: &&Identity| held.contains(&identity.entry.id);
        let identities: Vec<Identity> = member.identities.iter().filter(own).cloned().collect();
        if identities.is_empty() {
            return None;
        }
        let (process, attestation) = (Arc::clone(&member.process), Arc::clone(&member.attestation));
        state.core.hold(id);
        let held = Arc::new(Held(Arc::clone(self), id));
        Some(Admission { id, process, attestation, identities, cgroup: None, _held: held })
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
        let cause = Self::cause_of_loss(member, &attestation);
        let is_told =
            state.told.knows(&member.process.key()) && told::is_same(&member.attestation, &attestation);
        member.attestation = attestation;
        member.attested_at = now;
        member.execs_attested = member.execs;
        member.identities = identities;
        // A suspicion is not lifted here: it may be about something newer than this attestation.
        member.checked_for = None;
        if !is_told {
            self.note_attested(state, id);
        }
        let actions = self.hold_matched(state, id, cause, now);
        self.perform(state, actions, now);
        state.show(id, now);
    }

    fn note_silence(&self, process: &Process, refusal: &Refusal) {
        if let Refusal::Silent(_) = refusal {
            self.note_denied(process, "attest", &with_source(refusal));
        }
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
            other => {
                self.note_denied(process, "attest", &with_source(other));
                self.suspect_if_changed(process);
            }
        }
        refusal
    }

    pub(super) fn note_denied(&self, process: &Process, phase: &'static str, reason: &str) {
        self.note_denied_of(process, phase, reason, || audit::Agent::new(process.key(), process.uid()));
    }

    /// The same of a process that was attested: `agent` is only asked if it is told.
    pub(super) fn note_denied_of(
        &self,
        process: &Process,
        phase: &'static str,
        reason: &str,
        agent: impl FnOnce() -> audit::Agent,
    ) {
        *lock(&self.refusals).entry(phase).or_default() += 1;
        let kind = (process.uid(), phase, reason.to_owned());
        let Some(count) = lock(&self.denials).count(kind, self.parts.clock.monotonic()) else { return };
        let decision = audit::Decision { phase, reason: audit::times(reason, count) };
        self.parts.audit.note(vec![Event::AttestDenied { agent: agent(), decision }]);
    }
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
    let first = federates_with(&identities);
    Member {
        process: Arc::clone(process),
        attestation,
        attested_at: now,
        identities,
        x509: Shelf::new(first),
        wit: None,
        fetch: None,
        connections: Vec::new(),
        suspect: false,
        stale: false,
        notices: 0,
        execs: 0,
        execs_attested: 0,
        checked_for: None,
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
