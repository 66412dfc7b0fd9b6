//! Loads the policy set, and loads it again when its directory changes or the operator says so. A bad set never
//! replaces a good one; it is said loudly, in the log, in the audit log and in `mayfly status`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::StartError;
use super::follow::{Kept, Told};
use crate::audit::Event;
use crate::config::{Config, PolicyFrom, Storage};
use crate::diag::Problems;
use crate::drain::Watch;
use crate::fileset::{self, IsMember, Mount};
use crate::policy::{Engine, PolicySet, PolicySource, is_policy_file, load_freezes};
use crate::workload::Workloads;

/// The policy set in force and where it comes from.
pub(super) struct Policies {
    /// `None`: it never changes.
    source: Option<PolicySource>,
    name: String,
    engine: Engine,
    last_error: Arc<ArcSwap<String>>,
}

impl Policies {
    /// The first load: a mistake is a reason not to start.
    pub(super) fn first(config: &Config) -> Result<Self, StartError> {
        let own = &config.trust_domain;
        let from = |dir, mount| {
            let source = PolicySource::new(dir, mount, own.clone());
            source.load().map(|set| (Some(source), set))
        };
        let loaded = match &config.policy {
            PolicyFrom::Nowhere => Ok((None, PolicySet::none())),
            PolicyFrom::Directory(dir) => from(dir, Mount::Plain),
            PolicyFrom::Projected(dir) => from(dir, Mount::Projected),
            PolicyFrom::User { uid, name } if cfg!(feature = "cedar") => {
                PolicySet::of_user(own, *uid, name).map(|set| (None, set))
            }
            PolicyFrom::User { .. } => {
                tracing::warn!(
                    "built without the policy engine (the cargo feature `cedar`): every task is denied"
                );
                Ok((None, PolicySet::none()))
            }
        };
        let (source, set) = loaded.map_err(StartError::Config)?;
        let name = match &source {
            Some(source) => source.directory().display().to_string(),
            None => "--dev".to_owned(),
        };
        let engine = Engine::of(set).flagged_by(&flag_file(config));
        if let Some(path) = freezes_file(config) {
            let kept = load_freezes(&path).map_err(StartError::Config)?;
            engine.change_freezes(|freezes| *freezes = kept);
        }
        Ok(Self { source, name, engine, last_error: Arc::default() })
    }

    /// Decides by the set in force.
    pub(super) fn engine(&self) -> Engine {
        self.engine.clone()
    }

    pub(super) fn last_error(&self) -> Arc<ArcSwap<String>> {
        Arc::clone(&self.last_error)
    }

    /// What the record says of the set in force; `None` without one.
    pub(super) fn loaded(&self) -> Option<Event> {
        loaded(&self.name, &self.engine.in_force())
    }
}

/// Where it is written down what is frozen.
pub(super) fn freezes_file(config: &Config) -> Option<PathBuf> {
    match &config.storage {
        Storage::Disk(dir) => Some(dir.join("freezes.json")),
        Storage::Memory => None,
    }
}

/// The kill switch for when nothing else works: beside the directory of the admin socket.
fn flag_file(config: &Config) -> PathBuf {
    let admin = config.sockets.admin.parent().unwrap_or_else(|| Path::new("/"));
    admin.parent().unwrap_or(admin).join(FLAG)
}

fn is_flag(name: &[u8]) -> bool {
    name == FLAG.as_bytes()
}

/// Hears of the flag file as it comes and goes, so that the record says so though nobody asks for anything.
pub(super) async fn follow_flag(config: Config, workloads: Workloads, mut drain: Watch) {
    let flag = flag_file(&config);
    let Some(dir) = flag.parent() else { return };
    let mut watch = fileset::watch(dir, is_flag)
        .inspect_err(|error| tracing::warn!(%error, "the flag file is only seen when something is asked for"))
        .ok();
    loop {
        workloads.look_at_flag().await;
        let changed = async {
            match &mut watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = changed => if heard.is_none() { return },
            () = drain.stopping() => return,
        }
    }
}

const FLAG: &str = "FREEZE";

fn loaded(source: &str, set: &PolicySet) -> Option<Event> {
    let count = |n| u64::try_from(n).unwrap_or(u64::MAX);
    Some(Event::PolicyLoaded {
        source: source.to_owned(),
        version: set.version()?.to_string(),
        policies: count(set.policies()),
        targets: count(set.catalogue().targets().count()),
    })
}

impl Kept for Policies {
    type Set = PolicySet;

    const IS_MEMBER: IsMember = is_policy_file;
    const WATCH: &'static str = "policy watch";

    fn directory(&self) -> Option<&Path> {
        self.source.as_ref().map(PolicySource::directory)
    }

    fn load(&self) -> Result<PolicySet, Problems> {
        match &self.source {
            Some(source) => source.load(),
            None => Ok(PolicySet::clone(&self.engine.in_force())),
        }
    }

    fn replace(&self, set: PolicySet, told: &Told) {
        self.last_error.store(Arc::default());
        if self.engine.in_force().version() == set.version() {
            return;
        }
        tracing::info!(version = ?set.version(), policies = set.policies(), "policies changed");
        let event = loaded(&self.name, &set);
        self.engine.replace(set);
        told.audit.note(event.into_iter().collect());
    }

    fn reject(&self, problems: &Problems, told: &Told) {
        let text = problems.to_string();
        if **self.last_error.load() == text {
            return;
        }
        tracing::error!(problems = text, "policies not loaded: the set before stays in force");
        self.last_error.store(Arc::new(text));
        let problems = problems.iter().map(ToString::to_string).collect();
        told.audit.note(vec![Event::PolicyRejected { source: self.name.clone(), problems }]);
    }
}
