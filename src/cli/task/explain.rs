//! `mayfly task explain`: what policy would decide now, and what would have to change.

use std::time::Duration;

use mayfly_proto::task::{AuthorizeRequest, Decision, ExplainRequest, Explanation};
use serde::Serialize;

use super::super::Context;
use super::super::args::OutputArgs;
use super::super::client::{ClientArgs, Target, Which, answer};
use super::super::failure::Failure;
use super::super::render::cell;
use crate::diag::parse_duration;
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly task explain tsk_01K6E4ZQ7M0000000000000000 --action write --target wiki
  mayfly task explain --as spiffe://example.org/agents/planner --action read --target https://wiki.example.org
  mayfly task explain --as spiffe://example.org/agents/planner --action begin --target kb-summarise

Asks the running agent, by its policies and by what it knows of the process; issues nothing, and costs the task nothing.
Exit code: 7 when it would not be allowed.";

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// In the name of this task
    #[arg(value_name = "TASK", required_unless_present = "as_agent")]
    task: Option<String>,
    /// As an agent that has begun no task
    #[arg(long = "as", value_name = "ID", conflicts_with = "task")]
    as_agent: Option<String>,
    /// read, write, delete, execute, admin, delegate, or with --as begin
    #[arg(long)]
    action: String,
    /// By its name or its audience; of begin the template, if there is one; of delegate the SPIFFE ID of the other agent
    #[arg(long, required_unless_present = "as_agent")]
    target: Option<String>,
    /// The lifetime that would be asked for, such as 5m
    #[arg(long, value_parser = parse_duration)]
    ttl: Option<Duration>,
}

#[derive(Serialize)]
struct ExplainedJson {
    allow: bool,
    reason: String,
    policy_ids: Vec<String>,
    policy_version: String,
    obligations: Vec<ObligationJson>,
    would_help: Vec<String>,
    errors: Vec<String>,
    request: serde_json::Value,
}

#[derive(Serialize)]
struct ObligationJson {
    r#type: String,
    properties: std::collections::BTreeMap<String, String>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let ttl = args.ttl.map(|ttl| ttl.try_into().map_err(|_long| Failure::usage("that --ttl is too long")));
    let request = AuthorizeRequest {
        task_id: args.task.unwrap_or_default(),
        action: args.action,
        target: args.target.unwrap_or_default(),
        ttl: ttl.transpose()?,
        ..AuthorizeRequest::default()
    };
    let asked = ExplainRequest { spiffe_id: args.as_agent.unwrap_or_default(), request: Some(request) };
    let connection = target.connect().await?;
    let said = answer(connection.task_admin().explain(asked)).await?.into_inner();
    let allow = said.decision.as_ref().is_some_and(|decision| decision.allow);
    if args.output.is_json() {
        context.console.json(&json(said))?;
    } else {
        context.console.lines(text(&said))?;
    }
    Ok(if allow { Exit::Ok } else { Exit::NoIdentity })
}

fn text(said: &Explanation) -> Vec<String> {
    let decision = said.decision.clone().unwrap_or_default();
    let word = if decision.allow { "allowed" } else { "not allowed" };
    let mut lines = vec![format!("{word} ({})", cell(&decision.reason))];
    if !decision.policy_ids.is_empty() {
        lines.push(format!("decided by  {}", cell(&decision.policy_ids.join(", "))));
    }
    for obligation in &decision.obligations {
        let mut properties: Vec<String> = obligation.properties.values().cloned().collect();
        properties.sort();
        lines.push(format!("obligation  {} {}", cell(&obligation.r#type), cell(&properties.join(" "))));
    }
    lines.extend(said.would_help.iter().map(|change| format!("would help  {}", cell(change))));
    lines.extend(said.errors.iter().map(|error| format!("error       {}", cell(error))));
    lines
}

fn json(said: Explanation) -> ExplainedJson {
    let Decision { allow, reason, policy_ids, policy_version, obligations, .. } =
        said.decision.unwrap_or_default();
    let obligations = obligations
        .into_iter()
        .map(|one| ObligationJson { r#type: one.r#type, properties: one.properties.into_iter().collect() })
        .collect();
    ExplainedJson {
        allow,
        reason,
        policy_ids,
        policy_version,
        obligations,
        would_help: said.would_help,
        errors: said.errors,
        request: serde_json::from_str(&said.request).unwrap_or_default(),
    }
}
