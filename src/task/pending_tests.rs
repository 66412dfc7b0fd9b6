//! Tasks and offers that wait for people, and who hears of what.

use std::time::{Duration, Instant, UNIX_EPOCH};

use mayfly_attestors::{BootId, ProcessKey};

use super::grant::TARGET_ACCESS;
use super::{
    Bounds, Caller, Charter, Detail, Ending, Grants, Key, Limits, NewOffer, NewTask, RawDetail, Refused,
    Scope, Seat, Standing, Tree,
};
use crate::clock::{Clock as _, SystemClock};
use crate::id::{DelegationId, EntryId, SpiffeId, TaskId};
use crate::lease::WorkloadId;

const PROCESS: u32 = 7;

struct World {
    tree: Tree,
    start: Instant,
}

fn detail() -> Detail {
    Detail::read(&RawDetail {
        kind: TARGET_ACCESS.to_owned(),
        locations: vec!["https://h".to_owned()],
        actions: vec!["read".to_owned()],
        ..RawDetail::default()
    })
    .unwrap()
}

fn agent() -> SpiffeId {
    SpiffeId::parse(b"spiffe://example.org/a").unwrap()
}

fn charter(idle: Option<u64>) -> Charter {
    Charter {
        spiffe_id: agent(),
        entry: EntryId::new("a"),
        purpose: String::new(),
        template: None,
        params: [].into(),
        grants: Grants::of(vec![detail()]),
        limits: Limits { idle: idle.map(Duration::from_secs), ..Limits::default() },
        require_isolated: false,
        user: None,
        credential_ttl: None,
        evaluation: String::new(),
        policy_version: String::new(),
    }
}

fn process() -> ProcessKey {
    ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid: PROCESS, start_time: 1, pidfs_inode: None }
}

fn caller() -> Caller {
    Caller { process: process(), cgroup: None, identities: Vec::new() }
}

