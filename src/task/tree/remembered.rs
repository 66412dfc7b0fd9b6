//! Which ended tasks are still remembered. For a while each is, so that a late call learns why it ended; but no longer than
//! there is room, and what one identity ends makes only that identity's own be forgotten early.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::id::{SpiffeId, TaskId};

const FOR: Duration = Duration::from_secs(3600);
/// Of all.
const MOST: usize = 10_000;
/// Bytes of one identity's, see [`crate::task::Charter::weight`].
const MOST_OF_ONE: usize = 512 * 1024;
/// What a task takes besides.
const EACH: usize = 512;

/// Ended tasks, in the order of their ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    next: u64,
    order: BTreeMap<u64, Ended>,
    shares: HashMap<SpiffeId, Share>,
    /// Who has more than there is room for.
    greedy: HashSet<SpiffeId>,
}

#[derive(Clone, Debug)]
struct Ended {
    id: TaskId,
    agent: SpiffeId,
    weight: usize,
    at: Instant,
}

/// What one identity has here.
#[derive(Clone, Debug, Default)]
struct Share {
    places: BTreeSet<u64>,
    weight: usize,
}

impl Remembered {
    /// A task has ended now.
    pub(super) fn push(&mut self, id: TaskId, agent: SpiffeId, weight: usize, at: Instant) {
        let weight = weight + EACH;
        let share = self.shares.entry(agent.clone()).or_default();
        share.places.insert(self.next);
        share.weight += weight;
        if share.weight > MOST_OF_ONE {
            self.greedy.insert(agent.clone());
        }
        self.order.insert(self.next, Ended { id, agent, weight, at });
        self.next += 1;
    }

    /// Those to forget. Never one that ends at this very moment: whoever ended it has yet to say so.
    pub(super) fn too_old(&mut self, now: Instant) -> Vec<TaskId> {
        let mut gone = Vec::new();
        while let Some((place, first)) = self.order.first_key_value() {
            let is_over = now.saturating_duration_since(first.at) >= FOR || self.order.len() > MOST;
            if first.at >= now || !is_over {
                break;
            }
            let place = *place;
            gone.extend(self.take(place));
        }
        for agent in std::mem::take(&mut self.greedy) {
            while let Some(place) = self.too_much_of(&agent, now) {
                gone.extend(self.take(place));
            }
        }
        gone
    }

    /// The oldest of an identity that has too much. As long as it does, it is looked at again.
    fn too_much_of(&mut self, agent: &SpiffeId, now: Instant) -> Option<u64> {
        let share = self.shares.get(agent).filter(|share| share.weight > MOST_OF_ONE)?;
        let oldest = share.places.first().copied();
        let oldest = oldest.filter(|place| self.order.get(place).is_some_and(|ended| ended.at < now));
        if oldest.is_none() {
            self.greedy.insert(agent.clone());
        }
        oldest
    }

    fn take(&mut self, place: u64) -> Option<TaskId> {
        let Ended { id, agent, weight, .. } = self.order.remove(&place)?;
        if let Some(share) = self.shares.get_mut(&agent) {
            share.places.remove(&place);
            share.weight -= weight;
            if share.places.is_empty() {
                self.shares.remove(&agent);
            }
        }
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    fn agent(n: u8) -> SpiffeId {
        format!("spiffe://example.org/agent/{n}").parse().unwrap()
    }

    fn task(n: u64) -> TaskId {
        TaskId::from_bytes(u128::from(n).to_be_bytes())
    }

    #[test]
    fn what_one_identity_ends_makes_only_its_own_be_forgotten() {
        let start = SystemClock.monotonic();
        let mut remembered = Remembered::default();
        remembered.push(task(0), agent(0), 100, start);
        for n in 1..=1_000 {
            let now = start + Duration::from_millis(n);
            remembered.push(task(n), agent(1), 16 * 1024, now);
            let gone = remembered.too_old(now);
            assert!(!gone.contains(&task(0)) && !gone.contains(&task(n)), "{n}");
        }
        assert!(remembered.order.len() < 40, "{}", remembered.order.len());
        assert_eq!(remembered.too_old(start + FOR).first(), Some(&task(0)), "after its hour");
    }

    #[test]
    fn all_of_one_moment_stay_for_the_record_and_go_with_the_next() {
        let start = SystemClock.monotonic();
        let mut remembered = Remembered::default();
        (0..12_000).for_each(|n| remembered.push(task(n), agent(1), 1_000, start));
        assert!(remembered.too_old(start).is_empty());
        let gone = remembered.too_old(start + Duration::from_millis(1));
        assert_eq!(gone.first(), Some(&task(0)));
        let share: usize = remembered.order.values().map(|ended| ended.weight).sum();
        assert!(share <= MOST_OF_ONE, "{share}");
    }

    proptest! {
        #[test]
        fn shares_are_what_is_there(ends in proptest::collection::vec((0..4_u8, 0..200_000_usize, 0..600_u64), 1..60)) {
            let mut now = SystemClock.monotonic();
            let mut remembered = Remembered::default();
            let mut here = BTreeSet::new();
            for (n, (who, weight, pause)) in (0_u64..).zip(ends) {
                now += Duration::from_secs(pause);
                remembered.push(task(n), agent(who), weight, now);
                here.insert(task(n));
                for id in remembered.too_old(now) {
                    prop_assert!(here.remove(&id), "once");
                }
                let ids: BTreeSet<_> = remembered.order.values().map(|ended| ended.id).collect();
                prop_assert_eq!(&ids, &here);
                for (agent, share) in &remembered.shares {
                    let own = remembered.order.values().filter(|ended| ended.agent == *agent);
                    prop_assert_eq!(share.weight, own.clone().map(|ended| ended.weight).sum::<usize>());
                    prop_assert!(share.weight <= MOST_OF_ONE || share.places.len() == 1
                        || own.clone().all(|ended| ended.at == now) || remembered.greedy.contains(agent));
                }
            }
        }
    }
}
