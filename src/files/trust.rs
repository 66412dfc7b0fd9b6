//! Opening what only root or we could have put there.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat, fchmod, fstat, fsync, mkdirat, openat};
use rustix::io::Errno;

/// What a file must satisfy to be read.
#[derive(Clone, Copy, Debug)]
pub struct TrustRules {
    max_bytes: u64,
    private: bool,
    /// Of a private file: root's, and readable by our own group.
    shared_by_root: bool,
    own_uid: u32,
}

impl TrustRules {
    /// Readable by anybody, writable by root or us only; at most `max_bytes`.
    pub fn public(max_bytes: u64) -> Self {
        Self { max_bytes, private: false, shared_by_root: false, own_uid: own_uid() }
    }

    /// Readable by its owner alone: keys and state. At most `max_bytes`.
    pub fn private(max_bytes: u64) -> Self {
        Self { private: true, ..Self::public(max_bytes) }
    }

    /// As [`Self::private`], or root's and readable by our own group alone: how a package, or Kubernetes, hands a
    /// secret to a daemon that is not root.
    pub fn handed_over(max_bytes: u64) -> Self {
        Self { shared_by_root: true, ..Self::private(max_bytes) }
    }

    /// Permission bits that a private file must not have.
    fn forbidden(&self, found: &Stat) -> u32 {
        let own_group = rustix::process::getegid().as_raw();
        let is_shared = self.shared_by_root && found.st_uid == 0 && found.st_gid == own_group;
        if is_shared { GROUP_AND_OTHERS & !READ_BY_GROUP } else { GROUP_AND_OTHERS }
    }
}

/// Why a file or directory was not used. The path is the one at fault, which may be a parent directory.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused; look at `source` for [`io::ErrorKind::NotFound`].
    #[error("cannot {step} {path:?}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("{path:?} {fault}")]
    Untrusted {
        /// The file or directory at fault.
        path: PathBuf,
        /// What is wrong with it and how to put it right.
        fault: Fault,
    },
}

impl FileError {
    /// Whether the file or a directory above it does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What makes a file or directory untrustworthy. The text names the fix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// A symbolic link: its target could be changed under us.
    Symlink,
    /// Not a regular file; what it is instead.
    NotAFile(&'static str),
    /// Not a directory.
    NotADirectory,
    /// Owned by that uid, which is neither root nor (second) our own.
    Owner(u32, u32),
    /// Group or others may write; the permission bits.
    Writable(u32),
    /// Group or others may read or search what must be private; the permission bits.
    Readable(u32),
    /// It has that many names, so that somebody may hold one of them elsewhere.
    HardLinks(u64),
    /// Larger than this many bytes.
    TooBig(u64),
    /// Not a volume as Kubernetes projects it: what is different.
    NotProjected(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symlink => f.write_str("is a symbolic link: give the path that it points to"),
            Self::NotAFile(kind) => write!(f, "is {kind}: put a regular file there"),
            Self::NotADirectory => f.write_str("is not a directory: move it away, or give another path"),
            Self::Owner(owner, 0) => write!(f, "belongs to uid {owner}: make it root's with `chown root`"),
            Self::Owner(owner, own) => {
                write!(f, "belongs to uid {owner}, neither root nor uid {own}: change that with `chown`")
            }
            Self::Writable(mode) => {
                write!(f, "can be written by others (mode {mode:04o}): run `chmod go-w` on it")
            }
            Self::Readable(mode) => {
                write!(f, "can be read by others (mode {mode:04o}): run `chmod go-rwx` on it")
            }
            Self::HardLinks(count) => {
                write!(f, "has {count} names (hard links): replace it with a copy of its own")
            }
            Self::NotProjected(how) => {
                write!(f, "is no volume as Kubernetes projects it ({how}): leave `entries_projected` out")
            }
            Self::TooBig(max) => write!(f, "is larger than {max} bytes: make it smaller or split it"),
        }
    }
}

/// Reads a whole file after checking it and every directory above it. Shape: see the module.
pub fn read_trusted(path: &Path, rules: &TrustRules) -> Result<Vec<u8>, FileError> {
    let path = absolute(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(untrusted(&path, Fault::NotAFile("a directory")));
    };
    let dir = open_dirs(parent, rules.own_uid, None)?;
    read_in(&dir, name, rules, &path)
}

