//! Token status lists: for each hour in which tokens end, two bits for each of them: valid (0), taken back (1), or
//! suspended (2), which is over one day or ends in one of the others. What was taken back stays so, suspended or not.
//! Pure; the random numbers and the time are passed in. Format: draft-ietf-oauth-status-list §4 and §7.1.
//!
//! A place is random, so that it tells nothing about when or to whom a token was given, and never used twice in
//! its list. A list grows before it is half full, and is dropped when all its tokens have expired.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::ledger::StatusIndex;

/// All lists in force.
#[derive(Clone, Debug, Default)]
pub struct StatusLists(BTreeMap<u64, List>);

#[derive(Clone, Debug, Default)]
struct List {
    used: Bits,
    revoked: Bits,
    suspended: BTreeSet<u32>,
    count: usize,
    /// In tokens, a power of two.
    capacity: u32,
    /// Moves when the published form does.
    revision: u64,
}

/// Bit 0 is the least significant one of the first octet.
#[derive(Clone, Debug, Default)]
struct Bits(Vec<u8>);

impl StatusLists {
    /// A place for a token that ends at `not_after` (Unix seconds). `None` when its list is full.
    pub fn take(&mut self, not_after: u64, mut random: impl FnMut() -> u32) -> Option<StatusIndex> {
        let list = of(not_after);
        let entry = self.0.entry(list).or_default();
        if !entry.make_room() {
            return None;
        }
        // At most half is taken, so a free one is found soon; if chance is no chance, by looking.
        let free = (0..TRIES).map(|_| random() & (entry.capacity - 1)).find(|index| !entry.used.get(*index));
        let index = free.or_else(|| (0..entry.capacity).find(|index| !entry.used.get(*index)))?;
        entry.used.set(index);
        entry.count += 1;
        Some(StatusIndex { list, index })
    }

    /// Takes in a place given by an earlier run.
    pub fn restore(&mut self, place: StatusIndex, revoked: bool) {
        let entry = self.0.entry(place.list).or_default();
        if place.index >= MAX_CAPACITY {
            return;
        }
        while entry.capacity <= place.index {
            entry.grow();
        }
        if !entry.used.get(place.index) {
            entry.used.set(place.index);
            entry.count += 1;
        }
        if revoked {
            self.revoke(place);
        }
    }

    /// The token at that place was taken back. One of no list in force is passed over: it has expired.
    pub fn revoke(&mut self, place: StatusIndex) {
        if let Some(entry) = self.0.get_mut(&place.list)
            && place.index < entry.capacity
            && !entry.revoked.get(place.index)
        {
            entry.revoked.set(place.index);
            entry.revision += 1;
        }
    }

    /// These tokens are suspended from now on, and no others.
    pub fn suspend(&mut self, places: impl IntoIterator<Item = StatusIndex>) {
        let mut wanted: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for place in places {
            wanted.entry(place.list).or_default().insert(place.index);
        }
        for (list, entry) in &mut self.0 {
            let suspended = wanted.remove(list).unwrap_or_default();
            if suspended != entry.suspended {
                entry.suspended = suspended;
                entry.revision += 1;
            }
        }
    }

    /// Drops the lists all of whose tokens have expired at `now` (Unix seconds).
    pub fn expire(&mut self, now: u64) {
        self.0.retain(|list, _| ends(*list) > now);
    }

    /// Which form of a list is in force; `None` when there is no such list.
    pub fn revision(&self, list: u64) -> Option<u64> {
        self.0.get(&list).map(|entry| entry.revision)
    }

    /// The octets of a list, compressed with zlib, and their revision.
    pub fn compressed(&self, list: u64) -> Option<(Vec<u8>, u64)> {
        let entry = self.0.get(&list)?;
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&entry.octets()?).ok()?;
        Some((encoder.finish().ok()?, entry.revision))
    }
}

impl List {
    /// Whether one more place may be taken.
    fn make_room(&mut self) -> bool {
        let capacity = usize::try_from(self.capacity).unwrap_or(usize::MAX);
        if self.count * 2 >= capacity && self.capacity < MAX_CAPACITY {
            self.grow();
        }
        self.count < usize::try_from(self.capacity).unwrap_or(usize::MAX)
    }

