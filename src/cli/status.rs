//! `mayfly status`: how the agent is, and how fast it takes back.

use mayfly_proto::admin::{Crl, Policy, Sds, StatusRequest, StatusResponse};
use serde::Serialize;

use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, cell, count, millis, relative, size, stamp_unix};
use super::{Context, bundle};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly status
  mayfly status --output json | jq '.revocation_latency[] | select(.gap == \"seen_to_published\")'

Exit code: 8 when the agent answers but is not ready.";

/// `mayfly status`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Answer {
    version: String,
    trust_domain: String,
    pid: u32,
    started_at: String,
    ready: bool,
    concerns: Vec<String>,
    workloads: u64,
    live_leases: u64,
    revoked_leases: u64,
    entries: u64,
    authorities: Vec<AuthorityJson>,
    crl: Option<CrlJson>,
    revocation_latency: Vec<LatencyJson>,
    exec_watch: String,
    platform: Vec<String>,
    audit_path: String,
    resident_bytes: u64,
    open_descriptors: u64,
    revocation_strengths: Vec<StrengthJson>,
    last_reload_error: String,
    sds: SdsJson,
    federation: Vec<bundle::BundleJson>,
    listeners: Vec<ListenerJson>,
    refused_origins: Vec<RefusedJson>,
    attestors: Vec<String>,
    pods: Option<PodsJson>,
    policy: Option<PolicyJson>,
    live_tasks: u64,
}

/// The policy set in force.
#[derive(Serialize)]
struct PolicyJson {
    version: String,
    policies: u64,
    targets: u64,
    agents: u64,
    templates: u64,
    last_reload_error: String,
}

/// Pods of this node, where it is one of Kubernetes.
#[derive(Serialize)]
struct PodsJson {
    source: String,
    known: u64,
    waiting: u64,
}

/// Processes whose container was not told.
#[derive(Serialize)]
struct RefusedJson {
    reason: String,
    count: u64,
}

/// Envoy's secret discovery service since the agent started.
#[derive(Default, Serialize)]
struct SdsJson {
    streams: u64,
    waiting: u64,
    responses: u64,
    acknowledged: u64,
    refused: u64,
    last_refusal: String,
    withdrawn: u64,
    crl_withheld: Vec<String>,
}

impl From<Sds> for SdsJson {
    fn from(sds: Sds) -> Self {
        Self {
            streams: sds.streams,
            waiting: sds.waiting,
            responses: sds.responses,
            acknowledged: sds.acknowledged,
            refused: sds.refused,
            last_refusal: sds.last_refusal,
            withdrawn: sds.withdrawn,
            crl_withheld: sds.crl_withheld,
        }
    }
}

#[derive(Serialize)]
struct ListenerJson {
    name: String,
    address: String,
}

#[derive(Serialize)]
struct AuthorityJson {
    kind: String,
    state: String,
    key_id: String,
    algorithm: String,
    not_after: String,
}

#[derive(Serialize)]
struct CrlJson {
    number: u64,
    this_update: String,
    next_update: String,
    entries: u64,
    bytes: u64,
}

/// One row of the histogram, microseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LatencyJson {
    pub(crate) gap: String,
    pub(crate) count: u64,
    pub(crate) p50_micros: u64,
    pub(crate) p99_micros: u64,
    pub(crate) max_micros: u64,
}

#[derive(Serialize)]
struct StrengthJson {
    name: String,
    bound: String,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let connection = target.connect().await?;
    let status = answer(connection.admin().status(StatusRequest {})).await?.into_inner();
    let ready = status.ready;
    if args.output.is_json() {
        context.console.json(&json(status))?;
    } else {
        context.console.lines(text(&status))?;
    }
    Ok(if ready { Exit::Ok } else { Exit::Unreachable })
}

/// The histogram's rows.
pub(crate) fn latency(status: &StatusResponse) -> Vec<LatencyJson> {
    let rows = status.revocation_latency.iter();
    rows.map(|row| LatencyJson {
        gap: row.gap.clone(),
        count: row.count,
        p50_micros: row.p50_micros,
        p99_micros: row.p99_micros,
        max_micros: row.max_micros,
    })
    .collect()
}

