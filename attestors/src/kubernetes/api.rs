//! Pods (and labels of namespaces) from the API server: a list, then a watch, limited to this node.
//!
//! What to ask next is decided in [`super::reflect`], what an answer says in [`super::decode`]; here it is asked. An
//! agent at rest has one open request for each collection and sends nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::client::{ApiServer, ClientError};
use super::decode::{self, DecodeError, Event, Lines, Namespace, Object};
use super::pod::Pod;
use super::reflect::{Ask, End, Reflector, Version, dice};
use super::store::{NAMESPACES, PODS, PodSource, Pods};
use crate::ticks;

/// The API server as a source of pods.
#[derive(Debug)]
pub(crate) struct ApiSource {
    pub(crate) server: ApiServer,
    /// This node's name.
    pub(crate) node: Box<str>,
    pub(crate) namespace_labels: bool,
}

impl PodSource for ApiSource {
    fn follow(self: Box<Self>, pods: Arc<Pods>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let of_pods = Follower { server: &self.server, path: pods_of(&self.node), pods: &pods };
            if self.namespace_labels {
                let path = "/api/v1/namespaces?".to_owned();
                let of_namespaces = Follower { server: &self.server, path, pods: &pods };
                tokio::join!(of_pods.follow::<Pod>(), of_namespaces.follow::<Namespace>());
            } else {
                of_pods.follow::<Pod>().await;
            }
        })
    }
}

/// The one thing that limits us to this node: RBAC cannot. The name is one of DNS, so it needs no escaping.
fn pods_of(node: &str) -> String {
    format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}&")
}

/// What a list or watch is about.
trait Collection: Object + Send + 'static {
    /// For operators.
    const NAME: &'static str;
    /// More of them are not kept: somebody lies, or the selector was not obeyed.
    const MOST: usize;

    fn replace(pods: &Pods, all: Vec<Self>);
    fn put(self, pods: &Pods);
    fn remove(self, pods: &Pods);
    fn count(pods: &Pods) -> usize;
}

impl Collection for Pod {
    const NAME: &'static str = PODS;
    const MOST: usize = 10_000;

    fn replace(pods: &Pods, all: Vec<Self>) {
        pods.replace(all);
    }

    fn put(self, pods: &Pods) {
        pods.put(self);
    }

    fn remove(self, pods: &Pods) {
        pods.remove(&self.namespace, &self.name, &self.uid);
    }

    fn count(pods: &Pods) -> usize {
        pods.counts().0
    }
}

impl Collection for Namespace {
    const NAME: &'static str = NAMESPACES;
    const MOST: usize = 50_000;

    fn replace(pods: &Pods, all: Vec<Self>) {
        pods.replace_namespaces(all);
    }

    fn put(self, pods: &Pods) {
        pods.put_namespace(self);
    }

    fn remove(self, pods: &Pods) {
        pods.remove_namespace(&self.name);
    }

    fn count(pods: &Pods) -> usize {
        pods.namespaces()
    }
}

/// Follows one collection.
struct Follower<'a> {
    server: &'a ApiServer,
    /// With everything that each request says.
    path: String,
    pods: &'a Pods,
}

/// How a request failed, for the reflector and for people.
struct Fault {
    end: End,
    why: String,
    retry_after: Option<Duration>,
}

