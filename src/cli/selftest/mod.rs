//! `mayfly selftest containment`: tries to copy, to reuse and to outlive what the running agent gives out, with
//! processes of its own, and says what held and what did not.

mod attempts;
mod helper;
mod tasks;

use serde::Serialize;

pub(super) use self::helper::{HeirArgs, HolderArgs, run_heir, run_holder};
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which};
use super::failure::Failure;
use super::render::{Table, millis};
use super::{Context, stop};
use crate::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  mayfly selftest containment
  mayfly selftest containment --output json
  mayfly selftest containment --audience https://wiki.example.org     with tasks that read there

Runs against the agent that runs here, which must have an identity for this program and user: the self-test's processes
are its workloads. It revokes and kills nothing but its own. With a policy set that lets it read at some target, it tries
tasks, too.

  held      tried, and refused
  NOT HELD  tried, and it worked although it must not: the exit code is 1
  limit     tried, and it works: nothing on this side of the receiver can prevent it
  not tried the attempt could not be made here

Exit code: 0 nothing failed to hold; 1 something did, or could not be observed; 7 this program gets no identity.";

/// `mayfly selftest …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Can what the agent gives out be copied, used again, or outlive its process?
    #[command(after_help = EXAMPLES)]
    Containment(Containment),
}

#[derive(clap::Args, Debug)]
struct Containment {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Whom its tasks' tokens are for: the audience of a target that policy lets it read
    #[arg(long, value_name = "AUDIENCE", default_value = "https://selftest.mayfly.internal")]
    audience: String,
}

/// How an attempt came out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Held,
    NotHeld,
    Limit,
    NotTried,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::NotHeld => "NOT HELD",
            Self::Limit => "limit",
            Self::NotTried => "not tried",
        }
    }
}

/// One attempt.
#[derive(Debug, Serialize)]
struct Attempt {
    /// `copy`, `reuse` or `outlive`.
    kind: &'static str,
    verdict: Verdict,
    /// What was tried.
    what: &'static str,
    /// What was seen.
    seen: String,
    /// From the cause to what was seen, where that means something.
    micros: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    attempts: Vec<Attempt>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let What::Containment(args) = args.what;
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let socket = target.path()?.display().to_string();
    let attempts = tokio::select! {
        attempts = attempts::all(&target, &socket, &args.audience) => attempts?,
        () = stop() => return Err(Failure::failed("interrupted; everything started here is stopped")),
    };
    let failed = attempts.iter().filter(|attempt| attempt.verdict == Verdict::NotHeld).count();
    if args.output.is_json() {
        context.console.json(&Report { ok: failed == 0, attempts })?;
    } else {
        context.console.lines(table(&attempts).lines())?;
    }
    match failed {
        0 => Ok(Exit::Ok),
        _ => Err(Failure::failed("not everything held").hint("`mayfly status` says what this kernel lacks")),
    }
}

fn table(attempts: &[Attempt]) -> Table {
    let mut table = Table::new(["", "", "TRIED", "SEEN", "AFTER"]);
    for attempt in attempts {
        table.row([
            attempt.kind.to_owned(),
            attempt.verdict.text().to_owned(),
            attempt.what.to_owned(),
            attempt.seen.clone(),
            attempt.micros.map_or_else(String::new, millis),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_hold_stands_out() {
        let attempt = |verdict| Attempt {
            kind: "copy",
            verdict,
            what: "a token shown by another process",
            seen: "accepted".to_owned(),
            micros: Some(1_500),
        };
        let lines = table(&[attempt(Verdict::Held), attempt(Verdict::NotHeld)]).lines();
        assert!(lines.iter().any(|line| line.starts_with("copy  NOT HELD  a token")), "{lines:?}");
        assert!(lines.iter().all(|line| line.ends_with("1.500 ms") || line.ends_with("AFTER")), "{lines:?}");
    }
}
