//! Renewal: a new decision, never a revival. What policy takes away on that occasion, everything below loses as well.

use std::time::{Duration, Instant, SystemTime};

use super::{Cascade, Timer, Tree, wakes_at};
use crate::id::TaskId;
use crate::task::{Caller, Ending, Grants, Limit, Refused};

impl Tree {
    /// Until when the task would live if it were renewed now: no shorter than it does anyway.
    ///
    /// # Errors
    /// [`Refused`]: the caller cannot, or more was asked for and there is no more time to be had.
    pub fn renewed_until(
        &self,
        id: TaskId,
        life: Duration,
        caller: &Caller,
        now: Instant,
    ) -> Result<Instant, Refused> {
        let task = self.of_caller(id, caller)?;
        self.standing(id)?;
        if task.deadline <= now {
            return Err(Refused::Ended(Ending::Deadline));
        }
        if life > self.bounds.life {
            return Err(Refused::Limit(Limit::Life));
        }
        let above = task.parent.and_then(|parent| self.tasks.get(&parent)).map(|parent| parent.deadline);
        let wanted = now + life;
        if wanted <= task.deadline {
            return Ok(task.deadline);
        }
        let end = wanted.min(task.latest);
        let end = above.map_or(end, |above| end.min(above));
        if end <= task.deadline { Err(Refused::Limit(Limit::Life)) } else { Ok(end) }
    }

    /// Renews: until `end`, which [`Tree::renewed_until`] said, with no more than `cut`, which policy left.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn renew(
        &mut self,
        id: TaskId,
        life: Duration,
        cut: &Grants,
        caller: &Caller,
        now: Instant,
        wall: SystemTime,
    ) -> Result<Cascade, Refused> {
        let end = self.renewed_until(id, life, caller, now)?;
        let task = self.tasks.get_mut(&id).ok_or(Refused::NoSuchTask)?;
        let grants = task.charter.grants.cap(cut);
        if grants.is_empty() {
            return Err(Refused::NotGranted);
        }
        task.deadline = end;
        task.last_call = now;
        let at = wakes_at(task);
        self.timers.set(Timer::Task(id), at);
        self.note_change(id);
        Ok(self.narrow(id, &grants, now, wall))
    }

    /// Takes time back that was given too much, from the task and from everything below it.
    pub fn curtail(&mut self, top: TaskId, deadline: Instant) {
        for id in self.subtree(top) {
            let Some(task) = self.tasks.get_mut(&id).filter(|task| task.ended_at.is_none()) else { continue };
            task.deadline = task.deadline.min(deadline);
            let at = wakes_at(task);
            self.timers.set(Timer::Task(id), at);
            self.note_change(id);
        }
    }

    /// Takes from the task what is not in `cut`, and from everything below it what the one above has lost. What is
    /// left with nothing ends.
    pub fn narrow(&mut self, top: TaskId, cut: &Grants, now: Instant, wall: SystemTime) -> Cascade {
        let mut cascade = Cascade::default();
        for id in self.subtree(top) {
            let Some(task) = self.tasks.get(&id).filter(|task| task.ended_at.is_none()) else { continue };
            let above = match task.parent.filter(|_| id != top).and_then(|parent| self.tasks.get(&parent)) {
                Some(parent) => &parent.charter.grants,
                None => cut,
            };
            let left = task.charter.grants.cap(above);
            if left.is_empty() {
                cascade.extend(self.end(id, Ending::Policy, now, wall));
            } else if let Some(task) = self.tasks.get_mut(&id) {
                task.charter.grants = left;
                self.note_change(id);
            }
        }
        cascade
    }
}
