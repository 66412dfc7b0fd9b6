//! `mayfly explain --pid N`: what a process would get, and what it just misses.

use mayfly_proto::admin::{ExplainPolicy, ExplainRequest, ExplainResponse, ProcessFacts};
use serde::Serialize;

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, cell, millis, size, stamp_unix};
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly explain --pid 4242
  mayfly fetch x509 --wait & mayfly explain --pid $!       look at a client command that gets nothing
  mayfly explain --pid 4242 --output json | jq .near_misses";

/// `mayfly explain`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The process to look at
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,
}

#[derive(Serialize)]
struct Answer {
    process: Option<ProcessJson>,
    selectors: Vec<SelectorJson>,
    attestors: Vec<AttestorJson>,
    matches: Vec<MatchJson>,
    near_misses: Vec<MissJson>,
    posture: Vec<String>,
    origin: String,
}

#[derive(Serialize)]
struct ProcessJson {
    pid: u32,
    uid: u32,
    name: String,
    executable: String,
    resident_bytes: u64,
    started_at: String,
    parent_pid: u32,
}

#[derive(Serialize)]
struct SelectorJson {
    text: String,
    strength: String,
}

#[derive(Serialize)]
struct AttestorJson {
    kind: String,
    outcome: String,
    micros: u64,
    selectors: u32,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct MatchJson {
    entry_id: String,
    spiffe_id: String,
    because: Vec<String>,
    policy: Vec<PolicyJson>,
}

/// What policy makes of one form of an identity.
#[derive(Serialize)]
struct PolicyJson {
    form: String,
    result: String,
    reason: String,
    policy_ids: Vec<String>,
    changes: Vec<String>,
}

#[derive(Serialize)]
struct MissJson {
    entry_id: String,
    spiffe_id: String,
    missing: Vec<String>,
    other: String,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let connection = target.connect().await?;
    let request = ExplainRequest { pid: args.pid };
    let found = answer(connection.admin().explain(request)).await?.into_inner();
    if args.output.is_json() {
        context.console.json(&json(found))?;
    } else {
        context.console.lines(text(args.pid, &found))?;
    }
    Ok(Exit::Ok)
}

fn json(found: ExplainResponse) -> Answer {
    let process = |p: ProcessFacts| ProcessJson {
        pid: p.pid,
        uid: p.uid,
        name: p.name,
        executable: p.executable,
        resident_bytes: p.resident_bytes,
        started_at: stamp_unix(p.started_at),
        parent_pid: p.parent_pid,
    };
    let selectors = found.selectors.into_iter();
    let attestors = found.attestors.into_iter();
    let matches = found.matches.into_iter();
    let misses = found.near_misses.into_iter();
    Answer {
        process: found.process.map(process),
        selectors: selectors.map(|s| SelectorJson { text: s.text, strength: s.strength }).collect(),
        attestors: attestors
            .map(|a| AttestorJson {
                kind: a.kind,
                outcome: a.outcome,
                micros: a.micros,
                selectors: a.selectors,
                notes: a.notes,
            })
            .collect(),
        matches: matches
            .map(|m| MatchJson {
                entry_id: m.entry_id,
                spiffe_id: m.spiffe_id,
                because: m.because,
                policy: m.policy.into_iter().map(policy_json).collect(),
            })
            .collect(),
        near_misses: misses
            .map(|m| MissJson {
                entry_id: m.entry_id,
                spiffe_id: m.spiffe_id,
                missing: m.missing,
                other: m.other,
            })
            .collect(),
        posture: found.posture,
        origin: found.origin,
    }
}

fn policy_json(policy: ExplainPolicy) -> PolicyJson {
    PolicyJson {
        form: policy.form,
        result: policy.result,
        reason: policy.reason,
        policy_ids: policy.policy_ids,
        changes: policy.changes,
    }
}

/// `policy gives it as x509 (allowed by fetch)`, or what would have to change.
fn policy_lines(policy: &ExplainPolicy) -> Vec<String> {
    let form = cell(&policy.form);
    if policy.result == "per audience" {
        return vec![format!("  policy decides each {form} by its audience")];
    }
    let does = if policy.result == "allow" { "gives" } else { "does not give" };
    let mut why = cell(&policy.reason);
    if !policy.policy_ids.is_empty() {
        why = format!("{why}: {}", cell(&policy.policy_ids.join(", ")));
    }
    let mut lines = vec![format!("  policy {does} it as {form} ({why})")];
    lines.extend(policy.changes.iter().map(|change| format!("    to be allowed: {}", cell(change))));
    lines
}

fn text(pid: u32, found: &ExplainResponse) -> Vec<String> {
    let mut lines = Vec::new();
    match &found.process {
        Some(p) => {
            lines.push(format!("process {} ({})", p.pid, cell(&p.name)));
            lines.push(format!("  program  {}", cell(&p.executable)));
            let started = stamp_unix(p.started_at);
            let resident = size(p.resident_bytes);
            lines.push(format!("  uid {}, parent {}, since {started}, {resident}", p.uid, p.parent_pid));
        }
        None => lines.push(format!("process {pid}")),
    }
    if !found.origin.is_empty() {
        lines.push(format!("  kept in  {}", cell(&found.origin)));
    }
    let mut attestors = Table::new(["ATTESTOR", "ANSWER", "SELECTORS", "TOOK"]);
    for a in &found.attestors {
        attestors.row([a.kind.clone(), a.outcome.clone(), a.selectors.to_string(), millis(a.micros)]);
    }
    lines.extend(attestors.lines());
    for a in &found.attestors {
        // An attestor with nothing to say says why; otherwise notes are about what is missing beside the rest.
        let word = if a.selectors == 0 { "says nothing:" } else { "left out" };
        lines.extend(a.notes.iter().map(|note| format!("  {} {word} {}", cell(&a.kind), cell(note))));
    }
    if !found.posture.is_empty() {
        lines.push(format!("posture: {}", cell(&found.posture.join(", "))));
    }
    let mut selectors = Table::new(["SELECTOR", "STRENGTH"]);
    for selector in &found.selectors {
        selectors.row([selector.text.clone(), selector.strength.clone()]);
    }
    lines.extend(selectors.lines());
    if found.matches.is_empty() {
        lines.push("no entry matches: it would get no identity".to_owned());
    }
    for m in &found.matches {
        lines.push(format!("gets {}  (entry {})", cell(&m.spiffe_id), cell(&m.entry_id)));
        lines.push(format!("  because {}", cell(&m.because.join(" and "))));
        lines.extend(m.policy.iter().flat_map(policy_lines));
    }
    for miss in &found.near_misses {
        lines.push(format!("misses {}  (entry {})", cell(&miss.spiffe_id), cell(&miss.entry_id)));
        lines.extend(miss.missing.iter().map(|selector| format!("  lacks {}", cell(selector))));
        if !miss.other.is_empty() {
            lines.push(format!("  {}", cell(&miss.other)));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use mayfly_proto::admin::{AttestorAnswer, ExplainMatch, ExplainSelector, NearMiss};

    use super::super::testing::agent::Agent;
    use super::*;

    fn agent() -> Agent {
        let agent = Agent::start();
        let process = ProcessFacts {
            pid: 42,
            uid: 1000,
            name: "sh\u{202e}evil".into(),
            executable: "/bin/sh".into(),
            resident_bytes: 2 << 20,
            started_at: 1_763_797_200,
            parent_pid: 1,
        };
        let attestor = AttestorAnswer {
            kind: "unix".into(),
            outcome: "ok".into(),
            micros: 412,
            selectors: 2,
            notes: vec!["path: exe_fs_not_trusted".into()],
        };
        *agent.script.explain.lock().expect("lock") = Ok(ExplainResponse {
            process: Some(process),
            selectors: vec![ExplainSelector { text: "unix:uid:1000".into(), strength: "kernel".into() }],
            attestors: vec![attestor],
            matches: vec![ExplainMatch {
                entry_id: "run".into(),
                spiffe_id: "spiffe://example.org/run".into(),
                because: vec!["unix:uid:1000".into()],
                policy: vec![
                    ExplainPolicy {
                        form: "x509".into(),
                        result: "deny".into(),
                        reason: "forbidden".into(),
                        policy_ids: vec!["no-certificates".into()],
                        changes: vec!["`no-certificates` must not apply".into()],
                    },
                    ExplainPolicy {
                        form: "jwt".into(),
                        result: "per audience".into(),
                        ..ExplainPolicy::default()
                    },
                ],
            }],
            near_misses: vec![NearMiss {
                entry_id: "web".into(),
                spiffe_id: "spiffe://example.org/web".into(),
                missing: vec!["unix:path:/usr/bin/web".into()],
                other: "until 2026-01-01 has passed".into(),
            }],
            posture: vec!["mixed_uid".into(), "exe_fs_not_trusted".into()],
            origin: "docker 4f1e of pod 7 (burstable)".into(),
        });
        agent
    }

    #[tokio::test]
    async fn says_what_it_gets_and_what_it_misses() {
        let agent = agent();
        let ran = agent.run(&["explain", "--pid", "42"]).await;
        let want = "\
process 42 (sh\\u{202e}evil)
  program  /bin/sh
  uid 1000, parent 1, since 2025-11-22T07:40:00Z, 2.0 MiB
  kept in  docker 4f1e of pod 7 (burstable)
ATTESTOR  ANSWER  SELECTORS  TOOK
unix      ok      2          0.412 ms
  unix left out path: exe_fs_not_trusted
posture: mixed_uid, exe_fs_not_trusted
SELECTOR       STRENGTH
unix:uid:1000  kernel
gets spiffe://example.org/run  (entry run)
  because unix:uid:1000
  policy does not give it as x509 (forbidden: no-certificates)
    to be allowed: `no-certificates` must not apply
  policy decides each jwt by its audience
misses spiffe://example.org/web  (entry web)
  lacks unix:path:/usr/bin/web
  until 2026-01-01 has passed
";
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, want));
        assert!(agent.requests()[0].contains("pid: 42"));
    }

    #[tokio::test]
    async fn json_has_all_of_it() {
        let json = agent().run(&["explain", "--pid", "42", "--output", "json"]).await.json();
        assert_eq!(json["process"]["name"], "sh\u{202e}evil");
        assert_eq!(json["near_misses"][0]["missing"][0], "unix:path:/usr/bin/web");
        assert_eq!(json["matches"][0]["entry_id"], "run");
        assert_eq!(json["attestors"][0]["micros"], 412);
        assert_eq!(json["attestors"][0]["notes"][0], "path: exe_fs_not_trusted");
        assert_eq!(json["posture"][0], "mixed_uid");
        assert_eq!(json["origin"], "docker 4f1e of pod 7 (burstable)");
    }

    #[tokio::test]
    async fn a_stranger_and_a_missing_process_are_told_apart() {
        let agent = agent();
        *agent.script.explain.lock().expect("lock") = Ok(ExplainResponse::default());
        let ran = agent.run(&["explain", "--pid", "42"]).await;
        assert!(ran.out.contains("no entry matches: it would get no identity"), "{}", ran.out);
        *agent.script.explain.lock().expect("lock") = Err(tonic::Status::not_found("no process 42"));
        let ran = agent.run(&["explain", "--pid", "42"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        assert!(ran.err.contains("not found: no process 42"), "{}", ran.err);
        assert_eq!(agent.run(&["explain", "--pid", "0"]).await.exit, Exit::Usage);
        assert_eq!(agent.run(&["explain"]).await.exit, Exit::Usage);
    }
}
