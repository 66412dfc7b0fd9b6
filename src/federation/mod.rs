//! Takes trust from other domains: fetches their bundles as the configuration says, keeps the last good one, and
//! puts what verifiers may believe into the trust snapshot. Operators list, set and delete bundles by hand.
//!
//! A relationship is one-way and stands alone: a failing endpoint costs only its own refreshes, and the bundle from
//! before stays in force until the domain itself publishes another, or an operator ends it.

mod fetch;
mod poll;
mod post;
mod table;
mod tls;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub use self::fetch::{FetchError, MAX_REDIRECTS};
pub use self::post::post_json;
pub use self::table::Row;
pub use self::tls::TlsError;

use self::table::{Change, Table, Turn};
use crate::audit::{self, Event};
use crate::clock::Clock;
use crate::config::{FederationSettings, RemoteProfile};
use crate::drain::Watch;
use crate::files::{self, TrustRules};
use crate::id::TrustDomain;
use crate::trust::{
    BundleDocument, BundleStore, BundleStoreError, DocumentError, DomainBundle, MAX_DOCUMENT_BYTES,
    TrustSnapshot, publish_federated,
};

/// What federation works with.
pub struct Parts {
    /// Own trust domain.
    pub own: TrustDomain,
    /// Relationships.
    pub relationships: Vec<FederationSettings>,
    /// Where bundles are kept; `None` keeps them in memory.
    pub store: Option<BundleStore>,
    /// Where they are put in force.
    pub trust: watch::Sender<Arc<TrustSnapshot>>,
    /// Fetches and orders are recorded.
    pub audit: audit::Log,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Foreign bundles and their relationships. Clones share them.
#[derive(Clone)]
pub struct Federation(Arc<Shared>);

impl std::fmt::Debug for Federation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Federation").finish_non_exhaustive()
    }
}

struct Shared {
    parts: Parts,
    table: Mutex<Table>,
    /// Held while a record is written, so that the last one written is the latest.
    disk: Mutex<()>,
    wake: Notify,
}

