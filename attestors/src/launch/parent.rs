//! Who started a process, when that is our own program: `mayfly run`, which keeps what its child works with.
//!
//! Less is asked of it than of a launcher: nobody's word is taken for what runs. What it is given another process of
//! the same user could get by tracing the child.

use rustix::fs::{Mode, OFlags};

use super::Launches;
use crate::host::Namespaces;
use crate::measure::FileFacts;
use crate::process::{PinError, ProcDir, Process};
use crate::target::is_traced;

/// Why a process has no parent that keeps anything for it.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// Something else started it, or nobody any more.
    #[error(
        "its parent is not the file that the agent runs: only `mayfly run` of the same version keeps credentials"
    )]
    NotOurs,
    /// Of another user, or on the way to become one.
    #[error("its parent is of another user")]
    Foreign,
    /// A container, or a user namespace.
    #[error("its parent is in another user or mount namespace than the agent")]
    Elsewhere,
    /// A debugger speaks for it.
    #[error("its parent is being traced")]
    Traced,
    /// One of the two went meanwhile.
    #[error("its parent ended")]
    Exited,
    /// We could not look.
    #[error("the agent cannot look at its parent now: {0}")]
    Unseen(String),
}

impl Launches {
    /// The direct parent of `child` at this moment, if it runs our own program, for the same user, where we are.
    ///
    /// # Errors
    /// See [`ParentError`].
    pub fn parent_of(&self, child: &Process) -> Result<Process, ParentError> {
        let host = child.host();
        let dir = ProcDir::open(host, child.pid()).map_err(|error| unseen(child, &error))?;
        let number = dir.stat().map_err(|error| unseen(child, &error))?.parent;
        let parent = Process::of_number(host, number).map_err(|error| match error {
            PinError::Exited | PinError::Overflow => ParentError::Exited,
            error => ParentError::Unseen(error.to_string()),
        })?;
        // Asked after it was pinned: who died in between has left its child to another one.
        let still = dir.stat().map_err(|error| unseen(child, &error))?;
        if !child.is_alive() || still.parent != number || parent.stat.start_time > still.start_time {
            return Err(ParentError::Exited);
        }
        let (parent, dir) = (parent.process, parent.dir);
        let live = parent.live(&dir).map_err(|error| unseen(&parent, &error))?;
        if !live.uids.agree() || live.uids.effective != child.uid() {
            return Err(ParentError::Foreign);
        }
        let (ours, theirs) = (host.namespaces(), Namespaces::of(dir.fd(), ""));
        if theirs.user.is_none() || (theirs.user, theirs.mount) != (ours.user, ours.mount) {
            return Err(ParentError::Elsewhere);
        }
        match is_traced(&parent) {
            Ok(false) => {}
            Ok(true) => return Err(ParentError::Traced),
            Err(_) => return Err(unseen(&parent, &std::io::Error::other("its threads cannot be looked at"))),
        }
        let exe = rustix::fs::openat(dir.fd(), "exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let facts =
            exe.map_err(std::io::Error::from).and_then(|exe| FileFacts::of(std::os::fd::AsFd::as_fd(&exe)));
        let facts = facts.map_err(|error| unseen(&parent, &error))?;
        if self.own_id() != Some(facts.id) {
            return Err(ParentError::NotOurs);
        }
        if parent.is_alive() { Ok(parent) } else { Err(ParentError::Exited) }
    }
}

fn unseen(process: &Process, error: &std::io::Error) -> ParentError {
    if process.is_alive() { ParentError::Unseen(error.to_string()) } else { ParentError::Exited }
}
