//! Loads the entries, and loads them again when their directory changes or the operator says so. A bad set
//! never replaces a good one; it is said loudly, in the log, in the audit log and in `mayfly status`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::StartError;
use crate::audit::{self, Event};
use crate::config::{Config, EntriesFrom};
use crate::diag::Problems;
use crate::drain::Watch;
use crate::id::{EntryId, SpiffeId};
use crate::ready::Readiness;
use crate::registration::{self, EntryRules, EntrySet, EntrySource, EntryWatch, FileSource, parse_files};

/// The entries in force and where they come from.
pub(super) struct Entries {
    source: Arc<dyn EntrySource>,
    name: String,
    publish: watch::Sender<Arc<EntrySet>>,
    last_error: Arc<ArcSwap<String>>,
}

/// Keeps them in step with their source.
pub(super) struct Follower {
    source: Arc<dyn EntrySource>,
    name: String,
    publish: watch::Sender<Arc<EntrySet>>,
    last_error: Arc<ArcSwap<String>>,
    trigger: Arc<Notify>,
    readiness: Readiness,
    audit: audit::Log,
    drain: Watch,
}

impl Entries {
    /// The first load: a mistake is a reason not to start.
    pub(super) fn load(config: &Config) -> Result<(Self, watch::Receiver<Arc<EntrySet>>), StartError> {
        let rules = EntryRules {
            trust_domain: Some(config.trust_domain.clone()),
            x509_ttl_max: config.x509.ttl,
            jwt_ttl_max: config.jwt.ttl,
            wit_ttl_max: config.wit.ttl,
            foreign: config.attest.plugins.iter().map(|plugin| plugin.kind).collect(),
        };
        let (source, name): (Arc<dyn EntrySource>, String) = match &config.entries {
            EntriesFrom::Directory(dir) => (Arc::new(FileSource::new(dir, rules)), dir.display().to_string()),
            EntriesFrom::Projected(dir) => {
                (Arc::new(FileSource::new(dir, rules).projected()), dir.display().to_string())
            }
            EntriesFrom::User { uid, name } => {
                let set = own_user(config, *uid, name, &rules).map_err(StartError::Config)?;
                (Arc::new(set), "--dev".to_owned())
            }
        };
        let set = source.load().map_err(StartError::Config)?;
        let (publish, in_force) = watch::channel(Arc::new(set));
        Ok((Self { source, name, publish, last_error: Arc::default() }, in_force))
    }

    pub(super) fn last_error(&self) -> Arc<ArcSwap<String>> {
        Arc::clone(&self.last_error)
    }

    pub(super) fn follow(self, readiness: Readiness, audit: audit::Log, drain: Watch) -> Follower {
        let Self { source, name, publish, last_error } = self;
        Follower { source, name, publish, last_error, trigger: Arc::default(), readiness, audit, drain }
    }
}

impl Follower {
    /// Loads again when notified (SIGHUP).
    pub(super) fn trigger(&self) -> Arc<Notify> {
        Arc::clone(&self.trigger)
    }

    /// Until the drain starts.
    pub(super) async fn run(mut self) {
        let dir = self.source.directory().map(Path::to_path_buf);
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

    fn watch(&self, dir: &Path) -> Option<EntryWatch> {
        match registration::watch(dir) {
            Ok(watch) => {
                self.readiness.clear("entries watch");
                Some(watch)
            }
            Err(error) => {
                self.readiness.raise(
                    "entries watch",
                    format!(
                        "changes of {} are not noticed ({error}); send SIGHUP after a change",
                        dir.display()
                    ),
                );
                None
            }
        }
    }

    async fn reload(&self) {
        let source = Arc::clone(&self.source);
        // Reading files blocks; a panic in there must not end the follower.
        let Ok(loaded) = tokio::task::spawn_blocking(move || source.load()).await else { return };
        match loaded {
            Ok(set) => self.replace(set),
            Err(problems) => self.reject(&problems),
        }
    }

    fn replace(&self, set: EntrySet) {
        self.last_error.store(Arc::default());
        let before = self.publish.borrow().clone();
        if before.version() == set.version() {
            return;
        }
        let missing_from = |these: &EntrySet, those: &EntrySet| -> Vec<EntryId> {
            these.iter().filter(|e| those.get(&e.id).is_none()).map(|e| e.id.clone()).collect()
        };
        let (added, removed) = (missing_from(&set, &before), missing_from(&before, &set));
        tracing::info!(entries = set.len(), added = added.len(), removed = removed.len(), "entries changed");
        let total = u64::try_from(set.len()).unwrap_or(u64::MAX);
        let changed = set.changed_from(&before);
        let event = Event::EntriesChanged { source: self.name.clone(), total, added, removed, changed };
        self.publish.send_replace(Arc::new(set));
        self.audit.note(vec![event]);
    }

    fn reject(&self, problems: &Problems) {
        let text = problems.to_string();
        if **self.last_error.load() == text {
            return;
        }
        tracing::error!(problems = text, "entries not loaded: the set before stays in force");
        self.last_error.store(Arc::new(text));
        let problems = problems.iter().map(ToString::to_string).collect();
        self.audit.note(vec![Event::EntriesRejected { source: self.name.clone(), problems }]);
    }
}

/// `None` when the watch is lost; without one it never resolves.
async fn next_change(changes: &mut Option<EntryWatch>) -> Option<()> {
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

/// `--dev`: one entry for every process of the user who started the agent.
fn own_user(config: &Config, uid: u32, name: &str, rules: &EntryRules) -> Result<EntrySet, Problems> {
    let id = |who: &str| format!("{}/user/{who}", config.trust_domain.id());
    let named = id(name);
    let spiffe_id = if SpiffeId::parse(named.as_bytes()).is_ok() { named } else { id(&uid.to_string()) };
    let text = format!(
        "[[entries]]\nid = \"dev\"\nspiffe_id = \"{spiffe_id}\"\nselectors = [\"unix:uid:{uid}\"]\nowner = \"--dev\"\n"
    );
    parse_files([("--dev", text.as_bytes())], rules)
}
