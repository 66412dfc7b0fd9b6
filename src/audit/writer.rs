//! The one thread that writes: drains the queue, appends once, syncs once, answers everybody.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mayfly_attestors::failpoint;
use tokio::sync::{oneshot, watch};

use super::AuditError;
use super::chain::Head;
use super::event::Event;
use super::line::{self, Origin};
use super::sink::{BATCH_BYTES, Opened, Sink};
use super::trace::Stamp;
use crate::clock::Clock;
use crate::queue::{Attempts, Receiver, Taken};

/// What may be asked of the writer.
#[derive(Debug)]
pub(super) enum Job {
    Record(Vec<(Stamp, Event)>, oneshot::Sender<Result<(), AuditError>>),
    Note(Vec<(Stamp, Event)>),
    Reopen,
}

/// A caller's events, and where the answer goes.
pub(super) type Waiting = (Vec<(Stamp, Event)>, oneshot::Sender<Result<(), AuditError>>);

pub(super) struct Writer {
    pub(super) sink: Box<dyn Sink>,
    pub(super) origin: Origin,
    pub(super) jobs: Receiver<Job>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) head: watch::Sender<Head>,
    /// Events that were noted and could not be kept.
    pub(super) lost: Arc<AtomicU64>,
    /// Events that were noted and are not written yet.
    pub(super) kept: VecDeque<(Stamp, Event)>,
    /// To be told first: what was wrong with the log.
    pub(super) recovered: Option<Event>,
    pub(super) attempts: Attempts,
    /// The file must be opened before the next append.
    pub(super) stale: bool,
}

impl Writer {
    /// Works until the last handle is dropped and everything queued is written or refused.
    pub(super) fn run(mut self) {
        loop {
            match self.jobs.take(self.attempts.patience()) {
                Taken::Batch(jobs) => self.work(jobs),
                Taken::Idle => self.write(VecDeque::new()),
                Taken::Closed => break,
            }
        }
        self.write(VecDeque::new());
    }

    fn work(&mut self, jobs: Vec<Job>) {
        let mut waiting = VecDeque::new();
        for job in jobs {
            match job {
                Job::Record(events, to) => waiting.push_back((events, to)),
                Job::Note(events) => self.keep(events),
                Job::Reopen => {
                    // What came before belongs into the old file.
                    self.write(std::mem::take(&mut waiting));
                    self.stale = true;
                }
            }
        }
        self.write(waiting);
    }

    /// Writes everything, in as few pieces as their size allows.
    fn write(&mut self, mut waiting: VecDeque<Waiting>) {
        while !waiting.is_empty() || !self.is_idle() {
            if let Err(why) = self.write_piece(&mut waiting) {
                for (_, to) in waiting {
                    drop(to.send(Err(AuditError::Unavailable(why.clone()))));
                }
                return;
            }
        }
    }

    /// Writes one piece: what is owed first, then what callers wait for; answers them.
    fn write_piece(&mut self, waiting: &mut VecDeque<Waiting>) -> Result<(), String> {
        if let Err(why) = self.ready() {
            self.failed(&why);
            return Err(why);
        }
        let (now, lost) = (self.clock.wall(), self.lost.load(Ordering::Acquire));
        let gap = (lost > 0).then_some(Event::Gap { lost });
        let mut piece = Piece { head: *self.head.borrow(), lines: Vec::new(), origin: &self.origin };
        for event in self.recovered.iter().chain(&gap) {
            piece.add(now.into(), event);
        }
        let kept = piece.fill(self.kept.iter().map(|(at, event)| (*at, event)));
        let mut callers = Vec::new();
        while let Some((events, to)) = waiting.pop_front_if(|_| piece.has_room()) {
            for (at, event) in &events {
                piece.add(*at, event);
            }
            callers.push(to);
        }
        let (head, lines) = (piece.head, piece.lines);
        let written = self.append(&lines);
        let answer = written.clone().map_err(AuditError::Unavailable);
        match &written {
            Ok(()) => {
                self.recovered = None;
                self.lost.fetch_sub(lost, Ordering::AcqRel);
                self.kept.drain(..kept);
                self.head.send_replace(head);
                self.attempts.succeeded();
            }
            Err(why) => self.failed(why),
        }
        for to in callers {
            drop(to.send(answer.clone()));
        }
        written
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        if lines.is_empty() {
            return Ok(());
        }
        failpoint::hit("audit.before_write");
        if failpoint::fails("audit.before_write") {
            return Err("failpoint".to_owned());
        }
        self.sink.append(lines).map_err(|error| error.to_string())?;
        failpoint::hit("audit.after_write");
        Ok(())
    }

    /// Opens the file if it must be opened.
    fn ready(&mut self) -> Result<(), String> {
        if !self.stale && !self.sink.is_gone() {
            return Ok(());
        }
        let opened = self.sink.open(Some(*self.head.borrow())).map_err(|error| error.to_string())?;
        self.stale = false;
        self.recovered = recovered(&opened).or_else(|| self.recovered.take());
        if self.attempts.failures() > 0 && self.recovered.is_none() {
            // Something has to be written to see whether it can be, and this is worth a line.
            self.recovered = Some(Event::Recovered { cut_bytes: 0, moved_to: None });
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let owed = self.recovered.is_some() || !self.kept.is_empty() || self.lost.load(Ordering::Acquire) > 0;
        !owed && !self.stale && self.attempts.failures() == 0
    }

    fn failed(&mut self, why: &str) {
        self.stale = true;
        self.attempts.failed(why);
    }

    fn keep(&mut self, events: Vec<(Stamp, Event)>) {
        let room = MAX_KEPT.saturating_sub(self.kept.len());
        let over = events.len().saturating_sub(room);
        self.kept.extend(events.into_iter().take(room));
        self.lost.fetch_add(u64::try_from(over).unwrap_or(u64::MAX), Ordering::AcqRel);
    }
}

/// The event that tells of a log that was not whole, if it was not.
pub(super) fn recovered(opened: &Opened) -> Option<Event> {
    let moved_to = opened.moved_to.as_ref().map(|path| path.display().to_string());
    let whole = opened.cut_bytes == 0 && moved_to.is_none();
    (!whole).then_some(Event::Recovered { cut_bytes: opened.cut_bytes, moved_to })
}

/// Lines that are written at once.
struct Piece<'a> {
    head: Head,
    lines: Vec<u8>,
    origin: &'a Origin,
}

impl Piece<'_> {
    fn has_room(&self) -> bool {
        self.lines.len() < BATCH_BYTES
    }

    fn add(&mut self, at: Stamp, event: &Event) {
        line::append(self.origin, &mut self.head, at, event, &mut self.lines);
    }

    /// Adds events while there is room; answers how many.
    fn fill<'e>(&mut self, events: impl Iterator<Item = (Stamp, &'e Event)>) -> usize {
        let mut count = 0;
        for (at, event) in events {
            if !self.has_room() {
                break;
            }
            self.add(at, event);
            count += 1;
        }
        count
    }
}

/// How many noted events are kept while the log cannot be written.
const MAX_KEPT: usize = 16_384;
