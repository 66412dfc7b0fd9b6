//! Puts a set into the directory, and copies where copies are wanted.

use std::path::Path;

use super::config::{Config, Copy};
use super::plan::{Set, items};
use crate::files::{Folder, Layout, WriteError, write_atomic_for};

/// The directory that is ours, locked.
#[derive(Debug)]
pub(super) struct Place {
    folder: Folder,
    copies: Vec<Copy>,
}

impl Place {
    pub(super) fn open(config: &Config) -> Result<Self, WriteError> {
        let folder = Folder::open(&config.directory, Layout::SHARED)?;
        Ok(Self { folder, copies: config.copies.clone() })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The whole set in one step, then the copies, one after the other.
    pub(super) fn write(&self, set: &Set) -> Result<(), WriteError> {
        self.folder.replace(&items(set))?;
        self.copy(set)
    }

    /// What is left at the end of an identity; nothing of a set before stays anywhere.
    pub(super) fn reduce(&self, set: &Set) -> Result<(), WriteError> {
        self.folder.reduce(&items(set))?;
        self.copy(set)
    }

    fn copy(&self, set: &Set) -> Result<(), WriteError> {
        for copy in &self.copies {
            let io = |source| WriteError::Io { path: copy.to.clone(), source };
            match set.get(&copy.of) {
                Some(file) => {
                    let target = &file.target;
                    write_atomic_for(&copy.to, target.mode, target.owner, &file.bytes).map_err(io)?;
                }
                None => match std::fs::remove_file(&copy.to) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
                    _ => {}
                },
            }
        }
        Ok(())
    }
}
