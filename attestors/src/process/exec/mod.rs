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

mod connector;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::host::Host;
use connector::{Connector, buffer, self_test};

/// Watches for exec; its thread ends when this is dropped.
#[derive(Debug)]
pub struct ExecWatch {
    mode: ExecMode,
    running: Option<(Arc<Hub>, JoinHandle<()>)>,
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
            Ok(running) => Self { mode: ExecMode::ProcConnector, running: Some(running) },
            Err(why) => Self { mode: ExecMode::Unavailable { why }, running: None },
        }
    }

    /// What the self-test found.
    pub fn mode(&self) -> &ExecMode {
        &self.mode
    }

    /// Counts the execs of single processes; `None` where the kernel gives no word of them.
    pub fn counter(&self) -> Option<ExecCounter> {
        self.running.as_ref().map(|(hub, _)| ExecCounter(Arc::clone(hub)))
    }

    fn try_start(host: &Host, sink: Sink) -> Result<(Arc<Hub>, JoinHandle<()>), String> {
        if !host.features().host_pid_namespace {
            return Err(
                "the process connector is silent outside the machine's first pid namespace".to_owned()
            );
        }
        let socket = Connector::open(buffer()).map_err(|e| format!("the process connector refuses: {e}"))?;
        self_test(&socket)?;
        let started = || -> io::Result<_> {
            let hub = Arc::new(Hub::new(socket)?);
            let runs = Arc::clone(&hub);
            let thread = std::thread::Builder::new().name("mayfly-exec".to_owned());
            let thread = thread.spawn(move || watch(&runs, &sink))?;
            Ok((hub, thread))
        };
        started().map_err(|e| format!("its thread cannot start: {e}"))
    }
}

impl Drop for ExecWatch {
    fn drop(&mut self) {
        if let Some((hub, thread)) = self.running.take() {
            hub.state().stop = true;
            if hub.ring() && thread.thread().id() != std::thread::current().id() {
                drop(thread.join());
            }
        }
    }
}

/// Counts execs of processes that it was told of, without missing one: whoever asks first reads what the kernel has
/// queued, and the kernel queues the word before the new program runs its first instruction.
#[derive(Clone, Debug)]
pub struct ExecCounter(Arc<Hub>);

/// Execs of one process number since it was asked for. Dropping it ends the count.
#[derive(Debug)]
pub(crate) struct Counted {
    hub: Arc<Hub>,
    ticket: u64,
}

impl ExecCounter {
    /// From now on.
    pub(crate) fn of(&self, pid: u32) -> Counted {
        // What is in the socket now was before.
        self.0.read();
        let mut state = self.0.state();
        state.tickets += 1;
        let ticket = state.tickets;
        state.counts.insert(ticket, Count { pid, execs: Some(0) });
        Counted { hub: Arc::clone(&self.0), ticket }
    }
}

impl Counted {
    /// How many so far; `None` when notices were lost.
    pub(crate) fn execs(&self) -> Option<u32> {
        self.hub.read();
        self.hub.state().counts.get(&self.ticket).and_then(|count| count.execs)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.hub.state().counts.remove(&self.ticket);
    }
}

/// The one reader of the socket, whichever thread reads. Notices are handed on by the watch's thread alone, in the
/// order in which they came.
#[derive(Debug)]
struct Hub {
    wake: OwnedFd,
    state: Mutex<HubState>,
}

#[derive(Debug)]
struct HubState {
    /// `None` while the watch is down: then nothing that is counted is known any more.
    socket: Option<Arc<Connector>>,
    queue: VecDeque<ExecNotice>,
    counts: HashMap<u64, Count>,
    tickets: u64,
    stop: bool,
}

#[derive(Debug)]
struct Count {
    pid: u32,
    execs: Option<u32>,
}