    /// Four tokens an octet, the first in its two least significant bits (§4.1).
    fn octets(&self) -> Option<Vec<u8>> {
        let mut octets = vec![0; usize::try_from(self.capacity / PER_OCTET).ok()?];
        let suspended = self.suspended.iter().filter(|index| !self.revoked.get(**index));
        let suspended = suspended.map(|index| (*index, SUSPENDED));
        let revoked = self.revoked.all().map(|index| (index, INVALID));
        for (index, status) in suspended.chain(revoked) {
            if let Some(octet) = octets.get_mut(usize::try_from(index / PER_OCTET).ok()?) {
                *octet |= status << (index % PER_OCTET * BITS);
            }
        }
        Some(octets)
    }

    fn grow(&mut self) {
        self.capacity = (self.capacity * 2).max(MIN_CAPACITY);
        self.revision += 1;
    }
}

impl Bits {
    fn get(&self, index: u32) -> bool {
        let (octet, bit) = Self::place(index);
        self.0.get(octet).is_some_and(|octet| octet & bit != 0)
    }

    fn set(&mut self, index: u32) {
        let (octet, bit) = Self::place(index);
        if self.0.len() <= octet {
            self.0.resize(octet + 1, 0);
        }
        if let Some(octet) = self.0.get_mut(octet) {
            *octet |= bit;
        }
    }

    /// Every one that is set.
    fn all(&self) -> impl Iterator<Item = u32> {
        let octets = (0_u32..).zip(&self.0).filter(|(_, octet)| **octet != 0);
        octets.flat_map(|(at, octet)| {
            (0..8).filter(move |bit| octet & (1 << bit) != 0).map(move |bit| at * 8 + bit)
        })
    }

    fn place(index: u32) -> (usize, u8) {
        (usize::try_from(index / 8).unwrap_or(usize::MAX), 1 << (index % 8))
    }
}

/// The list of tokens that end then.
pub fn of(not_after: u64) -> u64 {
    not_after / LIST_SECONDS
}

/// When the last token of a list has expired, Unix seconds.
pub fn ends(list: u64) -> u64 {
    list.saturating_add(1).saturating_mul(LIST_SECONDS)
}

