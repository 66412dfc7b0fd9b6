//! The ledger: the durable table of unexpired leases. A lease is committed here *before* its credential
//! leaves the agent, so that after any crash, power cut or full disk every credential ever released can
//! still be found and revoked.
//!
//! One OS thread writes. It drains its queue into one transaction, syncs once, then answers every caller,
//! so that under load one `fsync` serves many. A write that fails leaves the handle dead: the next
//! attempt opens the file again (with the whole check of [`Ledger::open`]) and nothing is ever retried on
//! the old handle. While the ledger is dead nothing can be issued; revocations that could not be written
//! are kept and go out with the next transaction that succeeds.

mod check;
mod codec;
mod disk;
mod error;
mod head;
mod reset;
mod row;
mod store;
mod writer;

#[cfg(test)]
mod faults;
#[cfg(test)]
pub(crate) mod testing;

pub use self::check::check_main;
pub use self::error::{LedgerError, OpenError};
pub use self::reset::reset;
pub use self::row::{Bar, Kind, Note, Reason, Row, State, StatusIndex};

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use mayfly_attestors::ProcessKey;
use tokio::sync::{oneshot, watch};

use self::disk::{Disk, Memory};
use self::store::{Change, Encoded, Medium, Revoked, Store};
use self::writer::{Job, Marks, Pauses, Writer};
use crate::id::LeaseId;
use crate::queue::{self, Attempts, Health, Refused, Worker};

/// Where the ledger lives.
#[derive(Clone, Debug)]
pub enum LedgerPlace {
    /// `DIR/ledger.redb`; the directory must be private to the agent.
    Disk(PathBuf),
    /// Nowhere: gone with the process (`mayfly agent --dev`).
    Memory,
}

/// Proof that these leases are in the ledger and synced. Not `Clone`; only the ledger makes one.
#[derive(Debug)]
#[must_use = "a lease that was committed must be released or revoked"]
pub struct Committed {
    ids: Vec<LeaseId>,
}

impl Committed {
    /// Whether this commit wrote the lease `id`.
    pub fn covers(&self, id: LeaseId) -> bool {
        self.ids.contains(&id)
    }

    /// For tests of what spends it.
    #[cfg(test)]
    pub(crate) fn for_test(ids: Vec<LeaseId>) -> Self {
        Self { ids }
    }
}

/// The highest CRL of an issuer that was ever published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CrlMark {
    /// CRL number.
    pub number: u64,
    /// `thisUpdate`, Unix seconds.
    pub this_update: u64,
}

/// How a file that may be corrupt is read for the first time.
#[derive(Clone, Debug)]
pub enum IntegrityCheck {
    /// In a child process, `program ledger-check PATH`: a parser that aborts takes only the child along.
    Child {
        /// The agent's own binary.
        program: PathBuf,
    },
    /// In this process; for tests and for `--dev`.
    InProcess,
}

/// A handle on the ledger; clones share the one writer thread. Dropping the last one waits until everything
/// queued is on the disk and the data directory is free again.
#[derive(Clone, Debug)]
pub struct Ledger {
    thread: Arc<Worker<Job>>,
    health: watch::Receiver<Health>,
    marks: Marks,
    found_bars: Arc<[Bar]>,
    found_notes: Arc<[Note]>,
}

impl Ledger {
    /// Opens or creates the ledger and answers with every row in it, expired ones included.
    ///
    /// Refuses a directory another agent holds, that others can read or write, or that cannot be written;
    /// a file in which one byte is not as it was written; and a missing file beside existing signing keys.
    pub fn open(place: &LedgerPlace, check: IntegrityCheck) -> Result<(Self, Vec<Row>), OpenError> {
        let medium: Box<dyn Medium> = match place {
            LedgerPlace::Disk(dir) => Box::new(Disk::claim(dir, check)?),
            LedgerPlace::Memory => Box::new(Memory),
        };
        Self::start(medium, Pauses::default())
    }

    /// Commits the rows, all or none; resolves when they are on the disk. If the caller stops waiting, or if
    /// this fails and the rows turn out to be on the disk all the same, they become revoked there
    /// ([`Reason::IssueAborted`]) by the next transaction.
    pub async fn commit(&self, rows: Vec<Row>) -> Result<Committed, LedgerError> {
        self.commit_noting(&rows, Vec::new()).await
    }

