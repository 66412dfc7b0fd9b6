//! The pods of this node, and who claims which container. Pure.
//!
//! A name that two pods claim (a uid, a static pod's hash, a container's id) belongs to neither: somebody lies, and
//! from here it cannot be said who.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use super::decode::Namespace;
use super::pod::{Container, Kind, Pod};
use crate::origin::{ContainerId, ContainerRef, Runtime};

/// Every pod of the node.
#[derive(Debug, Default)]
pub(crate) struct PodTable {
    /// By namespace and name: one of a name at a time.
    pods: HashMap<Name, Arc<Pod>>,
    /// By uid, and by the hash of a static pod.
    by_uid: Claims<Box<str>, Arc<Pod>>,
    by_container: Claims<ContainerId, (Arc<Pod>, usize)>,
    /// `None` while nobody asks for labels of namespaces.
    namespaces: Option<HashMap<Box<str>, Labels>>,
}

type Name = (Box<str>, Box<str>);
pub(crate) type Labels = Arc<[(Box<str>, Box<str>)]>;

/// What a cgroup calls a pod or a container by, and a waiter waits for.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Wanted {
    /// The pod with that uid or hash.
    Pod(Box<str>),
    /// The pod with that container.
    Container(ContainerId),
}

/// Of what something else is true now: names that cgroups use.
pub(crate) type Touched = BTreeSet<Wanted>;

/// What the table says of a container.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Of no pod so far; this is what would tell.
    Unknown(Wanted),
    /// Answered for good: no selectors.
    Refused(Refused),
    /// The pod, and its container by its place if the kubelet has reported it.
    Pod(Arc<Pod>, Option<usize>),
}

/// Why a container that is there has no selectors.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("two-pods: two claim this uid")]
    TwoPods,
    #[error("two-pods: two claim this container")]
    TwoContainers,
    #[error("other-pod: the container belongs to another pod than its cgroup says")]
    OtherPod,
    #[error("other-node: the pod is bound to another node")]
    OtherNode,
    #[error("other-runtime: the container was made by another runtime than its cgroup says")]
    OtherRuntime,
    #[error(
        "ephemeral-container: `attest.kubernetes.ephemeral = \"attest\"` would give it the selectors of its pod"
    )]
    Ephemeral,
}

impl PodTable {
    /// With or without labels of namespaces.
    pub(crate) fn new(namespace_labels: bool) -> Self {
        Self { namespaces: namespace_labels.then(HashMap::new), ..Self::default() }
    }

    /// How many pods there are.
    pub(crate) fn len(&self) -> usize {
        self.pods.len()
    }

    /// How many namespaces are known.
    pub(crate) fn namespaces(&self) -> usize {
        self.namespaces.as_ref().map_or(0, HashMap::len)
    }

    /// Looks a container up. `node` is this node; ephemeral containers count where `debuggers` is true.
    pub(crate) fn find(&self, who: &ContainerRef, node: &str, debuggers: bool) -> Verdict {
        let holder = match self.by_container.of(&who.id) {
            [] => None,
            [(pod, at)] => Some((pod, *at)),
            _ => return Verdict::Refused(Refused::TwoContainers),
        };
        let claims = match (&who.pod, holder) {
            (Some(uid), _) => self.by_uid.of(uid.as_str()),
            // A cgroup without the pod's uid: only the report can say whose it is.
            (None, Some((pod, _))) => self.by_uid.of(&pod.uid),
            (None, None) => return Verdict::Unknown(Wanted::Container(who.id)),
        };
        let pod = match (claims, &who.pod) {
            ([pod], _) => pod,
            ([], Some(uid)) => return Verdict::Unknown(Wanted::Pod(uid.as_str().into())),
            ([], None) | ([_, _, ..], _) => return Verdict::Refused(Refused::TwoPods),
        };
        if &*pod.node != node {
            return Verdict::Refused(Refused::OtherNode);
        }
        let Some((holder, at)) = holder else { return Verdict::Pod(Arc::clone(pod), None) };
        if !Arc::ptr_eq(pod, holder) {
            return Verdict::Refused(Refused::OtherPod);
        }
        match pod.containers.get(at).map_or(Err(Refused::OtherPod), |one| check(one, who.runtime, debuggers))
        {
            Err(refused) => Verdict::Refused(refused),
            Ok(()) => Verdict::Pod(Arc::clone(pod), Some(at)),
        }
    }

    /// Whether some pod goes by that uid or hash.
    pub(crate) fn has(&self, uid: &str) -> bool {
        !self.by_uid.of(uid).is_empty()
    }

    /// Whether some pod has that container.
    pub(crate) fn holds(&self, id: &ContainerId) -> bool {
        !self.by_container.of(id).is_empty()
    }

    /// The labels of a namespace: an inner `None` when nobody asks for any, an outer one while they are asked for and
    /// not known yet.
    pub(crate) fn labels(&self, namespace: &str) -> Option<Option<Labels>> {
        match &self.namespaces {
            None => Some(None),
            Some(all) => Some(Some(Arc::clone(all.get(namespace)?))),
        }
    }

    /// The pod is new, or became another.
    pub(crate) fn put(&mut self, pod: Pod) -> Touched {
        let mut touched = Touched::new();
        self.insert(pod, &mut touched);
        touched
    }

