//! Random histories against the tree: tasks begin, delegate, spend, are renewed and narrowed, holders die,
//! time passes, credentials arrive late. After each step the model checks the rules of the module's contract.

mod restarts;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use mayfly_attestors::{BootId, ProcessKey};
use proptest::prelude::*;

use super::tests::{any_detail, any_grants};
use super::{
    Access, Action, Bounds, Caller, Cascade, Charter, Cost, Detail, Ended, Ending, Flight, Grants, Key,
    Landing, Limits, NewOffer, NewTask, Past, Refused, Scope, Seat, Standing, Task, Tree,
};
use crate::clock::{Clock, SystemClock, from_unix_seconds};
use crate::id::{DelegationId, EntryId, LeaseId, SpiffeId, TaskId};
use crate::lease::WorkloadId;
use crate::ledger::testing::effort;

#[derive(Clone, Debug)]
enum Step {
    Begin { agent: u8, slot: u8, cgroup: bool, grants: Grants, calls: Option<u64>, idle: bool, life: u16 },
    Offer { task: u8, to: u8, asked: Detail, calls: Option<u64>, life: Option<u16>, alone: bool },
    OfferOwn { task: u8, to: u8 },
    Join { offer: u8, agent: u8, slot: u8, cgroup: bool, cut: Option<Grants> },
    TakeOff { task: u8 },
    Spend { task: u8, bytes: u8 },
    Answer { flight: u8 },
    Crash { flight: u8 },
    LeaseGone { lease: u8 },
    End { task: u8 },
    HolderGone { slot: u8 },
    Renew { task: u8, life: u16, cut: Option<Grants> },
    Narrow { task: u8, cut: Grants },
    Advance { seconds: u16 },
    Jump { wall: i32 },
    Restart { alive: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let n = any::<u8>;
    let calls = || prop::option::of(0..12_u64);
    let cut = || prop::option::weighted(0.3, any_grants());
    prop_oneof![
        4 => (0..4_u8, 0..6_u8, any::<bool>(), any_grants(), calls(), any::<bool>(), 1..4_000_u16).prop_map(
            |(agent, slot, cgroup, grants, calls, idle, life)| Step::Begin { agent, slot, cgroup, grants, calls, idle, life }
        ),
        2 => (n(), 0..4_u8, any_detail(), calls(), prop::option::of(1..4_000_u16), any::<bool>()).prop_map(
            |(task, to, asked, calls, life, alone)| Step::Offer { task, to, asked, calls, life, alone }
        ),
        6 => (n(), 0..4_u8).prop_map(|(task, to)| Step::OfferOwn { task, to }),
        8 => (n(), 0..4_u8, 0..6_u8, any::<bool>(), cut()).prop_map(
            |(offer, agent, slot, cgroup, cut)| Step::Join { offer, agent, slot, cgroup, cut }
        ),
        6 => n().prop_map(|task| Step::TakeOff { task }),
        2 => (n(), n()).prop_map(|(task, bytes)| Step::Spend { task, bytes }),
        6 => n().prop_map(|flight| Step::Answer { flight }),
        1 => n().prop_map(|flight| Step::Crash { flight }),
        1 => n().prop_map(|lease| Step::LeaseGone { lease }),
        1 => n().prop_map(|task| Step::End { task }),
        1 => (0..6_u8).prop_map(|slot| Step::HolderGone { slot }),
        2 => (n(), 1..9_000_u16, cut()).prop_map(|(task, life, cut)| Step::Renew { task, life, cut }),
        1 => (n(), any_grants()).prop_map(|(task, cut)| Step::Narrow { task, cut }),
        2 => (0..1_500_u16).prop_map(|seconds| Step::Advance { seconds }),
        1 => (-100_000..100_000_i32).prop_map(|wall| Step::Jump { wall }),
        1 => (n(), n()).prop_map(|(one, other)| Step::Restart { alive: one | other }),
    ]
}

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

