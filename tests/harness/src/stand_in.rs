//! Tests of the harness itself, against a stock tonic server that answers what it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use bytes::Bytes;
use mayfly_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use mayfly_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::tools::Tool;
use crate::{Agent, Plan};

/// Streams one message, then ends as `code` says (0: stays open; negative: refuses at once).
struct StandIn {
    code: Arc<AtomicI32>,
    leaf: Bytes,
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

impl StandIn {
    fn answer<T: Send + 'static>(&self, message: T) -> Result<Response<Stream<T>>, Status> {
        let code = self.code.load(Ordering::SeqCst);
        if code < 0 {
            return Err(Status::new(Code::from(-code), "told to"));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        sender.try_send(Ok(message)).map_err(|_full| Status::internal("channel"))?;
        if code > 0 {
            let end = Status::new(Code::from(code), "told to");
            sender.try_send(Err(end)).map_err(|_full| Status::internal("channel"))?;
        } else {
            // Kept open for as long as the test runs.
            std::mem::forget(sender);
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for StandIn {
    type FetchX509SVIDStream = Stream<X509svidResponse>;
    type FetchX509BundlesStream = Stream<X509BundlesResponse>;
    type FetchJWTBundlesStream = Stream<JwtBundlesResponse>;
    type FetchWITSVIDStream = Stream<WitsvidResponse>;
    type FetchWITBundlesStream = Stream<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let svid = X509svid {
            spiffe_id: "spiffe://example.org/x".to_owned(),
            x509_svid: self.leaf.clone(),
            x509_svid_key: Bytes::from_static(b"key"),
            bundle: self.leaf.clone(),
            hint: "h".to_owned(),
        };
        self.answer(X509svidResponse { svids: vec![svid], ..X509svidResponse::default() })
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.answer(X509BundlesResponse::default())
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let svid = Jwtsvid { spiffe_id: "spiffe://example.org/x".to_owned(), ..Jwtsvid::default() };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::invalid_argument("invalid token"))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A server at the place of an agent that is never started: its dial, and the serial it hands out.
fn serve(agent: &Agent) -> (Arc<AtomicI32>, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    let leaf = Bytes::copy_from_slice(leaf.der());
    let serial = crate::pki::Leaf::parse(&leaf).serial;
    let code = Arc::new(AtomicI32::new(0));
    let service = StandIn { code: Arc::clone(&code), leaf };
    std::fs::create_dir_all(agent.public().parent().unwrap()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(agent.public()).unwrap();
    crate::files::open_to_all(&agent.public());
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let incoming = futures_util::stream::unfold(listener, |listener| async {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((accepted, listener))
            });
            let server =
                tonic::transport::Server::builder().add_service(SpiffeWorkloadApiServer::new(service));
            server.serve_with_incoming(Box::pin(incoming.map(|stream| stream))).await.unwrap();
        });
    });
    (code, serial)
}

#[test]
fn bare_client_reads_serials_and_every_status() {
    let agent = Plan::default().prepare();
    let (dial, serial) = serve(&agent);
    let socket = agent.public().to_str().unwrap().to_owned();
    let own = nix::unistd::getuid().as_raw();
    for code in [1, 2, 3, 5, 7, 12, 13, 14, 16] {
        dial.store(code, Ordering::SeqCst);
        let mut tool = Tool::run(&agent, own, "peer", &["call", &socket]);
        assert_eq!(tool.expect("svid"), serial);
        assert_eq!(tool.expect("status"), code.to_string());
        dial.store(-code, Ordering::SeqCst);
        let mut tool = Tool::run(&agent, own, "peer", &["call", &socket]);
        assert_eq!(tool.expect("status"), code.to_string());
    }
}

#[test]
fn bare_client_asks_twice_on_one_connection() {
    let agent = Plan::default().prepare();
    let (_dial, serial) = serve(&agent);
    let socket = agent.public().to_str().unwrap().to_owned();
    let own = nix::unistd::getuid().as_raw();
    // A stock server lets another thread write, and a child too: exactly what ours must tell apart.
    for kind in ["thread", "child"] {
        let lines = Tool::run(&agent, own, "peer", &["writer", &socket, kind]).finish();
        let svid = format!("svid {serial}");
        assert_eq!(lines.iter().filter(|line| **line == svid).count(), 2, "{kind}: {lines:?}");
    }
}

#[test]
fn bare_client_survives_the_end_of_its_first_thread() {
    let agent = Plan::default().prepare();
    let (_dial, serial) = serve(&agent);
    let socket = agent.public().to_str().unwrap().to_owned();
    let mut tool = Tool::run(&agent, nix::unistd::getuid().as_raw(), "peer", &["thread", &socket]);
    assert_eq!(tool.expect("svid"), serial);
    tool.tell("go");
    tool.expect("leader-gone");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", tool.pid())).unwrap();
    assert!(stat.contains(") Z "), "the first thread is gone: {stat}");
    assert_eq!(tool.expect("svid"), serial);
    tool.expect("asked-again");
}

/// The attacks on `/proc/PID/exe` do what they say; otherwise the tests that withstand them prove nothing.
#[test]
fn forged_executable_shows_in_proc() {
    let agent = Plan::default().prepare();
    let (_dial, serial) = serve(&agent);
    let socket = agent.public().to_str().unwrap().to_owned();
    let own = nix::unistd::getuid().as_raw();
    for how in ["helper", "inside"] {
        let mut tool = Tool::run(&agent, own, "program", &["forge", &socket, "/bin/sleep", how]);
        assert_eq!(tool.expect("forged"), "ok", "{how}");
        assert_eq!(tool.expect("svid"), serial);
        let shown = std::fs::read_link(format!("/proc/{}/exe", tool.pid())).unwrap();
        assert_eq!(shown, std::fs::canonicalize("/bin/sleep").unwrap(), "{how}");
    }
}

#[test]
fn memfd_and_bind_mount_show_a_trusted_name() {
    let agent = Plan::default().prepare();
    let (_dial, serial) = serve(&agent);
    let socket = agent.public().to_str().unwrap().to_owned();
    let own = nix::unistd::getuid().as_raw();
    let mut tool = Tool::run(&agent, own, "program", &["memfd", &socket, "/usr/bin/passwd"]);
    assert_eq!(tool.expect("svid"), serial);
    let shown = std::fs::read_link(format!("/proc/{}/exe", tool.pid())).unwrap();
    assert_eq!(shown.to_str().unwrap(), "/memfd:/usr/bin/passwd (deleted)");
    let evil = crate::files::install(agent.dir(), &crate::tools::compile("program"));
    let target = agent.dir().join("trusted");
    std::fs::write(&target, "").unwrap();
    let args = ["bind", &socket, evil.to_str().unwrap(), target.to_str().unwrap()];
    let mut tool = Tool::run(&agent, own, "program", &args);
    assert_eq!(tool.expect("svid"), serial);
    assert_eq!(std::fs::read_link(format!("/proc/{}/exe", tool.pid())).unwrap(), target);
}
