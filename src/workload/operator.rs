//! What an operator asks and orders.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mayfly_attestors::{AttestError, Attestation, PinError, Process};

use super::guard::Fetched;
use super::revoker::Initiator;
use super::{PublishedCrl, Refusal, Shared, Workloads, lock};
use crate::id::LeaseId;
use crate::lease::Action;
use crate::ledger::{LedgerError, Reason, Row};
use crate::queue::Health;
use crate::registration::Identity;
use crate::registration::matching::{self, NearMiss};
use crate::revocation::{Buckets, Stage, StageFigures};

/// Which leases to list.
#[derive(Clone, Debug, Default)]
pub struct LeaseFilter {
    /// Only this identity.
    pub spiffe_id: Option<String>,
    /// Only this process.
    pub pid: Option<u32>,
}

/// What to revoke.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// One lease, and with it the entry for its process until that restarts.
    Lease(LeaseId),
    /// Everything a process has; it gets nothing again until it restarts.
    Pid(u32),
    /// Every lease of an identity on this node.
    SpiffeId(String),
}

/// What a revocation did.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    /// The leases; empty when nothing matched.
    pub leases: Vec<LeaseId>,
    /// Processes that get nothing of the kind any more, whether or not they held anything.
    pub barred: usize,
    /// The CRL that lists them; 0 when none had to be published.
    pub crl_number: u64,
    /// From the order to its publication.
    pub took: Duration,
}

/// What a process would get.
#[derive(Debug)]
pub struct Explained {
    /// What the attestors said.
    pub attestation: Attestation,
    /// What it matches.
    pub identities: Vec<Identity>,
    /// What it just misses, nearest first.
    pub near_misses: Vec<NearMiss>,
    /// What is odd about the process, by its stable names.
    pub posture: Vec<&'static str>,
    /// What policy makes of each identity; empty without a policy set.
    pub policy: Vec<Fetched>,
}

/// What an order to revoke has not done.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// All is refused from now on, but the ledger has not taken that.
    #[error("it is refused, and that could not be written down ({0}): a crash of the agent would undo it")]
    Ledger(#[from] LedgerError),
    /// What holds no lease yet has to be looked at to be barred, and could not be.
    #[error(
        "process {pid} keeps nothing, and is not barred either, since it cannot be looked at now ({why}): give the order again"
    )]
    NotBarred {
        /// Which.
        pid: u32,
        /// For operators.
        why: String,
    },
}

impl Workloads {
    /// Live leases, soonest end first.
    pub fn leases(&self, filter: &LeaseFilter) -> Vec<Row> {
        let state = self.0.lock();
        sorted(state.rows.values().filter(|row| filter.fits(row)))
    }

    /// Revoked leases that have not expired, soonest end first.
    pub fn revoked_leases(&self, filter: &LeaseFilter) -> Vec<Row> {
        let denied = lock(&self.0.denied);
        sorted(denied.rows().filter(|row| filter.fits(row)))
    }

