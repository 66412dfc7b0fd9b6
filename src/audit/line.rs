//! Turns an event into its JSON object. The order of the fields, and every name, are part of schema 1.

mod agent;
mod detail;
mod task;

use std::time::SystemTime;

use mayfly_attestors::BootId;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use self::agent::AgentPart;
use self::detail::{Detail, first};
use self::task::{ApprovalPart, GrantPart, PolicyPart, TaskPart, UserPart};
use super::chain::{Head, VERSION};
use super::event::{Agent, Credential, Decision, Event, Found, Revocation, TokenPrint};
use super::request::Request;
use super::task::{EndWords, PolicyDecision, TaskEnd, TaskFacts, TaskStep};
use super::text::{PlainJson, capped};
use super::trace::{Stamp, Trace};
use crate::ledger::Kind;

/// Who writes.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) node: String,
    pub(super) boot_id: BootId,
}

/// Appends the event's line to `out` and moves the chain on.
pub(super) fn append(
    origin: &Origin,
    head: &mut Head,
    stamp: impl Into<Stamp>,
    event: &Event,
    out: &mut Vec<u8>,
) {
    let Stamp { at, trace } = stamp.into();
    let (name, severity) = name_and_severity(event);
    let line = Line {
        v: VERSION,
        ts: timestamp(at),
        seq: head.seq + 1,
        node: capped(&origin.node),
        boot_id: origin.boot_id.to_string(),
        prev_hash: head.hash_text(),
        event: name,
        severity,
        trace_id: trace.as_ref().map(Trace::trace_id),
        span_id: trace.as_ref().map(Trace::span_id),
        body: Body::of(event),
    };
    let mut object = Vec::with_capacity(512);
    let mut json = serde_json::Serializer::with_formatter(&mut object, PlainJson);
    // Numbers, texts and lists always have a JSON form, and memory takes every write.
    line.serialize(&mut json).ok();
    head.push(&String::from_utf8_lossy(&object), out);
}

/// RFC 3339 in UTC, always with nine decimals.
pub(super) fn timestamp(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");
    // Fails only beyond the year 9999.
    OffsetDateTime::from(at).format(format).unwrap_or_default()
}

#[derive(Serialize)]
struct Line {
    v: u64,
    ts: String,
    seq: u64,
    node: String,
    boot_id: String,
    prev_hash: String,
    event: &'static str,
    severity: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<String>,
    #[serde(flatten)]
    body: Body,
}

#[derive(Default, Serialize)]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<AgentPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_behalf_of: Option<UserPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskPart>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chain: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<DecisionPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Request>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<CredentialPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<ApprovalPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revocation: Option<RevocationPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Detail>,
}

#[derive(Serialize)]
struct DecisionPart {
    result: &'static str,
    phase: &'static str,
    reason: String,
    #[serde(flatten)]
    policy: PolicyPart,
    /// Where policy was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached: Option<bool>,
}

#[derive(Serialize)]
struct CredentialPart {
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    issuer: String,
    entry: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aud: Vec<String>,
    /// Seconds.
    ttl: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_sha256_16: Option<String>,
    #[serde(flatten)]
    grant: GrantPart,
}

#[derive(Serialize)]
struct RevocationPart {
    reason: &'static str,
    initiator: String,
    credentials: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    descendants: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exited_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crl_number: Option<u64>,
    /// Microsecond precision.
    latency_ms: f64,
    /// The agent's own words, and no fact.
    #[serde(skip_serializing_if = "Option::is_none")]
    untrusted_note: Option<String>,
    /// The operator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    operator_note: Option<String>,
}

