//! The `docker` attestor, for the Docker engine and for Podman, which speaks the same API: `label:K:V`, `image_id`,
//! `image_config_digest`, `name`, `compose_project`, `compose_service`, and `env:K=V` of variables that were allowed.
//!
//! Which container a process is in comes from its cgroup path ([`crate::origin`]); the engine only says what that
//! container is. It is believed if the socket is root's ([`crate::root_socket`]), if it answers about this very id, and if
//! the first process of the container it speaks of is in that container's cgroup. Its answers are remembered while
//! its events are heard, and not by time.

mod answer;
mod cache;
mod engine;
mod http;
mod listen;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::engine::{Engine, Known, NoAnswer};
use crate::backend::{Backend, BackendFuture, BackendTask, Found, Silent, Subject, Tell};
use crate::origin::{ContainerRef, Origin, Runtime};

/// Where engines are, and what is told of their containers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DockerSettings {
    /// The Docker engine's socket.
    pub docker: Option<PathBuf>,
    /// Podman's socket, of the engine that runs as root.
    pub podman: Option<PathBuf>,
    /// Environment variables that become selectors.
    pub env: Vec<String>,
    /// How long an answer may take.
    pub deadline: Duration,
}

/// Asks container engines.
#[derive(Debug)]
pub struct Docker {
    docker: Option<Arc<Engine>>,
    podman: Option<Arc<Engine>>,
    deadline: Duration,
}

impl Docker {
    /// The attestor, and the tasks that listen to its engines. Nothing is dialled before somebody asks.
    pub fn new(settings: DockerSettings, tell: &Tell) -> (Self, Vec<BackendTask>) {
        let DockerSettings { docker, podman, env, deadline } = settings;
        let engine = |socket: PathBuf| Engine::new(socket, env.clone());
        let all = Self { docker: docker.map(engine), podman: podman.map(engine), deadline };
        let engines = all.docker.iter().chain(&all.podman);
        let tasks = engines
            .map(|engine| Box::pin(listen::listen(Arc::clone(engine), Arc::clone(tell))) as BackendTask);
        let tasks = tasks.collect();
        (all, tasks)
    }

    /// The engine that could have made it.
    fn engine(&self, runtime: Runtime) -> Result<&Arc<Engine>, String> {
        let engine = match runtime {
            // The path does not tell: Kubernetes with a Docker engine below it.
            Runtime::Docker | Runtime::Unknown => self.docker.as_ref(),
            Runtime::Podman => self.podman.as_ref(),
            Runtime::Containerd | Runtime::CriO => None,
        };
        engine.ok_or_else(|| format!("the container is of {}, which is not asked", runtime.as_str()))
    }
}

impl Backend for Docker {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn keys(&self) -> &'static [&'static str] {
        &["label", "image_id", "image_config_digest", "env", "name", "compose_project", "compose_service"]
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn attest<'a>(&'a self, subject: &'a Subject<'a>) -> BackendFuture<'a> {
        Box::pin(async move {
            let container = match subject.origin() {
                Origin::Container(container) => container,
                Origin::Host => return Ok(Found::nothing("the process is in no container")),
                Origin::Refused(why) => {
                    return Ok(Found::nothing(format!("the container is not told: {why}")));
                }
            };
            let engine = match self.engine(container.runtime) {
                Ok(engine) => engine,
                Err(why) => return Ok(Found::nothing(why)),
            };
            match engine.known(container.id).await {
                Ok(known) => believe(subject, container, &known),
                Err(why) => match why.as_ref() {
                    NoAnswer::Unknown => missing(container),
                    NoAnswer::Silent(Silent::Descriptors) => Err(Silent::Descriptors),
                    NoAnswer::Silent(Silent::Because(why)) => Err(why.clone().into()),
                },
            }
        })
    }
}

/// C05: the container that the engine means is the one whose cgroup the process is in.
fn believe(subject: &Subject<'_>, container: &ContainerRef, known: &Known) -> Result<Found, Silent> {
    let theirs = subject.origin_of(known.init)?;
    let same = theirs.as_ref().and_then(Origin::container).is_some_and(|theirs| theirs.id == container.id);
    if same {
        return Ok(Found::clone(&known.found));
    }
    let init = known.init;
    Err(format!("sources_disagree (the engine's process {init} is not in the container's cgroup)").into())
}

/// C11: the kernel says that the container is there. An engine that does not know one of its own has lost it, or is not
/// whole yet: nothing is concluded from that. Where the path names no engine, the container may be somebody else's.
fn missing(container: &ContainerRef) -> Result<Found, Silent> {
    match container.runtime {
        Runtime::Docker | Runtime::Podman => {
            let engine = container.runtime.as_str();
            Err(format!(
                "sources_disagree (the container is of {engine}, whose engine knows none of that id)"
            )
            .into())
        }
        Runtime::Unknown | Runtime::Containerd | Runtime::CriO => {
            Ok(Found::nothing("the engine knows no such container"))
        }
    }
}

const KIND: &str = "docker";

#[cfg(test)]
mod tests;
