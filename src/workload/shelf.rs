//! The current SVIDs of one form of one workload, and what its subscribers see of them.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::id::{EntryId, LeaseId};
use crate::issue::x509::X509Svid;
use crate::registration::Identity;
use crate::trust::FederatesWith;

/// What a subscriber of SVIDs sees.
#[derive(Clone, Debug)]
pub enum View<T = X509Svid> {
    /// The first SVIDs are being made.
    Pending,
    /// One SVID for each identity, the default first. Never empty.
    Ready(Arc<[Arc<T>]>),
    /// The process has no identity (any more).
    NoIdentity,
    /// It has, but none could be issued.
    Unavailable,
    /// The process has ended.
    Ended,
}

/// What streams of one form follow: both halves change in one step.
#[derive(Debug)]
pub(super) struct Shown<T = X509Svid> {
    pub(super) view: View<T>,
    /// Of the entries it holds.
    pub(super) federates_with: FederatesWith,
    /// In whatever form.
    pub(super) has_identity: bool,
}

impl<T> From<View<T>> for Shown<T> {
    fn from(view: View<T>) -> Self {
        let has_identity = !matches!(view, View::NoIdentity | View::Ended);
        Self { view, federates_with: FederatesWith::default(), has_identity }
    }
}

/// See the module.
pub(super) struct Shelf<T> {
    svids: HashMap<LeaseId, Arc<T>>,
    view: watch::Sender<Shown<T>>,
    /// The last issuance failed and nothing valid is left to show.
    failing: bool,
}

impl<T> Shelf<T> {
    /// An empty one, for a workload whose entries name those trust domains.
    pub(super) fn new(federates_with: FederatesWith) -> Self {
        let first = Shown { view: View::Pending, federates_with, has_identity: true };
        Self { svids: HashMap::new(), view: watch::Sender::new(first), failing: false }
    }

    /// A new subscriber: an attempt of its own, an earlier stream's failure is not this one's.
    pub(super) fn subscribe(&mut self) -> watch::Receiver<Shown<T>> {
        self.failing = false;
        self.view.subscribe()
    }

    /// As [`Self::subscribe`] for somebody who only wants to know when the identity ends.
    pub(super) fn attend(&self) -> watch::Receiver<Shown<T>> {
        self.view.subscribe()
    }

    pub(super) fn put(&mut self, lease: LeaseId, svid: T) {
        self.svids.insert(lease, Arc::new(svid));
        self.failing = false;
    }

    pub(super) fn set_failing(&mut self, failed: bool) {
        let has_valid = matches!(self.view.borrow().view, View::Ready(_));
        self.failing = failed && !has_valid;
    }

    /// Whether subscribers may be shown one of these leases.
    pub(super) fn shows(&self, wanted: impl Fn(&LeaseId) -> bool) -> bool {
        self.view.receiver_count() > 0 && self.svids.keys().any(wanted)
    }

    /// Has every subscriber look again.
    pub(super) fn nudge(&self) {
        self.view.send_modify(|_| {});
    }

    pub(super) fn end(&self) {
        self.view.send_replace(View::Ended.into());
    }

    /// Works out what to show, given the current lease of each entry held, and tells subscribers if it is news.
    pub(super) fn show(
        &mut self,
        identities: &[Identity],
        shown: &[(EntryId, Option<LeaseId>)],
        federates_with: &FederatesWith,
        has_identity: bool,
    ) {
        let current: HashMap<&EntryId, LeaseId> =
            shown.iter().filter_map(|(entry, lease)| Some((entry, (*lease)?))).collect();
        self.svids.retain(|lease, _| current.values().any(|l| l == lease));
        let ready: Vec<Arc<T>> = identities
            .iter()
            .filter_map(|i| self.svids.get(current.get(&i.entry.id)?))
            .map(Arc::clone)
            .collect();
        let complete = ready.len() == shown.len();
        let was_ready = matches!(self.view.borrow().view, View::Ready(_));
        let next = if shown.is_empty() {
            View::NoIdentity
        } else if complete || (was_ready && !ready.is_empty()) {
            View::Ready(ready.into())
        } else if self.failing {
            View::Unavailable
        } else {
            View::Pending
        };
        self.view.send_if_modified(|seen| {
            let news = !seen.view.same_as(&next)
                || seen.federates_with != *federates_with
                || seen.has_identity != has_identity;
            if news {
                *seen = Shown { view: next, federates_with: Arc::clone(federates_with), has_identity };
            }
            news
        });
    }
}

impl<T> View<T> {
    fn same_as(&self, other: &Self) -> bool {
        match (self, other) {
            // An SVID is put on the shelf once, so that the same one is the same place in memory.
            (Self::Ready(a), Self::Ready(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| Arc::ptr_eq(a, b))
            }
            (Self::Pending, Self::Pending)
            | (Self::NoIdentity, Self::NoIdentity)
            | (Self::Unavailable, Self::Unavailable)
            | (Self::Ended, Self::Ended) => true,
            _ => false,
        }
    }
}
