//! A process that may not be what it was: nothing is pushed to it until it has been looked at again.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mayfly_attestors::{AttestError, Attestation, Process, failpoint};

use super::issue::Doubt;
use super::revoker::Initiator;
use super::{Connection, Shared, State};
use crate::audit;
use crate::lease::{Cause, WorkloadId};
use crate::registration::Identity;
use crate::task::Ending;

/// How long after a look that told nothing about the process the next one follows.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long a process that is not what was attested keeps what it holds while we cannot find out what it is. Load must
/// not cost a living process its identity, and no stranger may keep one for as long as he keeps us busy.
const PATIENCE: Duration = Duration::from_secs(if cfg!(feature = "failpoints") { 3 } else { 10 });

/// How long the word of an exec may take to reach us, generously: some milliseconds under load.
const WORD_UNDER_WAY: Duration = Duration::from_millis(250);

/// A suspect as it was when a look began.
struct Look {
    process: Arc<Process>,
    before: Arc<Attestation>,
    /// How many notices there had been: one that comes later is about something this look may have missed.
    notices: u64,
    /// There are news of it: that its program is the same says nothing about them.
    stale: bool,
    /// When it began, among the news.
    since: u64,
    /// How many execs had been told of.
    execs: u64,
    /// Tasks of a cgroup rest on what it is, and it has begun a program since that was last attested: that it is the
    /// same program does not say that it is the same agent, and when it exits nobody can ask it any more.
    unseen: bool,
}

/// For how long a suspect has been seen to be something else that nobody could look at. Pure: time is passed in.
#[derive(Debug, Default)]
struct Unknown {
    since: Option<Instant>,
    over: bool,
}

impl Unknown {
    /// True once, when patience is at its end.
    fn is_over(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let over = now.saturating_duration_since(since) >= PATIENCE;
        over && !std::mem::replace(&mut self.over, true)
    }
}

impl Shared {
    /// Stops pushing to a workload and looks at its program again.
    pub(super) fn suspect(self: &Arc<Self>, id: WorkloadId) {
        {
            let mut state = self.lock();
            let Some(member) = state.members.get_mut(&id) else { return };
            member.notices += 1;
            if std::mem::replace(&mut member.suspect, true) {
                return;
            }
        }
        let shared = Arc::clone(self);
        self.spawn(async move {
            shared.look_again(id).await;
            failpoint::hit("look.over");
        });
    }

    /// What a process holds must not rest on an attestation of what it no longer is, only because a new one failed.
    pub(super) fn suspect_if_changed(self: &Arc<Self>, process: &Process) {
        let known = {
            let state = self.lock();
            let id = state.by_key.get(&process.key()).copied();
            id.and_then(|id| Some((id, Arc::clone(&state.members.get(&id)?.attestation))))
        };
        if let Some((id, attestation)) = known
            && let Err(Doubt::Changed) = self.compare(process, &attestation)
        {
            self.suspect(id);
        }
    }

    /// Until it is known what the process is now. When we are short of descriptors, time or places to hash, it is
    /// asked again; meanwhile the process gets nothing and, unless it was seen to be another for too long, loses
    /// nothing.
    async fn look_again(self: Arc<Self>, id: WorkloadId) {
        let mut unknown = Unknown::default();
        while let Some(look) = self.begin_look(id) {
            let verdict = self.verify_closely(&look.process, &look.before);
            if verdict.is_ok() {
                failpoint::hit("look.before_settle");
                unknown = Unknown::default();
            }
            let outcome = match verdict {
                // It is what it was, but not where it counts, or entries that came since ask for more.
                Ok(()) if look.stale || look.unseen || self.is_too_shallow(&look.before) => {
                    self.attest_for_entries(&look.process).await
                }
                Ok(()) if self.settle(id, look.notices) => return,
                Ok(()) => continue,
                Err(Doubt::NotSeen) => Err(AttestError::Descriptors),
                Err(Doubt::Changed) => {
                    let outcome = self.attest_for_entries(&look.process).await;
                    if let Err(why) = &outcome
                        && why.is_passing()
                        && unknown.is_over(self.parts.clock.monotonic())
                    {
                        self.take_back(id, &look.process, why);
                    }
                    outcome
                }
            };
            if outcome.as_ref().is_err_and(AttestError::is_passing) {
                // Says nothing about the process.
                self.still_stale(id, look.stale);
                tokio::time::sleep(LOOK_AGAIN).await;
            } else if self.conclude(id, &look, outcome) {
                return;
            }
        }
    }

    fn begin_look(&self, id: WorkloadId) -> Option<Look> {
        let mut state = self.lock();
        let (since, has_founded) = (state.news.now(), state.scopes.has_founded(id));
        let member = state.members.get_mut(&id)?;
        Some(Look {
            since,
            execs: member.execs,
            unseen: has_founded && member.execs != member.execs_attested,
            process: Arc::clone(&member.process),
            before: Arc::clone(&member.attestation),
            notices: member.notices,
            stale: std::mem::take(&mut member.stale),
        })
    }

    fn still_stale(&self, id: WorkloadId, stale: bool) {
        if let Some(member) = self.lock().members.get_mut(&id) {
            member.stale |= stale;
        }
    }

    /// Ends the suspicion, unless there was another notice since the look began.
    fn settle(self: &Arc<Self>, id: WorkloadId, notices: u64) -> bool {
        let mut state = self.lock();
        match state.members.get_mut(&id) {
            Some(member) if member.notices != notices => return false,
            Some(member) => member.clear(),
            None => return true,
        }
        // What could not be issued meanwhile need not wait for its next turn.
        let now = self.parts.clock.monotonic();
        let actions = state.core.retry(id, now);
        self.perform(&mut state, actions, now);
        true
    }

