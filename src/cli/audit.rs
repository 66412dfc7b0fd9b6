//! `mayfly audit tail|verify`: the hash-chained log, read from its file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Context;
use super::args::OutputArgs;
use super::failure::Failure;
use super::render::{count, hex};
use crate::audit::{self, Checkpoints, Expected, Filter, Head, TailOptions};
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

/// Where the log is unless configured otherwise.
const PATH: &str = "/var/lib/mayfly/audit.jsonl";

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
}

#[derive(clap::Args, Debug)]
struct Tail {
    /// The log; `mayfly status` names it
    #[arg(default_value = PATH, value_name = "FILE")]
    file: PathBuf,
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
    /// The log's files, oldest first; `mayfly status` names the current one
    #[arg(default_value = PATH, value_name = "FILE")]
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
    }
}

fn tail(args: &Tail, context: &mut Context) -> Result<Exit, Failure> {
    let filter = Filter {
        event: args.event.clone(),
        spiffe_id: args.spiffe_id.clone(),
        pid: args.pid,
        credential: args.credential.clone(),
    };
    let options = TailOptions { last: Some(args.lines), follow: args.follow, filter };
    let mut shown = Ok(());
    audit::tail(&args.file, &options, &mut |line| {
        shown = match args.output.is_json() {
            true => context.console.line(line),
            false => context.console.line(&audit::human(line)),
        };
        if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .map_err(|error| Failure::file("read", &args.file, &error))?;
    shown?;
    Ok(Exit::Ok)
}

fn verify(args: &Verify, context: &mut Context) -> Result<Exit, Failure> {
    let files: Vec<&Path> = args.files.iter().map(PathBuf::as_path).collect();
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
}
