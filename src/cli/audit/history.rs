//! `mayfly audit task ID`: the life of a task and of everything below it, for whoever has to find out what happened.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::Context;
use super::super::args::OutputArgs;
use super::super::failure::Failure;
use super::super::render::Table;
use super::words::{ended, short, what};
use super::{keys, opened, outcome, usual};
use crate::audit::{Moment, Reading, Said, TaskLife, Timeline};
use crate::exit::Exit;
use crate::id::TaskId;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly audit task tsk_01K6E4ZQ7M0000000000000000
  mayfly audit task tsk_01K6E4ZQ7M0000000000000000 --only --output json
  mayfly audit task tsk_01K6E4ZQ7M0000000000000000 audit.jsonl.1 audit.jsonl      a rotated log, oldest first

Shows who did what, why, what was decided, issued and taken back, and in which line (SEQ) of the log that stands, of
the task and of every task below it. The hash chain is checked on the way: where it is broken, what follows is marked
as unproven, and the exit code is 1.";

/// `mayfly audit task …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The task; `mayfly audit query --event task` finds them
    #[arg(value_name = "TASK")]
    task: TaskId,
    /// The log's files, oldest first [default: /var/lib/mayfly/audit.jsonl, or that of your own agent]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// Without the tasks below it
    #[arg(long)]
    only: bool,
    /// Check the signatures of the log's checkpoints, too, by these keys: see `audit verify`
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    let keys = args.keys.as_deref().map(keys).transpose()?;
    let mut timeline = Timeline::of(&args.task.to_string(), args.only);
    let reading = opened(&usual::files(&args.files, &context.env), keys.as_ref(), &mut |line, proven| {
        timeline.see(line, proven)
    })?;
    if timeline.moments().is_empty() {
        // A broken chain is the worse news.
        let _sound: Exit = outcome(&reading, context)?;
        return Err(Failure::failed(format!("nothing in this log is of {}", args.task))
            .hint("older files of a rotated log have to be named, oldest first"));
    }
    if args.output.is_json() {
        context.console.json(&json(&timeline, &reading)?)?;
    } else {
        context.console.lines(text(&timeline))?;
    }
    outcome(&reading, context)
}

/// Facts of the task, the tree, the events.
fn text(timeline: &Timeline) -> Vec<String> {
    let mut lines = timeline.tasks().first().map(head).unwrap_or_default();
    if timeline.tasks().len() > 1 {
        lines.push(String::new());
        lines.extend(tree(timeline).lines());
    }
    lines.push(String::new());
    lines.extend(moments(timeline));
    lines
}

fn head(life: &TaskLife) -> Vec<String> {
    let said = &life.first;
    let mut lines = vec![format!("task      {}", life.id)];
    let mut line = |label: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("{label:10}{value}")));
    };
    let agent = said.agent.as_ref();
    line("agent", agent.and_then(|agent| agent.spiffe_id.clone()));
    line("process", agent.map(super::words::process));
    line("chain", Some(said.chain.join(" > ")).filter(|chain| !chain.is_empty()));
    let user = said.on_behalf_of.as_ref();
    line("user", user.map(|user| format!("{} at {} (a print)", user.sub_hash, user.iss)));
    let task = said.task.as_ref();
    line("template", task.and_then(|task| task.template.clone()));
    let purpose = task.and_then(|task| task.purpose.as_ref());
    line("purpose", purpose.map(|purpose| format!("{purpose:?} (the agent's own words)")));
    let isolated = task.and_then(|task| task.isolated);
    line("isolated", isolated.map(|is| if is { "yes" } else { "no: others could act as it" }.to_owned()));
    line("deadline", task.and_then(|task| task.deadline.clone()).map(|at| short(&at)));
    line("ended", Some(life.last.as_ref().map_or_else(|| "not in this log".to_owned(), ended)));
    lines
}

fn tree(timeline: &Timeline) -> Table {
    let mut table = Table::new(["", "TASK", "AGENT", "PURPOSE", "ENDED"]);
    for life in timeline.tasks() {
        let task = life.first.task.as_ref();
        let agent = life.first.agent.as_ref().and_then(|agent| agent.spiffe_id.clone());
        let end = life.last.as_ref().and_then(|last| last.revocation.as_ref());
        table.row([
            life.place.clone(),
            life.id.clone(),
            agent.unwrap_or_default(),
            task.and_then(|task| task.purpose.clone()).unwrap_or_default(),
            end.map_or_else(|| "-".to_owned(), |end| end.reason.clone()),
        ]);
    }
    table
}

