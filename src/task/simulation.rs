//! Random histories against the tree: tasks begin, delegate, spend, are renewed and narrowed, holders die,
//! time passes, credentials arrive late. After each step the model checks the rules of the module's contract.

mod histories;
mod restarts;
mod rules;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use mayfly_attestors::{BootId, ProcessKey};
use proptest::prelude::*;

use self::steps::{Step, step};
use super::testing::{charter, new_task};
use super::{
    Bounds, Caller, Charter, Cost, Detail, Ending, Flight, Grants, Landing, Limits, NewOffer, Refused, Scope,
    Seat, Task, Tree,
};
use crate::clock::{Clock, SystemClock, from_unix_seconds};
use crate::id::{DelegationId, LeaseId, TaskId};
use crate::lease::WorkloadId;
use crate::ledger::testing::effort;

/// What must be true, kept apart from the tree.
struct Model {
    tree: Tree,
    began: Instant,
    now: Instant,
    wall: SystemTime,
    next: u64,
    /// How often the process in each slot was replaced.
    lives: [u64; 6],
    made: Vec<TaskId>,
    offers: Vec<DelegationId>,
    taken: BTreeSet<DelegationId>,
    ended: BTreeSet<TaskId>,
    /// What each task and all below it must have spent.
    spent: BTreeMap<TaskId, u64>,
    flights: Vec<(Flight, TaskId)>,
    live: BTreeMap<LeaseId, TaskId>,
    revoked: BTreeSet<LeaseId>,
    journal: restarts::Journal,
}

impl Model {
    fn new(bounds: Bounds) -> Self {
        let now = SystemClock.monotonic();
        Self {
            tree: Tree::new(bounds),
            began: now,
            now,
            wall: from_unix_seconds(1_790_000_000),
            next: 0,
            lives: [0; 6],
            made: Vec::new(),
            offers: Vec::new(),
            taken: BTreeSet::new(),
            ended: BTreeSet::new(),
            spent: BTreeMap::new(),
            flights: Vec::new(),
            live: BTreeMap::new(),
            revoked: BTreeSet::new(),
            journal: restarts::Journal::default(),
        }
    }

    fn number(&mut self) -> [u8; 16] {
        self.next += 1;
        u128::from(self.next).to_be_bytes()
    }

    fn process(&self, slot: u8) -> ProcessKey {
        let start_time = self.lives[usize::from(slot)];
        ProcessKey {
            boot_id: BootId::from_bytes([1; 16]),
            pid: u32::from(slot) + 1,
            start_time,
            pidfs_inode: None,
        }
    }

    fn seat(&mut self, slot: u8, cgroup: bool) -> Seat {
        let process = self.process(slot);
        if cgroup {
            let holder = WorkloadId(1_000 + u64::from_be_bytes(*self.number().last_chunk().unwrap()));
            let scope = Scope::Cgroup { id: u64::from(slot), path: format!("/t/{slot}") };
            return Seat { holder, process, uid: 0, scope };
        }
        let holder = WorkloadId(u64::from(slot) + process.start_time * 10);
        Seat { holder, process, uid: 0, scope: Scope::Process }
    }

    fn pick<T: Copy>(list: &[T], n: u8) -> Option<T> {
        if list.is_empty() { None } else { list.get(usize::from(n) % list.len()).copied() }
    }

