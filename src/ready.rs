//! Readiness: a set of named concerns. The agent is ready while the set is empty.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which components hold readiness back, and why.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

/// Holds readiness back until dropped.
#[derive(Debug)]
#[must_use]
pub struct Pending(Readiness, &'static str);

impl Readiness {
    /// Holds readiness back under `name` until the guard is dropped.
    pub fn pending(&self, name: &'static str) -> Pending {
        self.raise(name, "starting");
        Pending(self.clone(), name)
    }

    /// Records a concern; the agent is not ready until [`Readiness::clear`] is called with its name.
    pub fn raise(&self, name: &'static str, why: impl Into<String>) {
        self.lock().insert(name, why.into());
    }

    /// Withdraws a concern.
    pub fn clear(&self, name: &'static str) {
        self.lock().remove(name);
    }

    /// Whether nothing holds readiness back.
    pub fn is_ready(&self) -> bool {
        self.lock().is_empty()
    }

    /// Every concern as `name: why`, sorted by name.
    pub fn concerns(&self) -> Vec<String> {
        self.lock().iter().map(|(name, why)| format!("{name}: {why}")).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.clear(self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_while_nobody_objects() {
        let readiness = Readiness::default();
        let starting = readiness.pending("ledger");
        readiness.raise("audit", "disk full");
        drop(starting);
        assert_eq!(readiness.concerns(), ["audit: disk full"]);
        assert!(!readiness.is_ready());
        readiness.clear("audit");
        assert!(readiness.is_ready());
    }
}
