//! The SPIFFE Workload API (`/SpiffeWorkloadAPI/…`), exactly as `conformance.md` says.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use mayfly_proto::workload as proto;
use mayfly_proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use tonic::{Request, Response, Status};

use super::admission::{Admitted, Gate};
use super::status::{BadRequest, Busy, no_identity, of_refusal};
use super::{validate, wit};
use crate::clock::Clock;
use crate::drain::Watch;
use crate::id::SpiffeId;
use crate::issue::x509::X509Svid;
use crate::trust::{DomainBundle, TrustMark, TrustView};
use crate::workload::{Attendance, Subscription, View};

pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves the five stable RPCs, and the two incubating ones where WIT-SVIDs are switched on.
pub struct WorkloadService {
    gate: Gate,
    clock: Arc<dyn Clock>,
    drain: Watch,
    max_audiences: usize,
}

impl std::fmt::Debug for WorkloadService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkloadService").finish_non_exhaustive()
    }
}

impl WorkloadService {
    /// A service behind `gate`; streams end with `Unavailable` when the drain starts.
    pub fn new(gate: Gate, clock: Arc<dyn Clock>, drain: Watch, max_audiences: usize) -> Self {
        Self { gate, clock, drain, max_audiences }
    }

    fn audiences(&self, asked: &[String]) -> Result<(), BadRequest> {
        if asked.is_empty() || asked.iter().any(String::is_empty) {
            return Err(BadRequest::Audience);
        }
        if asked.len() > self.max_audiences {
            return Err(BadRequest::TooManyAudiences(self.max_audiences));
        }
        Ok(())
    }

