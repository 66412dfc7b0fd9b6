//! Makes the socket file. Nobody but us and root may be able to put another socket in its place, and it has
//! its final mode from the first instant: `fchmod` comes before `bind`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use mayfly_attestors::Features;
use mayfly_attestors::sys::listen_options;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Who may connect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Every process: socket 0777 in a directory 0755.
    Public,
    /// Our user and group: socket 0660 in a directory 0750.
    Admin,
}

impl Access {
    fn socket_mode(self) -> Mode {
        Mode::from_raw_mode(if self == Self::Public { 0o777 } else { 0o660 })
    }

    fn directory_mode(self) -> Mode {
        Mode::from_raw_mode(if self == Self::Public { 0o755 } else { 0o750 })
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path is relative, has `..` in it, or is longer than the 107 bytes a socket address holds.
    #[error("`{}` cannot be a socket's path: it must be absolute, without `..`, and at most 107 bytes", .0.display())]
    Path(PathBuf),
    /// Somebody else could replace the directory or what is in it.
    #[error("`{}` must be a directory that only root or this user can write: {why}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is a file that is not a stale socket of ours.
    #[error("`{}` is in the way: {why}", path.display())]
    InTheWay {
        /// The socket's path.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// Another process answers there.
    #[error("another process serves `{}`", .0.display())]
    InUse(PathBuf),
    /// The descriptor that the service manager passed is not a listening stream socket.
    #[error("the passed descriptor is not a listening Unix stream socket")]
    NotListening,
    /// The kernel refused.
    #[error("cannot {step} for `{}`", path.display())]
    System {
        /// What was attempted.
        step: &'static str,
        /// The socket's path or its directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A listening socket. Its file is removed when this is dropped, unless somebody has replaced it, or somebody keeps
/// the socket for our next start.
#[derive(Debug)]
pub struct Bound {
    listener: OwnedFd,
    file: Option<(PathBuf, FileId)>,
    passed: bool,
    stays: bool,
    /// Nobody can pass descriptors on its connections.
    rights_off: bool,
}

impl Bound {
    /// Creates the socket at `path`, and its directories where they are missing.
    ///
    /// # Errors
    /// See [`BindError`]; nothing is changed that is not ours.
    pub fn bind(path: &Path, access: Access, features: &Features) -> Result<Self, BindError> {
        Self::bind_as(SocketType::STREAM, path, access, features)
    }

    /// The same for packets that may carry descriptors: whoever serves it must close connections elsewhere.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub(super) fn bind_packets(path: &Path, access: Access, features: &Features) -> Result<Self, BindError> {
        let rights_on = Features { pass_rights_off: false, ..features.clone() };
        Self::bind_as(SocketType::SEQPACKET, path, access, &rights_on)
    }

    fn bind_as(
        kind: SocketType,
        path: &Path,
        access: Access,
        features: &Features,
    ) -> Result<Self, BindError> {
        let (Ok(address), Some(directory), true) = (SocketAddrUnix::new(path), path.parent(), is_plain(path))
        else {
            return Err(BindError::Path(path.to_owned()));
        };
        prepare_directory(directory, access)?;
        clear_the_way(kind, path, &address)?;
        Self::listen(kind, path, &address, access, features)
    }

    /// As [`Self::bind`], in place of whatever is at `path` now: for a socket that was ours and that somebody has
    /// removed or replaced.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind_again(path: &Path, access: Access, features: &Features) -> Result<Self, BindError> {
        let (Some(directory), true) = (path.parent(), is_plain(path)) else {
            return Err(BindError::Path(path.to_owned()));
        };
        prepare_directory(directory, access)?;
        // Beside it, then renamed over it: no moment without a socket of ours, whatever was there.
        let beside = directory.join(".mf");
        let address = SocketAddrUnix::new(&beside).map_err(|_long| BindError::Path(path.to_owned()))?;
        match rustix::fs::unlink(&beside) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(system("clear the way", &beside, errno)),
        }
        let mut bound = Self::listen(SocketType::STREAM, &beside, &address, access, features)?;
        rustix::fs::rename(&beside, path).map_err(|e| system("put the socket in its place", path, e))?;
        if let Some((named, _)) = &mut bound.file {
            path.clone_into(named);
        }
        Ok(bound)
    }

    fn listen(
        kind: SocketType,
        path: &Path,
        address: &SocketAddrUnix,
        access: Access,
        features: &Features,
    ) -> Result<Self, BindError> {
        let failed = |step| move |errno: Errno| system(step, path, errno);
        let socket = new_socket(kind).map_err(failed("create a socket"))?;
        set_options(socket.as_fd(), features).map_err(|e| system("set options", path, e))?;
        rustix::fs::fchmod(&socket, access.socket_mode()).map_err(failed("set the mode"))?;
        rustix::net::bind(&socket, address).map_err(failed("bind"))?;
        // The umask may have taken bits away; giving them back only ever widens.
        rustix::fs::chmod(path, access.socket_mode()).map_err(failed("set the mode"))?;
        let file = FileId::of(&rustix::fs::lstat(path).map_err(failed("look at the socket"))?);
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen"))?;
        Ok(Self {
            listener: socket,
            file: Some((path.to_owned(), file)),
            passed: false,
            stays: false,
            rights_off: features.pass_rights_off,
        })
    }

    /// Takes back a socket of ours that somebody has kept since the run before. It must be a listening one, and the
    /// file at `path` must be the one it was bound to: the caller knows that from the socket's name.
    ///
    /// # Errors
    /// When it is no listening stream socket of the Unix family.
    pub fn take_back(
        socket: OwnedFd,
        path: &Path,
        file: FileId,
        features: &Features,
    ) -> Result<Self, BindError> {
        let mut bound = Self::from_passed(socket, features)?;
        bound.file = Some((path.to_owned(), file));
        // Its options were set before it listened, so those who wait in its queue have them too.
        bound.passed = false;
        Ok(bound)
    }

    /// Takes over a listening socket that a service manager has made. Connections already in its queue may
    /// have been made before our options were set.
    ///
    /// # Errors
    /// When it is no listening stream socket of the Unix family.
    pub fn from_passed(socket: OwnedFd, features: &Features) -> Result<Self, BindError> {
        let fits = rustix::net::sockopt::socket_acceptconn(&socket) == Ok(true)
            && rustix::net::sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
            && rustix::net::sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
        let flags = rustix::fs::fcntl_getfl(&socket).unwrap_or(OFlags::empty());
        let set = rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK);
        if !fits || set.is_err() || set_options(socket.as_fd(), features).is_err() {
            return Err(BindError::NotListening);
        }
        let rights_off = features.pass_rights_off;
        Ok(Self { listener: socket, file: None, passed: true, stays: false, rights_off })
    }

