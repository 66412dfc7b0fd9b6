//! `mayfly audit query`: lines of the log, by what they say.

use std::path::PathBuf;
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::Context;
use super::super::args::OutputArgs;
use super::super::failure::Failure;
use super::super::render::count;
use super::{opened, outcome, usual};
use crate::audit::{self, Filter, Timeline};
use crate::clock::{Clock, SystemClock};
use crate::diag;
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly audit query --agent 'spiffe://example.org/agents/*' --action write --since 2h
  mayfly audit query --target wiki --result deny --since 2026-11-30T08:00:00Z --until 2026-11-30T09:00:00Z
  mayfly audit query --evaluation evl_…                               why was this agent told no?
  mayfly audit query --trace 4bf92f3577b34da6a3ce929d0e0e4736          what came of one call of a distributed system?
  mayfly audit query --event task --output json | jq -r .task.purpose
  mayfly audit query --credential 4a0f… audit.jsonl.1 audit.jsonl      a rotated log, oldest first

All that is given must hold. The hash chain is checked on the way: where it is broken, what follows is marked as
unproven, and the exit code is 1. JSON: one line of the log a line; `--output json` says on standard error from
where on they are unproven.";

/// `mayfly audit query …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The log's files, oldest first [default: /var/lib/mayfly/audit.jsonl, or that of your own agent]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// Only what this identity did; with `/*` or `/**` at its end, every one below it
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Only decisions, approvals and credentials for this target or audience
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Only of this action class: read, write, delete, execute, admin, …
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only decisions that came out so; `deny` includes `requestable`, what people could have allowed: without these,
    /// `--event decision.deny`
    #[arg(long, value_name = "RESULT", value_parser = ["allow", "deny", "requestable"])]
    result: Option<String>,
    /// Only of this task, with freezes that it was under; `mayfly audit task` shows those below it, too
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Only of this evaluation: agents are told its name (`evl_…`) when policy says no
    #[arg(long, value_name = "EVALUATION")]
    evaluation: Option<String>,
    /// Only of calls whose caller said that they are part of this trace: 32 hex digits, the second part of a `traceparent`
    #[arg(long, value_name = "ID", value_parser = trace)]
    trace: Option<String>,
    /// Not before: a time, such as `2026-11-30T08:00:00Z`, or how long ago, such as `2h`
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<SystemTime>,
    /// Before: as with --since
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<SystemTime>,
    /// Only this event, or all of its kind: `credential` includes `credential.revoke`
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// Only of this process
    #[arg(long, value_name = "PID")]
    pid: Option<u64>,
    /// Only of this credential: the serial or `jti`, in hex
    #[arg(long, value_name = "HEX")]
    credential: Option<String>,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    let query = query(args);
    let mut task = args.task.as_ref().map(|task| Timeline::of(task, true));
    let (mut shown, mut found) = (Ok(()), 0_u64);
    let reading = opened(&usual::files(&args.files, &context.env), None, &mut |line, proven| {
        // Each line is read, for what is said of the task later.
        let of_task = task.as_mut().is_none_or(|task| task.concerned(line).is_some());
        if shown.is_ok() && of_task && query.wants(line) {
            found += 1;
            shown = match (args.output.is_json(), proven) {
                (true, _) => context.console.line(line),
                (false, true) => context.console.line(&audit::human(line)),
                (false, false) => context.console.line(&format!("UNPROVEN {}", audit::human(line))),
            };
        }
    })?;
    shown?;
    if found == 0 {
        let lines = count(reading.lines, "line", "lines");
        context.console.note(&format!("none of {lines} fits"));
    }
    outcome(&reading, context)
}

fn query(args: &Args) -> audit::Query {
    let filter = Filter {
        events: args.event.iter().cloned().collect(),
        spiffe_id: None,
        pid: args.pid,
        credential: args.credential.as_ref().map(|name| name.to_ascii_lowercase()),
        task: None,
    };
    audit::Query {
        filter,
        agent: args.agent.clone(),
        target: args.target.clone(),
        action: args.action.clone(),
        result: args.result.clone(),
        evaluation: args.evaluation.clone(),
        trace: args.trace.clone(),
        since: args.since,
        until: args.until,
    }
}

/// A trace's name, as the log has it.
fn trace(text: &str) -> Result<String, String> {
    let is_one = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_one { Ok(text.to_ascii_lowercase()) } else { Err("a trace is named by 32 hex digits".to_owned()) }
}

/// A time, or how long ago.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at.into());
    }
    let ago = diag::parse_duration(text).ok().and_then(|ago| SystemClock.wall().checked_sub(ago));
    ago.ok_or_else(|| "write a time such as 2026-11-30T08:00:00Z, or how long ago, such as 2h".to_owned())
}
