//! The `k8s` attestor: namespace, service account, labels, owners, images of the pod that a process runs in, in SPIRE's
//! words.
//!
//! The kernel says which container it is ([`crate::origin`]); a source that is told of every change says which pod
//! that container is part of: the API server, or the kubelet. An answer comes out of memory, and nothing is asked of
//! anybody for it. Two back-ends of one kind, because the facts come at two times: what the pod's specification says is known
//! before its first container starts, what the kubelet reports comes a second or two later, and few entries ask for it.
//!
//! Never believed: a pod of another node, a container of another pod or runtime than its cgroup says, a name that two
//! pods claim, and (unless it is allowed) a container that was put into the pod to debug it.

mod api;
mod client;
mod decode;
mod feed;
mod kubelet;
mod pod;
mod reflect;
mod selectors;
mod store;
mod table;
mod waiting;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use self::client::ApiServer;
pub use self::store::SourceState;

use self::api::ApiSource;
use self::kubelet::KubeletSource;
use self::store::{PodSource, Pods};
use self::table::{Verdict, Wanted};
use crate::backend::{Backend, BackendFuture, Found, Silent, Subject, Tell};
use crate::origin::{ContainerRef, Origin, Runtime};

/// How pods are found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KubernetesSettings {
    /// This node's name, as pods are bound to it.
    pub node: String,
    /// Who is asked.
    pub source: SourceSettings,
    /// How long a process may wait for its pod to become known.
    pub wait_pod: Duration,
    /// And then for its container to be reported.
    pub wait_status: Duration,
    /// Whether labels of namespaces are watched as well. Only from the API server.
    pub namespace_labels: bool,
    /// Whether ephemeral containers get the selectors of their pod.
    pub ephemeral: bool,
}

/// Who says what pods there are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SourceSettings {
    /// The API server.
    Api(ApiServer),
    /// The kubelet of this node, by the socket of its Pods API. Experimental, as that API is.
    Kubelet(PathBuf),
}

/// The pods of this node. Clones share them.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    pods: Arc<Pods>,
    settings: Arc<KubernetesSettings>,
}

/// How it is doing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KubernetesStatus {
    /// How the source is.
    pub source: SourceState,
    /// Pods known.
    pub pods: usize,
    /// Attestations that wait for one.
    pub waiting: usize,
}

/// What stands before any container runs, or what the kubelet reports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Spec,
    Status,
}

impl Kubernetes {
    /// Nothing is asked before [`Self::follow`] runs.
    pub fn new(settings: KubernetesSettings) -> Self {
        let pods = Arc::new(Pods::new(&settings.node, settings.namespace_labels, settings.ephemeral));
        Self { pods, settings: Arc::new(settings) }
    }

    /// Both back-ends.
    pub fn backends(&self) -> Vec<Box<dyn Backend>> {
        let of = |stage| Box::new(Attestor { kubernetes: self.clone(), stage }) as Box<dyn Backend>;
        vec![of(Stage::Spec), of(Stage::Status)]
    }

    /// Tells of changes of pods. Only the first call counts.
    pub fn tell(&self, tell: Tell) {
        self.pods.tell(tell);
    }

