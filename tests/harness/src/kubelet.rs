//! A stand-in for the kubelet of one node: its Pods API (`v1alpha1.Pods/WatchPods`) over a socket of root's. It tells
//! every pod there is, says that this was all, and goes on with changes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use prost::Message;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::cluster::NODE;
use crate::{files, until};

/// The kubelet.
#[derive(Debug)]
pub struct Kubelet {
    dir: TempDir,
    shared: Shared,
}

type Shared = Arc<Mutex<State>>;
type Events = mpsc::UnboundedSender<Result<WatchEvent, Status>>;

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Value>,
    watching: Vec<Events>,
    /// Streams so far.
    begun: usize,
    /// Every further stream is refused so.
    refusal: Option<Code>,
}

impl Kubelet {
    /// Serves until the test ends.
    ///
    /// # Panics
    /// Without root.
    pub fn start() -> Self {
        crate::require_root();
        let dir = files::roots_dir();
        let listener = UnixListener::bind(dir.path().join("pods-api.sock")).expect("the kubelet's socket");
        listener.set_nonblocking(true).expect("a socket");
        let shared = Shared::default();
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(serve(listener, serving));
        });
        Self { dir, shared }
    }

    /// With the recorded pods of `tests/vectors/kubernetes`.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn recorded() -> Self {
        let kubelet = Self::start();
        for pod in &crate::cluster::recorded_pods() {
            kubelet.put(pod);
        }
        kubelet
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("pods-api.sock")
    }

    /// The `[attest.kubernetes]` table that leads here.
    pub fn settings(&self) -> String {
        format!(
            "[attest.kubernetes]\nenabled = \"on\"\nsource = \"kubelet\"\nnode_name = \"{NODE}\"\nkubelet_socket = {:?}\n",
            self.socket()
        )
    }

    /// Creates a pod, or puts it in place of the one with its name.
    pub fn put(&self, pod: &Value) {
        let mut state = self.lock();
        let before = state.pods.insert(key(pod), pod.clone());
        state.tell(if before.is_some() { MODIFIED } else { ADDED }, pod);
    }

    /// Removes a pod.
    pub fn delete(&self, pod: &Value) {
        let mut state = self.lock();
        state.pods.remove(&key(pod));
        state.tell(DELETED, pod);
    }

    /// Ends every stream with that status, and refuses others with it until [`Self::mend`].
    pub fn fail(&self, code: Code) {
        let mut state = self.lock();
        state.refusal = Some(code);
        for events in state.watching.drain(..) {
            events.send(Err(Status::new(code, "as told"))).ok();
        }
    }

    /// Serves again.
    pub fn mend(&self) {
        self.lock().refusal = None;
    }

    /// Streams that began so far.
    pub fn begun(&self) -> usize {
        self.lock().begun
    }

    /// Waits until somebody follows.
    ///
    /// # Panics
    /// When nobody ever does.
    pub fn watched(&self) {
        until("the agent follows the kubelet", || {
            let mut state = self.lock();
            state.watching.retain(|events| !events.is_closed());
            (!state.watching.is_empty()).then_some(())
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn tell(&mut self, kind: i32, pod: &Value) {
        let event = WatchEvent { kind, pod: encoded(pod).encode_to_vec() };
        self.watching.retain(|events| events.send(Ok(event.clone())).is_ok());
    }

    fn watch(&mut self) -> Result<UnboundedReceiverStream<Result<WatchEvent, Status>>, Status> {
        if let Some(code) = self.refusal {
            return Err(Status::new(code, "as told"));
        }
        self.begun += 1;
        let (events, stream) = mpsc::unbounded_channel();
        let all = self.pods.values().map(|pod| (ADDED, encoded(pod).encode_to_vec()));
        for (kind, pod) in all.chain([(INITIAL_SYNC_COMPLETE, Vec::new())]) {
            events.send(Ok(WatchEvent { kind, pod })).ok();
        }
        self.watching.push(events);
        Ok(UnboundedReceiverStream::new(stream))
    }
}

async fn serve(listener: UnixListener, shared: Shared) {
    let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
    let (accepted, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if accepted.send(Ok::<_, std::io::Error>(stream)).await.is_err() {
                return;
            }
        }
    });
    let server = tonic::transport::Server::builder().add_service(PodsApi(shared));
    server.serve_with_incoming(ReceiverStream::new(incoming)).await.expect("the kubelet serves");
}

