//! What there is to ask for, and on which kind of listener.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};

use super::bundle::BundleSource;
use super::crl::Crls;
use super::oidc::Discovery;
use super::{crl, health, status_list, tokens};
use crate::api::limits::{Admission as RateLimit, AdmissionLimits};
use crate::api::wire::budget::Rate;
use crate::clock::Clock;
use crate::ready::Readiness;
use crate::trust::TrustSnapshot;
use crate::workload::Workloads;

/// What the site is made of.
pub struct SiteParts {
    /// Leases and trust.
    pub workloads: Workloads,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// For `/health`, and where trouble goes.
    pub readiness: Readiness,
    /// Our bundle.
    pub bundle: BundleSource,
    /// `iss` of our tokens.
    pub issuer: String,
    /// Attestations of each user; shared with the gRPC sockets.
    pub attestations: RateLimit,
}

impl std::fmt::Debug for SiteParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiteParts").finish_non_exhaustive()
    }
}

/// Everything that is served, shared by all listeners.
#[derive(Clone, Debug)]
pub struct Site(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) parts: SiteParts,
    pub(super) crls: Crls,
    pub(super) discovery: Option<Discovery>,
    pub(super) lists: status_list::Lists,
    /// Requests of each user or identity.
    pub(super) requests: RateLimit,
}

impl Site {
    /// Nothing is read or written yet.
    pub fn new(parts: SiteParts) -> Self {
        let discovery = Discovery::of_issuer(&parts.issuer);
        let rate = Rate { per_second: 2_000, burst: 4_000 };
        let requests = RateLimit::new(AdmissionLimits { rate, in_flight: 64, ..AdmissionLimits::default() });
        Self(Arc::new(Inner {
            parts,
            crls: Crls::default(),
            discovery,
            lists: status_list::Lists::default(),
            requests,
        }))
    }

    /// What anybody may read: bundle, discovery, CRLs. Nothing in it is secret and nothing changes anything.
    pub fn public(&self) -> Router {
        Router::new()
            .route("/bundle", get(bundle))
            .route("/crl/{file}", get(crl_file))
            .route("/health", get(health::answer))
            .route("/statuslists/{list}", get(status_list::answer))
            .route(super::oidc::CONFIGURATION, get(configuration))
            .route(super::oidc::KEYS, get(keys))
            .fallback(get(elsewhere))
            .with_state(Arc::clone(&self.0))
    }

    /// [`Self::public`], with what only callers with a name are told.
    pub fn named(&self) -> Router {
        let tokens = Router::new()
            .route("/introspect", post(tokens::introspect))
            .route("/revoke", post(tokens::revoke))
            .with_state(Arc::clone(&self.0));
        self.public().merge(tokens)
    }

    /// [`Self::public`], with the bundle at `/` as well: other trust domains are given a URL without a path.
    pub fn bundle_endpoint(&self) -> Router {
        self.public().merge(Router::new().route("/", get(bundle)).with_state(Arc::clone(&self.0)))
    }
}

impl Inner {
    pub(super) fn trust(&self) -> Arc<TrustSnapshot> {
        self.parts.workloads.trust().borrow().clone()
    }
}

async fn bundle(State(site): State<Arc<Inner>>, headers: HeaderMap) -> Response<Body> {
    let (trust, now) = (site.trust(), site.parts.clock.wall());
    if let Some(document) = site.parts.bundle.latest(&trust) {
        return document.answer(&headers);
    }
    // A new number is synced to the disk before anybody sees it.
    let made = tokio::task::spawn_blocking(move || site.parts.bundle.renew(&trust, now)).await;
    match made.ok().flatten() {
        Some(document) => document.answer(&headers),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn crl_file(
    State(site): State<Arc<Inner>>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    match crl::document(&site.crls, &site.trust(), &file, site.parts.clock.wall()) {
        Some(document) => document.answer(&headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn configuration(State(site): State<Arc<Inner>>, headers: HeaderMap) -> Response<Body> {
    let discovery = site.discovery.as_ref();
    match discovery.map(|discovery| discovery.configuration(&site.trust(), site.parts.bundle.refresh_hint()))
    {
        Some(document) => document.answer(&headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn keys(State(site): State<Arc<Inner>>, headers: HeaderMap) -> Response<Body> {
    super::oidc::keys(&site.trust(), site.parts.bundle.refresh_hint()).answer(&headers)
}

/// An issuer with a path has its discovery below that path (OpenID Connect Discovery 1.0 §4.1), whether or not
/// a proxy in front takes the path away.
async fn elsewhere(State(site): State<Arc<Inner>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let below = site.discovery.as_ref().and_then(|discovery| uri.path().strip_prefix(discovery.path()));
    match below {
        Some(super::oidc::CONFIGURATION) => configuration(State(site), headers).await,
        Some(super::oidc::KEYS) => keys(State(site), headers).await,
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
