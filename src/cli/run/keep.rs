//! `mayfly run`'s side of a task: hears from the launcher which one it is, and keeps its token files until the end.

use std::io;
use std::time::{Duration, SystemTime};

use mayfly_proto::task::task_event::Event;
use mayfly_proto::task::{IssueRequest, WatchRequest};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tonic::Code;

use super::begin::READY;
use super::tokens::{RETRY, Token, TokenDir, renew_after};
use crate::cli::client::{Connection, Target, answer};
use crate::cli::failure::{Failure, task_reason};
use crate::clock::{Clock as _, SystemClock};

/// What is kept for one program.
#[derive(Debug)]
pub(super) struct Keeper {
    target: Target,
    dir: TokenDir,
    tokens: Vec<Token>,
    listener: UnixListener,
}

/// One file, and when it is due.
struct Kept {
    token: Token,
    due: Instant,
    expires: SystemTime,
    /// It expired, and somebody has been told.
    is_gone: bool,
    /// How long to wait after a refusal.
    pause: Duration,
}

impl Keeper {
    /// Nothing is asked of the agent yet.
    pub(super) fn prepare(target: Target, dir: TokenDir, tokens: Vec<Token>) -> io::Result<Self> {
        let listener = UnixListener::bind(dir.path_of(SOCKET))?;
        Ok(Self { target, dir, tokens, listener })
    }

    /// Where the launcher finds us.
    pub(super) fn socket(&self) -> std::path::PathBuf {
        self.dir.path_of(SOCKET)
    }

    /// The variables that say where the files are.
    pub(super) fn variables(&self) -> impl Iterator<Item = (String, String)> {
        self.tokens.iter().map(|token| {
            (token.variable.clone(), self.dir.path_of(&token.variable).to_string_lossy().into_owned())
        })
    }

    /// Until nothing more can be had; a task that ended takes its files with it. `launcher` is the only process that
    /// is listened to.
    pub(super) async fn keep(&self, launcher: u32, note: impl Fn(&str)) -> Result<(), Failure> {
        let (task, mut words) = self.hear(launcher).await?;
        let connection = self.target.connect().await?;
        let mut kept = Vec::with_capacity(self.tokens.len());
        for token in &self.tokens {
            kept.push(self.renew(&connection, &task, token).await.map_err(|not| not.failure)?);
        }
        let told = words.write_all(READY.as_bytes()).await;
        told.map_err(|error| Failure::failed(format!("the launcher is gone: {error}")))?;
        drop(words);
        if kept.is_empty() {
            return Ok(());
        }
        tokio::select! {
            () = self.renewing(connection, &task, kept, &note) => {}
            why = self.ended(&task) => {
                self.tokens.iter().for_each(|token| self.dir.remove(token));
                if why != PROGRAM_ENDED {
                    note(&format!("the task has ended ({why}): its tokens are gone"));
                }
            }
        }
        Ok(())
    }

    /// Until nothing is left that could be had again.
    async fn renewing(
        &self,
        mut connection: Connection,
        task: &str,
        mut kept: Vec<Kept>,
        note: &impl Fn(&str),
    ) {
        while let Some(next) = kept.iter().map(|kept| kept.due).min() {
            tokio::time::sleep_until(next).await;
            let (due, mut later): (Vec<_>, Vec<_>) = kept.into_iter().partition(|kept| kept.due <= next);
            for old in due {
                match self.renew(&connection, task, &old.token).await {
                    Ok(new) => later.push(new),
                    Err(not) => later.extend(self.without(old, &not, note)),
                }
            }
            kept = later;
            if let Ok(again) = self.target.connect().await {
                connection = again;
            }
        }
    }

