//! A cgroup as the scope of something: every process in it, until the last one below it exits. Only where nobody but
//! root can enter, leave or make one (threats C08): else a process could leave it and live on, or enter another's.
//!
//! Only the v2 hierarchy will do, alone or beside v1 hierarchies: `cgroup.events` tells of the last exit,
//! `cgroup.freeze` holds all, `cgroup.kill` ends all.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::failpoint;
use crate::origin::{self, Hierarchies, Keeper};
use crate::process::{ProcDir, Process, procfs};

/// The v2 hierarchy of this machine, if it has one. Clones share its descriptors.
#[derive(Clone, Debug)]
pub struct Cgroups(pub(crate) Arc<Hierarchies>);

/// One cgroup. At rest it costs one descriptor.
#[derive(Debug)]
pub struct CgroupScope {
    dir: OwnedFd,
    id: u64,
    path: String,
}

/// Tells when a cgroup may have become empty, or is gone. Clones share two descriptors; who watches keeps one of them.
#[derive(Clone, Debug)]
pub struct CgroupEvents {
    pub(crate) events: Arc<OwnedFd>,
    /// The directory above.
    pub(crate) above: Arc<OwnedFd>,
    /// What it is called in there.
    pub(crate) name: Arc<[u8]>,
}

/// Why a cgroup cannot be a scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// No v2 hierarchy is mounted.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoHierarchy,
    /// Everybody is in the root of the hierarchy.
    #[error("the process is in the root of the hierarchy, like everybody who has no cgroup")]
    Root,
    /// Somebody else than root could move processes in or out.
    #[error("the cgroup, or one above it, is in other hands than root's")]
    NotRoots,
    /// It is gone, or another one has its path.
    #[error("the cgroup is gone")]
    Gone,
    /// Our own descriptor table is full; says nothing about the cgroup.
    #[error("no descriptor is free to look at the cgroup with")]
    Descriptors,
    /// Anything else.
    #[error("the cgroup cannot be read")]
    Io(#[source] io::Error),
}

impl Cgroups {
    /// Looks for the hierarchy below `root`, usually `/sys/fs/cgroup`.
    pub fn find(root: &Path) -> Self {
        Self(Arc::new(Hierarchies::at(root)))
    }

    /// The cgroup that the process is in now.
    ///
    /// # Errors
    /// [`ScopeError`].
    pub fn of(&self, process: &Process) -> Result<CgroupScope, ScopeError> {
        let scope = self.open(&path_of(process)?)?;
        // The kernel's own word, where it gives it: what was just read may be the cgroup of before a move.
        match process.cgroup_id() {
            Some(id) if id != scope.id => Err(ScopeError::Gone),
            _ => Ok(scope),
        }
    }

    /// The id of the cgroup that the process is in now, in whoever's hands it is: the kernel's own word where it gives
    /// it (6.13), else what is found at the path. `None`: in none that could hold anything here, be it that there is no
    /// hierarchy, or that the process is outside of what we see of it.
    ///
    /// # Errors
    /// It cannot be told: not to be taken for "in none".
    pub fn id_of(&self, process: &Process) -> Result<Option<u64>, ScopeError> {
        match process.cgroup_id() {
            Some(id) => Ok(Some(id)),
            None => self.id_by_path(process),
        }
    }

    fn id_by_path(&self, process: &Process) -> Result<Option<u64>, ScopeError> {
        let Some(root) = self.0.root(b"") else { return Ok(None) };
        let path = path_of(process)?;
        let parts: Vec<&[u8]> = path.split('/').filter(|part| !part.is_empty()).map(str::as_bytes).collect();
        if parts.contains(&b"..".as_slice()) {
            return Ok(None);
        }
        let (_, found) = origin::walk(root, &parts)?;
        // What was read may be of before a move.
        if path_of(process)? == path { Ok(Some(found.st_ino)) } else { Err(ScopeError::Gone) }
    }

    /// The cgroup that had this path and this id.
    ///
    /// # Errors
    /// [`ScopeError::Gone`] when another one has the path now, and as for [`Cgroups::of`].
    pub fn again(&self, path: &str, id: u64) -> Result<CgroupScope, ScopeError> {
        let scope = self.open(path)?;
        if scope.id == id { Ok(scope) } else { Err(ScopeError::Gone) }
    }

