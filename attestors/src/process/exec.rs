//! Notice of every exec on the machine, by the kernel's process connector.
//!
//! A pidfd is silent when its process starts another program, so this is the only early word of it. The socket may
//! say nothing at all although subscribing worked (foreign pid namespace), so an exec of our own must come through
//! it before the mode is believed. Lost messages, a failed socket and a socket that had to be opened anew are one
//! notice, [`ExecNotice::Lost`]: whoever gets it must read every process again. While the socket cannot be opened
//! the notice is repeated each second.
//!
//! Needs the machine's first pid namespace and its network namespace; no privilege since Linux 6.6, CAP_NET_ADMIN
//! before.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::host::Host;
use crate::{failpoint, ticks};

/// Watches for exec; its thread ends when this is dropped.
#[derive(Debug)]
pub struct ExecWatch {
    mode: ExecMode,
    stop: Option<(Arc<OwnedFd>, JoinHandle<()>)>,
}

/// Whether there is early word of exec.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ExecMode {
    /// The process connector works: it showed us an exec of our own.
    ProcConnector,
    /// It does not: programs are only re-read before each issue and push.
    Unavailable {
        /// One plain clause.
        why: String,
    },
}

/// What the watch saw. Delivered on the watch's own thread.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExecNotice {
    /// Some thread of the process with this number started a program; by now it has the leader's number.
    Exec {
        /// Number of the process in the first pid namespace.
        pid: u32,
    },
    /// Notices were lost: every watched process may have started another program.
    Lost,
}

type Sink = Box<dyn Fn(ExecNotice) + Send>;

impl ExecWatch {
    /// Subscribes, and tests that an exec of our own is seen. Takes some milliseconds, at worst a fifth of a second.
    pub fn start(host: &Arc<Host>, sink: Sink) -> Self {
        match Self::try_start(host, sink) {
            Ok((wake, thread)) => Self { mode: ExecMode::ProcConnector, stop: Some((wake, thread)) },
            Err(why) => Self { mode: ExecMode::Unavailable { why }, stop: None },
        }
    }

    /// What the self-test found.
    pub fn mode(&self) -> &ExecMode {
        &self.mode
    }

    fn try_start(host: &Host, sink: Sink) -> Result<(Arc<OwnedFd>, JoinHandle<()>), String> {
        if !host.features().host_pid_namespace {
            return Err(
                "the process connector is silent outside the machine's first pid namespace".to_owned()
            );
        }
        let socket = Connector::open(buffer()).map_err(|e| format!("the process connector refuses: {e}"))?;
        self_test(&socket)?;
        let started = || -> io::Result<_> {
            let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            let stop = Arc::clone(&wake);
            let thread = std::thread::Builder::new().name("mayfly-exec".to_owned());
            let thread = thread.spawn(move || watch(socket, &stop, &sink))?;
            Ok((wake, thread))
        };
        started().map_err(|e| format!("its thread cannot start: {e}"))
    }
}

impl Drop for ExecWatch {
    fn drop(&mut self) {
        if let Some((wake, thread)) = self.stop.take()
            && rustix::io::write(&wake, &1_u64.to_ne_bytes()).is_ok()
            && thread.thread().id() != std::thread::current().id()
        {
            drop(thread.join());
        }
    }
}

/// A subscribed socket.
#[derive(Debug)]
struct Connector {
    socket: OwnedFd,
}

impl Connector {
    fn open(buffer: usize) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = (AddressFamily::NETLINK, SocketType::DGRAM);
        let socket = rustix::net::socket_with(kind.0, kind.1, flags, Some(netlink::CONNECTOR))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, CN_IDX_PROC))?;
        // Beyond the usual limit only with CAP_NET_ADMIN; without it, what the limit allows.
        if sockopt::set_socket_recv_buffer_size_force(&socket, buffer).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, buffer)?;
        }
        rustix::net::send(&socket, &subscription(), SendFlags::empty())?;
        Ok(Self { socket })
    }

    /// The next notice already in the socket; `None` when there is none.
    fn next(&self) -> io::Result<Option<ExecNotice>> {
        let mut datagram = [0_u8; 256];
        loop {
            match rustix::net::recvfrom(&self.socket, &mut datagram, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => return Ok(Some(ExecNotice::Lost)),
                Err(error) => return Err(error.into()),
                Ok((length, _, from)) => {
                    let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
                    // Only the kernel has port 0: anything else is a process talking to us.
                    if from.is_some_and(|from| from.pid() == 0)
                        && let Some(pid) = datagram.get(..length).and_then(exec_of)
                    {
                        return Ok(Some(ExecNotice::Exec { pid }));
                    }
                }
            }
        }
    }
}