fn json(status: StatusResponse) -> Answer {
    let revocation_latency = latency(&status);
    let authority = |a: mayfly_proto::admin::Authority| AuthorityJson {
        kind: a.kind,
        state: a.state,
        key_id: a.key_id,
        algorithm: a.algorithm,
        not_after: stamp_unix(a.not_after),
    };
    let crl = |crl: Crl| CrlJson {
        number: crl.number,
        this_update: stamp_unix(crl.this_update),
        next_update: stamp_unix(crl.next_update),
        entries: crl.entries,
        bytes: crl.bytes,
    };
    let strengths = status.revocation_strengths.into_iter();
    let refused = status.refused_origins.into_iter();
    Answer {
        version: status.version,
        trust_domain: status.trust_domain,
        pid: status.pid,
        started_at: stamp_unix(status.started_at),
        ready: status.ready,
        concerns: status.concerns,
        workloads: status.workloads,
        live_leases: status.live_leases,
        revoked_leases: status.revoked_leases,
        entries: status.entries,
        authorities: status.authorities.into_iter().map(authority).collect(),
        crl: status.crl.map(crl),
        revocation_latency,
        exec_watch: status.exec_watch,
        platform: status.platform,
        audit_path: status.audit_path,
        resident_bytes: status.resident_bytes,
        open_descriptors: status.open_descriptors,
        revocation_strengths: strengths.map(|s| StrengthJson { name: s.name, bound: s.bound }).collect(),
        last_reload_error: status.last_reload_error,
        sds: status.sds.map(SdsJson::from).unwrap_or_default(),
        federation: status.federation.into_iter().map(bundle::json).collect(),
        listeners: status
            .listeners
            .into_iter()
            .map(|l| ListenerJson { name: l.name, address: l.address })
            .collect(),
        refused_origins: refused.map(|one| RefusedJson { reason: one.reason, count: one.count }).collect(),
        attestors: status.attestors,
        live_tasks: status.live_tasks,
        pods: status.pods.map(|p| PodsJson { source: p.source, known: p.known, waiting: p.waiting }),
        policy: status.policy.map(|p| PolicyJson {
            version: p.version,
            policies: p.policies,
            targets: p.targets,
            agents: p.agents,
            templates: p.templates,
            last_reload_error: p.last_reload_error,
        }),
    }
}

fn sds_lines(sds: &Sds) -> Vec<String> {
    let streams = count(sds.streams, "stream", "streams");
    let mut lines = vec![format!(
        "SDS        {streams} ({} waiting), {} sent, {} accepted, {} refused, {} withdrawn",
        sds.waiting, sds.responses, sds.acknowledged, sds.refused, sds.withdrawn
    )];
    if !sds.last_refusal.is_empty() {
        lines.push(format!("  ! last refusal: {}", cell(&sds.last_refusal)));
    }
    lines.extend(sds.crl_withheld.iter().map(|why| format!("  ! no CRL in SDS for {}", cell(why))));
    lines
}

fn policy_line(policy: &Policy) -> String {
    let (policies, targets) =
        (count(policy.policies, "policy", "policies"), count(policy.targets, "target", "targets"));
    let version = policy.version.get(..12).unwrap_or(&policy.version);
    format!("policy     {policies} for {targets}, version {}", cell(version))
}

/// What is not as it should be.
fn amiss(status: &StatusResponse) -> Vec<String> {
    let mut lines: Vec<String> =
        status.concerns.iter().map(|concern| format!("  ! {}", cell(concern))).collect();
    let policies = status.policy.as_ref().map_or("", |policy| &policy.last_reload_error);
    for (what, why) in [("entries", status.last_reload_error.as_str()), ("policies", policies)] {
        if !why.is_empty() {
            lines.push(format!("  ! {what} not reloaded: {}", cell(why)));
        }
    }
    lines
}

