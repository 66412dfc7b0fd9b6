//! Measured launch: what a process was started from, when that is a script, a configuration, a model, and so nowhere
//! to be seen in the process itself.
//!
//! A launcher (this very program, about to become another by one exec) hands over sealed copies of the files. They
//! are hashed here, the launcher is looked at, and from then on its process stands for what it is about to become:
//! the program it named, with the digests of what that program will read. That holds while it is the launcher still,
//! and after exactly one exec, of that program. Any other exec, a lost count of them or another program end it for
//! good; nothing else is remembered, not even across a restart of the agent.
//!
//! Why the launcher is believed: it runs the same file as we do, maps no executable page that we do not map, has not
//! had one changed, is not traced, is where we are (namespaces), and no other process of its user can reach into it
//! any more. What this does not cover: what that user did to it before, and does to the program afterwards. So the
//! digests hold against other users, and are advice.

mod code;
mod error;
mod parent;
mod program;
mod sealed;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::attestation::ExeIdentity;
use crate::host::{Host, Namespaces};
use crate::measure::{FileFacts, FileId, Gate, Measurer};
use crate::process::{Counted, ExecCounter, ProcDir, Process, ProcessKey, Reaper, procfs};
use crate::selector::Selector;
use crate::target::{Exe, is_traced};
use crate::{failpoint, text};

pub use code::Code;
pub(crate) use code::CodeMap;
pub use error::LaunchError;
use error::{gone_or, unseen};
pub use parent::ParentError;
pub(crate) use sealed::closes_at_once;
pub use sealed::{MAX_BYTES, SealError, sealed_copy, sealed_digest};

/// The most files of one launch.
pub const MAX_FILES: usize = 16;
/// The most live launches of one uid, and of all.
const MOST_OF_UID: usize = 256;
const MOST: usize = 4096;

/// What a launcher says.
#[derive(Debug)]
pub struct LaunchClaim {
    /// What it is about to exec: a handle that was never opened.
    pub program: OwnedFd,
    /// How that was named: absolute.
    pub path: PathBuf,
    /// The sealed copies that the program will read.
    pub files: Vec<OwnedFd>,
}

/// All launches that stand.
pub struct Launches {
    /// Our own program, as a handle; without it nothing is like it.
    own: Option<OwnedFd>,
    /// Whether we may look at processes that nobody of their user may.
    sees_hidden: bool,
    counter: OnceLock<ExecCounter>,
    table: Arc<Mutex<Table>>,
    reaper: OnceLock<Reaper>,
}

impl fmt::Debug for Launches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launches").field("live", &self.live()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Table {
    records: HashMap<ProcessKey, Arc<Record>>,
    last: u64,
}

/// One launch.
#[derive(Debug)]
pub(crate) struct Record {
    id: u64,
    uid: u32,
    handle: Arc<OwnedFd>,
    facts: FileFacts,
    gate: Gate,
    path: Vec<u8>,
    files: BTreeSet<[u8; 32]>,
    counted: Counted,
}

/// A launch that was found for a process, and the execs until then. To be settled with the program that the process
/// was seen to run *after* that.
#[derive(Debug)]
pub(crate) struct Standing {
    record: Arc<Record>,
    execs: Option<u32>,
}

impl Launches {
    /// Nothing can be recorded before [`Self::count_with`].
    pub(crate) fn new(host: &Host) -> Self {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Self {
            own: rustix::fs::openat(host.proc(), "self/exe", flags, Mode::empty()).ok(),
            sees_hidden: sees_hidden(host),
            counter: OnceLock::new(),
            table: Arc::default(),
            reaper: OnceLock::new(),
        }
    }

    /// From now on launches can be recorded. The first counter stays.
    pub fn count_with(&self, counter: ExecCounter) {
        self.counter.set(counter).ok();
    }

    /// Whether a launcher must close itself to other processes of its user first. Without the right to look at such
    /// a process we would see nothing, and then its user is us.
    pub fn wants_hidden(&self) -> bool {
        self.sees_hidden
    }

    /// How many stand.
    pub fn live(&self) -> usize {
        self.table().records.len()
    }

