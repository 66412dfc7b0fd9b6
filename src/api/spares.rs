//! Descriptors in hand, so that the agent goes on working when there are no others.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;

/// Descriptors kept for the rest of the process, for when there are no others.
#[derive(Debug)]
pub(super) struct Spares {
    held: Vec<OwnedFd>,
    wanted: usize,
}

impl Spares {
    /// Takes them at once.
    pub(super) fn new(wanted: usize) -> io::Result<Self> {
        let mut spares = Self { held: Vec::with_capacity(wanted), wanted };
        spares.refill()?;
        Ok(spares)
    }

    /// Gives them to the rest of the process.
    pub(super) fn release(&mut self) {
        self.held.clear();
    }

    /// Takes those back that are missing; what it could take it keeps.
    pub(super) fn refill(&mut self) -> io::Result<()> {
        while self.held.len() < self.wanted {
            self.held.push(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        }
        Ok(())
    }
}
