//! Envoy's secret discovery service v3 (`envoy.service.secret.v3.SecretDiscoveryService`): certificates, keys and
//! what peers are judged by, CRLs among it, as state of the world, incrementally, and once. `docs/sds.md` says what
//! operators need to know.
//!
//! A request carries no `workload.spiffe.io` header: Envoy cannot send it, and what cannot be made to connect to a
//! Unix socket and to speak HTTP/2 cannot be made to ask here.

mod client;
mod closed;
mod contexts;
mod conversation;
mod counters;
mod crl;
mod secrets;
mod session;
mod wire;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use mayfly_proto::admin;
use mayfly_proto::xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use mayfly_proto::xds::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use self::client::{Validator, validator_for};
use self::contexts::ContextCache;
use self::conversation::delta::Delta;
use self::conversation::world::World;
use self::counters::Counters;
use self::secrets::{SECRET_TYPE, Secrets};
use self::session::Session;
use self::wire::Dialogue;
use super::admission::{Admitted, Gate};
use super::status::{BadRequest, Busy, no_identity, of_refusal};
use crate::clock::Clock;
use crate::config::SdsSettings;
use crate::drain::Watch;
use crate::id::TrustDomain;
use crate::trust::{TrustSnapshot, TrustView};
use crate::workload::{Refusal, View};

/// The largest request. Envoy 1.40 says 61 KiB about itself in each, unless it is told to do so once.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// Settings, counts and what is made once for all streams.
#[derive(Clone)]
pub struct Sds {
    shared: Arc<Shared>,
    trust: watch::Receiver<Arc<TrustSnapshot>>,
}

impl std::fmt::Debug for Sds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sds").finish_non_exhaustive()
    }
}

struct Shared {
    settings: SdsSettings,
    contexts: ContextCache,
    counters: Arc<Counters>,
    clock: Arc<dyn Clock>,
}

impl Sds {
    /// Nothing is served before an [`SdsService`] is.
    pub fn new(
        settings: SdsSettings,
        clock: &Arc<dyn Clock>,
        trust: watch::Receiver<Arc<TrustSnapshot>>,
    ) -> Self {
        let contexts = ContextCache::new(settings.crl, Arc::clone(clock));
        let shared = Shared { settings, contexts, counters: Arc::default(), clock: Arc::clone(clock) };
        Self { shared: Arc::new(shared), trust }
    }

    /// For `mayfly status`.
    pub fn status(&self) -> admin::Sds {
        let contexts = self.shared.contexts.of(&self.trust.borrow().clone());
        let withheld = contexts.domains.iter().filter_map(|domain| {
            let why = domain.withheld.as_ref()?;
            Some(format!("{}: {why}", domain.name))
        });
        self.shared.counters.status(withheld.collect())
    }
}

/// Serves the three methods.
pub struct SdsService {
    gate: Gate,
    sds: Sds,
    drain: Watch,
}

impl std::fmt::Debug for SdsService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SdsService").finish_non_exhaustive()
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl SdsService {
    /// A service behind `gate`; streams end with `Unavailable` when the drain starts.
    pub fn new(gate: Gate, sds: Sds, drain: Watch) -> Self {
        Self { gate, sds, drain }
    }

    /// Answers at once: whoever has no identity yet waits on the open stream.
    fn open<D: Dialogue>(
        &self,
        request: Request<Streaming<D::Ask>>,
        method: &'static str,
    ) -> Result<Response<Messages<D::Reply>>, Status> {
        let call = self.gate.knock(&request, method)?;
        let inbound = request.into_inner();
        let workloads = self.gate.workloads();
        let start = Session::<D>::new(&self.sds.shared, workloads, call, inbound, self.drain.clone());
        Ok(Response::new(Box::pin(stream::unfold(Box::new(start), |mut session| async move {
            let message = session.next().await?;
            Some((message, session))
        }))))
    }

    /// What the caller may be told, once there is something to tell.
    async fn secrets_now(&self, admitted: &Admitted, validator: Validator) -> Result<Secrets, Status> {
        let mut subscription = self.gate.workloads().subscribe(admitted.admission());
        let mut drain = self.drain.clone();
        let (view, trust) = tokio::select! {
            () = drain.stopping() => return Err(Busy::Stopping.into()),
            next = subscription.next() => next,
        };
        let svids = match view {
            View::Ready(svids) => svids,
            View::NoIdentity => return Err(no_identity()),
            View::Ended => return Err(of_refusal(&Refusal::Exited)),
            View::Pending | View::Unavailable => Arc::default(),
        };
        let shared = &self.sds.shared;
        Ok(Secrets {
            names: shared.settings.names.clone(),
            validator,
            svids,
            contexts: Some(shared.contexts.of(&trust)),
            federates_with: visible(&trust),
        })
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SdsService {
    type StreamSecretsStream = Messages<DiscoveryResponse>;
    type DeltaSecretsStream = Messages<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.open::<World>(request, "StreamSecrets")
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.open::<Delta>(request, "DeltaSecrets")
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let call = self.gate.knock(&request, "FetchSecrets")?;
        let ask = request.into_inner();
        if !ask.type_url.is_empty() && ask.type_url != SECRET_TYPE {
            return Err(BadRequest::ResourceType.into());
        }
        let shared = &self.sds.shared;
        let validator = validator_for(ask.node.as_ref(), !shared.settings.disable_spiffe_cert_validation);
        // Whoever asks once wants it all: what it has from before is not our business.
        let ask = DiscoveryRequest { version_info: String::new(), ..ask };
        let mut world = World::default();
        Dialogue::hear(&mut world, ask).map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let admitted = call.admit().await?;
        let secrets = self.secrets_now(&admitted, validator).await?;
        let reply = Dialogue::answer(&mut world, &secrets, String::new(), shared.clock.wall());
        let reply = reply.map_err(|_error| Status::unavailable("no secret could be made"))?;
        let empty = || DiscoveryResponse { type_url: SECRET_TYPE.to_owned(), ..DiscoveryResponse::default() };
        Ok(Response::new(reply.map_or_else(empty, |(reply, _)| reply)))
    }
}

/// The foreign trust domains whose bundles the caller may see, of those that have one.
fn visible(trust: &TrustView) -> Arc<BTreeSet<TrustDomain>> {
    Arc::new(trust.federated().map(|(domain, _)| domain.clone()).collect())
}
