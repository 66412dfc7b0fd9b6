//! How often a task may ask for credentials: so many in any minute, wherever that minute begins. A count that starts
//! anew each minute would let twice as many through across its border.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Limit, Refused};
use crate::id::TaskId;

/// When each live task has asked lately. Of each no more moments are kept than it may ask in a minute.
#[derive(Debug, Default)]
pub struct Rates(HashMap<TaskId, VecDeque<Instant>>);

impl Rates {
    /// Takes one request of the minute that ends now, of which there are `most`.
    ///
    /// # Errors
    /// [`Limit::Rate`]; nothing was taken then.
    pub fn spend(&mut self, task: TaskId, most: u32, now: Instant) -> Result<(), Refused> {
        let lately = self.0.entry(task).or_default();
        while lately.front().is_some_and(|at| now.saturating_duration_since(*at) >= MINUTE) {
            lately.pop_front();
        }
        if lately.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
            return Err(Refused::Limit(Limit::Rate));
        }
        lately.push_back(now);
        Ok(())
    }

    /// So many requests of a task that goes on after a restart were made in the last minute: when exactly is not known, so
    /// that they count as made now.
    pub fn restore(&mut self, task: TaskId, count: u32, now: Instant) {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.0.insert(task, std::iter::repeat_n(now, count).collect());
    }

    /// It has ended.
    pub fn forget(&mut self, task: TaskId) {
        self.0.remove(&task);
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn task() -> TaskId {
        TaskId::new(1, [0; 10])
    }

    #[expect(clippy::disallowed_methods, reason = "any starting point will do")]
    fn start() -> Instant {
        Instant::now()
    }

    /// What a window that starts anew let through: all of one minute at its end, all of the next at its beginning.
    #[test]
    fn no_border_of_a_minute_lets_twice_as_many_through() {
        let (mut rates, start) = (Rates::default(), start());
        assert_eq!(rates.spend(task(), 60, start), Ok(()));
        let late = start + Duration::from_secs(59);
        let given = |rates: &mut Rates, at| (0..100).filter(|_| rates.spend(task(), 60, at).is_ok()).count();
        assert_eq!(given(&mut rates, late), 59);
        assert_eq!(given(&mut rates, late + Duration::from_secs(2)), 1, "the first one is a minute old");
        assert_eq!(given(&mut rates, late + MINUTE), 59);
    }

    #[test]
    fn what_was_used_up_before_a_restart_counts() {
        let (mut rates, start) = (Rates::default(), start());
        rates.restore(task(), 3, start);
        assert_eq!(rates.spend(task(), 3, start), Err(Refused::Limit(Limit::Rate)));
        assert_eq!(rates.spend(task(), 4, start), Ok(()));
        rates.forget(task());
        assert_eq!(rates.spend(task(), 1, start), Ok(()));
    }

    proptest! {
        /// Never more than so many in any minute, and never a no while there is room in it.
        #[test]
        fn so_many_in_any_minute_and_no_fewer(steps in prop::collection::vec(0..20_000_u64, 0..200), most in 1..8_u32) {
            let (mut rates, mut now) = (Rates::default(), start());
            let mut given: Vec<Instant> = Vec::new();
            for millis in steps {
                now += Duration::from_millis(millis);
                let lately = given.iter().filter(|at| now.saturating_duration_since(**at) < MINUTE).count();
                let room = lately < usize::try_from(most).unwrap();
                prop_assert_eq!(rates.spend(task(), most, now).is_ok(), room);
                given.extend(room.then_some(now));
            }
        }
    }
}
