//! Loads the policy set, and loads it again when its directory changes or the operator says so. A bad set never
//! replaces a good one; it is said loudly, in the log, in the audit log and in `mayfly status`.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::StartError;
use super::follow::{Kept, Told};
use crate::audit::Event;
use crate::config::{Config, PolicyFrom};
use crate::diag::Problems;
use crate::fileset::{IsMember, Mount};
use crate::policy::{Engine, PolicySet, PolicySource, is_policy_file};

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
        Ok(Self { source, name, engine: Engine::of(set), last_error: Arc::default() })
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
