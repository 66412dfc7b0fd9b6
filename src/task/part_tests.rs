//! What is handed on, respect by respect: a part is never more than what it is a part of, whenever that is looked at.

use std::time::{Duration, Instant, UNIX_EPOCH};

use mayfly_attestors::{BootId, ProcessKey};

use super::grant::TARGET_ACCESS;
use super::testing::{charter, new_task};
use super::{
    Bounds, Caller, Charter, Detail, Grants, Key, Limit, Limits, NewOffer, Past, RawDetail, Refused, Scope,
    Seat, Task, Tree, User,
};
use crate::clock::{Clock as _, SystemClock};
use crate::id::{DelegationId, TaskId};
use crate::lease::WorkloadId;

const SECOND: Duration = Duration::from_secs(1);

fn grants(actions: &[&str]) -> Grants {
    let raw = RawDetail {
        kind: TARGET_ACCESS.to_owned(),
        locations: vec!["https://h".to_owned()],
        actions: actions.iter().map(|&one| one.to_owned()).collect(),
        ..RawDetail::default()
    };
    Grants::of(vec![Detail::read(&raw).unwrap()])
}

fn seat(n: u32) -> Seat {
    let process =
        ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid: n, start_time: 1, pidfs_inode: None };
    Seat { holder: WorkloadId(n.into()), process, uid: 0, scope: Scope::Process }
}

fn caller(n: u32) -> Caller {
    Caller { process: seat(n).process, cgroup: None, identities: Vec::new() }
}

fn task(n: u8) -> TaskId {
    TaskId::from_bytes([n; 16])
}

fn offer_id(n: u8) -> DelegationId {
    DelegationId::from_bytes([n; 16])
}

struct World {
    tree: Tree,
    start: Instant,
}

impl World {
    /// With a task that process 1 holds, for 1000 s.
    fn of(bounds: Bounds, root: Charter) -> Self {
        let (mut tree, start) = (Tree::new(bounds), SystemClock.monotonic());
        tree.begin(new_task(task(1), root, seat(1), Some(1_000), UNIX_EPOCH), start).unwrap();
        Self { tree, start }
    }

    fn new() -> Self {
        Self::of(Bounds::default(), Charter { grants: grants(&["read", "write"]), ..charter(1) })
    }

    fn at(&self, seconds: u32) -> Instant {
        self.start + seconds * SECOND
    }

    fn new_offer(n: u8) -> NewOffer {
        NewOffer {
            id: offer_id(n),
            parent: task(1),
            charter: charter(2),
            asked: grants(&["read", "write"]).details().to_vec(),
            life: None,
            drops_user: false,
            waits: None,
            key: None,
        }
    }

    fn offer(&mut self, new: NewOffer) -> Result<Charter, Refused> {
        let (cut, now) = (grants(&["read", "write"]), self.at(1));
        self.tree.offer(new, &cut, &caller(1), now).map(|offer| offer.charter.clone())
    }

    fn join(&mut self, offer: u8, n: u8, may: &[&str]) -> Result<Task, Refused> {
        let charter = Charter { grants: grants(may), ..charter(2) };
        let new = new_task(task(n), charter, seat(n.into()), None, UNIX_EPOCH);
        let now = self.at(2);
        self.tree.join(offer_id(offer), new, now).cloned()
    }
}

#[test]
fn a_part_has_every_limit_of_the_whole() {
    let user = User { iss: "i".to_owned(), sub: "s".to_owned() };
    let root = Charter {
        grants: grants(&["read", "write"]),
        limits: Limits { calls: Some(5), ..Limits::default() },
        require_isolated: false,
        user: Some(user.clone()),
        credential_ttl: Some(60 * SECOND),
        ..charter(1)
    };
    let mut world = World::of(Bounds::default(), root);
    let own = world.offer(World::new_offer(1)).unwrap();
    assert_eq!((own.limits.calls, own.credential_ttl), (Some(5), Some(60 * SECOND)));
    assert_eq!(own.user, Some(user), "nothing else was said");
    // More is asked for than the whole has.
    let other = Some(User { iss: "i".to_owned(), sub: "other".to_owned() });
    let more = Charter {
        limits: Limits { calls: Some(50), bytes: Some(7), ..Limits::default() },
        credential_ttl: Some(600 * SECOND),
        user: other.clone(),
        ..charter(2)
    };
    let own = world.offer(NewOffer { charter: more.clone(), ..World::new_offer(2) }).unwrap();
    assert_eq!((own.limits.calls, own.limits.bytes), (Some(5), Some(7)));
    assert_eq!(own.credential_ttl, Some(60 * SECOND));
    assert!(own.user.is_some() && own.user != other, "the parent's or nobody's, never another's");
    let alone = NewOffer { drops_user: true, charter: more, ..World::new_offer(3) };
    assert_eq!(world.offer(alone).unwrap().user, None);
}

