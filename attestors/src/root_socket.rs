//! Sockets of services that answer for root: engines, the kubelet, plug-ins.
//!
//! What such a service says becomes somebody's identity, so it must be root's own word: every directory on the way to
//! the socket, and the socket itself, belong to root and nobody else may change them, and the process that serves it
//! runs as root. A socket in a user's runtime directory, which that user can replace, is never asked.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use tokio::net::UnixStream;

use crate::backend::Silent;
use crate::process::is_want_of_ours;

/// Why a socket is not used.
#[derive(Debug, thiserror::Error)]
pub enum RootSocketError {
    /// Something on the way there.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// Not a plain absolute path.
    #[error("{0} is no absolute path without links and dots")]
    Path(PathBuf),
    /// Somebody but root could replace what is there.
    #[error("{0} is not in root's hands alone: it must belong to root, and no other may write it")]
    Owner(PathBuf),
    /// It is there, and no socket.
    #[error("{0} is no socket")]
    NoSocket(PathBuf),
    /// Another user serves it.
    #[error("{0} is served by uid {1}, not by root")]
    Server(PathBuf, u32),
}

impl RootSocketError {
    /// Nobody is there: whoever would listen is not installed, or not running.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::Io(_, error) if error.kind() == io::ErrorKind::NotFound)
    }

    pub(crate) fn silent(&self) -> Silent {
        match self {
            Self::Io(_, error) if is_want_of_ours(error) => Silent::Descriptors,
            error => error.to_string().into(),
        }
    }
}

/// Connects to a socket that root alone can have put there, and that root serves.
///
/// # Errors
/// See [`RootSocketError`].
pub async fn connect_to_root(path: &Path) -> Result<UnixStream, RootSocketError> {
    check(path)?;
    let failed = |error| RootSocketError::Io(path.to_owned(), error);
    let stream = UnixStream::connect(path).await.map_err(failed)?;
    match stream.peer_cred().map_err(failed)?.uid() {
        0 => Ok(stream),
        uid => Err(RootSocketError::Server(path.to_owned(), uid)),
    }
}

/// Once every directory is known to be root's alone, the path stays what it is for whoever is not root.
fn check(path: &Path) -> Result<(), RootSocketError> {
    let name = path.file_name().filter(|_| path.is_absolute());
    let (Some(name), Some(parent)) = (name, path.parent()) else {
        return Err(RootSocketError::Path(path.to_owned()));
    };
    let mut here = PathBuf::from("/");
    let mut parts = parent.components().skip(1).peekable();
    let mut dir = open(&here, None, parts.peek().is_none())?;
    while let Some(part) = parts.next() {
        let Component::Normal(part) = part else { return Err(RootSocketError::Path(path.to_owned())) };
        here.push(part);
        dir = open(&here, Some((&dir, Path::new(part))), parts.peek().is_none())?;
    }
    let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| RootSocketError::Io(path.to_owned(), errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(RootSocketError::NoSocket(path.to_owned()));
    }
    // Whoever may write a socket may connect to it; only who owns it could be another server.
    if stat.st_uid == 0 { Ok(()) } else { Err(RootSocketError::Owner(path.to_owned())) }
}

/// Above the socket's own directory there may be a sticky one (`/tmp`): nobody else removes there what is root's.
fn open(path: &Path, within: Option<(&OwnedFd, &Path)>, last: bool) -> Result<OwnedFd, RootSocketError> {
    let failed = |errno: rustix::io::Errno| RootSocketError::Io(path.to_owned(), errno.into());
    let dir = match within {
        Some((parent, name)) => rustix::fs::openat(parent.as_fd(), name, DIRECTORY, Mode::empty()),
        None => rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()),
    };
    let dir = dir.map_err(failed)?;
    let kept = |mode| mode & 0o022 == 0 || (!last && mode & 0o1000 != 0);
    let is_roots = |stat: Stat| stat.st_uid == 0 && kept(stat.st_mode);
    if is_roots(rustix::fs::fstat(&dir).map_err(failed)?) {
        Ok(dir)
    } else {
        Err(RootSocketError::Owner(path.to_owned()))
    }
}

const DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Below `/run`: `/tmp` is everybody's.
    fn dir() -> tempfile::TempDir {
        let dir = tempfile::Builder::new().prefix("mayfly-test").tempdir_in("/run").unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        dir
    }

    async fn why(path: &Path) -> String {
        connect_to_root(path).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn c03_only_a_socket_in_roots_hands_that_root_serves_is_used() {
        let dir = dir();
        let path = dir.path().join("s");
        assert!(why(&path).await.contains("No such file"));
        let _listener = UnixListener::bind(&path).unwrap();
        connect_to_root(&path).await.unwrap();
        chown(&path, Some(1000), None).unwrap();
        assert!(why(&path).await.contains("not in root's hands"));
        chown(&path, Some(0), None).unwrap();
        for (uid, mode) in [(1000, 0o755), (0, 0o775), (0, 0o757), (0, 0o1777)] {
            chown(dir.path(), Some(uid), None).unwrap();
            std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
            assert!(why(&path).await.contains("not in root's hands"), "{uid} {mode:o}");
        }
        chown(dir.path(), Some(0), None).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        connect_to_root(&path).await.unwrap();
        symlink(&path, dir.path().join("link")).unwrap();
        assert!(why(&dir.path().join("link")).await.contains("is no socket"));
        symlink(dir.path(), dir.path().join("d")).unwrap();
        assert!(why(&dir.path().join("d/s")).await.contains("d: "), "a link on the way");
        for bad in ["s", "/", "/run/../run/s", ""] {
            assert!(why(Path::new(bad)).await.contains("no absolute path"), "{bad}");
        }
    }

    #[tokio::test]
    async fn c03_everybodys_sticky_directory_may_stand_above() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        connect_to_root(&path).await.unwrap();
    }

    /// Root's socket, handed to a server of another user.
    #[tokio::test]
    async fn c03_a_server_that_is_not_root_is_not_asked() {
        let dir = dir();
        let path = dir.path().join("s");
        let code = "import socket,sys,os\ns=socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\nos.setresuid(1000,1000,1000)\ns.listen()\nprint(flush=True)\nsys.stdin.read()";
        let mut server = Command::new("/usr/bin/python3")
            .args(["-c", code])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        assert!(why(&path).await.ends_with("is served by uid 1000, not by root"));
        drop(server.stdin.take());
        server.wait().unwrap();
    }
}
