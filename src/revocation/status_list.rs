//! Token status lists: for each hour in which tokens end, one bit for each of them, set when it was taken back.
//! Pure; the random numbers and the time are passed in. Format: draft-ietf-oauth-status-list §4.
//!
//! A place is random, so that it tells nothing about when or to whom a token was given, and never used twice in
//! its list. A list grows before it is half full, and is dropped when all its tokens have expired.

use std::collections::BTreeMap;
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
    count: usize,
    /// In bits, a power of two.
    capacity: u32,
    /// Moves when the published form does.
    revision: u64,
}

/// Bit 0 is the least significant one of the first octet (§4.1).
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
        let octets = usize::try_from(entry.capacity / 8).ok()?;
        let mut bits = entry.revoked.0.clone();
        bits.resize(octets, 0);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&bits).ok()?;
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

    #[test]
    fn the_example_of_the_draft_has_its_bits_where_it_says() {
        let mut lists = StatusLists::default();
        // §4.1: the octets b9 a3, indices 0 to 15.
        let expected = [1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1];
        for (index, status) in expected.into_iter().enumerate() {
            lists.restore(StatusIndex { list: 5, index: u32::try_from(index).unwrap() }, status == 1);
        }
        let octets = bits(&lists, 5);
        assert_eq!((&octets[..2], octets.len()), ([0xb9, 0xa3].as_slice(), 128));
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
        Restart,
        Advance(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0_u64..7_200, any::<u32>()).prop_map(|(ttl, seed)| Op::Take(ttl, seed)),
            2 => any::<prop::sample::Index>().prop_map(Op::Revoke),
            1 => Just(Op::Restart),
            1 => (0_u64..4_000).prop_map(Op::Advance),
        ]
    }

    proptest! {
        /// The model: every token ever given a place, with its end and whether it was taken back.
        #[test]
        fn a_bit_is_set_exactly_for_what_was_taken_back(ops in prop::collection::vec(op(), 1..120)) {
            let (mut now, mut lists) = (1_000_000_u64, StatusLists::default());
            let mut model: BTreeMap<StatusIndex, (u64, bool)> = BTreeMap::new();
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
                    Op::Revoke(_) => {}
                    Op::Restart => {
                        lists = StatusLists::default();
                        for (place, (_, revoked)) in &model {
                            lists.restore(*place, *revoked);
                        }
                    }
                    Op::Advance(by) => {
                        now += by;
                        lists.expire(now);
                        model.retain(|place, _| ends(place.list) > now);
                    }
                }
                for (place, (not_after, revoked)) in &model {
                    prop_assert!(*not_after < ends(place.list));
                    let octet = bits(&lists, place.list)[usize::try_from(place.index / 8).unwrap()];
                    prop_assert_eq!(octet & (1 << (place.index % 8)) != 0, *revoked);
                }
            }
        }
    }
}