    /// Until the task has ended: why. A stream that breaks is opened again.
    async fn ended(&self, task: &str) -> String {
        loop {
            if let Ok(connection) = self.target.connect().await {
                let request = WatchRequest { task_id: task.to_owned() };
                let mut events = match connection.tasks().watch(request).await {
                    Ok(events) => events.into_inner(),
                    Err(status) if is_final(&status) => return "it is not known any more".to_owned(),
                    Err(_) => {
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                };
                while let Ok(Some(event)) = events.message().await {
                    if let Some(Event::Ended(summary)) = event.event {
                        return summary.reason;
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What becomes of a file that was not renewed: it stays while it is good for something, and is tried again while
    /// that could help.
    fn without(&self, old: Kept, not: &NotRenewed, note: &impl Fn(&str)) -> Option<Kept> {
        if not.is_final || old.expires <= SystemClock.wall() {
            self.dir.remove(&old.token);
            if not.is_final || !old.is_gone {
                note(&format!("no token for {} any more: {}", old.token.audience, not.failure.message));
            }
            return (!not.is_final).then(|| Kept { is_gone: true, ..again_later(old) });
        }
        tracing::debug!(why = not.failure.message, "a token is not renewed yet");
        Some(again_later(old))
    }

    /// The task's name, from the launcher and nobody else.
    async fn hear(&self, launcher: u32) -> Result<(String, UnixStream), Failure> {
        let lost = |error: io::Error| Failure::failed(format!("cannot hear from the launcher: {error}"));
        loop {
            let (stream, _) = self.listener.accept().await.map_err(lost)?;
            let peer = stream.peer_cred().map_err(lost)?;
            if peer.pid().and_then(|pid| u32::try_from(pid).ok()) != Some(launcher) {
                continue;
            }
            let mut reader = BufReader::new(stream);
            let mut task = String::new();
            reader.read_line(&mut task).await.map_err(lost)?;
            return Ok((task.trim_end().to_owned(), reader.into_inner()));
        }
    }

    async fn renew(&self, connection: &Connection, task: &str, token: &Token) -> Result<Kept, NotRenewed> {
        let request = IssueRequest {
            task_id: task.to_owned(),
            format: token.format.into(),
            audience: vec![token.audience.clone()],
            ..IssueRequest::default()
        };
        let mut is_final = false;
        let mut tasks = connection.tasks();
        let issued = answer(async {
            tasks.issue(request).await.inspect_err(|status| {
                is_final = self::is_final(status);
            })
        });
        let issued = issued.await.map_err(|failure| NotRenewed { is_final, failure })?.into_inner();
        self.dir.write(token, &issued.token).map_err(|error| NotRenewed {
            is_final: false,
            failure: Failure::file("write", &self.dir.path_of(&token.variable), &error),
        })?;
        let at = |time: Option<prost_types::Timestamp>| time.and_then(|time| SystemTime::try_from(time).ok());
        let now = SystemClock.wall();
        let expires = at(issued.expires_at).unwrap_or(now);
        let due = Instant::now() + renew_after(at(issued.issued_at).unwrap_or(now), expires);
        Ok(Kept { token: token.clone(), due, expires, is_gone: false, pause: RETRY })
    }
}

/// After a while, each time after a longer one: a refusal is a decision, on record, and costs the task one of its calls.
fn again_later(kept: Kept) -> Kept {
    Kept { due: Instant::now() + kept.pause, pause: (2 * kept.pause).min(LONGEST_RETRY), ..kept }
}

/// Whether the task is over for us: it has ended, or an agent that has lost its ledger knows neither it nor its keeper. What is
/// frozen or waits for people may go on.
fn is_final(status: &tonic::Status) -> bool {
    const OVER: [&str; 4] = ["task_ended", "no_such_task", "not_granted", "not_attested"];
    match status.code() {
        Code::NotFound => true,
        Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated => {
            let reason = task_reason(status);
            // Without a reason: the agent does not know who we are.
            OVER.contains(&reason.as_str())
                || (reason.is_empty() && status.code() != Code::FailedPrecondition)
        }
        _ => false,
    }
}

/// Why a file holds nothing new, and whether it ever will: a task that ended stays ended.
struct NotRenewed {
    is_final: bool,
    failure: Failure,
}

/// A policy that allows again is noticed within this time.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const SOCKET: &str = "launcher.sock";
/// Nothing to tell: the program is going, and its files with it.
const PROGRAM_ENDED: &str = "process_exit";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_refused_asks_ever_more_seldom() {
        let token = Token::access("WIKI_TOKEN=https://wiki.example.org").unwrap();
        let kept = Kept {
            token,
            due: Instant::now(),
            expires: SystemTime::UNIX_EPOCH,
            is_gone: false,
            pause: RETRY,
        };
        let mut next = kept;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pauses.push(next.pause.as_secs());
            next = again_later(next);
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
