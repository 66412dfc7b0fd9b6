//! Restarts of the agent in random histories: what was noted is all that is left, and some of the processes.

use std::collections::BTreeMap;

use super::*;
use crate::ledger::Note;
use crate::task::Past;
use crate::task::journal::{Epoch, Kept, read};

/// What is on the disk, and how it came there.
#[derive(Debug, Default)]
pub(super) struct Journal {
    notes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Each write, when it was, and whether it only took back.
    writes: Vec<(Vec<Note>, Instant, bool)>,
    /// Tasks that went on and tasks that did not, over all restarts.
    pub(super) went_on: usize,
    pub(super) ended: usize,
    /// What each task and all below it were really given.
    given: BTreeMap<TaskId, u64>,
}

impl Journal {
    fn write(&mut self, notes: Vec<Note>, now: Instant, takes_back: bool) {
        put(&mut self.notes, &notes);
        self.writes.push((notes, now, takes_back));
    }

    pub(super) fn forget(&mut self, notes: Vec<Note>, now: Instant) {
        self.write(notes, now, true);
    }

    pub(super) fn had(&mut self, tree: &Tree, id: TaskId) {
        for task in tree.lineage(id) {
            *self.given.entry(task.id).or_default() += 1;
        }
    }
}

fn put(disk: &mut BTreeMap<Vec<u8>, Vec<u8>>, notes: &[Note]) {
    for Note { key, value } in notes {
        match value {
            Some(value) => drop(disk.insert(key.clone(), value.clone())),
            None => drop(disk.remove(key)),
        }
    }
}

fn left(disk: &BTreeMap<Vec<u8>, Vec<u8>>, epoch: &Epoch) -> Kept {
    let notes: Vec<Note> =
        disk.iter().map(|(key, value)| Note { key: key.clone(), value: Some(value.clone()) }).collect();
    read(&notes, epoch)
}

const BOOTED: Duration = Duration::from_secs(100_000);

fn is_alive(alive: u8, task: &Task) -> bool {
    alive & (1 << (task.seat.process.pid - 1)) != 0
}

impl Model {
    /// One write, as it is now.
    pub(super) fn note(&mut self, what: impl FnOnce(&Tree, &Epoch) -> Vec<Note>) {
        let notes = what(&self.tree, &self.epoch());
        let now = self.now;
        self.journal.write(notes, now, false);
    }

    /// Each run has its own pair of the same moment on two clocks.
    fn epoch(&self) -> Epoch {
        Epoch { now: self.now, since_boot: BOOTED + (self.now - self.began) }
    }

    /// The agent is killed and started again; of the processes, those of these slots are still there.
    pub(super) fn restart(&mut self, alive: u8) -> Result<(), TestCaseError> {
        let all = self.tree.all();
        let before: Vec<Task> = all.into_iter().filter(|task| task.ended_at.is_none()).cloned().collect();
        let offers: BTreeSet<DelegationId> = self.tree.offers().map(|offer| offer.id).collect();
        let kept = left(&self.journal.notes, &self.epoch());
        prop_assert!(kept.stray.is_empty() && kept.keepers.is_empty());
        let names = |tasks: &[Task]| tasks.iter().map(|task| task.id).collect::<BTreeSet<_>>();
        prop_assert_eq!(names(&kept.tasks), names(&before), "every live task is noted, and no other");
        prop_assert_eq!(kept.offers.iter().map(|offer| offer.id).collect::<BTreeSet<_>>(), offers);
        let mut stays: BTreeSet<TaskId> = BTreeSet::new();
        for task in &kept.tasks {
            let idle = task.charter.limits.idle;
            let is_idle = idle.is_some_and(|idle| task.last_call + idle <= self.now);
            let has_parent = task.parent.is_none_or(|parent| stays.contains(&parent));
            if is_alive(alive, task) && has_parent && !is_idle {
                stays.insert(task.id);
            }
        }
        let new = Tree::new(self.tree.bounds().clone());
        let old = std::mem::replace(&mut self.tree, new);
        let leases = self.live.iter().map(|(lease, task)| (*lease, *task)).collect();
        let past = Past { tasks: kept.tasks, offers: kept.offers, leases };
        let (now, wall) = (self.now, self.wall);
        let again = |task: &Task| match task.seat.scope {
            Scope::Process => WorkloadId(u64::from(task.seat.process.pid)),
            Scope::Cgroup { .. } => WorkloadId(1_000 + u64::from(task.id.as_bytes()[15])),
        };
        let found = |task: &Task| is_alive(alive, task).then(|| again(task));
        let cascades = self.tree.restore(past, found, now, wall);
        self.flights.clear();
        for cascade in &cascades {
            self.take(cascade)?;
        }
        let after: BTreeSet<TaskId> =
            self.tree.all().into_iter().filter(|task| task.ended_at.is_none()).map(|task| task.id).collect();
        prop_assert_eq!(&after, &stays, "what can be found again goes on, and nothing else");
        self.journal.went_on += stays.len();
        self.journal.ended += before.len() - stays.len();
        for was in before.iter().filter(|task| stays.contains(&task.id)) {
            self.is_as_it_was(&old, was, &stays)?;
        }
        Ok(())
    }