/// The size of a token's place.
pub const BITS: u32 = 2;
const PER_OCTET: u32 = 8 / BITS;
const INVALID: u8 = 1;
const SUSPENDED: u8 = 2;
const LIST_SECONDS: u64 = 3_600;
/// Even one token hides among these.
const MIN_CAPACITY: u32 = 1_024;
const MAX_CAPACITY: u32 = 1 << 24;
const TRIES: u32 = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read as _;

    use flate2::read::ZlibDecoder;
    use proptest::prelude::*;

    use super::*;

    fn bits(lists: &StatusLists, list: u64) -> Vec<u8> {
        let mut out = Vec::new();
        ZlibDecoder::new(lists.compressed(list).unwrap().0.as_slice()).read_to_end(&mut out).unwrap();
        out
    }

    /// What a token's two bits say, by the rule of the draft.
    fn status(octets: &[u8], index: u32) -> u8 {
        octets[usize::try_from(index / 4).unwrap()] >> (index % 4 * 2) & 3
    }

    #[test]
    fn the_example_of_the_draft_has_its_bits_where_it_says() {
        let mut lists = StatusLists::default();
        // §4.1, two bits a token: the octets c9 44 f9, indices 0 to 11. We never say 3, which is an application's own.
        let expected = [1, 2, 0, 3, 0, 1, 0, 1, 1, 2, 3, 3];
        let places = (0_u32..).zip(expected).map(|(index, status)| (StatusIndex { list: 5, index }, status));
        let places: Vec<(StatusIndex, u8)> = places.collect();
        places.iter().for_each(|(place, status)| lists.restore(*place, *status == 1));
        let suspended = places.iter().filter(|(_, status)| *status == 2).map(|(place, _)| *place);
        lists.suspend(suspended);
        let octets = bits(&lists, 5);
        let without_own: Vec<u8> = [0xc9_u8, 0x44, 0xf9]
            .iter()
            .map(|octet| {
                (0..4)
                    .map(|at| octet & (3 << (at * 2)))
                    .filter(|two| ![0xc0, 0x30, 0x0c, 0x03].contains(two))
                    .sum()
            })
            .collect();
        assert_eq!((&octets[..3], octets.len()), (without_own.as_slice(), 256));
        for (place, want) in places {
            assert_eq!(status(&octets, place.index), if want == 3 { 0 } else { want }, "{place:?}");
        }
    }

    #[test]
    fn no_chance_at_all_still_finds_every_place() {
        let mut lists = StatusLists::default();
        let all: BTreeSet<u32> = (0..3_000).map(|_| lists.take(9, || 7).unwrap().index).collect();
        assert_eq!(all.len(), 3_000);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Take(u64, u32),
        Revoke(prop::sample::Index),
        Suspend(Vec<prop::sample::Index>),
        Restart,
        Advance(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0_u64..7_200, any::<u32>()).prop_map(|(ttl, seed)| Op::Take(ttl, seed)),
            2 => any::<prop::sample::Index>().prop_map(Op::Revoke),
            2 => prop::collection::vec(any::<prop::sample::Index>(), 0..4).prop_map(Op::Suspend),
            1 => Just(Op::Restart),
            1 => (0_u64..4_000).prop_map(Op::Advance),
        ]
    }

    proptest! {
        /// The model: every token ever given a place, with its end and whether it was taken back.
        #[test]
        fn a_place_says_exactly_what_was_taken_back_and_what_is_suspended(ops in prop::collection::vec(op(), 1..120)) {
            let (mut now, mut lists) = (1_000_000_u64, StatusLists::default());
            let mut model: BTreeMap<StatusIndex, (u64, bool)> = BTreeMap::new();
            let mut suspended: BTreeSet<StatusIndex> = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Take(ttl, seed) => {
                        let mut dice = seed;
                        let place = lists.take(now + ttl, || { dice = dice.wrapping_mul(69_069).wrapping_add(1); dice >> 8 });
                        let place = place.unwrap();
                        prop_assert!(model.insert(place, (now + ttl, false)).is_none(), "{place:?} twice");
                    }
                    Op::Revoke(which) if !model.is_empty() => {
                        let place = *model.keys().nth(which.index(model.len())).unwrap();
                        let before = lists.revision(place.list);
                        lists.revoke(place);
                        let token = model.get_mut(&place).unwrap();
                        prop_assert_eq!(lists.revision(place.list) != before, !token.1);
                        token.1 = true;
                    }
                    Op::Suspend(which) if !model.is_empty() => {
                        let before = suspended.clone();
                        suspended = which.iter().map(|which| *model.keys().nth(which.index(model.len())).unwrap()).collect();
                        let all: BTreeSet<u64> = model.keys().map(|place| place.list).collect();
                        let revisions: Vec<_> = all.iter().map(|list| (*list, lists.revision(*list))).collect();
                        lists.suspend(suspended.iter().copied());
                        for (list, revision) in revisions {
                            let of = |set: &BTreeSet<StatusIndex>| set.iter().filter(|place| place.list == list).copied().collect::<BTreeSet<_>>();
                            prop_assert_eq!(lists.revision(list) != revision, of(&before) != of(&suspended));
                        }
                    }
                    Op::Revoke(_) | Op::Suspend(_) => {}
                    Op::Restart => {
                        suspended.clear();
                        lists = StatusLists::default();
                        for (place, (_, revoked)) in &model {
                            lists.restore(*place, *revoked);
                        }
                    }
                    Op::Advance(by) => {
                        now += by;
                        lists.expire(now);
                        model.retain(|place, _| ends(place.list) > now);
                        suspended.retain(|place| ends(place.list) > now);
                    }
                }
                for (place, (not_after, revoked)) in &model {
                    prop_assert!(*not_after < ends(place.list));
                    let expected = if *revoked { 1 } else { u8::from(suspended.contains(place)) * 2 };
                    prop_assert_eq!(status(&bits(&lists, place.list), place.index), expected);
                }
            }
        }
    }
}
