//! After a restart: leases of processes that are gone are revoked, those of living ones taken over, and what
//! an operator took stays taken. Then tasks go on whose holders live, and all others end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use mayfly_attestors::{AttestError, Attestation, PinError, Process, ProcessKey, failpoint};

use super::admit::member;
use super::issue::remaining;
use super::revoker::Initiator;
use super::state::State;
use super::tasks::{Claim, PastTasks, TasksRestored};
use super::{Shared, Workloads};
use crate::clock::unix_seconds;
use crate::id::SpiffeId;
use crate::lease::{Cause, WorkloadId};
use crate::ledger::{Bar, Reason, Row, State as RowState};
use crate::manager::Pidfds;
use crate::registration::Identity;

/// How many processes are looked at together.
const AT_ONCE: usize = 8;

/// How long a process is tried to be looked at before its leases are given up, and how long between two attempts.
/// Long enough for a disk that is cold after a boot and for a crowd that is waiting to be measured; a program on a
/// file system that hangs must not keep the agent from starting.
const PATIENCE: Duration = Duration::from_secs(10);
pub(super) const PAUSE: Duration = Duration::from_millis(250);

/// Why the agent does not start to serve, and what to do about it.
pub(super) const CONCERN: &str = "leases of the run before";
const SHORT: &str = "no descriptor is free to look at the processes that hold them; raise LimitNOFILE";

/// What became of the leases of the run before.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Restored {
    /// Taken over.
    pub adopted: usize,
    /// Revoked, because their process is gone or matches no longer, or their task has ended.
    pub revoked: usize,
    /// Tasks that go on.
    pub tasks: usize,
    /// Tasks that have ended, because their process is gone or matches no longer, or their time is over.
    pub tasks_ended: usize,
}

impl std::fmt::Display for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { adopted, revoked, tasks, tasks_ended } = self;
        write!(f, "adopted={adopted} revoked={revoked} tasks={tasks} tasks_ended={tasks_ended}")
    }
}

/// What became of one process of the run before.
enum Outcome {
    /// It lives: how many leases were taken over, and those it has lost.
    Found(ProcessKey, usize, Vec<Row>),
    /// It has ended: nothing of it stands any more.
    Gone(ProcessKey, Vec<Row>),
    /// It may live, but cannot be known: it loses its leases, and what was taken from it stays taken.
    Unknown(Vec<Row>),
    /// We had no descriptor to look with: says nothing about the process.
    Later(ProcessKey, Vec<Row>),
}

/// Why a process of the run before was not found.
enum Missing {
    Gone,
    Unknown,
    Later,
}

/// What was found when everybody was looked at.
#[derive(Default)]
struct Sorted {
    adopted: usize,
    /// Rows of whoever is gone.
    gone: Vec<Row>,
    /// Who is.
    ended: Vec<ProcessKey>,
    /// Who could not be looked at yet.
    later: BTreeMap<ProcessKey, Vec<Row>>,
}

fn sorted(outcomes: Vec<Outcome>, held: &mut BTreeSet<ProcessKey>) -> Sorted {
    let mut all = Sorted::default();
    for outcome in outcomes {
        match outcome {
            Outcome::Found(key, adopted, lost) => {
                held.insert(key);
                all.adopted += adopted;
                all.gone.extend(lost);
            }
            Outcome::Gone(key, lost) => {
                all.ended.push(key);
                all.gone.extend(lost);
            }
            Outcome::Unknown(lost) => all.gone.extend(lost),
            Outcome::Later(key, live) => drop(all.later.insert(key, live)),
        }
    }
    all
}

