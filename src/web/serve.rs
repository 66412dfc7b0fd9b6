//! One HTTP/1.1 connection, from its first octet to its last, with a limit on everything a client can stretch.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::caller::Caller;
use crate::audit;
use crate::drain;

/// Limits on each connection and listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HttpLimits {
    /// Connections of one TCP listener.
    pub connections: usize,
    /// Of these, from one address that is not loopback (a proxy on this machine speaks for many).
    pub per_address: usize,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for a request's header to come, and so for a connection without a request to live.
    pub header: Duration,
    /// Time for a request's body to come and its answer to begin.
    pub answer: Duration,
    /// Octets of a request's header.
    pub header_bytes: usize,
    /// Header fields of a request.
    pub header_fields: usize,
    /// How long a write may wait for room in the socket.
    pub write_stall: Duration,
    /// Time for open requests to end once the agent stops.
    pub grace: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            per_address: 64,
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            header_bytes: 16 * 1024,
            header_fields: 64,
            write_stall: Duration::from_secs(30),
            grace: Duration::from_secs(5),
        }
    }
}

/// Serves one connection to its end. Answers whether it had to be cut off when the agent stopped.
pub(super) async fn connection<I>(
    io: I,
    caller: Caller,
    app: Router,
    limits: HttpLimits,
    mut watch: drain::Watch,
) -> bool
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        answer(app.clone(), request, limits.answer)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.header_fields);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        // Its error is the client's doing: a header too long or too late, a connection gone.
        _ = connection.as_mut() => return false,
        () = watch.stopping() => connection.as_mut().graceful_shutdown(),
    }
    tokio::time::timeout(limits.grace, connection).await.is_err()
}

/// Serves one HTTP/2 connection of a probe to its end. Answers whether it had to be cut off when the agent stopped.
pub(super) async fn grpc_connection<I>(
    io: I,
    app: Router,
    limits: HttpLimits,
    mut watch: drain::Watch,
) -> bool
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| answer(app.clone(), request, limits.answer));
    let streams = Streams::default();
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(PROBE_STREAMS)
        .max_header_list_size(PROBE_HEADER)
        .keep_alive_interval(limits.header)
        .keep_alive_timeout(limits.header);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        _ = connection.as_mut() => return false,
        () = watch.stopping() => connection.as_mut().graceful_shutdown(),
    }
    // A watch has no end of its own.
    tokio::time::timeout(PROBE_GRACE, connection).await.ok();
    false
}

/// The tasks of one connection's streams; aborted with the last handle.
#[derive(Clone, Debug, Default)]
struct Streams(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended leave nothing behind.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(stream);
    }
}

async fn answer(
    app: Router,
    request: Request<Incoming>,
    patience: Duration,
) -> Result<Response<Body>, Infallible> {
    let trace = crate::api::trace::of(request.headers());
    let work = audit::trace::scope(trace, app.oneshot(request.map(Body::new)));
    let answer = tokio::time::timeout(patience, work);
    match answer.await {
        Ok(answer) => answer,
        Err(_late) => {
            let mut late = Response::new(Body::empty());
            *late.status_mut() = StatusCode::REQUEST_TIMEOUT;
            late.headers_mut().insert(CONNECTION, CLOSE);
            Ok(late)
        }
    }
}

const PROBE_STREAMS: u32 = 8;
const PROBE_HEADER: u32 = 8 * 1024;
const PROBE_GRACE: Duration = Duration::from_secs(1);
const CLOSE: HeaderValue = HeaderValue::from_static("close");