/// Checks a file as [`TrustRules::public`] does, of any size, and every directory above it, without opening it: a program
/// that we are about to run.
///
/// # Errors
/// [`FileError`].
pub fn check_trusted(path: &Path) -> Result<(), FileError> {
    let path = absolute(path)?;
    let rules = TrustRules::public(u64::MAX);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(untrusted(&path, Fault::NotAFile("a directory")));
    };
    let dir = open_dirs(parent, rules.own_uid, None)?;
    let peek = open_at(&dir, name, OFlags::PATH, &path)?;
    check_file(&stat(&peek, &path)?, &rules, &path)
}

/// Reads a file of an opened, checked directory. `path` is for messages.
pub(super) fn read_in(
    dir: &OwnedFd,
    name: &OsStr,
    rules: &TrustRules,
    path: &Path,
) -> Result<Vec<u8>, FileError> {
    // First without opening for reading: to open a device can do something, to open a FIFO can wait.
    let peek = open_at(dir, name, OFlags::PATH, path)?;
    check_file(&stat(&peek, path)?, rules, path)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_at(dir, name, flags, path)?;
    check_file(&stat(&file, path)?, rules, path)?;
    let mut bytes = Vec::new();
    File::from(file)
        .take(rules.max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::System { step: "read", path: path.into(), source })?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > rules.max_bytes {
        return Err(untrusted(path, Fault::TooBig(rules.max_bytes)));
    }
    Ok(bytes)
}

/// The names in a trusted directory, sorted by bytes, without `.` and `..`. The directory itself must not
/// be writable by others at all: in a sticky one anybody could add a file.
pub fn list_trusted_dir(path: &Path) -> Result<Vec<OsString>, FileError> {
    let path = absolute(path)?;
    let own_uid = own_uid();
    let dir = open_dirs(&path, own_uid, None)?;
    check_dir(&stat(&dir, &path)?, own_uid, false, &path)?;
    names_in(&dir, &path)
}

/// The names in an opened directory, sorted by bytes, without `.` and `..`.
pub(super) fn names_in(dir: &OwnedFd, path: &Path) -> Result<Vec<OsString>, FileError> {
    let system = |error| system("list", path)(error);
    let dir = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let mut names = Vec::new();
    for entry in Dir::read_from(dir.map_err(system)?).map_err(system)? {
        let entry = entry.map_err(system)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_os_string());
        }
    }
    names.sort();
    Ok(names)
}

/// Makes sure that a directory of ours exists that nobody else may enter (mode 0700), making it and the
/// missing ones above it (those 0755). One that exists is checked, never changed.
pub fn ensure_private_dir(path: &Path) -> Result<(), FileError> {
    ensure_dir(path, 0o700)
}

/// As [`ensure_private_dir`] with other permission bits for a directory that has to be made. Without any
/// bit for group and others it must be ours and private, else ours or root's and not writable by others.
pub fn ensure_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    let path = absolute(path)?;
    let own_uid = own_uid();
    let found = stat(&open_dirs(&path, own_uid, Some(mode))?, &path)?;
    check_dir(&found, own_uid, false, &path)?;
    if mode & GROUP_AND_OTHERS == 0 {
        if found.st_uid != own_uid {
            return Err(untrusted(&path, Fault::Owner(found.st_uid, own_uid)));
        }
        if found.st_mode & GROUP_AND_OTHERS != 0 {
            return Err(untrusted(&path, Fault::Readable(found.st_mode & PERMISSIONS)));
        }
    }
    Ok(())
}

/// Opens the directory `path` (absolute), step by step from the root, each step checked. With `make`,
/// missing ones are made: the last with those permission bits, the others 0755.
pub(super) fn open_dirs(path: &Path, own_uid: u32, make: Option<u32>) -> Result<OwnedFd, FileError> {
    let mut at = PathBuf::from("/");
    let root = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = openat(CWD, "/", root, Mode::empty()).map_err(system("open", &at))?;
    check_dir(&stat(&dir, &at)?, own_uid, true, &at)?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        at.push(name);
        let next = match (open_at(&dir, name, OFlags::PATH, &at), make) {
            (Err(error), Some(mode)) if error.is_not_found() => {
                make_dir(&dir, name, if at == path { mode } else { 0o755 }, &at)?;
                open_at(&dir, name, OFlags::PATH, &at)?
            }
            (opened, _) => opened?,
        };
        check_dir(&stat(&next, &at)?, own_uid, true, &at)?;
        dir = next;
    }
    Ok(dir)
}

