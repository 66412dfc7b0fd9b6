//! Which proofs were used. Bounded, and shut when it is full: a proof that cannot be remembered is not taken.

use std::collections::{BTreeSet, HashMap, HashSet};

use aws_lc_rs::digest::{SHA256, digest};

/// The proofs that were used and could be shown again. A client that holds a good token can fill no more than its share,
/// which is counted for each key.
#[derive(Debug)]
pub struct Replays {
    capacity: usize,
    of_one_key: usize,
    used: HashMap<Hash, HashSet<Hash>>,
    /// The same, by their last second.
    ends: BTreeSet<(u64, Hash, Hash)>,
    /// What could be shown only before this second may have been forgotten.
    forgotten: u64,
    /// How old a DPoP proof may be by the rule that lets them be the oldest, of those that were applied so far.
    past: u64,
    /// As `forgotten`, for DPoP proofs: those that were shown under a stricter rule were forgotten sooner.
    unsure: u64,
}

type Hash = [u8; 32];

/// Of which kind a proof is: a DPoP proof and a WPT may have one `jti`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Dpop,
    Wpt,
}

/// Why a proof is not the first.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Used {
    /// It was used, or nobody knows any more whether it was.
    #[error("proof was used before")]
    Again,
    /// No more can be remembered now.
    #[error("no more proofs can be remembered now")]
    Full,
}

impl Replays {
    /// Remembers at most so many proofs (about 130 bytes each), and of one key a sixteenth.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            of_one_key: capacity.div_ceil(SHARE),
            used: HashMap::new(),
            ends: BTreeSet::new(),
            forgotten: 0,
            past: 0,
            unsure: 0,
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Takes the proof with that name by that key, if it is the first one; `until` is the last second in which it would
    /// be taken. Asking and remembering are one step.
    pub(super) fn first(
        &mut self,
        kind: Kind,
        key: &str,
        id: &str,
        until: u64,
        now: u64,
    ) -> Result<(), Used> {
        self.forget(now);
        // The clock was set back, or a rule lets older ones in: what ended by then is not known any more.
        if until < self.forgotten || (matches!(kind, Kind::Dpop) && until < self.unsure) {
            return Err(Used::Again);
        }
        let kind = match kind {
            Kind::Dpop => "d",
            Kind::Wpt => "w",
        };
        let (key, id) = (hash(&[kind, key].concat()), hash(id));
        let own = self.used.get(&key);
        if own.is_some_and(|own| own.contains(&id)) {
            return Err(Used::Again);
        }
        if self.ends.len() >= self.capacity || own.map_or(0, HashSet::len) >= self.of_one_key {
            return Err(Used::Full);
        }
        self.used.entry(key).or_default().insert(id);
        self.ends.insert((until, key, id));
        Ok(())
    }

    /// How long DPoP proofs are to be remembered, by a rule that takes them for so long: what is shown under one rule may be
    /// shown again under another, so that the longest one counts for all.
    pub(super) fn at_least(&mut self, past: u64) -> u64 {
        let more = past.saturating_sub(self.past);
        if more > 0 {
            self.past = past;
            self.unsure = self.unsure.max(self.forgotten).saturating_add(more);
            let ends = std::mem::take(&mut self.ends).into_iter();
            self.ends = ends.map(|(until, key, id)| (until.saturating_add(more), key, id)).collect();
        }
        self.past
    }

    fn forget(&mut self, now: u64) {
        self.forgotten = self.forgotten.max(now);
        while let Some((until, key, id)) = self.ends.first().copied().filter(|(until, ..)| *until < now) {
            self.ends.remove(&(until, key, id));
            if let Some(own) = self.used.get_mut(&key) {
                own.remove(&id);
                if own.is_empty() {
                    self.used.remove(&key);
                }
            }
        }
    }
}

/// Names are the client's own words, of any length.
fn hash(text: &str) -> Hash {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    bytes
}

/// One key may have that part of the room.
const SHARE: usize = 16;
