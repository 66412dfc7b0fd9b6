//! Where a program comes from: a path whose every step, symbolic links included, only root (or we ourselves) could
//! have put there. An interpreter that its user can replace, or whose surroundings that user can replace, would run
//! anything under the name of the script that was measured.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};

use crate::measure::{FileFacts, FileId, Gate};

/// Why a path is not trusted, and which part of it.
#[derive(Debug)]
pub(crate) struct PathFault {
    path: PathBuf,
    why: String,
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", crate::text::of_bytes(self.path.as_os_str().as_bytes()), self.why)
    }
}

/// The file at the end of `path`, if nobody but root and `own` could have put it there.
pub(crate) fn trusted(path: &Path, own: u32) -> Result<FileId, PathFault> {
    let mut walk = Walk::from_root(own)?;
    let mut ahead: VecDeque<OsString> = steps(path).ok_or_else(|| fault(path, "is not an absolute path"))?;
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            walk.up();
            continue;
        }
        match walk.step(&name)? {
            Found::Directory => {}
            Found::Link(target) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(fault(&walk.path.join(name), "leads through too many symbolic links"));
                }
                let target = Path::new(&target);
                if target.is_absolute() {
                    walk = Walk::from_root(own)?;
                }
                let mut through = relative_steps(target);
                through.append(&mut ahead);
                ahead = through;
            }
            Found::File(id) if ahead.is_empty() => return Ok(id),
            Found::File(_) => return Err(fault(&walk.path.join(name), "is not a directory")),
        }
    }
    Err(fault(&walk.path, "is a directory"))
}

/// How far the walk has come.
struct Walk {
    path: PathBuf,
    /// Every directory on the way, the root first.
    open: Vec<OwnedFd>,
    own: u32,
}

enum Found {
    Directory,
    Link(OsString),
    File(FileId),
}

impl Walk {
    fn from_root(own: u32) -> Result<Self, PathFault> {
        let path = PathBuf::from("/");
        let root = open_at(CWD, OsStr::new("/")).map_err(|error| fault(&path, error))?;
        let walk = Self { path, open: vec![root], own };
        walk.check(walk.last(), &walk.path)?;
        Ok(walk)
    }

    fn last(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(CWD, AsFd::as_fd)
    }

    fn up(&mut self) {
        if self.open.len() > 1 {
            self.open.pop();
            self.path.pop();
        }
    }

    /// What `name` is in the directory reached, which was checked: so this asks only a file system that answers.
    fn step(&mut self, name: &OsStr) -> Result<Found, PathFault> {
        let at = self.path.join(name);
        let handle = open_at(self.last(), name).map_err(|error| fault(&at, error))?;
        match self.check(handle.as_fd(), &at)? {
            FileType::Directory => {
                self.open.push(handle);
                self.path = at;
                Ok(Found::Directory)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&handle, "", Vec::new()).map_err(|e| fault(&at, e))?;
                Ok(Found::Link(OsString::from_vec(target.into_bytes())))
            }
            FileType::RegularFile => {
                let facts = FileFacts::of(handle.as_fd()).map_err(|error| fault(&at, error))?;
                Ok(Found::File(facts.id))
            }
            _ => Err(fault(&at, "is neither a file nor a directory")),
        }
    }

    fn check(&self, handle: BorrowedFd<'_>, at: &Path) -> Result<FileType, PathFault> {
        let facts = FileFacts::of(handle).map_err(|error| fault(at, error))?;
        if !matches!(facts.gate(|| None), Gate::Open(_) | Gate::Ajar) {
            return Err(fault(at, "is on a file system that may stall or lie"));
        }
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(handle, "", flags, StatxFlags::BASIC_STATS).map_err(|e| fault(at, e))?;
        let mode = u32::from(stat.stx_mode);
        let kind = FileType::from_raw_mode(mode);
        if stat.stx_uid != 0 && stat.stx_uid != self.own {
            return Err(fault(at, format!("can be changed by uid {}, whose it is", stat.stx_uid)));
        }
        // The bits of a symbolic link mean nothing.
        if kind != FileType::Symlink && mode & 0o022 != 0 {
            return Err(fault(at, format!("can be changed by others (mode {:04o})", mode & 0o7777)));
        }
        Ok(kind)
    }
}

fn open_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

fn steps(path: &Path) -> Option<VecDeque<OsString>> {
    path.is_absolute().then(|| relative_steps(path))
}

fn relative_steps(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

fn fault(path: &Path, why: impl fmt::Display) -> PathFault {
    PathFault { path: path.to_owned(), why: why.to_string() }
}

const MOST_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn id_of(path: &str) -> FileId {
        FileFacts::of(fs::File::open(path).unwrap().as_fd()).unwrap().id
    }

    /// A directory that only root can change, and nobody above it either.
    fn place() -> tempfile::TempDir {
        let dir = tempfile::Builder::new().prefix("mayfly-program-").tempdir_in("/var/lib").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    #[test]
    fn a_system_program_is_trusted_through_all_its_links() {
        assert_eq!(trusted(Path::new("/usr/bin/python3"), 0).unwrap(), id_of("/usr/bin/python3.11"));
        assert_eq!(trusted(Path::new("/bin/sh"), 0).unwrap(), id_of("/bin/sh"));
        assert_eq!(trusted(Path::new("/usr/../bin/./sh"), 0).unwrap(), id_of("/bin/sh"));
    }

    #[test]
    fn a_program_that_its_user_can_replace_is_not() {
        let dir = place();
        let (program, link) = (dir.path().join("python"), dir.path().join("link"));
        fs::copy("/bin/true", &program).unwrap();
        symlink("python", &link).unwrap();
        assert_eq!(trusted(&link, 0).unwrap(), id_of(program.to_str().unwrap()));
        let refused = |path: &Path| trusted(path, 0).unwrap_err().to_string();
        chown(&program, Some(20_200), None).unwrap();
        assert!(refused(&program).contains("uid 20200"), "{}", refused(&program));
        assert!(trusted(&program, 20_200).is_ok(), "it may be our own");
        chown(&program, Some(0), None).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(refused(&link).contains("mode 0775"), "{}", refused(&link));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(refused(&program).contains("mode 1777"), "not even in a sticky directory");
    }

    #[test]
    fn a_link_of_a_user_is_not_trusted_whatever_it_points_at() {
        let dir = place();
        let link = dir.path().join("python");
        symlink("/usr/bin/python3.11", &link).unwrap();
        assert!(trusted(&link, 0).is_ok());
        std::os::unix::fs::lchown(&link, Some(20_200), None).unwrap();
        assert!(trusted(&link, 0).unwrap_err().to_string().contains("uid 20200"));
    }

    #[test]
    fn what_is_no_file_or_leads_nowhere_is_refused() {
        let dir = place();
        let round = dir.path().join("round");
        symlink("round", &round).unwrap();
        for path in [
            &round,
            Path::new("/usr/bin"),
            Path::new("/dev/null"),
            Path::new("bin/sh"),
            Path::new("/nowhere/x"),
        ] {
            assert!(trusted(path, 0).is_err(), "{path:?}");
        }
        assert!(trusted(Path::new("/proc/self/exe"), 0).unwrap_err().to_string().contains("stall or lie"));
    }
}
