//! The audit log: what was issued, refused and taken back, one JSON object a line, each line carrying the
//! hash of the one before, so that a line changed, removed or moved later is found ([`verify`]).
//!
//! One OS thread writes: it drains its queue, writes once, syncs once, then answers. A caller that awaits
//! [`Log::record`] and is told of an error must not release what it was about to issue. Revocation never
//! waits: [`Log::note`] hands its events over and returns; what does not fit is counted, and the count is
//! recorded as a gap as soon as the log can be written again.

mod chain;
mod checkpoint;
mod counts;
mod event;
mod line;
mod query;
mod read;
mod request;
mod sink;
mod tail;
mod tailing;
mod tally;
mod task;
mod text;
mod timeline;
pub mod trace;
mod verify;
mod writer;

#[cfg(test)]
mod kills;
#[cfg(test)]
pub(crate) mod testing;

pub use self::chain::{Flaw, Head};
pub use self::checkpoint::Checkpoints;
pub use self::counts::Counted;
pub use self::event::{Agent, Credential, Cut, Decision, Event, Found, Grant, Pod, Revocation, TokenPrint};
pub use self::query::Query;
pub use self::read::{Reading, read};
pub use self::request::Request;
pub use self::tail::{Filter, TailOptions, human, tail};
pub use self::tailing::{NumberedLine, Tailing, TailingError};
pub use self::tally::{Tally, times};
pub use self::task::{
    ApprovalFacts, ApprovalStep, EndWords, PolicyDecision, TaskEnd, TaskFacts, TaskStep, UserPrint,
};
pub use self::text::visible;
pub use self::timeline::{
    Moment, Said, SaidAgent, SaidApproval, SaidCredential, SaidDecision, SaidPod, TaskLife, Timeline,
};
pub use self::trace::Trace;
pub use self::verify::{BadLine, Expected, Summary, VerifyError, verify, verify_with};

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mayfly_attestors::BootId;
use tokio::sync::{oneshot, watch};

use self::counts::Counts;
use self::line::Origin;
use self::sink::{FileSink, Nowhere, Sink};
use self::trace::Stamp;
use self::writer::{Job, Writer};
use crate::clock::Clock;
use crate::files::FileError;
use crate::queue::{self, Attempts, Health, Refused, Worker};

/// The events were not written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be written.
    #[error("audit log unavailable: {0}")]
    Unavailable(String),
    /// Too many events wait already.
    #[error("audit log overloaded")]
    Overloaded,
    /// The agent is shutting down.
    #[error("audit log closed")]
    Closed,
}

/// The log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogOpenError {
    /// It cannot be opened or read.
    #[error("audit log {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could change the directory it is in.
    #[error("audit log: {0}")]
    Directory(#[from] FileError),
    /// Somebody else could change it.
    #[error("audit log {} is not private to the agent: {why}", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another agent writes to it.
    #[error("audit log {} is in use by another agent", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

/// Where and for whom the log is written.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The file; none: nowhere (tests, `--dev`).
    pub path: Option<PathBuf>,
    /// This machine's name.
    pub node: String,
    /// This machine's boot.
    pub boot_id: BootId,
}

/// A handle on the log; clones share the one writer thread. Dropping the last one waits until everything queued
/// is written, or refused.
#[derive(Clone)]
pub struct Log {
    thread: Arc<Worker<Job>>,
    path: Option<Arc<Path>>,
    clock: Arc<dyn Clock>,
    health: watch::Receiver<Health>,
    head: watch::Receiver<Head>,
    lost: Arc<AtomicU64>,
    counts: Arc<Counts>,
}

impl Log {
    /// Opens or creates the log (mode 0640) and goes on with its chain. A torn last line is cut off, a file
    /// whose last lines do not add up is put aside under another name; either is recorded.
    pub fn open(settings: LogSettings, clock: Arc<dyn Clock>) -> Result<Self, LogOpenError> {
        let sink: Box<dyn Sink> = match &settings.path {
            Some(path) => Box::new(FileSink::new(path)),
            None => Box::new(Nowhere),
        };
        Self::start(sink, settings, clock, FIRST_PAUSE)
    }

