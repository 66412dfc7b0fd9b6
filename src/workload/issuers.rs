//! What the revoker remembers of each X.509 authority: numbers and dates, when its next CRL is due, where the last
//! one is kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::revoker::{PublishedCrl, RevokeJob};
use crate::clock::Clock;
use crate::id::KeyId;
use crate::ledger::Kind;
use crate::revocation::{Crl, CrlNumbering, CrlTurn, Witness};

/// The X.509 authorities in force, by key identifier.
#[derive(Debug)]
pub(super) struct Issuers {
    data_dir: Option<PathBuf>,
    began: Instant,
    all: BTreeMap<KeyId, Issuer>,
}

#[derive(Debug)]
struct Issuer {
    name: String,
    numbering: CrlNumbering,
    /// The numbering's own start of time.
    began: Instant,
    witness: Option<Witness>,
    crl: Option<PublishedCrl>,
    /// Something was revoked that no published CRL names, or there is no CRL at all.
    dirty: bool,
    /// The next CRL must not be signed before.
    not_before: Option<Instant>,
    /// A fresh CRL is due by age.
    resign_at: Option<Instant>,
}

impl Issuers {
    pub(super) fn new(data_dir: Option<PathBuf>, began: Instant) -> Self {
        Self { data_dir, began, all: BTreeMap::new() }
    }

    /// A new one is due for its first CRL at once. `numbering` goes on after an earlier run.
    pub(super) fn add(&mut self, id: KeyId, numbering: Option<CrlNumbering>, clock: &dyn Clock) {
        let now = clock.monotonic();
        let began = if numbering.is_some() { self.began } else { now };
        let issuer = Issuer {
            name: id.to_string(),
            numbering: numbering.unwrap_or_else(|| CrlNumbering::resume(None, clock.wall())),
            began,
            witness: self.data_dir.as_ref().map(|dir| Witness::on_disk(dir, id)),
            crl: None,
            dirty: true,
            not_before: None,
            resign_at: None,
        };
        self.all.insert(id, issuer);
    }

    pub(super) fn knows(&self, id: KeyId) -> bool {
        self.all.contains_key(&id)
    }

    /// Forgets an authority that is out of the bundle, and removes its CRL files.
    pub(super) fn remove(&mut self, id: KeyId) {
        let Some(witness) = self.all.remove(&id).and_then(|gone| gone.witness) else { return };
        if let Err(error) = witness.remove() {
            tracing::warn!(%error, "the CRL of an authority that is gone stays on disk");
        }
    }

    /// Those that are not among `kept`.
    pub(super) fn except(&self, kept: impl Iterator<Item = KeyId>) -> Vec<KeyId> {
        let kept: Vec<KeyId> = kept.collect();
        self.all.keys().filter(|id| !kept.contains(id)).copied().collect()
    }

    /// Something that this issuer signed was revoked.
    pub(super) fn touch(&mut self, issuer: &str) {
        if let Some(one) = self.all.values_mut().find(|one| one.name == issuer) {
            one.dirty = true;
        }
    }

    /// Nothing waits for its coalescing time any more.
    pub(super) fn hurry(&mut self) {
        self.all.values_mut().for_each(|one| (one.not_before, one.dirty) = (None, true));
    }

