//! `/metrics`: counts and sizes of the agent, never a name of anybody. Each label has a closed list of values, so the
//! page does not grow with what is served.

mod text;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use self::text::{Page, Sort};
use super::facts;
use super::listener::Door;
use super::overview::Sources;
use super::peer;
use crate::audit::{self, Counted};
use crate::authority::State;
use crate::clock::unix_seconds;
use crate::revocation::BUCKETS;

/// What metrics are made of.
#[derive(Clone)]
pub struct Metrics {
    sources: Arc<Sources>,
    audit: audit::Log,
    doors: Arc<Mutex<Vec<Door>>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Of these sources.
    pub fn new(sources: Arc<Sources>, audit: audit::Log) -> Self {
        Self { sources, audit, doors: Arc::default() }
    }

    /// One more socket to count at.
    pub fn watch(&self, door: Door) {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).push(door);
    }

    /// The page as it is now.
    pub fn page(&self) -> String {
        let mut page = Page::default();
        self.credentials(&mut page);
        self.tasks(&mut page);
        self.refusals(&mut page);
        self.revocations(&mut page);
        self.connections(&mut page);
        self.state(&mut page);
        self.process(&mut page);
        page.into_text()
    }

    fn credentials(&self, page: &mut Page) {
        let counts = self.audit.counts();
        let mut family = |name: &str, help: &str, pick: fn(&Counted) -> Option<&'static str>| {
            page.family(name, Sort::Counter, help);
            let picked = counts.iter().filter_map(|(counted, count)| Some((pick(counted)?, count)));
            picked.for_each(|(kind, count)| page.sample(name, &[("kind", kind)], count));
        };
        family("mayfly_credentials_issued_total", "First credentials issued.", |one| match one {
            Counted::Issued(kind) => Some(kind.as_str()),
            _ => None,
        });
        family("mayfly_credentials_renewed_total", "Credentials renewed.", |one| match one {
            Counted::Renewed(kind) => Some(kind.as_str()),
            _ => None,
        });
        family("mayfly_credentials_expired_total", "Credentials that ran out by themselves.", |one| {
            if let Counted::Expired(kind) = one { Some(kind.as_str()) } else { None }
        });
        let name = "mayfly_credentials_revoked_total";
        page.family(name, Sort::Counter, "Credentials taken back.");
        for (counted, count) in &counts {
            if let Counted::Revoked(kind, reason) = counted {
                page.sample(name, &[("kind", kind.as_str()), ("reason", reason.as_str())], count);
            }
        }
        let name = "mayfly_connections_cut_total";
        page.family(name, Sort::Counter, "Connections closed for cause.");
        for (counted, count) in &counts {
            if let Counted::Cut(reason) = counted {
                page.sample(name, &[("reason", reason)], count);
            }
        }
        let of = |counted| counts.get(&counted).copied().unwrap_or_default();
        let (rejected, replaced) = (of(Counted::EntriesRejected), of(Counted::SocketReplaced));
        page.single(
            "mayfly_entries_rejected_total",
            Sort::Counter,
            "Sets of entries that were not taken because something is wrong with them.",
            rejected,
        );
        page.single(
            "mayfly_policy_rejected_total",
            Sort::Counter,
            "Policy sets that were not taken because something is wrong with them.",
            of(Counted::PolicyRejected),
        );
        page.single(
            "mayfly_sockets_replaced_total",
            Sort::Counter,
            "Sockets that somebody removed or replaced, and that were put back.",
            replaced,
        );
    }

    fn tasks(&self, page: &mut Page) {
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let live = wide(self.sources.workloads.live_tasks());
        page.single("mayfly_tasks_live", Sort::Gauge, "Tasks that go on.", live);
        let counts = self.audit.counts();
        let begun = counts.get(&Counted::TaskBegun).copied().unwrap_or_default();
        page.single("mayfly_tasks_begun_total", Sort::Counter, "Tasks begun, children included.", begun);
        let name = "mayfly_tasks_ended_total";
        page.family(name, Sort::Counter, "Tasks ended, by the reason.");
        for (counted, count) in &counts {
            if let Counted::TaskEnded(reason) = counted {
                page.sample(name, &[("reason", reason)], count);
            }
        }
    }

    fn refusals(&self, page: &mut Page) {
        let name = "mayfly_refusals_total";
        page.family(name, Sort::Counter, "Requests refused, by the step that refused them.");
        for (phase, count) in self.sources.workloads.denials() {
            page.sample(name, &[("phase", phase)], count);
        }
    }

    fn revocations(&self, page: &mut Page) {
        let name = "mayfly_revocation_seconds";
        page.family(
            name,
            Sort::Histogram,
            "Steps of a revocation: seen, refused in memory, CRL signed, CRL with subscribers.",
        );
        let (bucket, sum, count) = (format!("{name}_bucket"), format!("{name}_sum"), format!("{name}_count"));
        for (stage, one) in self.sources.workloads.latency_buckets() {
            let stage = ("stage", stage.as_str());
            for (bound, below) in BUCKETS.iter().zip(&one.below) {
                page.sample(&bucket, &[stage, ("le", &bound.as_secs_f64().to_string())], below);
            }
            page.sample(&bucket, &[stage, ("le", "+Inf")], one.count);
            page.sample(&sum, &[stage], one.sum.as_secs_f64());
            page.sample(&count, &[stage], one.count);
        }
    }

    fn connections(&self, page: &mut Page) {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let label = |door: &Door| door.name.strip_suffix(" socket").unwrap_or(door.name);
        page.family("mayfly_connections", Sort::Gauge, "Open connections.");
        for door in &doors {
            page.sample("mayfly_connections", &[("socket", label(door))], door.open());
        }
        let name = "mayfly_connections_refused_total";
        page.family(name, Sort::Counter, "Connections closed before they were served.");
        for door in &doors {
            for (reason, count) in door.refusals().counts() {
                page.sample(name, &[("socket", label(door)), ("reason", reason.name())], count);
            }
        }
        page.single("mayfly_streams", Sort::Gauge, "Calls and streams being answered.", peer::all_streams());
    }

    fn state(&self, page: &mut Page) {
        let Sources { workloads, readiness, .. } = &*self.sources;
        let (live, leases) = workloads.counts();
        let concerns = readiness.concerns();
        let mut gauge = |name: &str, help: &str, value: u64| page.single(name, Sort::Gauge, help, value);
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        gauge("mayfly_ready", "1 if nothing holds readiness back.", u64::from(concerns.is_empty()));
        gauge(
            "mayfly_concerns",
            "What holds readiness back (`mayfly status` names it).",
            wide(concerns.len()),
        );
        gauge("mayfly_workloads", "Processes watched.", wide(live));
        gauge("mayfly_leases", "Live credentials.", wide(leases));
        gauge("mayfly_revoked_leases", "Credentials revoked and not expired.", wide(workloads.revoked()));
        gauge("mayfly_entries", "Registration entries in force.", wide(workloads.entries().borrow().len()));
        gauge("mayfly_audit_lines", "Lines of the audit log on the disk.", self.audit.head().seq);
        if let Some(crl) = workloads.crl() {
            gauge("mayfly_crl_entries", "Certificates in the CRL in force.", wide(crl.entries));
            gauge("mayfly_crl_bytes", "Its size.", wide(crl.bytes));
            gauge("mayfly_crl_this_update_timestamp_seconds", "When it was signed.", crl.this_update);
            gauge("mayfly_crl_next_update_timestamp_seconds", "When it is too old.", crl.next_update);
        }
        let name = "mayfly_authority_not_after_timestamp_seconds";
        page.family(name, Sort::Gauge, "When the first active signing authority of the kind ends.");
        for (kind, end) in self.authorities() {
            page.sample(name, &[("kind", kind)], end);
        }
    }

    fn authorities(&self) -> BTreeMap<&'static str, u64> {
        let set = self.sources.authorities.current();
        let x509 = set.x509().iter().map(|one| ("x509", one.state(), one.not_after()));
        let jwt = set.jwt().iter().map(|one| ("jwt", one.state(), one.not_after()));
        let wit = set.wit().iter().map(|one| ("wit", one.state(), one.not_after()));
        let mut ends = BTreeMap::new();
        for (kind, _, end) in x509.chain(jwt).chain(wit).filter(|(_, state, _)| *state == State::Active) {
            let end = unix_seconds(end);
            ends.entry(kind).and_modify(|first: &mut u64| *first = end.min(*first)).or_insert(end);
        }
        ends
    }

    fn process(&self, page: &mut Page) {
        page.family("mayfly_build_info", Sort::Gauge, "Always 1.");
        page.sample("mayfly_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        let mut gauge = |name: &str, help: &str, value: u64| page.single(name, Sort::Gauge, help, value);
        gauge("process_start_time_seconds", "When the agent started.", self.sources.started_at);
        gauge("process_resident_memory_bytes", "Resident memory.", facts::own_resident_bytes());
        gauge("process_open_fds", "Open descriptors.", facts::own_descriptors());
    }
}