    /// Resolves when the events are on the disk, in this order, nothing of another caller between them.
    pub async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        let (to, answer) = oneshot::channel();
        let weight = events.len();
        self.counts.add(&events);
        self.thread.jobs()?.offer(Job::Record(self.stamped(events), to), weight)?;
        answer.await.unwrap_or(Err(AuditError::Closed))
    }

    /// [`Log::record`] for a thread outside the runtime.
    pub fn record_blocking(&self, events: Vec<Event>) -> Result<(), AuditError> {
        let (to, answer) = oneshot::channel();
        let weight = events.len();
        self.counts.add(&events);
        self.thread.jobs()?.offer(Job::Record(self.stamped(events), to), weight)?;
        answer.blocking_recv().unwrap_or(Err(AuditError::Closed))
    }

    /// Hands the events over and returns at once; for revocation, which waits for nobody. What cannot be
    /// written now is kept for later; what cannot be kept is counted, and the count is recorded.
    pub fn note(&self, events: Vec<Event>) {
        let count = events.len();
        self.counts.add(&events);
        let queued = self.thread.jobs().map(|jobs| jobs.offer(Job::Note(self.stamped(events)), count));
        if !matches!(queued, Ok(Ok(()))) {
            self.lost.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::AcqRel);
        }
    }

    /// Opens the file again by its name, after somebody renamed the old one (rotation, SIGHUP). The chain
    /// goes on: the first line of the new file carries the hash of the last line of the old one.
    pub fn reopen(&self) {
        // Closed means that the agent stops: nothing will be written to either file.
        self.thread.jobs().ok().map(|jobs| jobs.push(Job::Reopen));
    }

    /// How often each kind of thing was handed over since the start, whether or not it could be written.
    pub fn counts(&self) -> std::collections::BTreeMap<Counted, u64> {
        self.counts.all()
    }

    /// The end of the chain as it is on the disk.
    pub fn head(&self) -> Head {
        *self.head.borrow()
    }

    /// A reader of the lines, from the last ones on; `None` where nothing is written to a file.
    pub fn tail(&self, options: TailOptions) -> Option<Tailing> {
        let path = self.path.as_deref()?.to_owned();
        Some(Tailing::new(path, self.head.clone(), options))
    }

    /// Follows the log's health.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn start(
        mut sink: Box<dyn Sink>,
        settings: LogSettings,
        clock: Arc<dyn Clock>,
        first_pause: Duration,
    ) -> Result<Self, LogOpenError> {
        let opened = sink.open(None)?;
        let (jobs, receiver) = queue::channel(QUEUE_EVENTS);
        let attempts = Attempts::new("audit log", first_pause);
        let health = attempts.health();
        let (head_sender, head) = watch::channel(opened.head);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            sink,
            origin: Origin { node: settings.node, boot_id: settings.boot_id },
            jobs: receiver,
            clock: clock.clone(),
            head: head_sender,
            lost: lost.clone(),
            kept: VecDeque::new(),
            recovered: writer::recovered(&opened),
            attempts,
            stale: false,
        };
        let path: Option<Arc<Path>> = settings.path.map(Into::into);
        let thread = Worker::spawn("audit", jobs, move || writer.run()).map_err(|source| {
            let path = path.as_deref().map(Path::to_owned).unwrap_or_default();
            LogOpenError::Io { path, source }
        })?;
        Ok(Self { thread: Arc::new(thread), path, clock, health, head, lost, counts: Arc::default() })
    }

    fn stamped(&self, events: Vec<Event>) -> Vec<(Stamp, Event)> {
        let stamp = Stamp { at: self.clock.wall(), trace: trace::current() };
        events.into_iter().map(|event| (stamp, event)).collect()
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("head", &self.head()).finish_non_exhaustive()
    }
}

impl From<Refused> for AuditError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Overloaded,
            Refused::Closed => Self::Closed,
        }
    }
}

