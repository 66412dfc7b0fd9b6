//! The revoker: one thread that turns refusals in memory into what verifiers can read.
//!
//! Order: ledger → sign → publish → witness → audit. The first revocation after a quiet time goes out at
//! once (leading edge); those that follow within the coalescing time share the next CRL. Nothing that
//! fails here takes a refusal back: memory goes on refusing, the failure is a readiness concern, and the
//! work is tried again.

mod job;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use mayfly_attestors::failpoint;
use tokio::sync::watch;

pub(super) use self::job::{Answer, Done, Initiator, Job, RevokeJob};
use self::report::Stamps;
use super::issuers::Issuers;
use super::pulse::AtDisk;
use super::{Denied, Parts, lock};
use crate::audit;
use crate::authority::{Authorities, AuthoritySet, X509Authority};
use crate::clock::{Clock, unix_seconds};
use crate::id::KeyId;
use crate::ledger::{CrlMark, Kind, Ledger, Note, Reason};
use crate::ready::Readiness;
use crate::revocation::{self, Crl, CrlNumbering, Timings};
use crate::trust::TrustSnapshot;

/// How the revoker publishes.
#[derive(Debug)]
pub struct RevokerSettings {
    /// How long after one CRL the next may follow.
    pub coalesce: Duration,
    /// `nextUpdate` − now; a fresh CRL is signed after a third of it.
    pub next_update: Duration,
    /// Numbers and dates of each authority, continued from the run before.
    pub numbering: BTreeMap<KeyId, CrlNumbering>,
    /// Below it the last published CRLs are kept; none with the authorities in memory.
    pub data_dir: Option<PathBuf>,
}

/// The CRL in force.
#[derive(Clone, Debug)]
pub struct PublishedCrl {
    /// CRL number.
    pub number: u64,
    /// `thisUpdate`, Unix seconds.
    pub this_update: u64,
    /// `nextUpdate`, Unix seconds.
    pub next_update: u64,
    /// Revoked certificates in it.
    pub entries: usize,
    /// DER size.
    pub bytes: usize,
}

/// Publishes the first CRL, then starts the thread.
pub(super) fn start(
    parts: &Parts,
    settings: RevokerSettings,
    jobs: mpsc::Receiver<Job>,
    (denied, timings, at_disk): (Arc<Mutex<Denied>>, Arc<Mutex<Timings>>, AtDisk),
) -> std::io::Result<watch::Receiver<Option<PublishedCrl>>> {
    let (crl, follow) = watch::channel(None);
    let began = parts.clock.monotonic();
    let RevokerSettings { coalesce, next_update, numbering, data_dir } = settings;
    let mut issuers = Issuers::new(data_dir, began);
    let current = parts.authorities.current();
    for authority in current.x509() {
        issuers.add(authority.key_id(), numbering.get(&authority.key_id()).cloned(), parts.clock.as_ref());
    }
    let mut revoker = Revoker {
        authorities: parts.authorities.clone(),
        ledger: parts.ledger.clone(),
        audit: parts.audit.clone(),
        clock: Arc::clone(&parts.clock),
        readiness: parts.readiness.clone(),
        trust: parts.trust.clone(),
        issuing: parts.issuing.clone(),
        denied,
        timings,
        at_disk,
        crl,
        coalesce,
        next_update,
        issuers,
        unwritten: Vec::new(),
        notes: Vec::new(),
        owes: false,
        unrecorded: Vec::new(),
        waiting: Vec::new(),
    };
    revoker.publish();
    std::thread::Builder::new().name("revoker".to_owned()).spawn(move || revoker.run(&jobs))?;
    Ok(follow)
}

struct Revoker {
    authorities: Authorities,
    ledger: Ledger,
    audit: audit::Log,
    clock: Arc<dyn Clock>,
    readiness: Readiness,
    trust: watch::Sender<Arc<TrustSnapshot>>,
    issuing: tokio::runtime::Handle,
    denied: Arc<Mutex<Denied>>,
    timings: Arc<Mutex<Timings>>,
    at_disk: AtDisk,
    crl: watch::Sender<Option<PublishedCrl>>,
    coalesce: Duration,
    next_update: Duration,
    issuers: Issuers,
    /// Revocations the ledger has not taken yet.
    unwritten: Vec<(crate::id::LeaseId, Reason, u64)>,
    /// Notes that go with them.
    notes: Vec<Note>,
    /// The ledger has not taken the last of them, and owes notes.
    owes: bool,
    /// For the record, after them.
    unrecorded: Vec<(Vec<audit::Event>, Option<audit::Trace>)>,
    /// Jobs not yet published.
    waiting: Vec<RevokeJob>,
}

/// How long after a failure the next attempt follows.
const RETRY: Duration = Duration::from_millis(500);
/// Events that wait for the ledger before they are recorded.
const MOST_HELD_BACK: usize = 10_000;
/// How long after a CRL that could not be recorded the next one follows: slow enough for the supply of dates.
const KEEP_AGAIN: Duration = Duration::from_secs(5);
/// How often the clock is looked at when nothing else happens: a step back must not wait for a revocation.
const CLOCK_LOOK: Duration = Duration::from_secs(5);

