//! The one thread that works a queue off into a file, and how it fails and tries again.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use super::{Refused, Sender};

/// A thread and the way to it. Dropping it waits until everything queued is done.
#[derive(Debug)]
pub struct Worker<T> {
    jobs: Option<Sender<T>>,
    handle: Option<JoinHandle<()>>,
}

impl<T> Worker<T> {
    /// Starts `work`, which takes jobs until the queue is closed.
    pub fn spawn(name: &str, jobs: Sender<T>, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self { jobs: Some(jobs), handle: Some(handle) })
    }

    /// Where jobs go.
    ///
    /// # Errors
    /// [`Refused::Closed`] while it is being dropped.
    pub fn jobs(&self) -> Result<&Sender<T>, Refused> {
        self.jobs.as_ref().ok_or(Refused::Closed)
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.jobs = None;
        // A worker that panicked has told its callers by leaving them unanswered.
        self.handle.take().map(JoinHandle::join);
    }
}

/// Whether a store takes writes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Health {
    /// The last write succeeded.
    Good,
    /// The last write failed; nothing can be issued until a later one succeeds.
    Failing {
        /// What the system said.
        why: String,
    },
}

/// Counts what went wrong in a row, tells those who follow, and says how long to wait.
#[derive(Debug)]
pub struct Attempts {
    what: &'static str,
    first_pause: Duration,
    failures: u32,
    health: watch::Sender<Health>,
}

impl Attempts {
    /// `what` is the store's name in the log; `first_pause` lasts until the first attempt that nobody asked for, and
    /// doubles from then on.
    pub fn new(what: &'static str, first_pause: Duration) -> Self {
        Self { what, first_pause, failures: 0, health: watch::Sender::new(Health::Good) }
    }

    /// Follows the store's health.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// How many writes have failed since the last that did not.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// A write failed.
    pub fn failed(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 {
            tracing::warn!(%why, "{} cannot be written, nothing is issued", self.what);
        } else {
            tracing::debug!(%why, failures = self.failures, "{} still cannot be written", self.what);
        }
        self.tell(Health::Failing { why: why.to_owned() });
    }

    /// A write succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.tell(Health::Good);
    }

    /// How long to wait for a job before trying unasked; `None` while all is well.
    pub fn patience(&self) -> Option<Duration> {
        let doublings = self.failures.checked_sub(1)?.min(10);
        Some(self.first_pause.saturating_mul(1 << doublings).min(LONGEST_PAUSE))
    }

    fn tell(&self, next: Health) {
        self.health.send_if_modified(|health| {
            let changed = *health != next;
            *health = next;
            changed
        });
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::super::{Taken, channel};
    use super::*;

    #[test]
    fn dropping_a_worker_finishes_what_was_queued() {
        let (sender, receiver) = channel(10);
        let (to, done) = std::sync::mpsc::channel();
        let worker = Worker::spawn("test", sender, move || {
            while let Taken::Batch(jobs) = receiver.take(None) {
                jobs.into_iter().for_each(|job: u32| to.send(job).unwrap());
            }
        });
        let worker = worker.unwrap();
        (0..5).for_each(|n| worker.jobs().unwrap().push(n).unwrap());
        drop(worker);
        assert_eq!(done.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn pauses_double_up_to_half_a_minute_and_end_with_success() {
        let mut attempts = Attempts::new("test", Duration::from_secs(1));
        let health = attempts.health();
        assert_eq!(attempts.patience(), None);
        let pauses: Vec<u64> = (0..7)
            .map(|_| {
                attempts.failed("full");
                attempts.patience().unwrap().as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(*health.borrow(), Health::Failing { why: "full".to_owned() });
        attempts.succeeded();
        assert_eq!((attempts.patience(), attempts.failures()), (None, 0));
        assert_eq!(*health.borrow(), Health::Good);
    }

    #[test]
    fn who_follows_is_woken_by_changes_only() {
        let mut attempts = Attempts::new("test", Duration::from_secs(1));
        let mut health = attempts.health();
        attempts.succeeded();
        assert!(!health.has_changed().unwrap());
        attempts.failed("full");
        assert!(health.has_changed().unwrap());
        health.borrow_and_update();
        attempts.failed("full");
        assert!(!health.has_changed().unwrap());
    }
}
