//! Measuring a program: the SHA-256 of the file behind `/proc/PID/exe`, without ever letting a stranger's file system
//! hold up the agent. The gate (which file systems may be asked) is in `file`, the helper process in `worker` and
//! `pool`, what may be kept in `reuse`.

mod file;
mod pool;
mod reuse;
mod wire;
mod worker;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

#[cfg(test)]
pub(crate) use file::FileSystem;
pub(crate) use file::{FileFacts, FileId, Gate, mount_namespace, name_of};
pub use pool::WorkerCommand;
pub use worker::measure_worker;

use crate::launch::Code;
use crate::process::{Process, is_alive, is_want_of_ours};
use crate::ticks;
use pool::Pool;
use reuse::{Own, Reuse, is_settled, may_keep};
use wire::{Reply, Request};

/// Takes hashes; shared by all attestations.
#[derive(Debug)]
pub struct Measurer {
    pool: Arc<Pool>,
    limits: MeasureLimits,
    /// Pidfds hold the processes for which a hash was taken.
    kept: Arc<Mutex<Reuse<Arc<OwnedFd>>>>,
    own: Arc<Mutex<Own>>,
    /// One lock for each file that is being read for keeps: whoever comes second waits and then finds the hash.
    reading: Mutex<HashMap<FileId, Weak<tokio::sync::Mutex<()>>>>,
    read: AtomicU64,
    reused: AtomicU64,
}

/// Counts since the start, for metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MeasureFigures {
    /// Files given to a helper.
    pub read: u64,
    /// Hashes that served again without a read.
    pub reused: u64,
    /// Helpers that missed their deadline and have not ended yet; above 0 for long means a file system hangs.
    pub lost: usize,
}

/// Bounds on measuring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MeasureLimits {
    /// For one file, from the question to the answer.
    pub deadline: Duration,
    /// Larger files are not read.
    pub max_bytes: u64,
    /// Files being read at once for one uid; helpers that hang on its files count too.
    pub per_uid: usize,
    /// Files being read at once.
    pub total: usize,
    /// How long to wait for one of those places.
    pub queue: Duration,
}

/// A file to measure: a handle that was never opened, and who runs it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) handle: Arc<OwnedFd>,
    pub(crate) facts: FileFacts,
    pub(crate) gate: Gate,
    pub(crate) holder: Arc<OwnedFd>,
    /// Names that process for the rest of the boot, where the kernel can.
    pub(crate) process: Option<u64>,
    /// Whose share of the helpers it takes.
    pub(crate) uid: u32,
}

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    #[error("exe_fs_not_trusted ({0})")]
    NotTrusted(String),
    #[error("exe_too_large ({0} bytes)")]
    TooLarge(u64),
    #[error("exe_unreadable ({0})")]
    Unreadable(String),
    #[error("exe changed while it was being read")]
    Changed,
    #[error("measure_deadline")]
    Deadline,
    #[error("too many programs are being measured")]
    Overloaded,
    #[error("the hash helper failed: {0}")]
    Worker(#[source] io::Error),
}

impl MeasureError {
    /// Whether we, or the helper, had no descriptor or memory to work with.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Worker(error) if is_want_of_ours(error))
    }

    /// Whether it says nothing about the file: another try may succeed.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Changed | Self::Deadline | Self::Overloaded | Self::Worker(_) => true,
            Self::NotTrusted(_) | Self::TooLarge(_) | Self::Unreadable(_) => false,
        }
    }
}

impl Default for MeasureLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(2),
            max_bytes: 512 << 20,
            per_uid: 2,
            total: 8,
            queue: Duration::from_millis(500),
        }
    }
}

impl Measurer {
    /// Starts nothing yet: helpers are started when they are needed, and stay.
    pub fn new(spawn: WorkerCommand, limits: MeasureLimits) -> Self {
        Self {
            pool: Pool::new(spawn, limits),
            limits,
            kept: Arc::default(),
            own: Arc::default(),
            reading: Mutex::default(),
            read: AtomicU64::new(0),
            reused: AtomicU64::new(0),
        }
    }

