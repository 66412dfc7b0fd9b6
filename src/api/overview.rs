//! What `mayfly status` says of the agent as a whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use mayfly_attestors::kubernetes::{Kubernetes, SourceState};
use mayfly_attestors::{ExecMode, Host};
use mayfly_proto::admin as proto;

use super::facts;
use super::sds::Sds;
use crate::authority::{Authorities, State};
use crate::clock::{Clock, unix_seconds};
use crate::config::Config;
use crate::federation::Federation;
use crate::id::TrustDomain;
use crate::ready::Readiness;
use crate::workload::{PublishedCrl, Workloads};

/// Everything a status answer is made of.
pub struct Sources {
    /// What the agent was told.
    pub config: Config,
    /// The machine.
    pub host: Arc<Host>,
    /// How exec is seen.
    pub exec_mode: ExecMode,
    /// Signing keys.
    pub authorities: Authorities,
    /// What holds readiness back.
    pub readiness: Readiness,
    /// Who is served.
    pub workloads: Workloads,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Unix seconds.
    pub started_at: u64,
    /// Other trust domains.
    pub federation: Federation,
    /// Why the last reload of entries was refused; empty when it was not.
    pub reload_error: Arc<arc_swap::ArcSwap<String>>,
    /// The same of policies.
    pub policy_error: Arc<arc_swap::ArcSwap<String>>,
    /// Envoy's secret discovery service.
    pub sds: Sds,
    /// Where HTTP is served.
    pub listeners: Vec<Listener>,
    /// On a node of Kubernetes.
    pub kubernetes: Option<Kubernetes>,
}

