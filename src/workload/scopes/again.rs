//! Cgroups that held tasks in the run before, opened again before anything is locked.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_attestors::ScopeError;

use super::Watchable;
use crate::workload::Shared;
use crate::workload::restore::{CONCERN, PAUSE};
use crate::workload::standstill::Place;

const SHORT: &str = "no descriptor is free to look at the cgroups that hold tasks; raise LimitNOFILE";

/// What there is of them.
pub(in crate::workload) type Found = BTreeMap<Place, Watchable>;

impl Shared {
    /// Those that are still there, root's, and have somebody in them. While no descriptor is free to look at one with, this
    /// does not return: tasks would end for our want.
    pub(in crate::workload) async fn scopes_again(&self, mut pending: BTreeSet<Place>) -> Found {
        let mut found = Found::new();
        loop {
            let mut later = BTreeSet::new();
            for place in pending {
                match self.scope_again(&place) {
                    Ok(scope) => drop(found.insert(place, scope)),
                    Err(ScopeError::Descriptors) => drop(later.insert(place)),
                    Err(error) => {
                        let path = &place.1;
                        tracing::warn!(%error, path, "a cgroup holds its tasks no more: they end");
                    }
                }
            }
            if later.is_empty() {
                self.parts.readiness.clear(CONCERN);
                return found;
            }
            self.parts.readiness.raise(CONCERN, SHORT);
            tokio::time::sleep(PAUSE).await;
            pending = later;
        }
    }

    fn scope_again(&self, (id, path): &Place) -> Result<Watchable, ScopeError> {
        let scope = self.parts.attestors.scopes().again(path, *id)?;
        let events = scope.events()?;
        if scope.is_populated()? { Ok((scope, events)) } else { Err(ScopeError::Gone) }
    }
}
