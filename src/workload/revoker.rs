//! The revoker: one thread that turns refusals in memory into what verifiers can read.
//!
//! Order: ledger → sign → publish → witness → audit. The first revocation after a quiet time goes out at
//! once (leading edge); those that follow within the coalescing time share the next CRL. Nothing that
//! fails here takes a refusal back: memory goes on refusing, the failure is a readiness concern, and the
//! work is tried again.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use mayfly_attestors::failpoint;
use tokio::sync::{oneshot, watch};

use super::{Denied, Parts, lock};
use crate::audit::{self, Event};
use crate::authority::Authorities;
use crate::clock::{Clock, unix_seconds};
use crate::ledger::{CrlMark, Kind, Ledger, Reason, Row};
use crate::ready::Readiness;
use crate::revocation::{self, Crl, CrlNumbering, CrlTurn, Stage, Timings, Witness};
use crate::trust::TrustSnapshot;

/// Answered with the number of the CRL in force once everything queued before is published.
pub(super) type Done = oneshot::Sender<u64>;

/// Leases refused in memory that verifiers do not know of yet.
#[derive(Debug)]
pub(super) struct RevokeJob {
    pub(super) rows: Vec<Row>,
    pub(super) reason: Reason,
    pub(super) initiator: Initiator,
    /// When, for the ledger.
    pub(super) at: SystemTime,
    /// When the agent learned of the cause.
    pub(super) seen: Instant,
    /// When memory began to refuse.
    pub(super) refused: Instant,
    pub(super) done: Option<Done>,
}

/// Who caused a revocation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Initiator {
    Kernel,
    Attestation,
    Entries,
    Operator,
    Agent,
    Holder,
}

