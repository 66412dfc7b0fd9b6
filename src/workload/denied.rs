//! What is refused from now on: revoked leases, until they have expired and verifiers have been told.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::authority::RevokedSerial;
use crate::clock::{unix_millis, unix_seconds};
use crate::id::LeaseId;
use crate::ledger::{Kind, Reason, Row, State};
use crate::revocation::{Revoked, RevokedSet};

/// Both kinds of lease, and for people the rows behind them.
#[derive(Debug)]
pub struct Denied {
    certificates: RevokedSet,
    tokens: RevokedSet,
    rows: HashMap<LeaseId, Row>,
    by_uid: HashMap<u32, usize>,
}

impl Default for Denied {
    fn default() -> Self {
        Self {
            certificates: RevokedSet::for_certificates(),
            tokens: RevokedSet::for_tokens(),
            rows: HashMap::new(),
            by_uid: HashMap::new(),
        }
    }
}

impl Denied {
    /// Refuses a lease. One that is refused already keeps its first time and reason.
    pub fn add(&mut self, mut row: Row, reason: Reason, at: SystemTime) {
        let revoked = Revoked { not_after: row.not_after, at: unix_seconds(at), reason };
        let set = match row.kind {
            Kind::X509 => &mut self.certificates,
            Kind::Jwt | Kind::Wit => &mut self.tokens,
        };
        if set.add(row.id, revoked) {
            row.state = State::Revoked { at_millis: unix_millis(at), reason };
            *self.by_uid.entry(row.uid).or_default() += 1;
            self.rows.insert(row.id, row);
        }
    }

    /// Refuses a certificate of which only the CRL of an earlier run tells.
    pub fn add_serial(&mut self, serial: LeaseId, revoked: Revoked) {
        self.certificates.add(serial, revoked);
    }

    /// Whether the lease is refused.
    pub fn contains(&self, lease: LeaseId) -> bool {
        self.certificates.contains(lease) || self.tokens.contains(lease)
    }

    /// How many are refused.
    pub fn len(&self) -> usize {
        self.certificates.len() + self.tokens.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many were a user's. They count against it until they expire: each is an entry in every CRL.
    pub(super) fn of_uid(&self, uid: u32) -> usize {
        self.by_uid.get(&uid).copied().unwrap_or_default()
    }

    /// The rows behind them, as far as they are known.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// What the next CRL must list, and the revision to give back to [`Denied::published`].
    pub(super) fn serials(&self) -> (Vec<RevokedSerial>, u64) {
        (self.certificates.serials(), self.certificates.revision())
    }

    pub(super) fn published(&mut self, revision: u64) {
        self.certificates.mark_published(revision);
    }

    pub(super) fn expire(&mut self, now: SystemTime) {
        let now = unix_seconds(now);
        for lease in self.certificates.expire(now).into_iter().chain(self.tokens.expire(now)) {
            let Some(row) = self.rows.remove(&lease) else { continue };
            if let Some(count) = self.by_uid.get_mut(&row.uid) {
                *count = count.saturating_sub(1);
            }
        }
        self.by_uid.retain(|_, count| *count > 0);
    }
}