impl Workloads {
    /// Goes through the ledger's rows; `kept` are the pidfds that the service manager held meanwhile. Must be done before anybody is served: whoever died while the
    /// agent was down is refused, and in the published CRL, when this returns. While no descriptor is free to look
    /// at a process with, it does not return: living processes would lose what they have for our want.
    pub async fn restore(&self, rows: Vec<Row>, kept: &Pidfds) -> Restored {
        failpoint::hit("restore.before");
        self.0.restore_lists(&rows);
        let tasks = self.0.past_tasks(&rows);
        // Nothing outlives its task.
        let alone =
            |row: &Row| row.task.is_some_and(|task| !tasks.knows(task)) && row.state == RowState::Live;
        let (ended, rows): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(alone);
        let mut restored = Restored { revoked: ended.len(), ..Restored::default() };
        if !ended.is_empty() {
            self.refuse_gone(ended).await;
        }
        // What was given for a task of a cgroup is the cgroup's, whoever asked for it and has exited since.
        let (shared, rows) = self.0.part_shared(&tasks, rows);
        let mut pending = self.0.read_past(rows);
        let shared = self.refuse_taken(shared, &mut restored).await;
        let claims = tasks.holders();
        for key in claims.keys() {
            pending.entry(*key).or_default();
        }
        let mut held = BTreeSet::new();
        loop {
            let looked = stream::iter(pending).map(|(key, live)| {
                let claims = claims.get(&key).map(Vec::as_slice).unwrap_or_default();
                self.0.adopt(key, live, claims, kept)
            });
            let outcomes: Vec<Outcome> = looked.buffer_unordered(AT_ONCE).collect().await;
            let Sorted { adopted, gone, ended, later } = sorted(outcomes, &mut held);
            (pending, restored.adopted) = (later, restored.adopted + adopted);
            restored.revoked += gone.len();
            self.0.forget_bars(&mut self.0.lock(), &ended);
            self.refuse_gone(gone).await;
            if pending.is_empty() {
                break;
            }
            self.0.parts.readiness.raise(CONCERN, SHORT);
            tokio::time::sleep(PAUSE).await;
        }
        self.0.parts.readiness.clear(CONCERN);
        held.retain(|key| claims.contains_key(key));
        restored.adopted += shared.len();
        let scopes = self.0.scopes_again(tasks.scopes()).await;
        let TasksRestored { live, ended, lost } = self.0.restore_tasks(tasks, shared, &scopes, &held);
        restored.adopted -= lost.min(restored.adopted);
        // What was frozen, or goes on, since the run before.
        self.look_at_flag().await;
        self.0.tell_suspended();
        self.flush().await;
        Restored { revoked: restored.revoked + lost, tasks: live, tasks_ended: ended, ..restored }
    }

    /// What operators took from whoever asked for it is refused; the rest. An order may have been half done.
    async fn refuse_taken(&self, shared: Vec<Row>, restored: &mut Restored) -> Vec<Row> {
        let (taken, shared): (Vec<Row>, Vec<Row>) = {
            let state = self.0.lock();
            shared.into_iter().partition(|row| state.is_taken(&row.process, &row.entry))
        };
        restored.revoked += taken.len();
        if !taken.is_empty() {
            self.refuse_gone(taken).await;
        }
        shared
    }

    async fn refuse_gone(&self, gone: Vec<Row>) {
        let (done, published) = tokio::sync::oneshot::channel();
        let seen = self.0.parts.clock.monotonic();
        self.0.refuse(gone, Reason::Restart, Initiator::Agent, seen, Some(done));
        // An error means the revoker is gone; the readiness concern it left says so.
        published.await.ok();
    }
}

impl Shared {
    /// Live leases of tasks that cgroups hold, and everything else.
    fn part_shared(&self, tasks: &PastTasks, rows: Vec<Row>) -> (Vec<Row>, Vec<Row>) {
        let now = unix_seconds(self.parts.clock.wall());
        let is_shared = |row: &Row| {
            let live = row.state == RowState::Live && row.not_after > now;
            live && row.task.is_some_and(|task| tasks.is_shared(task))
        };
        rows.into_iter().partition(is_shared)
    }

    /// The live leases of each process, and what operators took, which stands from here on.
    fn read_past(&self, rows: Vec<Row>) -> BTreeMap<ProcessKey, Vec<Row>> {
        let now = unix_seconds(self.parts.clock.wall());
        let mut past: BTreeMap<ProcessKey, Vec<Row>> = BTreeMap::new();
        let mut state = self.lock();
        for bar in self.parts.ledger.found_bars() {
            past.entry(bar.process).or_default();
            drop(state.bar(bar));
        }
        for row in rows {
            match row.state {
                RowState::Live if row.not_after > now => past.entry(row.process).or_default().push(row),
                RowState::Revoked { reason: Reason::Operator, .. } => {
                    past.entry(row.process).or_default();
                    drop(state.bar(&Bar { process: row.process, entry: Some(row.entry) }));
                }
                _ => {}
            }
        }
        past
    }

