//! Pods from the kubelet of this node: its Pods API, over a socket that is root's.
//!
//! Experimental, as the API is. One stream stays open, over which the kubelet tells of every change; nothing is sent
//! to it while nothing changes. There is no sign of life either: gRPC servers in Go hang up on who asks for one more
//! than every five minutes, the socket tells of a kubelet that ended, and one that hangs starts no pods.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::feed::{Feed, FeedError, MOST_PODS, Step, WatchEvent, WatchRequest};
use super::reflect::{Backoff, SOUND, dice};
use super::store::{PODS, PodSource, Pods};
use crate::root_socket::{RootSocketError, connect_to_root};
use crate::{text, ticks};

/// The kubelet as a source of pods.
#[derive(Debug)]
pub(crate) struct KubeletSource {
    pub(crate) socket: PathBuf,
}

/// Why a stream ended. For operators: each says what to look at.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the kubelet's Pods API cannot be reached: {0}")]
    Socket(#[from] RootSocketError),
    #[error("the kubelet's Pods API cannot be reached: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}", words(.0))]
    Refused(Box<Status>),
    #[error("the kubelet at {0} is not believed: {1}")]
    Feed(PathBuf, #[source] FeedError),
    #[error("the kubelet did not tell of all pods within {} s", SYNC_DEADLINE.as_secs())]
    Deadline,
    #[error("the kubelet ended the watch")]
    Over,
}

impl PodSource for KubeletSource {
    fn follow(self: Box<Self>, pods: Arc<Pods>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut backoff = Backoff::default();
            loop {
                let began = ticks::now();
                let Err(fault) = self.watch(&pods).await;
                let why = fault.to_string();
                tracing::warn!(
                    error = why,
                    "the kubelet does not tell of changes just now; what is known stays known"
                );
                pods.lost(PODS, why);
                if began.elapsed() >= SOUND {
                    backoff = Backoff::default();
                }
                tokio::time::sleep(backoff.next(dice())).await;
            }
        })
    }
}

impl KubeletSource {
    /// Until the stream ends.
    async fn watch(&self, pods: &Pods) -> Result<std::convert::Infallible, Fault> {
        let until = Instant::now() + SYNC_DEADLINE;
        let late = |_elapsed| Fault::Deadline;
        let mut stream = timeout_at(until, self.open()).await.map_err(late)??;
        let mut feed = Feed::default();
        loop {
            let next = stream.message();
            let next =
                if feed.is_complete() { next.await } else { timeout_at(until, next).await.map_err(late)? };
            let event = next.map_err(refused)?.ok_or(Fault::Over)?;
            let unbelieved = |error| Fault::Feed(self.socket.clone(), error);
            match feed.take(&event).map_err(unbelieved)? {
                Step::Nothing => {}
                Step::All(all) => {
                    pods.replace(all);
                    pods.synced(PODS);
                }
                Step::Is(pod) if pods.counts().0 < MOST_PODS => pods.put(pod),
                Step::Is(_) => return Err(unbelieved(FeedError::TooMany)),
                Step::Gone(pod) => pods.remove(&pod.namespace, &pod.name, &pod.uid),
            }
        }
    }

    async fn open(&self) -> Result<Streaming<WatchEvent>, Fault> {
        let mut grpc = Grpc::new(connect(&self.socket).await?).max_decoding_message_size(MOST_BYTES);
        grpc.ready().await?;
        let (path, codec) = (PathAndQuery::from_static(WATCH_PODS), ProstCodec::default());
        let answer = grpc.server_streaming(Request::new(WatchRequest {}), path, codec).await;
        Ok(answer.map_err(refused)?.into_inner())
    }
}

/// One connection, and no other after it: each stream begins with a look at whose socket it is.
async fn connect(socket: &Path) -> Result<Channel, Fault> {
    let mut stream = Some(connect_to_root(socket).await?);
    let once = tower::service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(once).await?)
}

fn refused(status: Status) -> Fault {
    Fault::Refused(Box::new(status))
}

fn words(status: &Status) -> String {
    let advice = match status.code() {
        Code::Unimplemented => {
            " (the Pods API takes Kubernetes 1.36 with the gate `PodsAPI`, or a later one)"
        }
        Code::FailedPrecondition => " (it is starting)",
        Code::ResourceExhausted => " (events came faster than they were read; everything is read anew)",
        _ => "",
    };
    let said = text::of_bytes(status.message().as_bytes());
    format!("the kubelet answers {:?}: {said}{advice}", status.code())
}

const WATCH_PODS: &str = "/v1alpha1.Pods/WatchPods";
/// From the connection to the last of the pods there are.
const SYNC_DEADLINE: Duration = Duration::from_secs(60);
/// An object has at most 1.5 MiB in the API server's store.
const MOST_BYTES: usize = 4 << 20;

#[cfg(test)]
#[path = "kubelet_tests.rs"]
mod tests;
