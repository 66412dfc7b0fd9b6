//! Bundles of other trust domains, on the admin socket: list, show, set, delete, fetch now.

use std::sync::Arc;

use mayfly_proto::admin as proto;
use mayfly_proto::admin::bundles_server::Bundles;
use tonic::{Code, Request, Response, Status};

use super::identity::seconds;
use super::peer::Peer;
use crate::audit;
use crate::clock::unix_seconds;
use crate::config::RemoteProfile;
use crate::federation::{BundleOrderError, Federation, Row};
use crate::id::TrustDomain;
use crate::trust::DocumentForm;

/// Serves an operator.
#[derive(Clone, Debug)]
pub struct BundleService(Federation);

impl BundleService {
    /// A service over these bundles.
    pub fn new(federation: Federation) -> Self {
        Self(federation)
    }

    fn row(&self, domain: &TrustDomain) -> Option<proto::FederatedBundle> {
        self.0.rows().iter().find(|row| row.trust_domain == *domain).map(bundle)
    }
}

#[tonic::async_trait]
impl Bundles for BundleService {
    async fn list(
        &self,
        _request: Request<proto::ListBundlesRequest>,
    ) -> Result<Response<proto::ListBundlesResponse>, Status> {
        let bundles = self.0.rows().iter().map(bundle).collect();
        Ok(Response::new(proto::ListBundlesResponse { bundles }))
    }

    async fn show(
        &self,
        request: Request<proto::ShowBundleRequest>,
    ) -> Result<Response<proto::ShowBundleResponse>, Status> {
        let domain = named(&request.get_ref().trust_domain)?;
        let known = self.0.bundle(&domain);
        let bundle = known.ok_or_else(|| Status::not_found(format!("no bundle of `{domain}`")))?;
        let row = self.0.rows().into_iter().find(|row| row.trust_domain == domain);
        let form = DocumentForm {
            sequence: row.as_ref().and_then(|row| row.sequence),
            refresh_hint: row.as_ref().and_then(|row| row.refresh_hint),
            wit_keys: true,
        };
        let document =
            bundle.document(&form).map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(proto::ShowBundleResponse {
            document,
            x509_authorities: bundle.x509().to_vec(),
            jwks: bundle.jwt().json().clone(),
        }))
    }

    async fn set(
        &self,
        request: Request<proto::SetBundleRequest>,
    ) -> Result<Response<proto::SetBundleResponse>, Status> {
        let by = operator(&request);
        let asked = request.into_inner();
        let domain = named(&asked.trust_domain)?;
        let federation = self.0.clone();
        let done = on_a_thread(move || federation.set(&domain, &asked.document, by)).await?;
        Ok(Response::new(proto::SetBundleResponse { bundle: Some(bundle(&done)) }))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteBundleRequest>,
    ) -> Result<Response<proto::DeleteBundleResponse>, Status> {
        let by = operator(&request);
        let domain = named(&request.get_ref().trust_domain)?;
        let federation = self.0.clone();
        on_a_thread(move || federation.delete(&domain, by)).await?;
        Ok(Response::new(proto::DeleteBundleResponse {}))
    }

    async fn refresh(
        &self,
        request: Request<proto::RefreshBundleRequest>,
    ) -> Result<Response<proto::RefreshBundleResponse>, Status> {
        let domain = named(&request.get_ref().trust_domain)?;
        self.0.refresh(&domain).await.map_err(|error| refused(&error))?;
        Ok(Response::new(proto::RefreshBundleResponse { bundle: self.row(&domain) }))
    }
}

/// These orders end with a write to the disk.
async fn on_a_thread<T: Send + 'static>(
    order: impl FnOnce() -> Result<T, BundleOrderError> + Send + 'static,
) -> Result<T, Status> {
    let trace = audit::trace::current();
    match tokio::task::spawn_blocking(move || audit::trace::within(trace, order)).await {
        Ok(done) => done.map_err(|error| refused(&error)),
        Err(_) => Err(Status::internal("the order broke off")),
    }
}

fn operator<T>(request: &Request<T>) -> Option<audit::Agent> {
    let peer = request.extensions().get::<Arc<Peer>>()?;
    Some(audit::Agent::new(peer.process().key(), peer.process().uid()))
}

fn named(text: &str) -> Result<TrustDomain, Status> {
    TrustDomain::parse(text.as_bytes())
        .map_err(|error| Status::invalid_argument(format!("not a trust domain name: {error}")))
}

fn refused(error: &BundleOrderError) -> Status {
    let code = match error {
        BundleOrderError::Own(_) | BundleOrderError::Document(_) => Code::InvalidArgument,
        BundleOrderError::Unknown(_) => Code::NotFound,
        BundleOrderError::NoRelationship(_) | BundleOrderError::Fetch(_) => Code::FailedPrecondition,
        BundleOrderError::NotKept(_) => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// A row as it is sent.
pub(super) fn bundle(row: &Row) -> proto::FederatedBundle {
    let settings = row.settings.as_deref();
    let origin = match row.origin {
        Some(origin) => origin.as_str(),
        None if row.deleted => "deleted",
        None => "",
    };
    let endpoint = settings.and_then(|settings| match &settings.profile {
        RemoteProfile::HttpsSpiffe { endpoint_spiffe_id, .. } => Some(endpoint_spiffe_id.to_string()),
        RemoteProfile::HttpsWeb { .. } => None,
    });
    let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let at = |time: Option<std::time::SystemTime>| time.map_or(0, |time| seconds(unix_seconds(time)));
    let (x509, jwt, wit) = row.counts;
    proto::FederatedBundle {
        trust_domain: row.trust_domain.to_string(),
        origin: origin.to_owned(),
        url: settings.map(|settings| settings.url.to_string()).unwrap_or_default(),
        profile: settings.map(|settings| settings.profile.name().to_owned()).unwrap_or_default(),
        endpoint_spiffe_id: endpoint.unwrap_or_default(),
        sequence: row.sequence,
        refresh_hint_seconds: row.refresh_hint.map(|hint| hint.as_secs()),
        x509_authorities: small(x509),
        jwt_keys: small(jwt),
        wit_keys: small(wit),
        since: at(row.since),
        last_fetch: at(row.last_success),
        next_fetch_seconds: row.next_fetch.map(|left| left.as_secs()),
        error: row.error.clone().unwrap_or_default(),
        remarks: row.remarks.iter().map(ToString::to_string).collect(),
    }
}
