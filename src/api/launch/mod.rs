//! The launch socket: `launch.sock` beside the public socket, for `mayfly run` alone. It takes descriptors, which
//! the public socket refuses; so it has a thread of its own, few seats and short deadlines, and nothing that comes
//! in over it is closed where that could wait for somebody.
//!
//! A launcher connects, is pinned, hears whether it must hide, and says what it is about to become. What is checked
//! before that is recorded: [`mayfly_attestors::Launches`].

pub mod wire;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mayfly_attestors::sys::recv_with_descriptors;
use mayfly_attestors::{Features, Host, LaunchClaim, MAX_MEASURED_FILES, Process};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use self::wire::{Answer, Claim, Hello, MAX_PACKET};
use super::bind::{Access, BindError, Bound};
use super::closer::Closer;
use super::guard::is_pinned_process;
use super::seats::{ConnectionLimits, Seat, Seats};
use super::wire::budget::Rate;
use crate::clock::Clock;
use crate::workload::Workloads;

/// How long a launcher may take from first to last.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait when there is no descriptor to accept with.
const RETRY: Duration = Duration::from_millis(100);

/// The socket, listening, not served.
#[derive(Debug)]
pub struct LaunchSocket(Bound);

/// What serves it.
pub struct LaunchParts {
    /// Records launches.
    pub workloads: Workloads,
    /// To pin launchers on.
    pub host: Arc<Host>,
    /// For the rate of connections.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for LaunchParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaunchParts").finish_non_exhaustive()
    }
}

/// Stops serving when dropped.
#[derive(Debug)]
pub struct LaunchThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for LaunchThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl LaunchSocket {
    /// Creates the socket beside the public one.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(public: &Path, features: &Features) -> Result<Self, BindError> {
        Bound::bind_packets(&wire::beside(public), Access::Public, features).map(Self)
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no thread or no runtime.
    pub fn serve(self, parts: LaunchParts) -> io::Result<LaunchThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let closer = Closer::start(false)?;
        let Self(bound) = self;
        // Only its kind of packets is not a stream's: accepting and waiting are the same.
        let listener = std::os::unix::net::UnixListener::from(bound.as_fd().try_clone_to_owned()?);
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener)?
        };
        let thread = std::thread::Builder::new().name("launch".to_owned()).spawn(move || {
            let parts = Arc::new(parts);
            runtime.block_on(async {
                tokio::select! {
                    () = accept(&listener, &parts, &closer) => {}
                    _ = stopped => {}
                }
            });
            drop(bound);
            // Nobody waits for a file that is being hashed.
            runtime.shutdown_background();
        })?;
        Ok(LaunchThread { stop: Some(stop), thread: Some(thread) })
    }
}

fn limits() -> ConnectionLimits {
    let rate = Rate { per_second: 20, burst: 100 };
    ConnectionLimits { total: 256, per_uid: 8, per_cgroup: 32, reserved_for_root: 16, rate }
}

async fn accept(listener: &UnixListener, parts: &Arc<LaunchParts>, closer: &Closer) {
    let seats = Seats::new(limits(), Box::new(|| ()));
    let mut conversations = JoinSet::new();
    loop {
        while conversations.try_join_next().is_some() {}
        match listener.accept().await {
            Err(error) => {
                tracing::warn!(%error, "cannot accept launchers");
                tokio::time::sleep(RETRY).await;
            }
            Ok((socket, _)) => {
                let (parts, closer) = (Arc::clone(parts), closer.clone());
                let Some((seat, process)) = seat_and_pin(&parts, &seats, &socket) else {
                    close(&closer, socket);
                    continue;
                };
                conversations.spawn(async move {
                    let _seat = seat;
                    converse(&parts, &closer, socket, &Arc::new(process)).await;
                });
            }
        }
    }
}

/// `None`: closed without a word.
fn seat_and_pin(parts: &LaunchParts, seats: &Seats, socket: &UnixStream) -> Option<(Seat, Process)> {
    let uid = getsockopt(socket, sockopt::PeerCredentials).ok()?.uid();
    let mut seat = seats.take(uid, parts.clock.monotonic()).ok()?;
    let process = Process::of_peer(&parts.host, socket.as_fd()).ok()?;
    if let Some(cgroup) = process.cgroup_id() {
        seat.in_cgroup(cgroup).ok()?;
    }
    Some((seat, process))
}

async fn converse(parts: &LaunchParts, closer: &Closer, socket: UnixStream, process: &Arc<Process>) {
    let talk = tokio::time::timeout(DEADLINE, talk(parts, &socket, process));
    if !matches!(talk.await, Ok(Ok(()))) {
        tracing::debug!(
            pid = process.pid(),
            uid = process.uid(),
            "a launcher went away or did not speak as one"
        );
    }
    close(closer, socket);
}

