//! The shell: waits for the agent, for the program, for signals and for the time; what to do about it is decided
//! by [`super::plan`] and [`super::rounds`].

use std::ffi::OsString;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Incoming, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use super::child::Running;
use super::config::{Config, OnChange};
use super::follow::{self, Event};
use super::notify;
use super::place::Place;
use super::plan::{Known, Set, changes, remains};
use super::rounds::Rounds;
use crate::clock::{Clock as _, SystemClock};
use crate::endpoint::EndpointError;
use crate::files::WriteError;
use crate::verify::{Agent, WorkloadError};

/// How long to stay.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Until the first set is written.
    Once,
    /// For ever.
    Stay,
    /// As long as this program runs.
    Supervise(Vec<OsString>),
}

/// Why it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// It did what it was asked, or was asked to stop.
    Well,
    /// The program ended, with that code.
    Program(u8),
}

/// Why it could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// `SPIFFE_ENDPOINT_SOCKET` is no endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The directory cannot be written to.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The agent is not to be spoken to, or refuses.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// No first set within the time given.
    #[error("no identity within {0:?}: {1}")]
    TooLate(Duration, String),
    /// The program cannot be started.
    #[error("cannot start `{program}`: {source}", program = .program.to_string_lossy())]
    Start {
        /// What was to be run.
        program: OsString,
        /// Why not.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

/// One run of `mayfly sync`.
pub struct Sync<'s> {
    config: Config,
    mode: Mode,
    say: &'s mut dyn FnMut(&str),
    place: Place,
    known: Known,
    /// What lies in the directory.
    written: Set,
    rounds: Rounds,
    /// Whether somebody is still to be told of what lies there.
    untold: bool,
    child: Option<Running>,
    /// Why there is no first set yet.
    waiting_for: String,
}