    /// Revokes what a workload holds. Its entries stay: it is not told that it has no identity, which nobody knows, but
    /// that there is none to be had just now. What it has founded in a cgroup ends: others would go on in its name, and
    /// nobody can say what that is.
    fn take_back(self: &Arc<Self>, id: WorkloadId, process: &Process, why: &AttestError) {
        tracing::warn!(
            pid = process.pid(),
            uid = process.uid(),
            error = %why,
            "a process is no longer what was attested, and could not be looked at for long: what it holds is revoked"
        );
        self.note_cut(process, audit::Cut::ExecMismatch);
        let now = self.parts.clock.monotonic();
        let (wall, mut state) = (self.parts.clock.wall(), self.lock());
        for task in state.scopes.founded_by(id) {
            let cascade = state.tasks.tree.end(task, Ending::Policy, now, wall);
            self.carry_out(&mut state, &cascade, Initiator::Attestation, now, Some(id));
        }
        let mut actions = state.core.set_entries(id, &[], Cause::NoLongerMatches, now);
        actions.extend(self.hold_matched(&mut state, id, Cause::NoLongerMatches, now));
        self.perform(&mut state, actions, now);
    }

    /// What follows from a look that found something else. False when it must be looked at once more.
    fn conclude(
        self: &Arc<Self>,
        id: WorkloadId,
        look: &Look,
        outcome: Result<Attestation, AttestError>,
    ) -> bool {
        match outcome {
            Ok(attestation) => {
                let now = self.parts.clock.monotonic();
                let mut state = self.lock();
                if state.news.overtook(look.since, &attestation) {
                    drop(state);
                    // Also where the news are so many that it is not known whether they are about this one.
                    self.still_stale(id, true);
                    return false;
                }
                let (attestation, identities) = self.match_beside(&state, id, attestation);
                self.note_loss(&mut state, id, &attestation, &identities);
                self.renew_member(&mut state, id, Arc::new(attestation), identities, now);
                if let Some(member) = state.members.get_mut(&id) {
                    // What it has begun since this look did is for the next one.
                    member.execs_attested = look.execs;
                }
                drop(state);
                self.settle(id, look.notices)
            }
            // The reaper ends it.
            Err(AttestError::Exited) => true,
            Err(AttestError::CredentialsChanged) => {
                self.credentials_changed(&look.process);
                true
            }
            // A program that cannot be looked at is not the one that was attested.
            Err(_) => {
                self.note_cut(&look.process, audit::Cut::ExecMismatch);
                self.drop_all(id, Cause::NoLongerMatches);
                true
            }
        }
    }

    /// Records that a workload loses an identity by what it has become.
    pub(super) fn note_loss(
        self: &Arc<Self>,
        state: &mut State,
        id: WorkloadId,
        after: &Attestation,
        identities: &[Identity],
    ) {
        let Some(member) = state.members.get(&id) else { return };
        if !member.identities.iter().any(|old| !identities.iter().any(|new| new.same_as(old))) {
            return;
        }
        let (process, before) = (Arc::clone(&member.process), &member.attestation);
        let same_program = before.fingerprint().same_program(after.fingerprint());
        let execs = member.execs;
        if Self::cause_of_loss(member, after) == Cause::FactsChanged {
            self.note_cut(&process, audit::Cut::FactsChanged);
        } else if same_program || execs != member.execs_attested {
            self.note_cut(&process, why_lost(before, after));
        } else {
            self.note_forged_unless_told(state, id, process, execs);
        }
    }

    /// A program that changed though no exec was told of: the word may still be under way, so what is recorded is
    /// decided a moment later. What was given is taken back now.
    fn note_forged_unless_told(
        self: &Arc<Self>,
        state: &mut State,
        id: WorkloadId,
        process: Arc<Process>,
        execs: u64,
    ) {
        // Its streams end now; until this is decided it must not be forgotten.
        state.core.hold(id);
        let shared = Arc::clone(self);
        self.spawn(async move {
            tokio::time::sleep(WORD_UNDER_WAY).await;
            let forged = shared.no_exec_since(id, execs);
            {
                let mut state = shared.lock();
                state.core.unhold(id);
                shared.forget_idle(&mut state, id);
            }
            shared.note_cut(&process, if forged { audit::Cut::ExeForged } else { audit::Cut::ExecMismatch });
        });
    }

    /// A08: what it was given is taken back, and each connection it was pinned by ends.
    pub(super) fn credentials_changed(self: &Arc<Self>, process: &Process) {
        let known = self.lock().by_key.get(&process.key()).copied();
        let connections = known.map(|id| self.drop_all(id, Cause::CredentialsChanged)).unwrap_or_default();
        for connection in connections {
            connection.cut(audit::Cut::CredentialsChanged);
        }
        self.note_cut(process, audit::Cut::CredentialsChanged);
    }

    /// Takes everything from a live workload; answers with its connections.
    pub(super) fn drop_all(self: &Arc<Self>, id: WorkloadId, cause: Cause) -> Vec<Arc<dyn Connection>> {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        let actions = state.core.set_entries(id, &[], cause, now);
        self.perform(&mut state, actions, now);
        if let Some(member) = state.members.get_mut(&id) {
            member.identities.clear();
            member.clear();
        }
        state.show(id, now);
        let connections = state.members.get(&id).map(|m| m.connections.as_slice()).unwrap_or_default();
        connections.iter().filter_map(Weak::upgrade).collect()
    }
}

fn why_lost(before: &Attestation, after: &Attestation) -> audit::Cut {
    let same_program = before.fingerprint().same_program(after.fingerprint());
    if same_program && after.posture().traced { audit::Cut::Traced } else { audit::Cut::ExecMismatch }
}
