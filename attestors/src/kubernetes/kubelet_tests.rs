//! A kubelet that is played over a real socket, by another gRPC implementation than the one that listens to it.

#![expect(clippy::disallowed_methods, reason = "the player ends with its test")]

use std::convert::Infallible;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::Mutex;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::header::HeaderMap;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};

use super::super::feed::{
    ADDED, DELETED, INITIAL_SYNC_COMPLETE, MODIFIED, RawContainer, RawMeta, RawPod, RawSpec, RawStatus,
};
use super::super::{Kubernetes, KubernetesSettings, SourceSettings, SourceState};
use super::*;
use crate::backend::News;
use crate::origin::PodUid;

/// The kubelet, and whoever follows it.
struct Play {
    dir: tempfile::TempDir,
    streams: mpsc::UnboundedReceiver<Says>,
    kubernetes: Kubernetes,
    state: watch::Receiver<SourceState>,
    news: Arc<Mutex<Vec<News>>>,
}

/// One stream, as long as it is kept.
struct Says(mpsc::UnboundedSender<Frame<Bytes>>);

impl Says {
    fn event(&self, kind: i32, pod: &RawPod) {
        self.bytes(&WatchEvent { kind, pod: pod.encode_to_vec().into() }.encode_to_vec());
    }

    fn complete(&self) {
        self.event(INITIAL_SYNC_COMPLETE, &RawPod::default());
    }

    fn bytes(&self, message: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(message.len().try_into().unwrap());
        frame.put_slice(message);
        self.0.send(Frame::data(frame.freeze())).ok();
    }

    fn end(self, code: Code, why: &'static str) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", (code as i32).into());
        trailers.insert("grpc-message", why.parse().unwrap());
        self.0.send(Frame::trailers(trailers)).ok();
    }
}

async fn serve(listener: UnixListener, streams: mpsc::UnboundedSender<Says>) {
    while let Ok((stream, _)) = listener.accept().await {
        let streams = streams.clone();
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            assert_eq!(request.uri().path(), WATCH_PODS);
            let (says, heard) = mpsc::unbounded_channel();
            streams.send(Says(says)).ok();
            let body =
                futures_util::stream::unfold(heard, |mut heard: mpsc::UnboundedReceiver<_>| async move {
                    heard.recv().await.map(|frame| (Ok::<_, Infallible>(frame), heard))
                });
            let answer = hyper::Response::builder().header("content-type", "application/grpc");
            async { Ok::<_, Infallible>(answer.body(StreamBody::new(body)).unwrap()) }
        });
        tokio::spawn(
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service),
        );
    }
}

