//! `mayfly task tree|list|show|explain|end`: which agents work on what, and stopping them.

mod explain;
mod forest;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod words;

use std::time::Duration;

use mayfly_proto::task::{
    EndRequest, GetTaskRequest, ListTasksRequest, RevokeTaskRequest, Task, TaskState, TaskSummary,
};
use serde::Serialize;
use tonic::Streaming;

use self::forest::Forest;
use self::words::{TaskJson, page, state};
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, count, millis, relative};
use super::{Context, stop};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;

const LIST_EXAMPLES: &str = "\
Examples:
  mayfly task list
  mayfly task list --agent spiffe://example.org/agents/planner --ended --output json";

const TREE_EXAMPLES: &str = "\
Examples:
  mayfly task tree
  mayfly task tree tsk_01K6E4ZQ7M0000000000000000
  mayfly task tree --follow                       live, until Ctrl-C
  mayfly task tree --follow | tee incident.txt    no terminal: each change as a line
  mayfly task tree --follow --output json         the same as JSON";

const SHOW_EXAMPLES: &str = "\
Examples:
  mayfly task show tsk_01K6E4ZQ7M0000000000000000
  mayfly task show --own                          the task that this process works in, by MAYFLY_TASK";

const END_EXAMPLES: &str = "\
Examples:
  mayfly task end tsk_01K6E4ZQ7M0000000000000000 --reason 'ticket 17'
  mayfly task end --own                           the task that this process works in, by MAYFLY_TASK
  mayfly task end --own --failed --reason 'no such page'

Ends the task and everything below it. Answers when every credential of it is refused.";

/// `mayfly task …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// List tasks, parents before their children (operators)
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Show tasks as the trees they are, once or live (operators)
    #[command(after_help = TREE_EXAMPLES)]
    Tree(Tree),
    /// Show one task: who, what it may do, what it has used
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Show),
    /// Say what policy would decide, and what would have to change (operators)
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::Args),
    /// End a task and everything below it
    #[command(after_help = END_EXAMPLES)]
    End(End),
}

#[derive(clap::Args, Debug)]
struct List {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Only tasks of this identity
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Those that ended lately, too
    #[arg(long)]
    ended: bool,
}

#[derive(clap::Args, Debug)]
struct Tree {
    #[command(flatten)]
    list: List,
    /// Only this task and what is below it
    #[arg(value_name = "TASK")]
    task: Option<String>,
    /// Stay, and show each change
    #[arg(long, short)]
    follow: bool,
}

#[derive(clap::Args, Debug)]
struct Show {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    which: WhichTask,
}

#[derive(clap::Args, Debug)]
struct End {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    which: WhichTask,
    /// Why; goes into the audit log
    #[arg(long, value_name = "TEXT", required_unless_present = "own")]
    reason: Option<String>,
    /// The work was not done
    #[arg(long, requires = "own")]
    failed: bool,
}

#[derive(clap::Args, Debug)]
struct WhichTask {
    /// The task
    #[arg(value_name = "TASK", required_unless_present = "own")]
    task: Option<String>,
    /// As a process of the task itself, on the public socket; without TASK, the one that `MAYFLY_TASK` names
    #[arg(long)]
    own: bool,
}

impl WhichTask {
    fn socket(&self) -> Which {
        if self.own { Which::Public } else { Which::Admin }
    }

    fn id(&self, context: &Context) -> Result<String, Failure> {
        let own = context.env.task.as_ref().and_then(|task| task.to_str()).map(str::to_owned);
        self.task.clone().or(own).ok_or_else(|| Failure::usage("name the task, or set MAYFLY_TASK"))
    }
}

#[derive(Serialize)]
struct Listing {
    tasks: Vec<TaskJson>,
}

#[derive(Serialize)]
struct Ended {
    task: String,
    reason: String,
    tasks: u32,
    credentials: u32,
    micros: u64,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    match args.what {
        What::List(args) => list(args, context).await,
        What::Tree(args) => tree(args, context).await,
        What::Show(args) => show(args, context).await,
        What::Explain(args) => explain::run(args, context).await,
        What::End(args) => end(args, context).await,
    }
}

async fn list(args: List, context: &mut Context) -> Result<Exit, Failure> {
    let tasks = all(ask(&args, String::new(), false, context).await?).await?;
    if args.output.is_json() {
        context.console.json(&Listing { tasks: tasks.into_iter().map(Into::into).collect() })?;
    } else if tasks.is_empty() {
        context.console.note("no tasks");
    } else {
        context.console.lines(table(&tasks).lines())?;
    }
    Ok(Exit::Ok)
}

async fn tree(args: Tree, context: &mut Context) -> Result<Exit, Failure> {
    let stream = ask(&args.list, args.task.unwrap_or_default(), args.follow, context).await?;
    if args.follow {
        tokio::select! {
            followed = follow(stream, args.list.output.is_json(), context) => followed?,
            () = stop() => {}
        }
        return Ok(Exit::Ok);
    }
    let tasks = all(stream).await?;
    if args.list.output.is_json() {
        context.console.json(&Listing { tasks: tasks.into_iter().map(Into::into).collect() })?;
        return Ok(Exit::Ok);
    }
    let mut forest = Forest::default();
    tasks.into_iter().for_each(|task| forest.put(task));
    if forest.is_empty() {
        context.console.note("no tasks");
    }
    context.console.lines(forest.lines())?;
    Ok(Exit::Ok)
}