    /// Live workloads and live leases.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.members.len(), state.core.live_leases())
    }

    /// Revoked and not yet expired.
    pub fn revoked(&self) -> usize {
        lock(&self.0.denied).len()
    }

    /// The CRL in force.
    pub fn crl(&self) -> Option<PublishedCrl> {
        self.0.crl.borrow().clone()
    }

    /// The types of selectors that are looked for.
    pub fn attestors(&self) -> Vec<&'static str> {
        self.0.parts.attestors.kinds()
    }

    /// How often the container of a process was not told, and why; without those that never happened.
    pub fn refused_origins(&self) -> Vec<(&'static str, u64)> {
        self.0.parts.attestors.refused_origins().filter(|(_, count)| *count > 0).collect()
    }

    /// How long each step of the revocations so far took.
    pub fn latencies(&self) -> [(Stage, StageFigures); 4] {
        lock(&self.0.timings).snapshot()
    }

    /// The same as histograms.
    pub fn latency_buckets(&self) -> [(Stage, Buckets); 4] {
        lock(&self.0.timings).buckets()
    }

    /// Refusals since the start, by the step that refused.
    pub fn denials(&self) -> std::collections::BTreeMap<&'static str, u64> {
        lock(&self.0.refusals).clone()
    }

    /// How many live leases the target names now.
    pub fn count_matching(&self, target: &Target) -> usize {
        let state = self.0.lock();
        let named = |row: &&Row| match target {
            Target::Lease(lease) => row.id == *lease,
            Target::Pid(pid) => row.process.pid == *pid,
            Target::SpiffeId(spiffe_id) => row.spiffe_id == *spiffe_id,
        };
        state.rows.values().filter(named).count()
    }

    /// Revokes and resolves when the CRL is published.
    ///
    /// # Errors
    /// [`RevokeError`] says what the order has not done.
    pub async fn revoke(&self, target: &Target) -> Result<Revoked, RevokeError> {
        let start = self.0.parts.clock.monotonic();
        // Whether or not it can be barred, what it has is taken back.
        let held = match target {
            Target::Pid(pid) => self.hold_stranger(*pid).await,
            Target::Lease(_) | Target::SpiffeId(_) => Ok(()),
        };
        let (done, published) = tokio::sync::oneshot::channel();
        let (leases, bars) = {
            let mut state = self.0.lock();
            let bars = state.bars_for(target);
            let actions: Vec<Action> = bars.iter().flat_map(|bar| state.bar(bar)).collect();
            let mut leases = self.0.revoke_in_cgroups(&mut state, target, start);
            leases.extend(revoked_by(&actions));
            self.0.perform(&mut state, actions, start);
            (leases, bars)
        };
        let written = self.0.write_bars(&bars).await;
        // Queued behind the revocations above, so its answer comes with or after their publication.
        self.0.refuse(Vec::new(), Reason::Operator, Initiator::Operator, start, Some(done));
        let crl_number = published.await.unwrap_or_default();
        written?;
        self.0.is_in_ledger()?;
        held?;
        let took = self.0.parts.clock.monotonic().saturating_duration_since(start);
        let barred = bars.iter().map(|bar| bar.process).collect::<BTreeSet<_>>().len();
        Ok(Revoked { leases, barred, crl_number, took })
    }

    /// Resolves when everything revoked so far is in the ledger, and published.
    ///
    /// # Errors
    /// The ledger has not taken it. Memory refuses it, and the ledger owes it; a crash before it is written would undo it.
    pub async fn settle(&self) -> Result<(), LedgerError> {
        self.flush().await;
        self.0.is_in_ledger()
    }

    /// Resolves when everything revoked so far is published and in the audit log.
    pub async fn flush(&self) {
        let (done, published) = tokio::sync::oneshot::channel();
        let now = self.0.parts.clock.monotonic();
        self.0.refuse(Vec::new(), Reason::Operator, Initiator::Agent, now, Some(done));
        // An error means that the revoker is gone, and with it what could be waited for.
        published.await.ok();
    }

    /// Takes in a process that never called, so that it can be barred: it is watched from here on. One that has exited needs
    /// no bar.
    async fn hold_stranger(&self, pid: u32) -> Result<(), RevokeError> {
        if self.0.lock().by_pid.contains_key(&pid) {
            return Ok(());
        }
        let not_barred = |why: String| RevokeError::NotBarred { pid, why };
        let process = match Process::of_pid(&self.0.parts.host, pid) {
            Ok(process) => Arc::new(process),
            Err(PinError::Exited) => return Ok(()),
            Err(error) => return Err(not_barred(error.to_string())),
        };
        let attestation = match self.0.parts.attestors.attest(&process).await {
            Ok(attestation) => attestation,
            Err(AttestError::Exited) => return Ok(()),
            Err(error) => return Err(not_barred(error.to_string())),
        };
        let now = self.0.parts.clock.monotonic();
        let mut state = self.0.lock();
        if state.by_key.contains_key(&process.key()) {
            return Ok(());
        }
        let id = state.insert(super::admit::member(&process, Arc::new(attestation), Vec::new(), now));
        self.0.reaper.watch(&process, id.0).map_err(|error| {
            state.core.end(id, crate::lease::Cause::WatchLost);
            state.remove(id);
            not_barred(error.to_string())
        })
    }

    /// Attests a process as if it had called. A number nobody has is [`Refusal::NoProcess`].
    pub async fn explain(&self, pid: u32) -> Result<Explained, Refusal> {
        let process = Process::of_pid(&self.0.parts.host, pid).map_err(|error| match error {
            PinError::Descriptors => Refusal::Attest(AttestError::Descriptors),
            PinError::Exited => Refusal::NoProcess(pid),
            other => Refusal::Unpinned(pid, other),
        })?;
        let process = Arc::new(process);
        let looked_at = self.look_at(&process).await;
        let (attestation, identities) = looked_at.map_err(|refusal| match refusal {
            Refusal::Exited => Refusal::NoProcess(pid),
            other => other,
        })?;
        let entries = self.0.parts.entries.borrow().clone();
        let facts = matching::Facts::from(&attestation);
        let near_misses = matching::near_misses(&entries, facts, self.0.parts.clock.wall());
        let posture = self.0.posture(&process, &attestation);
        let now = self.0.parts.clock.monotonic();
        let who = |identity: &Identity| self.0.facts(&process, &attestation, now, identity);
        let policy = self.0.explain_fetch(&identities, who);
        Ok(Explained { attestation, identities, near_misses, posture, policy })
    }
}

impl Shared {
    /// Whether what was revoked, and waited for, is in the ledger: whatever it still owes goes out with the first write that
    /// succeeds.
    pub(super) fn is_in_ledger(&self) -> Result<(), LedgerError> {
        match &*self.parts.ledger.health().borrow() {
            Health::Good => Ok(()),
            Health::Failing { why } => Err(LedgerError::Unavailable(why.clone())),
        }
    }
}

impl LeaseFilter {
    fn fits(&self, row: &Row) -> bool {
        self.spiffe_id.as_ref().is_none_or(|id| *id == row.spiffe_id)
            && self.pid.is_none_or(|pid| pid == row.process.pid)
    }
}

fn sorted<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.cloned().collect();
    rows.sort_by_key(|row| (row.not_after, row.id));
    rows
}

fn revoked_by(actions: &[Action]) -> Vec<LeaseId> {
    let leases = actions.iter().filter_map(|action| match action {
        Action::Revoke { leases, .. } => Some(leases.iter().copied()),
        _ => None,
    });
    leases.flatten().collect()
}
