//! Tasks outlive a restart of the agent: what changes is noted in the ledger before it is answered.
//!
//! Notes are made and queued under the state lock, so that they are written in the order of what they tell. Only the note
//! that takes a task back may come later, with the revocation of what it held: an ended task is never noted again.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mayfly_attestors::failpoint;

use super::TaskError;
use crate::audit::{AuditError, Event};
use crate::id::TaskId;
use crate::ledger::{Committed, LedgerError, Note, Row};
use crate::workload::{Refusal, Shared, State};

/// Resolves when notes are on the disk, or cannot be put there.
pub(super) type Written = BoxFuture<'static, Result<(), LedgerError>>;

impl Shared {
    /// Queues notes. To be called under the state lock that they were made under.
    pub(super) fn note_down(&self, notes: Vec<Note>) -> Written {
        self.parts.ledger.note(notes).boxed()
    }

    /// Waits until notes are on the disk and events on record: both, or it has not happened.
    pub(super) async fn written_and_recorded(
        &self,
        written: Written,
        events: Vec<Event>,
    ) -> Result<(), Refusal> {
        let recorded = async {
            if failpoint::fails("task.record") {
                return Err(AuditError::Unavailable("told to fail".to_owned()));
            }
            self.parts.audit.record(events).await
        };
        let (written, recorded) = tokio::join!(written, recorded);
        written.map_err(Refusal::Ledger)?;
        recorded.map_err(Refusal::Audit)
    }

    /// Writes a lease down, and with it what its task and those above it have used up.
    pub(super) async fn write_down_used(&self, row: Row) -> Result<Committed, LedgerError> {
        let committed = {
            let state = self.lock();
            let used = row.task.map(|task| state.tasks.tree.notes_of_usage(task, &self.epoch));
            self.parts.ledger.commit_noting(&[row], used.unwrap_or_default())
        };
        committed.await
    }

    /// Something is refused to a task. Nobody waits until that is on the disk, and whoever is refused in a loop fills no
    /// memory: the next note of what the task has used has the count, too.
    pub(super) fn count_denial(&self, id: TaskId) {
        let mut state = self.lock();
        state.tasks.tree.note_denial(id);
        let notes = state.tasks.tree.notes_of_usage(id, &self.epoch);
        self.parts.ledger.note_if_room(notes);
    }

    /// Notes a step of which no record could be made as it is now that it was taken back.
    pub(super) fn note_undone(&self, state: &State, top: TaskId) {
        self.parts.ledger.note_soon(state.tasks.tree.notes_of_subtree(top, &self.epoch));
    }

    /// Resolves when everything that was queued before is on the disk: whoever asks a second time is not told of what a
    /// crash could take back.
    pub(super) async fn catch_up(&self) -> Result<(), TaskError> {
        let queued = self.parts.ledger.note(Vec::new());
        queued.await.map_err(|error| Refusal::Ledger(error).into())
    }

    /// Whether what was just revoked, and waited for, is in the ledger. Memory refuses it in any case.
    pub(super) fn is_written_down(&self) -> Result<(), TaskError> {
        self.is_in_ledger().map_err(|error| Refusal::Ledger(error).into())
    }
}
