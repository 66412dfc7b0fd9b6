//! The tables behind the state lock.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Weak};
use std::time::Instant;

use mayfly_attestors::{Attestation, Process, ProcessKey};

use super::Connection;
use super::bars::Standing;
use super::news::NewsLog;
use super::scopes::Scopes;
use super::shelf::Shelf;
use super::tasks::Tasks;
use super::told::Told;
use crate::id::{EntryId, LeaseId};
use crate::issue::wit::WitSvid;
use crate::issue::x509::X509Svid;
use crate::lease::{Core, Form, Wanted, WorkloadId};
use crate::ledger::{Kind, Row};
use crate::policy::Fetchable;
use crate::registration::{Identity, Terms};
use crate::trust::FederatesWith;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) core: Core,
    pub(super) members: HashMap<WorkloadId, Member>,
    pub(super) by_key: HashMap<ProcessKey, WorkloadId>,
    pub(super) by_pid: HashMap<u32, BTreeSet<WorkloadId>>,
    pub(super) rows: HashMap<LeaseId, Row>,
    pub(super) leases_by_uid: HashMap<u32, usize>,
    /// Live JWT leases of each process.
    jwts: HashMap<ProcessKey, usize>,
    /// What operators took, by process: also from processes that are no members.
    pub(super) standing: HashMap<ProcessKey, Standing>,
    /// When the timer thread means to wake.
    pub(super) timer_at: Option<Instant>,
    next: u64,
    /// What each open stream was last given.
    pub(super) given: HashMap<u64, Vec<LeaseId>>,
    next_stream: u64,
    pub(super) news: NewsLog,
    /// What is on record of whom.
    pub(super) told: Told,
    pub(super) tasks: Tasks,
    /// Cgroups that hold tasks.
    pub(super) scopes: Scopes,
}

pub(super) struct Member {
    pub(super) process: Arc<Process>,
    pub(super) attestation: Arc<Attestation>,
    pub(super) attested_at: Instant,
    pub(super) identities: Vec<Identity>,
    pub(super) x509: Shelf<X509Svid>,
    /// Made for the first who asks: most workloads have none.
    pub(super) wit: Option<Box<Shelf<WitSvid>>>,
    /// In which forms policy gives each identity; `None` without a policy set.
    pub(super) fetch: Option<Vec<(EntryId, Fetchable)>>,
    pub(super) connections: Vec<Weak<dyn Connection>>,
    /// Being looked at again: nothing is pushed meanwhile.
    pub(super) suspect: bool,
    /// There are news of it from outside: the next look attests it again, whatever its program.
    pub(super) stale: bool,
    /// How often there was a reason to look at it again.
    pub(super) notices: u64,
    /// How often it was told, or must be feared, to have started a program since it was taken in.
    pub(super) execs: u64,
    /// The same when it was last attested.
    pub(super) execs_attested: u64,
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

    /// In which forms policy gives the identity of that entry.
    pub(super) fn may_fetch(&self, entry: &EntryId) -> Fetchable {
        let Some(decided) = &self.fetch else { return Fetchable::ALL };
        decided.iter().find(|(of, _)| of == entry).map_or(Fetchable::NONE, |(_, may)| *may)
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        self.identities
            .iter()
            .map(|i| Wanted { entry: i.entry.id.clone(), subject: subject(i), revision: revision(i) })
            .collect()
    }

    /// Whether there has been no reason to look at it since it was attested.
    pub(super) fn is_as_attested(&self) -> bool {
        !self.suspect && !self.stale && self.execs == self.execs_attested
    }

    /// Ends a second look that found nothing; whoever waits to be shown something tries again.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.suspect) {
            self.x509.nudge();
            self.wit.iter().for_each(|wit| wit.nudge());
        }
    }

    /// Tells every subscriber that the process has ended.
    pub(super) fn end(&self) {
        self.x509.end();
        self.wit.iter().for_each(|wit| wit.end());
    }

    /// Where the WIT-SVIDs stand.
    pub(super) fn wits(&mut self) -> &mut Shelf<WitSvid> {
        self.wit.get_or_insert_with(|| Box::new(Shelf::new(federates_with(&self.identities))))
    }

    /// Notes whether the last issuance of that form failed with nothing valid left to show.
    pub(super) fn set_failing(&mut self, form: Form, failed: bool) {
        match form {
            Form::X509 => self.x509.set_failing(failed),
            Form::Wit => self.wits().set_failing(failed),
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
    let Terms { dns_names, x509_ttl, wit_ttl, .. } = &identity.entry.terms;
    (identity.spiffe_id.as_str(), dns_names, &identity.hint, x509_ttl, wit_ttl).hash(&mut hasher);
    hasher.finish()
}

impl State {
    pub(super) fn insert(&mut self, member: Member) -> WorkloadId {
        let id = self.new_workload();
        self.core.admit(id);
        let key = member.process.key();
        self.by_key.insert(key, id);
        self.by_pid.entry(key.pid).or_default().insert(id);
        self.members.insert(id, member);
        // It has nothing yet, so there is nothing to carry out.
        drop(self.apply_bars(id, key));
        id
    }

    /// A number that nobody has had.
    pub(super) fn new_workload(&mut self) -> WorkloadId {
        let id = WorkloadId(self.next);
        self.next += 1;
        id
    }

    /// A name for one more stream.
    pub(super) fn new_stream(&mut self) -> u64 {
        self.next_stream += 1;
        self.next_stream
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
    pub(super) fn held(&self, id: WorkloadId) -> Vec<EntryId> {
        self.core.held(id)
    }

    /// How many live JWT leases the process has.
    pub(super) fn jwts_of(&self, key: &ProcessKey) -> usize {
        self.jwts.get(key).copied().unwrap_or_default()
    }

    pub(super) fn add_row(&mut self, row: Row) {
        if row.kind == Kind::Jwt {
            *self.jwts.entry(row.process).or_default() += 1;
        }
        *self.leases_by_uid.entry(row.uid).or_default() += 1;
        self.rows.insert(row.id, row);
    }

    pub(super) fn take_row(&mut self, lease: LeaseId) -> Option<Row> {
        let row = self.rows.remove(&lease)?;
        self.tasks.lease_gone(lease);
        one_less(&mut self.leases_by_uid, &row.uid);
        if row.kind == Kind::Jwt {
            one_less(&mut self.jwts, &row.process);
        }
        Some(row)
    }

    /// Works out what subscribers of this workload should see now and tells them if it is news.
    pub(super) fn show(&mut self, id: WorkloadId, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let held = self.core.held(id);
        let given = |i: &&Identity| held.contains(&i.entry.id) && member.may_fetch(&i.entry.id).any();
        let given: Vec<&Identity> = member.identities.iter().filter(given).collect();
        let (has_identity, federates_with) = (!given.is_empty(), federates_with(given));
        let x509 = self.core.shown(id, Form::X509, now);
        member.x509.show(&member.identities, &x509, &federates_with, has_identity);
        if let Some(wit) = &mut member.wit {
            let shown = self.core.shown(id, Form::Wit, now);
            wit.show(&member.identities, &shown, &federates_with, has_identity);
        }
    }
}

fn one_less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
