//! The kubelet's Pods API (`v1alpha1.Pods/WatchPods`), as far as its words go. Pure: no clock, no I/O.
//!
//! A stream begins with every pod there is, says that this was all, and goes on with changes; it has no versions and
//! no way to go on where it broke off, so that each begins anew. The first part is put in force as a whole.
//!
//! The API is not settled: an early form of it numbered the kinds of events from 0 and never said when it had told
//! everything. What does not follow the order above, by these numbers, is therefore not believed at all.

use bytes::Bytes;
use prost::Message;

use super::decode::static_hash;
use super::pod::{Container, Kind, Owner, Pod, container_id};

/// What is asked.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchRequest {}

/// What is answered, again and again.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchEvent {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    /// A `k8s.io.api.core.v1.Pod`.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) pod: Bytes,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Feed {
    /// What was told so far of what there is; `None` once that was all.
    listed: Option<Vec<Pod>>,
}

/// What an event means.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// More is to come before anything counts.
    Nothing,
    /// These are all there are.
    All(Vec<Pod>),
    /// The pod is new, or became another.
    Is(Pod),
    /// It is no more.
    Gone(Pod),
}

/// Why a stream is not believed.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum FeedError {
    #[error(
        "it speaks an early form of the Pods API, which never says that it has told everything; it takes a newer kubelet"
    )]
    Preliminary,
    #[error("it sent an event of kind {0} where none may stand")]
    Order(i32),
    #[error("it sent a pod that cannot be read")]
    Pod,
    #[error("it sent a pod without name, namespace or uid")]
    Nameless,
    #[error("it tells of more than {MOST_PODS} pods: that is not one node's")]
    TooMany,
}

impl Default for Feed {
    fn default() -> Self {
        Self { listed: Some(Vec::new()) }
    }
}

impl Feed {
    /// Whether everything there is was told.
    pub(super) fn is_complete(&self) -> bool {
        self.listed.is_none()
    }

    /// The next event.
    pub(super) fn take(&mut self, event: &WatchEvent) -> Result<Step, FeedError> {
        match (event.kind, &mut self.listed) {
            (UNSPECIFIED, _) => Err(FeedError::Preliminary),
            (ADDED, Some(listed)) => {
                if listed.len() >= MOST_PODS {
                    return Err(FeedError::TooMany);
                }
                listed.push(pod(event)?);
                Ok(Step::Nothing)
            }
            (INITIAL_SYNC_COMPLETE, listed @ Some(_)) if event.pod.is_empty() => {
                Ok(Step::All(listed.take().unwrap_or_default()))
            }
            (ADDED | MODIFIED, None) => Ok(Step::Is(pod(event)?)),
            (DELETED, None) => Ok(Step::Gone(pod(event)?)),
            (kind, _) => Err(FeedError::Order(kind)),
        }
    }
}

fn pod(event: &WatchEvent) -> Result<Pod, FeedError> {
    let RawPod { metadata, spec, status } =
        RawPod::decode(event.pod.clone()).map_err(|_unreadable| FeedError::Pod)?;
    let (meta, spec) = (metadata.unwrap_or_default(), spec.unwrap_or_default());
    let status = status.unwrap_or_default();
    if [&meta.name, &meta.namespace, &meta.uid].into_iter().any(String::is_empty) {
        return Err(FeedError::Nameless);
    }
    let owners: Vec<Owner> = meta.owners.into_iter().map(RawOwner::owner).collect();
    let annotation = |name: &str| meta.annotations.get(name).map(|value| value.as_str().into());
    let containers =
        [(Kind::Init, status.init), (Kind::Main, status.main), (Kind::Ephemeral, status.ephemeral)];
    Ok(Pod {
        static_hash: static_hash(annotation(HASH), annotation(MIRROR).is_some(), &owners),
        namespace: meta.namespace.into(),
        name: meta.name.into(),
        uid: meta.uid.into(),
        service_account: spec.service_account.into(),
        node: spec.node.into(),
        labels: meta.labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
        owners,
        containers: containers
            .into_iter()
            .flat_map(|(kind, list)| list.into_iter().map(move |raw| raw.container(kind)))
            .collect(),
        debuggers: spec.ephemeral.len(),
    })
}

/// The part of a pod that is kept. What is not named here is skipped without being copied.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RawPod {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<RawMeta>,
    #[prost(message, optional, tag = "2")]
    pub(super) spec: Option<RawSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) status: Option<RawStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RawMeta {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
    #[prost(string, tag = "5")]
    pub(super) uid: String,
    #[prost(btree_map = "string, string", tag = "11")]
    pub(super) labels: std::collections::BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    pub(super) annotations: std::collections::BTreeMap<String, String>,
    #[prost(message, repeated, tag = "13")]
    pub(super) owners: Vec<RawOwner>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RawOwner {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) uid: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RawSpec {
    #[prost(string, tag = "8")]
    pub(super) service_account: String,
    #[prost(string, tag = "10")]
    pub(super) node: String,
    /// Only counted.
    #[prost(message, repeated, tag = "34")]
    pub(super) ephemeral: Vec<Skipped>,
}

/// A message of which nothing is kept.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Skipped {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RawStatus {
    #[prost(message, repeated, tag = "8")]
    pub(super) main: Vec<RawContainer>,
    #[prost(message, repeated, tag = "10")]
    pub(super) init: Vec<RawContainer>,
    #[prost(message, repeated, tag = "13")]
    pub(super) ephemeral: Vec<RawContainer>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RawContainer {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "6")]
    pub(super) image: String,
    #[prost(string, tag = "7")]
    pub(super) image_id: String,
    #[prost(string, tag = "8")]
    pub(super) container_id: String,
}

impl RawOwner {
    fn owner(self) -> Owner {
        Owner { kind: self.kind.into(), name: self.name.into(), uid: self.uid.into() }
    }
}

impl RawContainer {
    fn container(self, kind: Kind) -> Container {
        let id = container_id(&self.container_id);
        Container {
            kind,
            name: self.name.into(),
            image: self.image.into(),
            image_id: self.image_id.into(),
            id,
        }
    }
}

const UNSPECIFIED: i32 = 0;
pub(super) const ADDED: i32 = 1;
pub(super) const MODIFIED: i32 = 2;
pub(super) const DELETED: i32 = 3;
pub(super) const INITIAL_SYNC_COMPLETE: i32 = 4;
/// A node has some hundred.
pub(super) const MOST_PODS: usize = 10_000;
const HASH: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
