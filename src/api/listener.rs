//! The accept thread of one socket. It does little and never waits for anybody: count, pin, hand over. A
//! flood costs it microseconds a connection; connections over the quota are closed before they are pinned (where
//! containers are told apart, right after: which one it is takes the process); nobody is ever served unpinned.
//!
//! When descriptors run out it stops accepting, gives its spare ones to the rest of the process, raises a
//! concern and looks again ten times a second, or when a connection ends. Callers meanwhile wait in the
//! kernel's queue; connections already open live on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use mayfly_attestors::origin::ContainerId;
use mayfly_attestors::{Host, Process};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::sync::mpsc;

use super::bind::set_options;
pub use super::bind::{Access, BindError, Bound, FileId};
use super::closer::Closer;
pub use super::guard::Accepted;
use super::limits::Payer;
use super::peer::Peer;
pub use super::refusals::{Refusal, Refusals, Refused};
pub use super::seats::{ConnectionLimits, Full};
use super::seats::{Seat, Seats};
use super::spares::Spares;
use crate::clock::Clock;
use crate::ready::Readiness;

/// What the accept thread needs from the rest of the agent.
pub struct AcceptSettings {
    /// Names the thread and the concern, for instance `public`.
    pub name: &'static str,
    /// How many connections.
    pub limits: ConnectionLimits,
    /// Where containers are told apart: in which one a process is. Runs on the accept thread and must not block.
    pub container_of: Option<ContainerOf>,
    /// For the rate of connections.
    pub clock: Arc<dyn Clock>,
    /// Where running out of descriptors is reported.
    pub readiness: Readiness,
    /// Called on the accept thread for each refused connection: up to 100,000 a second in a flood, so it must
    /// not block and should keep the first of each kind.
    pub on_refused: Box<dyn Fn(Refused) + Send>,
}

/// In which container a process is.
pub type ContainerOf = Box<dyn Fn(&Process) -> Option<ContainerId> + Send>;

impl std::fmt::Debug for AcceptSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcceptSettings").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bound {
    /// Starts accepting. Connections come out of the receiver; dropping it closes whatever still comes.
    ///
    /// # Errors
    /// When threads, the wake-up or the spare descriptors cannot be had.
    pub fn accept(
        self,
        host: Arc<Host>,
        settings: AcceptSettings,
    ) -> io::Result<(AcceptThread, mpsc::Receiver<Accepted>)> {
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let paused = Arc::new(AtomicBool::new(false));
        let (on_wake, on_paused) = (Arc::clone(&wake), Arc::clone(&paused));
        let on_free = move || {
            if on_paused.load(Ordering::Acquire) {
                ring(&on_wake);
            }
        };
        let seats = Seats::new(settings.limits, Box::new(on_free));
        // Never fuller than the connections that are allowed, so it need not be waited for.
        let (sender, receiver) = mpsc::channel(settings.limits.total.max(1));
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            refusals: Refusals::default(),
            seats,
            replacement: Mutex::default(),
        });
        let spares = Spares::new(if self.is_rights_off() { SPARES } else { SPARES_WITH_RIGHTS });
        let mut accepting = Accepting {
            closer: Closer::start(self.is_rights_off())?,
            bound: self,
            host,
            wake: Arc::clone(&wake),
            paused,
            settings,
            sender,
            shared: Arc::clone(&shared),
            spares: spares?,
            held_up: false,
        };
        let thread = std::thread::Builder::new()
            .name(format!("accept-{}", accepting.settings.name))
            .spawn(move || accepting.run())?;
        Ok((AcceptThread { thread: Some(thread), wake, shared }, receiver))
    }
}

/// Stops accepting when dropped, and removes the socket's file.
#[derive(Debug)]
pub struct AcceptThread {
    thread: Option<JoinHandle<()>>,
    wake: Arc<OwnedFd>,
    shared: Arc<Shared>,
}

impl AcceptThread {
    /// Accepts from another socket from now on.
    pub fn replacer(&self) -> Replacer {
        Replacer { wake: Arc::clone(&self.wake), shared: Arc::clone(&self.shared) }
    }

    /// To look at its counts from elsewhere.
    pub fn door(&self, name: &'static str) -> Door {
        Door { name, shared: Arc::clone(&self.shared) }
    }

    /// Connections refused so far.
    pub fn refusals(&self) -> &Refusals {
        &self.shared.refusals
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.shared.seats.taken()
    }
}