/// What is queued on it may take long to close.
fn close(closer: &Closer, socket: UnixStream) {
    if let Ok(socket) = socket.into_std() {
        closer.close(OwnedFd::from(socket));
    }
}

async fn talk(parts: &LaunchParts, socket: &UnixStream, process: &Arc<Process>) -> io::Result<()> {
    let hide = parts.workloads.launches_are_hidden();
    send(socket, &Hello { launch: Hello::VERSION, hide })?;
    let answer = match receive(socket, process).await? {
        Some(claim) => match parts.workloads.record_launch(process, claim).await {
            Ok(digests) => Answer::Recorded(digests),
            Err(error) => Answer::Refused(error.to_string()),
        },
        None => Answer::Refused("that is not what a launcher says".to_owned()),
    };
    if let Answer::Refused(why) = &answer {
        parts.workloads.note_refused(process, "launch", why);
    }
    send(socket, &answer)
}

fn send(socket: &UnixStream, word: &impl serde::Serialize) -> io::Result<()> {
    let packet = serde_json::to_vec(word)?;
    // A launcher whose socket is full by one packet is none.
    rustix::net::send(socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// `None` for anything but one well-formed claim of the pinned process itself.
async fn receive(socket: &UnixStream, process: &Process) -> io::Result<Option<LaunchClaim>> {
    let mut packet = vec![0; MAX_PACKET + 1];
    let (stamped, passed) = loop {
        socket.readable().await?;
        match socket.try_io(Interest::READABLE, || recv_with_descriptors(socket, &mut packet)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => break received?,
        }
    };
    if stamped.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let theirs = is_pinned_process(&process.key(), stamped.writer.as_ref());
    let words = packet.get(..stamped.bytes).filter(|words| words.len() <= MAX_PACKET);
    let claim = words.and_then(|words| serde_json::from_slice::<Claim>(words).ok());
    let (Some(claim), true, Some(descriptors)) = (claim, theirs, passed.harmless()) else { return Ok(None) };
    let mut descriptors = descriptors.into_iter();
    let Some(program) = descriptors.next() else { return Ok(None) };
    let files: Vec<OwnedFd> = descriptors.collect();
    let fits = files.len() == claim.files && files.len() <= MAX_MEASURED_FILES;
    Ok(fits.then_some(LaunchClaim { program, path: claim.program, files }))
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::process::Command;

    use mayfly_attestors::sys::listen_options;
    use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, SocketType};

    use super::*;

    fn pair() -> (UnixStream, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        listen_options::set_pass_cred(&ours).unwrap();
        listen_options::set_pass_pidfd(&ours).unwrap();
        (UnixStream::from_std(std::os::unix::net::UnixStream::from(ours)).unwrap(), theirs)
    }

    fn say(to: &OwnedFd, words: &str, program: impl AsFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let handles = [program.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&handles)));
        rustix::net::sendmsg(to, &[IoSlice::new(words.as_bytes())], &mut control, SendFlags::empty())
            .unwrap();
    }

    fn pinned(pid: u32) -> Process {
        Process::of_pid(&Host::probe(Path::new("/proc")).unwrap(), pid).unwrap()
    }

    fn handle(path: &str) -> OwnedFd {
        rustix::fs::openat(rustix::fs::CWD, path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
            .unwrap()
    }

    const GOOD: &str = r#"{"program":"/usr/bin/true","files":0}"#;

    #[tokio::test]
    async fn only_the_pinned_process_itself_can_say_what_it_becomes() {
        let (ours, theirs) = pair();
        let own = pinned(std::process::id());
        say(&theirs, GOOD, handle("/usr/bin/true"));
        let claim = receive(&ours, &own).await.unwrap().unwrap();
        assert_eq!((claim.path.to_str(), claim.files.len()), (Some("/usr/bin/true"), 0));
        let mut other = Command::new("/bin/sleep").arg("30").spawn().unwrap();
        say(&theirs, GOOD, handle("/usr/bin/true"));
        assert!(receive(&ours, &pinned(other.id())).await.unwrap().is_none(), "we wrote, not it");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[tokio::test]
    async fn whatever_is_no_claim_is_none_and_the_end_is_an_error() {
        let (ours, theirs) = pair();
        let own = pinned(std::process::id());
        for words in [
            "{",
            "{}",
            r#"{"program":"/usr/bin/true","files":1}"#,
            r#"{"program":"/usr/bin/true","files":0,"more":1}"#,
        ] {
            say(&theirs, words, handle("/usr/bin/true"));
            assert!(receive(&ours, &own).await.unwrap().is_none(), "{words}");
        }
        // A socket could take long to close.
        say(&theirs, GOOD, &theirs);
        assert!(receive(&ours, &own).await.unwrap().is_none());
        drop(theirs);
        assert!(receive(&ours, &own).await.is_err());
    }
}