fn text(status: &StatusResponse) -> Vec<String> {
    let now = SystemClock.wall();
    let word = if status.ready { "ready" } else { "not ready" };
    let since = relative(status.started_at, now);
    let mut lines = vec![format!(
        "{word}  {}  mayfly {}, pid {}, started {since}",
        cell(&status.trust_domain),
        cell(&status.version),
        status.pid
    )];
    lines.extend(amiss(status));
    let (live, revoked) = (status.live_leases, status.revoked_leases);
    lines.push(format!("workloads  {}, {live} live and {revoked} revoked leases", status.workloads));
    if status.policy.is_some() {
        lines.push(format!("tasks      {} live", status.live_tasks));
    }
    lines.push(format!("entries    {}", status.entries));
    lines.extend(status.policy.as_ref().map(policy_line));
    let (resident, open) = (size(status.resident_bytes), status.open_descriptors);
    lines.push(format!("resources  {resident} resident, {}", count(open, "descriptor", "descriptors")));
    lines.push(format!("exec       {}", cell(&status.exec_watch)));
    lines.extend(attestors(status));
    if !status.audit_path.is_empty() {
        lines.push(format!("audit      {}", cell(&status.audit_path)));
    }
    if let Some(crl) = &status.crl {
        let (entries, bytes) = (count(crl.entries, "entry", "entries"), size(crl.bytes));
        let next = relative(crl.next_update, now);
        lines.push(format!("CRL        {}, {entries}, {bytes}, next at the latest {next}", crl.number));
    }
    lines.extend(status.sds.as_ref().map(sds_lines).unwrap_or_default());
    lines.extend(
        status.listeners.iter().map(|l| format!("listening  {} {}", cell(&l.name), cell(&l.address))),
    );
    lines.extend(status.pods.iter().map(|pods| {
        let waiting = count(pods.waiting, "attestation waits", "attestations wait");
        format!("pods       {} known, {waiting}, source {}", pods.known, cell(&pods.source))
    }));
    let mut authorities = Table::new(["AUTHORITY", "STATE", "KEY", "ALGORITHM", "UNTIL"]);
    for a in &status.authorities {
        let until = stamp_unix(a.not_after);
        authorities.row([a.kind.clone(), a.state.clone(), a.key_id.clone(), a.algorithm.clone(), until]);
    }
    lines.extend(authorities.lines());
    if !status.federation.is_empty() {
        lines.extend(bundle::table(&status.federation).lines());
    }
    let mut latency = Table::new(["REVOCATION", "COUNT", "P50", "P99", "MAX"]);
    for row in &status.revocation_latency {
        let shown = |micros| if row.count == 0 { "-".to_owned() } else { millis(micros) };
        let times = [row.p50_micros, row.p99_micros, row.max_micros].map(shown);
        let [p50, p99, max] = times;
        latency.row([row.gap.replace('_', " "), row.count.to_string(), p50, p99, max]);
    }
    lines.extend(latency.lines());
    let strengths = status.revocation_strengths.iter();
    lines.extend(strengths.map(|s| format!("{}: {}", cell(&s.name), cell(&s.bound))));
    lines.extend(status.platform.iter().map(|fact| format!("platform: {}", cell(fact))));
    lines
}

