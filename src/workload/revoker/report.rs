//! What is told of a revocation once it is public: the audit log, the timings, whoever waits.

use std::time::Instant;

use mayfly_attestors::failpoint;

use super::{RevokeJob, Revoker};
use crate::audit::{self, Event};
use crate::ledger::{Kind, Row};
use crate::revocation::Stage;
use crate::workload::lock;

/// When a CRL was ready, and when subscribers could see it.
pub(super) struct Stamps {
    pub(super) signed: Instant,
    pub(super) published: Instant,
}

impl Revoker {
    /// Reports the jobs of which verifiers know all.
    pub(super) fn answer(&mut self, stamps: &Stamps) {
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|job| self.issuers.has_published(job));
        self.waiting = waiting;
        self.report(ready, stamps);
    }

    fn report(&self, jobs: Vec<RevokeJob>, stamps: &Stamps) {
        if jobs.is_empty() {
            return;
        }
        failpoint::hit("revoke.before_audit");
        for job in jobs {
            let mut events = Vec::with_capacity(job.rows.len());
            if !job.rows.is_empty() {
                self.measure(&job, stamps);
            }
            let credentials = u64::try_from(job.rows.len()).unwrap_or(u64::MAX);
            for row in &job.rows {
                let crl_number = self.issuers.number(&row.issuer);
                let revocation = self.revocation(&job, row, stamps, credentials, crl_number);
                events.push(Event::CredentialRevoke {
                    agent: audit::Agent::of(row),
                    credential: audit::Credential::of(row),
                    revocation,
                });
            }
            if let Some(done) = job.done {
                // Nobody may be waiting any more.
                done.send(self.crl.borrow().as_ref().map_or(0, |crl| crl.number)).ok();
            }
            if !events.is_empty() {
                audit::trace::within(job.trace, || self.audit.note(events));
            }
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
            initiator: job.initiator.named(),
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
