//! The state machine itself: every task, offer, lease and timer of this node.

mod beside;
mod ending;
mod offered;
mod offers;
mod remembered;
mod renewing;
mod restoring;
mod spending;
mod undoing;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};

use mayfly_attestors::ProcessKey;

use self::beside::Beside;
use self::ending::wakes_at;
pub use self::ending::{Cascade, Ended, Toll};
use self::offered::Offers;
pub use self::offers::{NewOffer, Offer};
use self::remembered::Remembered;
pub use self::restoring::Past;
pub use self::spending::{Flight, Landing};
use super::{Bounds, Caller, Charter, Key, Limit, Refused, Scope, Seat, Standing, Task, Usage};
use crate::id::{DelegationId, LeaseId, SpiffeId, TaskId};
use crate::lease::{Timers, WorkloadId};

/// Every task of this node.
#[derive(Debug)]
pub struct Tree {
    bounds: Bounds,
    tasks: HashMap<TaskId, Task>,
    by_holder: HashMap<WorkloadId, BTreeSet<TaskId>>,
    by_cgroup: HashMap<u64, BTreeSet<TaskId>>,
    beside: Beside,
    /// Live tasks of each identity.
    by_agent: HashMap<SpiffeId, usize>,
    live: usize,
    offers: Offers,
    leases: HashMap<LeaseId, TaskId>,
    flights: HashMap<Flight, TaskId>,
    next_flight: u64,
    timers: Timers<Timer>,
    keys: HashMap<(ProcessKey, String), (Key, Repeat)>,
    /// The keys of offers that people did not allow.
    not_allowed: HashMap<DelegationId, (ProcessKey, String)>,
    /// Ended tasks that are still remembered, the oldest first.
    remembered: Remembered,
    /// Somebody follows these.
    watched: BTreeSet<TaskId>,
    /// How many follow every task.
    followers: usize,
    /// Those that are followed and otherwise than when they were last asked for.
    changed: BTreeSet<TaskId>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Timer {
    Task(TaskId),
    Offer(DelegationId),
}

/// What a repeated request stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repeat {
    /// A task.
    Task(TaskId),
    /// An offer.
    Offer(DelegationId),
    /// An offer that people did not allow: it is gone.
    NotAllowed(DelegationId),
}

/// A task to begin.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Its name; never used twice.
    pub id: TaskId,
    /// What it is for and may do; policy has cut it already.
    pub charter: Charter,
    /// Who holds it.
    pub seat: Seat,
    /// How long; `None`: as long as it is by default, or as what it takes up was offered for.
    pub life: Option<Duration>,
    /// It waits for people first.
    pub pending: bool,
    /// For people.
    pub begun_at: SystemTime,
    /// What the request can be told by.
    pub key: Option<Key>,
}

