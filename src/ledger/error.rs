//! What can go wrong with the ledger, by whom it must be mended.

use std::io;
use std::path::PathBuf;

use crate::files::FileError;

/// A write did not happen, or nobody can say that it did: issue nothing on the strength of it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LedgerError {
    /// The store refused; it is opened again on the next attempt.
    #[error("ledger unavailable: {0}")]
    Unavailable(String),
    /// Too many commits wait already.
    #[error("ledger overloaded")]
    Overloaded,
    /// The agent is shutting down.
    #[error("ledger closed")]
    Closed,
    /// The caller's row cannot be stored: a field is too long, or its ID is taken.
    #[error("row refused: {0}")]
    Row(&'static str),
}

/// The ledger cannot be used; the agent must not serve.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent holds the data directory (exit code 6).
    #[error("{} is in use by another agent", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// The data directory cannot be written (exit code 5).
    #[error("cannot write to {}: {source}", path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could read or change the ledger (exit code 5).
    #[error(transparent)]
    Untrusted(#[from] FileError),
    /// The ledger cannot be trusted to name every credential that was released (exit code 5).
    #[error(
        "the ledger {} is damaged ({why}), so credentials issued before can no longer be revoked one by one; \
         nothing will be issued. `mayfly ledger reset --data-dir {}` moves it aside together with its signing \
         keys: the next start makes new ones and every old credential leaves the bundle",
        path.display(), path.parent().unwrap_or(path).display()
    )]
    Corrupt {
        /// The ledger file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Written by a newer version of Mayfly (exit code 5).
    #[error("{} has schema {found}, this version reads {known}", path.display())]
    Schema {
        /// The ledger file.
        path: PathBuf,
        /// The schema in the file.
        found: u64,
        /// The schema of this program.
        known: u64,
    },
}
