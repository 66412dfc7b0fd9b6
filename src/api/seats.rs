//! How many connections there may be: in all, for each uid and for each cgroup, and how fast one uid may make
//! them. A uid costs nothing to have (a user namespace brings 65,536 of them), hence the count by cgroup. Where
//! containers are told apart each counts by itself, as it does for attestations: a node may hold a hundred pods of one
//! uid, each with a stream that stays open.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::limits::Payer;
use super::wire::budget::{Bucket, Rate};

/// Limits on open connections to one socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnectionLimits {
    /// In all.
    pub total: usize,
    /// Of one uid, or of one uid in one container.
    pub per_uid: usize,
    /// Of the processes in one cgroup, where the kernel tells which that is.
    pub per_cgroup: usize,
    /// Of `total`, so many are for uid 0 alone, so that a flood does not lock the administrator out.
    pub reserved_for_root: usize,
    /// New connections of one uid. Being refused costs microseconds, being pinned and served far more.
    pub rate: Rate,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            total: 4_096,
            per_uid: 64,
            per_cgroup: 256,
            reserved_for_root: 64,
            rate: Rate { per_second: 500, burst: 1_000 },
        }
    }
}

/// Which limit a connection would exceed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// No more connections at all, or only root's are left.
    Total,
    /// No more for this uid, or for it in this container.
    Uid,
    /// No more for this cgroup.
    Cgroup,
    /// Too fast for this uid, or too many uids were busy lately.
    Rate,
}

/// The count of open connections.
#[derive(Clone, Debug)]
pub struct Seats(Arc<Shared>);

impl Seats {
    /// No connections. `on_free` runs whenever one ends; it must not block.
    pub fn new(limits: ConnectionLimits, on_free: Box<dyn Fn() + Send + Sync>) -> Self {
        Self(Arc::new(Shared { limits, taken: Mutex::default(), on_free }))
    }

    /// Counts one connection of `uid` in the whole, until the seat is dropped.
    ///
    /// # Errors
    /// When there are too many, or they come too fast.
    pub fn take(&self, uid: u32, now: Instant) -> Result<Seat, Full> {
        let limits = self.0.limits;
        let reserved = if uid == 0 { 0 } else { limits.reserved_for_root };
        let mut taken = self.0.lock();
        if taken.total + reserved >= limits.total {
            return Err(Full::Total);
        }
        if !taken.may_come(uid, limits.rate, now) {
            return Err(Full::Rate);
        }
        taken.total += 1;
        Ok(Seat { shared: Arc::clone(&self.0), payer: None, cgroup: None })
    }

    /// Open connections.
    pub fn taken(&self) -> usize {
        self.0.lock().total
    }
}

/// One open connection; not counted any more when dropped.
#[derive(Debug)]
#[must_use]
pub struct Seat {
    shared: Arc<Shared>,
    payer: Option<Payer>,
    cgroup: Option<u64>,
}

impl Seat {
    /// Counts the connection for who made it.
    ///
    /// # Errors
    /// When that limit is reached; the connection is then to be dropped.
    pub fn of(&mut self, payer: Payer) -> Result<(), Full> {
        if self.payer.is_some() {
            return Ok(());
        }
        if !add(&mut self.shared.lock().by_payer, payer, self.shared.limits.per_uid) {
            return Err(Full::Uid);
        }
        self.payer = Some(payer);
        Ok(())
    }

    /// Counts the connection in its cgroup too.
    ///
    /// # Errors
    /// When that limit is reached; the connection is then to be dropped.
    pub fn in_cgroup(&mut self, id: u64) -> Result<(), Full> {
        if self.cgroup.is_some() {
            return Ok(());
        }
        if !add(&mut self.shared.lock().by_cgroup, id, self.shared.limits.per_cgroup) {
            return Err(Full::Cgroup);
        }
        self.cgroup = Some(id);
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.shared.lock();
        taken.total = taken.total.saturating_sub(1);
        if let Some(payer) = self.payer {
            subtract(&mut taken.by_payer, &payer);
        }
        if let Some(id) = self.cgroup {
            subtract(&mut taken.by_cgroup, &id);
        }
        drop(taken);
        (self.shared.on_free)();
    }
}

struct Shared {
    limits: ConnectionLimits,
    taken: Mutex<Taken>,
    on_free: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seats").field("limits", &self.limits).field("taken", &self.lock().total).finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys with no connection are not kept, so there are never more keys than connections.
#[derive(Default)]
struct Taken {
    total: usize,
    by_payer: HashMap<Payer, usize>,
    by_cgroup: HashMap<u64, usize>,
    rates: HashMap<u32, Bucket>,
}

impl Taken {
    /// Charges the uid's bucket. Buckets that have filled up again are forgotten when there are too many.
    fn may_come(&mut self, uid: u32, rate: Rate, now: Instant) -> bool {
        if !self.rates.contains_key(&uid) && self.rates.len() >= RATED_UIDS {
            self.rates.retain(|_, bucket| !bucket.is_full(now));
            if self.rates.len() >= RATED_UIDS {
                return false;
            }
        }
        self.rates.entry(uid).or_insert_with(|| Bucket::new(rate, now)).take(1, now)
    }
}

fn add<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, limit: usize) -> bool {
    if limit == 0 {
        return false;
    }
    let count = counts.entry(key).or_default();
    if *count >= limit {
        return false;
    }
    *count += 1;
    true
}

fn subtract<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