impl Drop for AcceptThread {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        ring(&self.wake);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Gives an accept thread another socket.
#[derive(Clone, Debug)]
pub struct Replacer {
    wake: Arc<OwnedFd>,
    shared: Arc<Shared>,
}

impl Replacer {
    /// The old socket is closed; connections made through it live on.
    pub fn replace(&self, bound: Bound) {
        *self.shared.replacement.lock().unwrap_or_else(PoisonError::into_inner) = Some(bound);
        ring(&self.wake);
    }
}

/// Counts of one socket.
#[derive(Clone, Debug)]
pub struct Door {
    /// Which socket.
    pub name: &'static str,
    shared: Arc<Shared>,
}

impl Door {
    /// Connections refused so far.
    pub fn refusals(&self) -> &Refusals {
        &self.shared.refusals
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.shared.seats.taken()
    }
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    refusals: Refusals,
    seats: Seats,
    /// Takes the place of the socket at the next wake-up.
    replacement: Mutex<Option<Bound>>,
}

struct Accepting {
    bound: Bound,
    host: Arc<Host>,
    closer: Closer,
    wake: Arc<OwnedFd>,
    paused: Arc<AtomicBool>,
    settings: AcceptSettings,
    sender: mpsc::Sender<Accepted>,
    shared: Arc<Shared>,
    spares: Spares,
    /// A concern is raised.
    held_up: bool,
}

/// What became of a connection.
enum Fate {
    Served,
    Refused,
    /// Refused because of us, not of it.
    OutOfDescriptors,
}

impl Accepting {
    fn run(&mut self) {
        // Ahead of those who flood it, where we may; without the right to, all the same.
        rustix::process::setpriority_process(None, PRIORITY).ok();
        while !self.shared.stop.load(Ordering::Acquire) {
            let replacement = self.shared.replacement.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(bound) = replacement {
                self.bound = bound;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let trouble = match rustix::net::accept_with(self.bound.as_fd(), flags) {
                Ok(socket) => match self.admit(socket) {
                    Fate::Served => {
                        self.recovered();
                        continue;
                    }
                    Fate::Refused => continue,
                    Fate::OutOfDescriptors => "no descriptor is left to pin a caller with".to_owned(),
                },
                // The kernel takes a descriptor before it looks at the queue: there are some.
                Err(Errno::AGAIN) => {
                    self.recovered();
                    self.wait(None);
                    continue;
                }
                // The caller gave up while it waited, or a signal came: just go on.
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => format!("cannot accept: {errno}"),
            };
            self.settings.readiness.raise(self.settings.name, trouble);
            self.held_up = true;
            self.pause();
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.held_up) {
            self.settings.readiness.clear(self.settings.name);
        }
    }

    fn admit(&self, socket: OwnedFd) -> Fate {
        // Pid and uid here are for counting and for people; who it is comes from the pidfd alone.
        let (uid, pid) = match getsockopt(&socket, sockopt::PeerCredentials) {
            Ok(peer) => (Some(peer.uid()), u32::try_from(peer.pid()).ok()),
            Err(_) => (None, None),
        };
        let (fate, reason, socket) = match self.seat_and_pin(&socket, uid) {
            Ok((seat, peer)) => {
                let accepted = Accepted::new(socket, Arc::new(peer), seat);
                match self.sender.try_send(accepted) {
                    Ok(()) => return Fate::Served,
                    Err(_closed) => (Fate::Refused, Refusal::Stopping, None),
                }
            }
            Err(Refusal::Descriptors) => (Fate::OutOfDescriptors, Refusal::Descriptors, Some(socket)),
            Err(reason) => (Fate::Refused, reason, Some(socket)),
        };
        if let Some(socket) = socket {
            self.closer.close(socket);
        }
        self.shared.refusals.count(reason);
        (self.settings.on_refused)(Refused { reason, uid, pid });
        fate
    }

    fn seat_and_pin(&self, socket: &OwnedFd, uid: Option<u32>) -> Result<(Seat, Peer), Refusal> {
        let uid = uid.ok_or(Refusal::Exited)?;
        let mut seat = self.shared.seats.take(uid, self.settings.clock.monotonic())?;
        let container_of = self.settings.container_of.as_ref();
        if container_of.is_none() {
            // Known before it is pinned.
            seat.of(uid.into())?;
        }
        if self.bound.is_passed() {
            set_options(socket.as_fd(), self.host.features()).or(Err(Refusal::Unsupported))?;
        }
        let process = Process::of_peer(&self.host, socket.as_fd())?;
        if let Some(container_of) = container_of {
            seat.of(Payer { uid, container: container_of(&process) })?;
        }
        if let Some(cgroup) = process.cgroup_id() {
            seat.in_cgroup(cgroup)?;
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok((seat, Peer::new(id, Arc::new(process), self.closer.clone())))
    }

    /// Lets the rest of the process have the spare descriptors until they can be had back.
    fn pause(&mut self) {
        self.paused.store(true, Ordering::Release);
        self.spares.release();
        loop {
            self.wait(Some(RETRY));
            if self.shared.stop.load(Ordering::Acquire) || self.spares.refill().is_ok() {
                break;
            }
        }
        self.paused.store(false, Ordering::Release);
    }

    /// Waits for a wake-up, and for a caller unless there is a time limit.
    fn wait(&self, limit: Option<Timespec>) {
        let mut polled = [
            PollFd::new(&*self.wake, PollFlags::IN),
            PollFd::from_borrowed_fd(self.bound.as_fd(), PollFlags::IN),
        ];
        let polled = if limit.is_some() { polled.get_mut(..1) } else { polled.get_mut(..) };
        // An error (a signal) only means looking again sooner.
        rustix::event::poll(polled.unwrap_or_default(), limit.as_ref()).ok();
        rustix::io::read(&*self.wake, &mut [0; 8]).ok();
    }
}

fn ring(wake: &OwnedFd) {
    rustix::io::write(wake, &1_u64.to_ne_bytes()).ok();
}

/// Across all sockets, so that a number names one connection of the agent.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
/// Enough for a CRL, a ledger and an audit file to be written, and an attestation to end.
const SPARES: usize = 16;
/// Where descriptors can be passed to us, one read may bring 253.
const SPARES_WITH_RIGHTS: usize = 256;
const PRIORITY: i32 = -10;
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
