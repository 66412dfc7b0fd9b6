//! The reaper: one epoll thread over the pidfds of all watched processes, and the event files of watched cgroups.
//!
//! Every watched token gets exactly one notice, unless it is forgotten first: the process exited, the last process of
//! the cgroup exited, or the watch was lost. A lost watch must be treated as an exit; once the thread has failed, no new watch is accepted.
//! A process whose first thread exited while others run has not exited: the pidfd stays silent.

mod removals;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use self::removals::Removals;
use super::Process;
use crate::scope::{self, CgroupEvents};
use crate::{failpoint, ticks};

/// Watches processes; its thread ends when this is dropped, without further notices.
pub struct Reaper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Told once for each watched token, on the reaper's own thread: the receiver must be quick.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExitNotice {
    /// What the watcher called the process.
    pub token: u64,
    /// What happened.
    pub cause: ExitCause,
    /// When the thread woke up for it.
    pub seen: Instant,
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExitCause {
    /// All threads of the process, or all processes of the cgroup, have exited.
    Exited,
    /// We no longer know: must be treated as an exit.
    WatchLost,
}

/// The process cannot be watched, so it must not hold anything that its exit would revoke.
#[derive(Debug, thiserror::Error)]
#[error("the process, or the cgroup, cannot be watched: {source}")]
pub struct WatchLost {
    /// What epoll said, or that the thread is gone.
    #[source]
    source: io::Error,
}

struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    table: Mutex<Table>,
}

/// Watches by an id that is never used twice: an event already in flight for a forgotten watch then finds nothing,
/// even if the same token is watched again.
#[derive(Default)]
struct Table {
    watches: HashMap<u64, Watch>,
    ids: HashMap<u64, u64>,
    removals: Removals,
    last: u64,
    knocks: Vec<Knock>,
    lost: bool,
    stop: bool,
}

struct Watch {
    token: u64,
    fd: Arc<OwnedFd>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// A pidfd: an event is the exit.
    Process,
    /// `cgroup.events`: an event is a reason to read it.
    Cgroup,
}

type Sink = Box<dyn Fn(ExitNotice) + Send>;
type Knock = Box<dyn FnOnce() + Send>;

impl Reaper {
    /// Starts the thread. `sink` gets every notice, on that thread.
    ///
    /// # Errors
    /// When epoll, eventfd or the thread cannot be had.
    pub fn start(sink: Sink) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            table: Mutex::default(),
        });
        epoll::add(&shared.epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let thread = std::thread::Builder::new().name("mayfly-reaper".to_owned());
        let runs = Arc::clone(&shared);
        let thread = thread.spawn(move || {
            // Also when the sink panics: whoever is still watched learns that nobody looks any more.
            let watcher = Watcher { shared: runs, sink };
            watcher.run();
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Asks for one notice about `process`, named `token`. A process that is dead already gives its notice at
    /// once. A token that is watched already is replaced.
    ///
    /// # Errors
    /// When epoll refuses, or an earlier failure ended the thread.
    pub fn watch(&self, process: &Process, token: u64) -> Result<(), WatchLost> {
        self.add(token, process.shared_pidfd(), Kind::Process, None)
    }

    /// Asks for one notice about a cgroup, named `token`: when the last process in it and below it has exited. One
    /// that is empty already gives its notice at once. Opens nothing.
    ///
    /// # Errors
    /// As for [`Reaper::watch`].
    pub fn watch_cgroup(&self, events: &CgroupEvents, token: u64) -> Result<(), WatchLost> {
        if failpoint::fails("reaper.cgroup") {
            return Err(WatchLost { source: io::ErrorKind::Other.into() });
        }
        // A file that nobody has read has an event waiting, so that the thread reads it at once.
        self.add(token, Arc::clone(&events.events), Kind::Cgroup, Some(events))
    }

    fn add(
        &self,
        token: u64,
        fd: Arc<OwnedFd>,
        kind: Kind,
        cgroup: Option<&CgroupEvents>,
    ) -> Result<(), WatchLost> {
        let mut table = self.shared.table();
        if table.lost {
            return Err(WatchLost { source: io::Error::other("the reaper has stopped") });
        }
        table.forget(token, &self.shared.epoll);
        table.last += 1;
        let id = table.last;
        // Before the first look at it: what is removed from then on is told.
        let removed = cgroup.map_or(Ok(()), |cgroup| table.removals.watch(&self.shared.epoll, cgroup, id));
        let added = removed.and_then(|()| self.shared.add(fd, id, kind));
        let fd = added.map_err(|source| {
            table.removals.forget(id);
            WatchLost { source }
        })?;
        table.watches.insert(id, Watch { token, fd, kind });
        table.ids.insert(token, id);
        Ok(())
    }

    /// Ends the watch of `token`. A notice that is being delivered right now may still arrive.
    pub fn forget(&self, token: u64) {
        self.shared.table().forget(token, &self.shared.epoll);
    }

    /// Has the thread itself run `answer`, once it is through with the exits before: a sign of life that goes the way
    /// an exit goes. Never run when the thread is gone or stuck.
    pub fn knock(&self, answer: Box<dyn FnOnce() + Send>) {
        self.shared.table().knocks.push(answer);
        // Fails only when the counter is full, and then the thread is woken anyway.
        rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes()).ok();
    }

    /// How many processes are watched.
    pub fn watched(&self) -> usize {
        self.shared.table().watches.len()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.shared.table().stop = true;
        if rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            drop(thread.join());
        }
    }
}

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reaper").field("watched", &self.watched()).finish_non_exhaustive()
    }
}