#[test]
fn a_part_of_what_is_isolated_is_isolated() {
    let root = Charter { grants: grants(&["read", "write"]), require_isolated: true, ..charter(1) };
    let scope = Scope::Cgroup { id: 7, path: "/t/7".to_owned() };
    let (mut tree, now) = (Tree::new(Bounds::default()), SystemClock.monotonic());
    let entry = root.entry.clone();
    let identities = vec![(entry, root.spiffe_id.clone())];
    tree.begin(new_task(task(1), root, Seat { scope, ..seat(1) }, None, UNIX_EPOCH), now).unwrap();
    let caller = Caller { cgroup: Some(7), identities, ..caller(1) };
    let cut = grants(&["read", "write"]);
    assert!(tree.offer(World::new_offer(1), &cut, &caller, now).unwrap().charter.require_isolated);
    let charter = Charter { grants: cut, ..charter(2) };
    let alone = new_task(task(2), charter, seat(2), None, UNIX_EPOCH);
    assert_eq!(tree.join(offer_id(1), alone, now).map(drop), Err(Refused::NotIsolated));
}

/// K01: in a cgroup only who has the task's identity by the entry that it rests on acts as it.
#[test]
fn in_a_cgroup_only_who_is_what_its_founder_is_acts_as_the_task() {
    let root = Charter { grants: grants(&["read"]), ..charter(1) };
    let (entry, id) = (root.entry.clone(), root.spiffe_id.clone());
    let scope = Scope::Cgroup { id: 7, path: "/t/7".to_owned() };
    let (mut tree, now) = (Tree::new(Bounds::default()), SystemClock.monotonic());
    tree.begin(new_task(task(1), root, Seat { scope, ..seat(1) }, None, UNIX_EPOCH), now).unwrap();
    let other = charter(2);
    for (cgroup, by, is, admitted) in [
        (Some(7), entry.clone(), id.clone(), true),
        (Some(7), other.entry.clone(), id.clone(), false),
        (Some(7), entry.clone(), other.spiffe_id.clone(), false),
        (Some(8), entry.clone(), id.clone(), false),
        (None, entry, id, false),
    ] {
        // Also whoever began it, once it is elsewhere.
        for process in [1, 2] {
            let caller = Caller { cgroup, identities: vec![(by.clone(), is.clone())], ..caller(process) };
            let enters = tree.enter(task(1), &caller, now);
            assert_eq!(enters, if admitted { Ok(()) } else { Err(Refused::NotInTask) }, "{caller:?}");
        }
    }
}

/// A cgroup is somebody's as long as a task is there, and no longer.
#[test]
fn a_cgroup_is_free_again_when_its_task_has_ended() {
    let root = Charter { grants: grants(&["read"]), require_isolated: true, ..charter(1) };
    let scope = Scope::Cgroup { id: 7, path: "/t/7".to_owned() };
    let (mut tree, now) = (Tree::new(Bounds::default()), SystemClock.monotonic());
    tree.begin(new_task(task(1), root, Seat { scope, ..seat(1) }, None, UNIX_EPOCH), now).unwrap();
    assert!(!tree.is_free(7) && tree.is_reserved(7) && tree.has_cgroups() && tree.is_isolated(task(1)));
    drop(tree.end(task(1), super::Ending::Completed, now, UNIX_EPOCH));
    assert!(tree.is_free(7) && !tree.is_reserved(7) && !tree.has_cgroups());
}

#[test]
fn only_its_holder_hands_a_task_on_and_no_more_than_fits() {
    let bounds = Bounds { details: 1, purpose: 3, children_ever: 2, ..Bounds::default() };
    let root = Charter { grants: grants(&["read", "write"]), purpose: String::new(), ..charter(1) };
    let mut world = World::of(bounds, root);
    let (cut, now) = (grants(&["read", "write"]), world.start);
    let fits = |mut new: NewOffer| {
        new.charter.purpose = "try".to_owned();
        new
    };
    let stranger = world.tree.offer(fits(World::new_offer(1)), &cut, &caller(2), now).map(drop);
    assert_eq!(stranger, Err(Refused::NotInTask));
    let mut wordy = World::new_offer(1);
    wordy.charter.purpose = "long".to_owned();
    assert_eq!(world.offer(wordy).map(drop), Err(Refused::Limit(Limit::Purpose)));
    let mut many = fits(World::new_offer(1));
    many.asked.extend(many.asked.clone());
    assert_eq!(world.offer(many).map(drop), Err(Refused::Limit(Limit::Details)));
    // So many ever, whatever has become of them.
    for n in [2, 3] {
        world.offer(fits(World::new_offer(n))).unwrap();
        world.join(n, n, &["read"]).unwrap();
        drop(world.tree.end(task(n), super::Ending::Completed, now, UNIX_EPOCH));
    }
    let one_more = world.offer(fits(World::new_offer(4))).map(drop);
    assert_eq!(one_more, Err(Refused::Limit(Limit::Children)));
}

#[test]
fn who_joins_is_no_more_than_policy_left_him_and_no_more_than_there_is_room_for() {
    let bounds = Bounds { tasks_per_agent: 1, ..Bounds::default() };
    let mut world = World::of(bounds, Charter { grants: grants(&["read", "write"]), ..charter(1) });
    world.offer(World::new_offer(1)).unwrap();
    world.offer(World::new_offer(2)).unwrap();
    assert_eq!(world.join(1, 2, &["read"]).unwrap().charter.grants, grants(&["read"]));
    assert_eq!(world.join(2, 3, &["read"]).map(drop), Err(Refused::Limit(Limit::Tasks)));
    assert!(world.tree.offered(offer_id(2)).unwrap().taken_by.is_none(), "it is still there");
}