/// Runs until `stop` is readable.
fn watch(mut socket: Connector, stop: &OwnedFd, sink: &Sink) {
    loop {
        if let Err(error) = pump(&socket, stop, sink) {
            tracing::warn!(%error, "exec watch failed, subscribing again");
            sink(ExecNotice::Lost);
            let Some(again) = reopen(stop, sink) else { return };
            socket = again;
            // What ran between the two sockets was seen by neither.
            sink(ExecNotice::Lost);
        } else {
            return;
        }
    }
}

/// Hands on notices until `stop` is readable (`Ok`) or the socket fails.
fn pump(socket: &Connector, stop: &OwnedFd, sink: &Sink) -> io::Result<()> {
    loop {
        while let Some(notice) = socket.next()? {
            sink(notice);
        }
        if wait(Some(socket), stop, None)? {
            return Ok(());
        }
    }
}

fn reopen(stop: &OwnedFd, sink: &Sink) -> Option<Connector> {
    loop {
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        if wait(None, stop, Some(&second)).unwrap_or(false) {
            return None;
        }
        if let Ok(socket) = Connector::open(buffer()) {
            return Some(socket);
        }
        sink(ExecNotice::Lost);
    }
}

/// Waits for the socket, the stop or the end of time; true when it is the stop.
fn wait(socket: Option<&Connector>, stop: &OwnedFd, time: Option<&Timespec>) -> io::Result<bool> {
    let mut polled = vec![PollFd::new(stop, PollFlags::IN)];
    polled.extend(socket.map(|connector| PollFd::new(&connector.socket, PollFlags::IN)));
    match rustix::event::poll(&mut polled, time) {
        Ok(_) | Err(Errno::INTR) => Ok(polled.first().is_some_and(|stop| !stop.revents().is_empty())),
        Err(error) => Err(error.into()),
    }
}

/// Starts ourselves with `--version` and wants to see it. `spawn` returns after the exec, so the event is due.
fn self_test(socket: &Connector) -> Result<(), String> {
    let quiet = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    };
    let mut child = quiet(Command::new("/proc/self/exe").arg("--version").env_clear())
        .map_err(|e| format!("the self-test cannot start a process: {e}"))?;
    let seen = saw_exec(socket, child.id(), ticks::now() + Duration::from_millis(200));
    child.kill().ok();
    child.wait().map_err(|e| format!("the self-test lost its process: {e}"))?;
    match seen {
        Ok(true) => Ok(()),
        Ok(false) => Err("the process connector did not show an exec of our own".to_owned()),
        Err(error) => Err(format!("the process connector failed: {error}")),
    }
}

fn saw_exec(socket: &Connector, pid: u32, until: Instant) -> io::Result<bool> {
    loop {
        while let Some(notice) = socket.next()? {
            if notice == (ExecNotice::Exec { pid }) {
                return Ok(true);
            }
        }
        let left = until.saturating_duration_since(ticks::now());
        if left.is_zero() {
            return Ok(false);
        }
        let mut polled = [PollFd::from_borrowed_fd(socket.socket.as_fd(), PollFlags::IN)];
        rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref())?;
    }
}

/// nlmsghdr, cn_msg and proc_input: listen, for exec only. Kernels before 6.6 know no filter and ignore a message
/// of this length, which the self-test then finds out.
fn subscription() -> Vec<u8> {
    let mut out = Vec::with_capacity(44);
    for word in
        [44_u32, u32::from(NLMSG_DONE), 0, 0, CN_IDX_PROC, CN_VAL_PROC, 0, 0, 8, MCAST_LISTEN, EVENT_EXEC]
    {
        out.extend(word.to_ne_bytes());
    }
    out
}

