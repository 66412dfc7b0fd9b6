//! Cgroups that stand still by an operator's order, and until when: each until nothing that concerns it is frozen any
//! more. Written down beside the freezes before the kernel is told, because their processes stand still over a restart of
//! the agent, which ends the tasks by which it could find them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use mayfly_attestors::{CgroupScope, Process};
use serde::{Deserialize, Serialize};

use super::{Shared, Workloads, lock};
use crate::files::write_atomic;
use crate::policy::Frozen;

/// A cgroup, by its id and its path.
pub(super) type Place = (u64, String);

/// Those that stand still, and for which orders. Pure.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Standstill(BTreeMap<Place, BTreeSet<String>>);

impl Standstill {
    /// Whether the order is new for it.
    fn add(&mut self, place: &Place, what: &Frozen) -> bool {
        self.0.entry(place.clone()).or_default().insert(what.to_string())
    }

    /// Adds an order for some, writes all of it down once, and then has the kernel do it, one by one. What each was to stand
    /// still for before it goes on to. How it went for each.
    fn order(
        &mut self,
        places: &BTreeSet<Place>,
        what: &Frozen,
        store: impl FnOnce(&Self) -> io::Result<()>,
        mut still: impl FnMut(&Place) -> io::Result<()>,
    ) -> Vec<io::Result<()>> {
        let new: Vec<bool> = places.iter().map(|place| self.add(place, what)).collect();
        let stored = store(self).map_err(|error| (error.kind(), error.to_string()));
        let mut done = Vec::with_capacity(places.len());
        for (place, is_new) in places.iter().zip(new) {
            let one = match &stored {
                Ok(()) => still(place),
                Err((kind, why)) => Err(io::Error::new(*kind, why.clone())),
            };
            if one.is_err() && is_new {
                self.remove(place, what);
            }
            done.push(one);
        }
        done
    }

    fn remove(&mut self, place: &Place, what: &Frozen) {
        if let Some(orders) = self.0.get_mut(place) {
            orders.remove(&what.to_string());
            if orders.is_empty() {
                self.0.remove(place);
            }
        }
    }

    /// Those that may go on now that this is thawed.
    fn thaw(&mut self, order: &str) -> Vec<Place> {
        let freed = |orders: &BTreeSet<String>| orders.len() == 1 && orders.contains(order);
        let freed: Vec<Place> =
            self.0.iter().filter(|(_, orders)| freed(orders)).map(|(place, _)| place.clone()).collect();
        self.0.retain(|_, orders| {
            orders.remove(order);
            !orders.is_empty()
        });
        freed
    }

    /// Orders by which something stands still though they are not in force.
    fn strays(&self, is_in_force: impl Fn(&str) -> bool) -> BTreeSet<String> {
        self.0.values().flatten().filter(|order| !is_in_force(order)).cloned().collect()
    }

    /// Lets those go on that only stood still for that order; whether there were any that stood still for it.
    fn let_go(&mut self, order: &str, mut free: impl FnMut(&Place) -> io::Result<()>) -> bool {
        let before = self.clone();
        for place in self.thaw(order) {
            match free(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let path = &place.1;
                    tracing::error!(
                        %error, path,
                        "a cgroup that was thawed stands still: thaw it again, or write 0 to its `cgroup.freeze`"
                    );
                    self.0.entry(place).or_default().insert(order.to_owned());
                }
                _ => {}
            }
        }
        before.0.values().any(|orders| orders.contains(order))
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    v: u32,
    /// Ids of cgroups are this boot's.
    boot_id: String,
    still: Vec<Row>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: u64,
    path: String,
    orders: BTreeSet<String>,
}

/// What an earlier run of this boot left.
fn load(path: &Path, boot_id: &str) -> io::Result<Standstill> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Standstill::default()),
        Err(error) => return Err(error),
    };
    let document: Document = serde_json::from_slice(&bytes)?;
    if document.v != VERSION {
        return Err(io::Error::other("it is of another version"));
    }
    let still = document.still.into_iter().filter(|_| document.boot_id == boot_id);
    Ok(Standstill(still.map(|row| ((row.id, row.path), row.orders)).collect()))
}

fn store(path: &Path, boot_id: &str, still: &Standstill) -> io::Result<()> {
    let row = |((id, path), orders): (&Place, &BTreeSet<String>)| Row {
        id: *id,
        path: path.clone(),
        orders: orders.clone(),
    };
    let still = still.0.iter().map(row).collect();
    let document = Document { v: VERSION, boot_id: boot_id.to_owned(), still };
    write_atomic(path, 0o600, &serde_json::to_vec(&document)?)
}

/// How many stand still now, and how many should and do not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Stilled {
    pub(super) still: usize,
    pub(super) not_still: usize,
}

