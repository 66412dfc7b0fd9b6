//! `mayfly policy explain`: one question to policies on somebody's desk.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::super::Context;
use super::super::args::OutputArgs;
use super::super::failure::Failure;
use super::super::render::cell;
use super::config;
use crate::clock::{Clock as _, SystemClock};
use crate::diag::{moment, parse_duration};
use crate::exit::Exit;
use crate::id::SpiffeId;
use crate::policy::{
    Action, ApprovalSketch, Circumstances, Explanation, HttpFacts, Kind, McpFacts, Phase, PostureFacts,
    ProcessSketch, Sketch, TaskSketch, UserFacts,
};

/// `mayfly policy explain`
#[derive(clap::Args, Debug)]
pub(in crate::cli) struct Args {
    /// Directories with policies and their catalogue, or single files
    #[arg(long, value_name = "PATH", default_value = "/etc/mayfly/policy.d")]
    policy: Vec<PathBuf>,
    /// Check against this configuration too: its trust domain
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent that asks
    #[arg(long = "as", value_name = "SPIFFE_ID", value_parser = spiffe_id, required_unless_present = "as_user")]
    as_agent: Option<SpiffeId>,
    /// The person who approves
    #[arg(long, value_name = "NAME", conflicts_with = "as_agent")]
    as_user: Option<String>,
    /// What is done: read, write, delete, execute, admin, delegate, begin, fetch or approve
    #[arg(long, value_parser = str::parse::<Action>)]
    action: Action,
    /// To which target, by its name or its audience
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// To which agent a part is handed (delegate)
    #[arg(long, value_name = "SPIFFE_ID", value_parser = spiffe_id)]
    to: Option<SpiffeId>,
    /// By which template a task is begun, or was
    #[arg(long)]
    template: Option<String>,
    /// At which moment: begin, issue, use or exchange
    #[arg(long, value_parser = str::parse::<Phase>)]
    phase: Option<Phase>,
    /// The lifetime that is asked for, such as 5m
    #[arg(long, value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// In which form an identity is fetched: x509, jwt or wit
    #[arg(long, value_parser = kind, value_name = "KIND")]
    kind: Option<Kind>,
    /// An audience of the token that is fetched
    #[arg(long, value_name = "AUDIENCE")]
    audience: Vec<String>,
    /// A selector of the agent's process
    #[arg(long, value_name = "SELECTOR")]
    selector: Vec<String>,
    /// The user of the agent's process
    #[arg(long, default_value_t = 0)]
    uid: u32,
    /// What is odd about the process, or good: ptraced, exe_deleted, no_new_privs or isolated
    #[arg(long, value_name = "WORD")]
    posture: Vec<String>,
    /// Who delegated, from the parent to the root
    #[arg(long, value_name = "SPIFFE_ID", value_parser = spiffe_id)]
    chain: Vec<SpiffeId>,
    /// The person it is done for
    #[arg(long, value_name = "NAME")]
    on_behalf_of: Option<String>,
    /// As if that person had approved just now
    #[arg(long, value_name = "NAME")]
    approved_by: Option<String>,
    /// As if so many had
    #[arg(long, default_value_t = 1, value_name = "PEOPLE")]
    quorum: u32,
    /// The weight of the heaviest anomaly, 0 to 100
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    risk: u8,
    /// The HTTP request, such as "POST /pages"
    #[arg(long, value_name = "METHOD PATH")]
    http: Option<String>,
    /// The MCP tool
    #[arg(long, value_name = "TOOL")]
    tool: Option<String>,
    /// Levels above the task
    #[arg(long, default_value_t = 0)]
    depth: u32,
    /// Live children of the task
    #[arg(long, default_value_t = 0)]
    children: u64,
    /// As if it were that time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    now: Option<SystemTime>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(serde::Serialize)]
struct Answer {
    result: &'static str,
    reason: &'static str,
    policy_ids: Vec<String>,
    policy_version: String,
    max_ttl_seconds: Option<u64>,
    binding: Option<&'static str>,
    approvers: Vec<String>,
    quorum: Option<u32>,
    policies: Vec<PolicyJson>,
    changes: Vec<String>,
}

#[derive(serde::Serialize)]
struct PolicyJson {
    id: String,
    place: String,
    effect: &'static str,
    decided: bool,
    because: Vec<String>,
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let set = match super::load(&args.policy, args.config.as_deref()) {
        Ok(set) => set,
        Err(problems) => return config::report(&problems, context),
    };
    let (is_json, now) = (args.output.is_json(), args.now.unwrap_or_else(|| SystemClock.wall()));
    let sketch = args.sketch()?;
    let question = sketch.question(set.catalogue(), now);
    let question = question.map_err(|why| Failure::new(Exit::Usage, format!("the question {why}")))?;
    let explanation = set.explain(&question, crate::policy::EvaluationId::from_random([0; 16]));
    let exit = if explanation.decision.is_allowed() { Exit::Ok } else { Exit::NoIdentity };
    if is_json {
        context.console.json(&json(explanation))?;
    } else {
        for line in explanation.to_string().lines() {
            context.console.line(&cell(line))?;
        }
    }
    Ok(exit)
}

impl Args {
    fn sketch(self) -> Result<Sketch, Failure> {
        let mut posture = PostureFacts::default();
        for word in &self.posture {
            let wrong = |why: &str| Failure::new(Exit::Usage, format!("--posture: `{}` {why}", cell(word)));
            posture.set(word).map_err(wrong)?;
        }
        let http = self.http.map(|request| {
            let (method, path) = request.split_once(' ').unwrap_or((&request, "/"));
            HttpFacts { method: method.to_owned(), path: path.to_owned(), ..HttpFacts::default() }
        });
        let left = Duration::from_secs(300);
        Ok(Sketch {
            agent: self.as_agent,
            person: self.as_user,
            action: Some(self.action),
            target: self.target,
            to: self.to,
            template: self.template,
            phase: self.phase,
            ttl: self.ttl,
            kind: self.kind,
            audiences: self.audience.into_iter().collect(),
            entry: None,
            process: ProcessSketch {
                uid: self.uid,
                selectors: self.selector.into_iter().collect(),
                posture,
                ..ProcessSketch::default()
            },
            task: TaskSketch { depth: self.depth, children: self.children, ..TaskSketch::default() },
            approval: self.approved_by.map(|by| ApprovalSketch { by, left, quorum: self.quorum }),
            circumstances: Circumstances {
                chain: self.chain,
                on_behalf_of: self.on_behalf_of.map(|name| UserFacts { name, groups: BTreeSet::new() }),
                http,
                mcp: self.tool.map(|tool| McpFacts { tool }),
                risk: self.risk,
                ..Circumstances::default()
            },
        })
    }
}

fn json(explanation: Explanation) -> Answer {
    let Explanation { decision, considered, changes } = explanation;
    let approval = decision.obligations.approval;
    let policy = |policy: crate::policy::Considered| PolicyJson {
        id: policy.id,
        place: policy.place,
        effect: if policy.permits { "permit" } else { "forbid" },
        decided: policy.decided,
        because: policy.because,
    };
    Answer {
        result: decision.verdict.as_str(),
        reason: decision.reason.as_str(),
        policy_ids: decision.policy_ids,
        policy_version: decision.policy_version.map(|version| version.to_string()).unwrap_or_default(),
        max_ttl_seconds: decision.obligations.max_ttl.map(|ttl| ttl.as_secs()),
        binding: decision.obligations.binding.map(crate::policy::Binding::as_str),
        approvers: approval.iter().flat_map(|approval| approval.groups.iter().cloned()).collect(),
        quorum: approval.map(|approval| approval.quorum),
        policies: considered.into_iter().map(policy).collect(),
        changes,
    }
}

fn spiffe_id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::parse(text.as_bytes()).map_err(|error| error.to_string())
}

fn kind(text: &str) -> Result<Kind, String> {
    let found = [Kind::X509, Kind::Jwt, Kind::Wit].into_iter().find(|kind| kind.as_str() == text);
    found.ok_or_else(|| "is none of x509, jwt, wit".to_owned())
}