impl Tree {
    /// An empty one.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            tasks: HashMap::new(),
            by_holder: HashMap::new(),
            by_cgroup: HashMap::new(),
            beside: Beside::default(),
            by_agent: HashMap::new(),
            live: 0,
            offers: Offers::default(),
            leases: HashMap::new(),
            flights: HashMap::new(),
            next_flight: 0,
            timers: Timers::default(),
            keys: HashMap::new(),
            not_allowed: HashMap::new(),
            remembered: Remembered::default(),
            watched: BTreeSet::new(),
            followers: 0,
            changed: BTreeSet::new(),
        }
    }

    /// What it holds everybody to.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// How many tasks are live.
    pub fn live(&self) -> usize {
        self.live
    }

    /// One task, ended ones too as long as they are remembered.
    pub fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// Every task, parents before their children.
    pub fn all(&self) -> Vec<&Task> {
        let mut all: Vec<&Task> = self.tasks.values().collect();
        all.sort_by_key(|task| (task.depth, task.begun, task.id));
        all
    }

    /// The task and everything below it, from the top down, live or remembered.
    pub fn subtree(&self, top: TaskId) -> Vec<TaskId> {
        let mut found = vec![top];
        let mut at = 0;
        while let Some(task) = found.get(at).and_then(|id| self.tasks.get(id)) {
            found.extend(task.children.iter().copied());
            at += 1;
        }
        found
    }

    /// From the task up to its root, itself first.
    pub fn lineage(&self, id: TaskId) -> Vec<&Task> {
        let mut line = Vec::new();
        let mut next = Some(id);
        while let Some(task) = next.and_then(|id| self.tasks.get(&id)) {
            line.push(task);
            next = task.parent;
        }
        line
    }

    /// Identities from the root to the task.
    pub fn chain(&self, id: TaskId) -> Vec<SpiffeId> {
        self.lineage(id).into_iter().rev().map(|task| task.charter.spiffe_id.clone()).collect()
    }

    /// Where the task stands, with what is above it taken into account.
    pub fn standing(&self, id: TaskId) -> Result<(), Refused> {
        let line = self.lineage(id);
        let own = line.first().ok_or(Refused::NoSuchTask)?;
        if let Standing::Ended(ending) = own.standing {
            return Err(Refused::Ended(ending));
        }
        for task in &line {
            match task.standing {
                Standing::Pending => return Err(Refused::Pending),
                Standing::Ended(ending) => return Err(Refused::Ended(ending)),
                Standing::Active => {}
            }
        }
        Ok(())
    }

    /// The task, if the caller can act as it. Says nothing of where the task stands.
    ///
    /// # Errors
    /// [`Refused::NoSuchTask`], [`Refused::NotInTask`].
    pub fn of_caller(&self, id: TaskId, caller: &Caller) -> Result<&Task, Refused> {
        let task = self.tasks.get(&id).ok_or(Refused::NoSuchTask)?;
        if task.admits(caller) { Ok(task) } else { Err(Refused::NotInTask) }
    }

    /// The task, if the caller can act as it or as one above it.
    ///
    /// # Errors
    /// [`Refused::NoSuchTask`], [`Refused::NotInTask`].
    pub fn seen_by(&self, id: TaskId, caller: &Caller) -> Result<&Task, Refused> {
        let line = self.lineage(id);
        let task = line.first().copied().ok_or(Refused::NoSuchTask)?;
        if line.iter().any(|task| task.admits(caller)) { Ok(task) } else { Err(Refused::NotInTask) }
    }

    /// Whether one of these sits where a live task is held, or has begun one, wherever it sits now.
    pub fn seats_any(&self, callers: &[Caller]) -> bool {
        let live = |task: &&Task| !matches!(task.standing, Standing::Ended(_));
        let sits =
            |task: &Task, caller: &Caller| task.seat.process == caller.process || task.seat.admits(caller);
        let seated = |task: &Task| callers.iter().any(|caller| sits(task, caller));
        self.live > 0 && self.tasks.values().filter(live).any(seated)
    }

    /// Whether the task is the other one or below it.
    pub fn is_within(&self, id: TaskId, top: TaskId) -> bool {
        self.lineage(id).iter().any(|task| task.id == top)
    }

    /// Whether nobody but the processes of this task can act as it, and they as no other.
    pub fn is_isolated(&self, id: TaskId) -> bool {
        let Some(task) = self.tasks.get(&id) else { return false };
        match task.seat.scope {
            Scope::Process => false,
            Scope::Cgroup { id: cgroup, .. } => {
                let alone = |all: &BTreeSet<TaskId>| all.iter().all(|other| *other == id);
                self.by_cgroup.get(&cgroup).is_none_or(alone) && !self.beside.anybody(cgroup)
            }
        }
    }

    /// What an earlier request of that process with the same key made.
    ///
    /// # Errors
    /// [`Refused::Conflict`]: it was another request.
    pub fn repeated(&self, key: &Key) -> Result<Option<Repeat>, Refused> {
        match self.keys.get(&(key.process, key.text.clone())) {
            None => Ok(None),
            Some((kept, what)) if kept.digest == key.digest => Ok(Some(*what)),
            Some(_) => Err(Refused::Conflict),
        }
    }

    /// The task that an earlier request with the same key made.
    ///
    /// # Errors
    /// [`Refused::Conflict`]: it was another request.
    pub fn task_of_key(&self, key: Option<&Key>) -> Result<Option<TaskId>, Refused> {
        match key.map(|key| self.repeated(key)).transpose()?.flatten() {
            Some(Repeat::Task(id)) => Ok(Some(id)),
            Some(Repeat::Offer(_) | Repeat::NotAllowed(_)) => Err(Refused::Conflict),
            None => Ok(None),
        }
    }

    /// Begins a root. A repeated request begins nothing: the answer is the task that is there.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn begin(&mut self, new: NewTask, now: Instant) -> Result<&Task, Refused> {
        if let Some(known) = self.task_of_key(new.key.as_ref())? {
            return self.tasks.get(&known).ok_or(Refused::NoSuchTask);
        }
        let Bounds { life, default_life, .. } = self.bounds;
        let wanted = new.life.unwrap_or(default_life);
        if wanted > life {
            return Err(Refused::Limit(Limit::Life));
        }
        self.room_for(&new.charter, &new.seat)?;
        let times = Times { deadline: now + wanted, latest: now + life };
        Ok(self.insert(new, None, times, now))
    }

    /// Whether a task like that may be begun here, apart from what its parent says.
    pub fn room_for(&self, charter: &Charter, seat: &Seat) -> Result<(), Refused> {
        if charter.purpose.len() > self.bounds.purpose {
            return Err(Refused::Limit(Limit::Purpose));
        }
        if charter.grants.details().len() > self.bounds.details || charter.weight() > self.bounds.charter {
            return Err(Refused::Limit(Limit::Details));
        }
        let own = self.by_agent.get(&charter.spiffe_id).copied().unwrap_or_default();
        if own >= self.bounds.tasks_per_agent || self.live >= self.bounds.tasks {
            return Err(Refused::Limit(Limit::Tasks));
        }
        match &seat.scope {
            Scope::Cgroup { id, .. } if charter.require_isolated && !self.is_free(*id) => {
                Err(Refused::NotIsolated)
            }
            Scope::Cgroup { id, .. } if self.is_reserved(*id) => Err(Refused::NotIsolated),
            Scope::Process if charter.require_isolated => Err(Refused::NotIsolated),
            _ => Ok(()),
        }
    }

    /// From now on changes of the task are noted.
    pub fn watch(&mut self, id: TaskId) {
        self.watched.insert(id);
    }

    /// They are not any more.
    pub fn unwatch(&mut self, id: TaskId) {
        self.watched.remove(&id);
        self.changed.remove(&id);
    }

    /// From now on changes of every task are noted, new tasks and ends too.
    pub fn follow(&mut self) {
        self.followers += 1;
    }

    /// For one fewer.
    pub fn unfollow(&mut self) {
        self.followers = self.followers.saturating_sub(1);
    }

    /// The watched tasks that have changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<TaskId> {
        std::mem::take(&mut self.changed)
    }

    fn note_change(&mut self, id: TaskId) {
        if self.followers > 0 || self.watched.contains(&id) {
            self.changed.insert(id);
        }
    }

    /// The earliest moment at which [`Tree::on_timeout`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    fn insert(&mut self, new: NewTask, parent: Option<&Parent>, times: Times, now: Instant) -> &Task {
        let NewTask { id, charter, seat, pending, begun_at, key, .. } = new;
        let task = Task {
            id,
            root: parent.map_or(id, |parent| parent.root),
            parent: parent.map(|parent| parent.id),
            depth: parent.map_or(0, |parent| parent.depth + 1),
            charter,
            seat,
            standing: if pending { Standing::Pending } else { Standing::Active },
            begun: now,
            begun_at,
            deadline: times.deadline,
            latest: times.latest,
            last_call: now,
            used: Usage::default(),
            audiences: BTreeSet::new(),
            denials: 0,
            children: BTreeSet::new(),
            children_ever: 0,
            leases: BTreeSet::new(),
            ended_at: None,
            key,
        };
        if let Some(parent) = parent.and_then(|parent| self.tasks.get_mut(&parent.id)) {
            parent.children.insert(id);
            parent.children_ever += 1;
            parent.last_call = now;
            let above = parent.id;
            self.note_change(above);
        }
        self.index(task)
    }

    fn index(&mut self, task: Task) -> &Task {
        let id = task.id;
        self.live += 1;
        *self.by_agent.entry(task.charter.spiffe_id.clone()).or_default() += 1;
        self.by_holder.entry(task.seat.holder).or_default().insert(id);
        if let Scope::Cgroup { id: cgroup, .. } = task.seat.scope {
            self.by_cgroup.entry(cgroup).or_default().insert(id);
        }
        if let Some(key) = &task.key {
            self.keys.insert((key.process, key.text.clone()), (key.clone(), Repeat::Task(id)));
        }
        self.timers.set(Timer::Task(id), wakes_at(&task));
        self.note_change(id);
        self.tasks.entry(id).insert_entry(task).into_mut()
    }
}

/// What a new task needs to know of the one above it.
struct Parent {
    id: TaskId,
    root: TaskId,
    depth: u32,
}

#[derive(Clone, Copy)]
struct Times {
    deadline: Instant,
    latest: Instant,
}
