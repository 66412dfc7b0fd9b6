//! How much people are asked at most: who is asked without end says yes without looking.

use std::time::{Duration, Instant};

use super::{Approval, ApprovalState, Approvals, Subject};
use crate::task::{Limit, Refused};

/// How long things last, and how much there may be of them.
#[derive(Clone, Copy, Debug)]
pub struct ApprovalBounds {
    /// Until people have answered.
    pub wait: Duration,
    /// Until a yes is used.
    pub good: Duration,
    /// Of a task, waiting.
    pub pending: usize,
    /// Requests of a task in [`ApprovalBounds::window`]: more tires people.
    pub requests: usize,
    /// See there.
    pub window: Duration,
    /// Of an agent, whatever tasks it begins and ends, waiting.
    pub agent_pending: usize,
    /// Requests of an agent in the window.
    pub agent_requests: usize,
    /// Of this node, closed ones included.
    pub most: usize,
    /// Closed ones are remembered for so long.
    pub memory: Duration,
}

impl Default for ApprovalBounds {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(600),
            good: Duration::from_secs(300),
            pending: 3,
            requests: 5,
            window: Duration::from_secs(600),
            agent_pending: 12,
            agent_requests: 30,
            most: 1_000,
            memory: Duration::from_secs(1_800),
        }
    }
}

impl Approvals {
    /// Whether one more may be asked for; in a full book an old one makes room.
    ///
    /// # Errors
    /// [`Limit::Approvals`].
    pub(super) fn room_for(&mut self, subject: &Subject, now: Instant) -> Result<(), Refused> {
        let own = self.of_task.get(&subject.task).into_iter().flatten().filter_map(|id| self.all.get(id));
        let (waiting, lately) = self.count(own, now);
        let of_agent = self.all.values().filter(|one| one.subject.agent == subject.agent);
        let (agent_waiting, agent_lately) = self.count(of_agent, now);
        let bounds = &self.bounds;
        if waiting >= bounds.pending
            || lately >= bounds.requests
            || agent_waiting >= bounds.agent_pending
            || agent_lately >= bounds.agent_requests
            || !self.make_room()
        {
            return Err(Refused::Limit(Limit::Approvals));
        }
        Ok(())
    }

    /// Whether an agent may ask for one more, in whatever task. Says so before there is any; [`Approvals::request`]
    /// looks again.
    ///
    /// # Errors
    /// [`Limit::Approvals`].
    pub fn has_room_for(&self, agent: &str, now: Instant) -> Result<(), Refused> {
        let (waiting, lately) = self.count(self.all.values().filter(|one| one.subject.agent == agent), now);
        let bounds = &self.bounds;
        let full = self.all.len() >= bounds.most && self.all.values().all(|one| one.state.is_open());
        if waiting >= bounds.agent_pending || lately >= bounds.agent_requests || full {
            return Err(Refused::Limit(Limit::Approvals));
        }
        Ok(())
    }

    /// How many of these wait, and how many are of the window.
    fn count<'a>(&self, some: impl Iterator<Item = &'a Approval>, now: Instant) -> (usize, usize) {
        some.fold((0, 0), |(waiting, lately), one| {
            let waits = one.state == ApprovalState::Pending;
            let fresh = now.saturating_duration_since(one.requested) < self.bounds.window;
            (waiting + usize::from(waits), lately + usize::from(fresh))
        })
    }

    /// Where the book is full the closed one that was asked for first goes; `false` when all are open.
    fn make_room(&mut self) -> bool {
        while self.all.len() >= self.bounds.most {
            let closed = self.all.values().filter(|one| !one.state.is_open());
            let Some(oldest) = closed.min_by_key(|one| (one.requested, one.id)).map(|one| one.id) else {
                return false;
            };
            self.all.remove(&oldest);
        }
        true
    }
}