    /// What measuring has cost so far.
    pub fn figures(&self) -> MeasureFigures {
        let (read, reused) = (self.read.load(Ordering::Relaxed), self.reused.load(Ordering::Relaxed));
        MeasureFigures { read, reused, lost: self.pool.lost() }
    }

    /// The hash of `subject`, read now or known to hold.
    pub(crate) async fn sha256(&self, subject: &Subject) -> Result<[u8; 32], MeasureError> {
        if !subject.facts.regular {
            return Err(MeasureError::Unreadable("not a regular file".to_owned()));
        }
        match subject.gate {
            Gate::Shut(magic) => return Err(MeasureError::NotTrusted(name_of(magic))),
            Gate::Unnamed => return Err(MeasureError::NotTrusted("unknown".to_owned())),
            Gate::Open(_) | Gate::Ajar => {}
        }
        if subject.facts.id.size > self.limits.max_bytes {
            return Err(MeasureError::TooLarge(subject.facts.id.size));
        }
        let now = ticks::wall_nanos();
        if may_keep(&subject.facts, subject.gate, now) {
            return self.shared(subject).await;
        }
        // A file that settles while it is read was still changing when the read began.
        let process = subject.process.filter(|_| is_settled(&subject.facts, now));
        let known = process.and_then(|process| lock_of(&self.own).find(process, &subject.facts.id));
        if let Some(known) = known {
            self.reused.fetch_add(1, Ordering::Relaxed);
            return Ok(known);
        }
        let (own, id) = (Arc::clone(&self.own), subject.facts.id);
        let keep = move |sha256| {
            if let Some(process) = process {
                lock_of(&own).keep(process, id, sha256);
            }
        };
        self.read(subject, keep).await
    }

    /// One read for all processes that run the file, as long as one of them runs.
    async fn shared(&self, subject: &Subject) -> Result<[u8; 32], MeasureError> {
        if let Some(known) = self.known(subject) {
            return Ok(known);
        }
        let lock = self.lock_for(subject.facts.id);
        let turn = tokio::time::timeout(self.limits.deadline, lock.lock());
        let _turn = turn.await.or(Err(MeasureError::Overloaded))?;
        if let Some(known) = self.known(subject) {
            return Ok(known);
        }
        let (kept, id, holder) = (Arc::clone(&self.kept), subject.facts.id, Arc::clone(&subject.holder));
        let keep = move |sha256| lock_of(&kept).keep(id, sha256, holder, |h| is_alive(h.as_fd()));
        self.read(subject, keep).await
    }

    fn known(&self, subject: &Subject) -> Option<[u8; 32]> {
        let holder = || Arc::clone(&subject.holder);
        let known = lock_of(&self.kept).find(&subject.facts.id, holder, |h| is_alive(h.as_fd()));
        self.reused.fetch_add(u64::from(known.is_some()), Ordering::Relaxed);
        known
    }

    fn lock_for(&self, id: FileId) -> Arc<tokio::sync::Mutex<()>> {
        let mut reading = lock_of(&self.reading);
        if let Some(lock) = reading.get(&id).and_then(Weak::upgrade) {
            return lock;
        }
        reading.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        reading.insert(id, Arc::downgrade(&lock));
        lock
    }

    /// Blocks a thread for at most the deadline. Until then the place is held, and what is found goes to `keep`, even
    /// if nobody waits for it any more: who was too late for it finds it the next time.
    async fn read(
        &self,
        subject: &Subject,
        keep: impl FnOnce([u8; 32]) + Send + 'static,
    ) -> Result<[u8; 32], MeasureError> {
        let slot = self.pool.slot(subject.uid).await?;
        self.read.fetch_add(1, Ordering::Relaxed);
        let request = Request::Hash { max_bytes: self.limits.max_bytes };
        let (handle, id) = (Arc::clone(&subject.handle), subject.facts.id);
        let asked = tokio::task::spawn_blocking(move || {
            let sha256 = hash_in(slot.ask(request, handle.as_fd())?, &id)?;
            keep(sha256);
            Ok(sha256)
        });
        asked.await.map_err(|e| MeasureError::Worker(io::Error::other(e)))?
    }

