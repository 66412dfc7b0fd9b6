//! Connections that are open now, by the certificate they rest on, and their end when it is revoked.
//!
//! A revocation list stops new handshakes. A connection that was made before it would live on, in the hands of
//! whoever holds the key or the socket: so each admitted connection stands in an index by issuer key and serial
//! number, and each new [`Trust`] is held against the index.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::leaf::Serial;
use super::trust::{KeyHash, Peer, PeerError, Trust};

/// The connections of one [`super::Source`]. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<Index>>);

#[derive(Debug, Default)]
struct Index {
    next: u64,
    by_certificate: HashMap<(KeyHash, Serial), Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    shared: Arc<Shared>,
    socket: Option<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
    peer: Peer,
    cut: CancellationToken,
    why: OnceLock<PeerError>,
}

/// A connection whose peer was admitted. Dropping it takes the connection out of the index; it closes nothing.
#[must_use = "hold it as long as the connection, and watch it"]
pub struct Live {
    connections: Connections,
    number: u64,
    shared: Arc<Shared>,
}

impl Connections {
    /// Puts a verified peer's connection into the index. `trust` is asked for after the connection is in it,
    /// so that a revocation that comes in between is not missed.
    ///
    /// # Errors
    /// The peer was let go meanwhile.
    pub(super) fn admit(
        &self,
        peer: Peer,
        trust: &dyn Fn() -> Arc<Trust>,
        now: SystemTime,
    ) -> Result<Live, PeerError> {
        let shared = Arc::new(Shared { peer, cut: CancellationToken::new(), why: OnceLock::new() });
        let certificate = shared.peer.certificate();
        let mut index = self.lock();
        let number = index.next;
        index.next += 1;
        let entry = Entry { number, shared: Arc::clone(&shared), socket: None };
        index.by_certificate.entry(certificate).or_default().push(entry);
        drop(index);
        let live = Live { connections: self.clone(), number, shared };
        trust().still_trusts(&live.shared.peer, now)?;
        Ok(live)
    }

    /// Cuts every connection that `trust` does not carry any more. Returns how many.
    pub(super) fn hold_against(&self, trust: &Trust, now: SystemTime) -> usize {
        let mut cut = 0;
        // Each by itself: two with one certificate may have come by different intermediates.
        for entry in self.lock().by_certificate.values().flatten() {
            if entry.shared.cut.is_cancelled() {
                continue;
            }
            if let Err(why) = trust.still_trusts(&entry.shared.peer, now) {
                entry.cut(why);
                cut += 1;
            }
        }
        cut
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().by_certificate.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn cut(&self, why: PeerError) {
        // The first reason is the one that counts.
        self.shared.why.set(why).ok();
        // Before the socket: whoever wakes from reading it must find out why.
        self.shared.cut.cancel();
        if let Some(socket) = &self.socket {
            // Whoever else holds the socket is cut off too; one that is closed already needs nothing.
            rustix::net::shutdown(socket, rustix::net::Shutdown::Both).ok();
        }
    }
}

impl Live {
    /// Who the peer is.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// Shuts this socket down, in both directions, the moment the peer is let go: without waiting for the
    /// program to read or write, and for every process that holds a copy of the descriptor.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated.
    pub fn cut_socket(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let mut index = self.connections.lock();
        let mut entries = index.by_certificate.values_mut().flatten();
        if let Some(entry) = entries.find(|entry| entry.number == self.number) {
            entry.socket = Some(socket);
            // It may have been cut between its admission and now.
            if let Some(why) = self.shared.why.get() {
                entry.cut(why.clone());
            }
        }
        Ok(())
    }

    /// Resolves when the peer is let go; never before.
    pub async fn ended(&self) -> PeerError {
        self.shared.cut.cancelled().await;
        self.why()
    }

    /// Whether the peer was let go.
    pub fn is_ended(&self) -> bool {
        self.shared.cut.is_cancelled()
    }

    /// Ties a stream to this connection: it fails once the peer is let go, and wakes whoever waits on it.
    pub fn guard<S>(self, stream: S) -> Guarded<S> {
        let cut = Box::pin(self.shared.cut.clone().cancelled_owned());
        Guarded { stream, live: self, cut }
    }

    fn why(&self) -> PeerError {
        self.shared.why.get().cloned().unwrap_or(PeerError::Nobody)
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Live({})", self.peer().spiffe_id())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let certificate = self.shared.peer.certificate();
        let mut index = self.connections.lock();
        if let Some(entries) = index.by_certificate.get_mut(&certificate) {
            entries.retain(|entry| entry.number != self.number);
            if entries.is_empty() {
                index.by_certificate.remove(&certificate);
            }
        }
    }
}

/// A stream that ends with its peer's certificate: [`io::ErrorKind::ConnectionAborted`] from then on.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    live: Live,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Guarded<S> {
    /// Who the peer is.
    pub fn peer(&self) -> &Peer {
        self.live.peer()
    }