fn attestors(status: &StatusResponse) -> Vec<String> {
    let mut lines = Vec::new();
    if !status.attestors.is_empty() {
        lines.push(format!("attestors  {}", cell(&status.attestors.join(", "))));
    }
    let refused = status.refused_origins.iter();
    let refused: Vec<String> = refused.map(|one| format!("{} {}", one.count, cell(&one.reason))).collect();
    if !refused.is_empty() {
        lines.push(format!("containers not told: {}", refused.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use mayfly_proto::admin::{Authority, Latency, RevocationStrength};

    use super::super::testing::agent::Agent;
    use super::*;

    fn rejected_policy() -> Policy {
        Policy {
            version: "0123456789abcdef".into(),
            policies: 1,
            targets: 2,
            last_reload_error: "a.cedar:1:2: no".into(),
            ..Policy::default()
        }
    }

    fn agent(ready: bool) -> Agent {
        let agent = Agent::start();
        let latency = Latency {
            gap: "seen_to_published".into(),
            count: 3,
            p50_micros: 1200,
            p99_micros: 4812,
            max_micros: 4900,
        };
        let never = Latency { gap: "seen_to_refused".into(), ..Latency::default() };
        let authority = Authority {
            kind: "x509".into(),
            state: "active".into(),
            key_id: "ab".into(),
            algorithm: "ec-p256".into(),
            not_after: 4_102_444_800,
        };
        let now = crate::clock::unix_seconds(SystemClock.wall());
        *agent.script.status.lock().expect("lock") = Ok(StatusResponse {
            version: "0.1.0".into(),
            trust_domain: "example.org".into(),
            pid: 7,
            started_at: i64::try_from(now).expect("small") - 3700,
            ready,
            concerns: if ready { Vec::new() } else { vec!["audit log cannot be written".into()] },
            workloads: 2,
            live_leases: 3,
            live_tasks: 2,
            revoked_leases: 1,
            entries: 4,
            authorities: vec![authority],
            crl: Some(Crl { number: 9, this_update: 1, next_update: 2, entries: 1, bytes: 300 }),
            revocation_latency: vec![latency, never],
            exec_watch: "proc-connector".into(),
            platform: vec!["Linux 6.18, all features".into()],
            audit_path: "/var/lib/mayfly/audit.jsonl".into(),
            resident_bytes: 20 << 20,
            open_descriptors: 40,
            revocation_strengths: vec![RevocationStrength {
                name: "in-path".into(),
                bound: "immediate".into(),
            }],
            last_reload_error: String::new(),
            sds: Some(Sds {
                streams: 3,
                waiting: 1,
                refused: 1,
                last_refusal: "no".into(),
                ..Sds::default()
            }),
            federation: Vec::new(),
            listeners: vec![mayfly_proto::admin::Listener {
                name: "http".into(),
                address: "/run/mayfly/http/http.sock".into(),
            }],
            refused_origins: vec![mayfly_proto::admin::RefusedOrigin { reason: "monitor".into(), count: 2 }],
            attestors: vec!["unix".into(), "docker".into()],
            pods: Some(mayfly_proto::admin::Pods { source: "in sync".into(), known: 12, waiting: 1 }),
            policy: Some(rejected_policy()),
        });
        agent
    }

    #[tokio::test]
    async fn says_how_the_agent_is() {
        let ran = agent(true).run(&["status"]).await;
        assert_eq!(ran.exit, Exit::Ok);
        let lines: Vec<&str> = ran.out.lines().filter(|line| !line.starts_with("CRL")).collect();
        let want = "\
ready  example.org  mayfly 0.1.0, pid 7, started 1h01m ago
  ! policies not reloaded: a.cedar:1:2: no
workloads  2, 3 live and 1 revoked leases
tasks      2 live
entries    4
policy     1 policy for 2 targets, version 0123456789ab
resources  20.0 MiB resident, 40 descriptors
exec       proc-connector
attestors  unix, docker
containers not told: 2 monitor
audit      /var/lib/mayfly/audit.jsonl
SDS        3 streams (1 waiting), 0 sent, 0 accepted, 1 refused, 0 withdrawn
  ! last refusal: no
listening  http /run/mayfly/http/http.sock
pods       12 known, 1 attestation waits, source in sync
AUTHORITY  STATE   KEY  ALGORITHM  UNTIL
x509       active  ab   ec-p256    2100-01-01T00:00:00Z
REVOCATION         COUNT  P50       P99       MAX
seen to published  3      1.200 ms  4.812 ms  4.900 ms
seen to refused    0      -         -         -
in-path: immediate
platform: Linux 6.18, all features";
        assert_eq!(lines.join("\n"), want);
        assert!(ran.out.contains("CRL        9, 1 entry, 300 B, next at the latest "));
    }

    #[tokio::test]
    async fn an_agent_that_is_not_ready_exits_8_and_says_why() {
        let ran = agent(false).run(&["status"]).await;
        assert_eq!(ran.exit, Exit::Unreachable);
        assert!(ran.out.starts_with("not ready") && ran.out.contains("  ! audit log cannot be written"));
    }

    #[tokio::test]
    async fn json_has_all_of_it() {
        let json = agent(true).run(&["status", "--output", "json"]).await.json();
        assert_eq!(json["revocation_latency"][0]["p99_micros"], 4812);
        assert_eq!(json["crl"]["next_update"], "1970-01-01T00:00:02Z");
        assert_eq!(json["authorities"][0]["not_after"], "2100-01-01T00:00:00Z");
        let keys = json.as_object().expect("object").len();
        assert_eq!(keys, 28, "one for each field of the status message");
    }
}