    fn is_as_it_was(
        &mut self,
        old: &Tree,
        was: &Task,
        stays: &BTreeSet<TaskId>,
    ) -> Result<(), TestCaseError> {
        let task = self.tree.get(was.id).expect("it goes on").clone();
        prop_assert_eq!(&task.charter, &was.charter);
        prop_assert_eq!(
            (task.root, task.parent, task.depth, task.standing),
            (was.root, was.parent, was.depth, was.standing)
        );
        prop_assert_eq!((task.begun, task.deadline, task.latest), (was.begun, was.deadline, was.latest));
        prop_assert_eq!((task.children_ever, task.denials), (was.children_ever, was.denials));
        prop_assert_eq!((&task.leases, &task.key), (&was.leases, &was.key));
        prop_assert!(
            task.children.is_subset(&was.children) && task.children.iter().all(|id| stays.contains(id))
        );
        // What was in the making is lost, and what it would have cost with it.
        let given = self.journal.given.get(&task.id).copied().unwrap_or_default();
        prop_assert!(
            (given..=was.used.calls).contains(&task.used.calls),
            "{given} {:?} {:?}",
            task.used,
            was.used
        );
        prop_assert!(
            old.standing(was.id).is_ok() || self.tree.standing(task.id).is_err(),
            "more than before"
        );
        self.spent.insert(task.id, task.used.calls);
        Ok(())
    }
}

/// Whatever was written of what, nothing is wider than what is above it.
fn is_sound(tree: &Tree, now: Instant) -> Result<(), TestCaseError> {
    for task in tree.all().into_iter().filter(|task| task.ended_at.is_none()) {
        prop_assert!(task.deadline > now && task.deadline <= task.latest);
        prop_assert!(task.latest <= task.begun + tree.bounds().life);
        let Some(id) = task.parent else { continue };
        let parent = tree.get(id).expect("an orphan");
        prop_assert!(parent.ended_at.is_none() && parent.children.contains(&task.id));
        prop_assert!(task.deadline <= parent.deadline && task.latest <= parent.latest);
        prop_assert!(parent.charter.grants.part(task.charter.grants.details()).is_ok());
        prop_assert_eq!(task.charter.limits.within(&parent.charter.limits), task.charter.limits.clone());
    }
    for offer in tree.offers() {
        prop_assert!(tree.get(offer.parent).is_some_and(|parent| parent.ended_at.is_none()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: u32::try_from(effort(120, 20_000)).unwrap(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Killed after any write, and what takes back may not have been written yet.
    #[test]
    fn whatever_was_written_is_restored_to_a_tree_that_could_be(
        steps in prop::collection::vec(step(), 1..40),
        cut in any::<prop::sample::Index>(),
        unwritten in any::<u64>(),
        alive in any::<u8>(),
    ) {
        let mut model = Model::new(Bounds::default());
        for step in &steps {
            model.apply(step)?;
        }
        let writes = &model.journal.writes;
        if writes.is_empty() {
            return Ok(());
        }
        let until = cut.index(writes.len());
        let mut disk = BTreeMap::new();
        for (at, (notes, _, takes_back)) in writes.iter().take(until + 1).enumerate() {
            if !takes_back || unwritten & (1 << (at % 64)) == 0 {
                put(&mut disk, notes);
            }
        }
        let now = writes[until].1;
        let epoch = Epoch { now, since_boot: BOOTED + (now - model.began) };
        let kept = left(&disk, &epoch);
        let mut tree = Tree::new(Bounds::default());
        let past = Past { tasks: kept.tasks, offers: kept.offers, leases: Vec::new() };
        let found = |task: &Task| is_alive(alive, task).then_some(WorkloadId(u64::from(task.seat.process.pid)));
        for cascade in tree.restore(past, found, now, model.wall) {
            prop_assert!(!cascade.is_empty());
        }
        is_sound(&tree, now)?;
    }
}
