//! TCP listeners: plain on loopback, or behind TLS. One task accepts; each connection is a task of its own and
//! ends with it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use super::caller::{Caller, SvidCaller};
use super::serve::{HttpLimits, connection, grpc_connection};
use crate::drain;

/// A bound TCP listener; nothing is accepted before [`TcpServer::serve`].
#[derive(Debug)]
pub struct TcpServer {
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    app: Router,
    limits: HttpLimits,
    /// HTTP/2 without TLS, for gRPC probes; else HTTP/1.1.
    grpc: bool,
}

impl TcpServer {
    /// Binds. Must be called within a runtime. `tls` is `None` for plain HTTP.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(
        address: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        app: Router,
        limits: HttpLimits,
    ) -> io::Result<Self> {
        let socket = std::net::TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { listener: TcpListener::from_std(socket)?, tls, app, limits, grpc: false })
    }

    /// Speaks HTTP/2 without TLS, as gRPC probes do.
    #[must_use]
    pub fn grpc(self) -> Self {
        Self { grpc: true, ..self }
    }

    /// Where it listens: the port is a real one even if 0 was asked for.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the drain starts, then lets each connection end within the grace. Answers how many had to
    /// be cut off.
    pub async fn serve(self, mut watch: drain::Watch) -> usize {
        let seats = Seats::new(self.limits);
        let mut connections = JoinSet::new();
        let mut cut_off = 0;
        loop {
            tokio::select! {
                next = self.listener.accept() => match next {
                    Ok((stream, from)) => {
                        // Over the limit it is closed at once: a queue would only make it wait for nothing.
                        let Some(seat) = Seats::take(&seats, from.ip()) else { continue };
                        let (tls, app) = (self.tls.clone(), self.app.clone());
                        if self.grpc {
                            connections.spawn(probe(stream, seat, app, self.limits, watch.clone()));
                        } else {
                            connections.spawn(one(stream, seat, tls, app, self.limits, watch.clone()));
                        }
                    }
                    // Out of descriptors, most likely: those that end give some back.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a TCP connection");
                        tokio::time::sleep(RETRY).await;
                    }
                },
                Some(done) = connections.join_next() => cut_off += usize::from(done.unwrap_or(true)),
                () = watch.stopping() => break,
            }
        }
        drop(self.listener);
        while let Some(done) = connections.join_next().await {
            cut_off += usize::from(done.unwrap_or(true));
        }
        cut_off
    }
}

async fn probe(stream: TcpStream, _seat: Seat, app: Router, limits: HttpLimits, watch: drain::Watch) -> bool {
    stream.set_nodelay(true).ok();
    let stream = Patient { inner: stream, patience: limits.write_stall, stalled: None };
    grpc_connection(stream, app, limits, watch).await
}

async fn one(
    stream: TcpStream,
    _seat: Seat,
    tls: Option<Arc<rustls::ServerConfig>>,
    app: Router,
    limits: HttpLimits,
    watch: drain::Watch,
) -> bool {
    // Small answers should not wait for each other.
    stream.set_nodelay(true).ok();
    let stream = Patient { inner: stream, patience: limits.write_stall, stalled: None };
    let Some(tls) = tls else { return connection(stream, Caller::Nobody, app, limits, watch).await };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let Ok(Ok(stream)) = tokio::time::timeout(limits.handshake, handshake).await else { return false };
    let caller = match stream.get_ref().1.peer_certificates() {
        None | Some([]) => Caller::Nobody,
        // The verifier has read it before; if it cannot be read again, nobody is served.
        Some([leaf, ..]) => match SvidCaller::of_leaf(leaf) {
            Some(svid) => Caller::Svid(Arc::new(svid)),
            None => return false,
        },
    };
    connection(stream, caller, app, limits, watch).await
}

/// Counts connections, in all and by address.
#[derive(Debug)]
struct Seats {
    limits: HttpLimits,
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

impl Seats {
    fn new(limits: HttpLimits) -> Arc<Self> {
        Arc::new(Self { limits, taken: Mutex::default() })
    }

    fn take(seats: &Arc<Self>, from: IpAddr) -> Option<Seat> {
        let mut taken = seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *taken;
        let own = by_address.get(&from).copied().unwrap_or_default();
        if *all >= seats.limits.connections || (own >= seats.limits.per_address && !from.is_loopback()) {
            return None;
        }
        *all += 1;
        by_address.insert(from, own + 1);
        Some(Seat { seats: Arc::clone(seats), from })
    }
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    from: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 = taken.0.saturating_sub(1);
        if let Some(own) = taken.1.get_mut(&self.from) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.1.remove(&self.from);
            }
        }
    }
}

/// A stream that fails when its reader takes nothing for too long.
struct Patient<S> {
    inner: S,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, data);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.judge(cx, shut)
    }
}

const RETRY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[test]
    fn one_address_cannot_take_every_seat_but_a_local_proxy_may() {
        let limits = HttpLimits { connections: 6, per_address: 2, ..HttpLimits::default() };
        let seats = Seats::new(limits);
        let (far, near): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [127, 0, 0, 1].into());
        let mut held: Vec<Seat> = (0..2).map(|_| Seats::take(&seats, far).unwrap()).collect();
        assert!(Seats::take(&seats, far).is_none());
        held.extend((0..4).map(|_| Seats::take(&seats, near).unwrap()));
        assert!(Seats::take(&seats, near).is_none(), "full");
        held.clear();
        assert!(Seats::take(&seats, far).is_some());
        assert!(seats.taken.lock().unwrap().1.is_empty() || seats.taken.lock().unwrap().0 == 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_ends_its_connection() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let mut stream = Patient { inner: ours, patience: Duration::from_secs(30), stalled: None };
        let error = stream.write_all(&[0; 17]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