impl Workloads {
    /// Makes cgroups stand still, as long as that is frozen. Never our own, nor that of whoever orders it.
    pub(super) fn make_still(&self, what: &Frozen, places: &BTreeSet<Place>, by: u32) -> Stilled {
        let mut stilled = Stilled::default();
        if places.is_empty() {
            return stilled;
        }
        let mut all = lock(&self.0.standstill);
        // Whoever thaws takes the freeze away first and then comes for this lock: either he finds these, or we see that.
        if !self.freezes().iter().any(|(frozen, _)| frozen == what) {
            return Stilled { not_still: places.len(), ..stilled };
        }
        let done = all.order(
            places,
            what,
            |all| self.0.store_standstill(all),
            |place| self.0.scope_apart_from(place, by)?.freeze(true),
        );
        for (place, done) in places.iter().zip(done) {
            match done {
                Ok(()) => stilled.still += 1,
                Err(error) => {
                    tracing::error!(%error, path = place.1, "a cgroup of a frozen task does not stand still");
                    stilled.not_still += 1;
                }
            }
        }
        if stilled.not_still > 0
            && let Err(error) = self.0.store_standstill(&all)
        {
            tracing::error!(%error, "which cgroups stand still cannot be written down");
        }
        stilled
    }

    /// Lets those go on that only stood still for that.
    /// Whether anything stood still for it.
    pub(super) fn let_go_on(&self, what: &Frozen) -> bool {
        self.let_go_on_for(&what.to_string())
    }

    /// What stands still for orders that are not in force goes on: a crash, or a disk that could not be written, came
    /// between the one record and the other.
    pub(super) fn let_strays_go_on(&self) {
        let in_force: BTreeSet<String> =
            self.freezes().iter().map(|(frozen, _)| frozen.to_string()).collect();
        let strays = lock(&self.0.standstill).strays(|order| in_force.contains(order));
        for order in strays {
            tracing::warn!(order, "cgroups stood still for what is not frozen any more: they go on");
            self.let_go_on_for(&order);
        }
    }

    fn let_go_on_for(&self, order: &str) -> bool {
        let mut all = lock(&self.0.standstill);
        let before = all.clone();
        let found = all.let_go(order, |(id, path)| {
            let scope = self.0.parts.attestors.scopes().again(path, *id);
            scope.map_err(mayfly_attestors::ScopeError::into_io)?.freeze(false)
        });
        if *all != before
            && let Err(error) = self.0.store_standstill(&all)
        {
            tracing::error!(%error, "which cgroups stand still cannot be written down");
        }
        found
    }
}

impl Shared {
    /// The cgroup, if neither we nor the process of that number are in it or below it.
    pub(super) fn scope_apart_from(&self, (id, path): &Place, by: u32) -> io::Result<CgroupScope> {
        let scope = self.parts.attestors.scopes().again(path, *id);
        let scope = scope.map_err(mayfly_attestors::ScopeError::into_io)?;
        for pid in [std::process::id(), by] {
            let inside = match Process::of_pid(&self.parts.host, pid) {
                Ok(process) => scope.holds(&process),
                // Who has gone is nowhere.
                Err(mayfly_attestors::PinError::Exited) => false,
                Err(_) => true,
            };
            if inside {
                return Err(io::Error::other("the agent, or whoever gave the order, is in it"));
            }
        }
        Ok(scope)
    }

    fn store_standstill(&self, still: &Standstill) -> io::Result<()> {
        match &self.settings.freezes {
            Some(path) => store(&beside(path), &self.parts.host.boot_id().to_string(), still),
            None => Ok(()),
        }
    }
}

/// What was left of the run before. A file that cannot be read makes nobody go on: it is said, and thawed by hand.
pub(super) fn read_back(freezes: Option<&Path>, boot_id: &str) -> Standstill {
    let Some(path) = freezes.map(beside) else { return Standstill::default() };
    load(&path, boot_id).unwrap_or_else(|error| {
        let path = path.display();
        tracing::error!(%error, %path, "which cgroups stand still cannot be read: a thaw will not let them go on");
        Standstill::default()
    })
}

fn beside(freezes: &Path) -> PathBuf {
    freezes.with_file_name("standstill.json")
}