    /// Records a launch; the digests of the files, in their order. From then on `process` counts as what it is about
    /// to become. It must be a launcher that waits for the answer.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub async fn record(
        &self,
        process: &Arc<Process>,
        claim: LaunchClaim,
        measurer: &Measurer,
    ) -> Result<Vec<[u8; 32]>, LaunchError> {
        // First of all: whatever it executes from here on is counted.
        let counted = self.counter.get().ok_or(LaunchError::NoWord)?.of(process.pid());
        self.check_room(process.uid())?;
        let dir = self.check_launcher(process)?;
        match measurer.code(process, dir.shared()).await {
            Ok(Code::Ours) => {}
            Ok(code) => return Err(LaunchError::Code(code)),
            Err(error) => return Err(unseen(&error)),
        }
        failpoint::hit("launch.checked");
        let LaunchClaim { program, path, files } = claim;
        let facts = FileFacts::of(program.as_fd()).map_err(|e| LaunchError::Program(e.to_string()))?;
        if !facts.regular {
            return Err(LaunchError::Program("it is not a regular file".to_owned()));
        }
        let measured = !files.is_empty();
        let hashed = tokio::task::spawn_blocking(move || -> Result<_, LaunchError> {
            // Only a program that reads measured files must be beyond its user's reach: without them it is no more
            // than what `unix:path` says of it.
            let trusted = measured.then(|| program::trusted(&path, own_uid()));
            match trusted.transpose().map_err(|fault| LaunchError::Program(fault.to_string()))? {
                Some(id) if id != facts.id => {
                    Err(LaunchError::Program("its path leads to another file".to_owned()))
                }
                _ => Ok(files.iter().map(|f| sealed_digest(f.as_fd())).collect::<Result<Vec<_>, _>>()?),
            }
        });
        let digests = hashed.await.map_err(|error| LaunchError::Unseen(error.to_string()))??;
        let gate = facts.gate(|| None);
        let link = rustix::fs::readlinkat(CWD, fd_path(&program), Vec::new());
        let path = link.map_err(|error| LaunchError::Program(error.to_string()))?.into_bytes();
        let files = digests.iter().copied().collect();
        let (uid, handle) = (process.uid(), Arc::new(program));
        self.keep(process, Record { id: 0, uid, handle, facts, gate, path, files, counted })?;
        Ok(digests)
    }

    /// Ends the launch of that process, if one stands.
    pub fn forget(&self, key: &ProcessKey) {
        self.table().records.remove(key);
    }

    /// What was recorded of the process with that key, and how often it has called exec since.
    pub(crate) fn of(&self, key: &ProcessKey) -> Option<Standing> {
        let record = Arc::clone(self.table().records.get(key)?);
        let execs = record.counted.execs();
        Some(Standing { record, execs })
    }

    /// Whether the launch still stands, for a process that was seen to run `exe` after [`Self::of`]. If not, it never
    /// will again.
    pub(crate) fn settle(
        &self,
        key: &ProcessKey,
        standing: Standing,
        exe: &ExeIdentity,
    ) -> Option<Arc<Record>> {
        let Standing { record, execs } = standing;
        let is = |id: FileId| *exe == ExeIdentity::File(id);
        let stands = match execs {
            // In the middle of the exec the program is the next one already, and the word of it not yet there.
            Some(0) => is(record.facts.id) || self.own_id().is_some_and(is),
            Some(1) => is(record.facts.id),
            Some(_) | None => false,
        };
        if stands {
            return Some(record);
        }
        let mut table = self.table();
        if table.records.get(key).is_some_and(|now| now.id == record.id) {
            table.records.remove(key);
        }
        None
    }

    /// Everything that can be asked without waiting; the directory that was read.
    fn check_launcher(&self, process: &Process) -> Result<ProcDir, LaunchError> {
        let seen = |result: io::Result<_>| result.map_err(|error| gone_or(process, &error));
        let dir = seen(ProcDir::open(process.host(), process.pid()))?;
        if !process.is_alive() {
            return Err(LaunchError::Exited);
        }
        let (ours, theirs) = (process.host().namespaces(), Namespaces::of(dir.fd(), ""));
        if theirs.user.is_none() || (theirs.user, theirs.mount) != (ours.user, ours.mount) {
            return Err(LaunchError::Elsewhere);
        }
        let live = process.live(&dir).map_err(|error| gone_or(process, &error))?;
        if !live.uids.agree() || !live.gids.agree() || self.is_exposed(process, &dir)? {
            return Err(LaunchError::Exposed);
        }
        match is_traced(process) {
            Ok(false) => {}
            Ok(true) => return Err(LaunchError::Traced),
            Err(_) => return Err(gone_or(process, &io::Error::other("its threads cannot be looked at"))),
        }
        let exe = dir.open_path("exe").and_then(|exe| FileFacts::of(exe.as_fd()));
        let exe = exe.map_err(|error| gone_or(process, &error))?;
        if self.own_id() == Some(exe.id) { Ok(dir) } else { Err(LaunchError::NotOurs) }
    }

    /// The kernel gives the files in `/proc/PID` of a process that may not be dumped, and so not be traced by its
    /// user, to root. Of root itself nothing can be hidden.
    fn is_exposed(&self, process: &Process, dir: &ProcDir) -> Result<bool, LaunchError> {
        if !self.sees_hidden || process.uid() == 0 {
            return Ok(false);
        }
        let stat = rustix::fs::statat(dir.fd(), "stat", AtFlags::empty());
        stat.map(|stat| stat.st_uid != 0).map_err(|error| gone_or(process, &error.into()))
    }

    fn own_id(&self) -> Option<FileId> {
        // Read each time: a new name for the file, or a change of its mode, is no other program.
        FileFacts::of(self.own.as_ref()?.as_fd()).ok().map(|facts| facts.id)
    }

    fn check_room(&self, uid: u32) -> Result<(), LaunchError> {
        let table = self.table();
        let of_uid = table.records.values().filter(|record| record.uid == uid).count();
        if of_uid >= MOST_OF_UID || table.records.len() >= MOST {
            return Err(LaunchError::TooMany);
        }
        Ok(())
    }

    fn keep(&self, process: &Arc<Process>, mut record: Record) -> Result<(), LaunchError> {
        self.check_room(record.uid)?;
        let reaper = self.reaper()?;
        let id = {
            let mut table = self.table();
            table.last += 1;
            record.id = table.last;
            let id = record.id;
            // A launcher that comes twice is the later one.
            table.records.insert(process.key(), Arc::new(record));
            id
        };
        let watched = reaper.watch(process, id).is_ok();
        let still = self.of(&process.key()).is_some_and(|s| s.record.id == id && s.execs == Some(0));
        if watched && still && process.is_alive() {
            return Ok(());
        }
        forget(&self.table, id);
        Err(LaunchError::Exited)
    }

    /// Forgets launches whose process has ended.
    fn reaper(&self) -> Result<&Reaper, LaunchError> {
        if self.reaper.get().is_none() {
            let table = Arc::downgrade(&self.table);
            let sink = Box::new(move |notice: crate::ExitNotice| {
                if let Some(table) = Weak::upgrade(&table) {
                    forget(&table, notice.token);
                }
            });
            let reaper = Reaper::start(sink).map_err(|error| LaunchError::Unseen(error.to_string()))?;
            self.reaper.set(reaper).ok();
        }
        self.reaper.get().ok_or_else(|| LaunchError::Unseen("no thread to watch it with".to_owned()))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Record {
    /// Names this launch among all of this run.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What the process runs, or is about to.
    pub(crate) fn exe(&self) -> Exe {
        Exe {
            handle: Arc::clone(&self.handle),
            facts: self.facts,
            gate: self.gate,
            path: Ok(self.path.clone()),
        }
    }

    pub(crate) fn exe_id(&self) -> FileId {
        self.facts.id
    }

    /// `launch:sha256` for each measured file.
    pub(crate) fn selectors(&self) -> impl Iterator<Item = Selector> {
        self.files.iter().map(|sha256| Selector::new("launch", "sha256", text::hex(sha256)))
    }
}

fn forget(table: &Mutex<Table>, id: u64) {
    lock(table).records.retain(|_, record| record.id != id);
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fd_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// CAP_SYS_PTRACE: no process of the machine can close itself to us. When we cannot find out, launchers must.
fn sees_hidden(host: &Host) -> bool {
    let status = procfs::read_at(host.proc(), "self/status", 1 << 20).unwrap_or_default();
    let held = procfs::field(&status, b"CapEff").and_then(|hex| std::str::from_utf8(hex).ok());
    held.and_then(|hex| u64::from_str_radix(hex, 16).ok()).is_none_or(|held| held & CAP_SYS_PTRACE != 0)
}

const CAP_SYS_PTRACE: u64 = 1 << 19;

#[cfg(test)]
mod tests;
