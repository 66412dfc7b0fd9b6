//! The cgroup hierarchies of the machine, and in whose hands their directories are.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Located, Place, Refusal};
use crate::process::{is_want_of_ours, procfs};

/// Every hierarchy below one directory, usually `/sys/fs/cgroup`, held open.
#[derive(Debug)]
pub(crate) struct Hierarchies {
    unified: Option<OwnedFd>,
    /// v1, by the name of the directory: its controllers, or its name.
    v1: Vec<(Vec<u8>, OwnedFd)>,
}

/// Whether only root could have put a process where it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Keeper {
    Root,
    Somebody,
}

impl Hierarchies {
    pub(crate) fn at(base: &Path) -> Self {
        let unified = mounted(base, CGROUP2).or_else(|| mounted(&base.join("unified"), CGROUP2));
        let names = std::fs::read_dir(base).into_iter().flatten().flatten();
        let v1 =
            names.filter_map(|entry| Some((entry.file_name().into_vec(), mounted(&entry.path(), CGROUP1)?)));
        Self { v1: v1.collect(), unified }
    }

    /// The hierarchy of a line of `/proc/PID/cgroup`; no controllers means v2.
    pub(crate) fn root(&self, controllers: &[u8]) -> Option<BorrowedFd<'_>> {
        if controllers.is_empty() {
            return self.unified.as_ref().map(|fd| fd.as_fd());
        }
        let name = controllers.strip_prefix(b"name=").unwrap_or(controllers);
        self.v1.iter().find(|(named, _)| named == name).map(|(_, fd)| fd.as_fd())
    }

    /// The cgroup of that process, a number of our own pid namespace, if we see the whole hierarchy. Reads all of it:
    /// only at start.
    pub(super) fn find(&self, controllers: &[u8], pid: u32) -> Option<PathBuf> {
        let root = self.root(controllers)?;
        // The root of a namespace has another inode, and paths from there are no paths of the machine.
        if rustix::fs::fstat(root).ok()?.st_ino != ROOT_INODE {
            return None;
        }
        let mut open = vec![PathBuf::from("/")];
        for _ in 0..MOST_DIRECTORIES {
            let path = open.pop()?;
            let inside = path.strip_prefix("/").ok().filter(|inside| !inside.as_os_str().is_empty());
            let inside = inside.unwrap_or_else(|| Path::new("."));
            let Ok(dir) = rustix::fs::openat(root, inside, LISTED, Mode::empty()) else { continue };
            if lists(dir.as_fd(), pid) {
                return Some(path);
            }
            for entry in Dir::new(dir).into_iter().flatten().flatten() {
                let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
                if entry.file_type().is_dir() && name != "." && name != ".." {
                    open.push(path.join(name));
                }
            }
        }
        None
    }

    /// Whether every directory above the container is in root's hands, in each hierarchy that names it. The outer
    /// error is want of a descriptor, which says nothing about the container.
    pub(super) fn check(&self, found: &Located) -> io::Result<Result<(), Refusal>> {
        for place in &found.places {
            if let Err(refusal) = self.check_place(place)? {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(()))
    }

    fn check_place(&self, place: &Place) -> io::Result<Result<(), Refusal>> {
        let Some(root) = self.root(&place.controllers) else {
            return Ok(Err(Refusal::NotRootOwned(PathBuf::from("/"))));
        };
        let mut path = PathBuf::from("/");
        let mut here = root.try_clone_to_owned()?;
        let mut below = place.above.iter();
        loop {
            match keeper_of(here.as_fd()) {
                Ok(Keeper::Root) => {}
                Err(error) if is_want_of_ours(&error) => return Err(error),
                Ok(Keeper::Somebody) | Err(_) => return Ok(Err(Refusal::NotRootOwned(path))),
            }
            let Some(part) = below.next() else { return Ok(Ok(())) };
            path.push(std::ffi::OsStr::from_bytes(part));
            here = match child(here.as_fd(), part) {
                Ok(here) => here,
                Err(error) if is_want_of_ours(&error) => return Err(error),
                Err(_) => return Ok(Err(Refusal::NotRootOwned(path))),
            };
        }
    }
}

/// As [`descend`], with what the kernel says about the cgroup's directory.
pub(crate) fn walk(root: BorrowedFd<'_>, parts: &[&[u8]]) -> io::Result<(Keeper, Stat)> {
    let (keeper, dir) = descend(root, parts)?;
    Ok((keeper, rustix::fs::fstat(&dir)?))
}

/// From the root of a hierarchy down to a cgroup, looking at each directory's keeper on the way, the cgroup's too.
pub(crate) fn descend(root: BorrowedFd<'_>, parts: &[&[u8]]) -> io::Result<(Keeper, OwnedFd)> {
    let mut keeper = keeper_of(root)?;
    let mut here = root.try_clone_to_owned()?;
    for part in parts {
        here = child(here.as_fd(), part)?;
        if keeper_of(here.as_fd())? == Keeper::Somebody {
            keeper = Keeper::Somebody;
        }
    }
    Ok((keeper, here))
}

fn lists(dir: BorrowedFd<'_>, pid: u32) -> bool {
    let text = procfs::read_at(dir, "cgroup.procs", MOST_PROCS).unwrap_or_default();
    let pid = pid.to_string();
    text.split(|byte| *byte == b'\n').any(|line| line == pid.as_bytes())
}

fn child(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
}

/// The directory (who may make cgroups) and the files by which processes and threads move in all count.
fn keeper_of(dir: BorrowedFd<'_>) -> io::Result<Keeper> {
    let mut root_only = is_roots(&rustix::fs::fstat(dir)?);
    for file in ["cgroup.procs", "cgroup.threads", "tasks"] {
        root_only &= match rustix::fs::statat(dir, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => is_roots(&stat),
            Err(Errno::NOENT) => true,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(if root_only { Keeper::Root } else { Keeper::Somebody })
}

fn is_roots(stat: &Stat) -> bool {
    stat.st_uid == 0 && stat.st_mode & 0o022 == 0
}

fn mounted(path: &Path, magic: i128) -> Option<OwnedFd> {
    let dir = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).ok()?;
    let kind = rustix::fs::fstatfs(&dir).ok()?.f_type;
    (i128::from(kind) == magic).then_some(dir)
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const CGROUP2: i128 = 0x6367_7270;
const CGROUP1: i128 = 0x0027_E0EB;
/// Of the root of every cgroup hierarchy, for who sees it whole.
const ROOT_INODE: u64 = 1;
const MOST_DIRECTORIES: usize = 100_000;
/// Bytes of the list of processes of one cgroup.
const MOST_PROCS: usize = 1 << 22;