impl Body {
    fn of(event: &Event) -> Self {
        let with = |detail| Self { detail: Some(detail), ..Self::default() };
        let of = |agent: &Agent| Self { agent: Some(agent.into()), ..Self::default() };
        match event {
            Event::AgentStart { version, posture } => {
                with(Detail::Start { version: capped(version), posture: first(posture.iter()) })
            }
            Event::AgentStop { reason } => with(Detail::Reason { reason: capped(reason) }),
            Event::Attested { agent, found } => {
                Self { detail: Some(Detail::Reason { reason: found.as_str().to_owned() }), ..of(agent) }
            }
            Event::AttestDenied { agent, decision } => Self { decision: Some(decision.into()), ..of(agent) },
            Event::AgentCut { agent, reason } => {
                Self { detail: Some(Detail::Reason { reason: reason.as_str().to_owned() }), ..of(agent) }
            }
            Event::LaunchRecorded { agent, program, measured } => {
                let (program, measured) = (capped(program), first(measured.iter()));
                Self { detail: Some(Detail::Launch { program, measured }), ..of(agent) }
            }
            Event::CredentialIssue { agent, credential }
            | Event::CredentialRenew { agent, credential }
            | Event::CredentialExpire { agent, credential } => Self::of_credential(agent, credential),
            Event::CredentialRevoke { agent, credential, revocation } => {
                Self { revocation: Some(revocation.into()), ..Self::of_credential(agent, credential) }
            }
            Event::CredentialReuse { agent, credential, seen } => Self {
                detail: Some(Detail::Reason { reason: capped(seen) }),
                ..Self::of_credential(agent, credential)
            },
            Event::Task { agent, task, decision, end, .. } => Self {
                decision: decision.as_deref().map(Into::into),
                revocation: end.as_ref().map(Into::into),
                ..Self::of_task(agent, task)
            },
            Event::Decided { agent, task, decision } => Self {
                decision: Some(decision.as_ref().into()),
                request: decision.request.as_ref().map(Request::capped),
                ..Self::of_task(agent, task)
            },
            Event::Approval { agent, approval, .. } => Self {
                task: Some(TaskPart::named(approval.task)),
                approval: Some(approval.as_ref().into()),
                request: approval.request.as_ref().map(Request::capped),
                ..of(agent)
            },
            Event::AdminRevoke { by, target, credentials } => {
                let detail = Detail::Admin { target: capped(target), credentials: *credentials };
                Self { detail: Some(detail), ..of(by) }
            }
            Event::Killed { agent, .. } => {
                Self { detail: event.detail(), ..agent.as_ref().map_or_else(Self::default, of) }
            }
            Event::AuthorityStep { by, .. }
            | Event::BundleOrder { by, .. }
            | Event::Freeze { by, .. }
            | Event::Thaw { by, .. } => {
                Self { detail: event.detail(), ..by.as_ref().map_or_else(Self::default, of) }
            }
            other => other.detail().map_or_else(Self::default, with),
        }
    }
}

impl Body {
    fn of_credential(agent: &Agent, credential: &Credential) -> Self {
        Self {
            agent: Some(agent.into()),
            task: credential.task.map(TaskPart::named),
            request: credential.grant.as_ref().and_then(|grant| grant.request.as_ref()).map(Request::capped),
            credential: Some(credential.into()),
            ..Self::default()
        }
    }

    fn of_task(agent: &Agent, task: &TaskFacts) -> Self {
        Self {
            agent: Some(agent.into()),
            on_behalf_of: task.user.as_ref().map(Into::into),
            task: Some(TaskPart::of(task)),
            chain: first(task.chain.iter()),
            ..Self::default()
        }
    }
}

impl From<&Decision> for DecisionPart {
    fn from(decision: &Decision) -> Self {
        let (phase, reason) = (decision.phase, capped(&decision.reason));
        let cached = (phase == POLICY_PHASE).then_some(CACHED);
        Self { result: "deny", phase, reason, policy: PolicyPart::default(), cached }
    }
}

impl From<&PolicyDecision> for DecisionPart {
    fn from(decision: &PolicyDecision) -> Self {
        let reason = decision.reason.to_owned();
        let cached = decision.evaluation_id.is_some().then_some(CACHED);
        Self { result: decision.result, phase: decision.phase, reason, policy: decision.into(), cached }
    }
}