    /// Carries out what an end has brought about, and holds it to the rules.
    fn take(&mut self, cascade: &Cascade) -> Result<(), TestCaseError> {
        self.journal.forget(cascade.notes(), self.now);
        for ended in &cascade.ended {
            prop_assert!(self.ended.insert(ended.task), "{} ended twice", ended.task);
            for lease in &ended.leases {
                prop_assert_eq!(self.live.remove(lease), Some(ended.task));
                prop_assert!(self.revoked.insert(*lease), "revoked twice");
            }
            let held = self.live.iter().find(|(_, task)| **task == ended.task);
            prop_assert!(held.is_none(), "{held:?} survives its task");
        }
        let tolls = cascade.tolls(|id| self.tree.get(id).and_then(|task| task.parent));
        prop_assert_eq!(tolls.len(), cascade.ended.len());
        for (ended, toll) in cascade.ended.iter().zip(tolls) {
            let is_below = |other: &&Ended| {
                self.tree.lineage(other.task).iter().skip(1).any(|above| above.id == ended.task)
            };
            let below: Vec<&Ended> = cascade.ended.iter().filter(is_below).collect();
            let leases = below.iter().map(|other| other.leases.len()).sum::<usize>() + ended.leases.len();
            prop_assert_eq!((toll.descendants, toll.credentials), (below.len(), leases));
        }
        for (at, ended) in cascade.ended.iter().enumerate() {
            let parent = self.tree.get(ended.task).and_then(|task| task.parent);
            let later = cascade.ended.iter().skip(at + 1).any(|other| Some(other.task) == parent);
            prop_assert!(!later, "a child before its parent");
        }
        for void in &cascade.void {
            self.offers.retain(|offer| offer != void);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let all = self.tree.all();
        let live = all.iter().filter(|task| task.ended_at.is_none());
        prop_assert_eq!(live.clone().count(), self.tree.live());
        for task in live.clone() {
            self.check_live(task)?;
        }
        for task in all.iter().filter(|task| task.ended_at.is_some()) {
            prop_assert!(self.ended.contains(&task.id) && task.leases.is_empty() && task.children.is_empty());
            prop_assert!(matches!(self.tree.standing(task.id), Err(Refused::Ended(_))));
        }
        for (lease, task) in &self.live {
            prop_assert_eq!(self.tree.task_of(*lease), Some(*task));
            prop_assert!(!self.ended.contains(task));
        }
        prop_assert!(self.tree.counts_its_offers());
        for offer in self.tree.offers() {
            prop_assert!(!self.ended.contains(&offer.parent), "an offer of the dead");
        }
        let agents = live.map(|task| &task.charter.spiffe_id).fold(BTreeMap::new(), |mut counts, id| {
            *counts.entry(id).or_insert(0_usize) += 1;
            counts
        });
        prop_assert!(agents.values().all(|count| *count <= self.tree.bounds().tasks_per_agent));
        Ok(())
    }

    fn check_live(&self, task: &Task) -> Result<(), TestCaseError> {
        prop_assert!(!self.ended.contains(&task.id), "alive again");
        prop_assert!(task.deadline <= task.latest && task.deadline > self.now, "outlives its time");
        prop_assert!(task.latest <= task.begun + self.tree.bounds().life);
        let limits = &task.charter.limits;
        prop_assert!(limits.calls.is_none_or(|most| task.used.calls <= most), "over budget");
        prop_assert_eq!(task.used.calls, self.spent.get(&task.id).copied().unwrap_or_default());
        prop_assert!(task.children.len() <= usize::try_from(self.tree.bounds().children).unwrap());
        prop_assert!(task.depth <= self.tree.bounds().depth);
        prop_assert!(!task.charter.grants.is_empty());
        let Some(id) = task.parent else { return Ok(()) };
        let parent = self.tree.get(id).expect("an orphan");
        prop_assert!(parent.ended_at.is_none(), "outlives its parent");
        prop_assert!(parent.children.contains(&task.id) && parent.root == task.root);
        prop_assert!(task.deadline <= parent.deadline && task.latest <= parent.latest);
        prop_assert!(!parent.charter.require_isolated || task.charter.require_isolated);
        prop_assert!(limits.calls <= parent.charter.limits.calls || parent.charter.limits.calls.is_none());
        if self.tree.standing(id).is_err() {
            prop_assert!(self.tree.standing(task.id).is_err(), "acts while its parent may not");
        }
        Ok(())
    }

    /// Grants change when somebody joins, is renewed or narrowed, and never else.
    fn check_grants(&self) -> Result<(), TestCaseError> {
        for task in self.tree.all().into_iter().filter(|task| task.ended_at.is_none()) {
            let Some(parent) = task.parent.and_then(|id| self.tree.get(id)) else { continue };
            let inside = parent.charter.grants.part(task.charter.grants.details());
            prop_assert!(inside.is_ok(), "{:?} beyond {:?}", task.charter.grants, parent.charter.grants);
            sampled(task, parent)?;
        }
        Ok(())
    }
}

/// Some operations, each allowed to the child only if to the parent.
fn sampled(child: &Task, parent: &Task) -> Result<(), TestCaseError> {
    for location in child.charter.grants.details().iter().flat_map(|detail| &detail.locations) {
        for (action, tool, whole_target) in [
            (Action::Read, None, true),
            (Action::Write, Some("edit"), false),
            (Action::Delete, Some("search"), false),
        ] {
            let access =
                Access { location, action, datatype: Some("internal"), tool, http: None, whole_target };
            let (own, above) = (child.charter.grants.allows(&access), parent.charter.grants.allows(&access));
            prop_assert!(!own || above, "{access:?}");
        }
    }
    Ok(())
}

pub(super) fn charter(agent: u8) -> Charter {
    Charter {
        spiffe_id: SpiffeId::parse(format!("spiffe://example.org/agent/{agent}").as_bytes()).unwrap(),
        entry: EntryId::new(format!("agent-{agent}")),
        purpose: "try".to_owned(),
        template: None,
        params: BTreeMap::new(),
        grants: Grants::default(),
        limits: Limits::default(),
        require_isolated: false,
        user: None,
        credential_ttl: None,
        evaluation: String::new(),
        policy_version: String::new(),
    }
}

pub(super) fn new_task(
    id: TaskId,
    charter: Charter,
    seat: Seat,
    life: Option<u64>,
    begun_at: SystemTime,
) -> NewTask {
    NewTask { id, charter, seat, life: life.map(Duration::from_secs), pending: false, begun_at, key: None }
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

    #[test]
    fn an_ended_task_says_why_until_it_is_forgotten() {
        let mut model = Model::new(Bounds::default());
        let seat = model.seat(0, false);
        let id = TaskId::from_bytes([1; 16]);
        let grants = Grants::of(vec![detail()]);
        let new = new_task(id, Charter { grants, ..charter(0) }, seat, Some(60), model.wall);
        model.tree.begin(new, model.now).unwrap();
        let cascade = model.tree.end(id, Ending::Failed, model.now, model.wall);
        assert_eq!(cascade.ended.len(), 1);
        assert_eq!(model.tree.standing(id), Err(Refused::Ended(Ending::Failed)));
        assert!(model.tree.end(id, Ending::Admin, model.now, model.wall).is_empty(), "final");
        assert_eq!(model.tree.standing(id), Err(Refused::Ended(Ending::Failed)));
        let caller = model.caller_of(id).unwrap();
        let renewed = model.tree.renewed_until(id, Duration::from_secs(60), &caller, model.now);
        assert_eq!(renewed, Err(Refused::Ended(Ending::Failed)));
    }

    fn detail() -> Detail {
        Detail::read(&super::super::RawDetail {
            kind: super::super::grant::TARGET_ACCESS.to_owned(),
            locations: vec!["https://h".to_owned()],
            actions: vec!["read".to_owned()],
            ..super::super::RawDetail::default()
        })
        .unwrap()
    }

    fn begun(model: &mut Model, slot: u8, cgroup: bool, alone: bool) -> Result<TaskId, Refused> {
        let id = TaskId::from_bytes(model.number());
        let seat = model.seat(slot, cgroup);
        let grants = Grants::of(vec![detail()]);
        let charter = Charter { grants, require_isolated: alone, ..charter(0) };
        model.tree.begin(new_task(id, charter, seat, Some(600), model.wall), model.now)?;
        Ok(id)
    }

    #[test]
    fn isolation_is_a_cgroup_of_ones_own_and_stays_so() {
        let mut model = Model::new(Bounds::default());
        assert_eq!(begun(&mut model, 0, false, true), Err(Refused::NotIsolated));
        let process = begun(&mut model, 0, false, false).unwrap();
        assert!(!model.tree.is_isolated(process));
        let shared = begun(&mut model, 1, true, false).unwrap();
        assert!(model.tree.is_isolated(shared));
        assert_eq!(begun(&mut model, 1, true, true), Err(Refused::NotIsolated), "not alone");
        begun(&mut model, 1, true, false).unwrap();
        assert!(!model.tree.is_isolated(shared), "two tasks in one cgroup can act as each other");
        let alone = begun(&mut model, 2, true, true).unwrap();
        assert_eq!(
            begun(&mut model, 2, true, false),
            Err(Refused::NotIsolated),
            "the first one wants to be alone"
        );
        assert!(model.tree.is_isolated(alone));
        // One that is held by a process in there can be acted in by somebody who can act in the other as well.
        let one = begun(&mut model, 3, true, false).unwrap();
        let beside = begun(&mut model, 4, false, false).unwrap();
        model.tree.note_beside(beside, Some(3));
        assert!(!model.tree.is_isolated(one) && !model.tree.is_free(3));
        assert_eq!(begun(&mut model, 3, true, true), Err(Refused::NotIsolated));
        drop(model.tree.end(beside, Ending::Completed, model.now, model.wall));
        model.tree.note_beside(beside, Some(3));
        assert!(model.tree.is_isolated(one), "who has ended is not beside it");
        assert!(model.tree.has_cgroups());
        let anywhere = begun(&mut model, 4, false, false).unwrap();
        model.tree.note_beside(anywhere, None);
        assert!(!model.tree.is_isolated(one) && !model.tree.is_free(3) && !model.tree.is_free(9));
        drop(model.tree.end(anywhere, Ending::Completed, model.now, model.wall));
        assert!(model.tree.is_isolated(one), "nobody is feared to be beside it any more");
        assert!(model.tree.is_reserved(2) && !model.tree.is_reserved(3) && model.tree.is_free(9));
    }

    /// Whoever gives an operator's order is refused if it, or one above it, is one of these.
    #[test]
    fn whoever_began_a_task_sits_in_it_wherever_it_is_and_so_does_its_cgroup() {
        let mut model = Model::new(Bounds::default());
        let task = begun(&mut model, 1, true, false).unwrap();
        let caller = model.caller_of(task).unwrap();
        let elsewhere = ProcessKey { pid: 99, ..caller.process };
        for (process, cgroup, seated) in [
            (caller.process, Some(99), true),
            (caller.process, None, true),
            (elsewhere, caller.cgroup, true),
            (elsewhere, Some(99), false),
            (elsewhere, None, false),
        ] {
            let above = Caller { process, cgroup, identities: Vec::new() };
            assert_eq!(model.tree.seats_any(&[above]), seated, "{process:?} {cgroup:?}");
        }
    }

    fn offered(model: &mut Model, parent: TaskId, to: u8) -> Result<DelegationId, Refused> {
        let caller = model.caller_of(parent).unwrap();
        let own = model.tree.get(parent).unwrap().charter.grants.clone();
        let new = NewOffer {
            id: DelegationId::from_bytes(model.number()),
            parent,
            charter: charter(to),
            asked: own.details().to_vec(),
            life: None,
            drops_user: false,
            waits: None,
            key: None,
        };
        model.tree.offer(new, &own, &caller, model.now).map(|offer| offer.id)
    }

    fn joined(model: &mut Model, offer: DelegationId, agent: u8, slot: u8) -> Result<TaskId, Refused> {
        let id = TaskId::from_bytes(model.number());
        let seat = model.seat(slot, false);
        let grants = Grants::of(vec![detail()]);
        let new = new_task(id, Charter { grants, ..charter(agent) }, seat, None, model.wall);
        model.tree.join(offer, new, model.now).map(|task| task.id)
    }

    #[test]
    fn an_offer_is_taken_up_once_and_by_whom_it_names() {
        let mut model = Model::new(Bounds::default());
        let parent = begun(&mut model, 0, false, false).unwrap();
        let offer = offered(&mut model, parent, 1).unwrap();
        assert_eq!(joined(&mut model, offer, 2, 2), Err(Refused::NotYours));
        let child = joined(&mut model, offer, 1, 1).unwrap();
        assert_eq!(joined(&mut model, offer, 1, 3), Err(Refused::DelegationUsed));
        assert_eq!(joined(&mut model, offer, 2, 3), Err(Refused::NotYours), "says no more than before");
        let late = offered(&mut model, parent, 1).unwrap();
        model.now += model.tree.bounds().offer;
        assert_eq!(joined(&mut model, late, 1, 3), Err(Refused::NoSuchDelegation));
        let cascade = model.tree.end(parent, Ending::Completed, model.now, model.wall);
        let endings: Vec<_> = cascade.ended.iter().map(|e| (e.task, e.ending)).collect();
        assert_eq!(endings, [(parent, Ending::Completed), (child, Ending::ParentEnded)]);
        assert_eq!(joined(&mut model, late, 1, 3), Err(Refused::NoSuchDelegation));
    }

    /// Two equal requests that were both decided before either was seated.
    #[test]
    fn the_same_request_twice_at_once_is_one_task_and_one_offer() {
        let mut model = Model::new(Bounds::default());
        let process = model.process(0);
        let caller = Caller { process, cgroup: None, identities: Vec::new() };
        let key = |digest| Some(Key { process, text: "k".to_owned(), digest: [digest; 32] });
        let begin = |model: &mut Model, key| {
            let id = TaskId::from_bytes(model.number());
            let charter = Charter { grants: Grants::of(vec![detail()]), ..charter(0) };
            let new = new_task(id, charter, model.seat(0, false), Some(600), model.wall);
            model.tree.begin(NewTask { key, ..new }, model.now).map(|task| task.id)
        };
        let parent = begin(&mut model, key(1)).unwrap();
        assert_eq!(begin(&mut model, key(1)), Ok(parent));
        assert_eq!(begin(&mut model, key(2)), Err(Refused::Conflict));
        assert_eq!(model.tree.live(), 1);
        let key = |digest| Some(Key { process, text: "o".to_owned(), digest: [digest; 32] });
        let offer = |model: &mut Model, key| {
            let own = model.tree.get(parent).unwrap().charter.grants.clone();
            let new = NewOffer {
                id: DelegationId::from_bytes(model.number()),
                parent,
                charter: charter(1),
                asked: own.details().to_vec(),
                life: None,
                drops_user: false,
                waits: None,
                key,
            };
            model.tree.offer(new, &own, &caller, model.now).map(|offer| offer.id)
        };
        let offered = offer(&mut model, key(1)).unwrap();
        assert_eq!(offer(&mut model, key(1)), Ok(offered));
        assert_eq!(offer(&mut model, key(2)), Err(Refused::Conflict));
        assert_eq!(begin(&mut model, key(1)), Err(Refused::Conflict), "that was an offer");
        assert_eq!(model.tree.offers().count(), 1);
        let key = Some(Key { process: model.process(1), text: "j".to_owned(), digest: [1; 32] });
        let join = |model: &mut Model, key| {
            let id = TaskId::from_bytes(model.number());
            let charter = Charter { grants: Grants::of(vec![detail()]), ..charter(1) };
            let new = new_task(id, charter, model.seat(1, false), None, model.wall);
            model.tree.join(offered, NewTask { key, ..new }, model.now).map(|task| task.id)
        };
        let child = join(&mut model, key.clone()).unwrap();
        assert_eq!(join(&mut model, key), Ok(child));
        assert_eq!(join(&mut model, None), Err(Refused::DelegationUsed));
        assert_eq!(model.tree.take_back(offered), Some(child), "what has come of it");
        assert_eq!(model.tree.live(), 2);
    }

    #[test]
    fn the_tree_is_as_deep_and_as_wide_as_it_may_be() {
        let mut model = Model::new(Bounds::default());
        let mut parent = begun(&mut model, 0, false, false).unwrap();
        for slot in 1..=3 {
            let offer = offered(&mut model, parent, slot).unwrap();
            parent = joined(&mut model, offer, slot, slot).unwrap();
        }
        let too_deep = offered(&mut model, parent, 0);
        assert_eq!(too_deep, Err(Refused::Limit(super::super::Limit::Depth)));
        let wide = begun(&mut model, 4, false, false).unwrap();
        for _ in 0..8 {
            offered(&mut model, wide, 1).unwrap();
        }
        let one_more = offered(&mut model, wide, 1);
        assert_eq!(one_more, Err(Refused::Limit(super::super::Limit::Children)));
    }

    #[test]
    fn time_that_is_taken_back_is_taken_from_all_below_and_watched_tasks_are_told_of_once() {
        let mut model = Model::new(Bounds::default());
        let parent = begun(&mut model, 0, false, false).unwrap();
        let before = model.tree.get(parent).unwrap().deadline;
        let (caller, all) =
            (model.caller_of(parent).unwrap(), model.tree.get(parent).unwrap().charter.grants.clone());
        model.tree.watch(parent);
        let life = Duration::from_secs(3_600);
        assert!(model.tree.renew(parent, life, &all, &caller, model.now, model.wall).unwrap().is_empty());
        let offer = offered(&mut model, parent, 1).unwrap();
        let child = joined(&mut model, offer, 1, 1).unwrap();
        assert_eq!(model.tree.get(child).unwrap().deadline, model.now + life);
        assert_eq!(model.tree.take_changed(), BTreeSet::from([parent]), "nobody watches the child");
        assert!(model.tree.take_changed().is_empty());
        model.tree.curtail(parent, before);
        let deadlines = [parent, child].map(|id| model.tree.get(id).unwrap().deadline);
        assert_eq!(deadlines, [before, before]);
        model.now = before;
        let ended: usize =
            model.tree.on_timeout(model.now, model.wall).iter().map(|cascade| cascade.ended.len()).sum();
        assert_eq!(ended, 2);
        assert!(model.tree.take_changed().is_empty(), "an end is told of otherwise");
    }

    #[test]
    fn a_parent_spends_with_its_children() {
        let mut model = Model::new(Bounds::default());
        let parent = begun(&mut model, 0, false, false).unwrap();
        let offer = offered(&mut model, parent, 1).unwrap();
        let child = joined(&mut model, offer, 1, 1).unwrap();
        // As if it had been begun with a budget of three.
        let mut tasks: Vec<Task> =
            [parent, child].iter().map(|id| model.tree.get(*id).unwrap().clone()).collect();
        tasks[0].charter.limits.calls = Some(3);
        let mut tree = Tree::new(Bounds::default());
        let holders: BTreeMap<TaskId, WorkloadId> =
            tasks.iter().map(|task| (task.id, task.seat.holder)).collect();
        tasks[1].charter.limits.calls = Some(3);
        let past = Past { tasks, ..Past::default() };
        let (now, wall) = (model.now, model.wall);
        assert!(tree.restore(past, |task| holders.get(&task.id).copied(), now, wall).is_empty());
        let mut ask = |id| tree.take_off(id, "a", now).map(drop);
        assert_eq!([ask(child), ask(parent), ask(child)], [Ok(()), Ok(()), Ok(())]);
        let over = Err(Refused::Limit(super::super::Limit::Calls));
        assert_eq!([ask(child), ask(parent)], [over, over]);
        assert_eq!(tree.get(parent).unwrap().used.calls, 3);
        assert_eq!(tree.get(child).unwrap().used.calls, 2);
    }

    /// One thing amiss with what was noted, and the child ends; as it is, it goes on.
    #[test]
    fn what_is_wider_than_what_is_above_it_does_not_outlive_a_restart() {
        type Spoil = fn(&mut Task);
        let mut model = Model::new(Bounds::default());
        let parent = begun(&mut model, 0, false, false).unwrap();
        let offer = offered(&mut model, parent, 1).unwrap();
        let child = joined(&mut model, offer, 1, 1).unwrap();
        let spoils: [Spoil; 10] = [
            |_| {},
            |task| task.deadline += Duration::from_secs(1),
            |task| task.latest += Duration::from_secs(1),
            |task| task.depth = 2,
            |task| task.root = task.id,
            |task| task.standing = Standing::Pending,
            |task| task.begun += Duration::from_secs(1),
            |task| task.charter.grants = Grants::default(),
            |task| {
                let more = super::super::RawDetail { actions: vec!["write".to_owned()], ..detail().raw() };
                task.charter.grants = Grants::of(vec![Detail::read(&more).unwrap()]);
            },
            |task| task.charter.user = Some(super::super::User { iss: "i".to_owned(), sub: "s".to_owned() }),
        ];
        for (at, spoil) in spoils.into_iter().enumerate() {
            let mut tasks: Vec<Task> =
                [parent, child].iter().map(|id| model.tree.get(*id).unwrap().clone()).collect();
            tasks.iter_mut().for_each(|task| task.children.clear());
            spoil(&mut tasks[1]);
            let past = Past { tasks, ..Past::default() };
            let mut tree = Tree::new(Bounds::default());
            let ended: Vec<Ended> = tree
                .restore(past, |task| Some(task.seat.holder), model.now, model.wall)
                .into_iter()
                .flat_map(|cascade| cascade.ended)
                .collect();
            let expected = Ended { task: child, ending: Ending::Restart, leases: Vec::new() };
            assert_eq!(ended, if at == 0 { Vec::new() } else { vec![expected] }, "{at}");
            assert_eq!(tree.live(), if at == 0 { 2 } else { 1 });
        }
    }

    #[test]
    fn idle_is_measured_from_the_last_call_of_anybody_below() {
        let mut model = Model::new(Bounds::default());
        let id = TaskId::from_bytes([1; 16]);
        let seat = model.seat(0, false);
        let limits = Limits { idle: Some(Duration::from_secs(60)), ..Limits::default() };
        let charter = Charter { grants: Grants::of(vec![detail()]), limits, ..charter(0) };
        model.tree.begin(new_task(id, charter, seat, Some(600), model.wall), model.now).unwrap();
        let offer = offered(&mut model, id, 1).unwrap();
        let child = joined(&mut model, offer, 1, 1).unwrap();
        let caller = model.caller_of(child).unwrap();
        for _ in 0..3 {
            model.now += Duration::from_secs(50);
            assert!(model.tree.on_timeout(model.now, model.wall).is_empty());
            model.tree.enter(child, &caller, model.now).unwrap();
        }
        model.now += Duration::from_secs(60);
        let cascades = model.tree.on_timeout(model.now, model.wall);
        let endings: Vec<_> = cascades.iter().flat_map(|c| &c.ended).map(|e| (e.task, e.ending)).collect();
        assert!(endings.contains(&(id, Ending::Idle)), "{endings:?}");
        assert_eq!(endings.len(), 2);
    }
}