fn make_dir(parent: &OwnedFd, name: &OsStr, mode: u32, path: &Path) -> Result<(), FileError> {
    let mode = Mode::from_raw_mode(mode);
    match mkdirat(parent, name, mode) {
        // Somebody was faster; what they made is checked like any other.
        Err(Errno::EXIST) => return Ok(()),
        made => made.map_err(system("make", path))?,
    }
    let made = open_at(parent, name, OFlags::RDONLY | OFlags::DIRECTORY, path)?;
    // The umask took bits away.
    fchmod(&made, mode).map_err(system("set the mode of", path))?;
    fsync(&made).map_err(system("sync", path))
}

pub(super) fn open_at(dir: &OwnedFd, name: &OsStr, flags: OFlags, path: &Path) -> Result<OwnedFd, FileError> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).map_err(system("open", path))
}

pub(super) fn check_dir(
    found: &Stat,
    own_uid: u32,
    sticky_will_do: bool,
    path: &Path,
) -> Result<(), FileError> {
    let fault = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => owner_fault(found, own_uid).or_else(|| {
            // In a sticky directory others can add names but not touch ours; whatever the next name leads
            // to is checked for its owner, so only the directory's own owner could cheat.
            let sticky = sticky_will_do && found.st_mode & STICKY != 0 && found.st_uid == 0;
            if sticky { None } else { writable_fault(found) }
        }),
        FileType::Symlink => Some(Fault::Symlink),
        _ => Some(Fault::NotADirectory),
    };
    fault.map_or(Ok(()), |fault| Err(untrusted(path, fault)))
}

fn check_file(found: &Stat, rules: &TrustRules, path: &Path) -> Result<(), FileError> {
    let fault = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => owner_fault(found, rules.own_uid)
            .or_else(|| writable_fault(found))
            .or_else(|| {
                let bits = found.st_mode & PERMISSIONS;
                (rules.private && bits & rules.forbidden(found) != 0).then_some(Fault::Readable(bits))
            })
            .or_else(|| {
                let names = link_count(found);
                (names != 1).then_some(Fault::HardLinks(names))
            })
            .or_else(|| {
                let size = u64::try_from(found.st_size).unwrap_or(u64::MAX);
                (size > rules.max_bytes).then_some(Fault::TooBig(rules.max_bytes))
            }),
        FileType::Symlink => Some(Fault::Symlink),
        FileType::Directory => Some(Fault::NotAFile("a directory")),
        FileType::Fifo => Some(Fault::NotAFile("a FIFO")),
        FileType::Socket => Some(Fault::NotAFile("a socket")),
        _ => Some(Fault::NotAFile("a device")),
    };
    fault.map_or(Ok(()), |fault| Err(untrusted(path, fault)))
}

fn owner_fault(found: &Stat, own_uid: u32) -> Option<Fault> {
    let trusted = found.st_uid == 0 || found.st_uid == own_uid;
    (!trusted).then_some(Fault::Owner(found.st_uid, own_uid))
}

fn writable_fault(found: &Stat) -> Option<Fault> {
    let mode = found.st_mode & PERMISSIONS;
    (mode & WRITE_BY_OTHERS != 0).then_some(Fault::Writable(mode))
}

/// `st_nlink` is 64 bits wide on some architectures and 32 on others.
#[expect(clippy::useless_conversion, reason = "not useless where the field is 32 bits wide")]
fn link_count(found: &Stat) -> u64 {
    u64::from(found.st_nlink)
}

/// The absolute path without `.` and `..`. To drop `x/..` is right here because no `x` may be a link.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, FileError> {
    let absolute = std::path::absolute(path).map_err(|source| FileError::System {
        step: "resolve",
        path: path.into(),
        source,
    })?;
    let mut clean = PathBuf::from("/");
    for component in absolute.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    Ok(clean)
}

pub(super) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub(super) fn stat(fd: &OwnedFd, path: &Path) -> Result<Stat, FileError> {
    fstat(fd).map_err(system("look at", path))
}

pub(super) fn system(step: &'static str, path: &Path) -> impl Fn(Errno) -> FileError {
    move |errno| FileError::System { step, path: path.into(), source: errno.into() }
}

pub(super) fn untrusted(path: &Path, fault: Fault) -> FileError {
    FileError::Untrusted { path: path.into(), fault }
}