    fn caller_of(&self, id: TaskId) -> Option<Caller> {
        let Task { seat, charter, .. } = self.tree.get(id)?;
        let cgroup = match seat.scope {
            Scope::Cgroup { id, .. } => Some(id),
            Scope::Process => None,
        };
        let identities = vec![(charter.entry.clone(), charter.spiffe_id.clone())];
        Some(Caller { process: seat.process, cgroup, identities })
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each step")]
    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Begin { agent, slot, cgroup, grants, calls, idle, life } => {
                let limits = Limits {
                    calls: *calls,
                    idle: idle.then_some(Duration::from_secs(600)),
                    ..Limits::default()
                };
                let charter = Charter { grants: grants.clone(), limits, ..charter(*agent) };
                let id = TaskId::from_bytes(self.number());
                let seat = self.seat(*slot, *cgroup);
                let new = new_task(id, charter, seat, Some(u64::from(*life)), self.wall);
                if self.tree.begin(new, self.now).is_ok() {
                    self.made.push(id);
                    self.note(|tree, epoch| tree.notes_of_task(id, epoch));
                }
            }
            Step::Offer { task, to, asked, calls, life, alone } => {
                self.offer(*task, *to, Some(asked), *calls, *life, *alone)?;
            }
            Step::OfferOwn { task, to } => self.offer(*task, *to, None, None, None, false)?,
            Step::Join { offer, agent, slot, cgroup, cut } => {
                self.join(*offer, *agent, *slot, *cgroup, cut.as_ref())?;
            }
            Step::TakeOff { task } => {
                let Some(id) = Self::pick(&self.made, *task) else { return Ok(()) };
                if let Ok(flight) = self.tree.take_off(id, "aud", self.now) {
                    prop_assert!(!self.ended.contains(&id), "issued for the dead");
                    self.flights.push((flight, id));
                    self.charge(id);
                }
            }
            Step::Spend { task, bytes } => {
                let Some(id) = Self::pick(&self.made, *task) else { return Ok(()) };
                let cost = Cost { calls: 1, bytes: u64::from(*bytes), microusd: 0 };
                if self.tree.spend(id, cost, "aud", self.now).is_ok() {
                    self.charge(id);
                    self.journal.had(&self.tree, id);
                    self.note(|tree, epoch| tree.notes_of_usage(id, epoch));
                }
            }
            Step::Answer { flight } => {
                let Some((flight, id)) = self.take_flight(*flight) else { return Ok(()) };
                let lease = LeaseId::from_bytes(self.number());
                let may = self.tree.standing(id).is_ok();
                self.journal.had(&self.tree, id);
                self.note(|tree, epoch| tree.notes_of_usage(id, epoch));
                match self.tree.land(flight, lease) {
                    Landing::Stands => {
                        prop_assert!(may && !self.ended.contains(&id), "released to the dead");
                        self.live.insert(lease, id);
                    }
                    Landing::Doomed(_) => prop_assert!(!may, "doomed for nothing"),
                }
                let twice = self.tree.land(flight, lease);
                prop_assert!(matches!(twice, Landing::Doomed(_)), "landed twice");
            }
            Step::Crash { flight } => {
                if let Some((flight, _)) = self.take_flight(*flight) {
                    self.tree.crash(flight);
                }
            }
            Step::LeaseGone { lease } => {
                let all: Vec<LeaseId> = self.live.keys().copied().collect();
                if let Some(lease) = Self::pick(&all, *lease) {
                    prop_assert_eq!(self.tree.lease_gone(lease), self.live.remove(&lease));
                }
            }
            Step::End { task } => {
                let Some(id) = Self::pick(&self.made, *task) else { return Ok(()) };
                let cascade = self.tree.end(id, Ending::Completed, self.now, self.wall);
                self.take(&cascade)?;
                prop_assert!(self.ended.contains(&id));
            }
            Step::HolderGone { slot } => self.holder_gone(*slot)?,
            Step::Renew { task, life, cut } => self.renew(*task, *life, cut.as_ref())?,
            Step::Narrow { task, cut } => {
                let Some(id) = Self::pick(&self.made, *task) else { return Ok(()) };
                let cascade = self.tree.narrow(id, cut, self.now, self.wall);
                self.take(&cascade)?;
                self.note(|tree, epoch| tree.notes_of_subtree(id, epoch));
            }
            Step::Jump { wall } => {
                let by = Duration::from_secs(u64::from(wall.unsigned_abs()));
                self.wall = if *wall < 0 { self.wall - by } else { self.wall + by };
                let (before, live) = (self.tree.deadline(), self.tree.live());
                // What is due is due by the other clock, and that has not moved.
                for cascade in self.tree.on_timeout(self.now, self.wall) {
                    self.take(&cascade)?;
                }
                prop_assert_eq!((self.tree.deadline(), self.tree.live()), (before, live));
            }
            Step::Restart { alive } => self.restart(*alive)?,
            Step::Advance { seconds } => {
                self.now += Duration::from_secs(u64::from(*seconds));
                self.wall += Duration::from_secs(u64::from(*seconds));
                for cascade in self.tree.on_timeout(self.now, self.wall) {
                    self.take(&cascade)?;
                }
            }
        }
        if matches!(step, Step::Join { .. } | Step::Renew { .. } | Step::Narrow { .. }) {
            self.check_grants()?;
        }
        self.check()
    }

    fn offer(
        &mut self,
        task: u8,
        to: u8,
        asked: Option<&Detail>,
        calls: Option<u64>,
        life: Option<u16>,
        alone: bool,
    ) -> Result<(), TestCaseError> {
        let Some(id) = Self::pick(&self.made, task) else { return Ok(()) };
        let Some(caller) = self.caller_of(id) else { return Ok(()) };
        let own = self.tree.get(id).map(|task| task.charter.grants.details().to_vec()).unwrap_or_default();
        let new = NewOffer {
            id: DelegationId::from_bytes(self.number()),
            parent: id,
            charter: Charter {
                limits: Limits { calls, ..Limits::default() },
                require_isolated: alone,
                ..charter(to)
            },
            asked: asked.cloned().map_or(own, |asked| vec![asked]),
            life: life.map(|s| Duration::from_secs(u64::from(s))),
            drops_user: false,
            waits: None,
            key: None,
        };
        let offer = new.id;
        let before = self.tree.get(id).map(|task| task.charter.grants.clone()).unwrap_or_default();
        if let Ok(offered) = self.tree.offer(new, &before, &caller, self.now) {
            prop_assert!(before.part(offered.charter.grants.details()).is_ok(), "more than the parent has");
            prop_assert!(!self.ended.contains(&id), "offered by the dead");
            self.offers.push(offer);
            self.note(|tree, epoch| tree.notes_of_offer(offer, epoch));
        }
        // In the cgroup, but not what the task is (threats K01).
        let tool = Caller { identities: Vec::new(), process: self.process(5), ..caller.clone() };
        if tool.process != caller.process {
            prop_assert_eq!(self.tree.of_caller(id, &tool).err(), Some(Refused::NotInTask));
            let other = Caller { process: self.process(5), ..caller.clone() };
            prop_assert_eq!(self.tree.of_caller(id, &other).is_ok(), caller.cgroup.is_some());
        }
        let stranger = Caller { process: self.process(5), cgroup: Some(99), ..caller };
        let stranger = Caller { process: ProcessKey { pid: 99, ..stranger.process }, ..stranger };
        prop_assert_eq!(self.tree.of_caller(id, &stranger).err(), Some(Refused::NotInTask));
        Ok(())
    }

    fn join(
        &mut self,
        offer: u8,
        agent: u8,
        slot: u8,
        cgroup: bool,
        cut: Option<&Grants>,
    ) -> Result<(), TestCaseError> {
        let Some(offer) = Self::pick(&self.offers, offer) else { return Ok(()) };
        let id = TaskId::from_bytes(self.number());
        let seat = self.seat(slot, cgroup);
        let Ok((offered, _)) = self.tree.part_offered(offer, &charter(agent).spiffe_id, self.now) else {
            return Ok(());
        };
        let grants = cut.map_or_else(|| offered.grants.clone(), |cut| offered.grants.cap(cut));
        let parent = self.tree.offered(offer).map(|offer| offer.parent);
        let new = new_task(id, Charter { grants, ..offered.clone() }, seat, None, self.wall);
        if let Ok(task) = self.tree.join(offer, new, self.now) {
            prop_assert_eq!(&task.charter.spiffe_id, &offered.spiffe_id);
            prop_assert_eq!(task.parent, parent);
            prop_assert!(self.taken.insert(offer), "taken up twice");
            self.made.push(id);
            self.note(|tree, epoch| tree.notes_of_task(id, epoch));
        }
        Ok(())
    }

    fn holder_gone(&mut self, slot: u8) -> Result<(), TestCaseError> {
        let process = self.process(slot);
        let holders: BTreeSet<WorkloadId> = self
            .tree
            .all()
            .into_iter()
            .filter(|task| task.ended_at.is_none() && task.seat.process == process)
            .map(|task| task.seat.holder)
            .collect();
        for holder in holders {
            let cascade = self.tree.end_holder(holder, Ending::ProcessExit, self.now, self.wall);
            self.take(&cascade)?;
            prop_assert!(self.tree.of_holder(holder).is_empty());
        }
        self.lives[usize::from(slot)] += 1;
        Ok(())
    }

    fn renew(&mut self, task: u8, life: u16, cut: Option<&Grants>) -> Result<(), TestCaseError> {
        let Some(id) = Self::pick(&self.made, task) else { return Ok(()) };
        let Some(caller) = self.caller_of(id) else { return Ok(()) };
        let Some(before) = self.tree.get(id).cloned() else { return Ok(()) };
        let all = before.charter.grants.clone();
        let cut = cut.map_or(all, |cut| before.charter.grants.cap(cut));
        let life = Duration::from_secs(u64::from(life));
        if let Ok(cascade) = self.tree.renew(id, life, &cut, &caller, self.now, self.wall) {
            prop_assert!(!self.ended.contains(&id), "revived");
            self.take(&cascade)?;
            self.note(|tree, epoch| tree.notes_of_subtree(id, epoch));
            let after = self.tree.get(id).expect("renewed");
            let more = self.now + life > before.deadline;
            prop_assert_eq!(
                after.deadline > before.deadline,
                more,
                "who asks for no more keeps what there is"
            );
            prop_assert!(after.deadline >= before.deadline && after.deadline <= after.latest);
            prop_assert_eq!(after.latest, before.latest);
        }
        Ok(())
    }

    fn take_flight(&mut self, n: u8) -> Option<(Flight, TaskId)> {
        if self.flights.is_empty() {
            None
        } else {
            Some(self.flights.remove(usize::from(n) % self.flights.len()))
        }
    }

    fn charge(&mut self, id: TaskId) {
        let line: Vec<TaskId> = self.tree.lineage(id).iter().map(|task| task.id).collect();
        for id in line {
            *self.spent.entry(id).or_default() += 1;
        }
    }
}

