//! An agent's stand-in: every service of both sockets on one real socket, answering what a test set.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt, stream};
use mayfly_proto::admin::admin_server::{Admin, AdminServer};
use mayfly_proto::admin::{self as adm};
use mayfly_proto::identity::identity_server::{Identity, IdentityServer};
use mayfly_proto::identity::{AwaitIdentityRequest, WhoAmIRequest, WhoAmIResponse};
use mayfly_proto::task::task_admin_server::TaskAdminServer;
use mayfly_proto::task::task_api_server::TaskApiServer;
use mayfly_proto::task::{Approval, DecideRequest, FreezeResult, Task, TaskSummary};
use mayfly_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use mayfly_proto::workload::*;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::{Ran, empty_env, run};
use crate::cli::client::Env;

pub(super) type Answer<T> = Result<T, Status>;
pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Answer<T>> + Send>>;

/// What the stand-in answers. Each is "no identity issued" or empty until a test says otherwise.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) x509: watch::Sender<Answer<X509svidResponse>>,
    pub(crate) bundles: watch::Sender<Answer<X509BundlesResponse>>,
    pub(crate) jwt: Mutex<Answer<JwtsvidResponse>>,
    pub(crate) wit: watch::Sender<Answer<WitsvidResponse>>,
    pub(crate) wit_bundles: watch::Sender<Answer<WitBundlesResponse>>,
    pub(crate) jwt_bundles: Mutex<Answer<JwtBundlesResponse>>,
    pub(crate) validate: Mutex<Answer<ValidateJwtsvidResponse>>,
    pub(crate) who: Mutex<Answer<WhoAmIResponse>>,
    pub(crate) status: Mutex<Answer<adm::StatusResponse>>,
    pub(crate) leases: Mutex<Answer<Vec<adm::Lease>>>,
    pub(crate) revoke: Mutex<Answer<adm::RevokeLeasesResponse>>,
    pub(crate) entries: Mutex<Answer<adm::ListEntriesResponse>>,
    pub(crate) authorities: Mutex<Answer<adm::ListAuthoritiesResponse>>,
    pub(crate) order: Mutex<Answer<adm::OrderAuthorityResponse>>,
    pub(crate) ordered: Mutex<Vec<adm::OrderAuthorityRequest>>,
    pub(crate) explain: Mutex<Answer<adm::ExplainResponse>>,
    pub(crate) tasks: watch::Sender<Answer<Vec<Task>>>,
    pub(crate) summary: Mutex<Answer<TaskSummary>>,
    pub(crate) frozen: Mutex<Answer<FreezeResult>>,
    pub(crate) approvals: Mutex<Answer<Vec<Approval>>>,
    pub(crate) decided: Mutex<Vec<DecideRequest>>,
    /// Every request's `workload.spiffe.io` values, and requests as debug text.
    pub(crate) seen: Mutex<Vec<(Vec<String>, String)>>,
}

pub(crate) fn none() -> Status {
    Status::permission_denied("no identity issued")
}

/// A running stand-in.
pub(crate) struct Agent {
    pub(crate) script: Arc<Script>,
    pub(crate) socket: PathBuf,
    pub(crate) dir: tempfile::TempDir,
    /// Its own, so that [`Agent::crash`] takes the open connections along.
    runtime: Option<Runtime>,
}

