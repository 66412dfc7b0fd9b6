//! `mayfly audit tail|verify|query|task`: the hash-chained log, read from its file.

mod ask;
mod history;
mod usual;
mod words;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Context;
use super::args::OutputArgs;
use super::failure::Failure;
use super::render::{count, hex};
use crate::audit::{self, Checkpoints, Expected, Filter, Head, Reading, TailOptions};
use crate::authority::JwtBundle;
use crate::exit::Exit;

const VERIFY_EXAMPLES: &str = "\
Examples:
  mayfly audit verify /var/lib/mayfly/audit.jsonl
  mayfly audit verify audit.jsonl.1 audit.jsonl                  a rotated log, oldest first
  mayfly audit verify --expect 1042:9f0c… audit.jsonl            find lines cut off the end, too
  mayfly audit verify --keys jwks.0.json audit.jsonl             check the signed checkpoints, too

Finds a line that was changed, removed or moved. Exit code: 0 whole, 1 not, with the first bad line.";

const TAIL_EXAMPLES: &str = "\
Examples:
  mayfly audit tail /var/lib/mayfly/audit.jsonl
  mayfly audit tail --follow --event credential.revoke
  mayfly audit tail --lines 100 --pid 4242 --output json | jq .";

/// `mayfly audit …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Print the last audit events
    #[command(after_help = TAIL_EXAMPLES)]
    Tail(Tail),
    /// Check the whole hash chain
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Verify),
    /// Find events by agent, target, action and time
    #[command(after_help = ask::EXAMPLES)]
    Query(ask::Args),
    /// Print the life of a task and of all below it: who, what, why, decided, issued, taken back
    #[command(after_help = history::EXAMPLES)]
    Task(history::Args),
}

#[derive(clap::Args, Debug)]
struct Tail {
    /// The log [default: /var/lib/mayfly/audit.jsonl, or that of your own agent]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// How many of those that are there
    #[arg(long, short = 'n', default_value_t = 10, value_name = "N")]
    lines: usize,
    /// Print new ones as they come, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Only this event, or all of its kind: `credential` includes `credential.revoke`
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// Only this identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// Only this process
    #[arg(long, value_name = "PID")]
    pid: Option<u64>,
    /// Only this credential: the serial or `jti`, in hex
    #[arg(long, value_name = "HEX")]
    credential: Option<String>,
}

#[derive(clap::Args, Debug)]
struct Verify {
    /// The log's files, oldest first [default: /var/lib/mayfly/audit.jsonl, or that of your own agent]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// The first lines may be missing, because older files were deleted
    #[arg(long)]
    partial: bool,
    /// What the end must be, as an earlier check printed it
    #[arg(long, value_name = "NUMBER:HASH", value_parser = head)]
    expect: Option<Head>,
    /// Check the signatures of its checkpoints, too, by these keys: jwks.N.json of `mayfly fetch bundles --write`
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
}

#[derive(Serialize)]
struct Whole {
    lines: u64,
    first: u64,
    last: u64,
    hash: String,
    lost: u64,
    checkpoints: u64,
    signatures_good: u64,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    match &args.what {
        What::Tail(args) => tail(args, context),
        What::Verify(args) => verify(args, context),
        What::Query(args) => ask::run(args, context),
        What::Task(args) => history::run(args, context),
    }
}