impl World {
    fn new() -> Self {
        Self { tree: Tree::new(Bounds::default()), start: SystemClock.monotonic() }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn begin(&mut self, n: u8, pending: bool, idle: Option<u64>) -> TaskId {
        let seat = Seat { holder: WorkloadId(1), process: process(), uid: 1, scope: Scope::Process };
        let (id, life) = (TaskId::from_bytes([n; 16]), Some(Duration::from_secs(600)));
        let new =
            NewTask { id, charter: charter(idle), seat, life, pending, begun_at: UNIX_EPOCH, key: None };
        self.tree.begin(new, self.start).unwrap().id
    }

    fn offer(&mut self, parent: TaskId, waits: Option<u64>) -> Result<DelegationId, Refused> {
        let id = DelegationId::from_bytes([9; 16]);
        let waits = waits.map(Duration::from_secs);
        let (charter, asked) = (charter(None), vec![detail()]);
        let new = NewOffer { id, parent, charter, asked, life: None, drops_user: false, waits, key: None };
        let cut = Grants::of(vec![detail()]);
        self.tree.offer(new, &cut, &caller(), self.start).map(|offer| offer.id)
    }
}

/// The clock cannot say when that would be over; it once took the agent down.
#[test]
fn no_idleness_is_too_long_for_the_clock() {
    let mut world = World::new();
    for (n, idle) in [(1, u64::MAX), (2, u64::MAX / 2), (3, i64::MAX.unsigned_abs())] {
        let id = world.begin(n, n == 2, Some(idle));
        assert!(n != 2 || world.tree.activate(id, world.at(1)));
        assert_eq!(world.tree.enter(id, &caller(), world.at(2)), Ok(()));
    }
    assert!(world.tree.on_timeout(world.at(599), UNIX_EPOCH).is_empty());
    let late = world.tree.on_timeout(world.at(600), UNIX_EPOCH);
    assert!(late.iter().flat_map(|one| &one.ended).all(|ended| ended.ending == Ending::Deadline));
    assert_eq!(late.len(), 3, "each by its deadline");
}

#[test]
fn nothing_is_done_in_a_task_that_waits_and_waiting_is_not_idleness_but_time() {
    let mut world = World::new();
    let id = world.begin(1, true, Some(10));
    let now = world.at(1);
    assert_eq!(world.tree.enter(id, &caller(), now), Err(Refused::Pending));
    assert_eq!(world.tree.take_off(id, "aud", now).unwrap_err(), Refused::Pending);
    assert_eq!(world.offer(id, None), Err(Refused::Pending));
    assert!(world.tree.on_timeout(world.at(100), UNIX_EPOCH).is_empty(), "it waits");
    assert!(world.tree.activate(id, world.at(100)));
    assert!(!world.tree.activate(id, world.at(100)), "once");
    assert_eq!(world.tree.enter(id, &caller(), world.at(101)), Ok(()));
    let idle = world.tree.on_timeout(world.at(112), UNIX_EPOCH);
    assert_eq!(idle[0].ended[0].ending, Ending::Idle, "from then on");
    let other = world.begin(2, true, None);
    let late = world.tree.on_timeout(world.at(601), UNIX_EPOCH);
    assert_eq!((late[0].ended[0].task, late[0].ended[0].ending), (other, Ending::Deadline));
    assert!(!world.tree.activate(other, world.at(602)), "an end is an end");
    assert_eq!(world.tree.get(other).unwrap().standing, Standing::Ended(Ending::Deadline));
}

#[test]
fn an_offer_that_waits_is_nobodys_and_when_it_is_allowed_it_is_good_as_long_as_the_yes() {
    let mut world = World::new();
    let parent = world.begin(1, false, None);
    let offer = world.offer(parent, Some(300)).unwrap();
    assert_eq!(world.tree.part_offered(offer, &agent(), world.at(1)).unwrap_err(), Refused::Pending);
    let (until, now) = (world.at(250), world.at(200));
    assert!(world.tree.allow_offer(offer, until, now));
    assert!(!world.tree.allow_offer(offer, world.at(900), now), "once");
    assert!(world.tree.offered(offer).unwrap().by_people);
    assert!(world.tree.part_offered(offer, &agent(), world.at(249)).is_ok());
    assert_eq!(
        world.tree.part_offered(offer, &agent(), world.at(250)).unwrap_err(),
        Refused::NoSuchDelegation
    );
    world.tree.on_timeout(world.at(250), UNIX_EPOCH);
    assert!(world.tree.offered(offer).is_none());
}

#[test]
fn whoever_follows_all_tasks_hears_of_each_that_is_new_has_changed_or_ended_and_of_no_other() {
    let mut world = World::new();
    world.begin(1, false, None);
    assert!(world.tree.take_changed().is_empty(), "nobody follows");
    world.tree.follow();
    let id = world.begin(2, true, None);
    assert_eq!(world.tree.take_changed(), [id].into());
    assert!(world.tree.take_changed().is_empty());
    world.tree.activate(id, world.at(1));
    assert_eq!(world.tree.take_changed(), [id].into());
    drop(world.tree.end(id, Ending::Completed, world.at(2), UNIX_EPOCH));
    assert_eq!(world.tree.take_changed(), [id].into());
    world.tree.unfollow();
    world.begin(3, false, None);
    assert!(world.tree.take_changed().is_empty());
}

#[test]
fn an_offer_that_is_withdrawn_takes_whoever_took_it_up_along() {
    let mut world = World::new();
    let parent = world.begin(1, false, None);
    let offer = world.offer(parent, Some(300)).unwrap();
    let nobody = world.tree.withdraw(offer, world.at(1), UNIX_EPOCH);
    assert!(nobody.is_empty() && world.tree.offered(offer).is_none(), "nobody took it up");
    let offer = world.offer(parent, Some(300)).unwrap();
    assert!(world.tree.allow_offer(offer, world.at(250), world.at(2)));
    let seat = Seat { holder: WorkloadId(2), process: process(), uid: 1, scope: Scope::Process };
    let (id, charter) = (TaskId::from_bytes([5; 16]), charter(None));
    let child = NewTask { id, charter, seat, life: None, pending: false, begun_at: UNIX_EPOCH, key: None };
    world.tree.join(offer, child, world.at(3)).unwrap();
    let cascade = world.tree.withdraw(offer, world.at(4), UNIX_EPOCH);
    assert_eq!((cascade.ended[0].task, cascade.ended[0].ending), (id, Ending::Failed));
    assert!(world.tree.standing(id).is_err() && world.tree.standing(parent).is_ok());
    assert!(world.tree.withdraw(offer, world.at(5), UNIX_EPOCH).is_empty(), "once");
}

/// Who asks again because the answer was lost on the way does not ask people again.
#[test]
fn the_key_of_an_offer_that_people_did_not_allow_stands_for_their_no_until_that_is_forgotten() {
    let mut world = World::new();
    let parent = world.begin(1, false, None);
    let key = |digest: u8| Key { process: process(), text: "k".to_owned(), digest: [digest; 32] };
    let new = |n: u8| NewOffer {
        id: DelegationId::from_bytes([n; 16]),
        parent,
        charter: charter(None),
        asked: vec![detail()],
        life: None,
        drops_user: false,
        waits: Some(Duration::from_secs(300)),
        key: Some(key(1)),
    };
    let cut = Grants::of(vec![detail()]);
    let first = world.tree.offer(new(1), &cut, &caller(), world.start).unwrap().id;
    assert_eq!(world.tree.not_allowed(Some(&key(1))), None, "it waits");
    world.tree.refuse_offer(first);
    assert!(world.tree.offered(first).is_none() && world.tree.counts_its_offers());
    assert_eq!(world.tree.not_allowed(Some(&key(1))), Some(first));
    assert_eq!(world.tree.offer_of_key(Some(&key(1))).unwrap(), None);
    assert_eq!(world.tree.offer_of_key(Some(&key(2))), Err(Refused::Conflict), "another request");
    assert_eq!(world.tree.task_of_key(Some(&key(1))), Err(Refused::Conflict), "another call");
    world.tree.forget_answer(first);
    assert_eq!(world.tree.not_allowed(Some(&key(1))), None);
    let second = world.tree.offer(new(2), &cut, &caller(), world.start).unwrap().id;
    world.tree.forget_answer(first);
    assert_eq!(world.tree.offer_of_key(Some(&key(1))).unwrap().map(|offer| offer.id), Some(second));
}