    fn bundles<T: PartialEq + Clone + Send + 'static>(
        &self,
        admitted: &Admitted,
        compose: fn(&TrustView) -> T,
    ) -> Response<Messages<T>> {
        let start = BundleStream {
            attendance: self.gate.workloads().attend(admitted.admission()),
            drain: self.drain.clone(),
            sent: None,
            ended: false,
        };
        Response::new(Box::pin(stream::unfold(start, move |mut state| async move {
            let message = state.next(compose).await?;
            Some((message, state))
        })))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadService {
    type FetchX509SVIDStream = Messages<proto::X509svidResponse>;
    type FetchX509BundlesStream = Messages<proto::X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<proto::JwtBundlesResponse>;
    type FetchWITSVIDStream = Messages<proto::WitsvidResponse>;
    type FetchWITBundlesStream = Messages<proto::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<proto::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let admitted = self.gate.call(&request, "FetchX509SVID")?.admit().await?;
        let start = SvidStream {
            subscription: self.gate.workloads().subscribe(admitted.admission()),
            drain: self.drain.clone(),
            sent: None,
            ended: false,
        };
        Ok(Response::new(Box::pin(stream::unfold(start, |mut state| async move {
            let message = state.next().await?;
            Some((message, state))
        }))))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<proto::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let admitted = self.gate.call(&request, "FetchX509Bundles")?.admit().await?;
        Ok(self.bundles(&admitted, x509_bundles))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<proto::JwtsvidRequest>,
    ) -> Result<Response<proto::JwtsvidResponse>, Status> {
        let call = self.gate.call(&request, "FetchJWTSVID")?;
        let asked = request.into_inner();
        self.audiences(&asked.audience)?;
        let wanted = wanted(&asked.spiffe_id)?;
        let admitted = call.admit().await?;
        let issued = self.gate.workloads().issue_jwt(admitted.admission(), wanted.as_ref(), &asked.audience);
        let issued = issued.await.map_err(|refusal| {
            let process = call.peer().process();
            self.gate.workloads().note_refused(process, "issue", &refusal.to_string());
            of_refusal(&refusal)
        })?;
        let svids = issued
            .into_iter()
            .map(|svid| proto::Jwtsvid {
                spiffe_id: svid.spiffe_id.to_string(),
                svid: svid.token,
                hint: svid.hint,
            })
            .collect();
        Ok(Response::new(proto::JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<proto::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let admitted = self.gate.call(&request, "FetchJWTBundles")?.admit().await?;
        Ok(self.bundles(&admitted, jwt_bundles))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<proto::ValidateJwtsvidRequest>,
    ) -> Result<Response<proto::ValidateJwtsvidResponse>, Status> {
        let call = self.gate.call(&request, "ValidateJWTSVID")?;
        let asked = request.into_inner();
        if asked.audience.is_empty() {
            return Err(BadRequest::Audience.into());
        }
        if asked.svid.is_empty() {
            return Err(BadRequest::Svid.into());
        }
        let _ticket = call.spend_validation()?;
        validate::token(&call, self.gate.workloads(), &asked, self.clock.wall()).await.map(Response::new)
    }

    async fn fetch_witsvid(
        &self,
        request: Request<proto::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        let call = wit::call(&self.gate, &request, "FetchWITSVID")?;
        let wanted = wanted(&request.get_ref().spiffe_id)?;
        let admitted = call.admit().await?;
        Ok(Response::new(wit::svids(self.gate.workloads(), &admitted, wanted, self.drain.clone())?))
    }

    async fn fetch_wit_bundles(
        &self,
        request: Request<proto::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        let admitted = wit::call(&self.gate, &request, "FetchWITBundles")?.admit().await?;
        Ok(self.bundles(&admitted, wit::bundles))
    }
}

/// The identity asked for; `None` stands for all of them.
fn wanted(text: &str) -> Result<Option<SpiffeId>, BadRequest> {
    match text {
        "" => Ok(None),
        text => SpiffeId::parse(text.as_bytes()).map(Some).map_err(BadRequest::SpiffeId),
    }
}

struct SvidStream {
    subscription: Subscription,
    drain: Watch,
    /// The SVIDs of the last message, and the trust in it.
    sent: Option<(Arc<[Arc<X509Svid>]>, TrustMark)>,
    ended: bool,
}

impl SvidStream {
    async fn next(&mut self) -> Option<Result<proto::X509svidResponse, Status>> {
        while !self.ended {
            let (view, trust) = tokio::select! {
                biased;
                () = self.drain.stopping() => return self.end(Busy::Stopping.into()),
                next = self.subscription.next() => next,
            };
            let svids = match view {
                View::Ready(svids) => svids,
                View::NoIdentity | View::Ended => return self.end(no_identity()),
                View::Pending | View::Unavailable => {
                    return self.end(Status::unavailable("no SVID could be issued; see the agent's log"));
                }
            };
            let mark = trust.mark();
            let same = self
                .sent
                .as_ref()
                .is_some_and(|(before, known)| Arc::ptr_eq(before, &svids) && *known == mark);
            if !same {
                let message = x509_svids(&svids, &trust);
                self.sent = Some((svids, mark));
                return Some(Ok(message));
            }
            tokio::select! {
                () = self.drain.stopping() => {}
                () = self.subscription.changed() => {}
            }
        }
        None
    }

    fn end<T>(&mut self, status: Status) -> Option<Result<T, Status>> {
        self.ended = true;
        Some(Err(status))
    }
}

struct BundleStream<T> {
    attendance: Attendance,
    drain: Watch,
    sent: Option<T>,
    ended: bool,
}

impl<T: PartialEq + Clone> BundleStream<T> {
    /// Bundle streams send only on difference.
    async fn next(&mut self, compose: fn(&TrustView) -> T) -> Option<Result<T, Status>> {
        while !self.ended {
            let Some(trust) = self.attendance.now() else {
                self.ended = true;
                return Some(Err(no_identity()));
            };
            let message = compose(&trust);
            if self.sent.as_ref() != Some(&message) {
                self.sent = Some(message.clone());
                return Some(Ok(message));
            }
            tokio::select! {
                () = self.drain.stopping() => {
                    self.ended = true;
                    return Some(Err(Busy::Stopping.into()));
                }
                () = self.attendance.changed() => {}
            }
        }
        None
    }
}

fn x509_svids(svids: &[Arc<X509Svid>], trust: &TrustView) -> proto::X509svidResponse {
    let svid = |svid: &Arc<X509Svid>| proto::X509svid {
        spiffe_id: svid.spiffe_id.to_string(),
        x509_svid: svid.chain.clone(),
        x509_svid_key: Bytes::copy_from_slice(svid.key.expose()),
        bundle: trust.x509_bundle().clone(),
        hint: svid.hint.clone(),
    };
    proto::X509svidResponse {
        svids: svids.iter().map(svid).collect(),
        crl: trust.crls().to_vec(),
        federated_bundles: federated(trust, x509_of),
    }
}

fn x509_bundles(trust: &TrustView) -> proto::X509BundlesResponse {
    let own = (trust.trust_domain().id().to_string(), trust.x509_bundle().clone());
    let bundles = federated(trust, x509_of).into_iter().chain([own]).collect();
    proto::X509BundlesResponse { crl: trust.crls().to_vec(), bundles }
}

fn jwt_bundles(trust: &TrustView) -> proto::JwtBundlesResponse {
    let own = (trust.trust_domain().id().to_string(), trust.jwks().clone());
    proto::JwtBundlesResponse { bundles: federated(trust, jwks_of).into_iter().chain([own]).collect() }
}

/// The foreign bundles that the caller may see, by trust domain ID. A domain that has no authority of the kind is
/// left out, which says that nothing of it is to be trusted: client libraries take no empty values.
fn federated(trust: &TrustView, part: fn(&DomainBundle) -> Option<&Bytes>) -> HashMap<String, Bytes> {
    let each = trust
        .federated()
        .filter_map(|(domain, bundle)| part(bundle).map(|bytes| (domain.id().to_string(), bytes.clone())));
    each.collect()
}

fn x509_of(bundle: &DomainBundle) -> Option<&Bytes> {
    (!bundle.x509().is_empty()).then(|| bundle.x509_concatenated())
}

fn jwks_of(bundle: &DomainBundle) -> Option<&Bytes> {
    (!bundle.jwt().is_empty()).then(|| bundle.jwt().json())
}
