//! What outlives a restart of the agent: each task, what it used up, and each offer, as notes of the ledger. Pure.
//!
//! Moments are kept as time since the boot, so that a clock that is set between two runs moves no deadline; a task of
//! another boot is over anyway. Who holds a task is not kept but found again, or the task ends.

mod changes;
mod keepers;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use mayfly_attestors::{BootId, ProcessKey};
use serde::{Deserialize, Serialize};

use self::keepers::KeeperRecord;
pub use self::keepers::{KeptBy, note_keeper};
use super::{
    Charter, Detail, Grants, Key, Limits, Offer, RawDetail, Scope, Seat, Standing, Task, Usage, User,
};
use crate::clock::unix_millis;
use crate::id::{DelegationId, EntryId, SpiffeId, TaskId};
use crate::lease::WorkloadId;
use crate::ledger::Note;

/// One moment on both clocks: the process's own and the machine's.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    /// The moment.
    pub now: Instant,
    /// The same, as time since the boot.
    pub since_boot: Duration,
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub struct Kept {
    /// Parents before their children. Their holders have to be found first: each is 0.
    pub tasks: Vec<Task>,
    /// Offers that were open.
    pub offers: Vec<Offer>,
    /// Who keeps credentials of tasks.
    pub keepers: Vec<KeptBy>,
    /// Notes of ours that cannot be read, or that belong to no task: to be taken back.
    pub stray: Vec<Vec<u8>>,
}

impl Epoch {
    fn millis(&self, at: Instant) -> u64 {
        let since = match at.checked_duration_since(self.now) {
            Some(ahead) => self.since_boot + ahead,
            None => self.since_boot.saturating_sub(self.now.saturating_duration_since(at)),
        };
        millis(since)
    }

    /// A moment too long ago for this clock is now.
    fn moment(&self, millis: u64) -> Instant {
        let at = Duration::from_millis(millis);
        match at.checked_sub(self.since_boot) {
            Some(ahead) => self.now.checked_add(ahead).unwrap_or(self.now),
            None => self.now.checked_sub(self.since_boot.saturating_sub(at)).unwrap_or(self.now),
        }
    }
}

/// The note that keeps a task.
pub fn note_task(task: &Task, epoch: &Epoch) -> Note {
    note(TASK, task.id.as_bytes(), &TaskRecord::of(task, epoch))
}

/// The note that keeps what a task has used up: the only one that each credential moves.
pub fn note_usage(task: &Task, epoch: &Epoch) -> Note {
    let Task { used, audiences, denials, last_call, .. } = task;
    let record = UsageRecord {
        calls: used.calls,
        bytes: used.bytes,
        cost_microusd: used.cost_microusd,
        audiences: audiences.clone(),
        denials: *denials,
        last_call: epoch.millis(*last_call),
    };
    note(USAGE, task.id.as_bytes(), &record)
}

/// The note that keeps an offer.
pub fn note_offer(offer: &Offer, epoch: &Epoch) -> Note {
    let record = OfferRecord {
        parent: offer.parent.to_string(),
        charter: CharterRecord::of(&offer.charter),
        life: offer.life.map(millis),
        expires: epoch.millis(offer.expires),
        taken_by: offer.taken_by.map(|task| task.to_string()),
        pending: offer.pending,
        key: offer.key.as_ref().map(KeyRecord::of),
    };
    note(OFFER, offer.id.as_bytes(), &record)
}

/// Takes back everything that keeps a task.
pub fn forget_task(id: TaskId) -> [Note; 3] {
    [TASK, USAGE, KEEPER].map(|kind| Note { key: key(kind, id.as_bytes()), value: None })
}

/// Takes back what keeps an offer.
pub fn forget_offer(id: DelegationId) -> Note {
    Note { key: key(OFFER, id.as_bytes()), value: None }
}

