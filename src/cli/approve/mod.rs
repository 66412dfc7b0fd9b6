//! `mayfly approve`: what agents ask people to allow, and the answer.

#[cfg(test)]
mod tests;
mod words;

use std::io::{self, BufRead, IsTerminal as _};

use mayfly_proto::task::{Approval, ApprovalState, DecideRequest, ListApprovalsRequest};
use serde::Serialize;

use self::words::{ApprovalJson, page, state};
use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Connection, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, cell, count, relative};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly approve                                      on a terminal: show each request, and ask
  mayfly approve list
  mayfly approve show apr_01K6E4ZQ7M0000000000000000
  mayfly approve grant apr_01K6E4ZQ7M0000000000000000 --reason 'ticket 17'
  mayfly approve deny apr_01K6E4ZQ7M0000000000000000 --reason 'not during the freeze'

Whoever decides is a person of the policy's catalogue, by his uid, or root; never the user that the agent runs as, nor a
process in the agent's cgroup or in any task. One no is final. A yes is good for exactly what is shown, once, for minutes.";

const LIST_EXAMPLES: &str = "\
Examples:
  mayfly approve list
  mayfly approve list --all --output json";

const SHOW_EXAMPLES: &str = "\
Examples:
  mayfly approve show apr_01K6E4ZQ7M0000000000000000";

const GRANT_EXAMPLES: &str = "\
Examples:
  mayfly approve grant apr_01K6E4ZQ7M0000000000000000 --reason 'ticket 17'

Good for exactly what `mayfly approve show` shows, once, for minutes. Policy is asked again when it is used.";

const DENY_EXAMPLES: &str = "\
Examples:
  mayfly approve deny apr_01K6E4ZQ7M0000000000000000 --reason 'not during the freeze'

Final, whoever else has said yes or would.";

/// `mayfly approve …`
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// List what waits for an answer, or is approved and not used
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Show one request: what the agent's daemon found out, and last what the agent says of itself
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Show),
    /// Say yes
    #[command(after_help = GRANT_EXAMPLES)]
    Grant(Decide),
    /// Say no
    #[command(after_help = DENY_EXAMPLES)]
    Deny(Decide),
}

#[derive(clap::Args, Debug)]
struct List {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Only requests of this task
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Those that nothing comes of any more, too
    #[arg(long)]
    all: bool,
}

#[derive(clap::Args, Debug)]
struct Show {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The request
    #[arg(value_name = "APPROVAL")]
    id: String,
}