impl Agent {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("api.sock");
        let script = Arc::new(Script {
            x509: watch::Sender::new(Err(none())),
            bundles: watch::Sender::new(Err(none())),
            jwt: Mutex::new(Err(none())),
            wit: watch::Sender::new(Err(Status::unimplemented("WIT-SVIDs are off"))),
            wit_bundles: watch::Sender::new(Err(Status::unimplemented("WIT-SVIDs are off"))),
            jwt_bundles: Mutex::new(Err(none())),
            validate: Mutex::new(Err(Status::invalid_argument("token refused"))),
            who: Mutex::new(Ok(WhoAmIResponse::default())),
            status: Mutex::new(Ok(adm::StatusResponse::default())),
            leases: Mutex::new(Ok(Vec::new())),
            revoke: Mutex::new(Ok(adm::RevokeLeasesResponse::default())),
            entries: Mutex::new(Ok(adm::ListEntriesResponse::default())),
            authorities: Mutex::new(Ok(adm::ListAuthoritiesResponse::default())),
            order: Mutex::new(Ok(adm::OrderAuthorityResponse::default())),
            ordered: Mutex::default(),
            explain: Mutex::new(Ok(adm::ExplainResponse::default())),
            tasks: watch::Sender::new(Ok(Vec::new())),
            summary: Mutex::new(Ok(TaskSummary::default())),
            frozen: Mutex::new(Ok(FreezeResult::default())),
            approvals: Mutex::new(Ok(Vec::new())),
            decided: Mutex::default(),
            seen: Mutex::default(),
        });
        let mut agent = Self { script, socket, dir, runtime: None };
        agent.listen();
        agent
    }

    /// Binds the socket (again).
    pub(crate) fn listen(&mut self) {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("runtime");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&self.socket).expect("bind")
        };
        let incoming = stream::unfold(listener, |listener| async {
            let (io, _) = listener.accept().await.expect("accept");
            Some((Ok::<_, std::io::Error>(io), listener))
        });
        let (reporter, health) = tonic_health::server::health_reporter();
        let script = || Arc::clone(&self.script);
        let router = tonic::transport::Server::builder()
            .add_service(SpiffeWorkloadApiServer::from_arc(script()))
            .add_service(IdentityServer::from_arc(script()))
            .add_service(AdminServer::from_arc(script()))
            .add_service(TaskApiServer::from_arc(script()))
            .add_service(TaskAdminServer::from_arc(script()))
            .add_service(health);
        runtime.spawn(async move {
            reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
            router.serve_with_incoming(incoming).await.expect("serve");
        });
        self.runtime = Some(runtime);
    }

    /// Dies without a word, as after `kill -9`; the socket file stays.
    pub(crate) fn crash(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn env(&self) -> Env {
        let uri = format!("unix://{}", self.socket.display());
        Env { public: Some(uri.clone().into()), admin: Some(uri.into()), ..empty_env() }
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Ran {
        run(self.env(), args).await
    }

    /// The requests seen, as debug text.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.script.seen.lock().expect("lock").iter().map(|(_, request)| request.clone()).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.crash();
    }
}

impl Script {
    /// The X.509 answer from now on, on open streams too.
    pub(crate) fn send_x509(&self, answer: Answer<X509svidResponse>) {
        drop(self.x509.send_replace(answer));
    }

    /// The X.509 bundles from now on, on open streams too.
    pub(crate) fn send_bundles(&self, answer: Answer<X509BundlesResponse>) {
        drop(self.bundles.send_replace(answer));
    }

    /// The WIT answers from now on, on open streams too; the bundles first.
    pub(crate) fn send_wit(&self, svids: WitsvidResponse, bundles: WitBundlesResponse) {
        drop(self.wit_bundles.send_replace(Ok(bundles)));
        drop(self.wit.send_replace(Ok(svids)));
    }

    pub(super) fn note<T: std::fmt::Debug>(&self, request: &Request<T>) {
        let header = request.metadata().get_all("workload.spiffe.io").iter();
        let header = header.map(|value| value.to_str().expect("text").to_owned()).collect();
        self.seen.lock().expect("lock").push((header, format!("{:?}", request.get_ref())));
    }
}

pub(super) fn get<T: Clone>(slot: &Mutex<Answer<T>>) -> Answer<Response<T>> {
    slot.lock().expect("lock").clone().map(Response::new)
}