const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(n: u8) -> Frozen {
        match n {
            0 => Frozen::All,
            n => Frozen::Task(format!("tsk_{n}")),
        }
    }

    fn cgroup(n: u8) -> Place {
        (n.into(), format!("/t/{n}"))
    }

    proptest! {
        #[test]
        fn a_cgroup_stands_still_until_the_last_order_for_it_is_thawed(
            steps in proptest::collection::vec((any::<bool>(), 0..4u8, 0..4u8), 0..40)
        ) {
            let (mut still, mut model) = (Standstill::default(), BTreeSet::new());
            for (freeze, place, what) in steps {
                if freeze {
                    still.add(&cgroup(place), &order(what));
                    model.insert((place, what));
                } else {
                    let before: BTreeSet<u8> = model.iter().map(|(place, _)| *place).collect();
                    model.retain(|(_, order)| *order != what);
                    let after: BTreeSet<u8> = model.iter().map(|(place, _)| *place).collect();
                    let freed: Vec<Place> = before.difference(&after).map(|n| cgroup(*n)).collect();
                    prop_assert_eq!(still.thaw(&order(what).to_string()), freed);
                }
                let all: BTreeSet<u8> = model.iter().map(|(place, _)| *place).collect();
                prop_assert_eq!(still.0.len(), all.len());
            }
        }
    }

    /// Between the two records: a crash, or a disk that is full.
    #[test]
    fn an_order_that_is_not_in_force_is_a_stray() {
        let mut still = Standstill::default();
        still.add(&cgroup(1), &order(0));
        still.add(&cgroup(1), &order(1));
        still.add(&cgroup(2), &order(2));
        let in_force = order(1).to_string();
        let strays = still.strays(|order| order == in_force);
        assert_eq!(strays, [order(0), order(2)].map(|order| order.to_string()).into());
        let mut freed = Vec::new();
        for stray in strays {
            assert!(still.let_go(&stray, |place| {
                freed.push(place.clone());
                Ok(())
            }));
        }
        assert_eq!(freed, [cgroup(2)], "the first still stands still for what is in force");
        assert!(still.strays(|order| order == in_force).is_empty());
        assert!(!still.let_go(&order(2).to_string(), |_| Ok(())));
    }

    #[test]
    fn a_second_order_that_fails_takes_nothing_from_the_first() {
        let mut still = Standstill::default();
        let stores = |_: &Standstill| Ok(());
        let fails = |_: &Standstill| Err(io::ErrorKind::StorageFull.into());
        let refuses = |_: &Place| Err(io::ErrorKind::PermissionDenied.into());
        let (one, both) = ([cgroup(1)].into(), [cgroup(1), cgroup(2)].into());
        assert!(still.order(&one, &order(1), stores, |_| Ok(())).iter().all(Result::is_ok));
        let before = still.clone();
        for what in [order(1), order(2)] {
            assert!(still.order(&both, &what, fails, |_| Ok(())).iter().all(Result::is_err));
            assert_eq!(still, before, "a thaw must find it");
            assert!(still.order(&both, &what, stores, refuses).iter().all(Result::is_err));
            assert_eq!(still, before);
        }
    }

    /// A freeze of everything is no time for one `fsync` a cgroup.
    #[test]
    fn all_are_written_down_once_before_the_first_stands_still() {
        let (mut still, places): (_, BTreeSet<Place>) =
            (Standstill::default(), (0..24).map(cgroup).collect());
        let (log, expected) = (std::cell::RefCell::new(Vec::new()), std::iter::once(24).chain(0..24));
        let store = |all: &Standstill| {
            log.borrow_mut().push(u64::try_from(all.0.len()).unwrap());
            Ok(())
        };
        let done = still.order(&places, &order(0), store, |place| {
            log.borrow_mut().push(place.0);
            if place.0 == 7 { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
        });
        assert_eq!(*log.borrow(), expected.collect::<Vec<u64>>());
        assert_eq!(done.iter().filter(|one| one.is_err()).count(), 1);
        assert!(!still.0.contains_key(&cgroup(7)) && still.0.len() == 23);
    }

    #[test]
    fn what_the_kernel_did_not_let_go_on_a_second_thaw_does() {
        let mut still = Standstill::default();
        still.add(&cgroup(1), &order(1));
        still.add(&cgroup(2), &order(1));
        let what = order(1).to_string();
        assert!(still.let_go(&what, |place| match place {
            (1, _) => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }));
        let mut freed = Vec::new();
        assert!(still.let_go(&what, |place| {
            freed.push(place.clone());
            Ok(())
        }));
        assert_eq!(freed, [cgroup(1)], "one that is gone is not asked again");
        assert_eq!(still, Standstill::default());
    }

    #[test]
    fn what_stands_still_is_known_after_a_restart_and_not_after_a_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("standstill.json");
        assert_eq!(load(&path, "b1").unwrap(), Standstill::default());
        let mut still = Standstill::default();
        still.add(&cgroup(1), &order(0));
        still.add(&cgroup(1), &order(2));
        still.remove(&cgroup(1), &order(3));
        store(&path, "b1", &still).unwrap();
        assert_eq!(load(&path, "b1").unwrap(), still);
        assert_eq!(load(&path, "b2").unwrap(), Standstill::default(), "ids of another boot");
        for wrong in ["", "{}", r#"{"v":2,"boot_id":"b1","still":[]}"#] {
            std::fs::write(&path, wrong).unwrap();
            assert!(load(&path, "b1").is_err(), "{wrong}");
        }
    }
}