    /// The pod is no more. A later one of the same name stays.
    pub(crate) fn remove(&mut self, namespace: &str, name: &str, uid: &str) -> Touched {
        let mut touched = Touched::new();
        let key = (Box::from(namespace), Box::from(name));
        if self.pods.get(&key).is_some_and(|pod| &*pod.uid == uid) {
            self.take(&key, &mut touched);
        }
        touched
    }

    /// These pods and no others: what a new list says.
    pub(crate) fn replace(&mut self, pods: Vec<Pod>) -> Touched {
        let mut touched = Touched::new();
        let names: BTreeSet<Name> = pods.iter().map(name_of).collect();
        let absent: Vec<Name> = self.pods.keys().filter(|name| !names.contains(*name)).cloned().collect();
        absent.iter().for_each(|name| self.take(name, &mut touched));
        pods.into_iter().for_each(|pod| self.insert(pod, &mut touched));
        touched
    }

    /// The namespace is new, or has other labels.
    pub(crate) fn put_namespace(&mut self, namespace: Namespace) -> Touched {
        let mut touched = Touched::new();
        self.label(namespace, &mut touched);
        touched
    }

    /// The namespace is no more. Nothing is in it any more either, so nobody is touched.
    pub(crate) fn remove_namespace(&mut self, name: &str) {
        self.namespaces.as_mut().and_then(|all| all.remove(name));
    }

    /// These namespaces and no others.
    pub(crate) fn replace_namespaces(&mut self, namespaces: Vec<Namespace>) -> Touched {
        let mut touched = Touched::new();
        let names: BTreeSet<Box<str>> = namespaces.iter().map(|one| one.name.clone()).collect();
        if let Some(all) = &mut self.namespaces {
            all.retain(|name, _| names.contains(name));
        }
        namespaces.into_iter().for_each(|one| self.label(one, &mut touched));
        touched
    }

    fn label(&mut self, namespace: Namespace, touched: &mut Touched) {
        let Namespace { name, labels } = namespace;
        let Some(all) = &mut self.namespaces else { return };
        if all.get(&name).is_some_and(|old| **old == *labels) {
            return;
        }
        self.pods.values().filter(|pod| pod.namespace == name).for_each(|pod| touch(pod, touched));
        all.insert(name, labels.into());
    }

    fn insert(&mut self, pod: Pod, touched: &mut Touched) {
        let name = name_of(&pod);
        if let Some(old) = self.pods.get(&name) {
            if **old == pod {
                return;
            }
            self.take(&name, touched);
        }
        let pod = Arc::new(pod);
        for uid in uids(&pod) {
            self.by_uid.add(uid.clone(), Arc::clone(&pod));
        }
        for (at, id) in ids(&pod) {
            self.by_container.add(id, (Arc::clone(&pod), at));
        }
        self.touch_claimants(&pod, touched);
        self.pods.insert(name, pod);
    }

    fn take(&mut self, name: &Name, touched: &mut Touched) {
        let Some(pod) = self.pods.remove(name) else { return };
        self.touch_claimants(&pod, touched);
        for uid in uids(&pod) {
            self.by_uid.drop_of(uid, |one| Arc::ptr_eq(one, &pod));
        }
        for (_, id) in ids(&pod) {
            self.by_container.drop_of(&id, |(one, _)| Arc::ptr_eq(one, &pod));
        }
    }

    /// The pod, and every other that goes by its uid: what is true of one is not true of two.
    fn touch_claimants(&self, pod: &Pod, touched: &mut Touched) {
        uids(pod).flat_map(|uid| self.by_uid.of(&**uid)).for_each(|claimant| touch(claimant, touched));
    }
}

fn check(container: &Container, runtime: Runtime, debuggers: bool) -> Result<(), Refused> {
    let reported = container.id.map(|(reported, _)| reported);
    if runtime != Runtime::Unknown && reported != Some(runtime) {
        return Err(Refused::OtherRuntime);
    }
    if container.kind == Kind::Ephemeral && !debuggers { Err(Refused::Ephemeral) } else { Ok(()) }
}

fn name_of(pod: &Pod) -> Name {
    (pod.namespace.clone(), pod.name.clone())
}

/// Uid and hash; the same text once.
fn uids(pod: &Pod) -> impl Iterator<Item = &Box<str>> {
    let hash = pod.static_hash.as_ref().filter(|hash| **hash != pod.uid);
    std::iter::once(&pod.uid).chain(hash)
}

fn ids(pod: &Pod) -> impl Iterator<Item = (usize, ContainerId)> {
    let containers = pod.containers.iter().enumerate();
    containers.filter_map(|(at, one)| Some((at, one.id?.1)))
}

fn touch(pod: &Pod, touched: &mut Touched) {
    touched.extend(uids(pod).cloned().map(Wanted::Pod));
    touched.extend(ids(pod).map(|(_, id)| Wanted::Container(id)));
}

/// Who claims a name. Nearly always one.
#[derive(Debug)]
struct Claims<K, V>(HashMap<K, Vec<V>>);

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Claims<K, V> {
    fn of<Q: Eq + Hash + ?Sized>(&self, name: &Q) -> &[V]
    where
        K: Borrow<Q>,
    {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    fn add(&mut self, name: K, one: V) {
        self.0.entry(name).or_insert_with(|| Vec::with_capacity(1)).push(one);
    }

    fn drop_of(&mut self, name: &K, is_it: impl Fn(&V) -> bool) {
        if let Some(claims) = self.0.get_mut(name) {
            claims.retain(|one| !is_it(one));
            if claims.is_empty() {
                self.0.remove(name);
            }
        }
    }
}