/// Limits of the agent may have been lowered when it was started again, and what was offered is held to them.
#[test]
fn what_was_offered_before_a_restart_is_held_to_the_whole_and_to_the_limits_of_now() {
    let mut old = World::new();
    old.offer(World::new_offer(1)).unwrap();
    let again = |bounds: Bounds, spoil: fn(&mut Task)| {
        let mut tasks: Vec<Task> = old.tree.all().into_iter().cloned().collect();
        tasks.iter_mut().for_each(spoil);
        let offers = old.tree.offers().cloned().collect();
        let mut tree = Tree::new(bounds);
        let past = Past { tasks, offers, leases: Vec::new() };
        let cascades = tree.restore(past, |_| Some(WorkloadId(1)), old.at(2), UNIX_EPOCH);
        assert_eq!(cascades.len(), 0);
        tree.part_offered(offer_id(1), &charter(2).spiffe_id, old.at(3)).map(|(charter, _)| charter)
    };
    assert_eq!(again(Bounds::default(), |_| {}).unwrap().limits, Limits::default());
    let limited = again(Bounds::default(), |task| task.charter.limits.calls = Some(3)).unwrap();
    assert_eq!(limited.limits.calls, Some(3));
    let narrow = again(Bounds::default(), |task| task.charter.grants = grants(&["read"])).unwrap();
    assert_eq!(narrow.grants, grants(&["read"]));
    let shallow = again(Bounds { depth: 0, ..Bounds::default() }, |_| {});
    assert_eq!(shallow.map(drop), Err(Refused::Limit(Limit::Depth)));
}

#[test]
fn a_key_stands_for_one_call() {
    let mut world = World::new();
    let key = |n: u8| Key { process: seat(1).process, text: format!("k{n}"), digest: [1; 32] };
    let charter = Charter { grants: grants(&["read"]), ..charter(1) };
    let mut new = new_task(task(2), charter, seat(1), None, UNIX_EPOCH);
    new.key = Some(key(1));
    let now = world.start;
    world.tree.begin(new, now).unwrap();
    assert_eq!(world.tree.offer_of_key(Some(&key(1))).map(drop), Err(Refused::Conflict), "it began a task");
    world.offer(NewOffer { key: Some(key(2)), ..World::new_offer(1) }).unwrap();
    assert_eq!(world.tree.task_of_key(Some(&key(2))), Err(Refused::Conflict), "it made an offer");
}

#[test]
fn a_yes_makes_an_offer_good_for_no_longer_than_any_other() {
    let mut world = World::new();
    world.offer(NewOffer { waits: Some(600 * SECOND), ..World::new_offer(1) }).unwrap();
    assert!(world.tree.allow_offer(offer_id(1), world.at(90_000), world.at(10)));
    let most = world.at(10) + Bounds::default().offer;
    assert_eq!(world.tree.offered(offer_id(1)).unwrap().expires, most);
}

#[test]
fn whoever_waited_is_not_idle_from_before_he_could_do_anything() {
    let (mut tree, start) = (Tree::new(Bounds::default()), SystemClock.monotonic());
    let limits = Limits { idle: Some(10 * SECOND), ..Limits::default() };
    let charter = Charter { grants: grants(&["read"]), limits, ..charter(1) };
    let mut new = new_task(task(1), charter, seat(1), None, UNIX_EPOCH);
    new.pending = true;
    tree.begin(new, start).unwrap();
    assert!(tree.activate(task(1), start + 100 * SECOND));
    assert!(tree.on_timeout(start + 109 * SECOND, UNIX_EPOCH).is_empty());
    assert_eq!(tree.on_timeout(start + 110 * SECOND, UNIX_EPOCH).len(), 1);
}

#[test]
fn a_renewal_is_cut_by_policy_and_goes_not_beyond_the_longest_life() {
    let bounds = Bounds { life: 1_500 * SECOND, ..Bounds::default() };
    let root = Charter { grants: grants(&["read", "write"]), ..charter(1) };
    let mut world = World::of(bounds, root);
    let (cut, now) = (grants(&["read"]), world.at(900));
    let cascade = world.tree.renew(task(1), 1_400 * SECOND, &cut, &caller(1), now, UNIX_EPOCH).unwrap();
    assert!(cascade.is_empty());
    let renewed = world.tree.get(task(1)).unwrap();
    assert_eq!((renewed.deadline, &renewed.charter.grants), (world.at(1_500), &cut));
    // The timer may be late; the deadline is not.
    let mut world = World::new();
    let late = world.at(1_000);
    let again = world.tree.renewed_until(task(1), 100 * SECOND, &caller(1), late);
    assert_eq!(again, Err(Refused::Ended(super::Ending::Deadline)));
    assert_eq!(world.tree.enter(task(1), &caller(1), late), Err(Refused::Ended(super::Ending::Deadline)));
}