/// What happened stands last, however long it is.
fn moments(timeline: &Timeline) -> Vec<String> {
    let mut table = Table::new(["TIME", "AFTER", "SEQ", "TASK"]);
    let start = timeline.moments().first().and_then(|moment| time_of(&moment.said));
    for moment in timeline.moments() {
        let said = &moment.said;
        let after = time_of(said).zip(start).map(|(at, start)| (at - start).as_seconds_f64());
        let task = said.task.as_ref().and_then(|task| timeline.place_of(&task.id));
        table.row([
            short(&said.ts),
            after.map_or_else(String::new, |after| format!("{after:+.3}s")),
            said.seq.to_string(),
            task.unwrap_or_default().to_owned(),
        ]);
    }
    let sentence = |moment: &Moment| {
        let mark = if moment.proven { "" } else { "UNPROVEN: " };
        format!("{mark}{}", what(&moment.said))
    };
    let lines = table.lines();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let last = std::iter::once("WHAT".to_owned()).chain(timeline.moments().iter().map(sentence));
    lines.iter().zip(last).map(|(line, last)| format!("{line:width$}  {last}")).collect()
}

fn time_of(said: &Said) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(&said.ts, &Rfc3339).ok()
}

#[derive(Serialize)]
struct Report<'a> {
    task: &'a str,
    tasks: Vec<TaskReport<'a>>,
    events: Vec<EventReport<'a>>,
    /// What the log is worth.
    log: LogReport,
}

#[derive(Serialize)]
struct TaskReport<'a> {
    place: &'a str,
    id: &'a str,
    parent: Option<&'a str>,
    spiffe_id: Option<&'a str>,
    template: Option<&'a str>,
    purpose: Option<&'a str>,
    isolated: Option<bool>,
    first_seen: &'a str,
    ended_at: Option<&'a str>,
    end_reason: Option<&'a str>,
}

#[derive(Serialize)]
struct EventReport<'a> {
    place: Option<&'a str>,
    proven: bool,
    line: Value,
}

#[derive(Serialize)]
struct LogReport {
    first: u64,
    proven_to: u64,
    lines: u64,
    lost: u64,
    checkpoints: u64,
    signatures_good: u64,
    flaw: Option<String>,
}

fn json<'a>(timeline: &'a Timeline, reading: &Reading) -> Result<Report<'a>, Failure> {
    let events = timeline.moments().iter().map(|moment| event(timeline, moment)).collect::<Result<_, _>>();
    Ok(Report {
        task: timeline.tasks().first().map_or("", |life| life.id.as_str()),
        tasks: timeline.tasks().iter().map(task).collect(),
        events: events.map_err(|error| Failure::failed(error.to_string()))?,
        log: LogReport {
            first: reading.first,
            proven_to: reading.head.seq,
            lines: reading.lines,
            lost: reading.lost,
            checkpoints: reading.checkpoints.found,
            signatures_good: reading.checkpoints.good,
            flaw: reading.flaw.as_ref().map(ToString::to_string),
        },
    })
}

fn task(life: &TaskLife) -> TaskReport<'_> {
    let task = life.first.task.as_ref();
    let last = life.last.as_ref();
    TaskReport {
        place: &life.place,
        id: &life.id,
        parent: task.and_then(|task| task.parent.as_deref()),
        spiffe_id: life.first.agent.as_ref().and_then(|agent| agent.spiffe_id.as_deref()),
        template: task.and_then(|task| task.template.as_deref()),
        purpose: task.and_then(|task| task.purpose.as_deref()),
        isolated: task.and_then(|task| task.isolated),
        first_seen: &life.first.ts,
        ended_at: last.map(|last| last.ts.as_str()),
        end_reason: last.and_then(|last| last.revocation.as_ref()).map(|end| end.reason.as_str()),
    }
}

fn event<'a>(timeline: &'a Timeline, moment: &'a Moment) -> Result<EventReport<'a>, serde_json::Error> {
    let place = moment.said.task.as_ref().and_then(|task| timeline.place_of(&task.id));
    Ok(EventReport { place, proven: moment.proven, line: serde_json::from_str(&moment.line)? })
}
