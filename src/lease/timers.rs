//! Deadlines in order, each removable by its key.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// At most one deadline for each key.
#[derive(Debug)]
pub(crate) struct Timers<K> {
    ordered: BTreeSet<(Instant, K)>,
    at: HashMap<K, Instant>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { ordered: BTreeSet::new(), at: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Timers<K> {
    /// Sets or moves the deadline of `key`.
    pub(crate) fn set(&mut self, key: K, at: Instant) {
        self.cancel(&key);
        self.at.insert(key.clone(), at);
        self.ordered.insert((at, key));
    }

    pub(crate) fn cancel(&mut self, key: &K) {
        if let Some(at) = self.at.remove(key) {
            self.ordered.remove(&(at, key.clone()));
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.ordered.first().map(|(at, _)| *at)
    }

    /// Takes the earliest key whose deadline is not after `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.ordered.pop_first()?;
        self.at.remove(&key);
        Some(key)
    }
}
