//! Keeps something in step with the directory it is read from: kernel events and SIGHUP, no polling.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::audit;
use crate::diag::Problems;
use crate::drain::Watch;
use crate::fileset::{self, IsMember, SetWatch};
use crate::ready::Readiness;

/// What is kept in step. A set that is wrong never replaces one that is right.
pub(super) trait Kept: Send + Sync + 'static {
    /// The whole of it.
    type Set: Send + 'static;

    /// The name of the concern that changes are not noticed.
    const WATCH: &'static str;

    /// Which files of the directory matter.
    const IS_MEMBER: IsMember;

    /// Where it is read from; `None`: it never changes.
    fn directory(&self) -> Option<&Path>;

    /// Reads it as it is now. Blocking.
    fn load(&self) -> Result<Self::Set, Problems>;

    /// Puts it in force, unless nothing changed.
    fn replace(&self, set: Self::Set, told: &Told);

    /// Says that what is there now is not in force.
    fn reject(&self, problems: &Problems, told: &Told);
}

/// Who is told.
pub(super) struct Told {
    pub(super) readiness: Readiness,
    pub(super) audit: audit::Log,
}

/// Does the keeping.
pub(super) struct Follower<K> {
    kept: Arc<K>,
    trigger: Arc<Notify>,
    told: Told,
    drain: Watch,
}

impl<K: Kept> Follower<K> {
    pub(super) fn new(kept: K, readiness: Readiness, audit: audit::Log, drain: Watch) -> Self {
        let told = Told { readiness, audit };
        Self { kept: Arc::new(kept), trigger: Arc::default(), told, drain }
    }

    /// Loads again when notified (SIGHUP).
    pub(super) fn trigger(&self) -> Arc<Notify> {
        Arc::clone(&self.trigger)
    }

    /// Until the drain starts.
    pub(super) async fn run(mut self) {
        let dir = self.kept.directory().map(Path::to_path_buf);
        let mut changes = dir.as_deref().and_then(|dir| self.watch(dir));
        // The directory may have changed between the first load and the watch.
        if changes.is_some() {
            self.reload().await;
        }
        loop {
            tokio::select! {
                () = self.drain.stopping() => return,
                () = self.trigger.notified() => {}
                changed = next_change(&mut changes) => if changed.is_none() {
                    changes = None;
                }
            }
            if changes.is_none() {
                changes = dir.as_deref().and_then(|dir| self.watch(dir));
            }
            self.reload().await;
        }
    }

    fn watch(&self, dir: &Path) -> Option<SetWatch> {
        match fileset::watch(dir, K::IS_MEMBER) {
            Ok(watch) => {
                self.told.readiness.clear(K::WATCH);
                Some(watch)
            }
            Err(error) => {
                let dir = dir.display();
                let why = format!("changes of {dir} are not noticed ({error}); send SIGHUP after a change");
                self.told.readiness.raise(K::WATCH, why);
                None
            }
        }
    }

    async fn reload(&self) {
        let kept = Arc::clone(&self.kept);
        // Reading files blocks; a panic in there must not end the follower.
        let Ok(loaded) = tokio::task::spawn_blocking(move || kept.load()).await else { return };
        match loaded {
            Ok(set) => self.kept.replace(set, &self.told),
            Err(problems) => self.kept.reject(&problems, &self.told),
        }
    }
}

/// `None` when the watch is lost; without one it never resolves.
async fn next_change(changes: &mut Option<SetWatch>) -> Option<()> {
    match changes {
        Some(watch) => match watch.changed().await {
            Some(()) => Some(()),
            None => {
                // Not at once: a watch that cannot be had must not spin.
                tokio::time::sleep(Duration::from_secs(1)).await;
                None
            }
        },
        None => std::future::pending().await,
    }
}
