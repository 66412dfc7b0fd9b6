//! JSON of the API server: pages of lists, and the lines of a watch. Pure over bytes; nothing here ever panics.
//!
//! Fields that nobody asks for are skipped without being kept. What a field must be to be used is checked where it
//! is used: a pod without a uid is no pod.

use serde::Deserialize;

use super::pod::{Container, Kind, Owner, Pod, container_id};

/// One page of a list.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    /// What the next request names, opaque.
    pub(crate) version: String,
    /// Where the next page begins; `None` on the last one.
    pub(crate) next: Option<String>,
}

/// One line of a watch.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Event<T> {
    /// The object is new, or became another: latest state.
    Is(T, String),
    /// The object is gone; its last state.
    Gone(T, String),
    /// Nothing happened up to this version.
    Bookmark(String),
    /// What was asked for is no longer to be had: 410.
    Expired,
    /// The server says that something is wrong: its code and words.
    Error(i64, String),
}

/// Why bytes are not what an API server sends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// No JSON, or a field has another type.
    #[error("the answer cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON of something else.
    #[error("the answer has no {0}")]
    Missing(&'static str),
    /// A kind of event that does not exist.
    #[error("the watch sent an event of a kind that does not exist")]
    Kind,
    /// Longer than any object may be.
    #[error("the watch sent more than {MAX_LINE} bytes without an end of line")]
    TooLong,
}

/// What a list or watch is made of.
pub(crate) trait Object: Sized {
    /// From the JSON of one object, already parsed.
    type Raw: for<'de> Deserialize<'de>;

    /// With its version; `None` when it has none of what makes it one.
    fn of(raw: Self::Raw) -> Option<(Self, String)>;
}

/// A namespace with its labels.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Namespace {
    pub(crate) name: Box<str>,
    pub(crate) labels: Vec<(Box<str>, Box<str>)>,
}

/// Reads the body of a list.
pub(crate) fn page<T: Object>(body: &[u8]) -> Result<Page<T>, DecodeError> {
    let raw: RawList<T::Raw> = serde_json::from_slice(body)?;
    let metadata = raw.metadata.ok_or(DecodeError::Missing("metadata"))?;
    let version =
        metadata.resource_version.filter(|v| !v.is_empty()).ok_or(DecodeError::Missing("resourceVersion"))?;
    let items = raw.items.unwrap_or_default().into_iter();
    let items = items.map(|raw| T::of(raw).map(|(object, _)| object).ok_or(DecodeError::Missing(NAMES)));
    let next = metadata.next.filter(|token| !token.is_empty());
    Ok(Page { items: items.collect::<Result<_, _>>()?, version, next })
}

/// Reads one line of a watch.
pub(crate) fn event<T: Object>(line: &[u8]) -> Result<Event<T>, DecodeError> {
    // The object is read by what the kind says it is, so the kind is read first, wherever in the line it stands.
    let kind: RawKind = serde_json::from_slice(line)?;
    match kind.kind.as_str() {
        "ADDED" | "MODIFIED" => object(line).map(|(object, version)| Event::Is(object, version)),
        "DELETED" => object(line).map(|(object, version)| Event::Gone(object, version)),
        "BOOKMARK" => {
            let raw: RawEvent<RawBookmark> = serde_json::from_slice(line)?;
            let version = raw.object.metadata.and_then(|metadata| metadata.resource_version);
            version
                .filter(|v| !v.is_empty())
                .map(Event::Bookmark)
                .ok_or(DecodeError::Missing("resourceVersion"))
        }
        "ERROR" => {
            let raw: RawEvent<RawStatus> = serde_json::from_slice(line)?;
            Ok(match raw.object {
                RawStatus { code: Some(410), .. } => Event::Expired,
                RawStatus { reason: Some(reason), .. } if matches!(reason.as_str(), "Expired" | "Gone") => {
                    Event::Expired
                }
                RawStatus { code, message, .. } => {
                    Event::Error(code.unwrap_or_default(), message.unwrap_or_default())
                }
            })
        }
        _ => Err(DecodeError::Kind),
    }
}

fn object<T: Object>(line: &[u8]) -> Result<(T, String), DecodeError> {
    let raw: RawEvent<T::Raw> = serde_json::from_slice(line)?;
    T::of(raw.object).ok_or(DecodeError::Missing(NAMES))
}