impl Play {
    fn start() -> Self {
        // Below `/run`: `/tmp` is everybody's.
        let dir = tempfile::Builder::new().prefix("mayfly-test").tempdir_in("/run").unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let socket = dir.path().join("pods-api.sock");
        let (told, streams) = mpsc::unbounded_channel();
        tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), told));
        let kubernetes = Kubernetes::new(settings(socket));
        let (news, state) = (Arc::new(Mutex::new(Vec::new())), kubernetes.source());
        let heard = Arc::clone(&news);
        kubernetes.tell(Arc::new(move |one| heard.lock().unwrap().push(one)));
        tokio::spawn(kubernetes.follow());
        Self { dir, streams, kubernetes, state, news }
    }

    async fn stream(&mut self) -> Says {
        self.streams.recv().await.unwrap()
    }

    async fn until(&mut self, is: impl FnMut(&SourceState) -> bool) -> SourceState {
        self.state.wait_for(is).await.unwrap().clone()
    }

    async fn lost(&mut self) -> String {
        match self.until(|state| matches!(state, SourceState::Lost(_))).await {
            SourceState::Lost(why) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until so many pods are known.
    async fn known(&self, count: usize) {
        while self.kubernetes.status().pods != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn told(&self, news: &News) -> bool {
        self.news.lock().unwrap().contains(news)
    }
}

fn settings(socket: PathBuf) -> KubernetesSettings {
    KubernetesSettings {
        node: "node-1".to_owned(),
        source: SourceSettings::Kubelet(socket),
        wait_pod: Duration::from_secs(5),
        wait_status: Duration::from_secs(10),
        namespace_labels: false,
        ephemeral: false,
    }
}

fn uid(n: u8) -> String {
    format!("a0000000-0000-0000-0000-0000000000{n:02x}")
}

fn pod(n: u8) -> RawPod {
    let metadata =
        RawMeta { name: format!("pod-{n}"), namespace: "shop".to_owned(), uid: uid(n), ..RawMeta::default() };
    let app = RawContainer {
        name: "app".to_owned(),
        container_id: format!("containerd://{}", format!("{n:02x}").repeat(32)),
        ..RawContainer::default()
    };
    RawPod {
        metadata: Some(metadata),
        spec: Some(RawSpec { node: "node-1".to_owned(), ..RawSpec::default() }),
        status: Some(RawStatus { main: vec![app], ..RawStatus::default() }),
    }
}

fn gone(n: u8) -> News {
    News::PodGone(PodUid::parse(uid(n).as_bytes()).unwrap())
}

#[tokio::test]
async fn pods_count_once_all_were_told_and_then_with_each_change() {
    let mut play = Play::start();
    let says = play.stream().await;
    says.event(ADDED, &pod(1));
    says.event(ADDED, &pod(2));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(play.kubernetes.status().pods, 0, "half of them is nothing to conclude from");
    assert_eq!(*play.state.borrow(), SourceState::Starting(None));
    says.complete();
    play.until(|state| *state == SourceState::InSync).await;
    assert_eq!(play.kubernetes.status().pods, 2);
    says.event(ADDED, &pod(3));
    says.event(MODIFIED, &pod(2));
    play.known(3).await;
    let name = RawPod { spec: None, status: None, ..pod(1) };
    says.event(DELETED, &name);
    play.known(2).await;
    assert!(play.told(&gone(1)));
    assert!(!play.told(&gone(2)));
}

#[tokio::test]
async fn a_stream_that_ends_takes_nothing_and_the_next_one_replaces_all_at_once() {
    let mut play = Play::start();
    let says = play.stream().await;
    (1..=3).for_each(|n| says.event(ADDED, &pod(n)));
    says.complete();
    play.until(|state| *state == SourceState::InSync).await;
    says.end(Code::ResourceExhausted, "watch client channel closed");
    let why = play.lost().await;
    assert!(why.contains("ResourceExhausted: watch client channel closed"), "{why}");
    // The next one breaks off half way.
    let half = play.stream().await;
    half.event(ADDED, &pod(3));
    drop(half);
    let says = play.stream().await;
    assert_eq!(play.kubernetes.status().pods, 3);
    assert!(!play.told(&gone(1)));
    says.event(ADDED, &pod(2));
    says.event(ADDED, &pod(4));
    says.complete();
    play.until(|state| *state == SourceState::InSync).await;
    play.known(2).await;
    assert!(play.told(&gone(1)) && play.told(&gone(3)) && !play.told(&gone(2)));
}

/// Among them the first form of the API, whose `ADDED` is 0 and whose `DELETED` is 2.
#[tokio::test]
async fn a_kubelet_that_speaks_otherwise_is_not_believed() {
    for lie in [
        WatchEvent { kind: 0, pod: pod(9).encode_to_vec().into() },
        WatchEvent { kind: ADDED, pod: Bytes::from_static(b"\xff\xff") },
        WatchEvent { kind: ADDED, pod: Bytes::new() },
        WatchEvent { kind: INITIAL_SYNC_COMPLETE, pod: pod(9).encode_to_vec().into() },
        WatchEvent { kind: MODIFIED, pod: pod(9).encode_to_vec().into() },
        WatchEvent { kind: DELETED, pod: pod(9).encode_to_vec().into() },
        WatchEvent { kind: 5, pod: Bytes::new() },
    ] {
        // One kubelet for each: the pauses after failures in a row would add up.
        let mut play = Play::start();
        let says = play.stream().await;
        says.bytes(&lie.encode_to_vec());
        play.until(|state| matches!(state, SourceState::Starting(Some(why)) if why.contains("not believed")))
            .await;
        assert_eq!(play.kubernetes.status().pods, 0, "{lie:?}");
    }
    let mut play = Play::start();
    let says = play.stream().await;
    says.complete();
    play.until(|state| *state == SourceState::InSync).await;
    says.complete();
    assert!(play.lost().await.contains("event of kind 4 where none may stand"));
}

#[tokio::test]
async fn what_is_wrong_with_the_kubelet_is_said() {
    let mut play = Play::start();
    for (code, advice) in [
        (Code::Unimplemented, "takes Kubernetes 1.36"),
        (Code::FailedPrecondition, "(it is starting)"),
        (Code::Internal, "Internal: as told"),
    ] {
        play.stream().await.end(code, "as told");
        play.until(|state| matches!(state, SourceState::Starting(Some(why)) if why.contains(advice))).await;
    }
}

/// Whoever may write there could be any pod's kubelet.
#[tokio::test]
async fn c03_a_socket_that_is_not_roots_is_not_asked() {
    let mut play = Play::start();
    drop(play.stream().await);
    chown(play.dir.path().join("pods-api.sock"), Some(1000), None).unwrap();
    play.until(|state| matches!(state, SourceState::Starting(Some(why)) if why.contains("root's hands")))
        .await;
    assert!(play.streams.try_recv().is_err());
}
