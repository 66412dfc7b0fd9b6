//! What a freeze makes of tokens that are out already: nothing is taken back, and nobody is to believe them until it is
//! thawed. Derived from what is frozen at the moment of the question, so that a thaw needs no second step.

use std::sync::{Arc, Mutex, MutexGuard};

use super::{Shared, State, Workloads, lock};
use crate::id::LeaseId;
use crate::ledger::{Row, StatusIndex};
use crate::policy::{Freezes, PolicySet};

impl Workloads {
    /// Whether the credential is a live one, and something that it rests on is frozen: its agent or one in the chain, a
    /// task in the lineage, its target, or everything.
    pub fn is_suspended(&self, lease: LeaseId) -> bool {
        let set = self.policy().in_force();
        if set.freezes().is_empty() {
            return false;
        }
        let suspension = Suspension::of(&set);
        let state = self.0.lock();
        state.rows.get(&lease).is_some_and(|row| suspension.covers(&state, row))
    }
}

impl Shared {
    /// Brings the lists in line with what is frozen, if that has changed since they last were.
    pub(super) fn list_suspended(&self) {
        let (mut listed, set) = in_turn(&self.suspended_by, || self.parts.policy.in_force());
        let was_frozen = listed.as_ref().is_some_and(|by| !by.freezes().is_empty());
        let is_news = listed.as_ref().is_none_or(|by| !Arc::ptr_eq(by, &set));
        if is_news && (was_frozen || !set.freezes().is_empty()) {
            let suspension = Suspension::of(&set);
            let state = self.lock();
            let rows = state.rows.values().filter(|row| suspension.covers(&state, row));
            let places: Vec<StatusIndex> = rows.filter_map(|row| row.status).collect();
            lock(&self.status).suspend(places);
        }
        *listed = Some(set);
    }
}

/// Reads what is in force when it is its turn to publish: whoever was held up does not publish an older state after a newer.
fn in_turn<T>(
    published: &Mutex<T>,
    in_force: impl FnOnce() -> Arc<PolicySet>,
) -> (MutexGuard<'_, T>, Arc<PolicySet>) {
    let published = lock(published);
    (published, in_force())
}

/// What is frozen, as far as credentials that are out are concerned.
struct Suspension<'a> {
    freezes: &'a Freezes,
}

impl<'a> Suspension<'a> {
    fn of(set: &'a PolicySet) -> Self {
        Self { freezes: set.freezes() }
    }

    fn covers(&self, state: &State, row: &Row) -> bool {
        let is_frozen = |audience: &str| self.freezes.stops_audience(audience);
        if row.audience.iter().any(|audience| is_frozen(audience)) {
            return true;
        }
        let Some(id) = row.task else {
            return self.freezes.touches([row.spiffe_id.as_str()], [], None);
        };
        let tree = &state.tasks.tree;
        let Some(task) = tree.get(id) else { return false };
        let (chain, lineage) = (tree.chain(id), tree.lineage(id));
        let tasks: Vec<String> = lineage.iter().map(|task| task.id.to_string()).collect();
        let agents = chain.iter().map(|agent| agent.as_str());
        if self.freezes.touches(agents, tasks.iter().map(String::as_str), None) {
            return true;
        }
        // A form that says no audience may be for any that the task ever asked for.
        row.audience.is_empty() && self.freezes.has_targets() && task.may_have_asked_for(is_frozen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_list_is_made_of_what_was_frozen_before_the_one_that_is_out() {
        let published = Mutex::new(());
        let engine = crate::policy::Engine::default();
        let mut asked = false;
        drop(in_turn(&published, || {
            asked = true;
            assert!(published.try_lock().is_err(), "read before it was its turn");
            engine.in_force()
        }));
        assert!(asked);
    }
}