    fn open(&self, path: &str) -> Result<CgroupScope, ScopeError> {
        if failpoint::fails("cgroup.descriptors") {
            return Err(ScopeError::Descriptors);
        }
        let root = self.0.root(b"").ok_or(ScopeError::NoHierarchy)?;
        let parts: Vec<&[u8]> = path.split('/').filter(|part| !part.is_empty()).map(str::as_bytes).collect();
        if parts.contains(&b"..".as_slice()) {
            return Err(ScopeError::NotRoots);
        }
        if parts.is_empty() {
            return Err(ScopeError::Root);
        }
        let (keeper, dir) = origin::descend(root, &parts)?;
        if keeper != Keeper::Root {
            return Err(ScopeError::NotRoots);
        }
        let id = rustix::fs::fstat(&dir)?.st_ino;
        Ok(CgroupScope { dir, id, path: path.to_owned() })
    }
}

impl CgroupScope {
    /// Its id in the hierarchy; never used twice in a boot.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its path below the root of the hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether a process is left in it or below it.
    ///
    /// # Errors
    /// [`ScopeError::Gone`], and [`ScopeError::Descriptors`], which says nothing about it.
    pub fn is_populated(&self) -> Result<bool, ScopeError> {
        Ok(is_populated(&self.read("cgroup.events")?))
    }

    /// Whether the process is in it or below it. One of which that cannot be told is taken to be.
    pub fn holds(&self, process: &Process) -> bool {
        let Ok(path) = path_of(process) else { return process.is_alive() };
        path.strip_prefix(&self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether every process in it is the given one or descends from it. One more, by its number, does no harm. Where there
    /// are very many it is not looked at, and the answer is no. Reads a file for each: for a thread that may wait.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn belongs_to(&self, process: &Process, besides: Option<u32>) -> io::Result<bool> {
        let file = self.read("cgroup.procs")?;
        let text = procfs::read_all(&file, 1 << 20)?;
        let text = String::from_utf8_lossy(&text);
        let mut pids = Vec::new();
        for line in text.lines() {
            let pid: u32 = line.parse().map_err(|_not_a_number| io::ErrorKind::InvalidData)?;
            if besides != Some(pid) {
                pids.push(pid);
            }
        }
        Ok(all_descend(process.pid(), &pids, |pid| {
            ProcDir::open(process.host(), pid).and_then(|dir| dir.stat()).ok().map(|stat| stat.parent)
        }))
    }

    /// Lets every process in it and below it stand still, or go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&self, still: bool) -> io::Result<()> {
        if !still && failpoint::fails("cgroup.thaw") {
            return Err(io::ErrorKind::Other.into());
        }
        self.write("cgroup.freeze", if still { b"1" } else { b"0" })
    }

    /// Kills every process in it and below it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", b"1")
    }

    /// To be watched: EPOLLPRI when it may have become empty. Opened each time: whoever reads one takes its events.
    ///
    /// # Errors
    /// As for [`CgroupScope::is_populated`].
    pub fn events(&self) -> Result<CgroupEvents, ScopeError> {
        failpoint::hit("cgroup.events");
        // Never beyond the hierarchy: the root of it is no scope.
        let above = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let above = rustix::fs::openat(&self.dir, "..", above, Mode::empty())?;
        let name = self.path.rsplit('/').next().unwrap_or_default().as_bytes();
        let events = Arc::new(self.read("cgroup.events")?);
        Ok(CgroupEvents { events, above: Arc::new(above), name: name.into() })
    }

    fn read(&self, file: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.dir, file, flags, Mode::empty())?)
    }

    fn write(&self, file: &str, text: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.dir, file, flags, Mode::empty())?;
        rustix::io::write(&file, text)?;
        Ok(())
    }
}

/// In the v2 hierarchy, as it reads from here.
fn path_of(process: &Process) -> Result<String, ScopeError> {
    let dir = ProcDir::open(process.host(), process.pid())?;
    let text = dir.read("cgroup", 1 << 16)?;
    if !process.is_alive() {
        return Err(ScopeError::Gone);
    }
    let line = procfs::cgroups(&text).find(|line| line.hierarchy == 0 && line.controllers.is_empty());
    let path = line.ok_or(ScopeError::NoHierarchy)?.path;
    std::str::from_utf8(path).map(str::to_owned).map_err(|_not_text| ScopeError::NotRoots)
}