/// Cuts a stream of bytes into lines, however the bytes arrive.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Whether nothing of a line is waiting for its rest.
    pub(crate) fn is_whole(&self) -> bool {
        self.partial.is_empty()
    }

    /// Takes the next bytes and hands each whole line to `line`; stops at its first error.
    pub(crate) fn push<E: From<DecodeError>>(
        &mut self,
        mut bytes: &[u8],
        mut line: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            let (head, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.partial.is_empty() {
                whole(head, &mut line)?;
            } else {
                self.keep(head)?;
                whole(&std::mem::take(&mut self.partial), &mut line)?;
            }
        }
        self.keep(bytes)?;
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        if self.partial.len() + bytes.len() > MAX_LINE {
            return Err(DecodeError::TooLong);
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

fn whole<E: From<DecodeError>>(bytes: &[u8], line: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    if bytes.len() > MAX_LINE {
        return Err(DecodeError::TooLong.into());
    }
    if bytes.trim_ascii().is_empty() { Ok(()) } else { line(bytes) }
}

impl Object for Pod {
    type Raw = RawPod;

    fn of(raw: RawPod) -> Option<(Self, String)> {
        let RawPod { metadata, spec, status } = raw;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let version = metadata.resource_version.unwrap_or_default();
        let owners: Vec<RawOwner> = metadata.owners.unwrap_or_default();
        let owners: Vec<Owner> =
            owners.into_iter().map(|o| Owner { kind: o.kind, name: o.name, uid: o.uid }).collect();
        let annotations = metadata.annotations.unwrap_or_default();
        let pod = Self {
            namespace: filled(metadata.namespace)?,
            name: filled(metadata.name)?,
            uid: filled(metadata.uid)?,
            service_account: spec.service_account.unwrap_or_default(),
            node: spec.node.unwrap_or_default(),
            labels: labels(metadata.labels),
            static_hash: static_hash(annotations.hash, annotations.mirror.is_some(), &owners),
            owners,
            containers: [
                (Kind::Init, status.init),
                (Kind::Main, status.main),
                (Kind::Ephemeral, status.ephemeral),
            ]
            .into_iter()
            .flat_map(|(kind, list)| list.unwrap_or_default().into_iter().map(move |raw| raw.container(kind)))
            .collect(),
            debuggers: spec.ephemeral.map_or(0, |list| list.len()),
        };
        Some((pod, version))
    }
}

impl Object for Namespace {
    type Raw = RawNamespace;

    fn of(raw: RawNamespace) -> Option<(Self, String)> {
        let version = raw.metadata.resource_version.unwrap_or_default();
        Some((Self { name: filled(raw.metadata.name)?, labels: labels(raw.metadata.labels) }, version))
    }
}

/// Only the kubelet makes mirrors, and names its node as their owner. (Whoever may create pods may write the same
/// annotations; then two pods claim one hash, and neither has it.)
pub(super) fn static_hash(hash: Option<Box<str>>, is_mirror: bool, owners: &[Owner]) -> Option<Box<str>> {
    let of_node = matches!(owners, [owner] if &*owner.kind == "Node");
    hash.filter(|hash| is_mirror && of_node && !hash.is_empty())
}

fn filled(text: Option<Box<str>>) -> Option<Box<str>> {
    text.filter(|text| !text.is_empty())
}

fn labels(raw: Option<Labels>) -> Vec<(Box<str>, Box<str>)> {
    let mut labels: Vec<_> = raw.unwrap_or_default().into_iter().collect();
    labels.sort_unstable();
    labels
}

type Labels = std::collections::BTreeMap<Box<str>, Box<str>>;

const NAMES: &str = "name, namespace or uid";

/// An object has at most 1.5 MiB in the API server's store; as JSON a multiple of that.
pub(crate) const MAX_LINE: usize = 8 << 20;

#[derive(Deserialize)]
struct RawList<T> {
    metadata: Option<RawListMeta>,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
struct RawListMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct RawKind {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct RawEvent<T> {
    object: T,
}

#[derive(Deserialize)]
struct RawBookmark {
    metadata: Option<RawListMeta>,
}

#[derive(Deserialize)]
struct RawStatus {
    code: Option<i64>,
    reason: Option<String>,
    message: Option<String>,
}

/// A pod as the API server writes it.
#[derive(Deserialize)]
pub(crate) struct RawPod {
    metadata: RawMeta,
    spec: Option<RawSpec>,
    status: Option<RawPodStatus>,
}

/// A namespace as the API server writes it.
#[derive(Deserialize)]
pub(crate) struct RawNamespace {
    metadata: RawMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMeta {
    name: Option<Box<str>>,
    namespace: Option<Box<str>>,
    uid: Option<Box<str>>,
    resource_version: Option<String>,
    labels: Option<Labels>,
    annotations: Option<RawAnnotations>,
    #[serde(rename = "ownerReferences")]
    owners: Option<Vec<RawOwner>>,
}

/// The two that a static pod is known by; the others are not kept.
#[derive(Default, Deserialize)]
struct RawAnnotations {
    #[serde(rename = "kubernetes.io/config.hash")]
    hash: Option<Box<str>>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RawOwner {
    #[serde(default)]
    kind: Box<str>,
    #[serde(default)]
    name: Box<str>,
    #[serde(default)]
    uid: Box<str>,
}

#[derive(Default, Deserialize)]
struct RawSpec {
    #[serde(rename = "serviceAccountName")]
    service_account: Option<Box<str>>,
    #[serde(rename = "nodeName")]
    node: Option<Box<str>>,
    #[serde(rename = "ephemeralContainers")]
    ephemeral: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Default, Deserialize)]
struct RawPodStatus {
    #[serde(rename = "containerStatuses")]
    main: Option<Vec<RawContainer>>,
    #[serde(rename = "initContainerStatuses")]
    init: Option<Vec<RawContainer>>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral: Option<Vec<RawContainer>>,
}

#[derive(Deserialize)]
struct RawContainer {
    #[serde(default)]
    name: Box<str>,
    #[serde(default)]
    image: Box<str>,
    #[serde(default, rename = "imageID")]
    image_id: Box<str>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

impl RawContainer {
    fn container(self, kind: Kind) -> Container {
        let id = self.container_id.as_deref().and_then(container_id);
        Container { kind, name: self.name, image: self.image, image_id: self.image_id, id }
    }
}
