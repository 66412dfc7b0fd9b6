//! How often things happened since the start, for metrics. Counted where they are recorded, so that the two agree.
//! Every label comes from a closed list: nobody outside can make the table grow.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::event::Event;
use super::task::TaskStep;
use crate::ledger::{Kind, Reason};

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Counted {
    /// A first credential.
    Issued(Kind),
    /// A fresh one in place of an old one.
    Renewed(Kind),
    /// One that ran out.
    Expired(Kind),
    /// One that was taken back.
    Revoked(Kind, Reason),
    /// A connection closed for cause.
    Cut(&'static str),
    /// A set of entries that was not taken.
    EntriesRejected,
    /// A policy set that was not taken.
    PolicyRejected,
    /// A socket that had to be put back.
    SocketReplaced,
    /// A task that began.
    TaskBegun,
    /// One that ended, and why.
    TaskEnded(&'static str),
}

/// Counts by kind.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<Counted, u64>>);

impl Counts {
    pub(super) fn add(&self, events: &[Event]) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for counted in events.iter().filter_map(Counted::of) {
            *counts.entry(counted).or_default() += 1;
        }
    }

    pub(super) fn all(&self) -> BTreeMap<Counted, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Counted {
    fn of(event: &Event) -> Option<Self> {
        Some(match event {
            Event::CredentialIssue { credential, .. } => Self::Issued(credential.kind),
            Event::CredentialRenew { credential, .. } => Self::Renewed(credential.kind),
            Event::CredentialExpire { credential, .. } => Self::Expired(credential.kind),
            Event::CredentialRevoke { credential, revocation, .. } => {
                Self::Revoked(credential.kind, revocation.reason)
            }
            Event::AgentCut { reason, .. } => Self::Cut(reason.as_str()),
            Event::EntriesRejected { .. } => Self::EntriesRejected,
            Event::PolicyRejected { .. } => Self::PolicyRejected,
            Event::SocketReplaced { .. } => Self::SocketReplaced,
            Event::Task { step: TaskStep::Begin | TaskStep::Join, .. } => Self::TaskBegun,
            Event::Task { step: TaskStep::Ended, end: Some(end), .. } => Self::TaskEnded(end.reason),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::every_event;
    use super::*;

    #[test]
    fn each_event_is_counted_under_its_own_name() {
        let counts = Counts::default();
        counts.add(&every_event());
        counts.add(&every_event());
        let all = counts.all();
        assert!(all.values().all(|count| count % 2 == 0), "{all:?}");
        assert!(all.keys().any(|counted| matches!(counted, Counted::Issued(_))), "{all:?}");
        assert!(all.keys().any(|counted| matches!(counted, Counted::Revoked(..))), "{all:?}");
        assert_eq!(all.get(&Counted::SocketReplaced), Some(&2));
        assert!(all.keys().any(|counted| matches!(counted, Counted::TaskEnded(_))), "{all:?}");
    }
}
