//! Who keeps a task's credentials outlives a restart, too: it is named for ever by its process key, so that there is
//! nothing to find again.

use std::collections::BTreeSet;

use mayfly_attestors::ProcessKey;
use serde::{Deserialize, Serialize};

use super::{KEEPER, ProcessRecord, note};
use crate::id::TaskId;
use crate::ledger::Note;

/// The keeper of a task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeptBy {
    /// Whose.
    pub task: TaskId,
    /// Who.
    pub process: ProcessKey,
    /// For what.
    pub audiences: BTreeSet<String>,
}

/// The note that keeps the keeper of a task.
pub fn note_keeper(keeper: &KeptBy) -> Note {
    let record =
        KeeperRecord { process: ProcessRecord::of(&keeper.process), audiences: keeper.audiences.clone() };
    note(KEEPER, keeper.task.as_bytes(), &record)
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeeperRecord {
    process: ProcessRecord,
    audiences: BTreeSet<String>,
}

impl KeeperRecord {
    pub(super) fn keeper(self, task: TaskId) -> Option<KeptBy> {
        Some(KeptBy { task, process: self.process.key()?, audiences: self.audiences })
    }
}