/// The process number of an exec event; `None` for any other message.
fn exec_of(datagram: &[u8]) -> Option<u32> {
    let word = |at: usize| datagram.get(at..)?.first_chunk().map(|four| u32::from_ne_bytes(*four));
    // nlmsghdr is 16 bytes, cn_msg 20; then what, cpu, timestamp, and the exec's thread and process numbers.
    let is_exec = (word(16)?, word(20)?, word(36)?) == (CN_IDX_PROC, CN_VAL_PROC, EVENT_EXEC);
    word(56).filter(|_| is_exec)
}

/// Room for a storm of some thousand programs; little when a test wants to see it overrun.
fn buffer() -> usize {
    if failpoint::fails("exec.small_buffer") { 64 << 10 } else { 8 << 20 }
}

const NLMSG_DONE: u16 = 3;
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const MCAST_LISTEN: u32 = 1;
const EVENT_EXEC: u32 = 2;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use proptest::prelude::*;

    use super::*;
    use crate::testing::host;

    fn started() -> (ExecWatch, Receiver<ExecNotice>) {
        let (sender, receiver) = channel();
        let watch =
            ExecWatch::start(&host(), Box::new(move |notice| sender.send(notice).unwrap_or_default()));
        (watch, receiver)
    }

    #[test]
    fn the_self_test_passes_here_and_an_exec_is_told() {
        let (watch, notices) = started();
        assert_eq!(*watch.mode(), ExecMode::ProcConnector);
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let mine = ExecNotice::Exec { pid: child.id() };
        assert!(notices.iter().any(|notice| notice == mine));
        child.wait().unwrap();
    }

    #[test]
    fn an_exec_by_another_thread_is_told_with_the_process_number() {
        let (_watch, notices) = started();
        let code = "import threading,os,time\nthreading.Thread(target=lambda:os.execv('/bin/sleep',['sleep','30'])).start()\ntime.sleep(30)";
        let mut child = Command::new("/usr/bin/python3").args(["-c", code]).spawn().unwrap();
        let mine = ExecNotice::Exec { pid: child.id() };
        let exe = format!("/proc/{}/exe", child.id());
        while !std::fs::read_link(&exe).is_ok_and(|exe| exe.ends_with("sleep")) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(notices.try_iter().filter(|notice| *notice == mine).count() >= 2);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_overrun_buffer_is_told_as_lost() {
        let socket = Connector::open(1).unwrap();
        let lost = |socket: &Connector| {
            std::iter::from_fn(|| socket.next().unwrap()).any(|notice| notice == ExecNotice::Lost)
        };
        for _ in 0..400 {
            Command::new("/bin/true").status().unwrap();
        }
        assert!(lost(&socket));
    }

    #[test]
    fn a_failed_socket_is_told_as_lost_and_opened_again() {
        let (sender, notices) = channel();
        let sink: Sink = Box::new(move |notice| sender.send(notice).unwrap_or_default());
        // Reading an eventfd as a socket fails at once.
        let broken = Connector { socket: eventfd(0, EventfdFlags::CLOEXEC).unwrap() };
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let theirs = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watch(broken, &theirs, &sink));
        assert_eq!(notices.recv().unwrap(), ExecNotice::Lost);
        assert_eq!(notices.recv().unwrap(), ExecNotice::Lost);
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let mine = ExecNotice::Exec { pid: child.id() };
        assert!(notices.iter().any(|notice| notice == mine));
        child.wait().unwrap();
        rustix::io::write(&stop, &1_u64.to_ne_bytes()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn other_events_are_no_exec() {
        let mut datagram = vec![0; 76];
        for (at, value) in [(16, 1_u32), (20, 1), (36, 2), (52, 78), (56, 77)] {
            datagram[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        assert_eq!(exec_of(&datagram), Some(77));
        datagram[36] = 1;
        assert_eq!(exec_of(&datagram), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            exec_of(&bytes);
        }
    }
}