const RATED_UIDS: usize = 8_192;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use mayfly_attestors::origin::ContainerId;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any starting point will do")]
    fn start() -> Instant {
        Instant::now()
    }

    fn limits(total: usize, per_uid: usize, per_cgroup: usize, reserved_for_root: usize) -> ConnectionLimits {
        ConnectionLimits { total, per_uid, per_cgroup, reserved_for_root, ..ConnectionLimits::default() }
    }

    #[test]
    fn a_uid_that_connects_too_fast_waits_and_another_does_not() {
        let (seats, start) = (seats(limits(9, 9, 9, 0)), start());
        for _ in 0..1_000 {
            assert!(seats.take(1000, start).is_ok());
        }
        assert_eq!(seats.take(1000, start).err(), Some(Full::Rate));
        assert!(seats.take(1001, start).is_ok());
        assert!(seats.take(1000, start + Duration::from_millis(2)).is_ok());
    }

    #[test]
    fn uids_are_forgotten_when_they_have_been_quiet() {
        let (seats, start) = (seats(limits(9, 9, 9, 0)), start());
        for uid in 0..u32::try_from(RATED_UIDS).unwrap() {
            assert!(seats.take(uid, start).is_ok());
        }
        assert_eq!(seats.take(99_999, start).err(), Some(Full::Rate));
        assert!(seats.take(99_999, start + Duration::from_millis(3)).is_ok());
        assert_eq!(seats.0.lock().rates.len(), 1);
    }

    fn seats(limits: ConnectionLimits) -> Seats {
        Seats::new(limits, Box::new(|| ()))
    }

    fn payer(uid: u32, container: Option<u8>) -> Payer {
        let id = |n: u8| ContainerId::parse(format!("{n:02x}").repeat(32).as_bytes()).unwrap();
        Payer { uid, container: container.map(id) }
    }

    /// 110 pods of one uid on one node.
    #[test]
    fn containers_of_one_uid_do_not_share_its_limit() {
        let seats = seats(limits(999, 2, 9, 0));
        let mut held = Vec::new();
        for container in std::iter::once(None).chain((0..110).map(Some)) {
            for _ in 0..2 {
                let mut seat = seats.take(1000, start()).unwrap();
                assert_eq!(seat.of(payer(1000, container)), Ok(()));
                held.push(seat);
            }
            let mut third = seats.take(1000, start()).unwrap();
            assert_eq!(third.of(payer(1000, container)), Err(Full::Uid));
            assert_eq!(third.of(payer(1001, container)), Ok(()), "another user of it");
        }
        held.clear();
        assert!(seats.0.lock().by_payer.is_empty());
    }

    #[test]
    fn the_last_seats_are_roots() {
        let seats = seats(limits(5, 9, 9, 2));
        let mut held: Vec<_> = (0..3).map(|_| seats.take(1000, start()).unwrap()).collect();
        assert_eq!(seats.take(1001, start()).err(), Some(Full::Total));
        held.extend([seats.take(0, start()).unwrap(), seats.take(0, start()).unwrap()]);
        assert_eq!(seats.take(0, start()).err(), Some(Full::Total));
        drop(held.remove(0));
        assert!(seats.take(0, start()).is_ok());
    }

    #[test]
    fn many_uids_of_one_cgroup_share_its_limit() {
        let seats = seats(limits(100, 2, 3, 0));
        let mut held = Vec::new();
        for uid in 1000..1003 {
            let mut seat = seats.take(uid, start()).unwrap();
            assert_eq!(seat.in_cgroup(7), Ok(()));
            held.push(seat);
        }
        let mut fourth = seats.take(1003, start()).unwrap();
        assert_eq!(fourth.in_cgroup(7), Err(Full::Cgroup));
        assert_eq!(fourth.in_cgroup(8), Ok(()));
        held.clear();
        assert_eq!(seats.taken(), 1);
    }

    proptest! {
        #[test]
        fn counts_match_the_seats_held(
            steps in prop::collection::vec((0..6_u32, prop::option::of(0..2_u8), 0..3_u64, any::<bool>()), 0..300)
        ) {
            let seats = seats(limits(12, 4, 6, 3));
            let mut held: Vec<Seat> = Vec::new();
            for (uid, container, cgroup, leaves) in steps {
                let payer = payer(uid, container);
                if leaves && !held.is_empty() {
                    drop(held.swap_remove(uid as usize % held.len()));
                } else if let Ok(mut seat) = seats.take(uid, start())
                    && seat.of(payer).is_ok()
                    && seat.in_cgroup(cgroup).is_ok()
                {
                    held.push(seat);
                }
                let taken = seats.0.lock();
                prop_assert_eq!(taken.total, held.len());
                let is_roots = |seat: &&Seat| seat.payer.is_some_and(|payer| payer.uid == 0);
                prop_assert!(held.iter().filter(|seat| !is_roots(seat)).count() <= 9);
                prop_assert_eq!(taken.by_payer.values().sum::<usize>(), held.len());
                for (payer, count) in &taken.by_payer {
                    prop_assert_eq!(held.iter().filter(|seat| seat.payer == Some(*payer)).count(), *count);
                    prop_assert!((1..=4).contains(count));
                }
                for (cgroup, count) in &taken.by_cgroup {
                    prop_assert_eq!(held.iter().filter(|seat| seat.cgroup == Some(*cgroup)).count(), *count);
                    prop_assert!((1..=6).contains(count));
                }
            }
        }
    }
}