    /// `claims`: what the tasks that the process holds rest on. As long as it is not known whether they go on, it is held.
    async fn adopt(
        self: &Arc<Self>,
        key: ProcessKey,
        live: Vec<Row>,
        claims: &[Claim],
        kept: &Pidfds,
    ) -> Outcome {
        let since = self.lock().news.now();
        let (process, attestation) = match self.find(key, kept).await {
            Ok(found) => found,
            Err(Missing::Gone) => return Outcome::Gone(key, live),
            Err(Missing::Unknown) => return Outcome::Unknown(live),
            Err(Missing::Later) => return Outcome::Later(key, live),
        };
        let mut state = self.lock();
        let overtaken = state.news.overtook(since, &attestation);
        let identities = self.match_past(&attestation, &live, claims);
        let earned = |row: &Row| row.uid == process.uid() && is_earned(&identities, row);
        let (rows, gone): (Vec<Row>, Vec<Row>) = live.into_iter().partition(earned);
        if rows.is_empty() && claims.is_empty() && !state.standing.contains_key(&key) {
            return Outcome::Found(key, 0, gone);
        }
        let now = self.parts.clock.monotonic();
        let id = state.insert(member(&process, Arc::new(attestation), identities, now));
        if self.reaper.watch(&process, id.0).is_err() {
            state.core.end(id, Cause::WatchLost);
            state.remove(id);
            return Outcome::Unknown(rows.into_iter().chain(gone).collect());
        }
        self.parts.manager.keep_process(&process);
        if let Some(member) = state.members.get_mut(&id) {
            member.stale = overtaken;
        }
        self.note_attested(&mut state, id);
        if !claims.is_empty() {
            state.core.hold(id);
        }
        let adopted = rows.len();
        self.take_over(&mut state, id, key, rows);
        drop(state);
        if overtaken {
            self.suspect(id);
        }
        Outcome::Found(key, adopted, gone)
    }

    fn take_over(self: &Arc<Self>, state: &mut State, id: WorkloadId, key: ProcessKey, rows: Vec<Row>) {
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        for row in rows {
            let form = super::guard::form_of(&row);
            state.core.adopt(id, row.entry.clone(), form, row.id, now + remaining(&row, wall));
            state.add_row(row);
        }
        // A lease that was live when the agent died in the middle of an operator's order.
        let actions = state.apply_bars(id, key);
        self.perform(state, actions, now);
        let actions = self.hold_matched(state, id, Cause::NoLongerMatches, now);
        self.perform(state, actions, now);
    }

    /// The process that has this key, pinned and attested.
    async fn find(&self, key: ProcessKey, kept: &Pidfds) -> Result<(Arc<Process>, Attestation), Missing> {
        if key.boot_id != self.parts.host.boot_id() {
            return Err(Missing::Gone);
        }
        // The very pidfd of before where it was kept; else the number, which may be somebody else's by now.
        let pinned = match key.pidfs_inode.and_then(|inode| kept.of(inode)) {
            Some(Ok(pidfd)) => Process::of_pidfd(&self.parts.host, pidfd),
            Some(Err(_)) => return Err(Missing::Later),
            None => Process::of_pid(&self.parts.host, key.pid),
        };
        let process = match pinned {
            Ok(process) => Arc::new(process),
            Err(PinError::Exited) => return Err(Missing::Gone),
            Err(PinError::Descriptors) => return Err(Missing::Later),
            Err(PinError::Overflow | PinError::Unsupported(_)) => return Err(Missing::Unknown),
        };
        if process.key() != key {
            return Err(Missing::Gone);
        }
        let began = self.parts.clock.monotonic();
        loop {
            let error = match self.parts.attestors.attest(&process).await {
                Ok(attestation) => return Ok((process, attestation)),
                Err(AttestError::Exited) => return Err(Missing::Gone),
                Err(AttestError::CredentialsChanged) => return Err(Missing::Unknown),
                Err(AttestError::Descriptors) => return Err(Missing::Later),
                Err(error) => error,
            };
            if self.parts.clock.monotonic().saturating_duration_since(began) >= PATIENCE {
                tracing::warn!(pid = key.pid, %error, "its leases are revoked: it cannot be looked at");
                return Err(Missing::Unknown);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Shared {
    /// What the process has earned; while an attestor is silent that may be more than can be told, and what it held
    /// in the run before stands until it is refuted.
    fn match_past(&self, attestation: &Attestation, live: &[Row], claims: &[Claim]) -> Vec<Identity> {
        let entries = self.entries();
        let held = live.iter().map(|row| (&row.entry, &row.spiffe_id));
        let held = held.chain(claims.iter().map(|(entry, spiffe_id)| (entry, spiffe_id)));
        let held = held.filter_map(|(entry, spiffe_id)| {
            let entry = entries.get(entry).filter(|entry| entry.spiffe_id.gives(spiffe_id))?;
            let spiffe_id = SpiffeId::parse(spiffe_id.as_bytes()).ok()?;
            let because = vec!["held before the agent was restarted".to_owned()];
            Some(Identity { entry: Arc::clone(entry), spiffe_id, hint: String::new(), because })
        });
        self.match_held(attestation, &held.collect::<Vec<_>>())
    }
}

fn is_earned(identities: &[Identity], row: &Row) -> bool {
    identities.iter().any(|i| i.entry.id == row.entry && i.spiffe_id.as_str() == row.spiffe_id)
}
