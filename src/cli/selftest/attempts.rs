//! The attempts themselves. Each has its control: what is refused here was accepted a moment before.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::super::client::{Connection, Target, inherited};
use super::super::demo::Stopwatch;
use super::super::evidence::{Crls, Held, judge, judgement, unseen};
use super::super::failure::Failure;
use super::super::render::{clean, span};
use super::helper::{Holding, Inherited, heir, token};
use super::{Attempt, Verdict, tasks};
use crate::clock::{Clock, SystemClock, unix_seconds};
use crate::verify::PeerError;

/// Who the self-test's tokens are for. Nobody believes them.
const AUDIENCE: &str = "selftest.mayfly.internal";

/// The longest any step may take.
pub(super) const STEP: Duration = Duration::from_secs(12);

/// Makes all of them, in this order: copy, reuse, outlive.
///
/// # Errors
/// The agent gives this program nothing, or a step could not be observed at all.
pub(super) async fn all(target: &Target, socket: &str, audience: &str) -> Result<Vec<Attempt>, Failure> {
    let connection = target.connect().await?;
    token(&connection, AUDIENCE).await.map_err(|failure| {
        failure.hint("the self-test's processes are workloads: give this program and user an entry")
    })?;
    let mut attempts = vec![handed_over(target).await?];
    let mut holder = Holder::start(socket, audience)?;
    let pid = holder.child.id().unwrap_or_default();
    let holding: Holding = holder.says("the holder's credentials").await?;
    let held = holding.held().ok_or_else(|| Failure::failed("the holder's certificate cannot be read"))?;
    attempts.push(shown_by_another(&connection, &holding.token).await?);
    attempts.push(memory(pid));
    let mut of_tasks = tasks::while_it_lives(&connection, audience, holding.task.as_ref()).await?;
    let mut crls = within("the first revocation list", Crls::open(&connection)).await?;
    if crls.lists(&held.serial) || judgement(&held, &crls.now)?.is_some() {
        return Err(unseen("a certificate of the living holder that verifies"));
    }

    let watch = Stopwatch::start();
    holder.child.start_kill().map_err(|error| Failure::failed(format!("cannot kill the holder: {error}")))?;
    let of_task = async {
        let Ok(task) = &holding.task else { return Ok(None) };
        tasks::outlived(&connection, audience, &task.token, watch).await.map(Some)
    };
    let (refused, listed, outlived) = tokio::join!(
        token_after_end(&connection, &holding.token, watch),
        certificate_after_end(&held, &mut crls, watch),
        of_task,
    );
    attempts.extend([refused?, listed?, unasked(&holding.token)]);
    of_tasks.extend(outlived?);
    holder.child.wait().await.ok();
    attempts.push(connection_outlives(&mut holder).await?);
    attempts.append(&mut of_tasks);
    Ok(attempts)
}

/// A connection that we open is spoken on by a process that we start. Spoken on by us it works.
async fn handed_over(target: &Target) -> Result<Attempt, Failure> {
    token(&inherited(target.open().await?).await?, AUDIENCE).await?;
    let stream = target.open().await?.into_std().map_err(Failure::from)?;
    let start = || {
        let mut command = Command::from(heir(stream, AUDIENCE)?);
        command.stdout(Stdio::piped()).kill_on_drop(true).spawn()
    };
    let mut child: Child =
        start().map_err(|error| Failure::failed(format!("cannot start a process: {error}")))?;
    let got: Inherited = says(&mut lines(&mut child)?, "what the heir got").await?;
    child.wait().await.ok();
    Ok(verdict_of(&got, "copy", "a connection handed to another process"))
}

/// Whoever has a bearer token can show it.
async fn shown_by_another(connection: &Connection, token: &str) -> Result<Attempt, Failure> {
    let seen = match judge(connection, AUDIENCE, token).await? {
        // Without this, its refusal later would prove nothing.
        Some(why) => return Err(Failure::failed(format!("the token of a living process is refused: {why}"))),
        None => format!("accepted, for at most {}: a JWT-SVID is a bearer token", left(token)),
    };
    let what = "a token shown by another process while its holder lives";
    Ok(Attempt { kind: "copy", verdict: Verdict::Limit, what, seen, micros: None })
}

/// Whether this process could read the keys out of the holder: what the kernel's rules for tracing allow.
fn memory(pid: u32) -> Attempt {
    let (verdict, seen) = match File::open(format!("/proc/{pid}/mem")) {
        Ok(_) if rustix::process::geteuid().is_root() => (Verdict::Limit, "root can read it".to_owned()),
        Ok(_) => (
            Verdict::Limit,
            "readable: give each agent a user of its own, or set Yama's ptrace_scope".to_owned(),
        ),
        Err(error) => (Verdict::Held, format!("refused: {error}")),
    };
    Attempt {
        kind: "copy",
        verdict,
        what: "the holder's memory, read by another process of its user",
        seen,
        micros: None,
    }
}