async fn ask(
    args: &List,
    task_id: String,
    follow: bool,
    context: &Context,
) -> Result<Streaming<Task>, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let connection = target.connect().await?;
    let spiffe_id = args.agent.clone().unwrap_or_default();
    let request = ListTasksRequest { task_id, spiffe_id, include_ended: args.ended, follow };
    Ok(answer(connection.task_admin().list(request)).await?.into_inner())
}

async fn all(mut stream: Streaming<Task>) -> Result<Vec<Task>, Failure> {
    let mut tasks = Vec::new();
    while let Some(task) = answer(stream.message()).await? {
        tasks.push(task);
    }
    Ok(tasks)
}

/// On a terminal shows the whole once nothing more has come for a moment, and again after each change; else each change
/// as a line.
async fn follow(mut stream: Streaming<Task>, json: bool, context: &mut Context) -> Result<(), Failure> {
    let mut forest = Forest::default();
    let mut is_shown = true;
    loop {
        let next = tokio::select! {
            next = stream.message() => next,
            () = tokio::time::sleep(QUIET), if !is_shown => {
                draw(&forest, context)?;
                is_shown = true;
                continue;
            }
        };
        let Some(task) = next.map_err(|status| Failure::from_status(&status))? else {
            return if is_shown { Ok(()) } else { draw(&forest, context) };
        };
        if json {
            context.console.json_line(&TaskJson::from(task))?;
        } else if context.env.is_terminal {
            forest.put(task);
            is_shown = false;
        } else {
            context.console.line(&words::line(&task, SystemClock.wall()))?;
        }
    }
}

fn draw(forest: &Forest, context: &mut Context) -> Result<(), Failure> {
    // Home, and nothing below.
    context.console.raw("\u{1b}[H\u{1b}[2J")?;
    let live = u64::try_from(forest.live()).unwrap_or(u64::MAX);
    context.console.line(&format!("{}:", count(live, "live task", "live tasks")))?;
    context.console.lines(forest.lines())?;
    Ok(())
}

async fn show(args: Show, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, args.which.socket(), &context.env)?;
    let task_id = args.which.id(context)?;
    let connection = target.connect().await?;
    let task = if args.which.own {
        answer(connection.tasks().get(GetTaskRequest { task_id })).await?.into_inner()
    } else {
        let request =
            ListTasksRequest { task_id: task_id.clone(), include_ended: true, ..ListTasksRequest::default() };
        let tasks = all(answer(connection.task_admin().list(request)).await?.into_inner()).await?;
        let found = tasks.into_iter().find(|task| task.id == task_id);
        found.ok_or_else(|| Failure::failed(format!("no such task: {task_id}")))?
    };
    if args.output.is_json() {
        context.console.json(&TaskJson::from(task))?;
    } else {
        context.console.lines(page(&task, SystemClock.wall()))?;
    }
    Ok(Exit::Ok)
}

async fn end(args: End, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, args.which.socket(), &context.env)?;
    let task_id = args.which.id(context)?;
    let connection = target.connect().await?;
    let text = args.reason.unwrap_or_default();
    let summary: TaskSummary = if args.which.own {
        let reason = if args.failed { "failed" } else { "completed" }.to_owned();
        answer(connection.tasks().end(EndRequest { task_id, reason, note: text })).await?.into_inner()
    } else {
        answer(connection.task_admin().revoke(RevokeTaskRequest { task_id, reason: text }))
            .await?
            .into_inner()
    };
    if args.output.is_json() {
        let TaskSummary { task_id: task, reason, tasks, credentials, micros, .. } = summary;
        context.console.json(&Ended { task, reason, tasks, credentials, micros })?;
        return Ok(Exit::Ok);
    }
    let tasks = count(summary.tasks.into(), "task", "tasks");
    let credentials = count(summary.credentials.into(), "credential", "credentials");
    let took = millis(summary.micros);
    context.console.line(&format!("{tasks} ended ({}), {credentials} refused, in {took}", summary.reason))?;
    Ok(Exit::Ok)
}

fn table(tasks: &[Task]) -> Table {
    let now = SystemClock.wall();
    let mut table =
        Table::new(["TASK", "AGENT", "STATE", "PID", "ISOLATED", "ENDS", "CREDENTIALS", "PURPOSE"]);
    for task in tasks {
        let is_over = task.state() == TaskState::Ended;
        let ends = task.deadline.filter(|_| !is_over).map(|at| relative(at.seconds, now));
        let id = format!("{}{}", "  ".repeat(usize::try_from(task.depth.min(8)).unwrap_or(0)), task.id);
        table.row([
            id,
            task.spiffe_id.clone(),
            state(task),
            task.pid.to_string(),
            if task.isolated { "yes" } else { "no" }.to_owned(),
            ends.unwrap_or_else(|| "-".to_owned()),
            task.live_credentials.to_string(),
            task.purpose.clone(),
        ]);
    }
    table
}

/// Changes that come together are shown together.
const QUIET: Duration = Duration::from_millis(60);
