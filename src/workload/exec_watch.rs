//! What the exec watch tells, and what follows when it fails.

use std::time::{Duration, Instant};

use mayfly_attestors::ExecNotice;

use super::{Shared, Workloads, lock};
use crate::audit::Event;
use crate::lease::WorkloadId;

/// Two losses within this time are no accident.
const WINDOW: Duration = Duration::from_secs(60);

const CONCERN: &str = "exec watch";
const WHY: &str = "lost twice within a minute, so a program that starts another may be noticed late; look for a process that \
                   starts thousands of programs a second";

/// How reliable the watch is. Pure: time is passed in.
#[derive(Debug, Default)]
pub(super) struct WatchState {
    /// Whether the kernel gives word of exec at all.
    told: bool,
    last_loss: Option<Instant>,
    failing: bool,
}

/// What a notice changes about readiness.
#[derive(Debug, Eq, PartialEq)]
enum News {
    Fails,
    Works,
}

impl WatchState {
    fn lost(&mut self, now: Instant) -> Option<News> {
        let again = self.last_loss.is_some_and(|last| now.saturating_duration_since(last) < WINDOW);
        self.last_loss = Some(now);
        (again && !std::mem::replace(&mut self.failing, true)).then_some(News::Fails)
    }

    fn heard(&mut self, now: Instant) -> Option<News> {
        let quiet = self.last_loss.is_none_or(|last| now.saturating_duration_since(last) >= WINDOW);
        (quiet && std::mem::take(&mut self.failing)).then_some(News::Works)
    }
}

impl Workloads {
    /// Says that the kernel gives word of every exec: a program that changes without one was forged.
    pub fn exec_is_told(&self) {
        lock(&self.0.exec_watch).told = true;
    }

    /// Told by the exec watch. An `Exec` looks again at every workload with that pid, a `Lost` at all.
    pub fn on_exec(&self, notice: &ExecNotice) {
        let now = self.0.parts.clock.monotonic();
        let (news, suspects): (_, Vec<WorkloadId>) = {
            let mut watch = lock(&self.0.exec_watch);
            let state = self.0.lock();
            match notice {
                ExecNotice::Exec { pid } => {
                    let ids = state.by_pid.get(pid).into_iter().flatten();
                    (watch.heard(now), ids.copied().collect())
                }
                ExecNotice::Lost => (watch.lost(now), state.members.keys().copied().collect()),
            }
        };
        if *notice == ExecNotice::Lost {
            let suspects = u64::try_from(suspects.len()).unwrap_or(u64::MAX);
            tracing::warn!(suspects, "notices of exec were lost: every live workload is looked at again");
            self.0.parts.audit.note(vec![Event::ExecWatchLost { suspects }]);
        }
        match news {
            Some(News::Fails) => self.0.parts.readiness.raise(CONCERN, WHY),
            Some(News::Works) => self.0.parts.readiness.clear(CONCERN),
            None => {}
        }
        for id in suspects {
            if let Some(member) = self.0.lock().members.get_mut(&id) {
                member.execs += 1;
            }
            self.0.suspect(id);
        }
    }
}

impl Shared {
    /// Whether the watch works and has told of no exec of this workload beyond the first `execs`. One that is gone
    /// can no longer be told.
    pub(super) fn no_exec_since(&self, id: WorkloadId, execs: u64) -> bool {
        let told = lock(&self.exec_watch).told;
        told && self.lock().members.get(&id).is_some_and(|member| member.execs == execs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    #[test]
    fn b16_two_losses_within_a_minute_are_a_failure_until_a_quiet_one() {
        let (mut watch, start) = (WatchState::default(), SystemClock.monotonic());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.lost(at(0)), None);
        assert_eq!(watch.lost(at(60)), None, "one a minute is no failure");
        assert_eq!(watch.heard(at(61)), None);
        assert_eq!(watch.lost(at(100)), Some(News::Fails));
        assert_eq!(watch.lost(at(101)), None, "said once");
        assert_eq!(watch.heard(at(150)), None, "too soon");
        assert_eq!(watch.heard(at(161)), Some(News::Works));
        assert_eq!(watch.heard(at(162)), None);
    }
}
