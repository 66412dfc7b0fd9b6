//! Readiness: a set of named concerns. The agent is ready while the set is empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Which components hold readiness back, and why.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<&'static str, String>>>);

/// Holds readiness back until dropped.
#[derive(Debug)]
#[must_use]
pub struct Pending(Readiness, &'static str);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Readiness {
    /// Holds readiness back under `name` until the guard is dropped.
    pub fn pending(&self, name: &'static str) -> Pending {
        self.raise(name, "starting");
        Pending(self.clone(), name)
    }

    /// Records a concern; the agent is not ready until [`Readiness::clear`] is called with its name.
    pub fn raise(&self, name: &'static str, why: impl Into<String>) {
        let why = why.into();
        let news =
            self.0.send_if_modified(|concerns| concerns.insert(name, why.clone()) != Some(why.clone()));
        if news && why != "starting" {
            tracing::error!(concern = name, why, "the agent is not ready");
        }
    }

    /// Holds readiness back for good because that was asked for: no error, and not logged as one.
    pub fn withdraw(&self, name: &'static str, why: impl Into<String>) {
        let why = why.into();
        self.0.send_if_modified(|concerns| concerns.insert(name, why.clone()) != Some(why));
    }

    /// Withdraws a concern.
    pub fn clear(&self, name: &'static str) {
        self.0.send_if_modified(|concerns| concerns.remove(name).is_some());
    }

    /// Whether nothing holds readiness back.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Every concern as `name: why`, sorted by name.
    pub fn concerns(&self) -> Vec<String> {
        self.0.borrow().iter().map(|(name, why)| format!("{name}: {why}")).collect()
    }

    /// Follows the concerns.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<&'static str, String>> {
        self.0.subscribe()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.clear(self.1);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    /// What `work` logs.
    fn logged(work: impl FnOnce()) -> String {
        let writer = tempfile::tempfile().unwrap();
        let mut file = writer.try_clone().unwrap();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(std::sync::Mutex::new(writer)).finish();
        tracing::subscriber::with_default(subscriber, work);
        let mut text = String::new();
        file.seek(std::io::SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn what_was_asked_for_is_no_error() {
        let readiness = Readiness::default();
        assert_eq!(logged(|| readiness.withdraw("stopping", "told to stop")), "");
        assert_eq!(readiness.concerns(), ["stopping: told to stop"]);
        assert!(logged(|| readiness.raise("audit", "disk full")).contains("ERROR"));
    }

    #[test]
    fn ready_only_while_nobody_objects() {
        let readiness = Readiness::default();
        let starting = readiness.pending("ledger");
        readiness.raise("audit", "disk full");
        drop(starting);
        assert_eq!(readiness.concerns(), ["audit: disk full"]);
        assert!(!readiness.is_ready());
        readiness.clear("audit");
        assert!(readiness.is_ready());
    }
}