/// How the revoker publishes.
#[derive(Debug)]
pub struct RevokerSettings {
    /// How long after one CRL the next may follow.
    pub coalesce: Duration,
    /// `nextUpdate` − now; a fresh CRL is signed after a third of it.
    pub next_update: Duration,
    /// Numbers and dates, continued from the run before.
    pub numbering: CrlNumbering,
    /// Where the last published CRL is kept; none with the authority in memory.
    pub witness: Option<Witness>,
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
    jobs: mpsc::Receiver<RevokeJob>,
    denied: Arc<Mutex<Denied>>,
    timings: Arc<Mutex<Timings>>,
) -> std::io::Result<watch::Receiver<Option<PublishedCrl>>> {
    let (crl, follow) = watch::channel(None);
    let mut revoker = Revoker {
        authorities: parts.authorities.clone(),
        ledger: parts.ledger.clone(),
        audit: parts.audit.clone(),
        clock: Arc::clone(&parts.clock),
        began: parts.clock.monotonic(),
        readiness: parts.readiness.clone(),
        trust: parts.trust.clone(),
        issuing: parts.issuing.clone(),
        denied,
        timings,
        crl,
        settings,
        unwritten: Vec::new(),
        waiting: Vec::new(),
        not_before: None,
        resign_at: None,
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
    began: Instant,
    readiness: Readiness,
    trust: watch::Sender<Arc<TrustSnapshot>>,
    issuing: tokio::runtime::Handle,
    denied: Arc<Mutex<Denied>>,
    timings: Arc<Mutex<Timings>>,
    crl: watch::Sender<Option<PublishedCrl>>,
    settings: RevokerSettings,
    /// Revocations the ledger has not taken yet.
    unwritten: Vec<(crate::id::LeaseId, Reason, u64)>,
    /// Jobs not yet published.
    waiting: Vec<RevokeJob>,
    /// The next CRL must not be signed before.
    not_before: Option<Instant>,
    /// A fresh CRL is due by age.
    resign_at: Option<Instant>,
}

/// How long after a failure the next attempt follows.
const RETRY: Duration = Duration::from_millis(500);
/// How long after a CRL that could not be recorded the next one follows: slow enough for the supply of dates.
const KEEP_AGAIN: Duration = Duration::from_secs(5);
/// How often the clock is looked at when nothing else happens: a step back must not wait for a revocation.
const CLOCK_LOOK: Duration = Duration::from_secs(5);

impl Revoker {
    fn run(mut self, jobs: &mpsc::Receiver<RevokeJob>) {
        loop {
            match jobs.recv_timeout(self.patience()) {
                Ok(job) => {
                    self.take(job);
                    while let Ok(more) = jobs.try_recv() {
                        self.take(more);
                    }
                    self.write_down();
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.not_before = None;
                    self.publish();
                    return;
                }
            }
            self.settle();
        }
    }

    fn patience(&self) -> Duration {
        let now = self.clock.monotonic();
        // Without a CRL there is nothing to answer with: the first one is due by age.
        let has_crl = self.crl.borrow().is_some();
        let publish = (has_crl && !self.waiting.is_empty()).then(|| self.not_before.unwrap_or(now));
        let next = publish.into_iter().chain(self.resign_at).min();
        next.map_or(CLOCK_LOOK, |at| at.saturating_duration_since(now)).min(CLOCK_LOOK)
    }

    fn take(&mut self, job: RevokeJob) {
        let at_millis = crate::clock::unix_millis(job.at);
        self.unwritten.extend(job.rows.iter().map(|row| (row.id, job.reason, at_millis)));
        self.waiting.push(job);
    }

    fn write_down(&mut self) {
        failpoint::hit("revoke.after_memory");
        let Some(at_millis) = self.unwritten.iter().map(|(_, _, at)| *at).min() else { return };
        let leases: Vec<_> = self.unwritten.iter().map(|(id, reason, _)| (*id, *reason)).collect();
        match self.ledger.revoke_blocking(&leases, at_millis) {
            Ok(()) => {
                self.unwritten.clear();
                self.readiness.clear("revocations in the ledger");
            }
            Err(error) => self.readiness.raise("revocations in the ledger", error.to_string()),
        }
        failpoint::hit("revoke.after_ledger");
    }

    /// Publishes what is due; answers jobs that need no CRL.
    fn settle(&mut self) {
        let now = self.clock.monotonic();
        self.clock_concern(self.clock.wall());
        let needs_crl = self.waiting.iter().any(|job| job.rows.iter().any(|row| row.kind == Kind::X509));
        let too_early = self.not_before.is_some_and(|at| at > now);
        let by_age = self.resign_at.is_some_and(|at| at <= now);
        if (needs_crl && !too_early) || by_age {
            self.publish();
        } else if !needs_crl && self.crl.borrow().is_some() {
            let jobs = std::mem::take(&mut self.waiting);
            let (seen, number) = (now, self.crl.borrow().as_ref().map_or(0, |crl| crl.number));
            self.report(jobs, &Stamps { signed: seen, published: seen }, number);
        }
    }

    fn publish(&mut self) {
        if !self.unwritten.is_empty() {
            self.write_down();
        }
        let wall = self.clock.wall();
        let now = self.clock.monotonic();
        self.clock_concern(wall);
        let (number, this_update) = match self.settings.numbering.next(wall, self.uptime()) {
            CrlTurn::Now { number, this_update } => (number, this_update),
            CrlTurn::NotBefore(wait) => {
                let at = now + wait;
                self.not_before = Some(at);
                // Before the first CRL nothing else would come back for it.
                self.resign_at = Some(self.resign_at.map_or(at, |due| due.max(at)));
                return;
            }
        };
        let (serials, revision) = {
            let mut denied = lock(&self.denied);
            denied.expire(wall);
            denied.serials()
        };
        let authorities = self.authorities.current();
        let authority = authorities.active_x509();
        let turn = (number, this_update);
        let crl = revocation::sign_and_lint(authority, &serials, turn, self.settings.next_update, wall);
        failpoint::hit("revoke.after_sign");
        match crl {
            Ok(crl) => self.put_out(&crl, revision),
            Err(error) => {
                self.readiness.raise("CRL", error.to_string());
                self.not_before = Some(now + RETRY);
                self.resign_at = Some(now + RETRY);
            }
        }
    }

    fn uptime(&self) -> Duration {
        self.clock.monotonic().saturating_duration_since(self.began)
    }

    fn clock_concern(&mut self, wall: SystemTime) {
        match self.settings.numbering.clock_concern(wall, self.uptime()) {
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

    fn put_out(&mut self, crl: &Crl, revision: u64) {
        let signed = self.clock.monotonic();
        let issuer = self.authorities.current().active_x509().key_id();
        self.trust.send_modify(|trust| *trust = Arc::new(trust.with_crl(issuer, crl.der.clone())));
        let published = self.clock.monotonic();
        lock(&self.denied).published(revision);
        self.not_before = Some(published + self.settings.coalesce);
        self.resign_at = Some(published + self.settings.next_update / 3);
        self.readiness.clear("CRL");
        if !self.keep(crl) {
            // The next CRL takes this one's place in the records; a quiet hour must not keep it waiting.
            self.resign_at = Some(published + KEEP_AGAIN.min(self.settings.next_update / 3));
        }
        let number = crl.number;
        self.crl.send_replace(Some(PublishedCrl {
            number,
            this_update: crl.this_update,
            next_update: crl.next_update,
            entries: crl.entries,
            bytes: crl.der.len(),
        }));
        let jobs = std::mem::take(&mut self.waiting);
        self.report(jobs, &Stamps { signed, published }, number);
    }

    /// The ledger's mark, then the second witness: a witness ahead of the ledger then always means that the
    /// ledger was rolled back. A failure costs durability of the number, not the effect. Whether both have it.
    fn keep(&self, crl: &Crl) -> bool {
        let mark = CrlMark { number: crl.number, this_update: crl.this_update };
        let issuer = self.authorities.current().active_x509().key_id().to_string();
        if let Err(error) = self.ledger.record_crl_blocking(&issuer, mark) {
            self.readiness.raise("CRL number in the ledger", error.to_string());
            return false;
        }
        self.readiness.clear("CRL number in the ledger");
        failpoint::hit("revoke.before_witness");
        let mut kept = true;
        if let Some(witness) = &self.settings.witness {
            match witness.publish(crl) {
                Ok(()) => self.readiness.clear("CRL file"),
                Err(error) => {
                    self.readiness.raise("CRL file", error.to_string());
                    kept = false;
                }
            }
        }
        failpoint::hit("revoke.after_witness");
        let before = unix_seconds(self.clock.wall()).saturating_sub(revocation::ROW_RETENTION_SECONDS);
        self.forget_expired(self.ledger.clone(), before);
        kept
    }

    fn forget_expired(&self, ledger: Ledger, before: u64) {
        self.issuing.spawn(async move {
            if let Err(error) = ledger.expire(before).await {
                tracing::warn!(%error, "expired leases stay in the ledger for now");
            }
        });
    }

    fn report(&self, jobs: Vec<RevokeJob>, stamps: &Stamps, crl_number: u64) {
        failpoint::hit("revoke.before_audit");
        let mut events = Vec::new();
        for job in jobs {
            if !job.rows.is_empty() {
                self.measure(&job, stamps);
            }
            let credentials = u64::try_from(job.rows.len()).unwrap_or(u64::MAX);
            for row in &job.rows {
                let revocation = self.revocation(&job, row, stamps, credentials, crl_number);
                events.push(Event::CredentialRevoke {
                    agent: audit::Agent::of(row),
                    credential: audit::Credential::of(row),
                    revocation,
                });
            }
            if let Some(done) = job.done {
                // Nobody may be waiting any more.
                done.send(crl_number).ok();
            }
        }
        if !events.is_empty() {
            self.audit.note(events);
        }
    }

    fn measure(&self, job: &RevokeJob, stamps: &Stamps) {
        let mut timings = lock(&self.timings);
        timings.record(Stage::SeenToRefused, job.refused.saturating_duration_since(job.seen));
        if job.rows.iter().any(|row| row.kind == Kind::X509) {
            timings.record(Stage::RefusedToSigned, stamps.signed.saturating_duration_since(job.refused));
            timings
                .record(Stage::SignedToPublished, stamps.published.saturating_duration_since(stamps.signed));
            let whole = stamps.published.saturating_duration_since(job.seen);
            timings.record(Stage::SeenToPublished, whole);
        }
    }

    fn revocation(
        &self,
        job: &RevokeJob,
        row: &Row,
        stamps: &Stamps,
        credentials: u64,
        crl_number: u64,
    ) -> audit::Revocation {
        let (wall, now) = (self.clock.wall(), self.clock.monotonic());
        let at = |moment: Instant| wall.checked_sub(now.saturating_duration_since(moment));
        let in_crl = row.kind == Kind::X509;
        audit::Revocation {
            reason: job.reason,
            initiator: job.initiator.as_str().to_owned(),
            credentials,
            exited: None,
            seen: at(job.seen),
            signed: in_crl.then(|| at(stamps.signed)).flatten(),
            published: in_crl.then(|| at(stamps.published)).flatten(),
            crl_number: in_crl.then_some(crl_number),
            latency: stamps.published.saturating_duration_since(job.seen),
        }
    }
}

/// When a CRL was ready, and when subscribers could see it.
struct Stamps {
    signed: Instant,
    published: Instant,
}

impl Initiator {
    fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Attestation => "attestation",
            Self::Entries => "entries",
            Self::Operator => "operator",
            Self::Agent => "agent",
            Self::Holder => "holder",
        }
    }
}
