//! The parent's side of the hash helpers: starts them, asks them, and gives up on one that misses its deadline. Such
//! a helper is killed and not waited for, because it may be unkillable; it goes on counting against the user whose
//! file it hangs on, so that nobody can pile them up, and its place is taken by a new one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::sync::Notify;

use super::wire::{MAX_REPLY, Reply, Request};
use super::{MeasureError, MeasureLimits};
use crate::ticks;

/// How to start a hash helper: something that calls [`crate::measure_worker`].
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// Absolute path, such as `/proc/self/exe`.
    pub program: PathBuf,
    /// Arguments, such as `measure-worker`.
    pub args: Vec<OsString>,
}

#[derive(Debug)]
pub(super) struct Pool {
    command: WorkerCommand,
    limits: MeasureLimits,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Worker>,
    lost: Vec<Lost>,
    in_flight: usize,
    per_uid: HashMap<u32, usize>,
}

/// A helper that was killed and may never end.
#[derive(Debug)]
struct Lost {
    child: Child,
    uid: u32,
}

/// The right to one measurement.
#[derive(Debug)]
pub(super) struct Slot {
    pool: Arc<Pool>,
    uid: u32,
}

impl WorkerCommand {
    /// This very program, whatever became of its file, with one argument.
    pub fn itself(subcommand: &str) -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), args: vec![OsString::from(subcommand)] }
    }
}

impl Pool {
    pub(super) fn new(command: WorkerCommand, limits: MeasureLimits) -> Arc<Self> {
        Arc::new(Self { command, limits, state: Mutex::default(), freed: Notify::new() })
    }

    /// Waits a little for a place, then says that there is none.
    pub(super) async fn slot(self: &Arc<Self>, uid: u32) -> Result<Slot, MeasureError> {
        let waiting = async {
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                // Registered before the look, so that a place freed in between is not missed.
                freed.as_mut().enable();
                if self.try_enter(uid) {
                    return Slot { pool: Arc::clone(self), uid };
                }
                freed.await;
            }
        };
        tokio::time::timeout(self.limits.queue, waiting).await.or(Err(MeasureError::Overloaded))
    }

    /// How many helpers were given up and have not ended yet.
    pub(super) fn lost(&self) -> usize {
        let mut state = self.state();
        state.reap();
        state.lost.len()
    }

    fn try_enter(&self, uid: u32) -> bool {
        let mut state = self.state();
        state.reap();
        let lost = state.lost.iter().filter(|lost| lost.uid == uid).count();
        let own = state.per_uid.get(&uid).copied().unwrap_or_default() + lost;
        if own >= self.limits.per_uid || state.in_flight >= self.limits.total || state.lost.len() >= MOST_LOST
        {
            return false;
        }
        state.in_flight += 1;
        *state.per_uid.entry(uid).or_default() += 1;
        true
    }

    /// Process numbers of the idle helpers.
    #[cfg(test)]
    pub(super) fn helpers(&self) -> Vec<u32> {
        self.state().idle.iter().map(|worker| worker.child.id()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self, mut worker: Worker, uid: u32) {
        worker.child.kill().ok();
        self.state().lost.push(Lost { child: worker.child, uid });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Idle helpers end by themselves when their socket closes; waiting leaves no zombie behind.
        for Worker { mut child, socket } in std::mem::take(&mut self.state().idle) {
            drop(socket);
            child.wait().ok();
        }
    }
}

impl State {
    fn reap(&mut self) {
        self.lost.retain_mut(|lost| matches!(lost.child.try_wait(), Ok(None)));
    }
}

impl Slot {
    /// Blocks until the helper answers or misses its deadline.
    pub(super) fn ask(&self, request: Request, handle: BorrowedFd<'_>) -> Result<Reply, MeasureError> {
        let idle = self.pool.state().idle.pop();
        if let Some(worker) = idle {
            match self.ask_one(worker, request, handle) {
                // It may have been killed while it was idle: that says nothing about the file.
                Err(MeasureError::Worker(_)) => {}
                result => return result,
            }
        }
        let worker = Worker::start(&self.pool.command).map_err(MeasureError::Worker)?;
        self.ask_one(worker, request, handle)
    }

    fn ask_one(
        &self,
        worker: Worker,
        request: Request,
        handle: BorrowedFd<'_>,
    ) -> Result<Reply, MeasureError> {
        match worker.ask(request, handle, self.pool.limits.deadline) {
            Ok(reply) => {
                self.pool.state().idle.push(worker);
                Ok(reply)
            }
            Err(error) => {
                self.pool.give_up(worker, self.uid);
                Err(error)
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.in_flight = state.in_flight.saturating_sub(1);
        if let Some(count) = state.per_uid.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.per_uid.remove(&self.uid);
            }
        }
        drop(state);
        self.pool.freed.notify_waiters();
    }
}

#[derive(Debug)]
struct Worker {
    child: Child,
    socket: OwnedFd,
}

impl Worker {
    fn start(command: &WorkerCommand) -> io::Result<Self> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (socket, theirs) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        let child = Command::new(&command.program)
            .args(&command.args)
            .env_clear()
            .current_dir("/")
            // A Ctrl-C at the terminal is for the agent, which then drains.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket })
    }

    fn ask(
        &self,
        request: Request,
        handle: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<Reply, MeasureError> {
        let until = ticks::now() + deadline;
        self.send(request, handle).map_err(MeasureError::Worker)?;
        if !self.is_readable(until).map_err(MeasureError::Worker)? {
            return Err(MeasureError::Deadline);
        }
        let mut bytes = [0; MAX_REPLY + 1];
        let got = rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT);
        let (got, _) = got.map_err(|errno| MeasureError::Worker(errno.into()))?;
        let reply = bytes.get(..got).and_then(Reply::decode);
        reply.ok_or_else(|| MeasureError::Worker(io::ErrorKind::UnexpectedEof.into()))
    }

    fn send(&self, request: Request, handle: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let handles = [handle];
        if !control.push(SendAncillaryMessage::ScmRights(&handles)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = request.encode();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
        Ok(())
    }

    fn is_readable(&self, until: Instant) -> io::Result<bool> {
        loop {
            let left = until.saturating_duration_since(ticks::now());
            let left = Timespec::try_from(left).or(Err(io::ErrorKind::InvalidInput))?;
            let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
            match rustix::event::poll(&mut polled, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Helpers that hang for good are a fault of the machine: at this many, measuring stops.
const MOST_LOST: usize = 64;
