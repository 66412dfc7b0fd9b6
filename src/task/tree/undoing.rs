//! A child of which no record could be made never was: what it had taken up is there for somebody else, or for a second
//! attempt.

use super::Tree;
use crate::id::{DelegationId, TaskId};

impl Tree {
    /// Makes the offer that the task took up good again, as if nobody had. The task has ended, and nobody was told of it.
    /// `None`: it took up none, or the offer is gone with the task above.
    pub fn give_back(&mut self, task: TaskId) -> Option<DelegationId> {
        let offer = self.offers.give_back(task)?;
        let (id, parent) = (offer.id, offer.parent);
        if let Some(parent) = self.tasks.get_mut(&parent) {
            parent.children_ever = parent.children_ever.saturating_sub(1);
        }
        self.note_change(parent);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use mayfly_attestors::{BootId, ProcessKey};
    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;

    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::lease::WorkloadId;
    use crate::task::testing::{charter, new_task};
    use crate::task::tests::any_detail;
    use crate::task::{Bounds, Caller, Charter, Ending, Grants, NewOffer, Refused, Scope, Seat};

    fn seat() -> Seat {
        let process =
            ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid: 7, start_time: 1, pidfs_inode: None };
        Seat { holder: WorkloadId(1), process, uid: 0, scope: Scope::Process }
    }

    fn grants() -> Grants {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        Grants::of(vec![any_detail().new_tree(&mut runner).unwrap().current()])
    }

    fn task(n: u8) -> TaskId {
        TaskId::from_bytes([n; 16])
    }

    fn named(n: u8) -> DelegationId {
        DelegationId::from_bytes([n; 16])
    }

    /// A root that may have that many children in its life, with one open offer.
    fn offered(children_ever: u32, now: Instant) -> Tree {
        let mut tree = Tree::new(Bounds { children_ever, ..Bounds::default() });
        let root = Charter { grants: grants(), ..charter(1) };
        tree.begin(new_task(task(0), root, seat(), None, UNIX_EPOCH), now).unwrap();
        let offer = NewOffer {
            id: named(1),
            parent: task(0),
            charter: charter(1),
            asked: grants().details().to_vec(),
            life: None,
            drops_user: false,
            waits: None,
            key: None,
        };
        let caller = Caller { process: seat().process, cgroup: None, identities: Vec::new() };
        tree.offer(offer, &grants(), &caller, now).unwrap();
        tree
    }

    fn join(tree: &mut Tree, n: u8, now: Instant) -> Result<(), Refused> {
        let new = new_task(task(n), Charter { grants: grants(), ..charter(1) }, seat(), None, UNIX_EPOCH);
        tree.join(named(1), new, now).map(drop)
    }

    proptest! {
        /// However often it could not be recorded, and whatever the task's name was: the offer is as it was.
        #[test]
        fn what_could_not_be_recorded_uses_nothing_up(tries in proptest::collection::vec(2..200_u8, 1..8)) {
            let now = SystemClock.monotonic();
            let mut tree = offered(1, now);
            let before = format!("{:?}", tree.offered(named(1)));
            for n in tries {
                join(&mut tree, n, now).unwrap();
                prop_assert_eq!(join(&mut tree, 250, now), Err(Refused::DelegationUsed));
                drop(tree.end(task(n), Ending::Failed, now, UNIX_EPOCH));
                prop_assert_eq!(tree.give_back(task(n)), Some(named(1)));
                prop_assert_eq!(tree.give_back(task(n)), None, "once");
                prop_assert_eq!(format!("{:?}", tree.offered(named(1))), before.as_str());
                prop_assert!(tree.counts_its_offers());
            }
            join(&mut tree, 251, now).unwrap();
            prop_assert_eq!(join(&mut tree, 252, now), Err(Refused::DelegationUsed));
        }
    }

    #[test]
    fn what_is_given_back_runs_out_and_ends_with_the_one_above_as_before() {
        let now = SystemClock.monotonic();
        let mut tree = offered(8, now);
        join(&mut tree, 1, now).unwrap();
        drop(tree.end(task(1), Ending::Failed, now, UNIX_EPOCH));
        tree.give_back(task(1)).unwrap();
        let late = now + Duration::from_secs(600);
        drop(tree.on_timeout(late, UNIX_EPOCH));
        assert_eq!(join(&mut tree, 2, late), Err(Refused::NoSuchDelegation));
        let mut tree = offered(8, now);
        join(&mut tree, 1, now).unwrap();
        drop(tree.end(task(0), Ending::Completed, now, UNIX_EPOCH));
        assert_eq!(tree.give_back(task(1)), None, "nothing is left to take up");
    }
}