impl Shared {
    /// A poisoned table is still a table: losing it would lose exits.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// epoll takes one descriptor once; a second watch of the same process needs a copy.
    fn add(&self, fd: Arc<OwnedFd>, id: u64, kind: Kind) -> io::Result<Arc<OwnedFd>> {
        let flags = match kind {
            Kind::Process => EventFlags::IN | EventFlags::ONESHOT,
            Kind::Cgroup => EventFlags::PRI,
        };
        match epoll::add(&self.epoll, &fd, EventData::new_u64(id), flags) {
            Ok(()) => Ok(fd),
            Err(Errno::EXIST) => {
                let copy = Arc::new(fd.try_clone()?);
                epoll::add(&self.epoll, &copy, EventData::new_u64(id), flags)?;
                Ok(copy)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Table {
    fn forget(&mut self, token: u64, epoll: &OwnedFd) {
        let Some(id) = self.ids.remove(&token) else { return };
        self.removals.forget(id);
        if let Some(watch) = self.watches.remove(&id) {
            // Fails only if it is not registered, which is what is wanted.
            epoll::delete(epoll, &watch.fd).ok();
        }
    }

    /// The token of a watch whose event came, unless it was forgotten meanwhile, or is about a cgroup with processes
    /// left.
    fn take(&mut self, id: u64, epoll: &OwnedFd) -> Option<u64> {
        let Watch { token, fd, kind } = self.watches.get(&id)?;
        if *kind == Kind::Cgroup && scope::is_populated(fd) {
            return None;
        }
        let token = *token;
        self.forget(token, epoll);
        Some(token)
    }
}

struct Watcher {
    shared: Arc<Shared>,
    sink: Sink,
}

impl Watcher {
    fn run(&self) {
        let mut events: Vec<Event> = Vec::with_capacity(1024);
        while !self.shared.table().stop {
            events.clear();
            match self.wait(&mut events) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let seen = ticks::now();
            events.iter().for_each(|event| self.tell(event.data.u64(), seen));
            if events.iter().any(|event| event.data.u64() == REMOVED) {
                // Not under the lock that telling takes.
                let removed = self.shared.table().removals.read();
                removed.into_iter().for_each(|id| self.tell(id, seen));
            }
            if events.iter().any(|event| event.data.u64() == WAKE) {
                self.answer_knocks();
            }
        }
    }

    /// Gives notice of a watch, if there is something to give.
    fn tell(&self, id: u64, seen: Instant) {
        let token = self.shared.table().take(id, &self.shared.epoll);
        if let Some(token) = token {
            (self.sink)(ExitNotice { token, cause: ExitCause::Exited, seen });
        }
    }

    fn answer_knocks(&self) {
        rustix::io::read(&self.shared.wake, &mut [0; 8]).ok();
        let knocks = std::mem::take(&mut self.shared.table().knocks);
        knocks.into_iter().for_each(|answer| answer());
    }

    fn wait(&self, events: &mut Vec<Event>) -> rustix::io::Result<()> {
        if failpoint::fails("reaper.wait") {
            return Err(Errno::BADF);
        }
        epoll::wait(&self.shared.epoll, rustix::buffer::spare_capacity(events), None).map(drop)
    }
}

impl Drop for Watcher {
    /// Runs however the thread ends. Only a stop that was asked for is silent.
    fn drop(&mut self) {
        let mut table = self.shared.table();
        table.lost = true;
        if table.stop {
            return;
        }
        table.ids.clear();
        let orphans: Vec<Watch> = table.watches.drain().map(|(_, watch)| watch).collect();
        drop(table);
        let seen = ticks::now();
        for watch in orphans {
            (self.sink)(ExitNotice { token: watch.token, cause: ExitCause::WatchLost, seen });
        }
    }
}

/// Watches count from 1.
const WAKE: u64 = 0;
const REMOVED: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;
    use crate::testing::{end, host};

    const SOON: Duration = Duration::from_secs(10);

    fn reaper() -> (Reaper, Receiver<ExitNotice>) {
        let (sender, receiver) = channel();
        let sink = Box::new(move |notice| sender.send(notice).unwrap());
        (Reaper::start(sink).unwrap(), receiver)
    }

    fn sleeper() -> (Child, Process) {
        let child = Command::new("/bin/sleep").arg("30").spawn().unwrap();
        let process = Process::of_pid(&host(), child.id()).unwrap();
        (child, process)
    }

    #[test]
    fn an_exit_is_told_once_and_only_for_its_token() {
        let (reaper, notices) = reaper();
        let (a, pa) = sleeper();
        let (b, pb) = sleeper();
        reaper.watch(&pa, 7).unwrap();
        reaper.watch(&pb, 8).unwrap();
        end(a);
        let notice = notices.recv_timeout(SOON).unwrap();
        assert_eq!((notice.token, notice.cause), (7, ExitCause::Exited));
        assert_eq!(reaper.watched(), 1);
        assert!(notices.recv_timeout(Duration::from_millis(50)).is_err());
        end(b);
        assert_eq!(notices.recv_timeout(SOON).unwrap().token, 8);
    }

    #[test]
    fn a_process_that_is_dead_already_is_told_at_once() {
        let (reaper, notices) = reaper();
        let (child, process) = sleeper();
        end(child);
        reaper.watch(&process, 1).unwrap();
        assert_eq!(notices.recv_timeout(SOON).unwrap().token, 1);
    }

    #[test]
    fn two_watches_of_one_process_are_both_told() {
        let (reaper, notices) = reaper();
        let (child, process) = sleeper();
        reaper.watch(&process, 1).unwrap();
        reaper.watch(&process, 2).unwrap();
        end(child);
        let mut tokens =
            [notices.recv_timeout(SOON).unwrap().token, notices.recv_timeout(SOON).unwrap().token];
        tokens.sort_unstable();
        assert_eq!(tokens, [1, 2]);
    }

    #[test]
    fn a_dropped_process_is_still_watched() {
        let (reaper, notices) = reaper();
        let (child, process) = sleeper();
        reaper.watch(&process, 3).unwrap();
        drop(process);
        end(child);
        assert_eq!(notices.recv_timeout(SOON).unwrap().token, 3);
    }

    #[test]
    fn a_knock_is_answered_by_the_thread_after_the_exits_before_it() {
        let (sender, notices) = channel();
        let knocks = sender.clone();
        let sink = Box::new(move |notice: ExitNotice| sender.send(notice.token).unwrap());
        let reaper = Reaper::start(sink).unwrap();
        let (child, process) = sleeper();
        end(child);
        reaper.watch(&process, 3).unwrap();
        for knock in [100, 101] {
            let knocks = knocks.clone();
            reaper.knock(Box::new(move || {
                assert_eq!(std::thread::current().name(), Some("mayfly-reaper"));
                knocks.send(knock).unwrap();
            }));
        }
        let told: Vec<u64> = (0..3).map(|_| notices.recv_timeout(SOON).unwrap()).collect();
        assert_eq!(told, [3, 100, 101]);
    }

    #[test]
    fn a_forgotten_token_is_silent_and_can_be_used_again() {
        let (reaper, notices) = reaper();
        let (a, pa) = sleeper();
        let (b, pb) = sleeper();
        reaper.watch(&pa, 5).unwrap();
        reaper.forget(5);
        reaper.watch(&pb, 5).unwrap();
        end(a);
        assert!(notices.recv_timeout(Duration::from_millis(50)).is_err());
        end(b);
        assert_eq!(notices.recv_timeout(SOON).unwrap().token, 5);
    }

    #[test]
    fn a_process_whose_first_thread_exited_has_not_exited() {
        let (reaper, notices) = reaper();
        let code = "import threading,time,ctypes\nthreading.Thread(target=lambda:time.sleep(30)).start()\nctypes.CDLL(None).syscall(60,0)";
        let child = Command::new("/usr/bin/python3").args(["-c", code]).spawn().unwrap();
        let process = Process::of_pid(&host(), child.id()).unwrap();
        reaper.watch(&process, 9).unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        assert!(notices.recv_timeout(Duration::from_millis(50)).is_err());
        end(child);
        assert_eq!(notices.recv_timeout(SOON).unwrap().token, 9);
    }

    #[test]
    fn when_the_thread_fails_every_watch_is_lost_and_no_new_one_is_taken() {
        let (sender, notices) = channel();
        let shared = Arc::new(Shared {
            // Not an epoll: waiting on it fails as a closed one would.
            epoll: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            wake: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            table: Mutex::default(),
        });
        let (child, process) = sleeper();
        for token in 1..=3 {
            let watch = Watch { token, fd: process.shared_pidfd(), kind: Kind::Process };
            shared.table().watches.insert(token + 100, watch);
            shared.table().ids.insert(token, token + 100);
        }
        let watcher =
            Watcher { shared: Arc::clone(&shared), sink: Box::new(move |n| sender.send(n).unwrap()) };
        let thread = std::thread::spawn(move || watcher.run());
        thread.join().unwrap();
        let mut told: Vec<_> = notices.iter().map(|n| (n.token, n.cause)).collect();
        told.sort_unstable_by_key(|(token, _)| *token);
        assert_eq!(told, [1, 2, 3].map(|token| (token, ExitCause::WatchLost)));
        let reaper = Reaper { shared, thread: None };
        assert!(reaper.watch(&process, 4).is_err());
        end(child);
    }

    #[test]
    fn once_the_thread_is_gone_no_watch_is_taken_although_epoll_would() {
        let shared = Arc::new(Shared {
            epoll: epoll::create(CreateFlags::CLOEXEC).unwrap(),
            wake: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            table: Mutex::default(),
        });
        let (sender, notices) = channel();
        let watcher =
            Watcher { shared: Arc::clone(&shared), sink: Box::new(move |n| sender.send(n).unwrap()) };
        let reaper = Reaper { shared, thread: None };
        let (child, process) = sleeper();
        reaper.watch(&process, 1).unwrap();
        drop(watcher);
        assert_eq!(notices.recv().unwrap().cause, ExitCause::WatchLost);
        assert!(reaper.watch(&process, 2).is_err());
        end(child);
    }

    #[test]
    fn a_thousand_simultaneous_exits_are_all_told() {
        let (reaper, notices) = reaper();
        let children: Vec<Child> =
            (0..1000).map(|_| Command::new("/bin/sleep").arg("60").spawn().unwrap()).collect();
        let host = host();
        for (token, child) in children.iter().enumerate() {
            reaper.watch(&Process::of_pid(&host, child.id()).unwrap(), token as u64).unwrap();
        }
        children.into_iter().for_each(end);
        let mut tokens: Vec<u64> = (0..1000).map(|_| notices.recv_timeout(SOON).unwrap().token).collect();
        tokens.sort_unstable();
        assert!(tokens.iter().copied().eq(0..1000));
    }

    /// A cgroup below the v2 root, removed at the end.
    struct Group(std::path::PathBuf);

    impl Group {
        fn make(name: &str) -> Self {
            let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
            let root = root.into_iter().find(|root| std::fs::exists(format!("{root}/cgroup.procs")).unwrap());
            let path = std::path::Path::new(root.unwrap());
            let path = path.join(format!("mayfly-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn take(&self, child: &Child) {
            std::fs::write(self.0.join("cgroup.procs"), child.id().to_string()).unwrap();
        }

        fn scope(&self, child: &Child) -> crate::CgroupScope {
            let cgroups = crate::Cgroups::find(std::path::Path::new("/sys/fs/cgroup"));
            cgroups.of(&Process::of_pid(&host(), child.id()).unwrap()).unwrap()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            for below in std::fs::read_dir(&self.0).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir())
            {
                std::fs::remove_dir(below.path()).unwrap();
            }
            std::fs::remove_dir(&self.0).unwrap();
        }
    }

    #[test]
    fn a_cgroup_is_told_of_when_its_last_process_exits() {
        let (reaper, notices) = reaper();
        let group = Group::make("last");
        let ((a, pa), (b, _)) = (sleeper(), sleeper());
        group.take(&a);
        let scope = group.scope(&a);
        assert!(scope.is_populated().unwrap() && scope.belongs_to(&pa, None).unwrap());
        group.take(&b);
        assert!(!scope.belongs_to(&pa, None).unwrap(), "somebody else is in it");
        assert!(scope.belongs_to(&pa, Some(b.id())).unwrap(), "whom it may be shared with");
        reaper.watch_cgroup(&scope.events().unwrap(), 3).unwrap();
        end(a);
        // A child cgroup counts as well.
        std::fs::create_dir(group.0.join("below")).unwrap();
        std::fs::write(group.0.join("below/cgroup.procs"), b.id().to_string()).unwrap();
        assert!(notices.recv_timeout(Duration::from_millis(100)).is_err());
        assert!(scope.is_populated().unwrap());
        end(b);
        let notice = notices.recv_timeout(SOON).unwrap();
        assert_eq!((notice.token, notice.cause), (3, ExitCause::Exited));
        assert_eq!(reaper.watched(), 0);
        // One that is empty already.
        reaper.watch_cgroup(&scope.events().unwrap(), 4).unwrap();
        assert_eq!(notices.recv_timeout(SOON).unwrap().token, 4);
    }

    /// Whoever made a cgroup removes it as soon as it is empty: the kernel tells of that only ten milliseconds after it
    /// has told of something else, and of a cgroup that is gone by then, never.
    #[test]
    fn a_cgroup_that_lived_shorter_than_the_kernel_tells_is_told_of() {
        let (reaper, notices) = reaper();
        for token in 1..=20_u64 {
            let group = Group::make(&format!("short-{token}"));
            let (child, process) = sleeper();
            group.take(&child);
            let scope = group.scope(&child);
            reaper.watch_cgroup(&scope.events().unwrap(), 2 * token).unwrap();
            reaper.watch(&process, 2 * token + 1).unwrap();
            end(child);
            drop(group);
            let mut told = [(); 2].map(|()| notices.recv_timeout(SOON).unwrap().token);
            told.sort_unstable();
            assert_eq!(told, [2 * token, 2 * token + 1]);
        }
    }

    #[test]
    fn a_cgroup_that_is_gone_is_empty() {
        let (reaper, notices) = reaper();
        let (child, _) = sleeper();
        let group = Group::make("gone");
        group.take(&child);
        let scope = group.scope(&child);
        reaper.watch_cgroup(&scope.events().unwrap(), 5).unwrap();
        end(child);
        assert_eq!(notices.recv_timeout(SOON).unwrap().token, 5);
        let (id, path) = (scope.id(), scope.path().to_owned());
        drop(group);
        assert!(matches!(scope.is_populated(), Err(crate::ScopeError::Gone)));
        let cgroups = crate::Cgroups::find(std::path::Path::new("/sys/fs/cgroup"));
        assert!(matches!(cgroups.again(&path, id), Err(crate::ScopeError::Gone)));
    }

    /// Threats C08: what is in other hands is no scope.
    #[test]
    fn only_a_cgroup_in_roots_hands_is_a_scope() {
        let (child, process) = sleeper();
        let group = Group::make("hands");
        let cgroups = crate::Cgroups::find(std::path::Path::new("/sys/fs/cgroup"));
        assert!(matches!(cgroups.of(&process), Err(crate::ScopeError::Root)));
        group.take(&child);
        let first = cgroups.of(&process).unwrap();
        assert!(cgroups.again(first.path(), first.id()).is_ok());
        assert!(matches!(cgroups.again(first.path(), first.id() + 1), Err(crate::ScopeError::Gone)));
        for (path, uid) in [("", 20_012), ("cgroup.procs", 20_012)] {
            std::os::unix::fs::chown(group.0.join(path), Some(uid), None).unwrap();
            assert!(matches!(cgroups.of(&process), Err(crate::ScopeError::NotRoots)), "{path}");
            std::os::unix::fs::chown(group.0.join(path), Some(0), None).unwrap();
        }
        assert!(cgroups.of(&process).is_ok());
        first.freeze(true).unwrap();
        assert!(process.is_alive());
        first.freeze(false).unwrap();
        first.kill().unwrap();
        let mut child = child;
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
