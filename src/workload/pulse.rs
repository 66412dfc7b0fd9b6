//! A sign of life of the core that revokes. It goes the way a revocation goes: through the epoll of the thread that
//! sees exits, under the state lock, through the revoker's queue. Nothing else answers in their place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::Workloads;
use super::revoker::{Answer as Told, Job};

/// How far a sign of life came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pulse {
    /// All the way.
    Alive,
    /// Exits are seen and refused in memory; the revoker waits for the disk. To start again would not mend the disk,
    /// and memory would forget.
    WaitingForDisk,
    /// Nobody takes exits any more.
    NoWatch,
    /// Exits are refused in memory; nobody tells verifiers.
    NoRevoker,
}

impl Pulse {
    /// Whether the core does what it is for.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::WaitingForDisk)
    }

    fn of(watch: bool, revoker: bool, at_disk: bool) -> Self {
        match (watch, revoker, at_disk) {
            (false, ..) => Self::NoWatch,
            (true, true, _) => Self::Alive,
            (true, false, true) => Self::WaitingForDisk,
            (true, false, false) => Self::NoRevoker,
        }
    }
}

/// Whether the revoker is in a call that waits for a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct AtDisk(Arc<AtomicBool>);

impl AtDisk {
    /// Does something that may wait for a disk.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.store(true, Ordering::Release);
        let done = work();
        self.0.store(false, Ordering::Release);
        done
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

enum Answer {
    Watch,
    Revoker,
}

impl Workloads {
    /// Sends a sign of life through the core and waits for it, at most so long. Blocking.
    pub fn pulse(&self, patience: Duration) -> Pulse {
        let (answer, answers) = mpsc::channel();
        let (weak, clock) = (Arc::downgrade(&self.0), Arc::clone(&self.0.parts.clock));
        self.0.reaper.knock(Box::new(move || {
            let Some(shared) = weak.upgrade() else { return };
            drop(shared.lock());
            // Whoever asked may have given up.
            answer.send(Answer::Watch).ok();
            let told = Told(Box::new(move || drop(answer.send(Answer::Revoker))));
            shared.jobs.send(Job::Pulse(told)).ok();
        }));
        let until = clock.monotonic() + patience;
        let (mut watch, mut revoker) = (false, false);
        while !revoker {
            let rest = until.saturating_duration_since(clock.monotonic());
            match answers.recv_timeout(rest) {
                Ok(Answer::Watch) => watch = true,
                Ok(Answer::Revoker) => revoker = true,
                Err(_late_or_gone) => break,
            }
        }
        Pulse::of(watch, revoker, self.0.at_disk.is())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_excuses_a_silent_revoker_and_nothing_excuses_a_silent_watch() {
        for at_disk in [false, true] {
            assert!(Pulse::of(true, true, at_disk).is_alive());
            assert!(!Pulse::of(false, false, at_disk).is_alive());
        }
        assert_eq!(Pulse::of(true, false, true), Pulse::WaitingForDisk);
        assert!(!Pulse::of(true, false, false).is_alive());
    }

    #[test]
    fn the_disk_is_waited_for_only_while_it_is() {
        let at_disk = AtDisk::default();
        assert!(at_disk.clone().during(|| at_disk.is()));
        assert!(!at_disk.is());
    }
}
