//! The one thread that writes: drains the queue, makes one transaction of it, answers everybody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::row::{Note, Reason, Row};
use super::store::{Applied, Change, Revoked, Store};
use super::{Committed, CrlMark, LedgerError};
use crate::id::LeaseId;
use crate::queue::{Attempts, Receiver, Taken};

/// One caller's wish, and where the answer goes.
#[derive(Debug)]
pub(super) enum Job {
    Commit(Change, oneshot::Sender<Result<Committed, LedgerError>>),
    Change(Change, oneshot::Sender<Result<usize, LedgerError>>),
    Rows(oneshot::Sender<Result<Vec<Row>, LedgerError>>),
}

/// Marks shared with the readers of [`super::Ledger::crl_marks`].
pub(super) type Marks = Arc<Mutex<BTreeMap<String, CrlMark>>>;

/// How long to wait between attempts while the store refuses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    /// Before an attempt that follows a failed one: gathers callers, so that a flood of them does not
    /// become a flood of openings.
    pub(super) gather: Duration,
    /// Until the first attempt nobody asked for; doubles.
    pub(super) idle: Duration,
}

pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) jobs: Receiver<Job>,
    pub(super) marks: Marks,
    /// See [`Pauses::gather`].
    pub(super) gather: Duration,
    /// Revocations that were asked for, or are owed, and are not on the disk yet.
    pub(super) owed: HashMap<LeaseId, Revoked>,
    /// Bars that were asked for and are not on the disk yet: key and value.
    pub(super) owed_bars: HashMap<Vec<u8>, Vec<u8>>,
    /// Notes that went with revocations and are not on the disk yet: key and value.
    pub(super) owed_notes: HashMap<Vec<u8>, Option<Vec<u8>>>,
    pub(super) attempts: Attempts,
}

/// What the answers need, kept while the changes are in the transaction.
enum Answer {
    Commit { ids: Vec<LeaseId>, issued_at: u64, to: oneshot::Sender<Result<Committed, LedgerError>> },
    Change(oneshot::Sender<Result<usize, LedgerError>>),
    Mark(String, CrlMark, oneshot::Sender<Result<usize, LedgerError>>),
    None,
}

impl Writer {
    /// Works until the last handle is dropped and everything queued is done.
    pub(super) fn run(mut self) {
        loop {
            match self.jobs.take(self.attempts.patience()) {
                Taken::Batch(mut jobs) => {
                    if self.attempts.failures() > 1 {
                        std::thread::sleep(self.gather);
                        if let Taken::Batch(more) = self.jobs.take(Some(Duration::ZERO)) {
                            jobs.extend(more);
                        }
                    }
                    self.work(jobs);
                }
                Taken::Idle => self.work(Vec::new()),
                Taken::Closed => break,
            }
        }
        if self.owes_leases() || !self.owed_bars.is_empty() {
            self.work(Vec::new());
        }
    }