#[derive(Clone, Debug)]
struct PodsApi(Shared);

impl NamedService for PodsApi {
    const NAME: &'static str = "v1alpha1.Pods";
}

impl tower::Service<http::Request<Body>> for PodsApi {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let watch = Watch(Arc::clone(&self.0));
        Box::pin(async move {
            if request.uri().path() != "/v1alpha1.Pods/WatchPods" {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let mut grpc = Grpc::new(ProstCodec::<WatchEvent, WatchRequest>::default());
            Ok(grpc.server_streaming(watch, request).await)
        })
    }
}

struct Watch(Shared);

impl ServerStreamingService<WatchRequest> for Watch {
    type Response = WatchEvent;
    type ResponseStream = UnboundedReceiverStream<Result<WatchEvent, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _request: Request<WatchRequest>) -> Self::Future {
        std::future::ready(lock(&self.0).watch().map(Response::new))
    }
}

fn key(pod: &Value) -> String {
    let metadata = &pod["metadata"];
    format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]))
}

/// The pod as the kubelet encodes it, as far as anybody reads it; with something that nobody does.
fn encoded(pod: &Value) -> Pod {
    let (meta, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    let owners = list(&meta["ownerReferences"]).map(|owner| Owner {
        kind: text(&owner["kind"]),
        name: text(&owner["name"]),
        uid: text(&owner["uid"]),
    });
    let statuses = |name: &str| list(&status[name]).map(container).collect();
    Pod {
        metadata: Some(Meta {
            name: text(&meta["name"]),
            namespace: text(&meta["namespace"]),
            uid: text(&meta["uid"]),
            resource_version: "17".to_owned(),
            labels: pairs(&meta["labels"]),
            annotations: pairs(&meta["annotations"]),
            owners: owners.collect(),
        }),
        spec: Some(Spec {
            service_account: text(&spec["serviceAccountName"]),
            node: text(&spec["nodeName"]),
            ephemeral: list(&spec["ephemeralContainers"]).map(|_| Nothing {}).collect(),
        }),
        status: Some(PodStatus {
            phase: text(&status["phase"]),
            main: statuses("containerStatuses"),
            init: statuses("initContainerStatuses"),
            ephemeral: statuses("ephemeralContainerStatuses"),
        }),
    }
}

fn container(status: &Value) -> Container {
    Container {
        name: text(&status["name"]),
        image: text(&status["image"]),
        image_id: text(&status["imageID"]),
        container_id: text(&status["containerID"]),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn pairs(value: &Value) -> BTreeMap<String, String> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {}

#[derive(Clone, PartialEq, Message)]
struct WatchEvent {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    pod: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Pod {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Meta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<Spec>,
    #[prost(message, optional, tag = "3")]
    status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct Meta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "5")]
    uid: String,
    #[prost(string, tag = "6")]
    resource_version: String,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    annotations: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "13")]
    owners: Vec<Owner>,
}

#[derive(Clone, PartialEq, Message)]
struct Owner {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct Spec {
    #[prost(string, tag = "8")]
    service_account: String,
    #[prost(string, tag = "10")]
    node: String,
    #[prost(message, repeated, tag = "34")]
    ephemeral: Vec<Nothing>,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct PodStatus {
    #[prost(string, tag = "1")]
    phase: String,
    #[prost(message, repeated, tag = "8")]
    main: Vec<Container>,
    #[prost(message, repeated, tag = "10")]
    init: Vec<Container>,
    #[prost(message, repeated, tag = "13")]
    ephemeral: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "6")]
    image: String,
    #[prost(string, tag = "7")]
    image_id: String,
    #[prost(string, tag = "8")]
    container_id: String,
}

const ADDED: i32 = 1;
const MODIFIED: i32 = 2;
const DELETED: i32 = 3;
const INITIAL_SYNC_COMPLETE: i32 = 4;
