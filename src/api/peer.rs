//! The process at the other end of a connection, as every service sees it, and the switch that ends the
//! connection at once.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use mayfly_attestors::Process;
use mayfly_attestors::sys::WriterId;
use rustix::net::Shutdown;
use tokio::net::UnixStream;

use super::closer::Closer;
use super::wire::budget::Overrun;

/// Why a connection was ended by us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cut {
    /// Another process wrote on it: an inherited or passed socket.
    WriterMismatch {
        /// Whoever wrote, as the kernel says; `None` if it would not say.
        writer: Option<WriterId>,
    },
    /// The pinned process has exited, or is treated as if it had.
    Exited,
    /// More frames than a client has any use for.
    Overrun(Overrun),
    /// Preface, SETTINGS and the first request did not come in time.
    Greeting,
    /// It did not read what was written to it.
    Stalled,
    /// It had nothing to ask and did not close when told to.
    Idle,
    /// Still open when the time to drain was over.
    Drained,
    /// The process is no longer the user it connected as.
    CredentialsChanged,
    /// The administrator wanted it.
    Operator,
}

impl Cut {
    /// A stable name for logs and the audit.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriterMismatch { .. } => "writer_mismatch",
            Self::Exited => "exited",
            Self::Overrun(Overrun::Streams) => "too_many_streams",
            Self::Overrun(Overrun::Control) => "too_many_control_frames",
            Self::Overrun(Overrun::Headers) => "too_many_headers",
            Self::Greeting => "greeting_timeout",
            Self::Stalled => "write_timeout",
            Self::Idle => "idle_timeout",
            Self::Drained => "drain_timeout",
            Self::CredentialsChanged => "credentials_changed",
            Self::Operator => "operator",
        }
    }
}

/// One connection's process. Services find it as `Arc<Peer>` among the extensions of a request.
#[derive(Debug)]
pub struct Peer {
    id: u64,
    process: Arc<Process>,
    /// Weak, so that a lease that remembers its connection does not keep the descriptor.
    stream: OnceLock<Weak<UnixStream>>,
    closer: Closer,
    cut: OnceLock<Cut>,
    asked: AtomicBool,
    open_streams: AtomicU32,
    /// Counts each end of a stream, so that the idle timer sees one that came and went.
    ended_streams: AtomicU32,
}

impl Peer {
    /// A peer whose connection is not served yet.
    pub fn new(id: u64, process: Arc<Process>, closer: Closer) -> Self {
        Self {
            id,
            process,
            closer,
            stream: OnceLock::new(),
            cut: OnceLock::new(),
            asked: AtomicBool::new(false),
            open_streams: AtomicU32::new(0),
            ended_streams: AtomicU32::new(0),
        }
    }

    /// Number of the connection, never used twice by one agent.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The pinned process.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Ends the connection now, from any thread: when this returns no further byte leaves, and every later
    /// read and write fails. False if it was cut before; the first reason stays.
    pub fn cut(&self, reason: Cut) -> bool {
        let first = self.cut.set(reason).is_ok();
        self.shut();
        first
    }

    /// Why the connection was cut, if it was.
    pub fn cut_reason(&self) -> Option<Cut> {
        self.cut.get().copied()
    }

    /// Requests being answered now.
    pub fn open_streams(&self) -> u32 {
        self.open_streams.load(Ordering::Acquire)
    }

    /// Ties the peer to its socket. A cut that came before is carried out now: both sides write first and
    /// look second, so one of them sees the other.
    pub(crate) fn attach(&self, stream: &Arc<UnixStream>) {
        if self.stream.set(Arc::downgrade(stream)).is_ok() && self.cut.get().is_some() {
            self.shut();
        }
    }

    /// Fails once the connection was cut.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.cut.get() {
            None => Ok(()),
            Some(reason) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason.name())),
        }
    }

    pub(crate) fn note_first_request(&self) {
        self.asked.store(true, Ordering::Release);
    }

    pub(crate) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    pub(crate) fn ended_streams(&self) -> u32 {
        self.ended_streams.load(Ordering::Acquire)
    }

    /// Counts a request as open until the answer is dropped.
    pub(crate) fn open_stream(self: &Arc<Self>) -> OpenStream {
        self.open_streams.fetch_add(1, Ordering::AcqRel);
        ALL_STREAMS.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(self))
    }

    pub(crate) fn closer(&self) -> &Closer {
        &self.closer
    }

    fn shut(&self) {
        if let Some(stream) = self.stream.get().and_then(Weak::upgrade) {
            // Fails only when the other end has gone already.
            rustix::net::shutdown(stream.as_fd(), Shutdown::Both).ok();
            // We may have become the last owner, and whoever cuts must not wait.
            self.closer.close(stream);
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct OpenStream(Arc<Peer>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.ended_streams.fetch_add(1, Ordering::AcqRel);
        self.0.open_streams.fetch_sub(1, Ordering::AcqRel);
        ALL_STREAMS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Requests being answered now, on all gRPC sockets of the process.
pub(crate) fn all_streams() -> u64 {
    ALL_STREAMS.load(Ordering::Relaxed)
}

static ALL_STREAMS: AtomicU64 = AtomicU64::new(0);