impl Follower<'_> {
    async fn follow<T: Collection>(&self) {
        let mut reflector = Reflector::default();
        let mut listed = Vec::new();
        loop {
            let began = ticks::now();
            let done = match reflector.ask() {
                Ask::List(version, from) => self.list::<T>(&mut reflector, &mut listed, &version, from).await,
                Ask::Watch(version) => self.watch::<T>(&mut reflector, &version).await,
            };
            let Err(fault) = done else { continue };
            if fault.end != End::Over {
                tracing::warn!(
                    what = T::NAME,
                    error = fault.why,
                    "the API server does not tell of changes just now; what is known stays known"
                );
                self.pods.lost(T::NAME, fault.why);
            }
            let pause = reflector.ended(fault.end, began.elapsed(), dice());
            tokio::time::sleep(pause.max(fault.retry_after.unwrap_or_default())).await;
        }
    }

    /// One page. The last one puts all of them in force together.
    async fn list<T: Collection>(
        &self,
        reflector: &mut Reflector,
        listed: &mut Vec<T>,
        version: &Version,
        from: Option<String>,
    ) -> Result<(), Fault> {
        if from.is_none() {
            listed.clear();
        }
        if reflector.pages() >= MOST_PAGES {
            return Err(too_many::<T>());
        }
        let mut path = format!("{}limit={PAGE}", self.path);
        match version {
            Version::Any => path.push_str("&resourceVersion=0"),
            Version::NotOlderThan(version) => {
                path.push_str("&resourceVersionMatch=NotOlderThan&resourceVersion=");
                path.extend(escaped(version));
            }
            Version::Newest => {}
        }
        if let Some(from) = from {
            path.push_str("&continue=");
            path.extend(escaped(&from));
        }
        let body = self.server.get_all(&path, MOST_PAGE_BYTES, LIST_DEADLINE).await?;
        // Some megabytes of JSON: not on a thread that serves.
        let read = tokio::task::spawn_blocking(move || decode::page::<T>(&body)).await;
        let page = read.map_err(|_panicked| DecodeError::Missing("readable body"))??;
        listed.extend(page.items);
        if listed.len() > T::MOST {
            return Err(too_many::<T>());
        }
        if reflector.page(page.version, page.next) {
            T::replace(self.pods, std::mem::take(listed));
            self.pods.synced(T::NAME);
        }
        Ok(())
    }

    /// Until the server ends it, or something breaks.
    async fn watch<T: Collection>(&self, reflector: &mut Reflector, version: &str) -> Result<(), Fault> {
        let seconds = WATCH_SECONDS + u64::from(dice()) % WATCH_SPREAD;
        let path = self.path.clone()
            + "watch=true&allowWatchBookmarks=true&resourceVersion="
            + &escaped(version).collect::<String>()
            + &format!("&timeoutSeconds={seconds}");
        let work = async {
            let mut reply = self.server.get(&path, HEAD_DEADLINE).await?;
            self.pods.synced(T::NAME);
            let mut lines = Lines::default();
            loop {
                // A line once begun has to end: half an object says nothing, and hides what comes after it.
                let patience = if lines.is_whole() { Duration::MAX } else { LINE_DEADLINE };
                let chunk = tokio::time::timeout(patience, reply.chunk()).await;
                let chunk = chunk.unwrap_or(Err(ClientError::Deadline(LINE_DEADLINE)))?;
                let Some(bytes) = chunk else { return Err(OVER) };
                lines.push(&bytes, |line| self.event::<T>(reflector, line))?;
            }
        };
        // A server that does not end it itself has lost us.
        let most = Duration::from_secs(seconds) + HEAD_DEADLINE;
        tokio::time::timeout(most, work).await.unwrap_or(Err(ClientError::Deadline(most).into()))
    }

    fn event<T: Collection>(&self, reflector: &mut Reflector, line: &[u8]) -> Result<(), Fault> {
        let version = match decode::event::<T>(line)? {
            Event::Is(object, version) => {
                if T::count(self.pods) >= T::MOST {
                    return Err(too_many::<T>());
                }
                object.put(self.pods);
                version
            }
            Event::Gone(object, version) => {
                object.remove(self.pods);
                version
            }
            Event::Bookmark(version) => version,
            Event::Expired => {
                return Err(Fault { end: End::Expired, why: EXPIRED.to_owned(), retry_after: None });
            }
            Event::Error(code, message) => {
                let why =
                    format!("the watch ends with {code}: {}", crate::text::of_bytes(message.as_bytes()));
                return Err(Fault { end: End::Failed, why, retry_after: None });
            }
        };
        reflector.moved(version);
        Ok(())
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        let (end, retry_after) = match &error {
            ClientError::Refused(refusal) => {
                let end = match refusal.status.as_u16() {
                    410 => End::Expired,
                    504 => End::Behind,
                    _ => End::Failed,
                };
                (end, refusal.retry_after)
            }
            _ => (End::Failed, None),
        };
        Self { end, why: error.to_string(), retry_after }
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self { end: End::Garbled, why: error.to_string(), retry_after: None }
    }
}

const OVER: Fault = Fault { end: End::Over, why: String::new(), retry_after: None };

fn too_many<T: Collection>() -> Fault {
    let why = format!("more than {} of them, or than {MOST_PAGES} pages: this is not one node's", T::MOST);
    Fault { end: End::Garbled, why, retry_after: None }
}

/// Versions and continue tokens are the server's words: everything but unreserved characters is escaped.
fn escaped(text: &str) -> impl Iterator<Item = String> {
    text.bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    })
}

const EXPIRED: &str = "what was watched is no longer kept; it is listed again";
const PAGE: usize = 500;
const MOST_PAGES: usize = 128;
const MOST_PAGE_BYTES: usize = 64 << 20;
const LIST_DEADLINE: Duration = Duration::from_secs(60);
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
const LINE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a watch is asked to last: spread, so that those of many agents do not end together.
const WATCH_SECONDS: u64 = 260;
const WATCH_SPREAD: u64 = 61;
