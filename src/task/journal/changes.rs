//! What has to be noted when something of the tree has changed. An ended task is never noted again, so that the note that
//! takes it back may come whenever it likes.

use super::{Epoch, forget_offer, forget_task, note_offer, note_task, note_usage};
use crate::id::{DelegationId, TaskId};
use crate::ledger::Note;
use crate::task::{Cascade, Tree};

impl Tree {
    /// A task has begun: it, the one above it, and what it has taken up.
    pub fn notes_of_task(&self, id: TaskId, epoch: &Epoch) -> Vec<Note> {
        let line = self.lineage(id).into_iter().take(2).filter(|task| task.ended_at.is_none());
        let mut notes: Vec<Note> =
            line.flat_map(|task| [note_task(task, epoch), note_usage(task, epoch)]).collect();
        notes.extend(self.taken_up(id).map(|offer| note_offer(offer, epoch)));
        notes
    }

    /// An offer was made: it and, because that counts as a call, what the one above has used.
    pub fn notes_of_offer(&self, id: DelegationId, epoch: &Epoch) -> Vec<Note> {
        let Some(offer) = self.offered(id) else { return Vec::new() };
        let mut notes = self.notes_of_usage(offer.parent, epoch);
        notes.push(note_offer(offer, epoch));
        notes
    }

    /// Something was used up or refused: what each has used, from the task up.
    pub fn notes_of_usage(&self, id: TaskId, epoch: &Epoch) -> Vec<Note> {
        let live = self.lineage(id).into_iter().filter(|task| task.ended_at.is_none());
        live.map(|task| note_usage(task, epoch)).collect()
    }

    /// A task and all below it may have become narrower, or have other deadlines.
    pub fn notes_of_subtree(&self, top: TaskId, epoch: &Epoch) -> Vec<Note> {
        let below = self.subtree(top).into_iter().filter_map(|id| self.get(id));
        let live = below.filter(|task| task.ended_at.is_none());
        live.flat_map(|task| [note_task(task, epoch), note_usage(task, epoch)]).collect()
    }
}

impl Cascade {
    /// Takes back everything that keeps what is over.
    pub fn notes(&self) -> Vec<Note> {
        let tasks = self.ended.iter().flat_map(|ended| forget_task(ended.task));
        tasks.chain(self.void.iter().map(|id| forget_offer(*id))).collect()
    }
}