    /// [`Ledger::commit`], and notes in the same transaction. All is in the queue when this returns, before anything that
    /// is asked later: notes that are made under a lock are written in the order of what they tell.
    pub fn commit_noting(
        &self,
        rows: &[Row],
        notes: Vec<Note>,
    ) -> impl Future<Output = Result<Committed, LedgerError>> + Send + use<'_> {
        let queued = self.queue_commit(rows, notes);
        async move {
            let mut claim = queued?;
            (&mut claim.answer).await.unwrap_or(Err(LedgerError::Closed))
        }
    }

    fn queue_commit(&self, rows: &[Row], notes: Vec<Note>) -> Result<Claim<'_>, LedgerError> {
        // Encoded here, on the caller's thread: the writer's time is everybody's.
        let encoded = rows.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        let (to, answer) = oneshot::channel();
        let (weight, issued_at) = (rows.len(), rows.iter().map(|row| row.issued_at).max().unwrap_or(0));
        self.thread.jobs()?.offer(Job::Commit(Change::Commit(encoded, notes), to), weight)?;
        Ok(Claim { ledger: self, answer, issued_at })
    }

    /// Marks leases as revoked at `at_millis` (Unix milliseconds). Leases that are not in the ledger (expired
    /// meanwhile) are passed over; those revoked already keep their first time and reason. What cannot be
    /// written now is kept, and goes out with the next transaction that succeeds: no need to ask again.
    pub async fn revoke(&self, leases: &[(LeaseId, Reason)], at_millis: u64) -> Result<(), LedgerError> {
        self.revoke_noting(leases, at_millis, Vec::new()).await
    }

    /// [`Ledger::revoke`], and notes in the same transaction; they are kept like the rest.
    pub async fn revoke_noting(
        &self,
        leases: &[(LeaseId, Reason)],
        at_millis: u64,
        notes: Vec<Note>,
    ) -> Result<(), LedgerError> {
        self.change(revocations(leases, at_millis, notes)).await.map(|_| ())
    }

    /// [`Ledger::revoke_noting`] for a thread outside the runtime.
    pub fn revoke_noting_blocking(
        &self,
        leases: &[(LeaseId, Reason)],
        at_millis: u64,
        notes: Vec<Note>,
    ) -> Result<(), LedgerError> {
        self.change_blocking(revocations(leases, at_millis, notes)).map(|_| ())
    }

    /// Writes notes down. They are in the queue when this returns, before anything that is asked later; what comes
    /// back resolves when they are on the disk.
    pub fn note(&self, notes: Vec<Note>) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        let (to, answer) = oneshot::channel();
        let queued = self.thread.jobs();
        let queued = queued.and_then(|jobs| jobs.push(Job::Change(Change::Commit(Vec::new(), notes), to)));
        async move {
            queued?;
            answer.await.unwrap_or(Err(LedgerError::Closed)).map(|_| ())
        }
    }

    /// [`Ledger::note`] for whoever does not wait: what cannot be written now goes out with the next transaction that
    /// succeeds, unless something newer was noted under the same key since.
    pub fn note_soon(&self, notes: Vec<Note>) {
        if notes.is_empty() {
            return;
        }
        let job = Job::Change(Change::Revoke(Vec::new(), notes), oneshot::channel().0);
        // A ledger that is closed is read again at the next start.
        self.thread.jobs().ok().map(|jobs| jobs.push(job));
    }

    /// [`Ledger::note_soon`] for what a later note says again: dropped when much waits already, so that nobody fills the
    /// memory while the disk hangs. Whether it was taken.
    pub fn note_if_room(&self, notes: Vec<Note>) -> bool {
        let weight = notes.len();
        let job = Job::Change(Change::Revoke(Vec::new(), notes), oneshot::channel().0);
        self.thread.jobs().is_ok_and(|jobs| jobs.spare(job, weight).is_ok())
    }

    /// The notes that were in the ledger when it was opened.
    pub fn found_notes(&self) -> &[Note] {
        &self.found_notes
    }

    /// Forgets every row whose `not_after` is before `before` (Unix seconds); answers how many.
    pub async fn expire(&self, before: u64) -> Result<usize, LedgerError> {
        self.change(Change::Expire { before }).await
    }

    /// Records a published CRL, so that a ledger older than the published CRL shows (rollback).
    pub async fn record_crl(&self, issuer: &str, mark: CrlMark) -> Result<(), LedgerError> {
        self.change(Change::Mark { issuer: issuer.to_owned(), mark }).await.map(|_| ())
    }

    /// [`Ledger::record_crl`] for a thread outside the runtime.
    pub fn record_crl_blocking(&self, issuer: &str, mark: CrlMark) -> Result<(), LedgerError> {
        self.change_blocking(Change::Mark { issuer: issuer.to_owned(), mark }).map(|_| ())
    }

    /// The recorded CRL of each issuer.
    pub fn crl_marks(&self) -> BTreeMap<String, CrlMark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records what an operator took from processes at `at_millis` (Unix milliseconds). What cannot be written now
    /// is kept, and goes out with the next transaction that succeeds, as revocations do.
    pub async fn bar(&self, bars: &[Bar], at_millis: u64) -> Result<(), LedgerError> {
        let bars = bars.iter().map(|bar| codec::encode_bar(bar, at_millis)).collect::<Result<_, _>>()?;
        self.change(Change::Bar(bars)).await.map(|_| ())
    }

    /// Forgets every bar of processes that have ended.
    pub async fn unbar(&self, ended: Vec<ProcessKey>) -> Result<(), LedgerError> {
        self.change(Change::Unbar(ended)).await.map(|_| ())
    }

    /// The bars that were in the ledger when it was opened.
    pub fn found_bars(&self) -> &[Bar] {
        &self.found_bars
    }

    /// Every row, read back from the store after everything queued before.
    pub async fn rows(&self) -> Result<Vec<Row>, LedgerError> {
        let (to, answer) = oneshot::channel();
        self.thread.jobs()?.push(Job::Rows(to))?;
        answer.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// Follows the ledger's health.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Whether the last write succeeded. Whatever was owed has gone out with it.
    pub fn is_good(&self) -> bool {
        *self.health.borrow() == Health::Good
    }

    fn start(medium: Box<dyn Medium>, pauses: Pauses) -> Result<(Self, Vec<Row>), OpenError> {
        let (store, contents) = Store::open(medium)?;
        let (jobs, receiver) = queue::channel(QUEUE_ROWS);
        let attempts = Attempts::new("ledger", pauses.idle);
        let health = attempts.health();
        let marks = Marks::default();
        *marks.lock().unwrap_or_else(PoisonError::into_inner) = contents.marks;
        let writer = Writer {
            store,
            jobs: receiver,
            marks: marks.clone(),
            gather: pauses.gather,
            owed: HashMap::new(),
            owed_bars: HashMap::new(),
            owed_notes: HashMap::new(),
            attempts,
        };
        let thread = Worker::spawn("ledger", jobs, move || writer.run())
            .map_err(|source| OpenError::Unwritable { path: PathBuf::from("ledger thread"), source })?;
        let (found_bars, found_notes) = (contents.bars.into(), contents.notes.into());
        Ok((Self { thread: Arc::new(thread), health, marks, found_bars, found_notes }, contents.rows))
    }

    async fn change(&self, change: Change) -> Result<usize, LedgerError> {
        let (to, answer) = oneshot::channel();
        self.thread.jobs()?.push(Job::Change(change, to))?;
        answer.await.unwrap_or(Err(LedgerError::Closed))
    }

    fn change_blocking(&self, change: Change) -> Result<usize, LedgerError> {
        let (to, answer) = oneshot::channel();
        self.thread.jobs()?.push(Job::Change(change, to))?;
        answer.blocking_recv().unwrap_or(Err(LedgerError::Closed))
    }
}