/// Why an operator's order about a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleOrderError {
    /// Our own bundle is made of our authorities.
    #[error("`{0}` is this agent's own trust domain, whose bundle is made of its authorities")]
    Own(TrustDomain),
    /// Nothing is known of that domain.
    #[error("no bundle and no relationship with `{0}`")]
    Unknown(TrustDomain),
    /// There is nothing to fetch from.
    #[error(
        "no relationship with `{0}` to fetch from, or it rests since its bundle was deleted: set a bundle"
    )]
    NoRelationship(TrustDomain),
    /// The document is refused; the bundle in force stays.
    #[error("the document is refused: {0}")]
    Document(#[from] DocumentError),
    /// It is in force until the agent stops.
    #[error("done, but not kept for the next start: {0}")]
    NotKept(#[from] BundleStoreError),
    /// The fetch failed; the bundle in force stays.
    #[error("{0}")]
    Fetch(#[from] FetchError),
}

impl Federation {
    /// Takes up what was kept and puts it in force; fetches nothing yet. Blocking.
    pub fn open(parts: Parts) -> Self {
        let (kept, damaged) = parts.store.as_ref().map(BundleStore::load).unwrap_or_default();
        for error in damaged {
            tracing::error!(%error, "a kept bundle is not used");
        }
        // Read once by the store already; a document that fails now is as good as none.
        let kept = kept.into_iter().filter_map(|(domain, record)| {
            let document = record.document().ok()?;
            Some((domain, record, document))
        });
        let now = parts.clock.monotonic();
        let (table, over) = Table::new(&parts.relationships, kept.collect(), now);
        for (domain, bundle) in table.bundles() {
            publish_federated(&parts.trust, domain, Some(bundle));
        }
        let shared = Shared { parts, table: Mutex::new(table), disk: Mutex::default(), wake: Notify::new() };
        for domain in &over {
            tracing::info!(trust_domain = %domain, "the configuration has dropped this relationship: its bundle goes");
            if let Err(error) = shared.keep(domain) {
                tracing::error!(%error, "a bundle that is no longer wanted stays on disk");
            }
        }
        Self(Arc::new(shared))
    }

    /// Fetches what is due until the drain starts.
    pub async fn run(self, mut drain: Watch) {
        let mut fetches = JoinSet::new();
        loop {
            let now = self.0.parts.clock.monotonic();
            for domain in self.0.table().begin_due(now) {
                let shared = Arc::clone(&self.0);
                fetches.spawn(async move { shared.fetch(&domain).await.ok() });
            }
            let next = self.0.table().next_due();
            let sleep = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.0.wake.notified() => {}
                Some(_) = fetches.join_next() => {}
                () = drain.stopping() => return,
            }
        }
    }

    /// Every trust domain that has a bundle or a relationship, by name.
    pub fn rows(&self) -> Vec<Row> {
        self.0.table().rows(self.0.parts.clock.monotonic())
    }

    /// The bundle in force of a trust domain, our own included.
    pub fn bundle(&self, domain: &TrustDomain) -> Option<Arc<DomainBundle>> {
        if *domain == self.0.parts.own {
            return Some(Arc::clone(self.0.parts.trust.borrow().own()));
        }
        self.0.table().bundle(domain).cloned()
    }

    /// What an operator should know: relationships whose last fetch failed, one sentence each.
    pub fn concerns(&self) -> Vec<String> {
        let rows = self.rows().into_iter();
        rows.filter_map(|row| {
            let effect = if row.origin.is_some() {
                "the bundle from before stays"
            } else {
                "nothing of it is trusted"
            };
            Some(format!("federation with {}: {}; {effect}", row.trust_domain, row.error?))
        })
        .collect()
    }

    /// Puts a bundle in force by hand: a SPIFFE bundle document or PEM certificates. It lasts until the relationship,
    /// if there is one, brings another (FED-08). Blocking: writes a file.
    ///
    /// # Errors
    /// [`BundleOrderError`]; unless it is `NotKept`, the bundle in force before stays.
    pub fn set(
        &self,
        domain: &TrustDomain,
        bytes: &[u8],
        by: Option<audit::Agent>,
    ) -> Result<Row, BundleOrderError> {
        if *domain == self.0.parts.own {
            return Err(BundleOrderError::Own(domain.clone()));
        }
        let document = BundleDocument::parse_any(bytes)?;
        let text = as_text(bytes, &document)?;
        let order = Event::BundleOrder {
            by,
            order: "set",
            trust_domain: domain.clone(),
            sequence: document.sequence,
        };
        self.0.parts.audit.note(vec![order]);
        let (now, wall) = (self.0.parts.clock.monotonic(), self.0.parts.clock.wall());
        let mut table = self.0.table();
        table.set(domain, (text, document), (now, wall));
        publish_federated(&self.0.parts.trust, domain, table.bundle(domain));
        let row = table.rows(now).into_iter().find(|row| row.trust_domain == *domain);
        drop(table);
        self.0.wake.notify_one();
        self.0.keep(domain)?;
        row.ok_or_else(|| BundleOrderError::Unknown(domain.clone()))
    }

    /// Ends the trust in a domain: its bundle goes, in every stream's next message, and its relationship rests until
    /// a bundle is set or the configuration drops and takes it up again (FED-35). Blocking: writes a file.
    ///
    /// # Errors
    /// [`BundleOrderError`]; unless it is `NotKept`, nothing has changed.
    pub fn delete(&self, domain: &TrustDomain, by: Option<audit::Agent>) -> Result<(), BundleOrderError> {
        if *domain == self.0.parts.own {
            return Err(BundleOrderError::Own(domain.clone()));
        }
        let mut table = self.0.table();
        if !table.knows(domain) {
            return Err(BundleOrderError::Unknown(domain.clone()));
        }
        table.delete(domain, self.0.parts.clock.wall());
        publish_federated(&self.0.parts.trust, domain, None);
        drop(table);
        let order = Event::BundleOrder { by, order: "delete", trust_domain: domain.clone(), sequence: None };
        self.0.parts.audit.note(vec![order]);
        Ok(self.0.keep(domain)?)
    }

    /// Fetches now; the next regular fetch is one interval later.
    ///
    /// # Errors
    /// [`BundleOrderError`]; the bundle in force stays.
    pub async fn refresh(&self, domain: &TrustDomain) -> Result<(), BundleOrderError> {
        if self.0.table().turn(domain).is_none() {
            return Err(BundleOrderError::NoRelationship(domain.clone()));
        }
        Ok(self.0.fetch(domain).await?)
    }
}

/// What is kept of a document: itself, or what PEM says in its form.
fn as_text(bytes: &[u8], document: &BundleDocument) -> Result<String, DocumentError> {
    if BundleDocument::is_pem(bytes) {
        let text = document.bundle.document(&crate::trust::DocumentForm::default());
        return Ok(String::from_utf8_lossy(&text?).into_owned());
    }
    // It was read as JSON, which is UTF-8.
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Changed in single steps, so it is whole even after a caught panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down, or removes, what the table says of a domain now. Blocking.
    fn keep(&self, domain: &TrustDomain) -> Result<(), BundleStoreError> {
        let Some(store) = &self.parts.store else { return Ok(()) };
        let _writing = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.table().kept(domain).cloned();
        store.keep(domain, kept.as_ref())
    }

    async fn fetch(self: &Arc<Self>, domain: &TrustDomain) -> Result<(), FetchError> {
        let turn = self.table().turn(domain).ok_or(FetchError::Overtaken)?;
        let _alone = turn.turn.lock().await;
        // Whoever had the turn before may have seen the relationship change.
        let turn = self.table().turn(domain).ok_or(FetchError::Overtaken)?;
        let fetched = self.attempt(&turn.settings).await;
        let shared = Arc::clone(self);
        let domain = domain.clone();
        let concluded = tokio::task::spawn_blocking(move || shared.conclude(&domain, &turn, fetched)).await;
        concluded.unwrap_or(Err(FetchError::Overtaken))
    }

    async fn attempt(self: &Arc<Self>, settings: &Arc<FederationSettings>) -> Result<Fetched, FetchError> {
        let (shared, relationship) = (Arc::clone(self), Arc::clone(settings));
        // Reads files.
        let tls = tokio::task::spawn_blocking(move || shared.tls(&relationship)).await;
        let tls = tls.unwrap_or(Err(FetchError::Overtaken))?;
        let bytes = fetch::fetch(&settings.url, Arc::new(tls)).await?;
        let document = BundleDocument::parse(&bytes)?;
        Ok((String::from_utf8_lossy(&bytes).into_owned(), document))
    }

    fn tls(&self, settings: &FederationSettings) -> Result<rustls::ClientConfig, FetchError> {
        match &settings.profile {
            RemoteProfile::HttpsWeb { ca_file } => Ok(tls::web(ca_file.as_deref())?),
            RemoteProfile::HttpsSpiffe { endpoint_spiffe_id, bootstrap_bundle } => {
                let authorities =
                    self.authorities(endpoint_spiffe_id.trust_domain(), bootstrap_bundle.as_deref())?;
                Ok(tls::spiffe(endpoint_spiffe_id.clone(), &authorities)?)
            }
        }
    }

    /// The latest bundle of the endpoint's own trust domain; the bootstrap bundle only while there is none (FED-31).
    fn authorities(
        &self,
        endpoint: &TrustDomain,
        bootstrap: Option<&std::path::Path>,
    ) -> Result<Vec<Bytes>, FetchError> {
        if *endpoint == self.parts.own {
            return Ok(self.parts.trust.borrow().own().x509().to_vec());
        }
        if let Some(bundle) = self.table().bundle(endpoint) {
            return Ok(bundle.x509().to_vec());
        }
        let path = bootstrap.ok_or_else(|| FetchError::NoBundle(endpoint.to_string()))?;
        let most = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX);
        let bytes = files::read_trusted(path, &TrustRules::public(most))
            .map_err(|error| FetchError::Bootstrap(error.to_string()))?;
        let document =
            BundleDocument::parse_any(&bytes).map_err(|error| FetchError::Bootstrap(error.to_string()))?;
        Ok(document.bundle.x509().to_vec())
    }

    /// Draws the consequences of a fetch: table, trust, disk, audit log. Blocking.
    fn conclude(
        &self,
        domain: &TrustDomain,
        turn: &Turn,
        fetched: Result<Fetched, FetchError>,
    ) -> Result<(), FetchError> {
        let now = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let outcome = fetched.and_then(|fetched| {
            let sequence = fetched.1.sequence;
            let mut table = self.table();
            let change = table.answered(domain, turn.epoch, fetched, now).ok_or(FetchError::Overtaken)?;
            publish_federated(&self.parts.trust, domain, table.bundle(domain));
            Ok((sequence, change))
        });
        self.note(domain, turn, &outcome);
        match outcome {
            Ok((_, change)) if change.document => {
                if let Err(error) = self.keep(domain) {
                    // In force nevertheless: it may be what takes a stolen key out of the bundle.
                    tracing::error!(trust_domain = %domain, %error, "a fetched bundle is not kept for the next start");
                }
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                if self.table().failed(domain, turn.epoch, error.to_string()) {
                    tracing::warn!(trust_domain = %domain, %error, "a foreign bundle was not refreshed");
                }
                Err(error)
            }
        }
    }

    /// FED-40.
    fn note(&self, domain: &TrustDomain, turn: &Turn, outcome: &Result<(Option<u64>, Change), FetchError>) {
        let FederationSettings { url, profile, .. } = turn.settings.as_ref();
        let peer = match profile {
            RemoteProfile::HttpsWeb { .. } => url.host().to_owned(),
            RemoteProfile::HttpsSpiffe { endpoint_spiffe_id, .. } => endpoint_spiffe_id.to_string(),
        };
        let change = outcome.as_ref().map(|(_, change)| *change).unwrap_or_default();
        if change.went_back {
            tracing::warn!(trust_domain = %domain, "the sequence number of a foreign bundle went back");
        }
        self.parts.audit.note(vec![Event::BundleFetch {
            trust_domain: domain.clone(),
            url: url.to_string(),
            peer,
            outcome: outcome.as_ref().map(|(sequence, _)| *sequence).map_err(ToString::to_string),
            changed: change.document,
            went_back: change.went_back,
        }]);
    }
}

/// The document as it came, and what it says.
type Fetched = (String, BundleDocument);