/// Reads what an earlier run left. What cannot be read is a task that has ended.
pub fn read(notes: &[Note], epoch: &Epoch) -> Kept {
    let mut kept = Kept::default();
    let mut usage: BTreeMap<[u8; 16], UsageRecord> = BTreeMap::new();
    for Note { key, value } in notes {
        let value = value.as_deref().unwrap_or_default();
        let Some((kind, id)) =
            key.split_first().and_then(|(kind, id)| Some((*kind, *id.first_chunk::<16>()?)))
        else {
            kept.stray.push(key.clone());
            continue;
        };
        let read = match kind {
            TASK => parse::<TaskRecord>(value)
                .and_then(|record| record.task(TaskId::from_bytes(id), epoch))
                .map(|task| kept.tasks.push(task)),
            USAGE => parse::<UsageRecord>(value).map(|record| drop(usage.insert(id, record))),
            OFFER => parse::<OfferRecord>(value)
                .and_then(|record| record.offer(DelegationId::from_bytes(id), epoch))
                .map(|offer| kept.offers.push(offer)),
            KEEPER => parse::<KeeperRecord>(value)
                .and_then(|record| record.keeper(TaskId::from_bytes(id)))
                .map(|keeper| kept.keepers.push(keeper)),
            _ => None,
        };
        if read.is_none() {
            kept.stray.push(key.clone());
        }
    }
    for task in &mut kept.tasks {
        if let Some(used) = usage.remove(task.id.as_bytes()) {
            task.used = Usage { calls: used.calls, bytes: used.bytes, cost_microusd: used.cost_microusd };
            task.audiences = used.audiences;
            task.denials = used.denials;
            task.last_call = epoch.moment(used.last_call);
        }
    }
    kept.stray.extend(usage.into_keys().map(|id| key(USAGE, &id)));
    let tasks: BTreeSet<TaskId> = kept.tasks.iter().map(|task| task.id).collect();
    let (keepers, alone): (Vec<_>, _) =
        kept.keepers.into_iter().partition(|keeper| tasks.contains(&keeper.task));
    kept.keepers = keepers;
    kept.stray.extend(alone.into_iter().map(|keeper: KeptBy| key(KEEPER, keeper.task.as_bytes())));
    kept.tasks.sort_by_key(|task| (task.depth, task.id));
    kept
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TaskRecord {
    root: String,
    parent: Option<String>,
    depth: u32,
    charter: CharterRecord,
    process: ProcessRecord,
    uid: u32,
    cgroup: Option<(u64, String)>,
    standing: String,
    begun: u64,
    begun_at: u64,
    deadline: u64,
    latest: u64,
    children_ever: u32,
    key: Option<KeyRecord>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CharterRecord {
    spiffe_id: String,
    entry: String,
    purpose: String,
    template: Option<String>,
    params: BTreeMap<String, String>,
    details: Vec<RawDetail>,
    calls: Option<u64>,
    bytes: Option<u64>,
    cost_microusd: Option<u64>,
    children: Option<u32>,
    depth: Option<u32>,
    idle: Option<u64>,
    require_isolated: bool,
    user: Option<(String, String)>,
    credential_ttl: Option<u64>,
    evaluation: String,
    policy_version: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct UsageRecord {
    calls: u64,
    bytes: u64,
    cost_microusd: u64,
    audiences: BTreeSet<String>,
    denials: u32,
    last_call: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct OfferRecord {
    parent: String,
    charter: CharterRecord,
    life: Option<u64>,
    expires: u64,
    taken_by: Option<String>,
    /// Whoever was asked was asked by a run that is over: nothing comes of it.
    #[serde(default)]
    pending: bool,
    key: Option<KeyRecord>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ProcessRecord {
    boot_id: String,
    pid: u32,
    start_time: u64,
    pidfs_inode: Option<u64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    process: ProcessRecord,
    text: String,
    digest: [u8; 32],
}

impl TaskRecord {
    fn of(task: &Task, epoch: &Epoch) -> Self {
        Self {
            root: task.root.to_string(),
            parent: task.parent.map(|parent| parent.to_string()),
            depth: task.depth,
            charter: CharterRecord::of(&task.charter),
            process: ProcessRecord::of(&task.seat.process),
            uid: task.seat.uid,
            cgroup: match &task.seat.scope {
                Scope::Process => None,
                Scope::Cgroup { id, path } => Some((*id, path.clone())),
            },
            standing: standing(task.standing),
            begun: epoch.millis(task.begun),
            begun_at: unix_millis(task.begun_at),
            deadline: epoch.millis(task.deadline),
            latest: epoch.millis(task.latest),
            children_ever: task.children_ever,
            key: task.key.as_ref().map(KeyRecord::of),
        }
    }

    fn task(self, id: TaskId, epoch: &Epoch) -> Option<Task> {
        let begun = epoch.moment(self.begun);
        Some(Task {
            id,
            root: self.root.parse().ok()?,
            parent: parsed(self.parent.as_deref())?,
            depth: self.depth,
            charter: self.charter.charter()?,
            seat: Seat {
                holder: WorkloadId(0),
                process: self.process.key()?,
                uid: self.uid,
                scope: self.cgroup.map_or(Scope::Process, |(id, path)| Scope::Cgroup { id, path }),
            },
            standing: standing_of(&self.standing)?,
            begun,
            begun_at: UNIX_EPOCH + Duration::from_millis(self.begun_at),
            deadline: epoch.moment(self.deadline),
            latest: epoch.moment(self.latest),
            last_call: begun,
            used: Usage::default(),
            audiences: BTreeSet::new(),
            denials: 0,
            children: BTreeSet::new(),
            children_ever: self.children_ever,
            leases: BTreeSet::new(),
            ended_at: None,
            key: match self.key {
                Some(key) => Some(key.key()?),
                None => None,
            },
        })
    }
}

impl CharterRecord {
    fn of(charter: &Charter) -> Self {
        let Limits { calls, bytes, cost_microusd, children, depth, idle } = charter.limits;
        Self {
            spiffe_id: charter.spiffe_id.to_string(),
            entry: charter.entry.to_string(),
            purpose: charter.purpose.clone(),
            template: charter.template.clone(),
            params: charter.params.clone(),
            details: charter.grants.details().iter().map(Detail::raw).collect(),
            calls,
            bytes,
            cost_microusd,
            children,
            depth,
            idle: idle.map(millis),
            require_isolated: charter.require_isolated,
            user: charter.user.as_ref().map(|user| (user.iss.clone(), user.sub.clone())),
            credential_ttl: charter.credential_ttl.map(millis),
            evaluation: charter.evaluation.clone(),
            policy_version: charter.policy_version.clone(),
        }
    }

    fn charter(self) -> Option<Charter> {
        let details: Vec<Detail> = self.details.iter().map(Detail::read).collect::<Result<_, _>>().ok()?;
        Some(Charter {
            spiffe_id: SpiffeId::parse(self.spiffe_id.as_bytes()).ok()?,
            entry: EntryId::new(self.entry),
            purpose: self.purpose,
            template: self.template,
            params: self.params,
            grants: Grants::of(details),
            limits: Limits {
                calls: self.calls,
                bytes: self.bytes,
                cost_microusd: self.cost_microusd,
                children: self.children,
                depth: self.depth,
                idle: self.idle.map(Duration::from_millis),
            },
            require_isolated: self.require_isolated,
            user: self.user.map(|(iss, sub)| User { iss, sub }),
            credential_ttl: self.credential_ttl.map(Duration::from_millis),
            evaluation: self.evaluation,
            policy_version: self.policy_version,
        })
    }
}

impl OfferRecord {
    fn offer(self, id: DelegationId, epoch: &Epoch) -> Option<Offer> {
        if self.pending {
            return None;
        }
        Some(Offer {
            id,
            parent: self.parent.parse().ok()?,
            charter: self.charter.charter()?,
            life: self.life.map(Duration::from_millis),
            expires: epoch.moment(self.expires),
            taken_by: parsed(self.taken_by.as_deref())?,
            pending: false,
            key: match self.key {
                Some(key) => Some(key.key()?),
                None => None,
            },
        })
    }
}

impl ProcessRecord {
    fn of(key: &ProcessKey) -> Self {
        let ProcessKey { boot_id, pid, start_time, pidfs_inode } = *key;
        Self { boot_id: boot_id.to_string(), pid, start_time, pidfs_inode }
    }

    fn key(&self) -> Option<ProcessKey> {
        let boot_id = BootId::from_str(&self.boot_id).ok()?;
        Some(ProcessKey {
            boot_id,
            pid: self.pid,
            start_time: self.start_time,
            pidfs_inode: self.pidfs_inode,
        })
    }
}

impl KeyRecord {
    fn of(key: &Key) -> Self {
        Self { process: ProcessRecord::of(&key.process), text: key.text.clone(), digest: key.digest }
    }

    fn key(self) -> Option<Key> {
        Some(Key { process: self.process.key()?, text: self.text, digest: self.digest })
    }
}

/// `Some(None)` where nothing was written; `None` where what was written is no name.
fn parsed<T: FromStr>(text: Option<&str>) -> Option<Option<T>> {
    match text {
        None => Some(None),
        Some(text) => text.parse().ok().map(Some),
    }
}

fn standing(standing: Standing) -> String {
    match standing {
        Standing::Pending => "pending".to_owned(),
        Standing::Active => "active".to_owned(),
        Standing::Ended(why) => format!("ended:{}", why.as_str()),
    }
}

/// One that has ended is not kept, so it is not read either.
fn standing_of(text: &str) -> Option<Standing> {
    match text.split_once(':') {
        None if text == "pending" => Some(Standing::Pending),
        None if text == "active" => Some(Standing::Active),
        _ => None,
    }
}

fn parse<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

fn note(kind: u8, id: &[u8; 16], record: &impl Serialize) -> Note {
    // Texts, numbers, lists and maps of texts always have a JSON form.
    Note { key: key(kind, id), value: Some(serde_json::to_vec(record).unwrap_or_default()) }
}

fn key(kind: u8, id: &[u8; 16]) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(id);
    key
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const TASK: u8 = b't';
const USAGE: u8 = b'u';
const OFFER: u8 = b'o';
const KEEPER: u8 = b'k';

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::task::simulation::{charter, new_task};
    use crate::task::tests::any_grants;
    use crate::task::{Bounds, Cost, Ending, Tree};

    fn epoch() -> Epoch {
        Epoch { now: SystemClock.monotonic(), since_boot: Duration::from_secs(100_000) }
    }

    fn process(pid: u32) -> ProcessKey {
        ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid, start_time: 7, pidfs_inode: Some(1 << 40) }
    }

    fn tree(grants: Grants, cgroup: bool, epoch: &Epoch) -> (Tree, TaskId) {
        let mut tree = Tree::new(Bounds::default());
        let scope = if cgroup { Scope::Cgroup { id: 77, path: "/t/x".to_owned() } } else { Scope::Process };
        let seat = Seat { holder: WorkloadId(3), process: process(42), uid: 1000, scope };
        let id = TaskId::new(1_790_000_000_000, [5; 10]);
        let user = Some(User { iss: "https://idp".to_owned(), sub: "alice".to_owned() });
        let limits = Limits { calls: Some(9), idle: Some(Duration::from_secs(60)), ..Limits::default() };
        let charter = Charter { grants, user, limits, template: Some("kb".to_owned()), ..charter(1) };
        let key = Some(Key { process: process(42), text: "k".to_owned(), digest: [9; 32] });
        let begun_at = UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        let new = super::super::NewTask { key, ..new_task(id, charter, seat, Some(900), begun_at) };
        tree.begin(new, epoch.now).unwrap();
        tree.spend(id, Cost { calls: 1, bytes: 5, microusd: 2 }, "aud", epoch.now).unwrap();
        (tree, id)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_task_comes_back_as_it_was(grants in any_grants(), cgroup in any::<bool>(), later in 0..2_000_u64) {
            let before = epoch();
            let (tree, id) = tree(grants, cgroup, &before);
            let task = tree.get(id).unwrap();
            let notes = [note_usage(task, &before), note_task(task, &before)];
            // The agent was away for a while, and its clock of instants begins elsewhere.
            let after = Epoch { now: before.now + Duration::from_secs(later), since_boot: before.since_boot + Duration::from_secs(later) };
            let kept = read(&notes, &after);
            prop_assert!(kept.stray.is_empty() && kept.offers.is_empty());
            let back = &kept.tasks[0];
            prop_assert_eq!(&back.charter, &task.charter);
            prop_assert_eq!((back.used, &back.audiences, &back.key), (task.used, &task.audiences, &task.key));
            prop_assert_eq!((back.id, back.root, back.parent, back.depth), (task.id, task.root, task.parent, task.depth));
            prop_assert_eq!((&back.seat.scope, back.seat.process, back.seat.uid), (&task.seat.scope, task.seat.process, 1000));
            prop_assert_eq!((back.standing, back.begun_at), (task.standing, task.begun_at));
            for (have, want) in [(back.deadline, task.deadline), (back.latest, task.latest), (back.last_call, task.last_call)] {
                let off = have.saturating_duration_since(want).max(want.saturating_duration_since(have));
                prop_assert!(off <= Duration::from_millis(2), "{off:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_to_be_taken_back() {
        let epoch = epoch();
        let (mut tree, id) = tree(Grants::default(), false, &epoch);
        let task = tree.get(id).unwrap().clone();
        let good = note_task(&task, &epoch);
        let broken = |value: &[u8]| Note { value: Some(value.to_vec()), ..good.clone() };
        let text = String::from_utf8(good.value.clone().unwrap()).unwrap();
        let more = text.replacen('{', "{\"more\":1,", 1);
        let ended = text.replace("\"active\"", "\"ended:admin\"");
        for bad in [&b""[..], b"{}", more.as_bytes(), ended.as_bytes()] {
            let kept = read(&[broken(bad)], &epoch);
            assert!(kept.tasks.is_empty());
            assert_eq!(kept.stray, std::slice::from_ref(&good.key));
        }
        let alone = note_usage(&task, &epoch);
        assert_eq!(read(std::slice::from_ref(&alone), &epoch).stray, [alone.key]);
        let foreign = Note { key: b"?".to_vec(), value: Some(Vec::new()) };
        assert_eq!(read(std::slice::from_ref(&foreign), &epoch).stray, [foreign.key]);
        let wall = task.begun_at;
        assert_eq!(tree.end(id, Ending::Admin, epoch.now, wall).ended.len(), 1);
        let gone: Vec<Vec<u8>> = forget_task(id).into_iter().map(|note| note.key).collect();
        assert!(gone.contains(&good.key));
    }

    #[test]
    fn moments_survive_a_run_and_the_past_is_now_at_the_latest() {
        let epoch = Epoch { since_boot: Duration::from_secs(10), ..epoch() };
        let ahead = epoch.now + Duration::from_secs(5);
        assert_eq!(epoch.moment(epoch.millis(ahead)), ahead);
        assert_eq!(epoch.millis(epoch.now), 10_000);
        assert!(epoch.moment(0) <= epoch.now);
    }
}