fn run(steps: &[Step], bounds: Bounds) -> Result<(), TestCaseError> {
    let mut model = Model::new(bounds);
    for step in steps {
        model.apply(step)?;
    }
    // Whatever happened, everything ends with time.
    model.apply(&Step::Advance { seconds: u16::MAX })?;
    prop_assert_eq!(model.tree.live(), 0);
    prop_assert!(model.live.is_empty(), "credentials of the dead");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: u32::try_from(effort(500, 100_000)).unwrap(),
            failure_persistence: None,
            max_shrink_iters: 20_000,
            ..ProptestConfig::default()
        })]

        #[test]
        fn no_history_breaks_a_rule(steps in prop::collection::vec(step(), 1..40)) {
            run(&steps, Bounds::default())?;
        }
    }

    #[test]
    fn random_histories_get_somewhere() {
        use proptest::strategy::ValueTree as _;
        use proptest::test_runner::TestRunner;
        let mut runner = TestRunner::deterministic();
        let (mut deepest, mut children, mut cascades, mut doomed) = (0, 0, 0, 0);
        let (mut went_on, mut lost) = (0, 0);
        for _ in 0..150 {
            let steps = prop::collection::vec(step(), 50).new_tree(&mut runner).unwrap().current();
            let mut model = Model::new(Bounds::default());
            for step in &steps {
                let before = model.ended.len();
                model.apply(step).unwrap();
                cascades += usize::from(model.ended.len() > before + 1);
                let flying = model.flights.iter().filter(|(_, task)| model.ended.contains(task));
                doomed += flying.count();
            }
            went_on += model.journal.went_on;
            lost += model.journal.ended;
            deepest = deepest.max(model.tree.all().iter().map(|task| task.depth).max().unwrap_or_default());
            children += model.tree.all().iter().filter(|task| task.parent.is_some()).count();
        }
        assert!(deepest >= 2, "trees are flat: {deepest}");
        assert!(went_on > 50 && lost > 20, "restarts: {went_on} {lost}");
        assert!(children > 50 && cascades > 10 && doomed > 20, "{children} {cascades} {doomed}");
    }
}