    /// Follows the source until dropped.
    pub fn follow(&self) -> impl Future<Output = ()> + Send + 'static {
        let settings = &self.settings;
        let source: Box<dyn PodSource> = match &settings.source {
            SourceSettings::Api(server) => Box::new(ApiSource {
                server: server.clone(),
                node: settings.node.as_str().into(),
                namespace_labels: settings.namespace_labels,
            }),
            SourceSettings::Kubelet(socket) => Box::new(KubeletSource { socket: socket.clone() }),
        };
        source.follow(Arc::clone(&self.pods))
    }

    /// Follows how the source is.
    pub fn source(&self) -> watch::Receiver<SourceState> {
        self.pods.state()
    }

    /// How it is doing.
    pub fn status(&self) -> KubernetesStatus {
        let (pods, waiting) = self.pods.counts();
        KubernetesStatus { source: self.pods.state().borrow().clone(), pods, waiting }
    }

    /// Looks until there is an answer, or it is too late.
    async fn answer(&self, container: &ContainerRef, stage: Stage) -> Result<Found, Silent> {
        let mut until = Instant::now() + self.settings.wait_pod;
        let mut pod_is_known = false;
        loop {
            let wait = match self.look(container, stage) {
                Look::Answer(found) => return Ok(found),
                Look::Wait(wait) => wait,
            };
            if wait.pod_is_known && !std::mem::replace(&mut pod_is_known, true) {
                until = Instant::now() + self.settings.wait_status;
            }
            crate::failpoint::hit("kubernetes.before_wait");
            let Ok(mut waiter) = self.pods.wait_for(&wait.wanted) else { return Err(CROWDED.into()) };
            // Once more, now that nothing can slip between.
            if let Look::Answer(found) = self.look(container, stage) {
                return Ok(found);
            }
            if tokio::time::timeout_at(until, waiter.woken()).await.is_err() {
                return Err(self.too_late(container, &wait).into());
            }
        }
    }

    fn look(&self, container: &ContainerRef, stage: Stage) -> Look {
        match (self.pods.find(container), stage) {
            // Docker or podman on a node: no pod will ever claim it.
            (Verdict::Unknown(_), _) if container.pod.is_none() && container.runtime != Runtime::CriO => {
                Look::Answer(Found::default())
            }
            (Verdict::Unknown(wanted), _) => Look::Wait(Wait { wanted, pod_is_known: false, what: WHOSE }),
            (Verdict::Refused(why), Stage::Spec) => Look::Answer(Found::nothing(why.to_string())),
            (Verdict::Refused(_), Stage::Status) => Look::Answer(Found::default()),
            (Verdict::Pod(pod, at), Stage::Spec) => self.spec(container, &pod, at),
            (Verdict::Pod(pod, at), Stage::Status) => match at.and_then(|at| pod.containers.get(at)) {
                Some(own) => {
                    Look::Answer(Found { selectors: selectors::of_status(&pod, own), notes: Vec::new() })
                }
                None => Look::Wait(Wait::for_report(container)),
            },
        }
    }

    fn spec(&self, container: &ContainerRef, pod: &pod::Pod, at: Option<usize>) -> Look {
        // One that is not reported yet may be the one that somebody is just putting in.
        if at.is_none() && !self.pods.debuggers() && pod.has_unseen_debugger() {
            return Look::Wait(Wait::for_report(container));
        }
        let Some(labels) = self.pods.labels(&pod.namespace) else {
            let wanted = Wanted::Pod(pod.uid.clone());
            return Look::Wait(Wait { wanted, pod_is_known: false, what: "its namespace is" });
        };
        let labels = labels.unwrap_or_default();
        Look::Answer(Found { selectors: selectors::of_spec(pod, &labels), notes: Vec::new() })
    }

    fn too_late(&self, container: &ContainerRef, wait: &Wait) -> String {
        let source = match &*self.pods.state().borrow() {
            SourceState::InSync => String::new(),
            SourceState::Starting(None) => "; nothing was heard of it so far".to_owned(),
            SourceState::Starting(Some(why)) | SourceState::Lost(why) => format!("; {why}"),
        };
        let who = match &container.pod {
            Some(uid) => format!("pod {uid}"),
            None => format!("container {}", container.id),
        };
        format!("{who}: {} not yet known to the {}{source}", wait.what, self.settings.source.name())
    }
}

/// How many pods' events a watch brings whose body comes in these pieces, up to the first thing that is none. For
/// fuzzing: it must not depend on where the pieces are cut.
pub fn events_in<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> usize {
    let (mut lines, mut events) = (decode::Lines::default(), 0);
    for piece in pieces {
        let read = lines.push(piece, |line| {
            decode::event::<pod::Pod>(line)?;
            events += 1;
            Ok::<(), decode::DecodeError>(())
        });
        if read.is_err() {
            break;
        }
    }
    events
}

/// Whether a selector of this type has that key.
pub(crate) fn gives(key: &str) -> bool {
    selectors::SPEC_LEVEL.contains(&key) || selectors::STATUS_LEVEL.contains(&key)
}

impl SourceSettings {
    fn name(&self) -> &'static str {
        match self {
            Self::Api(_) => "API server",
            Self::Kubelet(_) => "kubelet",
        }
    }
}

/// What the table says just now.
enum Look {
    Answer(Found),
    Wait(Wait),
}

/// What would tell more.
struct Wait {
    wanted: Wanted,
    pod_is_known: bool,
    /// For people.
    what: &'static str,
}

impl Wait {
    fn for_report(container: &ContainerRef) -> Self {
        let wanted = Wanted::Container(container.id);
        Self { wanted, pod_is_known: true, what: "its container is" }
    }
}

/// One of the two back-ends.
#[derive(Debug)]
struct Attestor {
    kubernetes: Kubernetes,
    stage: Stage,
}

impl Backend for Attestor {
    fn kind(&self) -> &'static str {
        selectors::KIND
    }

    fn name(&self) -> &'static str {
        match self.stage {
            Stage::Spec => "k8s",
            Stage::Status => "k8s-status",
        }
    }

    fn keys(&self) -> &'static [&'static str] {
        match self.stage {
            Stage::Spec => &selectors::SPEC_LEVEL,
            Stage::Status => &selectors::STATUS_LEVEL,
        }
    }

    /// A little more than it waits itself, so that it can say what it waited for.
    fn deadline(&self) -> Duration {
        let settings = &self.kubernetes.settings;
        settings.wait_pod + settings.wait_status + Duration::from_secs(1)
    }

    fn attest<'a>(&'a self, subject: &'a Subject<'a>) -> BackendFuture<'a> {
        Box::pin(async move {
            match (subject.origin(), self.stage) {
                (Origin::Container(container), _) => self.kubernetes.answer(container, self.stage).await,
                (Origin::Refused(why), Stage::Spec) => Ok(Found::nothing(why.to_string())),
                (Origin::Refused(_), Stage::Status) | (Origin::Host, _) => Ok(Found::default()),
            }
        })
    }
}

const WHOSE: &str = "it is";
const CROWDED: &str = "too many attestations are waiting for pods that are not known yet";

#[cfg(test)]
mod tests;
