//! The `cgroup` attestor: `cgroup:path:/system.slice/web.service`, the cgroup of the v2 hierarchy or, on a machine
//! without one, of the hierarchy named `systemd`.
//!
//! A cgroup says who put a process there only if nobody but root could. So every directory from the hierarchy's root
//! to the cgroup itself, and its `cgroup.procs`, must belong to root and not be writable for others; if one is not
//! (a delegated subtree, where any user may make `docker-<id>.scope`), the same text is `cgroup:delegated_path`, which
//! is advice. The directory reached must be the very cgroup the kernel names for the process, where it names one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::process::procfs::{self, CgroupLine};
use crate::set::{Found, Silent};
use crate::target::Target;
use crate::text;

/// The hierarchy that says where processes are.
#[derive(Debug)]
pub(crate) struct Cgroup {
    hierarchy: Option<(Hierarchy, OwnedFd)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hierarchy {
    Unified,
    Named,
}

/// Whether only root could have put a process where it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Keeper {
    Root,
    Somebody,
}

impl Cgroup {
    /// Looks for the hierarchy below `root`, usually `/sys/fs/cgroup`; none at all is found out at each attestation.
    pub(crate) fn new(root: &Path) -> Self {
        let unified = || mounted(root, CGROUP2).or_else(|| mounted(&root.join("unified"), CGROUP2));
        let named = || mounted(&root.join("systemd"), CGROUP1);
        let hierarchy = unified().map(|fd| (Hierarchy::Unified, fd));
        Self { hierarchy: hierarchy.or_else(|| named().map(|fd| (Hierarchy::Named, fd))) }
    }

    /// Reads kernel memory only: no file system waits.
    pub(crate) fn attest(&self, target: &Target<'_>) -> Result<Found, Silent> {
        let Some((kind, root)) = &self.hierarchy else {
            return Err("neither a v2 hierarchy nor one named systemd is mounted".into());
        };
        let cgroups = target.dir.read("cgroup", 1 << 16).map_err(|e| Silent::of("/proc/PID/cgroup", &e))?;
        let line =
            procfs::cgroups(&cgroups).find(|line| kind.is(line)).ok_or("the process is in no such cgroup")?;
        let mut found = Found::default();
        if line.path.split(|&b| b == b'/').any(|part| part == b"..") {
            found.note("path", "the cgroup is outside our cgroup namespace");
            return Ok(found);
        }
        let (keeper, leaf) =
            walk(root.as_fd(), line.path).map_err(|error| Silent::of(&text::of_bytes(line.path), &error))?;
        if *kind == Hierarchy::Unified && target.live.cgroup_id.is_some_and(|id| id != leaf.st_ino) {
            return Err("the process is being moved, or our cgroups are not the machine's".into());
        }
        let key = match keeper {
            Keeper::Root => "path",
            Keeper::Somebody => {
                found
                    .note("path", "cgroup_not_root_owned (a directory above it or itself is in other hands)");
                "delegated_path"
            }
        };
        found.add("cgroup", key, text::of_bytes(line.path));
        Ok(found)
    }
}

impl Hierarchy {
    fn is(self, line: &CgroupLine<'_>) -> bool {
        match self {
            Self::Unified => line.hierarchy == 0 && line.controllers.is_empty(),
            Self::Named => line.controllers == b"name=systemd",
        }
    }
}

fn mounted(path: &Path, magic: i128) -> Option<OwnedFd> {
    let dir = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).ok()?;
    let kind = rustix::fs::fstatfs(&dir).ok()?.f_type;
    (i128::from(kind) == magic).then_some(dir)
}

/// From the root of the hierarchy down to the cgroup, looking at each directory's owner on the way.
fn walk(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<(Keeper, Stat)> {
    let mut keeper = keeper_of(root)?;
    let mut here = root.try_clone_to_owned()?;
    for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
        here = rustix::fs::openat(&here, part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        if keeper_of(here.as_fd())? == Keeper::Somebody {
            keeper = Keeper::Somebody;
        }
    }
    Ok((keeper, rustix::fs::fstat(&here)?))
}

/// Both the directory (who may make cgroups) and `cgroup.procs` (who may move processes in) count.
fn keeper_of(dir: BorrowedFd<'_>) -> io::Result<Keeper> {
    let mine = is_roots(&rustix::fs::fstat(dir)?);
    let procs = match rustix::fs::statat(dir, "cgroup.procs", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => is_roots(&stat),
        Err(Errno::NOENT) => true,
        Err(error) => return Err(error.into()),
    };
    Ok(if mine && procs { Keeper::Root } else { Keeper::Somebody })
}

fn is_roots(stat: &Stat) -> bool {
    stat.st_uid == 0 && stat.st_mode & 0o022 == 0
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const CGROUP2: i128 = 0x6367_7270;
const CGROUP1: i128 = 0x0027_E0EB;