/// The current value, then each change; an error ends it.
fn follow<T: Clone + Send + Sync + 'static>(
    slot: &watch::Sender<Answer<T>>,
) -> Answer<Response<Streamed<T>>> {
    let mut over = false;
    let values = WatchStream::new(slot.subscribe()).take_while(move |value| {
        let go_on = !over;
        over = value.is_err();
        std::future::ready(go_on)
    });
    Ok(Response::new(Box::pin(values)))
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Script {
    type FetchX509SVIDStream = Streamed<X509svidResponse>;
    type FetchX509BundlesStream = Streamed<X509BundlesResponse>;
    type FetchJWTBundlesStream = Streamed<JwtBundlesResponse>;
    type FetchWITSVIDStream = Streamed<WitsvidResponse>;
    type FetchWITBundlesStream = Streamed<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Answer<Response<Self::FetchX509SVIDStream>> {
        self.note(&request);
        follow(&self.x509)
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Answer<Response<Self::FetchX509BundlesStream>> {
        self.note(&request);
        follow(&self.bundles)
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Answer<Response<JwtsvidResponse>> {
        self.note(&request);
        get(&self.jwt)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Answer<Response<Self::FetchJWTBundlesStream>> {
        self.note(&request);
        let answer = self.jwt_bundles.lock().expect("lock").clone();
        Ok(Response::new(Box::pin(stream::once(std::future::ready(answer)))))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Answer<Response<ValidateJwtsvidResponse>> {
        self.note(&request);
        get(&self.validate)
    }

    async fn fetch_witsvid(
        &self,
        request: Request<WitsvidRequest>,
    ) -> Answer<Response<Self::FetchWITSVIDStream>> {
        self.note(&request);
        follow(&self.wit)
    }

    async fn fetch_wit_bundles(
        &self,
        request: Request<WitBundlesRequest>,
    ) -> Answer<Response<Self::FetchWITBundlesStream>> {
        self.note(&request);
        follow(&self.wit_bundles)
    }
}

#[tonic::async_trait]
impl Identity for Script {
    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Answer<Response<WhoAmIResponse>> {
        self.note(&request);
        get(&self.who)
    }

    type AwaitIdentityStream = Streamed<WhoAmIResponse>;

    async fn await_identity(
        &self,
        request: Request<AwaitIdentityRequest>,
    ) -> Answer<Response<Self::AwaitIdentityStream>> {
        self.note(&request);
        if self.who.lock().expect("lock").is_err() {
            return Err(Status::unimplemented("unknown service"));
        }
        let known =
            WatchStream::new(self.x509.subscribe()).filter(|answer| std::future::ready(answer.is_ok()));
        Ok(Response::new(Box::pin(known.map(|_| Ok(WhoAmIResponse::default())).take(1))))
    }
}

#[tonic::async_trait]
impl Admin for Script {
    type ListLeasesStream = Streamed<adm::Lease>;

    async fn status(&self, request: Request<adm::StatusRequest>) -> Answer<Response<adm::StatusResponse>> {
        self.note(&request);
        get(&self.status)
    }

    async fn list_leases(
        &self,
        request: Request<adm::ListLeasesRequest>,
    ) -> Answer<Response<Self::ListLeasesStream>> {
        self.note(&request);
        let leases = self.leases.lock().expect("lock").clone()?;
        Ok(Response::new(Box::pin(stream::iter(leases.into_iter().map(Ok)))))
    }

    async fn revoke_leases(
        &self,
        request: Request<adm::RevokeLeasesRequest>,
    ) -> Answer<Response<adm::RevokeLeasesResponse>> {
        self.note(&request);
        get(&self.revoke)
    }

    async fn freeze(&self, request: Request<adm::FreezeRequest>) -> Answer<Response<adm::FreezeResponse>> {
        self.note(&request);
        let thing = request.into_inner().thing.and_then(|thing| thing.what);
        let unknown = match thing {
            Some(adm::frozen_thing::What::Target(name)) if name == "wikki" => {
                "no such target; did you mean `wiki`?".to_owned()
            }
            _ => String::new(),
        };
        Ok(Response::new(adm::FreezeResponse {
            credentials: 3,
            scopes: 1,
            scopes_not_held: 2,
            unknown,
            ..Default::default()
        }))
    }

    async fn thaw(&self, request: Request<adm::ThawRequest>) -> Answer<Response<adm::ThawResponse>> {
        self.note(&request);
        Ok(Response::new(adm::ThawResponse { needs_another: true, ..Default::default() }))
    }

    async fn list_entries(
        &self,
        request: Request<adm::ListEntriesRequest>,
    ) -> Answer<Response<adm::ListEntriesResponse>> {
        self.note(&request);
        get(&self.entries)
    }

    async fn list_authorities(
        &self,
        _: Request<adm::ListAuthoritiesRequest>,
    ) -> Answer<Response<adm::ListAuthoritiesResponse>> {
        get(&self.authorities)
    }

    async fn order_authority(
        &self,
        request: Request<adm::OrderAuthorityRequest>,
    ) -> Answer<Response<adm::OrderAuthorityResponse>> {
        self.ordered.lock().unwrap().push(request.into_inner());
        get(&self.order)
    }

    async fn jwt_key_set(
        &self,
        request: Request<adm::JwtKeySetRequest>,
    ) -> Answer<Response<adm::JwtKeySetResponse>> {
        self.note(&request);
        let jwks = "{\"keys\":[{\"kid\":\"one\"}]}".to_owned();
        Ok(Response::new(adm::JwtKeySetResponse { jwks, issuer: "https://id.example.org".to_owned() }))
    }

    async fn explain(&self, request: Request<adm::ExplainRequest>) -> Answer<Response<adm::ExplainResponse>> {
        self.note(&request);
        get(&self.explain)
    }
}

/// A map of one entry.
pub(crate) fn one<V>(key: &str, value: V) -> std::collections::HashMap<String, V> {
    BTreeMap::from([(key.to_owned(), value)]).into_iter().collect()
}
