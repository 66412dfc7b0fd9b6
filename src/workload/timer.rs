//! The lease timer: one thread that sleeps until the core's next deadline.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Shared, lock};

/// How long it sleeps when nothing is due; an upper bound on how late a missed wake-up is noticed.
const IDLE: Duration = Duration::from_secs(3600);

pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let weak = Arc::downgrade(shared);
    std::thread::Builder::new().name("lease-timer".to_owned()).spawn(move || {
        while let Some(shared) = weak.upgrade() {
            shared.tick();
        }
    })?;
    Ok(())
}

impl Shared {
    fn tick(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let now = self.parts.clock.monotonic();
        let actions = state.core.on_timeout(now);
        if !actions.is_empty() {
            self.perform(&mut state, actions, now);
        }
        self.end_overdue_tasks(&mut state, now);
        let next = state.core.deadline().into_iter().chain(state.tasks.deadline()).min();
        let wait = next.map_or(IDLE, |at| at.saturating_duration_since(now).min(IDLE));
        state.timer_at = Some(now + wait);
        if wait.is_zero() {
            return;
        }
        drop(self.timer.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner));
    }
}
