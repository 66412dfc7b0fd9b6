//! Waiting for an agent or for an identity (`--wait`).
//!
//! An absent socket is waited for by inotify on the nearest directory that exists. The specification ends
//! the stream of a caller without identity, so a Mayfly agent is asked by its own call to tell when there
//! is one. Where that does not help (another vendor's agent, one that is not ready), the question is put
//! again after 0.1 s, doubling up to 2 s. Nothing else is retried.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_proto::identity::AwaitIdentityRequest;
use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::{Connection, Target};
use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;

/// First and longest pause between two questions.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The value of `--wait`: how long, or until it comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WaitFor {
    /// `--wait`.
    Ever,
    /// `--wait=30s`.
    AtMost(Duration),
}

impl FromStr for WaitFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ever" => Ok(Self::Ever),
            _ => crate::cli::args::duration(text).map(Self::AtMost),
        }
    }
}

/// How much longer to keep trying, and how long to pause before the next attempt.
#[derive(Debug)]
pub(crate) struct Patience {
    until: Limit,
    /// Whether a refusal for want of an identity is waited out, too.
    for_identity: bool,
    pause: Duration,
    told: bool,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    Never,
    Ever,
    At(Instant),
}

impl Patience {
    /// Starts the clock; `None` gives up at once.
    pub(crate) fn new(wait: Option<WaitFor>) -> Self {
        let until = match wait {
            None => Limit::Never,
            Some(WaitFor::Ever) => Limit::Ever,
            Some(WaitFor::AtMost(length)) => {
                SystemClock.monotonic().checked_add(length).map_or(Limit::Ever, Limit::At)
            }
        };
        Self { until, for_identity: true, pause: PAUSE_FIRST, told: false }
    }

    /// For a stream that was open before: comes back to an agent that restarts however long it takes, and
    /// waits for an identity only as `--wait` says.
    pub(crate) fn reconnecting(wait: Option<WaitFor>) -> Self {
        Self { until: Limit::Ever, for_identity: wait.is_some(), pause: PAUSE_FIRST, told: false }
    }

    /// Says nothing about waiting.
    pub(crate) fn quiet(self) -> Self {
        Self { told: true, ..self }
    }

    /// Connects and makes the attempt, again and again while it may help and time is left.
    ///
    /// # Errors
    /// The last attempt's failure.
    pub(crate) async fn persist<T>(
        &mut self,
        context: &mut Context,
        target: &Target,
        mut attempt: impl AsyncFnMut(Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut watch: Option<SocketWatch> = None;
        loop {
            let (failure, connection) = match target.connect().await {
                Ok(connection) => match attempt(connection.clone()).await {
                    Ok(value) => {
                        self.pause = PAUSE_FIRST;
                        return Ok(value);
                    }
                    Err(failure) => (failure, Some(connection)),
                },
                Err(error) => (Failure::from(error), None),
            };
            let left = self.may_wait(&failure)?;
            self.tell(context, &failure);
            let wake = async {
                match (&connection, &mut watch) {
                    (Some(connection), _) if failure.exit == Exit::NoIdentity => {
                        self.identity_comes(connection).await;
                    }
                    // A socket that appears before the watch is set is seen by the attempt that follows.
                    (_, None) => watch = Some(SocketWatch::new(target.paths())),
                    (_, Some(seen)) => {
                        tokio::time::timeout(self.pause, seen.changed.notified()).await.ok();
                        *seen = SocketWatch::new(target.paths());
                    }
                }
            };
            match left {
                Some(left) => tokio::time::timeout(left, wake).await.unwrap_or_default(),
                None => wake.await,
            }
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }

    /// How much longer to wait after this failure (`None` = for ever), or the failure back.
    fn may_wait(&self, failure: &Failure) -> Result<Option<Duration>, Failure> {
        if !failure.is_transient() || (failure.exit == Exit::NoIdentity && !self.for_identity) {
            return Err(failure.clone());
        }
        let now = SystemClock.monotonic();
        match self.until {
            Limit::Ever => Ok(None),
            Limit::At(at) if at > now => Ok(Some(at - now)),
            Limit::At(_) | Limit::Never => Err(failure.clone()),
        }
    }

    /// Resolves when the agent says that there is an identity now, never before the pause is over: what
    /// was refused may be something an identity alone does not help.
    async fn identity_comes(&self, connection: &Connection) {
        let told = async {
            let mut identity = connection.identity();
            let mut stream = identity.await_identity(AwaitIdentityRequest {}).await.ok()?.into_inner();
            stream.message().await.ok()?
        };
        tokio::join!(told, tokio::time::sleep(self.pause));
    }

    fn tell(&mut self, context: &mut Context, failure: &Failure) {
        if !std::mem::replace(&mut self.told, true) {
            let pid = std::process::id();
            context.console.note(&match failure.exit {
                Exit::NoIdentity => format!(
                    "{}; waiting for an entry that matches (`mayfly explain --pid {pid}` says what is missing)",
                    failure.message
                ),
                _ => format!("{}; waiting for the agent", failure.message),
            });
        }
    }
}

/// Notices that a socket may have appeared.
struct SocketWatch {
    changed: Arc<Notify>,
    _watcher: Option<notify::RecommendedWatcher>,
}

impl SocketWatch {
    /// Watches the nearest existing directory above each path. Without inotify the pauses still work.
    fn new(paths: &[PathBuf]) -> Self {
        let changed = Arc::new(Notify::new());
        let wake = Arc::clone(&changed);
        let wanted = paths.to_vec();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let near = |seen: &PathBuf| wanted.iter().any(|path| path.starts_with(seen));
            if event.is_ok_and(|event| event.paths.iter().any(near)) {
                wake.notify_one();
            }
        });
        let watcher = watcher.ok().map(|mut watcher| {
            for dir in paths.iter().filter_map(|path| nearest_directory(path)) {
                watcher.watch(dir, RecursiveMode::NonRecursive).ok();
            }
            watcher
        });
        Self { changed, _watcher: watcher }
    }
}

fn nearest_directory(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|dir| dir.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_takes_a_duration_or_nothing() {
        assert_eq!("30s".parse(), Ok(WaitFor::AtMost(Duration::from_secs(30))));
        assert_eq!("ever".parse(), Ok(WaitFor::Ever));
        assert!("soon".parse::<WaitFor>().is_err());
    }

    #[tokio::test]
    async fn a_directory_that_appears_wakes_the_watch() {
        let dir = tempfile::tempdir().expect("tempdir");
        let watch = SocketWatch::new(&[dir.path().join("public/api.sock")]);
        std::fs::create_dir(dir.path().join("public")).expect("mkdir");
        tokio::time::timeout(Duration::from_secs(5), watch.changed.notified()).await.expect("woken");
    }
}
