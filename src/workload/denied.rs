//! What is refused from now on: revoked leases, until they have expired and verifiers have been told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use crate::authority::RevokedSerial;
use crate::clock::{unix_millis, unix_seconds};
use crate::id::LeaseId;
use crate::ledger::{Kind, Reason, Row, State};
use crate::revocation::{Revoked, RevokedSet};

/// Both kinds of lease, and for people the rows behind them.
#[derive(Debug)]
pub struct Denied {
    /// By issuer, since each signs a list of its own.
    certificates: BTreeMap<String, RevokedSet>,
    /// Issuers that are out of the bundle: nobody reads a list of theirs.
    gone: BTreeSet<String>,
    tokens: RevokedSet,
    rows: HashMap<LeaseId, Row>,
    /// Those of them that were shown again since: each is told of once.
    reused: BTreeSet<LeaseId>,
    by_uid: HashMap<u32, usize>,
}

impl Default for Denied {
    fn default() -> Self {
        Self {
            certificates: BTreeMap::new(),
            gone: BTreeSet::new(),
            tokens: RevokedSet::for_tokens(),
            rows: HashMap::new(),
            reused: BTreeSet::new(),
            by_uid: HashMap::new(),
        }
    }
}

impl Denied {
    /// Refuses a lease. One that is refused already keeps its first time and reason.
    pub fn add(&mut self, mut row: Row, reason: Reason, at: SystemTime) {
        let revoked = Revoked { not_after: row.not_after, at: unix_seconds(at), reason };
        let set = match row.kind {
            Kind::X509 => issued_by(&mut self.certificates, &row.issuer),
            Kind::Jwt | Kind::Wit | Kind::Access => &mut self.tokens,
        };
        if set.add(row.id, revoked) {
            row.state = State::Revoked { at_millis: unix_millis(at), reason };
            *self.by_uid.entry(row.uid).or_default() += 1;
            self.rows.insert(row.id, row);
        }
    }

    /// Refuses a certificate of which only the CRL of an earlier run tells.
    pub fn add_serial(&mut self, issuer: &str, serial: LeaseId, revoked: Revoked) {
        issued_by(&mut self.certificates, issuer).add(serial, revoked);
    }

    /// Whether the lease is refused.
    pub fn contains(&self, lease: LeaseId) -> bool {
        self.tokens.contains(lease) || self.certificates.values().any(|set| set.contains(lease))
    }

    /// Why the lease is refused.
    pub(super) fn reason(&self, lease: LeaseId) -> Option<Reason> {
        match self.rows.get(&lease)?.state {
            State::Revoked { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// The row of a refused lease whose credential was shown, the first time that it was.
    pub(super) fn first_reuse(&mut self, lease: LeaseId) -> Option<Row> {
        let row = self.rows.get(&lease)?.clone();
        self.reused.insert(lease).then_some(row)
    }

    /// How many are refused.
    pub fn len(&self) -> usize {
        self.certificates.values().map(RevokedSet::len).sum::<usize>() + self.tokens.len()
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

    /// What the next CRL of that issuer must list, and the revision to give back to [`Denied::published`].
    pub(super) fn serials(&self, issuer: &str) -> (Vec<RevokedSerial>, u64) {
        self.certificates.get(issuer).map_or_else(Default::default, |set| (set.serials(), set.revision()))
    }

    pub(super) fn published(&mut self, issuer: &str, revision: u64) {
        if let Some(set) = self.certificates.get_mut(issuer) {
            set.mark_published(revision);
        }
    }

    /// That issuer is out of the bundle: what it signed is refused here until it expires, and in no list.
    pub(super) fn forget_issuer(&mut self, issuer: &str) {
        self.gone.insert(issuer.to_owned());
    }

    pub(super) fn expire(&mut self, now: SystemTime) {
        let now = unix_seconds(now);
        let mut gone = self.tokens.expire(now);
        for (issuer, set) in &mut self.certificates {
            if self.gone.contains(issuer) {
                set.mark_published(set.revision());
            }
            gone.extend(set.expire(now));
        }
        self.certificates.retain(|issuer, set| !set.is_empty() || !self.gone.contains(issuer));
        self.gone.retain(|issuer| self.certificates.contains_key(issuer));
        for lease in gone {
            self.reused.remove(&lease);
            let Some(row) = self.rows.remove(&lease) else { continue };
            if let Some(count) = self.by_uid.get_mut(&row.uid) {
                *count = count.saturating_sub(1);
            }
        }
        self.by_uid.retain(|_, count| *count > 0);
    }
}

fn issued_by<'a>(sets: &'a mut BTreeMap<String, RevokedSet>, issuer: &str) -> &'a mut RevokedSet {
    sets.entry(issuer.to_owned()).or_insert_with(RevokedSet::for_certificates)
}