#[derive(clap::Args, Debug)]
struct Decide {
    #[command(flatten)]
    show: Show,
    /// Why; goes into the audit log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

#[derive(Serialize)]
struct Listing {
    approvals: Vec<ApprovalJson>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    match args.what {
        Some(What::List(args)) => list(args, context).await,
        Some(What::Show(args)) => show(args, context).await,
        Some(What::Grant(args)) => decide(args, true, context).await,
        Some(What::Deny(args)) => decide(args, false, context).await,
        None if context.env.is_terminal && io::stdin().is_terminal() => {
            ask(&args.client, &mut io::stdin().lock(), context).await
        }
        None => Err(Failure::usage("say what: list, show, grant or deny; only on a terminal each is asked")),
    }
}

async fn list(args: List, context: &mut Context) -> Result<Exit, Failure> {
    let connection = connect(&args.client, context).await?;
    let all = approvals(&connection, args.task.unwrap_or_default(), args.all).await?;
    if args.output.is_json() {
        context.console.json(&Listing { approvals: all.into_iter().map(Into::into).collect() })?;
    } else if all.is_empty() {
        context.console.note("nothing waits for an answer");
    } else {
        context.console.lines(table(&all).lines())?;
    }
    Ok(Exit::Ok)
}

async fn show(args: Show, context: &mut Context) -> Result<Exit, Failure> {
    let connection = connect(&args.client, context).await?;
    let approval = find(&connection, &args.id).await?;
    if args.output.is_json() {
        context.console.json(&ApprovalJson::from(approval))?;
    } else {
        context.console.lines(page(&approval, SystemClock.wall()))?;
    }
    Ok(Exit::Ok)
}

async fn decide(args: Decide, approve: bool, context: &mut Context) -> Result<Exit, Failure> {
    let connection = connect(&args.show.client, context).await?;
    let shown = find(&connection, &args.show.id).await?;
    let decided = tell(&connection, &shown, approve, args.reason).await?;
    if args.show.output.is_json() {
        context.console.json(&ApprovalJson::from(decided))?;
    } else {
        context.console.line(&outcome(&decided))?;
    }
    Ok(Exit::Ok)
}

/// One after the other, until there is none that was not shown.
async fn ask(client: &ClientArgs, input: &mut impl BufRead, context: &mut Context) -> Result<Exit, Failure> {
    let connection = connect(client, context).await?;
    let all = approvals(&connection, String::new(), false).await?;
    let waiting: Vec<&Approval> = all.iter().filter(|one| one.state() == ApprovalState::Pending).collect();
    if waiting.is_empty() {
        context.console.note("nothing waits for an answer");
    }
    for approval in waiting {
        context.console.lines(page(approval, SystemClock.wall()))?;
        context.console.raw("\nApprove exactly this? `yes`, `no`, or anything else to leave it: ")?;
        let mut line = String::new();
        if input.read_line(&mut line).map_err(|error| Failure::failed(error.to_string()))? == 0 {
            break;
        }
        let approve = match line.trim() {
            "yes" => true,
            "no" => false,
            _ => continue,
        };
        match tell(&connection, approval, approve, String::new()).await {
            Ok(decided) => context.console.line(&outcome(&decided))?,
            // The next one may be for somebody else to decide, or be over.
            Err(failure) => context.console.note(&failure.message),
        }
    }
    Ok(Exit::Ok)
}

async fn connect(client: &ClientArgs, context: &Context) -> Result<Connection, Failure> {
    Ok(Target::resolve(client, Which::Admin, &context.env)?.connect().await?)
}

async fn approvals(
    connection: &Connection,
    task_id: String,
    include_closed: bool,
) -> Result<Vec<Approval>, Failure> {
    let request = ListApprovalsRequest { task_id, include_closed, follow: false };
    let mut stream = answer(connection.task_admin().list_approvals(request)).await?.into_inner();
    let mut all = Vec::new();
    while let Some(approval) = answer(stream.message()).await? {
        all.push(approval);
    }
    Ok(all)
}

async fn find(connection: &Connection, id: &str) -> Result<Approval, Failure> {
    let all = approvals(connection, String::new(), true).await?;
    let found = all.into_iter().find(|approval| approval.id == id);
    found.ok_or_else(|| Failure::failed(format!("no such approval: {id}")))
}

/// With the digest of what was shown: an answer about anything else does not count.
async fn tell(
    connection: &Connection,
    shown: &Approval,
    approve: bool,
    reason: String,
) -> Result<Approval, Failure> {
    let request = DecideRequest {
        approval_id: shown.id.clone(),
        approve,
        reason,
        operation_sha256: shown.operation_sha256.clone(),
    };
    Ok(answer(connection.task_admin().decide(request)).await?.into_inner())
}

fn outcome(approval: &Approval) -> String {
    let what = format!("{} on {}", approval.action, approval.target);
    match approval.state() {
        ApprovalState::Pending => {
            let given = u64::try_from(approval.votes.len()).unwrap_or(u64::MAX);
            let more = u64::from(approval.quorum).saturating_sub(given);
            format!("noted: {} more must say yes to {what}", count(more, "person", "people"))
        }
        _ => format!("{}: {what} ({})", state(approval), approval.id),
    }
}

fn table(all: &[Approval]) -> Table {
    let now = SystemClock.wall();
    let mut table = Table::new(["APPROVAL", "STATE", "AGENT", "ACTION", "TARGET", "BY", "ENDS"]);
    for approval in all {
        let ends = approval.approved_until.or(approval.expires_at).map(|at| relative(at.seconds, now));
        table.row([
            approval.id.clone(),
            state(approval),
            approval.spiffe_id.clone(),
            approval.action.clone(),
            cell(&approval.target),
            approval.approvers.clone(),
            ends.unwrap_or_default(),
        ]);
    }
    table
}
