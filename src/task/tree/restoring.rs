//! What an earlier run left is taken over, or ends: nothing goes on whose holder was not found again, that has lost what
//! was above it, or that is wider than what is above it.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use super::{Cascade, Tree};
use crate::id::{LeaseId, TaskId};
use crate::lease::WorkloadId;
use crate::task::{Ending, Offer, Standing, Task};

/// What an earlier run left.
#[derive(Debug, Default)]
pub struct Past {
    /// Parents before their children.
    pub tasks: Vec<Task>,
    /// Offers that were open.
    pub offers: Vec<Offer>,
    /// What tasks held that has not expired.
    pub leases: Vec<(LeaseId, TaskId)>,
}

impl Tree {
    /// Takes it over. `holder` says who holds a task now, if that was found out. The answer is everything that does not
    /// go on; it is remembered as what has ended now.
    pub fn restore(
        &mut self,
        past: Past,
        holder: impl Fn(&Task) -> Option<WorkloadId>,
        now: Instant,
        wall: SystemTime,
    ) -> Vec<Cascade> {
        let order: Vec<TaskId> = past.tasks.iter().map(|task| task.id).collect();
        let mut shortened: HashMap<TaskId, Instant> = HashMap::new();
        for mut task in past.tasks {
            task.seat.holder = holder(&task).unwrap_or(NOBODY);
            // The longest life was lowered since: for the whole tree, so that no part outlives the whole.
            let most = task.begun + self.bounds.life;
            if task.parent.is_none() && task.latest > most + ROUNDING {
                shortened.insert(task.id, most);
            }
            if let Some(most) = shortened.get(&task.root) {
                (task.latest, task.deadline) = (task.latest.min(*most), task.deadline.min(*most));
            }
            let parent = task.parent.and_then(|id| self.tasks.get_mut(&id));
            if let Some(parent) = parent {
                parent.children.insert(task.id);
            }
            self.index(task);
        }
        for (lease, task) in past.leases {
            self.hold(task, lease);
        }
        let mut cascades = Vec::new();
        for id in order {
            let lost =
                self.tasks.get(&id).is_some_and(|task| task.ended_at.is_none() && !self.goes_on(task, now));
            if lost {
                cascades.push(self.end(id, Ending::Restart, now, wall));
            }
        }
        for offer in past.offers {
            if self.stands_by(&offer) {
                self.take_in_offer(offer);
            } else {
                cascades.push(Cascade { void: vec![offer.id], ..Cascade::default() });
            }
        }
        // Time has passed meanwhile.
        cascades.extend(self.on_timeout(now, wall));
        cascades
    }

    /// Whether the task, by itself and beside the one above it, is one that this tree could have. How deep a tree may be is
    /// a limit of what begins.
    fn goes_on(&self, task: &Task, now: Instant) -> bool {
        let sound = task.seat.holder != NOBODY
            // Whoever was to allow it has to be asked again, which nobody is.
            && task.standing != Standing::Pending
            && task.begun <= now + ROUNDING
            && task.deadline <= task.latest
            && task.latest <= task.begun + self.bounds.life + ROUNDING
            && !task.charter.grants.is_empty();
        let Some(parent) = task.parent else { return sound && task.depth == 0 && task.root == task.id };
        let Some(parent) = self.tasks.get(&parent).filter(|parent| parent.ended_at.is_none()) else {
            return false;
        };
        let (own, above) = (&task.charter, &parent.charter);
        sound
            && (task.depth, task.root) == (parent.depth + 1, parent.root)
            && task.deadline <= parent.deadline
            && task.latest <= parent.latest
            && above.grants.part(own.grants.details()).is_ok()
            && own.limits == own.limits.within(&above.limits)
            && (own.require_isolated || !above.require_isolated)
            && (own.user.is_none() || own.user == above.user)
    }

    /// Whether whoever made the offer is still there, and what came of it if somebody took it up.
    fn stands_by(&self, offer: &Offer) -> bool {
        let parent = self.tasks.get(&offer.parent);
        parent.is_some_and(|parent| parent.ended_at.is_none()) && self.offers.get(offer.id).is_none()
    }
}

