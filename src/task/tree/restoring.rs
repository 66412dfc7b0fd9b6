//! What an earlier run left is taken over, or ends: nothing goes on whose holder was not found again, that has lost what
//! was above it, or that is wider than what is above it.

use std::time::{Duration, Instant, SystemTime};

use super::{Cascade, Tree};
use crate::id::{LeaseId, TaskId};
use crate::lease::WorkloadId;
use crate::task::{Ending, Offer, Standing, Task};

/// What an earlier run left.
#[derive(Debug, Default)]
pub struct Past {
    /// Parents before their children.
    pub tasks: Vec<Task>,
    /// Offers that were open.
    pub offers: Vec<Offer>,
    /// What tasks held that has not expired.
    pub leases: Vec<(LeaseId, TaskId)>,
}

impl Tree {
    /// Takes it over. `holder` says who holds a task now, if that was found out. The answer is everything that does not
    /// go on; it is remembered as what has ended now.
    pub fn restore(
        &mut self,
        past: Past,
        holder: impl Fn(&Task) -> Option<WorkloadId>,
        now: Instant,
        wall: SystemTime,
    ) -> Vec<Cascade> {
        let order: Vec<TaskId> = past.tasks.iter().map(|task| task.id).collect();
        for mut task in past.tasks {
            task.seat.holder = holder(&task).unwrap_or(NOBODY);
            let parent = task.parent.and_then(|id| self.tasks.get_mut(&id));
            if let Some(parent) = parent {
                parent.children.insert(task.id);
            }
            self.index(task);
        }
        for (lease, task) in past.leases {
            self.hold(task, lease);
        }
        let mut cascades = Vec::new();
        for id in order {
            let lost =
                self.tasks.get(&id).is_some_and(|task| task.ended_at.is_none() && !self.goes_on(task, now));
            if lost {
                cascades.push(self.end(id, Ending::Restart, now, wall));
            }
        }
        for offer in past.offers {
            if self.stands_by(&offer) {
                self.take_in_offer(offer);
            } else {
                cascades.push(Cascade { void: vec![offer.id], ..Cascade::default() });
            }
        }
        // Time has passed meanwhile.
        cascades.extend(self.on_timeout(now, wall));
        cascades
    }

    /// Whether the task, by itself and beside the one above it, is one that this tree could have.
    fn goes_on(&self, task: &Task, now: Instant) -> bool {
        let sound = task.seat.holder != NOBODY
            // Whoever was to allow it has to be asked again, which nobody is.
            && task.standing != Standing::Pending
            && task.begun <= now + ROUNDING
            && task.deadline <= task.latest
            && task.latest <= task.begun + self.bounds.life + ROUNDING
            && task.depth <= self.bounds.depth
            && !task.charter.grants.is_empty();
        let Some(parent) = task.parent else { return sound && task.depth == 0 && task.root == task.id };
        let Some(parent) = self.tasks.get(&parent).filter(|parent| parent.ended_at.is_none()) else {
            return false;
        };
        let (own, above) = (&task.charter, &parent.charter);
        sound
            && (task.depth, task.root) == (parent.depth + 1, parent.root)
            && task.deadline <= parent.deadline
            && task.latest <= parent.latest
            && above.grants.part(own.grants.details()).is_ok()
            && own.limits == own.limits.within(&above.limits)
            && (own.require_isolated || !above.require_isolated)
            && (own.user.is_none() || own.user == above.user)
    }

    /// Whether whoever made the offer is still there, and what came of it if somebody took it up.
    fn stands_by(&self, offer: &Offer) -> bool {
        let parent = self.tasks.get(&offer.parent);
        parent.is_some_and(|parent| parent.ended_at.is_none()) && self.offers.get(offer.id).is_none()
    }
}

/// Holds what nobody holds: no workload is ever called so.
const NOBODY: WorkloadId = WorkloadId(u64::MAX);
/// Moments are kept in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);