fn tail(args: &Tail, context: &mut Context) -> Result<Exit, Failure> {
    let filter = Filter {
        events: args.event.iter().cloned().collect(),
        spiffe_id: args.spiffe_id.clone(),
        pid: args.pid,
        credential: args.credential.clone(),
        task: None,
    };
    let options = TailOptions { last: Some(args.lines), follow: args.follow, filter };
    let file = args.file.clone().unwrap_or_else(|| usual::log(&context.env));
    let mut shown = Ok(());
    audit::tail(&file, &options, &mut |line| {
        shown = match args.output.is_json() {
            true => context.console.line(line),
            false => context.console.line(&audit::human(line)),
        };
        if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .map_err(|error| Failure::file("read", &file, &error))?;
    shown?;
    Ok(Exit::Ok)
}

fn verify(args: &Verify, context: &mut Context) -> Result<Exit, Failure> {
    let files = usual::files(&args.files, &context.env);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let expected = Expected { partial: args.partial, head: args.expect };
    let keys = args.keys.as_deref().map(keys).transpose()?;
    let found = audit::verify_with(&files, expected, keys.as_ref())
        .map_err(|error| Failure::failed(error.to_string()))?;
    let Checkpoints { found: checkpoints, good: signatures_good } = found.checkpoints;
    let (last, hash) = (found.head.seq, hex(&found.head.hash));
    if args.output.is_json() {
        let (lines, first, lost) = (found.lines, found.first, found.lost);
        context.console.json(&Whole { lines, first, last, hash, lost, checkpoints, signatures_good })?;
        return Ok(Exit::Ok);
    }
    let lines = count(found.lines, "line", "lines");
    context.console.line(&format!("whole: {lines}, number {} to {last}", found.first))?;
    context.console.line(&format!("end: {last}:{hash}"))?;
    if keys.is_some() {
        let all = count(checkpoints, "checkpoint", "checkpoints");
        let unknown = checkpoints - signatures_good;
        context
            .console
            .line(&format!("{all}: {signatures_good} signed by these keys, {unknown} by others"))?;
    }
    if found.lost > 0 {
        let lost = count(found.lost, "event", "events");
        context.console.line(&format!("the log itself says that {lost} could not be written"))?;
    }
    Ok(Exit::Ok)
}

/// Reads the whole log.
fn opened(
    files: &[PathBuf],
    keys: Option<&JwtBundle>,
    each: &mut dyn FnMut(&str, bool),
) -> Result<Reading, Failure> {
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    audit::read(&files, keys, each).map_err(|error| Failure::failed(error.to_string()))
}

/// What the answer is worth: said on standard error, and by the exit code.
fn outcome(reading: &Reading, context: &mut Context) -> Result<Exit, Failure> {
    if reading.first > 1 {
        let first = reading.first;
        context
            .console
            .note(&format!("the log given begins with line number {first}: what was before is not in it"));
    }
    if reading.lost > 0 {
        let lost = count(reading.lost, "event", "events");
        context.console.note(&format!("the log itself says that {lost} could not be written"));
    }
    if reading.unfinished {
        context.console.note("the last line was being written and is left out");
    }
    match &reading.flaw {
        None => Ok(Exit::Ok),
        Some(flaw) => {
            let proven = reading.head.seq;
            Err(Failure::failed(format!("the chain is broken: {flaw}")).hint(format!(
                "only lines up to number {proven} are proven; compare the rest with a copy kept elsewhere"
            )))
        }
    }
}

fn keys(path: &Path) -> Result<JwtBundle, Failure> {
    let document = std::fs::read(path).map_err(|error| Failure::file("read", path, &error))?;
    JwtBundle::parse(&document).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

/// `1042:9f0c…`, 64 hex digits.
fn head(text: &str) -> Result<Head, String> {
    let parse = || {
        let (seq, digits) = text.split_once(':')?;
        let mut hash = [0; 32];
        let pairs = digits.as_bytes().chunks(2);
        (digits.len() == 64 && digits.is_ascii()).then_some(())?;
        for (byte, pair) in hash.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Head { seq: seq.parse().ok()?, hash })
    };
    parse().ok_or_else(|| "write the number of the last line, a colon and its hash in hex".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mayfly_attestors::BootId;

    use super::super::testing::{Ran, empty_env, run};
    use super::*;
    use crate::audit::{Event, Log, LogSettings};
    use crate::clock::SystemClock;
    use crate::ledger::testing::data_dir;

    /// Three lines, the second with a hostile text.
    async fn log(path: &Path) {
        let settings = LogSettings {
            path: Some(path.to_owned()),
            node: "n".into(),
            boot_id: BootId::from_bytes([1; 16]),
        };
        let log = Log::open(settings, Arc::new(SystemClock)).expect("open");
        let stop = |reason: &str| Event::AgentStop { reason: reason.into() };
        let start = Event::AgentStart { version: "1".into(), posture: Vec::new() };
        log.record(vec![start, stop("\u{1b}[2J\nforged"), stop("end")]).await.expect("record");
    }

    async fn audit(args: &[&str], path: &Path) -> Ran {
        let path = path.to_str().expect("text");
        run(empty_env(), &[&["audit"], args, &[path]].concat()).await
    }

    #[tokio::test]
    async fn a_whole_log_is_whole_and_its_end_can_be_expected_later() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        log(&path).await;
        let ran = audit(&["verify"], &path).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert!(ran.out.starts_with("whole: 3 lines, number 1 to 3\nend: 3:"), "{}", ran.out);
        let end = ran.out.lines().nth(1).and_then(|line| line.strip_prefix("end: ")).expect("end").to_owned();
        assert_eq!(audit(&["verify", "--expect", &end], &path).await.exit, Exit::Ok);
        let text = std::fs::read_to_string(&path).expect("read");
        let cut: String = text.lines().take(2).flat_map(|line| [line, "\n"]).collect();
        std::fs::write(&path, cut).expect("write");
        assert_eq!(audit(&["verify"], &path).await.exit, Exit::Ok, "a cut end alone does not show");
        let ran = audit(&["verify", "--expect", &end], &path).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""), "{ran:?}");
        assert_eq!(audit(&["verify", "--expect", "3:ab"], &path).await.exit, Exit::Usage);
    }

    #[tokio::test]
    async fn a_changed_line_is_named() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        log(&path).await;
        let text = std::fs::read_to_string(&path).expect("read").replace("forged", "honest");
        std::fs::write(&path, text).expect("write");
        let ran = audit(&["verify", "--output", "json"], &path).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        assert!(ran.err.contains("audit.jsonl:2"), "{}", ran.err);
    }

    #[tokio::test]
    async fn tail_shows_one_safe_line_an_event() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        log(&path).await;
        let ran = audit(&["tail", "-n", "2"], &path).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert_eq!(ran.out.lines().count(), 2, "{}", ran.out);
        assert!(!ran.out.contains('\u{1b}'));
        let ran = audit(&["tail", "--event", "agent.start", "--output", "json"], &path).await;
        assert_eq!(ran.json()["event"], "agent.start");
        assert_eq!(audit(&["tail"], Path::new("/nonexistent")).await.exit, Exit::Failed);
    }

    /// A root with a child: begun, decided, issued, ended.
    async fn task_log(path: &Path) {
        let settings = LogSettings {
            path: Some(path.to_owned()),
            node: "n".into(),
            boot_id: BootId::from_bytes([1; 16]),
        };
        let log = Log::open(settings, Arc::new(SystemClock)).expect("open");
        log.record(audit::testing::task_story()).await.expect("record");
    }

    const ROOT: &str = "tsk_01040G2081040G2081040G2081";

    #[tokio::test]
    async fn the_life_of_a_task_and_of_those_below_it_can_be_read() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        task_log(&path).await;
        let ran = audit(&["task", ROOT], &path).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let expected = [
            "agent     spiffe://example.org/agent/planner",
            "begins: spiffe://example.org/agent/planner, pid 4242",
            "takes up its parent's offer: spiffe://example.org/agent/fetcher",
            "denied unless people approve (approval_required): write on wiki",
            "purpose   \"look around\\n\\u{1b}[31m\" (the agent's own words)",
            "ended     process_exit, by kernel; 7 credentials and 2 tasks below with it",
        ];
        for part in expected {
            assert!(ran.out.contains(part), "{part} is not in\n{}", ran.out);
        }
        assert!(ran.out.lines().any(|line| line.starts_with("1.1  tsk_")), "{}", ran.out);
        assert!(!ran.out.contains('\u{1b}'));
        let only = audit(&["task", "--only", ROOT], &path).await;
        assert!(only.exit == Exit::Ok && !only.out.contains("fetcher,"), "{}", only.out);
        let ran = audit(&["task", "--output", "json", ROOT], &path).await.json();
        assert_eq!((&ran["tasks"][1]["place"], &ran["tasks"][1]["parent"]), (&"1.1".into(), &ROOT.into()));
        assert_eq!(ran["events"].as_array().expect("events").len(), 5);
        assert_eq!(
            (&ran["events"][0]["proven"], &ran["log"]["flaw"]),
            (&true.into(), &serde_json::Value::Null)
        );
    }

    #[tokio::test]
    async fn a_timeline_of_a_broken_log_says_from_where_on_it_is_unproven_and_fails() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        task_log(&path).await;
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(&path, text.replace("approval_required", "approval_approved")).expect("write");
        let ran = audit(&["task", ROOT], &path).await;
        assert_eq!(ran.exit, Exit::Failed);
        assert!(
            ran.err.contains("the chain is broken") && ran.err.contains("audit.jsonl:3: changed"),
            "{}",
            ran.err
        );
        let unproven: Vec<bool> = ran
            .out
            .lines()
            .skip_while(|line| !line.starts_with("TIME"))
            .skip(1)
            .map(|line| line.contains("UNPROVEN: "))
            .collect();
        assert_eq!(unproven, [false, false, true, true, true], "{}", ran.out);
        let ran = audit(&["query", "--action", "write"], &path).await;
        assert_eq!(ran.exit, Exit::Failed);
        let marked: Vec<bool> = ran.out.lines().map(|line| line.starts_with("UNPROVEN ")).collect();
        assert_eq!(marked, [false, true], "{}", ran.out);
        let ran = audit(&["query", "--event", "task.begin"], &path).await;
        assert_eq!(ran.exit, Exit::Failed, "what is not shown is broken as well");
    }

    #[tokio::test]
    async fn a_query_takes_times_of_both_kinds_and_says_when_nothing_fits() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        task_log(&path).await;
        let lines = |ran: &Ran| ran.out.lines().count();
        let all = audit(&["query", "--since", "1h"], &path).await;
        assert_eq!((all.exit, lines(&all)), (Exit::Ok, 5), "{all:?}");
        let none = audit(&["query", "--until", "1h"], &path).await;
        assert_eq!((none.exit, none.out.as_str()), (Exit::Ok, ""));
        assert!(none.err.contains("none of 5 lines fits"), "{}", none.err);
        let old = audit(&["query", "--until", "2020-01-01T00:00:00Z"], &path).await;
        assert_eq!(lines(&old), 0);
        let denied =
            audit(&["query", "--result", "requestable", "--target", "wiki", "--output", "json"], &path).await;
        assert_eq!(denied.json()["decision"]["action"], "write");
        for wrong in [["query", "--since", "yesterday"], ["query", "--result", "maybe"]] {
            assert_eq!(audit(&wrong, &path).await.exit, Exit::Usage, "{wrong:?}");
        }
        assert_eq!(audit(&["task", "tsk_1"], &path).await.exit, Exit::Usage);
        let other = audit(&["task", "tsk_7ZZZZZZZZZZZZZZZZZZZZZZZZZ"], &path).await;
        assert_eq!(other.exit, Exit::Failed);
        assert!(other.err.contains("nothing in this log is of tsk_7ZZ"), "{}", other.err);
    }
}