    fn work(&mut self, jobs: Vec<Job>) {
        let (mut changes, mut answers, mut readers) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Job::Rows(to) => readers.push(to),
                Job::Commit(change, to) => {
                    answers.push(commit_answer(&change, to));
                    changes.push(change);
                }
                Job::Change(change, to) => {
                    answers.push(match &change {
                        Change::Mark { issuer, mark } => Answer::Mark(issuer.clone(), *mark, to),
                        _ => Answer::Change(to),
                    });
                    changes.push(change);
                }
            }
        }
        // After the commits of this batch: a lease may be revoked in the batch that commits it. But what was noted
        // since is newer than what is owed.
        if self.owes_leases() {
            let leases = self.owed.iter().map(|(id, why)| (*id, *why)).collect();
            let newer: HashSet<&[u8]> =
                changes.iter().flat_map(notes_of).map(|note| note.key.as_slice()).collect();
            let owed = self.owed_notes.iter().filter(|(key, _)| !newer.contains(key.as_slice()));
            let notes = owed.map(|(key, value)| Note { key: key.clone(), value: value.clone() }).collect();
            changes.push(Change::Revoke(leases, notes));
            answers.push(Answer::None);
        }
        if !self.owed_bars.is_empty() {
            changes.push(Change::Bar(self.owed_bars.clone().into_iter().collect()));
            answers.push(Answer::None);
        }
        if self.attempts.failures() > 0 {
            changes.push(Change::Probe);
            answers.push(Answer::None);
        }
        if !changes.is_empty() {
            match self.store.apply(&changes) {
                Ok(applied) => self.succeeded(answers, applied),
                Err(why) => self.failed(why, &changes, answers),
            }
        }
        for to in readers {
            drop(to.send(self.store.rows().map_err(LedgerError::Unavailable)));
        }
    }

    fn owes_leases(&self) -> bool {
        !self.owed.is_empty() || !self.owed_notes.is_empty()
    }

    fn succeeded(&mut self, answers: Vec<Answer>, applied: Vec<Applied>) {
        self.owed.clear();
        self.owed_bars.clear();
        self.owed_notes.clear();
        self.attempts.succeeded();
        for (answer, applied) in answers.into_iter().zip(applied) {
            let result = match applied {
                Applied::Done => Ok(0),
                Applied::Expired(count) => Ok(count),
                Applied::Refused(error) => Err(error),
            };
            match answer {
                Answer::Commit { ids, issued_at, to } => {
                    if let Err(Ok(unclaimed)) = to.send(result.map(|_| Committed { ids })) {
                        // The caller left; what it wanted can never be released now.
                        self.owe(unclaimed.ids, issued_at);
                    }
                }
                Answer::Change(to) => drop(to.send(result)),
                Answer::Mark(issuer, mark, to) => {
                    self.marks.lock().unwrap_or_else(PoisonError::into_inner).insert(issuer, mark);
                    drop(to.send(result));
                }
                Answer::None => {}
            }
        }
    }

    fn failed(&mut self, why: String, changes: &[Change], answers: Vec<Answer>) {
        self.attempts.failed(&why);
        for change in changes {
            match change {
                Change::Revoke(revoked, notes) => {
                    for (id, why) in revoked {
                        self.owed.entry(*id).or_insert(*why);
                    }
                    let notes = notes.iter().map(|note| (note.key.clone(), note.value.clone()));
                    self.owed_notes.extend(notes);
                }
                Change::Bar(bars) => self.owed_bars.extend(bars.iter().cloned()),
                _ => {}
            }
        }
        let error = LedgerError::Unavailable(why);
        for answer in answers {
            match answer {
                // It may be on the disk all the same, and was not released.
                Answer::Commit { ids, issued_at, to } => {
                    drop(to.send(Err(error.clone())));
                    self.owe(ids, issued_at);
                }
                Answer::Change(to) | Answer::Mark(_, _, to) => drop(to.send(Err(error.clone()))),
                Answer::None => {}
            }
        }
    }

    fn owe(&mut self, ids: Vec<LeaseId>, issued_at: u64) {
        let revoked = Revoked { at_millis: issued_at.saturating_mul(1000), reason: Reason::IssueAborted };
        for id in ids {
            self.owed.entry(id).or_insert(revoked);
        }
    }
}

fn notes_of(change: &Change) -> &[Note] {
    match change {
        Change::Commit(_, notes) | Change::Revoke(_, notes) => notes,
        _ => &[],
    }
}

fn commit_answer(change: &Change, to: oneshot::Sender<Result<Committed, LedgerError>>) -> Answer {
    let rows = match change {
        Change::Commit(rows, _) => rows.as_slice(),
        _ => &[],
    };
    let issued_at = rows.iter().map(|row| row.issued_at).max().unwrap_or(0);
    Answer::Commit { ids: rows.iter().map(|row| row.id).collect(), issued_at, to }
}

impl Default for Pauses {
    fn default() -> Self {
        Self { gather: Duration::from_millis(50), idle: Duration::from_secs(1) }
    }
}