impl Revoker {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        loop {
            match jobs.recv_timeout(self.patience()) {
                Ok(job) => {
                    self.take(job);
                    while let Ok(more) = jobs.try_recv() {
                        self.take(more);
                    }
                    self.write_down();
                }
                // The ledger tries by itself, ever less often: an attempt may cost it a look at the whole file.
                Err(mpsc::RecvTimeoutError::Timeout) if self.owes && self.ledger.is_good() => {
                    self.write_down()
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.issuers.hurry();
                    self.publish();
                    return;
                }
            }
            self.settle();
        }
    }

    fn patience(&self) -> Duration {
        let next = self.issuers.next();
        let now = self.clock.monotonic();
        let longest = if self.owes { RETRY } else { CLOCK_LOOK };
        next.map_or(longest, |at| at.saturating_duration_since(now)).min(longest)
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Revoke(mut job) => {
                self.notes.append(&mut job.notes);
                let at_millis = crate::clock::unix_millis(job.at);
                self.unwritten.extend(job.rows.iter().map(|row| (row.id, job.reason, at_millis)));
                for row in job.rows.iter().filter(|row| row.kind == Kind::X509) {
                    self.issuers.touch(&row.issuer);
                }
                self.waiting.push(job);
            }
            Job::Record(events, trace) => {
                // A ledger that fails for long must not fill the memory.
                if self.unrecorded.len() >= MOST_HELD_BACK {
                    let (events, trace) = self.unrecorded.remove(0);
                    audit::trace::within(trace, || self.audit.note(events));
                }
                self.unrecorded.push((events, trace));
            }
            Job::Authorities { set, done } => {
                // What was revoked before is in the lists that come with the set.
                self.write_down();
                let answer = self.put_in_force(&set);
                // Whoever asked may be gone.
                done.send(answer).ok();
            }
            Job::Pulse(Answer(answer)) => answer(),
        }
    }

    fn write_down(&mut self) {
        failpoint::hit("revoke.after_memory");
        if self.owes || !self.unwritten.is_empty() || !self.notes.is_empty() {
            self.write_down_all();
        }
        // What a crash would undo is not on record: a task that has ended would go on after that.
        if !self.owes {
            for (events, trace) in std::mem::take(&mut self.unrecorded) {
                audit::trace::within(trace, || self.audit.note(events));
            }
        }
    }

    fn write_down_all(&mut self) {
        let at_millis = self.unwritten.iter().map(|(_, _, at)| *at).min().unwrap_or_default();
        let leases: Vec<_> = self.unwritten.iter().map(|(id, reason, _)| (*id, *reason)).collect();
        // Notes that cannot be written are kept by the ledger itself.
        let notes = std::mem::take(&mut self.notes);
        match self.at_disk.during(|| self.ledger.revoke_noting_blocking(&leases, at_millis, notes)) {
            Ok(()) => {
                self.owes = false;
                self.unwritten.clear();
                self.readiness.clear("revocations in the ledger");
            }
            Err(error) => {
                self.owes = true;
                self.readiness.raise("revocations in the ledger", error.to_string());
            }
        }
        failpoint::hit("revoke.after_ledger");
    }

    /// Publishes what is due; answers jobs that wait for no CRL any more.
    fn settle(&mut self) {
        self.clock_concern();
        if self.issuers.is_due(self.clock.monotonic()) {
            self.publish();
        }
        let now = self.clock.monotonic();
        self.answer(&Stamps { signed: now, published: now });
    }

    fn publish(&mut self) {
        if !self.unwritten.is_empty() {
            self.write_down();
        }
        self.clock_concern();
        let set = self.authorities.current();
        let signed = self.sign_due(&set);
        if !signed.is_empty() {
            self.put_out(&set, &signed);
        }
    }

    /// A new CRL of each authority that is due for one.
    fn sign_due(&mut self, set: &AuthoritySet) -> Vec<Signed> {
        let now = self.clock.monotonic();
        let mut signed = Vec::new();
        for authority in set.x509() {
            let id = authority.key_id();
            let Some(turn) = self.issuers.turn(id, now, self.clock.wall()) else { continue };
            match self.sign(authority, turn) {
                Ok(one) => signed.push(one),
                Err(error) => {
                    self.readiness.raise("CRL", error.to_string());
                    self.issuers.retry(id, now + RETRY);
                }
            }
        }
        signed
    }

    fn sign(&self, authority: &X509Authority, turn: (u64, u64)) -> Result<Signed, revocation::CrlError> {
        let wall = self.clock.wall();
        let issuer = authority.key_id();
        let (serials, revision) = {
            let mut denied = lock(&self.denied);
            denied.expire(wall);
            denied.serials(&issuer.to_string())
        };
        let crl = revocation::sign_and_lint(authority, &serials, turn, self.next_update, wall);
        failpoint::hit("revoke.after_sign");
        Ok(Signed { issuer, crl: crl?, revision, at: self.clock.monotonic() })
    }

    /// One new snapshot with all that was signed.
    fn put_out(&mut self, set: &AuthoritySet, signed: &[Signed]) {
        let crls: Vec<_> = signed.iter().map(|one| (one.issuer, one.crl.der.clone())).collect();
        self.trust.send_modify(|trust| *trust = Arc::new(trust.with_crls(&crls)));
        self.after_publication(set, signed);
    }

    /// Tells verifiers of a changed set, each new authority together with its first CRL, and only then lets signers
    /// use it.
    fn put_in_force(&mut self, set: &Arc<AuthoritySet>) -> Result<(), String> {
        let new: Vec<KeyId> =
            set.x509().iter().map(|one| one.key_id()).filter(|id| !self.issuers.knows(*id)).collect();
        for id in &new {
            self.issuers.add(*id, None, self.clock.as_ref());
        }
        let signed = self.sign_due(set);
        if let Some(bare) = new.iter().find(|id| !signed.iter().any(|one| one.issuer == **id)) {
            let why = format!("authority {bare} has no revocation list yet");
            new.iter().for_each(|id| self.issuers.remove(*id));
            return Err(why);
        }
        let crls: Vec<_> = signed.iter().map(|one| (one.issuer, one.crl.der.clone())).collect();
        self.trust.send_if_modified(|trust| {
            let next = trust.with_authorities(set, &crls);
            let is_news = !next.tells_the_same(trust);
            if is_news {
                *trust = Arc::new(next);
            }
            is_news
        });
        self.authorities.replace(Arc::clone(set));
        failpoint::hit("life.after_publish");
        self.after_publication(set, &signed);
        for gone in self.issuers.except(set.x509().iter().map(|one| one.key_id())) {
            self.issuers.remove(gone);
            lock(&self.denied).forget_issuer(&gone.to_string());
        }
        Ok(())
    }

    fn after_publication(&mut self, set: &AuthoritySet, signed: &[Signed]) {
        let published = self.clock.monotonic();
        let Some(last) = signed.last() else { return };
        for one in signed {
            lock(&self.denied).published(&one.issuer.to_string(), one.revision);
            let kept = self.keep(one);
            // One without a record: the next CRL takes its place; a quiet hour must not keep it waiting.
            let again = if kept { self.next_update / 3 } else { KEEP_AGAIN.min(self.next_update / 3) };
            self.issuers.published(one.issuer, &one.crl, published + self.coalesce, published + again);
        }
        self.readiness.clear("CRL");
        self.crl.send_replace(self.issuers.crl(set.active_x509().key_id()));
        self.answer(&Stamps { signed: last.at, published });
        let before = unix_seconds(self.clock.wall()).saturating_sub(revocation::ROW_RETENTION_SECONDS);
        self.forget_expired(self.ledger.clone(), before);
    }

    fn clock_concern(&mut self) {
        match self.issuers.clock_concern(self.clock.wall(), self.clock.monotonic()) {
            Some(ahead) => self.readiness.raise(
                "clock",
                format!(
                    "set back by {} s; CRL dates run ahead of it until it has caught up",
                    ahead.as_secs()
                ),
            ),
            None => self.readiness.clear("clock"),
        }
    }

    /// The ledger's mark, then the second witness: a witness ahead of the ledger then always means that the
    /// ledger was rolled back. A failure costs durability of the number, not the effect. Whether both have it.
    fn keep(&mut self, signed: &Signed) -> bool {
        let crl = &signed.crl;
        let mark = CrlMark { number: crl.number, this_update: crl.this_update };
        let issuer = signed.issuer.to_string();
        if let Err(error) = self.at_disk.during(|| self.ledger.record_crl_blocking(&issuer, mark)) {
            self.readiness.raise("CRL number in the ledger", error.to_string());
            return false;
        }
        self.issuers.recorded(signed.issuer);
        self.readiness.clear("CRL number in the ledger");
        failpoint::hit("revoke.before_witness");
        let mut kept = true;
        if let Some(witness) = self.issuers.witness(signed.issuer) {
            match self.at_disk.during(|| witness.publish(crl)) {
                Ok(()) => self.readiness.clear("CRL file"),
                Err(error) => {
                    self.readiness.raise("CRL file", error.to_string());
                    kept = false;
                }
            }
        }
        failpoint::hit("revoke.after_witness");
        kept
    }

    fn forget_expired(&self, ledger: Ledger, before: u64) {
        self.issuing.spawn(async move {
            if let Err(error) = ledger.expire(before).await {
                tracing::warn!(%error, "expired leases stay in the ledger for now");
            }
        });
    }
}

/// A CRL that nobody has seen yet.
struct Signed {
    issuer: KeyId,
    crl: Crl,
    revision: u64,
    at: Instant,
}
