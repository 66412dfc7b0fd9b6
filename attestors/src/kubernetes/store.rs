//! The table of pods behind a lock, with those who wait for it and those who are told of changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

use super::decode::Namespace;
use super::pod::Pod;
use super::table::{PodTable, Touched, Verdict, Wanted};
use super::waiting::{Full, Waiter, Waiting};
use crate::backend::{News, Tell};
use crate::origin::{ContainerRef, PodUid};

/// What is known of the pods of this node. Sources write, attestations read.
#[derive(Debug)]
pub(crate) struct Pods {
    node: Box<str>,
    debuggers: bool,
    table: Mutex<PodTable>,
    waiting: Waiting,
    tell: OnceLock<Teller>,
    parts: Mutex<Parts>,
    state: watch::Sender<SourceState>,
}

/// How far each part of the source has come.
#[derive(Debug)]
struct Parts {
    /// Never told in full so far.
    pending: BTreeSet<&'static str>,
    /// Not telling now, and why.
    lost: BTreeMap<&'static str, String>,
}

struct Teller(Tell);

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Teller")
    }
}

/// How the source of pods is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SourceState {
    /// It has never said what pods there are; why not, once that is known.
    Starting(Option<String>),
    /// It tells of every change.
    InSync,
    /// It did, and does not now. Pods that are known stay known; new ones are not.
    Lost(String),
}

impl Pods {
    pub(crate) fn new(node: &str, namespace_labels: bool, debuggers: bool) -> Self {
        Self {
            node: node.into(),
            debuggers,
            table: Mutex::new(PodTable::new(namespace_labels)),
            waiting: Waiting::default(),
            tell: OnceLock::new(),
            parts: Mutex::new(Parts {
                pending: if namespace_labels { [PODS, NAMESPACES].into() } else { [PODS].into() },
                lost: BTreeMap::new(),
            }),
            state: watch::Sender::new(SourceState::Starting(None)),
        }
    }

    /// Whom to tell of changes. Only the first counts.
    pub(crate) fn tell(&self, tell: Tell) {
        self.tell.set(Teller(tell)).ok();
    }

    pub(crate) fn find(&self, who: &ContainerRef) -> Verdict {
        self.lock().find(who, &self.node, self.debuggers)
    }

    /// As [`PodTable::labels`].
    pub(crate) fn labels(&self, namespace: &str) -> Option<Option<super::table::Labels>> {
        self.lock().labels(namespace)
    }

    pub(crate) fn debuggers(&self) -> bool {
        self.debuggers
    }

    pub(crate) fn wait_for(&self, wanted: &Wanted) -> Result<Waiter, Full> {
        self.waiting.enter(wanted)
    }

    /// How many pods there are, and how many attestations wait for one.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.lock().len(), self.waiting.len())
    }

    /// How many namespaces there are.
    pub(crate) fn namespaces(&self) -> usize {
        self.lock().namespaces()
    }

    pub(crate) fn state(&self) -> watch::Receiver<SourceState> {
        self.state.subscribe()
    }

    /// The source has said of `what` everything there was to say, and tells of every change from here on.
    pub(crate) fn synced(&self, what: &'static str) {
        self.note(|parts| {
            parts.pending.remove(what);
            parts.lost.remove(what);
        });
        self.waiting.wake_all();
    }

    /// The source does not tell of `what` any more.
    pub(crate) fn lost(&self, what: &'static str, why: String) {
        self.note(|parts| {
            parts.lost.insert(what, why);
        });
    }

    fn note(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut parts);
        let next = parts.state();
        self.state.send_if_modified(|state| {
            let news = *state != next;
            *state = next;
            news
        });
    }

    pub(crate) fn put(&self, pod: Pod) {
        self.change(|table| table.put(pod));
    }

    pub(crate) fn remove(&self, namespace: &str, name: &str, uid: &str) {
        self.change(|table| table.remove(namespace, name, uid));
    }

    pub(crate) fn replace(&self, pods: Vec<Pod>) {
        self.change(|table| table.replace(pods));
    }

    pub(crate) fn put_namespace(&self, namespace: Namespace) {
        self.change(|table| table.put_namespace(namespace));
    }

    pub(crate) fn remove_namespace(&self, name: &str) {
        self.lock().remove_namespace(name);
    }

    pub(crate) fn replace_namespaces(&self, namespaces: Vec<Namespace>) {
        self.change(|table| table.replace_namespaces(namespaces));
    }

    fn change(&self, change: impl FnOnce(&mut PodTable) -> Touched) {
        let (touched, news) = {
            let mut table = self.lock();
            let touched = change(&mut table);
            let news: Vec<News> = touched.iter().filter_map(|wanted| news(&table, wanted)).collect();
            (touched, news)
        };
        // First those who may lose something, then those who wait to get something.
        if let Some(Teller(tell)) = self.tell.get() {
            news.into_iter().for_each(|news| tell(news));
        }
        self.waiting.wake(&touched);
    }

    fn lock(&self) -> MutexGuard<'_, PodTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parts {
    fn state(&self) -> SourceState {
        let why = self.lost.iter().next().map(|(what, why)| format!("{what}: {why}"));
        match why {
            why if !self.pending.is_empty() => SourceState::Starting(why),
            Some(why) => SourceState::Lost(why),
            None => SourceState::InSync,
        }
    }
}

fn news(table: &PodTable, wanted: &Wanted) -> Option<News> {
    match wanted {
        Wanted::Container(id) if table.holds(id) => Some(News::Container(*id)),
        Wanted::Container(id) => Some(News::ContainerGone(*id)),
        // A name of another form is in no cgroup.
        Wanted::Pod(uid) => {
            let pod = PodUid::parse(uid.as_bytes())?;
            Some(if table.has(uid) { News::Pod(pod) } else { News::PodGone(pod) })
        }
    }
}

/// What a source tells of.
pub(crate) const PODS: &str = "pods";
pub(crate) const NAMESPACES: &str = "namespaces";

/// Whoever finds out what pods there are.
pub(crate) trait PodSource: Send + Sync {
    /// Tells `pods` what there is, and of every change, until dropped.
    fn follow(self: Box<Self>, pods: Arc<Pods>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
}
