//! The tables behind the state lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Instant;

use mayfly_attestors::{Attestation, Process, ProcessKey};
use tokio::sync::watch;

use super::Connection;
use crate::id::{EntryId, LeaseId};
use crate::issue::x509::X509Svid;
use crate::lease::{Core, Wanted, WorkloadId};
use crate::ledger::Row;
use crate::registration::Identity;
use crate::trust::FederatesWith;

/// What a subscriber of X.509-SVIDs sees.
#[derive(Clone, Debug)]
pub enum View {
    /// The first SVIDs are being made.
    Pending,
    /// One SVID for each identity, the default first. Never empty.
    Ready(Arc<[Arc<X509Svid>]>),
    /// The process has no identity (any more).
    NoIdentity,
    /// It has, but none could be issued.
    Unavailable,
    /// The process has ended.
    Ended,
}

/// What a workload's streams follow: both halves change in one step.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) view: View,
    /// Of the entries it holds.
    pub(super) federates_with: FederatesWith,
}

impl From<View> for Shown {
    fn from(view: View) -> Self {
        Self { view, federates_with: FederatesWith::default() }
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) core: Core,
    pub(super) members: HashMap<WorkloadId, Member>,
    pub(super) by_key: HashMap<ProcessKey, WorkloadId>,
    pub(super) by_pid: HashMap<u32, BTreeSet<WorkloadId>>,
    pub(super) rows: HashMap<LeaseId, Row>,
    pub(super) leases_by_uid: HashMap<u32, usize>,
    /// When the timer thread means to wake.
    pub(super) timer_at: Option<Instant>,
    next: u64,
}

pub(super) struct Member {
    pub(super) process: Arc<Process>,
    pub(super) attestation: Arc<Attestation>,
    pub(super) attested_at: Instant,
    pub(super) identities: Vec<Identity>,
    pub(super) svids: HashMap<LeaseId, Arc<X509Svid>>,
    pub(super) view: watch::Sender<Shown>,
    pub(super) connections: Vec<Weak<dyn Connection>>,
    /// The last issuance failed and nothing valid is left to show.
    pub(super) failing: bool,
    /// Being looked at again: nothing is pushed meanwhile.
    pub(super) suspect: bool,
    /// How often there was a reason to look at it again.
    pub(super) notices: u64,
    /// The trust generation for which the program was last found unchanged.
    pub(super) checked_for: Option<u64>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Member {
    pub(super) fn identity(&self, entry: &EntryId) -> Option<&Identity> {
        self.identities.iter().find(|i| i.entry.id == *entry)
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        self.identities
            .iter()
            .map(|i| Wanted { entry: i.entry.id.clone(), subject: subject(i), revision: revision(i) })
            .collect()
    }

    /// Ends a second look that found nothing; whoever waits to be shown something tries again.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.suspect) {
            self.view.send_modify(|_| {});
        }
    }

    pub(super) fn join(&mut self, connection: &Arc<dyn Connection>) {
        self.connections.retain(|c| c.strong_count() > 0);
        let new = Arc::downgrade(connection);
        if !self.connections.iter().any(|c| c.ptr_eq(&new)) {
            self.connections.push(new);
        }
    }
}

/// The trust domains that these identities' entries name, together.
pub(super) fn federates_with<'a>(identities: impl IntoIterator<Item = &'a Identity>) -> FederatesWith {
    let each = identities.into_iter().flat_map(|identity| &identity.entry.terms.federates_with);
    Arc::new(each.cloned().collect())
}

/// Stands for the SPIFFE ID.
fn subject(identity: &Identity) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    identity.spiffe_id.as_str().hash(&mut hasher);
    hasher.finish()
}

/// Moves when a credential of this identity would say something else.
fn revision(identity: &Identity) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    let terms = &identity.entry.terms;
    (identity.spiffe_id.as_str(), &terms.dns_names, &identity.hint, terms.x509_ttl).hash(&mut hasher);
    hasher.finish()
}

