//! What an order of the kill switch has to do at the disk. It holds in memory long before: a disk that hangs keeps nobody from
//! the next order, and no thread that serves waits for it.

use std::io;
use std::sync::Arc;

use mayfly_attestors::failpoint;
use tokio::sync::oneshot;

use super::{Workloads, lock};
use crate::audit::{self, Event};
use crate::policy::{Freezes, Frozen, Thawed, store_freezes};

/// Orders to thaw go to the disk first, and may be overtaken there.
#[derive(Debug, Default)]
pub(super) struct Freezing {
    /// What is being thawed. Whoever freezes it takes it out.
    pub(super) thawing: Option<Frozen>,
}

impl Workloads {
    /// Does what waits for a disk: one order after the other, each with what is newest then, to its end, whether or not
    /// whoever gave the order still waits.
    pub(super) async fn at_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (to, answer) = oneshot::channel();
        let trace = audit::trace::current();
        let (workloads, turn) = (self.clone(), Arc::clone(&self.0.freezes_disk));
        self.0.spawn(async move {
            let turn = turn.lock_owned().await;
            // Only one waits in a thread, however many wait.
            let work = tokio::task::spawn_blocking(move || {
                let done = audit::trace::within(trace, || work(&workloads));
                drop(turn);
                done
            });
            // Whoever asked may be gone.
            work.await.ok().map(|done| to.send(done).ok());
        });
        answer.await.map_err(|_gone| io::Error::other("the agent is stopping"))
    }

    /// Writes down what is frozen. To be called at the disk.
    pub(super) fn write_freezes(&self) -> io::Result<()> {
        failpoint::hit("freezes.before_write");
        self.store(&self.freezes())
    }

    fn store(&self, freezes: &Freezes) -> io::Result<()> {
        let Some(path) = &self.0.settings.freezes else { return Ok(()) };
        let mut freezes = freezes.clone();
        freezes.set_flag(*lock(&self.0.flag_told));
        store_freezes(path, &freezes)
    }

    /// Lets something go on: as soon as that is written down, and not before.
    ///
    /// # Errors
    /// It could not be written down, or somebody froze it again meanwhile: it stays frozen.
    pub async fn thaw(&self, what: &Frozen, reason: &str, by: audit::Agent) -> io::Result<Thawed> {
        let (what, reason) = (what.clone(), reason.to_owned());
        self.at_disk(move |workloads| workloads.thaw_now(&what, &reason, &by)).await?
    }

    fn thaw_now(&self, what: &Frozen, reason: &str, by: &audit::Agent) -> io::Result<Thawed> {
        let (uid, now, alone) = (by.uid, self.0.parts.clock.wall(), self.0.settings.serves_one_user);
        let (mut thawed, after) = {
            let mut freezing = lock(&self.0.freezing);
            let mut after = self.freezes();
            let thawed = if alone { after.thaw_alone(what) } else { after.thaw(what, uid, now) };
            if thawed == Thawed::Done {
                freezing.thawing = Some(what.clone());
            } else if !alone {
                // Only who has said so, which no file has.
                self.policy().change_freezes(|freezes| freezes.thaw(what, uid, now));
            }
            (thawed, after)
        };
        let event = |needs_another| {
            let (by, what, reason) = (Some(by.clone()), what.to_string(), reason.to_owned());
            vec![Event::Thaw { by, what, reason, needs_another }]
        };
        if thawed == Thawed::Done {
            let written = self.store(&after);
            failpoint::hit("freezes.before_lift");
            self.end_thaw(what, written, event(false))?;
        }
        // What is not frozen may stand still all the same, where an earlier thaw could not have it go on.
        let stood_still = thawed != Thawed::NeedsAnother && self.let_go_on(what);
        if thawed == Thawed::Nothing && stood_still {
            thawed = Thawed::Done;
            self.0.parts.audit.note(event(false));
        }
        if thawed == Thawed::NeedsAnother {
            self.0.parts.audit.note(event(true));
        }
        self.0.tell_suspended();
        Ok(thawed)
    }

    /// Memory follows the disk, unless memory was told to freeze it meanwhile. On record in the order in which it happened.
    fn end_thaw(&self, what: &Frozen, written: io::Result<()>, events: Vec<Event>) -> io::Result<()> {
        let mut freezing = lock(&self.0.freezing);
        let still_wanted = freezing.thawing.take().is_some();
        written.map_err(|error| {
            io::Error::other(format!("that it goes on could not be written down ({error})"))
        })?;
        if !still_wanted {
            return Err(io::Error::other("somebody froze it again meanwhile"));
        }
        self.policy().change_freezes(|freezes| freezes.lift(what));
        self.0.parts.audit.note(events);
        Ok(())
    }
}