    /// When the next CRL is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.all.values().filter_map(|one| one.due(self.began)).min()
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next().is_some_and(|at| at <= now)
    }

    /// Number and date of the CRL that this one is due for; they are used up then.
    pub(super) fn turn(&mut self, id: KeyId, now: Instant, wall: SystemTime) -> Option<(u64, u64)> {
        let began = self.began;
        let one = self.all.get_mut(&id).filter(|one| one.due(began).is_some_and(|at| at <= now))?;
        match one.numbering.next(wall, now.saturating_duration_since(one.began)) {
            CrlTurn::Now { number, this_update } => Some((number, this_update)),
            CrlTurn::NotBefore(wait) => {
                one.retry(now + wait);
                None
            }
        }
    }

    /// The ledger has the number of this one's last CRL.
    pub(super) fn recorded(&mut self, id: KeyId) {
        if let Some(one) = self.all.get_mut(&id) {
            one.numbering.recorded();
        }
    }

    /// Tries this one again then.
    pub(super) fn retry(&mut self, id: KeyId, at: Instant) {
        if let Some(one) = self.all.get_mut(&id) {
            one.retry(at);
        }
    }

    /// Its CRL is out; the next not before `not_before`, and at `again` in any case.
    pub(super) fn published(&mut self, id: KeyId, crl: &Crl, not_before: Instant, again: Instant) {
        let Some(one) = self.all.get_mut(&id) else { return };
        one.dirty = false;
        one.not_before = Some(not_before);
        one.resign_at = Some(again);
        one.crl = Some(PublishedCrl {
            number: crl.number,
            this_update: crl.this_update,
            next_update: crl.next_update,
            entries: crl.entries,
            bytes: crl.der.len(),
        });
    }

    /// The CRL in force of one.
    pub(super) fn crl(&self, id: KeyId) -> Option<PublishedCrl> {
        self.all.get(&id)?.crl.clone()
    }

    /// The number of the CRL in force; 0 for an issuer that is gone or has none.
    pub(super) fn number(&self, issuer: &str) -> u64 {
        let one = self.all.values().find(|one| one.name == issuer);
        one.and_then(|one| one.crl.as_ref()).map_or(0, |crl| crl.number)
    }

    pub(super) fn witness(&self, id: KeyId) -> Option<&Witness> {
        self.all.get(&id)?.witness.as_ref()
    }

    /// Whether verifiers can know all of a job: there is a CRL of each authority, and none of those that the job
    /// touches is due for another. An issuer that is gone has none, and nobody trusts it.
    pub(super) fn has_published(&self, job: &RevokeJob) -> bool {
        let touched =
            |one: &Issuer| job.rows.iter().any(|row| row.kind == Kind::X509 && row.issuer == one.name);
        self.all.values().all(|one| one.crl.is_some() && !(one.dirty && touched(one)))
    }

    /// How far the dates of any run ahead of the clock, when that is worth an alarm.
    pub(super) fn clock_concern(&mut self, wall: SystemTime, now: Instant) -> Option<Duration> {
        let ahead =
            |one: &mut Issuer| one.numbering.clock_concern(wall, now.saturating_duration_since(one.began));
        self.all.values_mut().filter_map(ahead).max()
    }
}

impl Issuer {
    /// `at_once` is any moment in the past.
    fn due(&self, at_once: Instant) -> Option<Instant> {
        let wanted = self.dirty.then(|| self.not_before.unwrap_or(at_once));
        wanted.into_iter().chain(self.resign_at).min()
    }

    fn retry(&mut self, at: Instant) {
        self.not_before = Some(at);
        // Whatever was due by age is due then, too.
        self.resign_at = Some(self.resign_at.map_or(at, |due| due.max(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    const COALESCE: Duration = Duration::from_millis(50);
    const HOUR: Duration = Duration::from_secs(3_600);

    /// One issuer that published its first CRL at the returned moment.
    fn quiet() -> (Issuers, KeyId, Instant) {
        let began = SystemClock.monotonic();
        let (mut issuers, id) = (Issuers::new(None, began), KeyId::from_bytes([7; 20]));
        issuers.add(id, None, &SystemClock);
        assert!(issuers.is_due(began), "without any CRL");
        assert!(sign(&mut issuers, id, began, began), "the first");
        (issuers, id, began)
    }

    /// As the revoker does when it looks: whether it signed.
    fn sign(issuers: &mut Issuers, id: KeyId, began: Instant, now: Instant) -> bool {
        let wall = SystemClock.wall() + now.saturating_duration_since(began);
        let Some((number, this_update)) = issuers.turn(id, now, wall) else { return false };
        let crl = Crl { der: vec![0].into(), number, this_update, next_update: this_update + 1, entries: 0 };
        issuers.published(id, &crl, now + COALESCE, now + HOUR);
        issuers.recorded(id);
        true
    }

    #[test]
    fn the_first_revocation_after_a_quiet_time_goes_out_at_once() {
        let (mut issuers, id, began) = quiet();
        let now = began + Duration::from_secs(10);
        assert!(!issuers.is_due(now));
        issuers.touch(&id.to_string());
        assert!(issuers.is_due(now));
        assert!(sign(&mut issuers, id, began, now));
        assert!(!issuers.is_due(now));
    }

    #[test]
    fn d05_those_that_follow_share_the_next_crl() {
        let (mut issuers, id, began) = quiet();
        let start = began + Duration::from_secs(10);
        // Six thousand exits within three coalescing times, each looked at as it comes, and quiet after that.
        let (mut signed, mut last) = (Vec::new(), start);
        for n in 0..6_000 {
            last = start + 3 * COALESCE * n / 6_000;
            issuers.touch(&id.to_string());
            if sign(&mut issuers, id, began, last) {
                signed.push(last);
            }
        }
        assert_eq!(signed[0], start, "a leading edge");
        assert_eq!(signed.len(), 3, "{signed:?}");
        assert!(signed.windows(2).all(|two| two[1] - two[0] >= COALESCE));
        let next = issuers.next().expect("the last of them wait");
        assert!(next > last && next <= last + COALESCE);
        assert!(sign(&mut issuers, id, began, next) && !issuers.is_due(next + COALESCE));
    }
}