    /// The file it was bound to; `None` when a manager bound it.
    pub fn file_id(&self) -> Option<FileId> {
        self.file.as_ref().map(|(_, id)| *id)
    }

    /// Leaves the file behind when this is dropped: somebody else keeps the socket, and callers wait in its queue.
    pub fn leave_standing(&mut self) {
        self.stays = true;
    }

    /// The listening socket.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Whether closing a connection can never block.
    pub(crate) fn is_rights_off(&self) -> bool {
        self.rights_off
    }

    /// Whether each connection needs its options set again (those queued before we came).
    pub(crate) fn is_passed(&self) -> bool {
        self.passed
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some((path, file)) = &self.file
            && !self.stays
            && rustix::fs::lstat(path).is_ok_and(|now| FileId::of(&now) == *file)
        {
            rustix::fs::unlink(path).ok();
        }
    }
}

/// Sets, on a listener before it listens or on a connection, what every read relies on.
pub(crate) fn set_options(socket: BorrowedFd<'_>, features: &Features) -> io::Result<()> {
    if features.pass_rights_off {
        listen_options::set_pass_rights_off(socket)?;
    }
    if features.pass_pidfd {
        listen_options::set_pass_pidfd(socket)?;
    }
    listen_options::set_pass_cred(socket)
}

/// Names a file while it exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileId(u64, u64);

impl FileId {
    fn of(stat: &Stat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }

    /// The file at `path` now, whatever it is.
    pub fn at(path: &Path) -> Option<Self> {
        rustix::fs::lstat(path).ok().map(|stat| Self::of(&stat))
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.0, self.1)
    }
}

fn new_socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && !path.as_os_str().as_bytes().ends_with(b"/")
}

/// Walks down from the root: what is missing is made, what is there must not be replaceable by others. A
/// sticky directory (`/tmp`) may be above ours, but not hold the socket itself.
fn prepare_directory(directory: &Path, access: Access) -> Result<(), BindError> {
    let mut above: Vec<&Path> = directory.ancestors().collect();
    above.reverse();
    for path in above {
        let last = path == directory;
        let mode = if last { access.directory_mode() } else { Access::Public.directory_mode() };
        match rustix::fs::mkdir(path, mode) {
            // The umask may have taken bits away.
            Ok(()) => rustix::fs::chmod(path, mode).map_err(|e| system("set the mode", path, e))?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(system("make a directory", path, errno)),
        }
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| system("look at the directory", path, e))?;
        if let Some(why) = replaceable(&stat, last) {
            return Err(BindError::Directory { path: path.to_owned(), why });
        }
    }
    Ok(())
}

/// What lets somebody else decide what is found in a directory.
fn replaceable(stat: &Stat, holds_socket: bool) -> Option<&'static str> {
    let own = rustix::process::geteuid().as_raw();
    let by_others = stat.st_mode & 0o022 != 0;
    let sticky = stat.st_mode & 0o1000 != 0;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Some("it is a symbolic link"),
        FileType::Directory if stat.st_uid != 0 && stat.st_uid != own => Some("it belongs to another user"),
        FileType::Directory if by_others && (holds_socket || !sticky) => Some("others can write in it"),
        FileType::Directory => None,
        _ => Some("it is not a directory"),
    }
}

/// Removes a socket that is ours and that nobody serves any more.
fn clear_the_way(kind: SocketType, path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let in_the_way = |why| Err(BindError::InTheWay { path: path.to_owned(), why });
    let stat = match rustix::fs::lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(system("look at what is there", path, errno)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return in_the_way("it is not a socket");
    }
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return in_the_way("it is another user's socket");
    }
    let probe = new_socket(kind).map_err(|e| system("create a socket", path, e))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            rustix::fs::unlink(path).map_err(|e| system("remove a stale socket", path, e))
        }
        // A full queue (EAGAIN) is somebody's queue.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse(path.to_owned())),
        Err(errno) => Err(system("see who serves", path, errno)),
    }
}

fn system(step: &'static str, path: &Path, source: impl Into<io::Error>) -> BindError {
    BindError::System { step, path: path.to_owned(), source: source.into() }
}

/// Connections that wait for `accept`. One uid can fill any queue; a long one gives the accept thread time.
const BACKLOG: i32 = 4_096;