impl State {
    pub(super) fn insert(&mut self, member: Member) -> WorkloadId {
        let id = WorkloadId(self.next);
        self.next += 1;
        self.core.admit(id);
        let key = member.process.key();
        self.by_key.insert(key, id);
        self.by_pid.entry(key.pid).or_default().insert(id);
        self.members.insert(id, member);
        id
    }

    pub(super) fn remove(&mut self, id: WorkloadId) -> Option<Member> {
        let member = self.members.remove(&id)?;
        let key = member.process.key();
        if self.by_key.get(&key) == Some(&id) {
            self.by_key.remove(&key);
        }
        if let Some(same_pid) = self.by_pid.get_mut(&key.pid) {
            same_pid.remove(&id);
            if same_pid.is_empty() {
                self.by_pid.remove(&key.pid);
            }
        }
        Some(member)
    }

    /// Who has this identity, or a lease of it, and by which entry.
    pub(super) fn holders(&self, spiffe_id: &str) -> Vec<(WorkloadId, EntryId)> {
        let matched = self.members.iter().flat_map(|(id, member)| {
            let identities = member.identities.iter().filter(|i| i.spiffe_id.as_str() == spiffe_id);
            identities.map(|i| (*id, i.entry.id.clone()))
        });
        let leased = self.rows.values().filter(|row| row.spiffe_id == spiffe_id);
        let leased = leased.filter_map(|row| Some((*self.by_key.get(&row.process)?, row.entry.clone())));
        let all: BTreeSet<_> = matched.chain(leased).collect();
        all.into_iter().collect()
    }

    /// The entries that the workload holds now: matched, and not taken by an operator.
    pub(super) fn held(&self, id: WorkloadId, now: Instant) -> Vec<EntryId> {
        self.core.shown(id, now).into_iter().map(|(entry, _)| entry).collect()
    }

    pub(super) fn add_row(&mut self, row: Row) {
        *self.leases_by_uid.entry(row.uid).or_default() += 1;
        self.rows.insert(row.id, row);
    }

    pub(super) fn take_row(&mut self, lease: LeaseId) -> Option<Row> {
        let row = self.rows.remove(&lease)?;
        if let Some(count) = self.leases_by_uid.get_mut(&row.uid) {
            *count -= 1;
            if *count == 0 {
                self.leases_by_uid.remove(&row.uid);
            }
        }
        Some(row)
    }

    /// Works out what subscribers of this workload should see now and tells them if it is news.
    pub(super) fn show(&mut self, id: WorkloadId, now: Instant) {
        let shown = self.core.shown(id, now);
        let Some(member) = self.members.get_mut(&id) else { return };
        let current: HashMap<&EntryId, LeaseId> =
            shown.iter().filter_map(|(entry, lease)| Some((entry, (*lease)?))).collect();
        member.svids.retain(|lease, _| current.values().any(|l| l == lease));
        let ready: Vec<Arc<X509Svid>> = member
            .identities
            .iter()
            .filter_map(|i| member.svids.get(current.get(&i.entry.id)?))
            .map(Arc::clone)
            .collect();
        let complete = ready.len() == shown.len();
        let was_ready = matches!(member.view.borrow().view, View::Ready(_));
        let next = if shown.is_empty() {
            View::NoIdentity
        } else if complete || (was_ready && !ready.is_empty()) {
            View::Ready(ready.into())
        } else if member.failing {
            View::Unavailable
        } else {
            View::Pending
        };
        let held: Vec<&EntryId> = shown.iter().map(|(entry, _)| entry).collect();
        let federates_with = federates_with(member.identities.iter().filter(|i| held.contains(&&i.entry.id)));
        member.view.send_if_modified(|seen| {
            let news = !seen.view.same_as(&next) || seen.federates_with != federates_with;
            if news {
                *seen = Shown { view: next, federates_with };
            }
            news
        });
    }
}

impl View {
    fn same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ready(a), Self::Ready(b)) => a.iter().map(|s| s.id).eq(b.iter().map(|s| s.id)),
            (Self::Pending, Self::Pending)
            | (Self::NoIdentity, Self::NoIdentity)
            | (Self::Unavailable, Self::Unavailable)
            | (Self::Ended, Self::Ended) => true,
            _ => false,
        }
    }
}