    /// The stream itself.
    pub fn inner(&self) -> &S {
        &self.stream
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, self.live.why())),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::testing::{Authority, Issued, List};
    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::verify::{RevocationPolicy, Role};

    struct World {
        authority: Authority,
        connections: Connections,
    }

    impl World {
        fn new() -> Self {
            Self { authority: Authority::new("example.org"), connections: Connections::default() }
        }

        fn trust(&self, revoked: &[&Serial]) -> Arc<Trust> {
            let mut trust = Trust::new();
            let domain = "example.org".parse().expect("a name");
            trust.add_authority(&domain, self.authority.der()).expect("an authority");
            trust.add_list(&self.authority.crl(&List::of(revoked, 1))).expect("a list");
            Arc::new(trust)
        }

        fn peer(&self, leaf: &Issued) -> Peer {
            let chain = [rustls::pki_types::CertificateDer::from(&leaf.der[..])];
            let policy = RevocationPolicy::strict();
            self.trust(&[]).verify(&chain, Role::Client, policy, SystemClock.wall()).expect("good")
        }

        fn admit(&self, leaf: &Issued) -> Live {
            let trust = self.trust(&[]);
            let admitted =
                self.connections.admit(self.peer(leaf), &|| Arc::clone(&trust), SystemClock.wall());
            admitted.expect("admitted")
        }

        fn revoke(&self, leaf: &Issued) -> usize {
            self.connections.hold_against(&self.trust(&[&leaf.serial]), SystemClock.wall())
        }
    }

    #[tokio::test]
    async fn a_revocation_cuts_the_certificates_connections_and_no_others() {
        let world = World::new();
        let leaf = world.authority.leaf("spiffe://example.org/a");
        let other = world.authority.leaf("spiffe://example.org/a");
        let (first, second, bystander) = (world.admit(&leaf), world.admit(&leaf), world.admit(&other));
        assert_eq!(world.connections.len(), 3);
        assert_eq!(world.revoke(&leaf), 2);
        assert!(matches!(first.ended().await, PeerError::Revoked { .. }));
        assert!(second.is_ended() && !bystander.is_ended());
        assert_eq!(world.revoke(&leaf), 0, "once is enough");
        drop((first, second, bystander));
        assert!(world.connections.is_empty());
    }

    #[tokio::test]
    async fn a_guarded_stream_wakes_its_reader_and_takes_no_more() {
        let world = World::new();
        let leaf = world.authority.leaf("spiffe://example.org/a");
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = world.admit(&leaf).guard(near);
        far.write_all(b"x").await.expect("open");
        assert_eq!(near.read_u8().await.expect("open"), b'x');
        let read = async { near.read_u8().await.expect_err("cut").kind() };
        let revoke = async { world.revoke(&leaf) };
        let (kind, cut) = tokio::join!(read, revoke);
        assert_eq!((kind, cut), (io::ErrorKind::ConnectionAborted, 1));
        let written = near.write_all(b"y").await.expect_err("cut");
        assert!(written.to_string().contains("revoked"), "{written}");
    }

    /// One key with two certificates: only who came by the one that is revoked goes.
    #[test]
    fn connections_of_one_certificate_go_by_the_path_they_came() {
        let (root, mut trust) = (Authority::new("example.org"), Trust::new());
        let [node, again] = root.twins("example.org", "node");
        let leaf = node.leaf("spiffe://example.org/a");
        trust.add_authority(&"example.org".parse().expect("a name"), root.der()).expect("an authority");
        let (trust, connections) = (Arc::new(trust), Connections::default());
        let admit = |by: &Authority| {
            let chain = [&leaf.der[..], by.der()].map(rustls::pki_types::CertificateDer::from);
            let peer = trust.verify(&chain, Role::Client, RevocationPolicy::permissive(), SystemClock.wall());
            let now = SystemClock.wall();
            connections.admit(peer.expect("good"), &|| Arc::clone(&trust), now).expect("admitted")
        };
        let (first, second) = (admit(&node), admit(&again));
        assert_eq!(first.peer().certificate(), second.peer().certificate());
        let serial = Serial::new(crate::verify::leaf::parse(again.der()).expect("parses").raw_serial());
        let mut after = Trust::new();
        after.add_authority(&"example.org".parse().expect("a name"), root.der()).expect("an authority");
        after.add_list(&root.crl(&List::of(&[&serial], 1))).expect("a list");
        assert_eq!(connections.hold_against(&after, SystemClock.wall()), 1);
        assert!(!first.is_ended() && second.is_ended());
    }

    /// The key was revoked between the handshake and the admission.
    #[test]
    fn a_revocation_before_the_admission_is_not_missed() {
        let world = World::new();
        let leaf = world.authority.leaf("spiffe://example.org/a");
        let peer = world.peer(&leaf);
        let trust = world.trust(&[&leaf.serial]);
        let refused = world.connections.admit(peer, &|| Arc::clone(&trust), SystemClock.wall());
        assert!(matches!(refused, Err(PeerError::Revoked { .. })));
        assert!(world.connections.is_empty(), "what was refused is not in the index");
    }

    #[test]
    fn the_socket_itself_is_shut_down_whoever_holds_it() {
        use std::io::Read as _;
        let world = World::new();
        let leaf = world.authority.leaf("spiffe://example.org/a");
        let (near, mut far) = std::os::unix::net::UnixStream::pair().expect("pair");
        let live = world.admit(&leaf);
        live.cut_socket(&near).expect("dup");
        assert_eq!(world.revoke(&leaf), 1);
        assert_eq!(far.read(&mut [0; 1]).expect("end of file"), 0);
        assert!(live.is_ended(), "whoever wakes from the socket finds the reason");
        // One that is handed over only after the cut is shut down at once.
        let (late, mut far) = std::os::unix::net::UnixStream::pair().expect("pair");
        live.cut_socket(&late).expect("dup");
        assert_eq!(far.read(&mut [0; 1]).expect("end of file"), 0);
    }
}