/// A caller waiting for its commit. One that leaves after the answer was sent and before it was taken is
/// found here; one that leaves earlier is found by the writer.
struct Claim<'a> {
    ledger: &'a Ledger,
    answer: oneshot::Receiver<Result<Committed, LedgerError>>,
    issued_at: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.answer.close();
        let Ok(Ok(unclaimed)) = self.answer.try_recv() else { return };
        let leases: Vec<_> = unclaimed.ids.into_iter().map(|id| (id, Reason::IssueAborted)).collect();
        let revoke = revocations(&leases, self.issued_at.saturating_mul(1000), Vec::new());
        // Nobody waits for the answer; a ledger that is closed is read again at the next start.
        let job = Job::Change(revoke, oneshot::channel().0);
        self.ledger.thread.jobs().ok().map(|jobs| jobs.push(job));
    }
}

impl From<Refused> for LedgerError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Overloaded,
            Refused::Closed => Self::Closed,
        }
    }
}

fn encode(row: &Row) -> Result<Encoded, LedgerError> {
    Ok(Encoded { id: row.id, not_after: row.not_after, issued_at: row.issued_at, value: codec::encode(row)? })
}

fn revocations(leases: &[(LeaseId, Reason)], at_millis: u64, notes: Vec<Note>) -> Change {
    let revoked = |(id, reason): &(LeaseId, Reason)| (*id, Revoked { at_millis, reason: *reason });
    Change::Revoke(leases.iter().map(revoked).collect(), notes)
}