    /// Whether a process runs the code that we do; `dir` is its `/proc` directory.
    pub(crate) async fn code(&self, process: &Process, dir: Arc<OwnedFd>) -> Result<Code, MeasureError> {
        let slot = self.pool.slot(process.uid()).await?;
        let asked = tokio::task::spawn_blocking(move || slot.ask(Request::Code, dir.as_fd()));
        match asked.await.map_err(|e| MeasureError::Worker(io::Error::other(e)))?? {
            Reply::Code(code) => Ok(code),
            Reply::Unreadable(errno) => Err(unreadable(io::Error::from_raw_os_error(errno))),
            _ => Err(MeasureError::Worker(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// The hash in a helper's reply, if it is that of the file `id` all the time.
fn hash_in(reply: Reply, id: &FileId) -> Result<[u8; 32], MeasureError> {
    match reply {
        Reply::Hashed { before, after, sha256 } if before == *id && after == *id => Ok(sha256),
        Reply::Hashed { .. } => Err(MeasureError::Changed),
        Reply::Shut(magic) => Err(MeasureError::NotTrusted(name_of(magic))),
        Reply::TooLarge(size) => Err(MeasureError::TooLarge(size)),
        Reply::NotRegular => Err(MeasureError::Unreadable("not a regular file".to_owned())),
        Reply::Unreadable(errno) => Err(unreadable(io::Error::from_raw_os_error(errno))),
        Reply::Code(_) => Err(MeasureError::Worker(io::ErrorKind::InvalidData.into())),
    }
}

/// What kept a helper from reading a file: its own want of something is no fault of the file.
fn unreadable(error: io::Error) -> MeasureError {
    if is_want_of_ours(&error) {
        MeasureError::Worker(error)
    } else {
        MeasureError::Unreadable(error.to_string())
    }
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::io::Write;
    use std::os::fd::BorrowedFd;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags};

    use super::*;
    use crate::testing::{end, running, sleeper, worker};

    fn pidfd(pid: u32) -> Arc<OwnedFd> {
        let pid = Pid::from_raw(pid.cast_signed()).unwrap();
        Arc::new(rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    fn subject(file: BorrowedFd<'_>, uid: u32) -> Subject {
        let handle = Arc::new(file.try_clone_to_owned().unwrap());
        let facts = FileFacts::of(handle.as_fd()).unwrap();
        Subject {
            handle,
            facts,
            gate: facts.gate(|| None),
            holder: pidfd(std::process::id()),
            process: None,
            uid,
        }
    }

    fn of_path(path: &str) -> Subject {
        subject(
            rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap().as_fd(),
            0,
        )
    }

    fn measurer(limits: MeasureLimits) -> Measurer {
        Measurer::new(worker(), limits)
    }

    /// A helper that takes its question and never answers.
    fn mute() -> WorkerCommand {
        WorkerCommand { program: "/bin/sleep".into(), args: vec![OsString::from("60")] }
    }

    const SETTLE: Duration = Duration::from_millis(2100);

    fn short() -> MeasureLimits {
        let (deadline, queue) = (Duration::from_millis(150), Duration::from_millis(30));
        MeasureLimits { deadline, queue, ..MeasureLimits::default() }
    }

    #[tokio::test]
    async fn the_hash_is_that_of_the_content() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let hash = measurer(MeasureLimits::default()).sha256(&subject(file.as_fd(), 0)).await.unwrap();
        assert_eq!(
            crate::text::hex(&hash),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[tokio::test]
    async fn a_system_program_is_read_once_and_concurrent_requests_share_it() {
        let measurer = measurer(MeasureLimits { per_uid: 1, ..MeasureLimits::default() });
        let subject = of_path("/bin/sleep");
        let (a, b, c, d) = tokio::join!(
            measurer.sha256(&subject),
            measurer.sha256(&subject),
            measurer.sha256(&subject),
            measurer.sha256(&subject)
        );
        let first = a.unwrap();
        assert_eq!([b.unwrap(), c.unwrap(), d.unwrap()], [first; 3]);
        assert_eq!(measurer.figures(), MeasureFigures { read: 1, reused: 3, lost: 0 });
    }

    #[tokio::test]
    async fn b11_a_hash_is_forgotten_when_its_last_process_ends() {
        let measurer = measurer(MeasureLimits::default());
        let child = sleeper();
        let subject = Subject { holder: pidfd(child.id()), ..of_path("/bin/sleep") };
        measurer.sha256(&subject).await.unwrap();
        measurer.sha256(&subject).await.unwrap();
        assert_eq!(measurer.figures().read, 1);
        end(child);
        let (next, process) = running(Command::new("/bin/sleep").arg("30"), "/sleep");
        let subject = Subject { holder: process.shared_pidfd(), ..subject };
        measurer.sha256(&subject).await.unwrap();
        assert_eq!(measurer.figures(), MeasureFigures { read: 2, reused: 1, lost: 0 });
        end(next);
    }

    #[tokio::test]
    async fn b10_what_others_can_write_is_read_each_time() {
        let measurer = measurer(MeasureLimits::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::chown(file.path(), Some(20030), None).unwrap();
        let subject = subject(file.as_file().as_fd(), 0);
        tokio::time::sleep(SETTLE).await;
        measurer.sha256(&subject).await.unwrap();
        measurer.sha256(&subject).await.unwrap();
        assert_eq!(measurer.figures(), MeasureFigures { read: 2, reused: 0, lost: 0 });
        let own = Subject { process: Some(1), ..subject };
        measurer.sha256(&own).await.unwrap();
        measurer.sha256(&own).await.unwrap();
        assert_eq!(measurer.figures(), MeasureFigures { read: 3, reused: 1, lost: 0 }, "but not for itself");
    }

    #[tokio::test]
    async fn b12_a_file_that_was_changed_a_moment_ago_is_not_kept() {
        let measurer = measurer(MeasureLimits::default());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"new").unwrap();
        let subject = Subject { process: Some(1), ..subject(file.as_fd(), 0) };
        measurer.sha256(&subject).await.unwrap();
        measurer.sha256(&subject).await.unwrap();
        assert_eq!(measurer.figures().read, 2);
    }

    #[tokio::test]
    async fn a_file_that_changed_since_it_was_looked_at_is_refused() {
        let measurer = measurer(MeasureLimits::default());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"old").unwrap();
        let subject = subject(file.as_fd(), 0);
        file.write_all(b"er").unwrap();
        assert!(matches!(measurer.sha256(&subject).await, Err(MeasureError::Changed)));
    }

    #[tokio::test]
    async fn a_file_that_changes_while_it_is_read_is_refused() {
        let measurer =
            measurer(MeasureLimits { deadline: Duration::from_secs(60), ..MeasureLimits::default() });
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(256 << 20).unwrap();
        measurer.sha256(&of_path("/bin/true")).await.unwrap();
        let subject = subject(file.as_file().as_fd(), 0);
        let mut writer = file.reopen().unwrap();
        // The helper runs already: by now it has had its first look, and a quarter of a gigabyte before the second.
        let writes = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            loop {
                writer.write_all(b"x").unwrap();
                io::Seek::rewind(&mut writer).unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            result = measurer.sha256(&subject) => assert!(matches!(result, Err(MeasureError::Changed)), "{result:?}"),
            () = writes => {}
        }
    }

    #[tokio::test]
    async fn b13_a_helper_that_misses_its_deadline_is_given_up_and_the_next_works() {
        let measurer = Measurer::new(mute(), short());
        let subject = of_path("/bin/true");
        assert!(matches!(measurer.sha256(&subject).await, Err(MeasureError::Deadline)));
        while measurer.figures().lost > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(measurer.sha256(&subject).await, Err(MeasureError::Deadline)));
    }

    #[tokio::test]
    async fn b13_one_uid_is_refused_beyond_its_share_and_another_is_not() {
        let measurer = Measurer::new(mute(), short());
        let of_uid = |uid| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"x").unwrap();
            subject(file.as_fd(), uid)
        };
        let (a, b, c, other) = (of_uid(1), of_uid(1), of_uid(1), of_uid(2));
        let (a, b, c, other) = tokio::join!(
            measurer.sha256(&a),
            measurer.sha256(&b),
            measurer.sha256(&c),
            measurer.sha256(&other)
        );
        assert!(matches!((a, b), (Err(MeasureError::Deadline), Err(MeasureError::Deadline))));
        assert!(matches!(c, Err(MeasureError::Overloaded)));
        assert!(matches!(other, Err(MeasureError::Deadline)), "it had its turn");
    }

    #[tokio::test]
    async fn the_whole_is_bounded_too() {
        let measurer = Measurer::new(mute(), MeasureLimits { total: 1, ..short() });
        let (mut a, mut b) = (of_path("/bin/true"), of_path("/bin/false"));
        (a.uid, b.uid) = (1, 2);
        let (a, b) = tokio::join!(measurer.sha256(&a), measurer.sha256(&b));
        assert!(matches!((a, b), (Err(MeasureError::Deadline), Err(MeasureError::Overloaded))));
    }

    #[tokio::test]
    async fn f05_a_helper_holds_only_its_standard_descriptors() {
        let measurer = measurer(MeasureLimits::default());
        measurer.sha256(&of_path("/bin/true")).await.unwrap();
        let [helper] = measurer.pool.helpers()[..] else { panic!("one helper") };
        let mut open: Vec<String> = std::fs::read_dir(format!("/proc/{helper}/fd"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        open.sort();
        assert_eq!(open, ["0", "1", "2"]);
        let status = std::fs::read_to_string(format!("/proc/{helper}/environ")).unwrap();
        assert!(!status.contains("PATH="), "the environment is not handed on");
    }

    #[tokio::test]
    async fn a_helper_that_was_killed_while_idle_is_replaced() {
        let measurer = measurer(MeasureLimits::default());
        measurer.sha256(&of_path("/bin/true")).await.unwrap();
        let [helper] = measurer.pool.helpers()[..] else { panic!("one helper") };
        let pid = Pid::from_raw(helper.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        measurer.sha256(&of_path("/bin/false")).await.unwrap();
        assert_ne!(measurer.pool.helpers(), [helper]);
    }

    /// Whoever was too late for it is served the next time: a program that takes long to read is not read for ever.
    #[tokio::test]
    async fn a_reading_that_nobody_waits_for_any_more_is_kept() {
        let measurer =
            measurer(MeasureLimits { deadline: Duration::from_secs(60), ..MeasureLimits::default() });
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        tokio::time::sleep(SETTLE).await;
        let subject = subject(file.as_fd(), 0);
        let hurried = tokio::time::timeout(Duration::from_millis(1), measurer.sha256(&subject));
        assert!(hurried.await.is_err(), "64 MiB in a millisecond");
        while measurer.known(&subject).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(measurer.figures(), MeasureFigures { read: 1, reused: 1, lost: 0 });
    }

    #[test]
    fn e13_a_helpers_want_of_a_descriptor_is_no_fault_of_the_file() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            let error = hash_in(Reply::Unreadable(errno), &of_path("/bin/true").facts.id).unwrap_err();
            assert!(error.is_ours() && error.is_passing(), "{error:?}");
        }
        let error = hash_in(Reply::Unreadable(libc::EACCES), &of_path("/bin/true").facts.id).unwrap_err();
        assert!(matches!(error, MeasureError::Unreadable(_)) && !error.is_passing());
    }

    #[tokio::test]
    async fn what_is_no_program_is_refused_before_it_is_opened() {
        let measurer = measurer(MeasureLimits::default());
        for (path, expected) in
            [("/dev/null", "unreadable"), ("/etc", "unreadable"), ("/proc/version", "not_trusted")]
        {
            let error = measurer.sha256(&of_path(path)).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{path}: {error}");
        }
        assert_eq!(measurer.figures().read, 0);
    }

    #[tokio::test]
    async fn the_helper_looks_at_the_file_system_again() {
        let measurer = measurer(MeasureLimits::default());
        // As if the mount could not be named from here.
        let subject = Subject { gate: Gate::Ajar, ..of_path("/proc/version") };
        assert!(matches!(measurer.sha256(&subject).await, Err(MeasureError::NotTrusted(_))));
        let unnamed = Subject { gate: Gate::Unnamed, ..of_path("/bin/true") };
        assert!(matches!(measurer.sha256(&unnamed).await, Err(MeasureError::NotTrusted(_))));
        assert_eq!(measurer.figures().read, 1);
    }
}