/// Reading it also tells the kernel that we know, so that the next change wakes us.
pub(crate) fn is_populated(events: &OwnedFd) -> bool {
    let mut text = [0; 256];
    let read = rustix::io::pread(events, &mut text, 0).unwrap_or(0);
    let text = text.get(..read).unwrap_or_default();
    text.split(|byte| *byte == b'\n').any(|line| line == b"populated 1")
}

/// Whether all of these are `top` or below it, up the tree of processes as it is now. A race makes it a "no", or a "yes"
/// about a process that is gone. Nobody's parent is asked for twice.
fn all_descend(top: u32, pids: &[u32], mut parent: impl FnMut(u32) -> Option<u32>) -> bool {
    if pids.len() > MOST_PROCESSES {
        return false;
    }
    let mut below = HashSet::from([top]);
    pids.iter().all(|pid| {
        let mut line = Vec::new();
        let mut at = *pid;
        while !below.contains(&at) {
            if at <= 1 || line.len() >= MOST_GENERATIONS {
                return false;
            }
            line.push(at);
            match parent(at) {
                Some(above) => at = above,
                None => return false,
            }
        }
        below.extend(line);
        true
    })
}

impl ScopeError {
    /// The same, as what a look at a file would say: `NotFound` of a cgroup that is gone.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Io(error) => error,
            Self::Gone => io::Error::new(io::ErrorKind::NotFound, self),
            other => io::Error::other(other),
        }
    }
}

impl From<io::Error> for ScopeError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Self::Descriptors,
            Some(libc::ENOENT | libc::ESRCH | libc::ENODEV) => Self::Gone,
            _ => Self::Io(error),
        }
    }
}

impl From<Errno> for ScopeError {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

const MOST_GENERATIONS: usize = 64;
/// A task's own cgroup has few: whoever puts thousands there makes us look at thousands.
const MOST_PROCESSES: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::host;

    /// A caller chooses how many there are, and how deep: each costs one look, and very many none at all.
    #[test]
    fn a_crowd_below_a_long_line_costs_one_look_each() {
        // 10 is the founder; 11 to 60 are a line below it, and the crowd are children of the last.
        let parent = |pid: u32| match pid {
            10 => Some(1),
            11..=60 => Some(pid - 1),
            100..=2_000 => Some(60),
            5_000 => Some(1),
            _ => None,
        };
        let looks = |pids: &[u32]| {
            let mut count = 0;
            let all = all_descend(10, pids, |pid| {
                count += 1;
                parent(pid)
            });
            (all, count)
        };
        let crowd: Vec<u32> = (100..1_000).collect();
        assert_eq!(looks(&crowd), (true, 900 + 50));
        assert_eq!(looks(&[10]), (true, 0));
        assert_eq!(looks(&[10, 11, 5_000]), (false, 2), "somebody else's");
        assert_eq!(looks(&[10, 3_000]), (false, 1), "gone");
        assert_eq!(looks(&[1]), (false, 0));
        let line: Vec<u32> = (100..100 + 1_025).collect();
        assert_eq!(looks(&line), (false, 0), "too many to look at");
        let endless = all_descend(10, &[7], |_| Some(7));
        assert!(!endless, "a tree that changes under us has no end");
    }

    /// Before 6.13 the kernel does not tell by the pidfd.
    #[test]
    fn where_a_process_is_that_is_gone_is_not_known_and_without_a_hierarchy_it_is_nowhere() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of_pid(&host(), child.id()).unwrap();
        let here = Cgroups::find(Path::new("/sys/fs/cgroup"));
        let nowhere = Cgroups::find(Path::new("/proc/self"));
        assert_eq!(here.id_by_path(&process).unwrap(), here.id_of(&process).unwrap());
        assert!(matches!(nowhere.id_by_path(&process), Ok(None)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(here.id_by_path(&process).is_err(), "not to be taken for nowhere");
        assert!(here.id_of(&process).is_err());
        assert!(matches!(nowhere.id_by_path(&process), Ok(None)));
    }
}
