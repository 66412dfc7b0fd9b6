//! What outlives a restart of the agent: each task, what it used up, and each offer, as notes of the ledger. Pure.
//!
//! Moments are kept as time since the boot, so that a clock that is set between two runs moves no deadline; a task of
//! another boot is over anyway. Who holds a task is not kept but found again, or the task ends.

mod changes;
mod keepers;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::keepers::KeeperRecord;
pub use self::keepers::{KeptBy, note_keeper};
use self::records::{CharterRecord, KeyRecord, OfferRecord, ProcessRecord, TaskRecord, UsageRecord};
use super::{Offer, Task, Usage};
use crate::id::{DelegationId, TaskId};
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
        by_people: offer.by_people,
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
    let mut unreadable = BTreeSet::new();
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
            if kind == USAGE {
                unreadable.insert(TaskId::from_bytes(id));
            }
        }
    }
    // Of whom it cannot be told what is used up, nothing is left.
    let (spent, tasks): (Vec<_>, _) = kept.tasks.into_iter().partition(|task| unreadable.contains(&task.id));
    kept.tasks = tasks;
    kept.stray.extend(spent.into_iter().map(|task: Task| key(TASK, task.id.as_bytes())));
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
    use std::time::UNIX_EPOCH;

    use mayfly_attestors::{BootId, ProcessKey};
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::lease::WorkloadId;
    use crate::task::testing::{charter, new_task};
    use crate::task::tests::any_grants;
    use crate::task::{
        Bounds, Charter, Cost, Ending, Grants, Key, Limits, Scope, Seat, Standing, Tree, User,
    };

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

    /// What is lost on the way to the disk and back would be no limit any more, or room that was used up.
    #[test]
    fn every_limit_and_everything_used_up_comes_back() {
        let epoch = epoch();
        let (tree, id) = tree(Grants::default(), true, &epoch);
        let mut task = tree.get(id).unwrap().clone();
        let second = Duration::from_secs(1);
        task.charter.limits = Limits {
            calls: Some(11),
            bytes: Some(12),
            cost_microusd: Some(13),
            children: Some(14),
            depth: Some(15),
            idle: Some(16 * second),
        };
        task.charter.require_isolated = true;
        task.charter.credential_ttl = Some(17 * second);
        task.charter.params = [("space".to_owned(), "DOCS".to_owned())].into();
        task.charter.purpose = "why".to_owned();
        task.charter.evaluation = "evl".to_owned();
        task.charter.policy_version = "v".to_owned();
        (task.children_ever, task.denials) = (18, 19);
        task.used = Usage { calls: 1, bytes: 2, cost_microusd: 3 };
        task.standing = Standing::Pending;
        let kept = read(&[note_task(&task, &epoch), note_usage(&task, &epoch)], &epoch);
        assert_eq!(kept.tasks[0].standing, Standing::Pending, "who waits is not taken for one who may act");
        let back = &kept.tasks[0];
        assert_eq!(back.charter, task.charter);
        assert_eq!(back.used, task.used);
        assert_eq!((back.children_ever, back.denials, back.seat.uid), (18, 19, 1000));
        assert!(kept.stray.is_empty());
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
        let spent = note_usage(&task, &epoch);
        let unread = Note { value: Some(b"{}".to_vec()), ..spent.clone() };
        let kept = read(&[good.clone(), unread], &epoch);
        assert!(kept.tasks.is_empty(), "nobody knows what it has used up");
        assert_eq!(kept.stray, [spent.key, good.key.clone()]);
        let alone = note_usage(&task, &epoch);
        assert_eq!(read(std::slice::from_ref(&alone), &epoch).stray, [alone.key]);
        let foreign = Note { key: b"?".to_vec(), value: Some(Vec::new()) };
        assert_eq!(read(std::slice::from_ref(&foreign), &epoch).stray, [foreign.key]);
        let wall = task.begun_at;
        assert_eq!(tree.end(id, Ending::Admin, epoch.now, wall).ended.len(), 1);
        let gone: Vec<Vec<u8>> = forget_task(id).into_iter().map(|note| note.key).collect();
        assert!(gone.contains(&good.key));
    }

    /// What is taken back is taken back whole, and never noted again: an ended task would come back with the next run.
    #[test]
    fn nothing_is_noted_of_what_has_ended_and_nothing_of_it_is_left() {
        let epoch = epoch();
        let (mut tree, id) = tree(Grants::default(), false, &epoch);
        let wall = tree.get(id).unwrap().begun_at;
        let cascade = tree.end(id, Ending::Completed, epoch.now, wall);
        for notes in [
            tree.notes_of_task(id, &epoch),
            tree.notes_of_usage(id, &epoch),
            tree.notes_of_subtree(id, &epoch),
        ] {
            assert_eq!(notes.len(), 0);
        }
        let gone: BTreeSet<Vec<u8>> = cascade.notes().into_iter().map(|note| note.key).collect();
        assert_eq!(gone, [TASK, USAGE, KEEPER].map(|kind| key(kind, id.as_bytes())).into());
        assert!(cascade.notes().iter().all(|note| note.value.is_none()));
    }

    /// Whoever is above comes first, whatever it is called: what is below is held against it.
    #[test]
    fn parents_are_read_before_their_children_and_a_keeper_needs_a_task() {
        let epoch = epoch();
        let (tree, id) = tree(Grants::default(), false, &epoch);
        let parent = tree.get(id).unwrap().clone();
        let child =
            Task { id: TaskId::from_bytes([0; 16]), parent: Some(id), depth: 1, key: None, ..parent.clone() };
        let keeper = |task: TaskId| KeptBy { task, process: process(9), audiences: ["a".to_owned()].into() };
        let nobodys = note_keeper(&keeper(TaskId::from_bytes([3; 16])));
        let notes = [
            note_task(&child, &epoch),
            nobodys.clone(),
            note_task(&parent, &epoch),
            note_keeper(&keeper(id)),
        ];
        let kept = read(&notes, &epoch);
        assert_eq!(kept.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), [parent.id, child.id]);
        assert_eq!(kept.keepers, [keeper(id)]);
        assert_eq!(kept.stray, [nobodys.key]);
    }

    /// What people said is asked again: an offer that rests on it would be good for nobody, and keep its key from a new one.
    #[test]
    fn what_people_allowed_and_nobody_took_up_is_taken_back() {
        let epoch = epoch();
        let parent = TaskId::from_bytes([5; 16]);
        let (id, key) = (
            DelegationId::from_bytes([4; 16]),
            Some(Key { process: process(42), text: "o".to_owned(), digest: [8; 32] }),
        );
        let offer = Offer {
            id,
            parent,
            charter: charter(1),
            life: None,
            expires: epoch.now,
            taken_by: None,
            pending: false,
            by_people: true,
            key,
        };
        let taken = Offer { taken_by: Some(parent), ..offer.clone() };
        let free = Offer { by_people: false, ..offer.clone() };
        let waits = Offer { pending: true, ..free.clone() };
        for (offer, stays) in [(&offer, false), (&taken, true), (&free, true), (&waits, false)] {
            let kept = read(&[note_offer(offer, &epoch)], &epoch);
            assert_eq!((kept.offers.len(), kept.stray.len()), (usize::from(stays), usize::from(!stays)));
            assert!(kept.offers.iter().all(|kept| kept == offer), "{offer:?}");
        }
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