impl Hub {
    fn new(socket: Connector) -> io::Result<Self> {
        let state = HubState {
            socket: Some(Arc::new(socket)),
            queue: VecDeque::new(),
            counts: HashMap::new(),
            tickets: 0,
            stop: false,
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { wake, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, HubState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread; false when even that fails.
    fn ring(&self) -> bool {
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).is_ok()
    }

    /// Reads for somebody who counts; the thread is woken to hand on what came.
    fn read(&self) {
        let mut state = self.state();
        if state.drain().is_err() {
            state.lose();
        }
        if !state.queue.is_empty() {
            self.ring();
        }
    }
}

impl HubState {
    /// Takes in all that is in the socket.
    fn drain(&mut self) -> io::Result<()> {
        let Some(socket) = self.socket.clone() else {
            self.forget_counts();
            return Ok(());
        };
        while let Some(notice) = socket.next()? {
            match notice {
                ExecNotice::Exec { pid } => {
                    for count in self.counts.values_mut().filter(|count| count.pid == pid) {
                        count.execs = count.execs.map(|execs| execs.saturating_add(1));
                    }
                }
                ExecNotice::Lost => self.forget_counts(),
            }
            self.queue.push_back(notice);
        }
        Ok(())
    }

    /// The socket is of no use any more.
    fn lose(&mut self) {
        self.socket = None;
        self.forget_counts();
    }

    fn forget_counts(&mut self) {
        self.counts.values_mut().for_each(|count| count.execs = None);
    }
}

/// Runs until it is told to stop.
fn watch(hub: &Hub, sink: &Sink) {
    loop {
        let Err(error) = pump(hub, sink) else { return };
        tracing::warn!(%error, "exec watch failed, subscribing again");
        hub.state().lose();
        sink(ExecNotice::Lost);
        let Some(again) = reopen(hub, sink) else { return };
        hub.state().socket = Some(Arc::new(again));
        // What ran between the two sockets was seen by neither.
        sink(ExecNotice::Lost);
    }
}

/// Hands on notices until told to stop (`Ok`) or the socket fails.
fn pump(hub: &Hub, sink: &Sink) -> io::Result<()> {
    loop {
        let (socket, notices) = {
            let mut state = hub.state();
            let drained = state.drain();
            let notices = std::mem::take(&mut state.queue);
            if state.stop {
                return Ok(());
            }
            (drained.map(|()| state.socket.clone()), notices)
        };
        notices.into_iter().for_each(sink);
        // Another thread may have found out first that the socket is broken.
        let socket = socket?.ok_or(io::ErrorKind::NotConnected)?;
        wait(hub, Some(&socket), None)?;
    }
}

fn reopen(hub: &Hub, sink: &Sink) -> Option<Connector> {
    loop {
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        wait(hub, None, Some(&second)).ok();
        if hub.state().stop {
            return None;
        }
        if let Ok(socket) = Connector::open(buffer()) {
            return Some(socket);
        }
        sink(ExecNotice::Lost);
    }
}

/// Waits for the socket, a wake-up or the end of time.
fn wait(hub: &Hub, socket: Option<&Connector>, time: Option<&Timespec>) -> io::Result<()> {
    let mut polled = vec![PollFd::new(&hub.wake, PollFlags::IN)];
    polled.extend(socket.map(|connector| PollFd::new(&connector.socket, PollFlags::IN)));
    match rustix::event::poll(&mut polled, time) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    // Empty unless somebody rang.
    rustix::io::read(&hub.wake, &mut [0; 8]).ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

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
    fn a_failed_socket_is_told_as_lost_and_opened_again() {
        let (sender, notices) = channel();
        let sink: Sink = Box::new(move |notice| sender.send(notice).unwrap_or_default());
        // Reading an eventfd as a socket fails at once.
        let broken = Connector { socket: eventfd(0, EventfdFlags::CLOEXEC).unwrap() };
        let hub = Arc::new(Hub::new(broken).unwrap());
        let counted = ExecCounter(Arc::clone(&hub)).of(std::process::id());
        assert_eq!(counted.execs(), None, "nothing can be counted");
        let runs = Arc::clone(&hub);
        let thread = std::thread::spawn(move || watch(&runs, &sink));
        assert_eq!(notices.recv().unwrap(), ExecNotice::Lost);
        assert_eq!(notices.recv().unwrap(), ExecNotice::Lost);
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let mine = ExecNotice::Exec { pid: child.id() };
        assert!(notices.iter().any(|notice| notice == mine));
        child.wait().unwrap();
        assert_eq!(counted.execs(), None, "what was missed stays unknown");
        assert_eq!(ExecCounter(Arc::clone(&hub)).of(std::process::id()).execs(), Some(0));
        hub.state().stop = true;
        assert!(hub.ring());
        thread.join().unwrap();
    }

    #[test]
    fn execs_are_counted_from_the_moment_they_were_asked_for_and_handed_on_all_the_same() {
        let (watch, notices) = started();
        let counter = watch.counter().unwrap();
        let script = "read a; exec /bin/sh -c 'read b; exec /bin/sh -c \"read c; exec /bin/cat\"'";
        let mut shell = Command::new("/bin/sh");
        let mut shell =
            shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        // `spawn` returns in the middle of the exec: the word of it may still be under way.
        let mine = ExecNotice::Exec { pid: shell.id() };
        assert!(notices.iter().any(|notice| notice == mine));
        let counted = counter.of(shell.id());
        assert_eq!(counted.execs(), Some(0));
        let mut stdin = shell.stdin.take().unwrap();
        for execs in 1..=3 {
            io::Write::write_all(&mut stdin, b"go\n").unwrap();
            while counted.execs() == Some(execs - 1) {}
            assert_eq!(counted.execs(), Some(execs));
        }
        assert!(notices.iter().filter(|notice| *notice == mine).nth(2).is_some());
        drop(stdin);
        shell.wait().unwrap();
    }
}
