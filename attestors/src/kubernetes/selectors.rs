//! The selectors of a pod and of one of its containers: the strings are SPIRE's, to the byte.
//!
//! Two sorts. *Spec-level* facts stand before the first container is started: namespace, service account, labels,
//! owners. *Status-level* facts come a second or two after a container has started, when the kubelet's report has
//! made its way: names, images, counts. They are given together or not at all, so that no list of them is ever half
//! of one.

use super::pod::{Container, Kind, Pod};
use crate::selector::Selector;
use crate::text;

/// The type of all of them.
pub(crate) const KIND: &str = "k8s";

/// Keys that the pod's specification and its namespace give.
pub(crate) const SPEC_LEVEL: [&str; 9] =
    ["sa", "ns", "node-name", "pod-uid", "pod-name", "pod-label", "pod-owner", "pod-owner-uid", "ns-label"];

/// Keys that need the kubelet's report of the container.
pub(crate) const STATUS_LEVEL: [&str; 7] = [
    "pod-image-count",
    "pod-init-image-count",
    "pod-image",
    "pod-init-image",
    "container-name",
    "container-image",
    "container-type",
];

/// What is known of a pod before any of its containers runs. `labels` are those of its namespace; none where they are not
/// watched.
pub(crate) fn of_spec(pod: &Pod, labels: &[(Box<str>, Box<str>)]) -> Vec<Selector> {
    let mut all = List(Vec::with_capacity(8 + pod.labels.len() + 2 * pod.owners.len()));
    all.add("sa", &[&pod.service_account]);
    all.add("ns", &[&pod.namespace]);
    all.add("node-name", &[&pod.node]);
    all.add("pod-uid", &[&pod.uid]);
    all.add("pod-name", &[&pod.name]);
    for (key, value) in &pod.labels {
        all.add("pod-label", &[key, value]);
    }
    for owner in &pod.owners {
        all.add("pod-owner", &[&owner.kind, &owner.name]);
        all.add("pod-owner-uid", &[&owner.kind, &owner.uid]);
    }
    for (key, value) in labels {
        all.add("ns-label", &[key, value]);
    }
    all.0
}

/// What the kubelet's report adds for the container `own`.
pub(crate) fn of_status(pod: &Pod, own: &Container) -> Vec<Selector> {
    let of_kind = |kind| pod.containers.iter().filter(move |one| one.kind == kind);
    let mut all = List(Vec::new());
    for (kind, count, image) in
        [(Kind::Main, "pod-image-count", "pod-image"), (Kind::Init, "pod-init-image-count", "pod-init-image")]
    {
        all.add(count, &[&of_kind(kind).count().to_string()]);
        of_kind(kind).for_each(|one| all.images(image, one));
    }
    all.add("container-name", &[&own.name]);
    all.images("container-image", own);
    all.add("container-type", &[own.kind.as_str()]);
    all.0
}

struct List(Vec<Selector>);

impl List {
    /// The parts joined by colons. A source that lies may put anything into a name: what does not print is escaped,
    /// as everywhere.
    fn add(&mut self, key: &'static str, parts: &[&str]) {
        let value = parts.iter().map(|part| text::of_bytes(part.as_bytes())).collect::<Vec<_>>().join(":");
        self.0.push(Selector::new(KIND, key, value));
    }

    /// By digest and by name. The runtime says neither of an image that it has not pulled yet: an empty text would
    /// be a selector that many containers share.
    fn images(&mut self, key: &'static str, container: &Container) {
        for image in [&container.image_id, &container.image] {
            if !image.is_empty() {
                self.add(key, &[image]);
            }
        }
    }
}