/// How many rows may wait to be committed: about a second's worth at the rate the store can do.
const QUEUE_ROWS: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use redb::Database;

    use super::store::Contents;
    use super::testing::{Dice, data_dir, effort, id, row};
    use super::*;
    use crate::id::EntryId;

    fn open(dir: &Path) -> Result<(Ledger, Vec<Row>), OpenError> {
        Ledger::open(&LedgerPlace::Disk(dir.to_owned()), IntegrityCheck::InProcess)
    }

    fn memory() -> Ledger {
        Ledger::open(&LedgerPlace::Memory, IntegrityCheck::InProcess).unwrap().0
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_a_restart() {
        let dir = data_dir();
        let (ledger, rows) = open(dir.path()).unwrap();
        assert!(rows.is_empty());
        let committed = ledger.commit(vec![row(1, 100), row(2, 50)]).await.unwrap();
        assert!(committed.covers(id(1)) && committed.covers(id(2)) && !committed.covers(id(3)));
        ledger.revoke(&[(id(2), Reason::Exited), (id(9), Reason::Exited)], 5_000).await.unwrap();
        ledger.revoke(&[(id(2), Reason::Operator)], 6_000).await.unwrap();
        ledger.record_crl("aa", CrlMark { number: 7, this_update: 8 }).await.unwrap();
        drop(ledger);
        let (ledger, rows) = open(dir.path()).unwrap();
        let revoked = State::Revoked { at_millis: 5_000, reason: Reason::Exited };
        assert_eq!(rows, [Row { state: revoked, ..row(2, 50) }, row(1, 100)]);
        assert_eq!(ledger.crl_marks()["aa"], CrlMark { number: 7, this_update: 8 });
        let mode = std::fs::metadata(dir.path().join("ledger.redb")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn expiry_takes_exactly_what_ended_before() {
        let ledger = memory();
        let rows = (0..10).map(|n| row(n, 100 + n)).collect();
        drop(ledger.commit(rows).await.unwrap());
        assert_eq!(ledger.expire(105).await, Ok(5));
        assert_eq!(ledger.expire(105).await, Ok(0));
        let left: Vec<_> = ledger.rows().await.unwrap().into_iter().map(|row| row.not_after).collect();
        assert_eq!(left, [105, 106, 107, 108, 109]);
        // Revoking what has expired is no error.
        ledger.revoke(&[(id(0), Reason::Exited)], 1).await.unwrap();
    }

    #[test]
    fn a_proof_covers_its_own_leases_only() {
        let committed = Committed::for_test(vec![id(1), id(2)]);
        assert!(committed.covers(id(2)) && !committed.covers(id(3)));
    }

    #[tokio::test]
    async fn a_lease_id_is_never_used_twice() {
        let ledger = memory();
        drop(ledger.commit(vec![row(1, 100)]).await.unwrap());
        let taken = LedgerError::Row("the lease ID is taken");
        assert_eq!(ledger.commit(vec![row(2, 100), row(1, 200)]).await.unwrap_err(), taken);
        assert_eq!(ledger.commit(vec![row(3, 100), row(3, 200)]).await.unwrap_err(), taken);
        assert_eq!(ledger.rows().await.unwrap(), [row(1, 100)]);
    }

    /// In memory; no transaction is finished while a test holds the lock.
    struct Held(Arc<Mutex<()>>);

    impl Medium for Held {
        fn open(&mut self) -> Result<(Database, Contents), OpenError> {
            Memory.open()
        }

        fn finished(&mut self, _transaction: u64) -> io::Result<()> {
            drop(self.0.lock().unwrap());
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_commit_nobody_waits_for_is_revoked() {
        for answered in [false, true] {
            let gate = Arc::new(Mutex::new(()));
            let (ledger, _) = Ledger::start(Box::new(Held(Arc::clone(&gate))), Pauses::default()).unwrap();
            let held = gate.lock().unwrap();
            let mut abandoned = Box::pin(ledger.commit(vec![row(1, 100)]));
            assert!((&mut abandoned).now_or_never().is_none(), "not on the disk yet");
            if answered {
                // The answer is there, and nobody has taken it: whoever asks later is answered later.
                drop(held);
                drop(ledger.commit(vec![row(2, 100)]).await.unwrap());
                drop(abandoned);
            } else {
                drop(abandoned);
                drop(held);
                drop(ledger.commit(vec![row(2, 100)]).await.unwrap());
            }
            // Whichever transaction the row was in, the next one but one knows that nobody took it.
            drop(ledger.commit(vec![row(3, 100)]).await.unwrap());
            let rows = ledger.rows().await.unwrap();
            let aborted = matches!(rows[0].state, State::Revoked { reason: Reason::IssueAborted, .. });
            assert!(aborted, "answered: {answered}: {rows:?}");
            assert_eq!(rows[1].state, State::Live);
        }
    }

    #[tokio::test]
    async fn many_callers_at_once_are_all_served() {
        let ledger = memory();
        let commits = (0..2_000).map(|n| ledger.commit(vec![row(n, 100)]));
        assert!(join_all(commits).await.into_iter().all(|answer| answer.is_ok()));
        assert_eq!(ledger.rows().await.unwrap().len(), 2_000);
    }

    #[tokio::test]
    async fn a_bar_stands_until_its_process_has_ended() {
        let dir = data_dir();
        let (ledger, _) = open(dir.path()).unwrap();
        let process = row(1, 100).process;
        let other = ProcessKey { pid: process.pid + 1, ..process };
        let entry = |process| Bar { process, entry: Some(EntryId::new("web")) };
        let bars = [Bar { process, entry: None }, entry(process), entry(other)];
        ledger.bar(&bars, 7).await.unwrap();
        ledger.bar(&bars, 8).await.unwrap();
        drop(ledger);
        let (ledger, _) = open(dir.path()).unwrap();
        assert_eq!(ledger.found_bars(), bars);
        ledger.unbar(vec![process]).await.unwrap();
        drop(ledger);
        let (ledger, _) = open(dir.path()).unwrap();
        assert_eq!(ledger.found_bars(), &bars[2..]);
    }

    #[test]
    fn a_second_agent_is_refused_and_may_follow_the_first() {
        let dir = data_dir();
        let (first, _) = open(dir.path()).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::InUse { .. })));
        assert!(matches!(reset(dir.path(), 1), Err(OpenError::InUse { .. })));
        drop(first.clone());
        assert!(matches!(open(dir.path()), Err(OpenError::InUse { .. })));
        drop(first);
        open(dir.path()).unwrap();
    }

    #[test]
    fn places_others_could_touch_are_refused() {
        let dir = data_dir();
        drop(open(dir.path()).unwrap());
        let file = dir.path().join("ledger.redb");
        let chmod = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o640, 0o602] {
            chmod(&file, mode);
            assert!(matches!(open(dir.path()), Err(OpenError::Unwritable { .. })), "{mode:o}");
        }
        chmod(&file, 0o600);
        std::fs::hard_link(&file, dir.path().join("second name")).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Unwritable { .. })));
        std::fs::remove_file(dir.path().join("second name")).unwrap();
        std::fs::rename(&file, dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), &file).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Unwritable { .. })));
        chmod(dir.path(), 0o770);
        assert!(matches!(open(dir.path()), Err(OpenError::Untrusted(_))));
    }

    #[test]
    fn a_ledger_that_is_gone_beside_its_keys_is_not_replaced() {
        let dir = data_dir();
        std::fs::create_dir(dir.path().join("authority")).unwrap();
        drop(open(dir.path()).unwrap());
        std::fs::write(dir.path().join("authority/x509.key"), "key").unwrap();
        drop(open(dir.path()).unwrap());
        std::fs::remove_file(dir.path().join("ledger.redb")).unwrap();
        let refused = open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("mayfly ledger reset --data-dir") && refused.contains("gone"), "{refused}");
        reset(dir.path(), 1).unwrap();
        open(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn an_older_copy_of_the_ledger_is_refused() {
        let dir = data_dir();
        let (file, head) = (dir.path().join("ledger.redb"), dir.path().join("ledger.head"));
        let (ledger, _) = open(dir.path()).unwrap();
        drop(ledger.commit(vec![row(1, 100)]).await.unwrap());
        drop(ledger);
        let old = std::fs::read(&file).unwrap();
        let (ledger, _) = open(dir.path()).unwrap();
        ledger.revoke(&[(id(1), Reason::Exited)], 1).await.unwrap();
        drop(ledger);
        let new = std::fs::read(&file).unwrap();
        let refused = |image: &[u8]| {
            std::fs::write(&file, image).unwrap();
            matches!(open(dir.path()), Err(OpenError::Corrupt { .. }))
        };
        assert!(refused(&old) && !refused(&new));
        std::fs::remove_file(head).unwrap();
        assert!(refused(&new));
    }

    #[test]
    fn an_unfinished_first_start_is_cleaned_up() {
        let dir = data_dir();
        std::fs::write(dir.path().join("ledger.redb.new"), "half").unwrap();
        drop(open(dir.path()).unwrap());
        assert!(!dir.path().join("ledger.redb.new").exists());
    }

    #[test]
    fn the_childs_verdict_decides() {
        let dir = data_dir();
        let with = |program: &Path| {
            let check = IntegrityCheck::Child { program: program.to_owned() };
            Ledger::open(&LedgerPlace::Disk(dir.path().to_owned()), check).map(|_| ())
        };
        let script = |body: &str| {
            let path = dir.path().join("check");
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            path
        };
        with(Path::new("/bin/true")).unwrap();
        let why = |error: OpenError| match error {
            OpenError::Corrupt { why, .. } => why,
            other => panic!("{other}"),
        };
        assert_eq!(why(with(&script("echo torn page; exit 1")).unwrap_err()), "torn page");
        assert_eq!(why(with(&script("kill -ABRT $$")).unwrap_err()), "checking it crashes");
        assert_eq!(why(with(&script("exit 101")).unwrap_err()), "checking it ended with exit code 101");
        assert!(matches!(with(&script("exit 6")), Err(OpenError::InUse { .. })));
        assert!(matches!(with(&script("exit 5")), Err(OpenError::Unwritable { .. })));
        assert!(matches!(with(Path::new("/nonexistent")), Err(OpenError::Unwritable { .. })));
    }

    #[tokio::test]
    async fn a_damaged_ledger_is_refused_or_reads_as_written() {
        let dir = data_dir();
        let (ledger, _) = open(dir.path()).unwrap();
        for n in 0..40 {
            drop(ledger.commit((0..5).map(|k| row(n * 5 + k, 100 + n)).collect()).await.unwrap());
        }
        let expected = ledger.rows().await.unwrap();
        let path = dir.path().join("ledger.redb");
        // As a killed agent leaves it, and as one that was stopped.
        let killed = std::fs::read(&path).unwrap();
        drop(ledger);
        let images = [killed, std::fs::read(&path).unwrap()];
        let mut dice = Dice::new(1);
        let (mut refused, mut whole) = (0, 0);
        for round in 0..effort(200, 10_000) {
            let good = &images[dice.roll(2)];
            let mut bad = good.clone();
            match dice.roll(5) {
                0 => bad[dice.roll(good.len())] ^= 1u8 << dice.roll(8),
                1 => bad.truncate(dice.roll(good.len())),
                2 => {
                    let page = dice.roll(good.len() / 4096) * 4096;
                    bad[page..page + 4096].fill(0);
                }
                3 => bad[dice.roll(4096)] ^= 0xff,
                _ => {
                    // Part of a page from another page.
                    let (from, to) = (dice.roll(good.len() - 600), dice.roll(good.len() - 600));
                    bad[to..to + 600].copy_from_slice(&good[from..from + 600]);
                }
            }
            std::fs::write(&path, &bad).unwrap();
            match open(dir.path()) {
                Ok((_ledger, rows)) => {
                    assert!(rows == expected, "round {round}: {} of {} rows", rows.len(), expected.len());
                    whole += 1;
                }
                Err(OpenError::Corrupt { .. }) => refused += 1,
                Err(other) => panic!("round {round}: {other}"),
            }
        }
        assert!(refused > 20 && whole > 20, "{refused} refused, {whole} read");
    }

    #[tokio::test]
    async fn closing_finishes_what_was_queued() {
        let dir = data_dir();
        let (ledger, _) = open(dir.path()).unwrap();
        drop(ledger.commit(vec![row(1, 100)]).await.unwrap());
        let other = ledger.clone();
        let revoke = move || other.revoke_noting_blocking(&[(id(1), Reason::Exited)], 3, Vec::new());
        tokio::task::spawn_blocking(revoke).await.unwrap().unwrap();
        drop(ledger);
        let (_ledger, rows) = open(dir.path()).unwrap();
        assert!(matches!(rows[0].state, State::Revoked { .. }));
    }

    #[tokio::test]
    async fn commits_are_refused_when_too_many_wait() {
        let ledger = memory();
        let rows = (0..u64::try_from(QUEUE_ROWS).unwrap() + 1).map(|n| row(n, 1)).collect();
        assert_eq!(ledger.commit(rows).await.unwrap_err(), LedgerError::Overloaded);
        let soon = tokio::time::timeout(Duration::from_secs(60), ledger.commit(vec![row(1, 1)]));
        assert!(soon.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn notes_that_are_said_again_are_dropped_when_the_disk_hangs_and_leave_room_for_others() {
        let gate = Arc::new(Mutex::new(()));
        let (ledger, _) = Ledger::start(Box::new(Held(Arc::clone(&gate))), Pauses::default()).unwrap();
        let held = gate.lock().unwrap();
        let note = || vec![Note { key: b"u".to_vec(), value: Some(b"1".to_vec()) }];
        // The writer takes what came first before it gets stuck.
        let taken = (0..2 * QUEUE_ROWS).filter(|_| ledger.note_if_room(note())).count();
        assert!(taken < 2 * QUEUE_ROWS, "none was dropped");
        let mut waiting = Box::pin(ledger.commit(vec![row(1, 100)]));
        assert!((&mut waiting).now_or_never().is_none(), "there is room for what cannot be dropped");
        drop(held);
        drop(waiting.await.unwrap());
        assert!(ledger.note_if_room(note()));
    }

    #[tokio::test]
    async fn notes_are_there_after_a_restart_until_they_are_taken_back() {
        let dir = data_dir();
        let (ledger, _) = open(dir.path()).unwrap();
        let note =
            |key: &[u8], value: Option<&[u8]>| Note { key: key.to_vec(), value: value.map(<[u8]>::to_vec) };
        let first = ledger.note(vec![note(b"a", Some(b"1")), note(b"b", Some(b"2"))]);
        // Queued, though nobody waits for it yet.
        ledger.revoke_noting(&[], 5, vec![note(b"b", None)]).await.unwrap();
        first.await.unwrap();
        drop(ledger.commit_noting(&[row(1, 100)], vec![note(b"a", Some(b"3"))]).await.unwrap());
        let taken = ledger.commit_noting(&[row(1, 100)], vec![note(b"a", Some(b"4"))]).await;
        assert_eq!(taken.map(drop), Err(LedgerError::Row("the lease ID is taken")));
        drop(ledger);
        let (ledger, rows) = open(dir.path()).unwrap();
        assert_eq!(ledger.found_notes(), [note(b"a", Some(b"3"))]);
        assert_eq!(rows.len(), 1);
    }
}
