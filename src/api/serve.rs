//! Serves the connections of one socket with HTTP/2: one task for each, which holds all its streams and ends
//! with it. Every limit that the stock server leaves open is set here.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use super::guard::{Accepted, GuardLimits};
use super::peer::{Cut, OpenStream, Peer};
use crate::audit;
use crate::drain;

/// Limits on each connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServeLimits {
    /// Its octets.
    pub guard: GuardLimits,
    /// Requests answered at once; advertised, and what exceeds it is refused without any cost.
    pub streams: u32,
    /// Header octets of one request, as HPACK counts them.
    pub header_list: u32,
    /// Time for preface, SETTINGS and the first request.
    pub greeting: Duration,
    /// Time without any request being answered, after which the connection is closed in good order.
    pub idle: Duration,
    /// Time for a request's message to come and its answer to begin.
    pub answer: Duration,
    /// How often the other end is asked whether it is there.
    pub keepalive: Duration,
    /// How long it may take to answer that.
    pub keepalive_answer: Duration,
    /// Time for open requests to end once the agent, or the idle timer, wants the connection closed.
    pub grace: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            guard: GuardLimits::default(),
            streams: 32,
            header_list: 8 * 1024,
            greeting: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            answer: Duration::from_secs(30),
            keepalive: Duration::from_secs(30),
            keepalive_answer: Duration::from_secs(10),
            grace: Duration::from_secs(10),
        }
    }
}

/// Told of each connection that ends.
pub trait Ended: Send + Sync {
    /// `cut` says why if it was us; it is `None` when the client left or all went in good order.
    fn ended(&self, peer: &Arc<Peer>, cut: Option<Cut>);
}

impl<F: Fn(&Arc<Peer>, Option<Cut>) + Send + Sync> Ended for F {
    fn ended(&self, peer: &Arc<Peer>, cut: Option<Cut>) {
        self(peer, cut);
    }
}

/// Serves until the drain starts (or the accept thread is gone), then lets each connection end within the
/// grace. Answers how many had to be cut off.
pub async fn serve<S>(
    mut accepted: mpsc::Receiver<Accepted>,
    service: S,
    limits: ServeLimits,
    mut watch: drain::Watch,
    ended: Arc<dyn Ended>,
) -> usize
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut cut_off = 0;
    loop {
        tokio::select! {
            next = accepted.recv() => match next {
                Some(next) => {
                    let one = connection(next, service.clone(), limits, watch.clone(), Arc::clone(&ended));
                    connections.spawn(one);
                }
                None => break,
            },
            Some(done) = connections.join_next() => cut_off += usize::from(done.unwrap_or(true)),
            () = watch.stopping() => break,
        }
    }
    // What was accepted before is told in good order that we stop.
    accepted.close();
    while let Ok(next) = accepted.try_recv() {
        let one = connection(next, service.clone(), limits, watch.clone(), Arc::clone(&ended));
        connections.spawn(one);
    }
    while let Some(done) = connections.join_next().await {
        cut_off += usize::from(done.unwrap_or(true));
    }
    cut_off
}

/// One connection, to its end. Answers whether it had to be cut off when the agent stopped.
async fn connection<S>(
    accepted: Accepted,
    service: S,
    limits: ServeLimits,
    watch: drain::Watch,
    ended: Arc<dyn Ended>,
) -> bool
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let peer = Arc::clone(accepted.peer());
    if let Ok(guarded) = accepted.guard(&limits.guard) {
        let streams = Streams::default();
        let served = PeerService { inner: service, peer: Arc::clone(&peer), answer: limits.answer };
        let connection = builder(&limits, &streams).serve_connection(TokioIo::new(guarded), served);
        // Boxed: a future that owns it by value would hold room for it twice.
        supervise(Box::pin(connection), streams, &peer, &limits, watch).await;
    }
    ended.ended(&peer, peer.cut_reason());
    peer.cut_reason() == Some(Cut::Drained)
}

