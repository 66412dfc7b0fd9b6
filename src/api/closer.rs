//! Closes sockets where it hurts nobody. Before Linux 6.16 a client can queue a lingering socket on its
//! connection, and whoever closes the connection then waits for as long as that client chose.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use tokio::net::UnixStream;

/// Closes on the caller's thread where that cannot block, else on one of its own.
#[derive(Clone, Debug)]
pub struct Closer(Option<Sender<Doomed>>);

impl Closer {
    /// Starts the thread where one is necessary.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(never_blocks: bool) -> io::Result<Self> {
        if never_blocks {
            return Ok(Self(None));
        }
        let (sender, doomed) = channel::<Doomed>();
        // It ends with the last connection, and is sacrificed to whoever makes it wait.
        std::thread::Builder::new()
            .name("closer".to_owned())
            .spawn(move || doomed.into_iter().for_each(drop))
            .map(|_| Self(Some(sender)))
    }

    pub(crate) fn close(&self, socket: impl Into<Doomed>) {
        match &self.0 {
            None => drop(socket.into()),
            Some(sender) => drop(sender.send(socket.into())),
        }
    }
}

/// A socket to be closed.
#[derive(Debug)]
pub(crate) enum Doomed {
    Accepted(#[expect(dead_code, reason = "held only to be dropped")] OwnedFd),
    Served(#[expect(dead_code, reason = "held only to be dropped")] Arc<UnixStream>),
}

impl From<OwnedFd> for Doomed {
    fn from(socket: OwnedFd) -> Self {
        Self::Accepted(socket)
    }
}

impl From<Arc<UnixStream>> for Doomed {
    fn from(stream: Arc<UnixStream>) -> Self {
        Self::Served(stream)
    }
}
