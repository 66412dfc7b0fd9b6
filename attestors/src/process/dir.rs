//! The `/proc/PID` directory of one process, opened once per attestation and closed with it. It names the process
//! and not the number, but only if the pidfd was alive after it was opened: the caller checks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Dir, Mode, OFlags};

use super::is_want_of_ours;
use super::procfs::{self, Stat, Status};
use crate::host::Host;

/// An open `/proc/PID`, or `/proc/PID/task/TID` of a thread that still runs.
#[derive(Debug)]
pub(crate) struct ProcDir {
    dir: Arc<OwnedFd>,
}

impl ProcDir {
    pub(crate) fn open(host: &Host, pid: u32) -> io::Result<Self> {
        Self::open_at(host.proc(), &pid.to_string())
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// To hand it to somebody who may be slow.
    pub(crate) fn shared(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.dir)
    }

    pub(crate) fn stat(&self) -> io::Result<Stat> {
        procfs::stat(&self.read("stat", 4096)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    pub(crate) fn status(&self) -> io::Result<Status> {
        // 65,536 groups of 11 characters are the most a process can have.
        procfs::status(&self.read("status", 1 << 20)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    pub(crate) fn read(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        procfs::read_at(self.fd(), name, limit)
    }

    /// Text of a link, as bytes: never resolved, so no file system behind it is touched.
    pub(crate) fn link(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(self.fd(), name, Vec::new())?.into_bytes())
    }

    /// What a link points at, as a handle that cannot be read: opening it asks no file system.
    pub(crate) fn open_path(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(self.fd(), name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// A namespace file, open: needed to ask it for its id, which a handle cannot.
    pub(crate) fn open_namespace(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(self.fd(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Where `exe` and `ns` can be read: the process itself, or, once its first thread has exited (state Z while
    /// others run), any thread that still runs.
    pub(crate) fn live_task(&self) -> io::Result<Self> {
        self.live_task_in(self.stat()?)
    }

    /// The same, after a stat that was just read.
    pub(crate) fn live_task_in(&self, stat: Stat) -> io::Result<Self> {
        if stat.state != b'Z' {
            return Ok(Self { dir: Arc::clone(&self.dir) });
        }
        for name in self.tasks()? {
            let task = match Self::open_at(self.fd(), &format!("task/{name}")) {
                Ok(task) => task,
                Err(error) if is_want_of_ours(&error) => return Err(error),
                Err(_) => continue,
            };
            match task.stat() {
                Ok(stat) if !matches!(stat.state, b'Z' | b'X') => return Ok(task),
                Err(error) if is_want_of_ours(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Err(rustix::io::Errno::SRCH.into())
    }

    /// Names of the threads that there were just now.
    pub(crate) fn tasks(&self) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = Dir::new(rustix::fs::openat(self.fd(), "task", flags, Mode::empty())?)?;
        let mut names = Vec::new();
        for entry in list {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && name.bytes().all(|b| b.is_ascii_digit())
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Whether a thread has a tracer; one that has ended meanwhile has none.
    pub(crate) fn is_task_traced(&self, task: &str) -> io::Result<bool> {
        match self.read(&format!("task/{task}/status"), 1 << 16) {
            // A status without the line was cut off by very many groups.
            Ok(text) => Ok(procfs::field(&text, b"TracerPid").and_then(procfs::integer) != Some(0)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn open_at(dir: BorrowedFd<'_>, path: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: Arc::new(rustix::fs::openat(dir, path, flags, Mode::empty())?) })
    }
}