impl From<&TaskEnd> for RevocationPart {
    fn from(end: &TaskEnd) -> Self {
        let (untrusted_note, operator_note) = match &end.words {
            Some(EndWords::Agent(words)) => (Some(capped(words)), None),
            Some(EndWords::Operator(words)) => (None, Some(capped(words))),
            None => (None, None),
        };
        Self {
            reason: end.reason,
            initiator: capped(&end.initiator),
            credentials: end.credentials,
            descendants: Some(end.descendants),
            exited_at: None,
            seen_at: None,
            signed_at: None,
            published_at: None,
            crl_number: None,
            latency_ms: (end.latency.as_secs_f64() * 1e6).round() / 1e3,
            untrusted_note,
            operator_note,
        }
    }
}

impl From<&Credential> for CredentialPart {
    fn from(credential: &Credential) -> Self {
        let id = Some(credential.id.to_string());
        let (serial, jti) = match credential.kind {
            Kind::X509 => (id, None),
            Kind::Jwt | Kind::Wit | Kind::Access => (None, id),
        };
        Self {
            format: credential.kind.as_str(),
            serial,
            jti,
            issuer: capped(&credential.issuer),
            entry: capped(credential.entry.as_str()),
            aud: first(credential.audience.iter()),
            ttl: credential.ttl.as_secs(),
            token_sha256_16: credential.token.map(TokenPrint::text),
            grant: credential.grant.as_deref().map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<&Revocation> for RevocationPart {
    fn from(revocation: &Revocation) -> Self {
        Self {
            reason: revocation.reason.as_str(),
            initiator: capped(&revocation.initiator),
            credentials: revocation.credentials,
            descendants: None,
            exited_at: revocation.exited.map(timestamp),
            seen_at: revocation.seen.map(timestamp),
            signed_at: revocation.signed.map(timestamp),
            published_at: revocation.published.map(timestamp),
            crl_number: revocation.crl_number,
            latency_ms: (revocation.latency.as_secs_f64() * 1e6).round() / 1e3,
            untrusted_note: None,
            operator_note: None,
        }
    }
}

fn name_and_severity(event: &Event) -> (&'static str, &'static str) {
    match event {
        Event::AgentStart { .. } => ("agent.start", INFO),
        Event::AgentStop { .. } => ("agent.stop", INFO),
        Event::Attested { found: Found::Changed, .. } => ("agent.attested", NOTICE),
        Event::Attested { .. } => ("agent.attested", INFO),
        Event::AttestDenied { .. } => ("agent.attest_denied", WARNING),
        Event::AgentCut { .. } => ("agent.cut", WARNING),
        Event::ExecWatchLost { .. } => ("agent.exec_watch_lost", WARNING),
        Event::SocketReplaced { .. } => ("agent.socket_replaced", WARNING),
        Event::LaunchRecorded { .. } => ("agent.launch", INFO),
        Event::CredentialIssue { .. } => ("credential.issue", INFO),
        Event::CredentialRenew { .. } => ("credential.renew", INFO),
        Event::CredentialExpire { .. } => ("credential.expire", INFO),
        Event::CredentialRevoke { .. } => ("credential.revoke", NOTICE),
        Event::CredentialReuse { .. } => ("credential.reuse_after_end", CRITICAL),
        Event::EntriesChanged { .. } => ("entries.changed", NOTICE),
        Event::EntriesRejected { .. } => ("entries.rejected", WARNING),
        Event::PolicyLoaded { .. } => ("policy.loaded", NOTICE),
        Event::PolicyRejected { .. } => ("policy.rejected", WARNING),
        Event::AuthorityLoaded { .. } => ("authority.loaded", NOTICE),
        Event::AuthorityStep { .. } => ("authority.step", NOTICE),
        Event::LedgerLost { .. } => ("ledger.lost", CRITICAL),
        Event::AdminRevoke { .. } => ("admin.revoke", NOTICE),
        Event::BundleFetch { outcome: Err(_), .. } | Event::BundleFetch { went_back: true, .. } => {
            ("bundle.fetch", WARNING)
        }
        Event::BundleFetch { .. } => ("bundle.fetch", INFO),
        Event::BundleOrder { .. } => ("bundle.order", NOTICE),
        Event::Task { step: step @ (TaskStep::Suspend | TaskStep::Ended), .. } => (task::step(*step), NOTICE),
        Event::Task { step, .. } => (task::step(*step), INFO),
        Event::Decided { decision, .. } if decision.result == "allow" => (task::decided(decision), INFO),
        Event::Decided { decision, .. } => (task::decided(decision), WARNING),
        Event::Approval { step, .. } => (task::approved(*step), NOTICE),
        Event::Freeze { .. } => ("freeze", CRITICAL),
        Event::Killed { failed: None, .. } => ("agent.killed", WARNING),
        Event::Killed { failed: Some(_), .. } => ("agent.not_killed", CRITICAL),
        Event::Thaw { .. } => ("thaw", NOTICE),
        Event::Checkpoint { .. } => ("audit.checkpoint", INFO),
        Event::Recovered { .. } => ("audit.recovered", WARNING),
        Event::Gap { .. } => ("audit.gap", CRITICAL),
    }
}

/// No decision of the record was remembered from an earlier question: each has an evaluation of its own, made for it by the
/// set in force (`PolicySet::decide`), for tasks as for `fetch`. In which forms an identity may be fetched is worked out
/// ahead of the question (`workload::guard`), but what is issued and what is refused by policy is asked again, and that is
/// what stands here. Whoever adds a memory of decisions says `true` for what comes out of it.
const CACHED: bool = false;

/// Of a refusal outside a task that policy decided.
const POLICY_PHASE: &str = "policy";

const INFO: &str = "info";
const NOTICE: &str = "notice";
const WARNING: &str = "warning";
const CRITICAL: &str = "critical";

#[cfg(test)]
mod tests {
    use super::super::testing::{every_event, origin};
    use super::*;
    use crate::clock::from_unix_seconds;

    /// Set `MAYFLY_BLESS=1` to write what the code does now; the difference is then part of the review.
    #[test]
    fn every_event_has_its_golden_line() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/audit.jsonl");
        let (mut head, mut lines) = (Head::default(), Vec::new());
        for event in every_event() {
            append(&origin(), &mut head, from_unix_seconds(1_790_000_000), &event, &mut lines);
        }
        let of_a_trace =
            Stamp { at: from_unix_seconds(1_790_000_000), trace: Some(super::super::testing::trace()) };
        append(&origin(), &mut head, of_a_trace, &every_event()[2], &mut lines);
        if std::env::var_os("MAYFLY_BLESS").is_some() {
            std::fs::write(&golden, &lines).unwrap();
        }
        let (have, want) = (String::from_utf8(lines).unwrap(), std::fs::read_to_string(golden).unwrap());
        for (have, want) in have.lines().zip(want.lines()) {
            assert_eq!(have, want);
        }
        assert_eq!(have.lines().count(), want.lines().count());
    }

    #[test]
    fn one_line_an_event_whatever_the_names() {
        let nasty = "a\n{\"v\":1}\r\n\u{2028}\u{202e}\u{1b}[31m\"\\\u{0}".repeat(60);
        let mut event = every_event().remove(2);
        if let Event::AttestDenied { agent, decision } = &mut event {
            (agent.cgroup, decision.reason) = (Some(nasty.clone()), nasty);
        }
        let (mut head, mut out) = (Head::default(), Vec::new());
        append(&origin(), &mut head, from_unix_seconds(0), &event, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.ends_with('\n') && text.len() < 8192, "{}", text.len());
        assert!(!text.trim_end().chars().any(|c| c.is_control() || c == '\u{202e}'));
    }

    #[test]
    fn times_have_nine_decimals() {
        let at = from_unix_seconds(1_790_000_000) + std::time::Duration::from_nanos(70);
        assert_eq!(timestamp(at), "2026-09-21T14:13:20.000000070Z");
    }
}
