//! The set of revoked, unexpired leases. Pure: no clock, no I/O. An entry is never evicted early; it leaves
//! when nobody can accept the credential any more *and* every verifier had a chance to hear of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::authority::RevokedSerial;
use crate::id::LeaseId;
use crate::ledger::Reason;

/// One revoked lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Revoked {
    /// When the credential expires by itself, Unix seconds.
    pub not_after: u64,
    /// When it was revoked, Unix seconds.
    pub at: u64,
    /// Why.
    pub reason: Reason,
}

/// Revoked leases of one kind, in memory, complete.
#[derive(Clone, Debug)]
pub struct RevokedSet {
    entries: BTreeMap<LeaseId, (Revoked, u64)>,
    by_expiry: BinaryHeap<Reverse<(u64, LeaseId)>>,
    /// Due to leave, but not published yet.
    held: Vec<LeaseId>,
    /// Counts additions; `published` is the revision that verifiers have.
    revision: u64,
    published: u64,
    needs_publishing: bool,
}

impl RevokedSet {
    /// For X.509 serials: an entry stays at least until a CRL that names it was published.
    pub fn for_certificates() -> Self {
        Self {
            entries: BTreeMap::new(),
            by_expiry: BinaryHeap::new(),
            held: Vec::new(),
            revision: 0,
            published: 0,
            needs_publishing: true,
        }
    }

    /// For `jti`s: whoever asks is answered from here, nothing is published.
    pub fn for_tokens() -> Self {
        Self { needs_publishing: false, ..Self::for_certificates() }
    }

    /// Takes a lease in; answers whether it was new. A lease that is in keeps its first time and reason.
    pub fn add(&mut self, lease: LeaseId, revoked: Revoked) -> bool {
        if self.entries.contains_key(&lease) {
            return false;
        }
        self.revision += 1;
        self.entries.insert(lease, (revoked, self.revision));
        let leaves = revoked.not_after.saturating_add(KEEP_AFTER_EXPIRY_SECONDS);
        self.by_expiry.push(Reverse((leaves, lease)));
        true
    }

    /// Whether the lease is revoked.
    pub fn contains(&self, lease: LeaseId) -> bool {
        self.entries.contains_key(&lease)
    }

    /// What is known about a revoked lease.
    pub fn get(&self, lease: LeaseId) -> Option<&Revoked> {
        self.entries.get(&lease).map(|(revoked, _)| revoked)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, by lease.
    pub fn entries(&self) -> impl Iterator<Item = (LeaseId, &Revoked)> {
        self.entries.iter().map(|(lease, (revoked, _))| (*lease, revoked))
    }

    /// All entries as a CRL wants them, ascending by serial.
    pub fn serials(&self) -> Vec<RevokedSerial> {
        self.entries().map(|(serial, revoked)| RevokedSerial { serial, at: revoked.at }).collect()
    }

    /// Counts additions. Read it together with [`Self::serials`] and give it to [`Self::mark_published`].
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A CRL made at that revision is out: entries up to it may leave when their time comes.
    pub fn mark_published(&mut self, revision: u64) {
        self.published = self.published.max(revision.min(self.revision));
        for lease in std::mem::take(&mut self.held) {
            self.by_expiry.push(Reverse((0, lease)));
        }
    }

    /// Removes what may leave at `now` (Unix seconds) and names it.
    pub fn expire(&mut self, now: u64) -> Vec<LeaseId> {
        let mut gone = Vec::new();
        while let Some(&Reverse((leaves, lease))) = self.by_expiry.peek() {
            if leaves > now {
                break;
            }
            self.by_expiry.pop();
            let revision = self.entries.get(&lease).map_or(0, |(_, revision)| *revision);
            if self.needs_publishing && revision > self.published {
                self.held.push(lease);
            } else if self.entries.remove(&lease).is_some() {
                gone.push(lease);
            }
        }
        gone
    }
}

/// How long an entry stays after the credential has expired, for verifiers whose clock is late.
pub const KEEP_AFTER_EXPIRY_SECONDS: u64 = 300;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn lease(n: u8) -> LeaseId {
        LeaseId::from_random([n; 16])
    }

    fn until(not_after: u64) -> Revoked {
        Revoked { not_after, at: 50, reason: Reason::Exited }
    }

    #[test]
    fn an_entry_leaves_five_minutes_after_expiry() {
        let mut set = RevokedSet::for_tokens();
        assert!(set.add(lease(1), until(100)));
        assert!(!set.add(lease(1), Revoked { reason: Reason::Operator, ..until(900) }), "the first stands");
        assert_eq!(set.expire(399), []);
        assert!(set.contains(lease(1)));
        assert_eq!(set.expire(400), [lease(1)]);
        assert!(set.is_empty());
    }

    #[test]
    fn an_expired_entry_that_no_crl_named_stays() {
        let mut set = RevokedSet::for_certificates();
        set.add(lease(1), until(100));
        let revision = set.revision();
        set.add(lease(2), until(100));
        assert_eq!(set.expire(10_000), []);
        set.mark_published(revision);
        assert!(set.revision > set.published);
        assert_eq!(set.expire(10_000), [lease(1)]);
        set.mark_published(set.revision());
        assert_eq!(set.expire(10_000), [lease(2)]);
        assert_eq!(set.revision, set.published);
    }

    #[test]
    fn serials_ascend() {
        let mut set = RevokedSet::for_certificates();
        for n in [9, 3, 7] {
            set.add(lease(n), until(100));
        }
        let serials = set.serials();
        assert!(serials.is_sorted());
        assert_eq!((serials.len(), set.len()), (3, 3));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add { n: u8, ttl: u64 },
        Publish,
        PublishOld,
        Advance(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (any::<u8>(), 0_u64..900).prop_map(|(n, ttl)| Op::Add { n, ttl }),
            Just(Op::Publish),
            Just(Op::PublishOld),
            (0_u64..700).prop_map(Op::Advance),
        ]
    }

    proptest! {
        /// The model: every lease ever added, with its expiry and whether a CRL named it.
        #[test]
        fn nothing_leaves_early_or_unpublished_and_everything_leaves(ops in proptest::collection::vec(op(), 0..80)) {
            let (mut now, mut set) = (1_000_u64, RevokedSet::for_certificates());
            let mut model: BTreeMap<LeaseId, (u64, bool)> = BTreeMap::new();
            let mut snapshot = (0, BTreeSet::new());
            for op in ops {
                match op {
                    Op::Add { n, ttl } => {
                        let new = set.add(lease(n), until(now + ttl));
                        prop_assert_eq!(new, !model.contains_key(&lease(n)));
                        model.entry(lease(n)).or_insert((now + ttl, false));
                    }
                    Op::Publish | Op::PublishOld => {
                        if matches!(op, Op::Publish) {
                            snapshot = (set.revision(), set.entries().map(|(lease, _)| lease).collect());
                        }
                        set.mark_published(snapshot.0);
                        for (lease, (_, published)) in &mut model {
                            *published |= snapshot.1.contains(lease);
                        }
                    }
                    Op::Advance(by) => now += by,
                }
                for gone in set.expire(now) {
                    let (not_after, published) = model.remove(&gone).unwrap();
                    prop_assert!(published && not_after + KEEP_AFTER_EXPIRY_SECONDS <= now);
                }
                prop_assert!(model.keys().all(|lease| set.contains(*lease)));
                prop_assert_eq!(model.len(), set.len());
            }
            set.mark_published(set.revision());
            set.expire(u64::MAX);
            prop_assert!(set.is_empty() && set.by_expiry.is_empty());
        }
    }
}
