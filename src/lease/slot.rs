//! One entry's place in one workload: the current lease, the issuance in flight, when to try again.

use std::time::{Duration, Instant};

use super::Ticket;
use crate::id::LeaseId;

/// A random number that spreads renewals over ± 10 % of half the lifetime.
#[derive(Clone, Copy, Debug)]
pub struct Jitter(pub u32);

impl Jitter {
    /// When to renew a lease that lasts from `now` to `ends`: between 40 % and 60 % of its life.
    pub(super) fn renew_at(self, now: Instant, ends: Instant) -> Instant {
        let life = ends.saturating_duration_since(now);
        now + life * (400 + self.0 % 201) / 1000
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) lease: LeaseId,
    pub(super) ends: Instant,
    pub(super) renew_at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) subject: u64,
    pub(super) revision: u64,
    pub(super) current: Option<Current>,
    pub(super) in_flight: Option<Ticket>,
    /// The entry changed since the current lease was issued.
    pub(super) outdated: bool,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Slot {
    pub(super) fn new(subject: u64, revision: u64) -> Self {
        Self { subject, revision, ..Self::default() }
    }

    /// Whether a valid lease is there.
    pub(super) fn is_valid(&self, now: Instant) -> bool {
        self.current.is_some_and(|c| c.ends > now)
    }

    /// When an issuance is due, given that somebody listens; `None` while one is in flight.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if self.in_flight.is_some() {
            return None;
        }
        let wanted = match self.current {
            Some(current) if !self.outdated && current.ends > now => current.renew_at,
            _ => now,
        };
        Some(self.retry_at.map_or(wanted, |retry| retry.max(wanted)))
    }

    /// `revision` is the one the lease was issued under: the entry may have moved on meanwhile.
    pub(super) fn filled(&mut self, current: Current, revision: u64) {
        self.current = Some(current);
        self.in_flight = None;
        self.outdated = revision != self.revision;
        self.failures = 0;
        self.retry_at = None;
    }

    /// Backs off from 250 ms, doubling, to 15 s.
    pub(super) fn failed(&mut self, now: Instant) {
        self.in_flight = None;
        let wait = Duration::from_millis(250) * 2u32.pow(self.failures.min(6));
        self.failures += 1;
        self.retry_at = Some(now + wait.min(Duration::from_secs(15)));
    }

    /// A new listener does not wait for somebody else's back-off.
    pub(super) fn forgive(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }
}