async fn token_after_end(connection: &Connection, token: &str, watch: Stopwatch) -> Result<Attempt, Failure> {
    let refused = async {
        loop {
            if let Some(why) = judge(connection, AUDIENCE, token).await? {
                return Ok::<_, Failure>((why, watch.micros()));
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    let what = "its token, after kill -9 of the holder";
    Ok(match tokio::time::timeout(STEP, refused).await {
        Ok(found) => {
            let (why, micros) = found?;
            Attempt { kind: "reuse", verdict: Verdict::Held, what, seen: clean(&why), micros: Some(micros) }
        }
        Err(_elapsed) => missed("reuse", what, "still accepted"),
    })
}

async fn certificate_after_end(held: &Held, crls: &mut Crls, watch: Stopwatch) -> Result<Attempt, Failure> {
    let what = "its certificate, after kill -9 of the holder";
    let listed = async {
        while !crls.lists(&held.serial) {
            crls.next().await?;
        }
        Ok::<_, Failure>(watch.micros())
    };
    let Ok(listed) = tokio::time::timeout(STEP, listed).await else {
        return Ok(missed("reuse", what, "on no revocation list"));
    };
    let micros = Some(listed?);
    Ok(match judgement(held, &crls.now)? {
        Some(PeerError::Revoked { .. }) => {
            let seen = "on the revocation list, and a TLS verifier that reads it refuses".to_owned();
            Attempt { kind: "reuse", verdict: Verdict::Held, what, seen, micros }
        }
        other => missed("reuse", what, &format!("on the list, but the verifier says {other:?}")),
    })
}

/// What nobody can take back from who does not ask.
fn unasked(token: &str) -> Attempt {
    let seen = format!("accepted until it expires, here in {}", left(token));
    let what = "its token, at a receiver that neither asks the agent nor reads its lists";
    Attempt { kind: "reuse", verdict: Verdict::Limit, what, seen, micros: None }
}

/// The holder opened a connection and left it to a child, which waits for its end.
async fn connection_outlives(holder: &mut Holder) -> Result<Attempt, Failure> {
    let inherited: Inherited = holder.says("what the holder's child got").await?;
    Ok(verdict_of(&inherited, "outlive", "the holder's connection, spoken on by its child after its end"))
}

fn verdict_of(inherited: &Inherited, kind: &'static str, what: &'static str) -> Attempt {
    let verdict = if inherited.got { Verdict::NotHeld } else { Verdict::Held };
    let said = clean(&inherited.said);
    let seen = if inherited.got { said } else { format!("refused: {said}") };
    Attempt { kind, verdict, what, seen, micros: None }
}

pub(super) fn missed(kind: &'static str, what: &'static str, seen: &str) -> Attempt {
    let seen = format!("{seen} after {}", span(STEP));
    Attempt { kind, verdict: Verdict::NotHeld, what, seen, micros: None }
}

/// How much longer a token lasts.
pub(super) fn left(token: &str) -> String {
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
    let ends = claims.and_then(|claims| claims.get("exp")?.as_u64()).unwrap_or(0);
    span(Duration::from_secs(ends.saturating_sub(unix_seconds(SystemClock.wall()))))
}

/// A process that holds credentials, and what it and its child say.
struct Holder {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn start(socket: &str, task_audience: &str) -> Result<Self, Failure> {
        let start = || {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["selftest-holder", "--socket", socket, "--audience", AUDIENCE]);
            command.args(["--task-audience", task_audience]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()
        };
        let mut child: Child =
            start().map_err(|error| Failure::failed(format!("cannot start a process: {error}")))?;
        let lines = lines(&mut child)?;
        Ok(Self { child, lines })
    }

    async fn says<T: serde::de::DeserializeOwned>(&mut self, what: &str) -> Result<T, Failure> {
        says(&mut self.lines, what).await
    }
}

fn lines(child: &mut Child) -> Result<Lines<BufReader<ChildStdout>>, Failure> {
    let out = child.stdout.take().ok_or_else(|| Failure::failed("a process without an output"))?;
    Ok(BufReader::new(out).lines())
}

async fn says<T: serde::de::DeserializeOwned>(
    lines: &mut Lines<BufReader<ChildStdout>>,
    what: &str,
) -> Result<T, Failure> {
    let line = within(what, async { lines.next_line().await.map_err(Failure::from) }).await?;
    line.and_then(|line| serde_json::from_str(&line).ok()).ok_or_else(|| unseen(what))
}

async fn within<T>(what: &str, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(STEP, work).await.unwrap_or_else(|_elapsed| Err(unseen(what)))
}
