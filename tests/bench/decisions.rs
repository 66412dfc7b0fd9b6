//! What one decision costs, by the real engine: the question of a task that wants a credential, with few policies
//! loaded, with a thousand of many teams, and with a thousand that all could apply.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use mayfly::id::{EntryId, SpiffeId};
use mayfly::policy::{
    Action, Engine, Object, Phase, PolicySet, PostureFacts, Question, TaskFacts, WorkloadFacts,
};

use crate::{line, nanos};

/// For everybody.
const RULES: &str = r#"
@id("no-debuggers") forbid(principal, action, resource) when { principal is Mayfly::Workload && principal.posture.ptraced };
@id("risk") forbid(principal, action, resource) when { context.risk > 80 };
@id("patience") forbid(principal, action in [Mayfly::Action::"read", Mayfly::Action::"write"], resource)
when { context.task.denials > 20 };
@id("person") @requires_approval("oncall") forbid(principal, action == Mayfly::Action::"delete", resource)
unless { context has approval && context.approval.quorum >= 1 };
"#;

/// Policies with the catalogue they speak of.
struct Rulebook {
    policies: String,
    catalogue: String,
}

/// Each team has agents and data of its own, and four policies about them.
fn teams(count: usize) -> Result<Rulebook> {
    let mut book = Rulebook { policies: RULES.to_owned(), catalogue: String::new() };
    for n in 0..count {
        write!(
            book.policies,
            r#"
@id("read-{n}") @max_ttl("5m")
permit(principal in Mayfly::Group::"team-{n}", action == Mayfly::Action::"read", resource in Mayfly::Group::"data-{n}")
when {{ context.task.depth < 3 }};
@id("write-{n}") @max_ttl("1m")
permit(principal in Mayfly::Group::"team-{n}", action == Mayfly::Action::"write", resource in Mayfly::Group::"data-{n}")
when {{ context.requested_ttl <= duration("10m") }};
@id("delete-{n}")
permit(principal in Mayfly::Group::"team-{n}", action == Mayfly::Action::"delete", resource in Mayfly::Group::"data-{n}");
@id("calls-{n}")
forbid(principal in Mayfly::Group::"team-{n}", action, resource)
when {{ context has task && context.task.calls > 1000 }};
"#
        )?;
        write!(
            book.catalogue,
            r#"
[[agents]]
spiffe_id = "spiffe://example.org/team-{n}/**"
groups = ["team-{n}"]
owner = "bench"
[[targets]]
name = "target-{n}"
audience = "https://{n}.example.org"
data_class = "internal"
groups = ["data-{n}"]
owner = "bench"
binding = "none"
"#
        )?;
    }
    Ok(book)
}

/// One team, and so many policies of its own for the same action that each must be evaluated.
fn crowded(count: usize) -> Result<Rulebook> {
    let mut book = teams(1)?;
    for n in 0..count {
        write!(
            book.policies,
            r#"
@id("more-{n}")
forbid(principal in Mayfly::Group::"team-0", action == Mayfly::Action::"read", resource in Mayfly::Group::"data-0")
when {{ context.task.calls > {} }};
"#,
            10_000 + n
        )?;
    }
    Ok(book)
}

impl Rulebook {
    fn engine(self) -> Result<Engine> {
        let files = [
            ("a.cedar".to_owned(), self.policies.into_bytes()),
            ("b.toml".to_owned(), self.catalogue.into_bytes()),
        ];
        let set = PolicySet::parse(&files, None).map_err(|found| anyhow!("{found}"))?;
        Ok(Engine::of(set))
    }
}

/// An agent of that team wants to read what the team has.
fn question(team: usize) -> Result<Question> {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let workload = WorkloadFacts {
        spiffe_id: SpiffeId::parse(format!("spiffe://example.org/team-{team}/agent").as_bytes())?,
        profile: EntryId::new("agent"),
        uid: 1000,
        selectors: ["unix:uid:1000", "unix:gid:1000", "unix:path:/usr/bin/agent", "cgroup:path:/agent.slice"]
            .map(str::to_owned)
            .into(),
        exe_sha256: "4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce".to_owned(),
        node: "node".to_owned(),
        posture: PostureFacts::default(),
        attested_at: now,
        groups: [].into(),
    };
    let object = Object::Target(format!("target-{team}"));
    let ttl = Duration::from_secs(300);
    Ok(Question::of_task(workload, Action::Read, object, Phase::Issue, task(now), ttl, now))
}

fn task(now: SystemTime) -> TaskFacts {
    TaskFacts {
        id: "tsk_00000000000000000000000000000001".to_owned(),
        root: "tsk_00000000000000000000000000000001".to_owned(),
        depth: 1,
        purpose: "summarise the minutes".to_owned(),
        template: None,
        started: now,
        deadline: now + Duration::from_secs(900),
        calls: 7,
        denials: 0,
        children: 0,
        audiences: 1,
    }
}

/// A question to each engine, again and again; all the answers must be yes.
pub(crate) fn measure(quick: bool) -> Result<()> {
    let rounds = if quick { 500 } else { 5_000 };
    for (what, book, of) in [
        ("3 teams", teams(3)?, 3),
        ("249 teams", teams(249)?, 249),
        ("one team, all could apply", crowded(992)?, 1),
    ] {
        let engine = book.engine()?;
        let policies = engine.in_force().policies();
        let mut took = Vec::new();
        for round in 0..rounds {
            let mut question = question(round % of)?;
            // Time goes on: no two questions have the same moment.
            question.now += Duration::from_millis(u64::try_from(round)?);
            let begin = Instant::now();
            let decision = std::hint::black_box(engine.decide(&question));
            took.push(begin.elapsed().as_secs_f64() * 1e9);
            anyhow::ensure!(decision.is_allowed(), "the bench is wrong: {:?}", decision.reason);
        }
        line(&format!("policy: one decision, {policies} policies of {what}"), &nanos(&mut took))?;
    }
    Ok(())
}