/// One HTTP listener.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listener {
    /// Its key in the configuration.
    pub name: String,
    /// A path, or address and port.
    pub address: String,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    /// The answer, from what is known at this moment.
    pub fn status(&self) -> proto::StatusResponse {
        let (workloads, live_leases) = self.workloads.counts();
        proto::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.config.trust_domain.to_string(),
            pid: std::process::id(),
            started_at: signed(self.started_at),
            ready: self.readiness.is_ready(),
            concerns: self.concerns(),
            workloads: wide(workloads),
            live_leases: wide(live_leases),
            revoked_leases: wide(self.workloads.revoked()),
            entries: wide(self.workloads.entries().borrow().len()),
            authorities: self.authorities(),
            crl: self.workloads.crl().map(|crl| published(&crl)),
            revocation_latency: self.latencies(),
            exec_watch: match &self.exec_mode {
                ExecMode::ProcConnector => "proc-connector".to_owned(),
                ExecMode::Unavailable { why } => format!("re-read only ({why})"),
            },
            platform: self.host.features().describe(),
            audit_path: self.config.audit.path.to_string_lossy().into_owned(),
            resident_bytes: facts::own_resident_bytes(),
            open_descriptors: facts::own_descriptors(),
            revocation_strengths: self.strengths(),
            last_reload_error: self.reload_error.load().to_string(),
            policy: self.policy(),
            live_tasks: wide(self.workloads.live_tasks()),
            sds: Some(self.sds.status()),
            federation: self.federation.rows().iter().map(super::bundles::bundle).collect(),
            listeners: self.listeners.iter().map(listener).collect(),
            pods: self.kubernetes.as_ref().map(pods),
            refused_origins: self.workloads.refused_origins().into_iter().map(refused_origin).collect(),
            attestors: self.workloads.attestors().iter().map(ToString::to_string).collect(),
        }
    }

    /// What holds readiness back, and what is amiss without doing so: others' outages are not ours.
    fn concerns(&self) -> Vec<String> {
        let mut all = self.readiness.concerns();
        all.extend(self.upstream(&all));
        all.extend(self.federation.concerns());
        all.extend(self.unknown_domains());
        all.extend(self.kubernetes());
        all.extend(self.frozen());
        all.extend(self.unasked_attestors());
        all
    }

    /// The policy set in force; `None` without one.
    fn policy(&self) -> Option<proto::Policy> {
        let set = self.workloads.policy().in_force();
        Some(proto::Policy {
            version: set.version()?.to_string(),
            policies: wide(set.policies()),
            targets: wide(set.catalogue().targets().count()),
            agents: wide(set.catalogue().agents().len()),
            templates: wide(set.catalogue().templates().count()),
            last_reload_error: self.policy_error.load().to_string(),
        })
    }

    /// A source of pods that does not tell just now. (One that never did holds readiness back.)
    fn kubernetes(&self) -> Option<String> {
        match self.kubernetes.as_ref()?.status().source {
            SourceState::Lost(why) => {
                Some(format!("kubernetes: new pods are not noticed ({why}); those that are known are served"))
            }
            SourceState::Starting(_) | SourceState::InSync => None,
        }
    }

    /// What the kill switch holds.
    fn frozen(&self) -> Vec<String> {
        let freezes = self.workloads.freezes();
        let flag = freezes.is_flagged().then(|| "frozen: everything, by the flag file".to_owned());
        let orders = freezes.iter().map(|(what, freeze)| {
            let why = if freeze.reason.is_empty() { String::new() } else { format!(": {}", freeze.reason) };
            format!("frozen: {what}, by {}{why}", freeze.by)
        });
        flag.into_iter().chain(orders).collect()
    }

    /// What is amiss with the upstream, unless it has become a concern of its own.
    fn upstream(&self, concerns: &[String]) -> Option<String> {
        let told = format!("upstream: {}", self.workloads.upstream_trouble()?);
        (!concerns.iter().any(|one| one.starts_with("upstream: "))).then_some(told)
    }

    /// Entries that federate with a trust domain of which nothing is known (and nothing will be).
    fn unknown_domains(&self) -> Vec<String> {
        let known: BTreeSet<TrustDomain> =
            self.federation.rows().into_iter().map(|row| row.trust_domain).collect();
        let entries = self.workloads.entries().borrow().clone();
        let named: BTreeSet<&TrustDomain> =
            entries.iter().flat_map(|entry| &entry.terms.federates_with).collect();
        let unknown = named.into_iter().filter(|domain| !known.contains(*domain));
        unknown
            .map(|domain| {
                format!(
                    "entries federate with {domain}, of which no bundle is known: write a `[[federation]]` table, or \
                     `mayfly bundle set {domain} FILE`"
                )
            })
            .collect()
    }

    /// Entries whose selectors no attestor gives that is switched on.
    fn unasked_attestors(&self) -> Vec<String> {
        let asked = self.workloads.attestors();
        let entries = self.workloads.entries().borrow().clone();
        let wanted =
            entries.iter().flat_map(|entry| &entry.selectors).map(|selector| selector.kind_and_key().0);
        let missing: BTreeSet<&str> = wanted.filter(|kind| !asked.contains(kind)).collect();
        let told = missing.into_iter().map(|kind| {
            format!("entries ask for `{kind}:…`, and that attestor is off, so they match nobody: see `[attest]` in docs/configuration.md")
        });
        told.collect()
    }

    fn authorities(&self) -> Vec<proto::Authority> {
        let set = self.authorities.current();
        let now = self.clock.wall();
        let state = |state: State, until| {
            let is_over = state == State::Active && until <= now;
            (if is_over { "expired" } else { state.as_str() }).to_owned()
        };
        let x509 = set.x509().iter().map(|one| proto::Authority {
            kind: "x509".to_owned(),
            state: state(one.state(), one.not_after()),
            key_id: one.key_id().to_string(),
            algorithm: one.algorithm().to_string(),
            not_after: signed(unix_seconds(one.not_after())),
        });
        let tokens = [("jwt", set.jwt()), ("wit", set.wit())].into_iter();
        let tokens = tokens.flat_map(|(kind, all)| all.iter().map(move |one| (kind, one)));
        let tokens = tokens.map(|(kind, one)| proto::Authority {
            kind: kind.to_owned(),
            state: state(one.state(), one.not_after()),
            key_id: one.kid().to_owned(),
            algorithm: one.algorithm().to_owned(),
            not_after: signed(unix_seconds(one.not_after())),
        });
        x509.chain(tokens).collect()
    }

    fn latencies(&self) -> Vec<proto::Latency> {
        let rows = self.workloads.latencies().into_iter().map(|(stage, figures)| proto::Latency {
            gap: stage.as_str().to_owned(),
            count: figures.count,
            p50_micros: micros(figures.p50),
            p99_micros: micros(figures.p99),
            max_micros: micros(figures.max),
        });
        rows.collect()
    }

    /// Architecture 5: three strengths, each with what bounds it.
    fn strengths(&self) -> Vec<proto::RevocationStrength> {
        let row = |name: &str, bound: String| proto::RevocationStrength { name: name.to_owned(), bound };
        let coalesce = self.config.revocation.coalesce.as_millis();
        let (x509, jwt) = (self.config.x509.ttl.as_secs(), self.config.jwt.ttl.as_secs());
        let wit = &self.config.wit;
        let wit = if wit.enabled { format!(", {} s (WIT)", wit.ttl.as_secs()) } else { String::new() };
        vec![
            row("in-path", "immediate: this agent is asked (Workload API, ValidateJWTSVID)".to_owned()),
            row(
                "informed",
                format!(
                    "new handshakes, after the next CRL (at most {coalesce} ms) has reached the verifier"
                ),
            ),
            row("everyone else", format!("residual lifetime: at most {x509} s (X.509), {jwt} s (JWT){wit}")),
        ]
    }
}

fn pods(kubernetes: &Kubernetes) -> proto::Pods {
    let status = kubernetes.status();
    let source = match status.source {
        SourceState::Starting(_) => "starting",
        SourceState::InSync => "in sync",
        SourceState::Lost(_) => "lost",
    };
    proto::Pods { source: source.to_owned(), known: wide(status.pods), waiting: wide(status.waiting) }
}

fn listener(listener: &Listener) -> proto::Listener {
    proto::Listener { name: listener.name.clone(), address: listener.address.clone() }
}

fn refused_origin((reason, count): (&'static str, u64)) -> proto::RefusedOrigin {
    proto::RefusedOrigin { reason: reason.to_owned(), count }
}

fn published(crl: &PublishedCrl) -> proto::Crl {
    proto::Crl {
        number: crl.number,
        this_update: signed(crl.this_update),
        next_update: signed(crl.next_update),
        entries: wide(crl.entries),
        bytes: wide(crl.bytes),
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn micros(took: std::time::Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
