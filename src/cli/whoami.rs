//! `mayfly whoami`: what the agent knows about this process. Issues nothing.

use mayfly_proto::identity::{WhoAmIRequest, WhoAmIResponse};
use serde::Serialize;

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, cell, relative, stamp_unix};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly whoami
  mayfly whoami --output json | jq -r '.selectors[].text'

Exit code: 0 with an identity, 7 without one.";

/// `mayfly whoami`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Answer {
    pid: u32,
    identities: Vec<IdentityJson>,
    selectors: Vec<SelectorJson>,
    leases: Vec<LeaseJson>,
}

#[derive(Serialize)]
struct IdentityJson {
    spiffe_id: String,
    hint: String,
    because: Vec<String>,
}

#[derive(Serialize)]
struct SelectorJson {
    text: String,
    strength: String,
}

#[derive(Serialize)]
struct LeaseJson {
    id: String,
    kind: String,
    spiffe_id: String,
    issued_at: String,
    not_after: String,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let connection = target.connect().await?;
    let who = answer(connection.identity().who_am_i(WhoAmIRequest {})).await?.into_inner();
    let known = !who.identities.is_empty();
    if args.output.is_json() {
        context.console.json(&json(who))?;
    } else {
        context.console.lines(text(&who))?;
    }
    if known {
        return Ok(Exit::Ok);
    }
    Err(Failure::new(Exit::NoIdentity, "no entry matches this process").hint(
        "an operator sees what is missing with `mayfly watch --wait & mayfly explain --pid $!`, and adds an \
         entry made of the selectors above",
    ))
}

fn json(who: WhoAmIResponse) -> Answer {
    Answer {
        pid: who.pid,
        identities: who
            .identities
            .into_iter()
            .map(|i| IdentityJson { spiffe_id: i.spiffe_id, hint: i.hint, because: i.because })
            .collect(),
        selectors: who
            .selectors
            .into_iter()
            .map(|s| SelectorJson { text: s.text, strength: s.strength })
            .collect(),
        leases: who
            .leases
            .into_iter()
            .map(|lease| LeaseJson {
                id: lease.id,
                kind: lease.kind,
                spiffe_id: lease.spiffe_id,
                issued_at: stamp_unix(lease.issued_at),
                not_after: stamp_unix(lease.not_after),
            })
            .collect(),
    }
}

fn text(who: &WhoAmIResponse) -> Vec<String> {
    let mut lines = Vec::new();
    for identity in &who.identities {
        let hint = match identity.hint.as_str() {
            "" => String::new(),
            hint => format!("  ({})", cell(hint)),
        };
        lines.push(format!("{}{hint}", cell(&identity.spiffe_id)));
        lines.push(format!("  because {}", cell(&identity.because.join(" and "))));
    }
    lines.push(format!("process {}, as the agent sees it:", who.pid));
    let mut selectors = Table::new(["  SELECTOR", "STRENGTH"]);
    for selector in &who.selectors {
        selectors.row([format!("  {}", selector.text), selector.strength.clone()]);
    }
    lines.extend(selectors.lines());
    if !who.leases.is_empty() {
        lines.push("leases it holds:".to_owned());
        let now = SystemClock.wall();
        let mut leases = Table::new(["  LEASE", "KIND", "SPIFFE ID", "ENDS"]);
        for lease in &who.leases {
            let ends = relative(lease.not_after, now);
            leases.row([format!("  {}", lease.id), lease.kind.clone(), lease.spiffe_id.clone(), ends]);
        }
        lines.extend(leases.lines());
    }
    lines
}

#[cfg(test)]
mod tests {
    use mayfly_proto::identity::{HeldLease, MatchedIdentity, Selector};

    use super::super::testing::agent::Agent;
    use super::*;

    fn selector(text: &str, strength: &str) -> Selector {
        Selector { text: text.into(), strength: strength.into() }
    }

    fn agent(known: bool) -> Agent {
        let agent = Agent::start();
        let identity = MatchedIdentity {
            spiffe_id: "spiffe://example.org/web".into(),
            hint: "internal".into(),
            because: vec!["unix:uid:1000".into(), "cgroup:path:/app".into()],
        };
        let lease = HeldLease {
            id: "4a".into(),
            kind: "x509".into(),
            spiffe_id: "spiffe://example.org/web".into(),
            issued_at: 1,
            not_after: 2,
        };
        *agent.script.who.lock().expect("lock") = Ok(WhoAmIResponse {
            pid: 42,
            identities: if known { vec![identity] } else { Vec::new() },
            selectors: vec![
                selector("unix:path:/bin/\u{1b}[2Jx", "advisory"),
                selector("unix:uid:1000", "kernel"),
            ],
            leases: if known { vec![lease] } else { Vec::new() },
        });
        agent
    }

    #[tokio::test]
    async fn shows_identity_reason_selectors_and_leases_filtered() {
        let ran = agent(true).run(&["whoami"]).await;
        assert_eq!(ran.exit, Exit::Ok);
        let (head, tail) = ran.out.split_once("leases it holds:\n").expect("leases");
        let want = "spiffe://example.org/web  (internal)\n  because unix:uid:1000 and cgroup:path:/app\n\
                    process 42, as the agent sees it:\n  SELECTOR                   STRENGTH\n  \
                    unix:path:/bin/\\u{1b}[2Jx  advisory\n  unix:uid:1000              kernel\n";
        assert_eq!(head, want);
        assert!(tail.contains("  4a     x509  spiffe://example.org/web"), "{tail}");
    }

    #[tokio::test]
    async fn without_identity_it_still_shows_the_selectors_and_exits_7() {
        let ran = agent(false).run(&["whoami"]).await;
        assert_eq!(ran.exit, Exit::NoIdentity);
        assert!(ran.out.contains("unix:uid:1000"));
        assert!(
            ran.err.contains("no entry matches") && ran.err.contains("mayfly explain --pid"),
            "{}",
            ran.err
        );
        let ran = agent(false).run(&["whoami", "--output", "json"]).await;
        assert_eq!(
            (ran.exit, ran.json()["identities"].as_array().map(Vec::len)),
            (Exit::NoIdentity, Some(0))
        );
    }

    #[tokio::test]
    async fn json_has_all_of_it() {
        let json = agent(true).run(&["whoami", "--output", "json"]).await.json();
        assert_eq!(json["identities"][0]["because"][1], "cgroup:path:/app");
        assert_eq!(json["leases"][0]["issued_at"], "1970-01-01T00:00:01Z");
        assert_eq!(json["selectors"][0]["strength"], "advisory");
    }

    #[tokio::test]
    async fn another_vendors_agent_gets_a_clear_word() {
        let agent = agent(true);
        *agent.script.who.lock().expect("lock") = Err(tonic::Status::unimplemented("unknown service"));
        let ran = agent.run(&["whoami"]).await;
        assert_eq!(ran.exit, Exit::Failed);
        assert!(
            ran.err.contains("does not offer that call") && ran.err.contains("another vendor"),
            "{}",
            ran.err
        );
    }
}
