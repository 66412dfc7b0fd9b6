//! The offers that are remembered, by name and by whose part they are. How many of one task are open is known without
//! a look at any of them: a task that has handed on a great deal pays no more for the next part than for the first.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::Offer;
use crate::id::{DelegationId, TaskId};

/// All of this node.
#[derive(Debug, Default)]
pub(super) struct Offers {
    all: HashMap<DelegationId, Offer>,
    of: HashMap<TaskId, Made>,
    /// What each task has taken up.
    taken: HashMap<TaskId, DelegationId>,
    /// How many were looked at so far.
    #[cfg(test)]
    looks: std::sync::atomic::AtomicU64,
}

/// The offers of one task.
#[derive(Debug, Default)]
struct Made {
    all: BTreeSet<DelegationId>,
    /// Those that nobody has taken up.
    open: usize,
}

impl Offers {
    pub(super) fn get(&self, id: DelegationId) -> Option<&Offer> {
        self.note_look();
        self.all.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Offer> {
        self.all.values().inspect(|_| self.note_look())
    }

    /// Those of one task, taken up or not.
    pub(super) fn of(&self, parent: TaskId) -> impl Iterator<Item = DelegationId> {
        let made = self.of.get(&parent).into_iter();
        made.flat_map(|made| &made.all).inspect(|_| self.note_look()).copied()
    }

    /// How many of one task nobody has taken up.
    pub(super) fn open_of(&self, parent: TaskId) -> usize {
        self.of.get(&parent).map_or(0, |made| made.open)
    }

    /// The one that this task has taken up.
    pub(super) fn taken_by(&self, task: TaskId) -> Option<&Offer> {
        self.taken.get(&task).and_then(|id| self.get(*id))
    }

    /// Remembers an offer; its name is new.
    pub(super) fn insert(&mut self, offer: Offer) -> &Offer {
        self.taken.extend(offer.taken_by.map(|task| (task, offer.id)));
        let made = self.of.entry(offer.parent).or_default();
        if made.all.insert(offer.id) && offer.taken_by.is_none() {
            made.open += 1;
        }
        self.all.entry(offer.id).insert_entry(offer).into_mut()
    }

    /// It was taken up.
    pub(super) fn take(&mut self, id: DelegationId, by: TaskId) {
        let Some(offer) = self.all.get_mut(&id) else { return };
        self.taken.insert(by, id);
        if offer.taken_by.replace(by).is_none()
            && let Some(made) = self.of.get_mut(&offer.parent)
        {
            made.open = made.open.saturating_sub(1);
        }
    }

    /// It was not taken up after all.
    pub(super) fn give_back(&mut self, by: TaskId) -> Option<&Offer> {
        let offer = self.all.get_mut(&self.taken.remove(&by)?)?;
        offer.taken_by = None;
        if let Some(made) = self.of.get_mut(&offer.parent) {
            made.open += 1;
        }
        Some(offer)
    }

    /// It waits no longer, and can be taken up until then; whether it waited.
    pub(super) fn allow(&mut self, id: DelegationId, expires: Instant) -> bool {
        let Some(offer) = self.all.get_mut(&id).filter(|offer| offer.pending) else { return false };
        (offer.pending, offer.by_people, offer.expires) = (false, true, expires);
        true
    }

    pub(super) fn remove(&mut self, id: DelegationId) -> Option<Offer> {
        let offer = self.all.remove(&id)?;
        if let Some(task) = offer.taken_by {
            self.taken.remove(&task);
        }
        if let Some(made) = self.of.get_mut(&offer.parent) {
            made.all.remove(&id);
            if offer.taken_by.is_none() {
                made.open = made.open.saturating_sub(1);
            }
            if made.all.is_empty() {
                self.of.remove(&offer.parent);
            }
        }
        Some(offer)
    }

    fn note_look(&self) {
        #[cfg(test)]
        self.looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(test)]
impl super::Tree {
    /// Whether what is counted is what there is.
    pub(in crate::task) fn counts_its_offers(&self) -> bool {
        let Offers { all, of, taken, .. } = &self.offers;
        let is_its = |(task, id): (&TaskId, &DelegationId)| {
            all.get(id).is_some_and(|offer| offer.taken_by == Some(*task))
        };
        let (open, made) =
            of.iter().fold((0, 0), |(open, made), (_, one)| (open + one.open, made + one.all.len()));
        let is_open = |id: &&DelegationId| all.get(*id).is_some_and(|offer| offer.taken_by.is_none());
        open == all.values().filter(|offer| offer.taken_by.is_none()).count()
            && made == all.len()
            && taken.iter().all(is_its)
            && taken.len() == all.values().filter(|offer| offer.taken_by.is_some()).count()
            && of
                .values()
                .all(|one| one.all.iter().filter(is_open).count() == one.open && !one.all.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::task::journal::Epoch;
    use crate::task::testing::{charter, new_task, seat};
    use crate::task::tests::any_detail;
    use crate::task::{Bounds, Caller, Charter, Ending, Grants, NewOffer, Tree};

    fn some_grants() -> Grants {
        use proptest::strategy::{Strategy as _, ValueTree as _};
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        Grants::of(vec![any_detail().new_tree(&mut runner).unwrap().current()])
    }

    fn task(n: u128) -> TaskId {
        TaskId::from_bytes(n.to_be_bytes())
    }

    /// Offers a part and takes it up; how many offers were looked at on the way.
    fn hand_on(tree: &mut Tree, n: u128, now: Instant) -> u64 {
        let before = tree.offers.looks.load(Ordering::Relaxed);
        let (id, grants) = (DelegationId::from_bytes(n.to_be_bytes()), some_grants());
        let offer = NewOffer {
            id,
            parent: task(0),
            charter: charter(1),
            asked: grants.details().to_vec(),
            life: None,
            drops_user: false,
            waits: None,
            key: None,
        };
        let caller = Caller { process: seat().process, cgroup: None, identities: Vec::new() };
        tree.offer(offer, &grants, &caller, now).unwrap();
        assert_eq!(tree.offers.open_of(task(0)), 1);
        tree.join(id, new_task(task(n), Charter { grants, ..charter(1) }, seat(), None, UNIX_EPOCH), now)
            .unwrap();
        assert_eq!(tree.offers.open_of(task(0)), 0);
        let epoch = Epoch { now, since_boot: Duration::from_secs(100) };
        assert_eq!(tree.notes_of_task(task(n), &epoch).len(), 5, "it, what it is part of, and the offer");
        tree.offers.looks.load(Ordering::Relaxed) - before
    }

    #[test]
    fn the_thousandth_part_costs_what_the_first_does() {
        let bounds = Bounds {
            children: 1_001,
            children_ever: 1_001,
            tasks_per_agent: 2_000,
            tasks: 2_000,
            ..Bounds::default()
        };
        let (mut tree, now) = (Tree::new(bounds), SystemClock.monotonic());
        let root = Charter { grants: some_grants(), ..charter(1) };
        tree.begin(new_task(task(0), root, seat(), None, UNIX_EPOCH), now).unwrap();
        let looks: BTreeSet<u64> = (1..=1_000).map(|n| hand_on(&mut tree, n, now)).collect();
        assert_eq!(looks.len(), 1, "looks at {looks:?} offers");
        let cascade = tree.end(task(0), Ending::Completed, now, UNIX_EPOCH);
        assert_eq!((cascade.ended.len(), cascade.void.len()), (1_001, 1_000));
        assert!(tree.offers.all.is_empty() && tree.offers.of.is_empty() && tree.offers.taken.is_empty());
    }
}
