//! Loads the entries, and loads them again when their directory changes or the operator says so. A bad set
//! never replaces a good one; it is said loudly, in the log, in the audit log and in `mayfly status`.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::StartError;
use super::follow::{Kept, Told};
use crate::audit::Event;
use crate::config::{Config, EntriesFrom};
use crate::diag::Problems;
use crate::fileset::{IsMember, is_toml};
use crate::id::{EntryId, TrustDomain, check_segment};
use crate::registration::{EntryRules, EntrySet, EntrySource, FileSource, parse_files};

/// The entries in force and where they come from.
pub(super) struct Entries {
    source: Arc<dyn EntrySource>,
    name: String,
    publish: watch::Sender<Arc<EntrySet>>,
    last_error: Arc<ArcSwap<String>>,
}

impl Entries {
    /// The first load: a mistake is a reason not to start.
    pub(super) fn first(config: &Config) -> Result<(Self, watch::Receiver<Arc<EntrySet>>), StartError> {
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
                let set = own_user(&config.trust_domain, *uid, name, &rules).map_err(StartError::Config)?;
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
}

impl Kept for Entries {
    type Set = EntrySet;

    const IS_MEMBER: IsMember = is_toml;
    const WATCH: &'static str = "entries watch";

    fn directory(&self) -> Option<&Path> {
        self.source.directory()
    }

    fn load(&self) -> Result<EntrySet, Problems> {
        self.source.load()
    }

    fn replace(&self, set: EntrySet, told: &Told) {
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
        told.audit.note(vec![event]);
    }

    fn reject(&self, problems: &Problems, told: &Told) {
        let text = problems.to_string();
        if **self.last_error.load() == text {
            return;
        }
        tracing::error!(problems = text, "entries not loaded: the set before stays in force");
        self.last_error.store(Arc::new(text));
        let problems = problems.iter().map(ToString::to_string).collect();
        told.audit.note(vec![Event::EntriesRejected { source: self.name.clone(), problems }]);
    }
}

/// `--dev`: one entry for every process of the user who started the agent.
fn own_user(
    trust_domain: &TrustDomain,
    uid: u32,
    name: &str,
    rules: &EntryRules,
) -> Result<EntrySet, Problems> {
    let who = if check_segment(name.as_bytes()).is_ok() { name.to_owned() } else { uid.to_string() };
    let spiffe_id = format!("{}/user/{who}", trust_domain.id());
    let text = format!(
        "[[entries]]\nid = \"dev\"\nspiffe_id = \"{spiffe_id}\"\nselectors = [\"unix:uid:{uid}\"]\nowner = \"--dev\"\n"
    );
    parse_files([("--dev", text.as_bytes())], rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_for_dev_names_its_user_where_a_path_can() {
        let domain = "dev.mayfly.internal".parse::<TrustDomain>().unwrap();
        for (name, path) in
            [("ann", "/user/ann"), ("CORP\\ann", "/user/1000"), ("..", "/user/1000"), ("a/b", "/user/1000")]
        {
            let set = own_user(&domain, 1000, name, &EntryRules::default()).unwrap();
            let entry = set.get(&EntryId::new("dev")).unwrap();
            assert_eq!(entry.spiffe_id.as_str(), format!("spiffe://dev.mayfly.internal{path}"));
            assert_eq!(set.len(), 1);
        }
    }
}