/// Holds what nobody holds: no workload is ever called so.
const NOBODY: WorkloadId = WorkloadId(u64::MAX);
/// Moments are kept in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::strategy::{Strategy as _, ValueTree as _};

    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::id::DelegationId;
    use crate::task::testing::{charter, new_task, seat};
    use crate::task::tests::any_detail;
    use crate::task::{Bounds, Caller, Charter, Detail, Grants, NewOffer, RawDetail, User};

    fn name(n: u8) -> TaskId {
        TaskId::from_bytes([n; 16])
    }

    /// A task for 1000 s that may be renewed, and after 100 s a part of it, for as long.
    fn two(now: Instant) -> Tree {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let grants = Grants::of(vec![any_detail().new_tree(&mut runner).unwrap().current()]);
        let charter = Charter { grants: grants.clone(), ..charter(1) };
        let mut tree = Tree::new(Bounds::default());
        tree.begin(new_task(name(1), charter.clone(), seat(), Some(1_000), UNIX_EPOCH), now).unwrap();
        let (id, later) = (DelegationId::from_bytes([1; 16]), now + Duration::from_secs(100));
        let offer = NewOffer {
            id,
            parent: name(1),
            charter: charter.clone(),
            asked: grants.details().to_vec(),
            life: None,
            drops_user: false,
            waits: None,
            key: None,
        };
        let caller = Caller { process: seat().process, cgroup: None, identities: Vec::new() };
        tree.offer(offer, &grants, &caller, later).unwrap();
        tree.join(id, new_task(name(2), charter, seat(), None, UNIX_EPOCH), later).unwrap();
        tree
    }

    /// Another run with these bounds takes the tasks over after 200 s.
    fn again(old: &Tree, bounds: Bounds, now: Instant) -> (Tree, Vec<Cascade>) {
        let tasks = old.all().into_iter().cloned();
        let tasks = tasks.map(|mut task| {
            task.children.clear();
            task
        });
        let past = Past { tasks: tasks.collect(), ..Past::default() };
        let mut tree = Tree::new(bounds);
        let found = |_: &Task| Some(WorkloadId(1));
        let cascades = tree.restore(past, found, now + Duration::from_secs(200), UNIX_EPOCH);
        (tree, cascades)
    }

    #[test]
    fn a_lower_life_shortens_what_goes_on_and_ends_nothing_before_that() {
        let now = SystemClock.monotonic();
        let old = two(now);
        let life = Duration::from_secs(600);
        let (tree, cascades) = again(&old, Bounds { life, ..Bounds::default() }, now);
        assert!(cascades.is_empty(), "{cascades:?}");
        for id in [name(1), name(2)] {
            let task = tree.get(id).unwrap();
            assert_eq!((task.deadline, task.latest), (now + life, now + life));
            assert_eq!(tree.standing(id), Ok(()));
        }
        // What is older than that is over.
        let life = Duration::from_secs(150);
        let (_, cascades) = again(&old, Bounds { life, ..Bounds::default() }, now);
        let ended: Vec<_> = cascades.iter().flat_map(|one| &one.ended).map(|ended| ended.ending).collect();
        assert_eq!(ended[0], Ending::Deadline);
        assert_eq!(ended.len(), 2);
        // And a limit that is as it was moves nothing.
        let (tree, _) = again(&old, Bounds::default(), now);
        for id in [name(1), name(2)] {
            let (is, was) = (tree.get(id).unwrap(), old.get(id).unwrap());
            assert_eq!((is.deadline, is.latest), (was.deadline, was.latest));
        }
    }

    #[test]
    fn a_lower_depth_is_a_limit_of_what_begins() {
        let now = SystemClock.monotonic();
        let (tree, cascades) = again(&two(now), Bounds { depth: 0, ..Bounds::default() }, now);
        assert!(cascades.is_empty(), "{cascades:?}");
        assert_eq!(tree.standing(name(2)), Ok(()));
    }

    /// One thing amiss with what was noted and nothing else, so that each is looked at for itself.
    #[test]
    fn each_thing_that_is_amiss_ends_what_it_is_amiss_with() {
        type Spoil = fn(&mut [Task]);
        const SECOND: Duration = Duration::from_secs(1);
        let of_the_root: [(&str, Spoil); 6] = [
            ("waits", |all| all[0].standing = Standing::Pending),
            ("begun later", |all| all[0].begun += 300 * SECOND),
            ("ends after the latest", |all| all[0].latest = all[0].deadline - SECOND),
            ("may do nothing", |all| all[0].charter.grants = Grants::default()),
            ("is deep", |all| all[0].depth = 1),
            ("is another's", |all| all[0].root = name(3)),
        ];
        let of_the_part: [(&str, Spoil); 11] = [
            ("waits", |all| all[1].standing = Standing::Pending),
            ("begun before it could last so long", |all| all[1].begun -= 200 * SECOND),
            ("ends later", |all| all[1].deadline += SECOND),
            ("may end later", |all| all[1].latest += SECOND),
            ("is deeper", |all| all[1].depth = 2),
            ("is of another tree", |all| all[1].root = name(2)),
            ("may do nothing", |all| all[1].charter.grants = Grants::default()),
            ("may do more", |all| {
                let all_of_it =
                    |detail: &Detail| RawDetail { locations: vec!["x".to_owned()], ..detail.raw() };
                let more = all[1].charter.grants.details().iter().map(all_of_it);
                all[1].charter.grants = Grants::of(more.map(|raw| Detail::read(&raw).unwrap()).collect());
            }),
            ("has no limit of its own", |all| all[0].charter.limits.calls = Some(1)),
            ("is not isolated", |all| all[0].charter.require_isolated = true),
            ("has a user", |all| {
                all[1].charter.user = Some(User { iss: "i".to_owned(), sub: "s".to_owned() });
            }),
        ];
        let now = SystemClock.monotonic();
        let ended = |spoil: Spoil| {
            let mut tasks: Vec<Task> = two(now).all().into_iter().cloned().collect();
            tasks.iter_mut().for_each(|task| task.children.clear());
            spoil(&mut tasks);
            let past = Past { tasks, ..Past::default() };
            let later = now + 200 * SECOND;
            let mut tree = Tree::new(Bounds::default());
            let cascades = tree.restore(past, |_| Some(WorkloadId(1)), later, UNIX_EPOCH);
            cascades.iter().flat_map(|one| &one.ended).map(|one| (one.task, one.ending)).collect::<Vec<_>>()
        };
        assert_eq!(ended(|_| {}), []);
        for (amiss, spoil) in of_the_root {
            let both = [(name(1), Ending::Restart), (name(2), Ending::ParentEnded)];
            assert_eq!(ended(spoil), both, "the root {amiss}");
        }
        for (amiss, spoil) in of_the_part {
            assert_eq!(ended(spoil), [(name(2), Ending::Restart)], "the part {amiss}");
        }
    }
}
