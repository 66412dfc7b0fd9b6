//! The I/O of one connection: all that the stock HTTP/2 stack does not do. Every read says who wrote it and
//! fails unless that is the pinned process; descriptors that come along are dropped; what is read passes the
//! wire scanner and its budgets; writes that do not drain in time end the connection; a cut ends it at once.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mayfly_attestors::ProcessKey;
use mayfly_attestors::sys::{WriterId, stamped_recv};
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep};

use super::closer::Closer;
use super::peer::{Cut, Peer};
use super::seats::Seat;
use super::wire::budget::{Budget, WireLimits};
use super::wire::frame::Scanner;

/// Limits on one connection's octets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuardLimits {
    /// Frames.
    pub wire: WireLimits,
    /// How long a write may wait for room in the socket.
    pub write_stall: Duration,
}

impl Default for GuardLimits {
    fn default() -> Self {
        Self { wire: WireLimits::default(), write_stall: Duration::from_secs(30) }
    }
}

/// A connection as the accept thread hands it over. Not polled yet, so no runtime is needed to make one.
#[derive(Debug)]
pub struct Accepted {
    parked: Parked,
    peer: Arc<Peer>,
    seat: Seat,
}

impl Accepted {
    /// Of a non-blocking socket.
    pub(crate) fn new(socket: OwnedFd, peer: Arc<Peer>, seat: Seat) -> Self {
        Self { parked: Parked(Some(socket), peer.closer().clone()), peer, seat }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Registers the socket with the current runtime.
    ///
    /// # Errors
    /// When the runtime cannot take it; the connection is closed then.
    pub fn guard(self, limits: &GuardLimits) -> io::Result<Guarded> {
        let wire = Wire {
            scanner: Scanner::default(),
            budget: Budget::new(&limits.wire, Instant::now().into_std()),
        };
        self.watched(Some(Box::new(wire)), limits.write_stall)
    }

    /// As [`Self::guard`], for a protocol whose server counts for itself: octets are passed on as they come.
    ///
    /// # Errors
    /// As [`Self::guard`].
    pub fn guard_octets(self, write_stall: Duration) -> io::Result<Guarded> {
        self.watched(None, write_stall)
    }

    fn watched(mut self, wire: Option<Box<Wire>>, write_stall: Duration) -> io::Result<Guarded> {
        let socket = self.parked.0.take().ok_or(io::ErrorKind::NotConnected)?;
        let stream = Arc::new(UnixStream::from_std(socket.into())?);
        self.peer.attach(&stream);
        Ok(Guarded {
            stream: Some(stream),
            key: self.peer.process().key(),
            peer: self.peer,
            wire,
            ready: Vec::new(),
            taken: 0,
            write_stall,
            stalled: None,
            _seat: self.seat,
        })
    }
}

/// A socket nobody reads yet; its client may already have queued something that is slow to close.
#[derive(Debug)]
struct Parked(Option<OwnedFd>, Closer);

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(socket) = self.0.take() {
            self.1.close(socket);
        }
    }
}

/// What looks at the octets of HTTP/2.
#[derive(Debug)]
struct Wire {
    scanner: Scanner,
    budget: Budget,
}

/// One guarded connection.
#[derive(Debug)]
pub struct Guarded {
    /// Taken only by `drop`.
    stream: Option<Arc<UnixStream>>,
    peer: Arc<Peer>,
    key: ProcessKey,
    /// `None` when the octets are not HTTP/2.
    wire: Option<Box<Wire>>,
    /// Scanned octets that did not fit the reader's buffer, from `taken` on. Empty and without memory at rest.
    ready: Vec<u8>,
    taken: usize,
    write_stall: Duration,
    /// Runs while the socket has no room.
    stalled: Option<Pin<Box<Sleep>>>,
    _seat: Seat,
}

impl Guarded {
    /// Who is at the other end.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    fn stream(&self) -> io::Result<&UnixStream> {
        self.stream.as_deref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn cut(&self, reason: Cut) -> io::Error {
        self.peer.cut(reason);
        self.peer.check().err().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into())
    }

    /// Reads once from the socket and scans. Answers false at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut chunk = [0_u8; CHUNK];
        let got = loop {
            let stream = self.stream()?;
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_io(Interest::READABLE, || stamped_recv(stream, &mut chunk)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other?,
            }
        };
        if got.bytes == 0 {
            return Poll::Ready(Ok(false));
        }
        if !is_pinned_process(&self.key, got.writer.as_ref()) {
            return Poll::Ready(Err(self.cut(Cut::WriterMismatch { writer: got.writer })));
        }
        let octets = chunk.get(..got.bytes).unwrap_or_default();
        let Some(wire) = &mut self.wire else {
            self.ready.extend_from_slice(octets);
            return Poll::Ready(Ok(true));
        };
        wire.scanner.push(octets, &mut self.ready);
        let tally = wire.scanner.tally();
        if let Err(overrun) = wire.budget.charge(&tally, Instant::now().into_std()) {
            return Poll::Ready(Err(self.cut(Cut::Overrun(overrun))));
        }
        if tally.greeted && tally.streams > 0 {
            self.peer.note_first_request();
        }
        Poll::Ready(Ok(true))
    }

    fn hand_out(&mut self, buffer: &mut ReadBuf<'_>) {
        let rest = self.ready.get(self.taken..).unwrap_or_default();
        let now = rest.get(..buffer.remaining()).unwrap_or(rest);
        buffer.put_slice(now);
        self.taken += now.len();
        if self.taken >= self.ready.len() {
            (self.ready, self.taken) = (Vec::new(), 0);
        }
    }

    /// Writes with `write` when there is room; ends the connection when there was none for too long.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.peer.check()?;
        loop {
            let stream = self.stream()?;
            if stream.poll_write_ready(cx)?.is_pending() {
                break;
            }
            match write(stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.stalled = None;
                    return Poll::Ready(done);
                }
            }
        }
        let patience = self.write_stall;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(self.cut(Cut::Stalled)))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.peer.check()?;
        // A read may yield nothing to hand out: the scanner holds back unfinished header blocks.
        while self.ready.is_empty() {
            if !ready!(self.poll_fill(cx))? {
                return Poll::Ready(self.peer.check());
            }
        }
        self.hand_out(buffer);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write(data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(self.stream()?, Shutdown::Write).map_err(io::Error::from))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.peer.closer().close(stream);
        }
    }
}

/// The inode is exact; without it (before Linux 6.9, or of a writer that is gone) the number has to do. Root
/// can forge both, so a match grants nothing; a missing stamp is a mismatch.
pub(super) fn is_pinned_process(pinned: &ProcessKey, writer: Option<&WriterId>) -> bool {
    writer.is_some_and(|writer| match (pinned.pidfs_inode, writer.pidfs_inode) {
        (Some(pinned), Some(writer)) => pinned == writer,
        _ => pinned.pid == writer.pid,
    })
}

/// Octets read at once; requests are small, and this is on the stack.
const CHUNK: usize = 8 * 1024;

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