/// How many events may wait to be written.
const QUEUE_EVENTS: usize = 65_536;
/// Until the first attempt nobody asked for, after a failure; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use futures_util::future::join_all;

    use super::testing::{FixedClock, Memory, every_event};
    use super::*;
    use crate::ledger::testing::data_dir;

    fn settings(path: Option<&Path>) -> LogSettings {
        let boot_id = BootId::from_bytes([1; 16]);
        LogSettings { path: path.map(Path::to_owned), node: "n".to_owned(), boot_id }
    }

    fn open(path: &Path) -> Result<Log, LogOpenError> {
        Log::open(settings(Some(path)), Arc::new(FixedClock))
    }

    fn stop(n: u32) -> Vec<Event> {
        vec![Event::AgentStop { reason: format!("{n}") }]
    }

    fn events_of(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let value = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines().map(|line| value(line)["event"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn the_chain_goes_on_after_a_restart() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        for round in 1..=3 {
            let log = open(&path).unwrap();
            log.record(every_event()).await.unwrap();
            assert_eq!(log.head().seq, round * u64::try_from(every_event().len()).unwrap());
            drop(log);
        }
        let all = 3 * u64::try_from(every_event().len()).unwrap();
        assert_eq!(verify(&[&path], Expected::default()).unwrap().lines, all);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[tokio::test]
    async fn a_torn_last_line_is_cut_off_and_recorded() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        let log = open(&path).unwrap();
        log.record(stop(1)).await.unwrap();
        log.record(stop(2)).await.unwrap();
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in [1, 5, whole.len() - first - 1, whole.len() - 1] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let log = open(&path).unwrap();
            log.record(stop(3)).await.unwrap();
            drop(log);
            let mut expected = vec!["agent.stop", "audit.recovered", "agent.stop"];
            if cut == whole.len() - 1 {
                expected.remove(0);
            }
            assert_eq!(events_of(&path), expected, "{cut}");
            verify(&[&path], Expected::default()).unwrap();
        }
    }

    #[tokio::test]
    async fn a_log_that_does_not_add_up_is_kept_aside_as_evidence() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        let log = open(&path).unwrap();
        log.record(every_event()).await.unwrap();
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3000] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let log = open(&path).unwrap();
        log.record(stop(1)).await.unwrap();
        drop(log);
        assert_eq!(std::fs::read(dir.path().join("audit.jsonl.damaged-1")).unwrap(), bytes);
        assert_eq!(events_of(&path), ["audit.recovered", "agent.stop"]);
    }

    #[tokio::test]
    async fn rotation_by_rename_keeps_the_chain() {
        let dir = data_dir();
        let (path, old) = (dir.path().join("audit.jsonl"), dir.path().join("audit.jsonl.1"));
        let log = open(&path).unwrap();
        log.record(stop(1)).await.unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.record(stop(2)).await.unwrap();
        log.reopen();
        log.record(stop(3)).await.unwrap();
        let head = log.head();
        assert_eq!((events_of(&old).len(), events_of(&path).len()), (2, 1));
        verify(&[&old, &path], Expected { partial: false, head: Some(head) }).unwrap();
        // A second time without anything in between changes nothing.
        log.reopen();
        log.record(stop(4)).await.unwrap();
        // A file that was deleted is made again.
        std::fs::remove_file(&path).unwrap();
        log.record(stop(5)).await.unwrap();
        assert_eq!(log.head().seq, 5);
        assert_eq!(events_of(&path).len(), 1);
    }

    #[test]
    fn places_others_could_write_to_are_refused() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        let chmod = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let log = open(&path).unwrap();
        assert!(matches!(open(&path), Err(LogOpenError::InUse { .. })));
        drop(log);
        chmod(&path, 0o660);
        assert!(matches!(open(&path), Err(LogOpenError::Untrusted { .. })));
        chmod(&path, 0o640);
        std::fs::hard_link(&path, dir.path().join("second")).unwrap();
        assert!(matches!(open(&path), Err(LogOpenError::Untrusted { .. })));
        std::fs::remove_file(dir.path().join("second")).unwrap();
        symlink(&path, dir.path().join("link")).unwrap();
        assert!(matches!(open(&dir.path().join("link")), Err(LogOpenError::Io { .. })));
        chmod(dir.path(), 0o720);
        assert!(matches!(open(&path), Err(LogOpenError::Directory(_))));
    }

    #[tokio::test]
    async fn nothing_is_recorded_on_a_full_disk_and_it_heals() {
        let sink = Memory::default();
        let settings = settings(None);
        let pause = Duration::from_secs(3600);
        let log = Log::start(Box::new(sink.clone()), settings, Arc::new(FixedClock), pause).unwrap();
        log.record(stop(1)).await.unwrap();
        sink.0.lock().unwrap().full = true;
        assert!(matches!(log.record(stop(2)).await, Err(AuditError::Unavailable(_))));
        assert!(matches!(*log.health().borrow(), Health::Failing { .. }));
        // Revocation does not wait, and what it noted is not lost.
        log.note(stop(3));
        assert!(log.record(stop(4)).await.is_err());
        sink.0.lock().unwrap().full = false;
        log.record(stop(5)).await.unwrap();
        assert_eq!(*log.health().borrow(), Health::Good);
        let text = String::from_utf8(sink.0.lock().unwrap().bytes.clone()).unwrap();
        let reason = |line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            value["detail"]["reason"].as_str().unwrap_or("recovered").to_owned()
        };
        assert_eq!(text.lines().map(reason).collect::<Vec<_>>(), ["1", "recovered", "3", "5"]);
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_counted_as_a_gap() {
        let sink = Memory::default();
        sink.0.lock().unwrap().full = true;
        let pause = Duration::from_secs(3600);
        let log = Log::start(Box::new(sink.clone()), settings(None), Arc::new(FixedClock), pause).unwrap();
        for _ in 0..30 {
            log.note(every_event().into_iter().cycle().take(1_000).collect());
        }
        assert!(log.record(stop(1)).await.is_err());
        sink.0.lock().unwrap().full = false;
        log.record(stop(2)).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &sink.0.lock().unwrap().bytes).unwrap();
        let summary = verify(&[file.path()], Expected::default()).unwrap();
        let own_gaps = summary.lost - u64::try_from(lost_in_every_event(16_384)).unwrap();
        assert_eq!(own_gaps, 30_000 - 16_384);
        // Recovered, gap, what was kept, and the last one.
        assert_eq!(summary.lines, 2 + 16_384 + 1);
    }

    /// `every_event` has a made-up gap among its own.
    fn lost_in_every_event(kept: usize) -> usize {
        let all = every_event();
        let gap = all.iter().position(|event| matches!(event, Event::Gap { .. })).unwrap();
        (0..kept).filter(|at| at % 1_000 % all.len() == gap).count() * 5
    }

    #[tokio::test]
    async fn one_sync_serves_many_callers() {
        let sink = Memory::default();
        let log =
            Log::start(Box::new(sink.clone()), settings(None), Arc::new(FixedClock), FIRST_PAUSE).unwrap();
        let answers = join_all((0..5_000).map(|n| log.record(stop(n)))).await;
        assert!(answers.iter().all(Result::is_ok));
        let appends = sink.0.lock().unwrap().appends;
        assert!(appends < 500, "{appends} appends for 5000 events");
        assert_eq!(log.head().seq, 5_000);
        let too_many = std::iter::repeat_n(stop(1).remove(0), QUEUE_EVENTS + 1).collect();
        assert_eq!(log.record(too_many).await, Err(AuditError::Overloaded));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_withdraws_what_it_refused() {
        let dir = data_dir();
        let path = dir.path().join("audit.jsonl");
        let log = open(&path).unwrap();
        log.record(stop(1)).await.unwrap();
        // Somebody writes rubbish behind the agent's back, then the agent notices by being told.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"rubbish\n");
        std::fs::write(&path, &bytes).unwrap();
        log.reopen();
        log.record(stop(2)).await.unwrap();
        let head = Some(log.head());
        verify(&[&path], Expected { partial: false, head }).unwrap();
    }
}