/// Polls the connection to its end, and wants it closed when it says nothing, has nothing to do, or the agent
/// stops.
async fn supervise<S>(
    mut connection: Pin<Box<Connection<S>>>,
    streams: Streams,
    peer: &Arc<Peer>,
    limits: &ServeLimits,
    mut watch: drain::Watch,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let mut deadline = pin!(tokio::time::sleep(limits.greeting));
    let mut phase = Phase::Greeting;
    loop {
        tokio::select! {
            // The connection first: it may start streams, which are then waited for.
            biased;
            // Its error is the client's doing, or already known as the reason of the cut.
            _ = connection.as_mut() => return,
            () = streams.reap() => {}
            () = watch.stopping(), if !matches!(phase, Phase::Closing(_)) => {
                phase = Phase::Closing(Cut::Drained);
            }
            () = deadline.as_mut() => phase = match phase {
                Phase::Closing(reason) => {
                    peer.cut(reason);
                    return;
                }
                Phase::Greeting if !peer.has_asked() => {
                    peer.cut(Cut::Greeting);
                    return;
                }
                Phase::Serving { ended } if peer.open_streams() == 0 && ended == peer.ended_streams() => {
                    Phase::Closing(Cut::Idle)
                }
                // Busy, or it was since the last look: look again after another idle time.
                Phase::Greeting | Phase::Serving { .. } => Phase::Serving { ended: peer.ended_streams() },
            },
        }
        let patience = match phase {
            Phase::Closing(_) => {
                connection.as_mut().graceful_shutdown();
                limits.grace
            }
            Phase::Greeting | Phase::Serving { .. } => limits.idle,
        };
        deadline.as_mut().reset(Instant::now() + patience);
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing has been asked yet.
    Greeting,
    /// So many streams had ended at the last look.
    Serving { ended: u32 },
    /// The reason if it does not close by itself.
    Closing(Cut),
}

type Connection<S> = http2::Connection<TokioIo<super::guard::Guarded>, PeerService<S>, Streams>;

fn builder(limits: &ServeLimits, streams: &Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_list)
        .keep_alive_interval(limits.keepalive)
        .keep_alive_timeout(limits.keepalive_answer)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS);
    builder
}

/// Puts the peer into each request, and counts it as open until its answer is dropped. What is recorded until there is an
/// answer is part of the trace that the request names.
struct PeerService<S> {
    inner: S,
    peer: Arc<Peer>,
    answer: Duration,
}

impl<S> hyper::service::Service<Request<Incoming>> for PeerService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (inner, patience) = (self.inner.clone(), self.answer);
        let open = self.peer.open_stream();
        let trace = super::trace::of(request.headers());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&self.peer));
        Box::pin(async move {
            let response = match tokio::time::timeout(
                patience,
                audit::trace::scope(trace, inner.oneshot(request)),
            )
            .await
            {
                Ok(response) => response?,
                Err(_) => Status::deadline_exceeded("the request took too long to arrive").into_http(),
            };
            Ok(response.map(|body| Counted { body, _open: open }))
        })
    }
}

/// An answer's body that counts as an open stream.
#[derive(Debug)]
struct Counted {
    body: Body,
    _open: OpenStream,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The tasks of one connection's streams. They are aborted when the connection is gone.
#[derive(Clone, Debug, Default)]
struct Streams(Arc<Mutex<JoinSet<()>>>);

impl Streams {
    /// Frees what ended streams leave behind; never resolves.
    async fn reap(&self) {
        std::future::poll_fn(|cx| {
            let mut tasks = self.lock();
            while let Poll::Ready(Some(_)) = tasks.poll_join_next(cx) {}
            Poll::Pending
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.lock().spawn(stream);
    }
}

/// Receive windows: requests are at most 64 KiB.
const STREAM_WINDOW: u32 = 65_535;
const CONNECTION_WINDOW: u32 = 131_070;
/// Octets of answers queued for one stream.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that the client reset and that have not been looked at; more is a rapid reset.
const PENDING_RESETS: usize = 20;
/// Streams that the client made us reset; more is a MadeYouReset.
const LOCAL_RESETS: usize = 64;

#[cfg(test)]
#[path = "serve_flood_tests.rs"]
mod flood_tests;
#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