pub(super) const WRITE_BY_OTHERS: u32 = 0o022;
const GROUP_AND_OTHERS: u32 = 0o077;
const READ_BY_GROUP: u32 = 0o040;
const STICKY: u32 = 0o1000;
const PERMISSIONS: u32 = 0o7777;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::os::unix::net::UnixListener;

    use tempfile::TempDir;

    use super::*;

    const STRANGER: u32 = 54_321;

    /// `DIR/sub/file`, everything as it should be.
    fn good() -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let file = dir.path().join("sub/file");
        fs::write(&file, "content").unwrap();
        set_mode(&dir.path().join("sub"), 0o755);
        set_mode(&file, 0o600);
        (dir, file)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(path: &Path) -> Result<Vec<u8>, FileError> {
        read_trusted(path, &TrustRules::public(100))
    }

    /// Who is to blame, and for what; the error must name both the path and a fix.
    fn fault<T: fmt::Debug>(result: Result<T, FileError>) -> (PathBuf, Fault) {
        let error = result.unwrap_err();
        let text = error.to_string();
        let FileError::Untrusted { path, fault } = error else { panic!("{text}") };
        assert!(text.contains(&format!("{path:?}")) && text.contains(": "), "{text}");
        (path, fault)
    }

    #[test]
    fn a_file_of_ours_in_directories_of_ours_is_read() {
        let (dir, file) = good();
        assert_eq!(read(&file).unwrap(), b"content");
        let detour = dir.path().join("nowhere/../sub/./file");
        assert_eq!(read(&detour).unwrap(), b"content", "dots are taken out before anything is opened");
        set_mode(&file, 0o444);
        assert_eq!(read(&file).unwrap(), b"content");
    }

    #[test]
    fn f06_a_file_that_others_can_write_is_refused() {
        let (_dir, file) = good();
        for mode in [0o620, 0o602, 0o666, 0o664] {
            set_mode(&file, mode);
            assert_eq!(fault(read(&file)), (file.clone(), Fault::Writable(mode)));
        }
    }

    #[test]
    fn f06_any_directory_above_that_others_can_write_is_refused() {
        let (dir, file) = good();
        for (path, mode) in [("sub", 0o775), ("sub", 0o757), ("", 0o720), ("", 0o702)] {
            let path = if path.is_empty() { dir.path().to_path_buf() } else { dir.path().join(path) };
            set_mode(&path, mode);
            assert_eq!(fault(read(&file)), (path.clone(), Fault::Writable(mode)));
            set_mode(&path, 0o700);
        }
    }

    #[test]
    fn f06_links_are_refused_at_every_step() {
        let (dir, file) = good();
        let link = dir.path().join("sub/link");
        symlink(&file, &link).unwrap();
        assert_eq!(fault(read(&link)), (link, Fault::Symlink));
        let link = dir.path().join("dirlink");
        symlink("sub", &link).unwrap();
        assert_eq!(fault(read(&link.join("file"))), (link.clone(), Fault::Symlink));
        assert_eq!(fault(list_trusted_dir(&link)), (link.clone(), Fault::Symlink));
        assert_eq!(fault(ensure_private_dir(&link)), (link, Fault::Symlink));
    }

    #[test]
    fn f06_a_second_name_is_refused() {
        let (dir, file) = good();
        fs::hard_link(&file, dir.path().join("other")).unwrap();
        assert_eq!(fault(read(&file)), (file, Fault::HardLinks(2)));
    }

    #[test]
    fn f06_what_is_no_regular_file_is_refused_without_waiting() {
        let (dir, _file) = good();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        assert_eq!(fault(read(&fifo)).1, Fault::NotAFile("a FIFO"));
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        set_mode(&socket, 0o600);
        assert_eq!(fault(read(&socket)).1, Fault::NotAFile("a socket"));
        assert_eq!(fault(read(Path::new("/dev/null"))).1, Fault::NotAFile("a device"));
        assert_eq!(fault(read(dir.path())).1, Fault::NotAFile("a directory"));
        assert_eq!(fault(read(Path::new("/"))).1, Fault::NotAFile("a directory"));
        let below = dir.path().join("fifo/x");
        assert_eq!(fault(read(&below)), (fifo, Fault::NotADirectory));
    }

    #[test]
    fn f06_a_strangers_file_or_directory_is_refused() {
        let (dir, file) = good();
        let rules = TrustRules::public(100);
        if own_uid() == 0 {
            chown(&file, Some(STRANGER), None).unwrap();
            assert_eq!(fault(read(&file)), (file.clone(), Fault::Owner(STRANGER, 0)));
            chown(&file, Some(0), None).unwrap();
            chown(dir.path(), Some(STRANGER), None).unwrap();
            assert_eq!(fault(read(&file)), (dir.path().to_path_buf(), Fault::Owner(STRANGER, 0)));
        } else {
            // We are the stranger to an agent of another uid.
            let rules = TrustRules { own_uid: STRANGER, ..rules };
            let expected = Fault::Owner(own_uid(), STRANGER);
            assert_eq!(fault(read_trusted(&file, &rules)), (dir.path().to_path_buf(), expected));
        }
    }

    #[test]
    fn j02_size_is_capped_even_where_the_size_is_not_told() {
        let (_dir, file) = good();
        fs::write(&file, vec![b'x'; 100]).unwrap();
        assert_eq!(read(&file).unwrap().len(), 100);
        fs::write(&file, vec![b'x'; 101]).unwrap();
        assert_eq!(fault(read(&file)).1, Fault::TooBig(100));
        let endless = PathBuf::from(format!("/proc/{}/status", std::process::id()));
        assert_eq!(fs::metadata(&endless).unwrap().len(), 0);
        assert_eq!(fault(read(&endless)), (endless, Fault::TooBig(100)));
    }

    #[test]
    fn a_secret_that_root_hands_to_our_own_group_is_read() {
        let (_dir, file) = good();
        let rules = TrustRules::handed_over(100);
        let mode = |bits| fs::set_permissions(&file, fs::Permissions::from_mode(bits)).unwrap();
        let own_group = rustix::process::getegid().as_raw();
        mode(0o440);
        assert!(read_trusted(&file, &rules).is_ok());
        assert!(read_trusted(&file, &TrustRules::private(100)).is_err());
        mode(0o444);
        assert!(read_trusted(&file, &rules).is_err(), "others may read it");
        mode(0o440);
        chown(&file, Some(0), Some(own_group + 1)).unwrap();
        assert!(read_trusted(&file, &rules).is_err(), "another group may read it");
    }

    #[test]
    fn f06_a_private_file_must_not_be_readable_by_others() {
        let (_dir, file) = good();
        let rules = TrustRules::private(100);
        assert_eq!(read_trusted(&file, &rules).unwrap(), b"content");
        for mode in [0o640, 0o604, 0o601] {
            set_mode(&file, mode);
            assert_eq!(fault(read_trusted(&file, &rules)).1, Fault::Readable(mode));
        }
    }

    #[test]
    fn a_sticky_directory_of_roots_is_let_through_only_as_a_parent() {
        let (dir, file) = good();
        set_mode(dir.path(), 0o1777);
        if own_uid() == 0 {
            assert_eq!(read(&file).unwrap(), b"content");
            chown(file.parent().unwrap(), Some(STRANGER), None).unwrap();
            assert_eq!(fault(read(&file)).1, Fault::Owner(STRANGER, 0), "but not what a stranger put there");
        } else {
            assert_eq!(fault(read(&file)).1, Fault::Writable(0o1777), "only root's own");
        }
        assert_eq!(fault(list_trusted_dir(dir.path())).1, Fault::Writable(0o1777));
        assert_eq!(fault(ensure_dir(dir.path(), 0o755)).1, Fault::Writable(0o1777));
    }

    #[test]
    fn what_is_not_there_is_told_apart() {
        let (dir, _file) = good();
        assert!(read(&dir.path().join("absent")).unwrap_err().is_not_found());
        assert!(read(&dir.path().join("absent/file")).unwrap_err().is_not_found());
        assert!(list_trusted_dir(&dir.path().join("absent")).unwrap_err().is_not_found());
    }

    #[test]
    fn directories_are_made_with_exactly_their_mode() {
        let (dir, file) = good();
        let private = dir.path().join("a/b/private");
        ensure_private_dir(&private).unwrap();
        ensure_private_dir(&private).unwrap();
        let public = dir.path().join("a/public");
        ensure_dir(&public, 0o755).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&private), mode(&public), mode(&dir.path().join("a/b"))), (0o700, 0o755, 0o755));
        set_mode(&private, 0o750);
        assert_eq!(fault(ensure_private_dir(&private)), (private, Fault::Readable(0o750)));
        assert_eq!(fault(ensure_private_dir(&file)), (file, Fault::NotADirectory));
    }

    #[test]
    fn names_are_listed_in_order() {
        let (dir, _file) = good();
        for name in ["b", ".c", "a", "Z"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(list_trusted_dir(dir.path()).unwrap(), [".c", "Z", "a", "b", "sub"]);
    }
}
