//! What `mayfly status` says of SDS.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mayfly_proto::admin as proto;

use crate::diag::Shown;

/// Counts since the agent started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    streams: AtomicU64,
    waiting: AtomicU64,
    responses: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    withdrawn: AtomicU64,
    last_refusal: Mutex<String>,
}

impl Counters {
    /// One open stream, until the answer is dropped.
    pub(super) fn stream(self: &Arc<Self>) -> Open {
        Open::new(self, |counters| &counters.streams)
    }

    /// One caller without an identity, until the answer is dropped.
    pub(super) fn waiting(self: &Arc<Self>) -> Open {
        Open::new(self, |counters| &counters.waiting)
    }

    pub(super) fn sent(&self, withdrawn: usize) {
        self.responses.fetch_add(1, Ordering::Relaxed);
        self.withdrawn.fetch_add(u64::try_from(withdrawn).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn accepted(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, words: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        *self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner) = Shown(words).to_string();
    }

    pub(super) fn status(&self, crl_withheld: Vec<String>) -> proto::Sds {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        proto::Sds {
            streams: read(&self.streams),
            waiting: read(&self.waiting),
            responses: read(&self.responses),
            acknowledged: read(&self.acknowledged),
            refused: read(&self.refused),
            last_refusal: self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            withdrawn: read(&self.withdrawn),
            crl_withheld,
        }
    }
}

/// Counts as open while it lives.
#[derive(Debug)]
pub(super) struct Open {
    counters: Arc<Counters>,
    which: fn(&Counters) -> &AtomicU64,
}

impl Open {
    fn new(counters: &Arc<Counters>, which: fn(&Counters) -> &AtomicU64) -> Self {
        which(counters).fetch_add(1, Ordering::Relaxed);
        Self { counters: Arc::clone(counters), which }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        (self.which)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}
