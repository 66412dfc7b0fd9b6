//! One engine: asked about a container once, listened to for what changes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use hyper::StatusCode;
use tokio::sync::{Notify, Semaphore};

use super::answer::{Inspected, Odd};
use super::cache::Cache;
use super::http::{AskError, Exchange};
use crate::backend::{Found, Silent};
use crate::origin::ContainerId;

/// An engine's container, and the number of its first process.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) found: Arc<Found>,
    pub(super) init: u32,
}

/// What came of a question, for everybody who waits for it.
pub(super) type Answer = Result<Known, Arc<NoAnswer>>;

/// Why there is none.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The engine knows no such container.
    Unknown,
    /// It cannot say, or must not be believed.
    Silent(Silent),
}

type Question = Shared<Pin<Box<dyn Future<Output = Answer> + Send>>>;

/// One engine.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) socket: PathBuf,
    env: Vec<String>,
    state: Mutex<State>,
    /// Somebody has asked: there is a reason to listen.
    pub(super) asked: Notify,
    lanes: Semaphore,
}

#[derive(Debug)]
struct State {
    cache: Cache<ContainerId, Known>,
    questions: HashMap<ContainerId, Question>,
    /// What it is asked in, once it has said what it understands.
    version: Option<String>,
}

impl Engine {
    pub(super) fn new(socket: PathBuf, env: Vec<String>) -> Arc<Self> {
        let cache = Cache::new(MOST_CONTAINERS);
        let state = Mutex::new(State { cache, questions: HashMap::new(), version: None });
        Arc::new(Self { socket, env, state, asked: Notify::new(), lanes: Semaphore::new(QUESTIONS_AT_ONCE) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin_to_hear(&self, version: String) {
        let mut state = self.lock();
        state.cache.begin_to_hear();
        state.version = Some(version);
    }

    pub(super) fn stop_to_hear(&self) {
        let mut state = self.lock();
        state.cache.stop_to_hear();
        state.version = None;
    }

    pub(super) fn heard(&self, id: &ContainerId) {
        let open = {
            let mut state = self.lock();
            state.cache.heard(id);
            // Who asks from now on must not be given what was asked before.
            state.questions.remove(id)
        };
        // Not under the lock, which the end of a question takes.
        drop(open);
    }

    /// What the engine says of a container: remembered, or asked for once for everybody who waits.
    pub(super) async fn known(self: &Arc<Self>, id: ContainerId) -> Answer {
        let waiting = {
            let mut state = self.lock();
            if let Some(known) = state.cache.get(&id) {
                return Ok(known);
            }
            if !state.cache.hears() {
                self.asked.notify_one();
            }
            let open = state.questions.get(&id).filter(|open| open.peek().is_none()).cloned();
            let question = open.unwrap_or_else(|| {
                let question = Arc::clone(self).question(id, &mut state).boxed().shared();
                state.questions.insert(id, question.clone());
                question
            });
            Waiting { engine: Arc::clone(self), id, question }
        };
        waiting.question.clone().await
    }

    /// The guard is made before anything is asked, so that an event that overtakes the answer is noticed.
    fn question(
        self: Arc<Self>,
        id: ContainerId,
        state: &mut State,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let asked = state.cache.ask(id);
        let mut asked = OnEnd { engine: self, asked: Some(asked) };
        async move {
            let answer = asked.engine.ask(&id).await.map_err(Arc::new);
            asked.end(answer.as_ref().ok().cloned());
            answer
        }
    }

    async fn ask(&self, id: &ContainerId) -> Result<Known, NoAnswer> {
        // Never closed.
        let _lane = self.lanes.acquire().await.ok();
        let mut answer = self.ask_once(id).await;
        if matches!(answer, Err(NoAnswer::Unknown))
            || matches!(&answer, Err(NoAnswer::Silent(why)) if is_starting(why))
        {
            // It may be about to begin.
            tokio::time::sleep(SHORTLY).await;
            answer = self.ask_once(id).await;
        }
        answer
    }

    async fn ask_once(&self, id: &ContainerId) -> Result<Known, NoAnswer> {
        let version = self.version().await?;
        let path = format!("/v{version}/containers/{id}/json");
        let exchange = Exchange::get(&self.socket, &path).await.map_err(|error| silent(&error))?;
        match exchange.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(NoAnswer::Unknown),
            status => {
                self.lock().version = None;
                return Err(NoAnswer::Silent(
                    format!("the engine answers with status {}", status.as_u16()).into(),
                ));
            }
        }
        let body = exchange.body(MOST_BYTES).await.map_err(|error| silent(&error))?;
        let read = Inspected::read(&body, id).map_err(|odd| NoAnswer::Silent(explained(odd)))?;
        Ok(Known { found: Arc::new(read.selectors(&self.env)), init: read.init() })
    }

    async fn version(&self) -> Result<String, NoAnswer> {
        if let Some(version) = self.lock().version.clone() {
            return Ok(version);
        }
        let version = spoken(&self.socket).await.map_err(|error| silent(&error))?;
        self.lock().version = Some(version.clone());
        Ok(version)
    }
}

/// The version to ask in: the engine's own, but no later than the one this was written for.
pub(super) async fn spoken(socket: &std::path::Path) -> Result<String, AskError> {
    let exchange = Exchange::get(socket, "/_ping").await?;
    let theirs = exchange.header("api-version").and_then(version).unwrap_or(LATEST);
    let (major, minor) = theirs.min(LATEST);
    Ok(format!("{major}.{minor}"))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// One of those who wait for an answer. With the last of them the question ends, answered or not: nobody who comes
/// later waits for one that an engine has let hang.
struct Waiting {
    engine: Arc<Engine>,
    id: ContainerId,
    question: Question,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let open = {
            let mut state = self.engine.lock();
            let ours = state.questions.get(&self.id).is_some_and(|open| open.ptr_eq(&self.question));
            // The list's and our own.
            let last = self.question.strong_count().is_none_or(|count| count <= 2);
            if ours && last { state.questions.remove(&self.id) } else { None }
        };
        // Not under the lock, which the end of a question takes.
        drop(open);
    }
}

/// Tells the cache that an answer has come, or that nobody waits for it any more.
struct OnEnd {
    engine: Arc<Engine>,
    asked: Option<super::cache::Asked<ContainerId>>,
}

impl OnEnd {
    fn end(&mut self, answer: Option<Known>) {
        if let Some(asked) = self.asked.take() {
            self.engine.lock().cache.answered(&asked, answer);
        }
    }
}

impl Drop for OnEnd {
    fn drop(&mut self) {
        self.end(None);
    }
}

fn silent(error: &AskError) -> NoAnswer {
    NoAnswer::Silent(error.silent())
}

fn explained(odd: Odd) -> Silent {
    match odd {
        Odd::Form => "the engine's answer is not of the form that engines send".into(),
        Odd::OtherId => "sources_disagree (the engine answers about another container)".into(),
        Odd::NotRunning => NOT_RUNNING.into(),
    }
}

fn is_starting(why: &Silent) -> bool {
    matches!(why, Silent::Because(why) if why == NOT_RUNNING)
}

const NOT_RUNNING: &str = "sources_disagree (the engine says that the container does not run)";

/// Of the engine's API: every engine of the last years has it.
const LATEST: (u32, u32) = (1, 44);
const SHORTLY: Duration = Duration::from_millis(50);
const QUESTIONS_AT_ONCE: usize = 16;
const MOST_CONTAINERS: usize = 4096;
const MOST_BYTES: usize = 4 << 20;