impl std::fmt::Debug for Sync<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sync").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<'s> Sync<'s> {
    /// Locks the directory. `say` is told, in one sentence each, what an operator should see.
    ///
    /// # Errors
    /// The directory is not a place for keys, or somebody else writes there.
    pub fn new(config: Config, mode: Mode, say: &'s mut dyn FnMut(&str)) -> Result<Self, SyncError> {
        let place = Place::open(&config)?;
        let rounds = Rounds::new(config.notify.settle, config.notify.pause);
        let (known, written, child) = (Known::default(), Set::new(), None);
        let waiting_for = "the agent has not answered".to_owned();
        Ok(Self { config, mode, say, place, known, written, rounds, untold: false, child, waiting_for })
    }

    /// Runs. `wait` limits the time to the first set.
    ///
    /// # Errors
    /// [`SyncError`].
    pub async fn run(mut self, wait: Option<Duration>) -> Result<Ended, SyncError> {
        let (sender, mut events) = unbounded_channel();
        let agent = self.agent()?;
        // Dropping the set at the end of this function ends every call to the agent.
        let mut producers = JoinSet::new();
        producers.spawn(follow::x509(agent.clone(), sender.clone()));
        if self.config.jwks.own.is_some() || self.config.jwks.federated.is_some() {
            producers.spawn(follow::jwks(agent.clone(), sender.clone()));
        }
        for number in 0..self.config.jwt.len() {
            producers.spawn(follow::jwt(agent.clone(), self.config.clone(), number, sender.clone()));
        }
        let mut signals = Signals::new().map_err(SyncError::Signals)?;
        let outcome = self.turn(&mut events, &mut signals, wait).await;
        let outcome = self.leave(outcome).await;
        producers.shutdown().await;
        outcome
    }

    async fn turn(
        &mut self,
        events: &mut UnboundedReceiver<Event>,
        signals: &mut Signals,
        wait: Option<Duration>,
    ) -> Result<Ended, SyncError> {
        let limit = wait.map(|wait| (SystemClock.monotonic() + wait, wait));
        loop {
            let deadline = self.rounds.deadline();
            let limit = limit.filter(|_| self.written.is_empty());
            tokio::select! {
                Some(event) = events.recv() => self.event(event).await?,
                () = until(deadline) => self.round().await?,
                () = until(limit.map(|limit| limit.0)) => {
                    let length = limit.map(|limit| limit.1).unwrap_or_default();
                    return Err(SyncError::TooLate(length, self.waiting_for.clone()));
                }
                code = ended(&mut self.child) => return Ok(Ended::Program(code)),
                signal = signals.next() => match &self.child {
                    Some(child) => child.signal(signal),
                    None if ENDING.contains(&signal) => return Ok(Ended::Well),
                    None => {}
                },
            }
            if self.mode == Mode::Once && !self.written.is_empty() {
                return Ok(Ended::Well);
            }
        }
    }

    async fn event(&mut self, event: Event) -> Result<(), SyncError> {
        match event {
            Event::X509(answer) => {
                for id in &answer.repeated_hints {
                    (self.say)(&format!("`{id}` left out: an earlier identity has the same hint"));
                }
                let wanted = self.config.spiffe_id.as_ref();
                if let (None, Some(id)) = (answer.pick(wanted), wanted) {
                    let why = format!("this process does not have `{id}`");
                    return self.identity_ended(&why).await;
                }
                self.known.x509 = Some(*answer);
                self.waiting_for.clear();
            }
            Event::Jwks(bundles) => self.known.jwks = Some(bundles),
            Event::Jwt(number, token) => {
                self.known.jwts.insert(number, token);
            }
            Event::NoIdentity(why) => return self.identity_ended(&why).await,
            Event::Bad(error) => (self.say)(&format!("update ignored: {error}")),
            Event::Away(error) => self.note_waiting(error.to_string()),
            Event::Over(error) => return Err(error.into()),
        }
        if let Some(set) = self.known.set(&self.config)
            && set != self.written
        {
            self.rounds.changed(SystemClock.monotonic());
        }
        Ok(())
    }

    /// Said once for a reason, not for each attempt.
    fn note_waiting(&mut self, why: String) {
        if self.waiting_for != why {
            (self.say)(&format!("{why}; trying again"));
            self.waiting_for = why;
        }
    }

    /// Writes what is wanted by now, and tells whoever wants to know.
    async fn round(&mut self) -> Result<(), SyncError> {
        let Some(set) = self.known.set(&self.config) else { return Ok(()) };
        if !self.rounds.start(SystemClock.monotonic()) {
            return Ok(());
        }
        let first = self.written.is_empty();
        let changed = changes(&self.written, &set);
        if let Err(error) = self.place.write(&set) {
            (self.say)(&format!("{error}; trying again"));
            self.rounds.finish(false, SystemClock.monotonic());
            return Ok(());
        }
        if !changed.is_empty() {
            let names = self.names(&set);
            (self.say)(&format!("wrote {names} to {}", self.place.path().display()));
        }
        self.written = set;
        self.untold |= changed.iter().any(|kind| self.config.notify.on.contains(kind));
        if self.untold {
            self.untold = !self.tell(first).await?;
        }
        self.rounds.finish(!self.untold, SystemClock.monotonic());
        Ok(())
    }

    /// False when somebody could not be told: the round is to be repeated.
    async fn tell(&mut self, first: bool) -> Result<bool, SyncError> {
        if let Mode::Supervise(words) = self.mode.clone() {
            self.tell_child(&words).await?;
            if first {
                return Ok(true);
            }
        }
        if self.mode == Mode::Once {
            return Ok(true);
        }
        let told = notify::tell(&self.config.notify, self.place.path()).await;
        if let Err(error) = &told {
            (self.say)(&format!("{error}; trying again"));
        }
        Ok(told.is_ok())
    }

    async fn tell_child(&mut self, words: &[OsString]) -> Result<(), SyncError> {
        match (&mut self.child, self.config.child.on_change) {
            (Some(child), OnChange::Signal(signal)) => child.signal(signal),
            (Some(child), OnChange::Restart) => {
                child.stop(self.config.child.grace).await;
                self.child = Some(start(words)?);
            }
            (Some(_), OnChange::Nothing) => {}
            (None, _) => self.child = Some(start(words)?),
        }
        Ok(())
    }

    /// The agent has taken our identity back, or does not know us: nothing secret stays behind, unless the
    /// configuration says so.
    async fn identity_ended(&mut self, why: &str) -> Result<(), SyncError> {
        if self.known.x509.is_none() {
            self.note_waiting(format!("the agent has no identity for this process: {why}"));
            return Ok(());
        }
        (self.say)(&format!("IDENTITY ENDED: {why}"));
        self.known = Known::default();
        self.rounds.cancel();
        self.sweep()?;
        if self.config.child.stop_on_end
            && let Some(child) = &self.child
        {
            (self.say)("stopping the program, which has lost its identity");
            child.signal(Signal::TERM);
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), SyncError> {
        match remains(&self.written, self.config.on_end) {
            None => (self.say)("the files stay as they are, keys too (`on_end = \"keep\"`)"),
            Some(left) => {
                let gone: Vec<&str> = self
                    .written
                    .keys()
                    .filter(|name| !left.contains_key(*name))
                    .map(String::as_str)
                    .collect();
                if !gone.is_empty() {
                    (self.say)(&format!("removing {} from {}", gone.join(" "), self.place.path().display()));
                }
                self.place.reduce(&left)?;
                self.written = left;
            }
        }
        Ok(())
    }

    /// Our own end revokes the certificate: what is left behind would be a key for nothing.
    async fn leave(&mut self, outcome: Result<Ended, SyncError>) -> Result<Ended, SyncError> {
        if let Some(child) = &mut self.child
            && !matches!(outcome, Ok(Ended::Program(_)))
        {
            child.stop(self.config.child.grace).await;
        }
        if self.mode != Mode::Once && !self.written.is_empty() {
            self.sweep()?;
        }
        outcome
    }

    fn agent(&self) -> Result<Agent, SyncError> {
        let agent = match &self.config.socket {
            Some(path) => Agent::at(path),
            None => Agent::from_env()?,
        };
        Ok(match self.config.server_uid {
            Some(uid) => agent.served_by(uid),
            None => agent,
        })
    }

    fn names(&self, set: &Set) -> String {
        let changed = set.iter().filter(|(name, file)| self.written.get(*name) != Some(file));
        changed.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
    }
}

fn start(words: &[OsString]) -> Result<Running, SyncError> {
    let program = || words.first().cloned().unwrap_or_default();
    Running::start(words).map_err(|source| SyncError::Start { program: program(), source })
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn ended(child: &mut Option<Running>) -> u8 {
    match child {
        Some(child) => child.ended().await,
        None => std::future::pending().await,
    }
}

/// Signals that end us when there is no program to give them to.
const ENDING: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP];

/// The signals that are passed on.
struct Signals(Vec<(Incoming, Signal)>);

impl Signals {
    fn new() -> std::io::Result<Self> {
        let kinds = [
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::quit(), Signal::QUIT),
            (SignalKind::hangup(), Signal::HUP),
            (SignalKind::user_defined1(), Signal::USR1),
            (SignalKind::user_defined2(), Signal::USR2),
            (SignalKind::window_change(), Signal::WINCH),
        ];
        let listen = |(kind, number)| Ok((signal(kind)?, number));
        kinds.into_iter().map(listen).collect::<std::io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> Signal {
        let waits = self.0.iter_mut().map(|(incoming, number)| {
            Box::pin(async move {
                incoming.recv().await;
                *number
            })
        });
        futures_util::future::select_all(waits).await.0
    }
}
