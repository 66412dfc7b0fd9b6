//! A pinned process: a pidfd, and what the kernel said about its owner when it was pinned.
//!
//! Order matters here. The pidfd comes first and from the socket; the number only from the pidfd; the `/proc`
//! directory only from the number, and it counts only if the pidfd was still alive *after* it was opened. From
//! then on the directory names the process, not the number: after a reuse it answers ESRCH.

mod dir;
mod exec;
mod exit;
pub(crate) mod procfs;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::host::{BootId, Host};
use crate::{failpoint, socket, sys};

pub(crate) use dir::ProcDir;
pub(crate) use exec::Counted;
pub use exec::{ExecCounter, ExecMode, ExecNotice, ExecWatch};
pub use exit::{ExitCause, ExitNotice, Reaper, WatchLost};
pub(crate) use procfs::Ids;

/// One live process, held by a pidfd. At rest it costs that one descriptor.
#[derive(Debug)]
pub struct Process {
    host: Arc<Host>,
    pidfd: Arc<OwnedFd>,
    key: ProcessKey,
    uid: u32,
    gid: u32,
}

/// Names a process for ever: equal keys are the same process, whatever became of its number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProcessKey {
    /// Which boot.
    pub boot_id: BootId,
    /// Number in the pid namespace of our procfs.
    pub pid: u32,
    /// Clock ticks after boot at which it was started.
    pub start_time: u64,
    /// Unique within the boot, where the kernel has it (Linux 6.9).
    pub pidfs_inode: Option<u64>,
}

/// Why a peer could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It is gone, or went while we looked.
    #[error("the process exited before it could be pinned")]
    Exited,
    /// The kernel shows it as nobody: it is outside our pid namespace, or its user is not mapped or is the
    /// overflow user itself.
    #[error("the kernel cannot name the process or its user from here")]
    Overflow,
    /// Our own descriptor table is full; says nothing about the peer.
    #[error("no descriptor is free to pin the process with")]
    Descriptors,
    /// The kernel has no such thing, or another process's `/proc` is hidden from us.
    #[error("this kernel or place cannot pin the process")]
    Unsupported(#[source] io::Error),
}

/// A process just pinned, with its directory still open.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) process: Process,
    pub(crate) dir: ProcDir,
    pub(crate) stat: procfs::Stat,
}

/// What the kernel says about a live process now.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Live {
    pub(crate) uids: Ids,
    pub(crate) gids: Ids,
    /// Id of its cgroup in the v2 hierarchy, where `PIDFD_GET_INFO` tells.
    pub(crate) cgroup_id: Option<u64>,
}

impl Process {
    /// Pins whoever connected `socket`.
    ///
    /// # Errors
    /// See [`PinError`]; except for a full descriptor table, the connection must be closed without an answer.
    pub fn of_peer(host: &Arc<Host>, socket: BorrowedFd<'_>) -> Result<Self, PinError> {
        let pidfd = getsockopt(&socket, sockopt::PeerPidfd).map_err(|errno| match errno {
            nix::Error::EMFILE | nix::Error::ENFILE => PinError::Descriptors,
            nix::Error::ENOPROTOOPT => PinError::Unsupported(errno.into()),
            // EINVAL, ESRCH, ENODATA, whatever the kernel's release says of a peer that is gone.
            _ => PinError::Exited,
        })?;
        failpoint::hit("pin.after_pidfd");
        let peer =
            getsockopt(&socket, sockopt::PeerCredentials).map_err(|e| PinError::from(io::Error::from(e)))?;
        Self::pin(host, pidfd, Some((peer.uid(), peer.gid()))).map(|pinned| pinned.process)
    }

    /// Pins the process that has the number `pid` now, in the pid namespace of our procfs. The caller compares
    /// [`Self::key`] with what it expected.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn of_pid(host: &Arc<Host>, pid: u32) -> Result<Self, PinError> {
        Self::of_number(host, pid).map(|pinned| pinned.process)
    }

    /// Pins the process behind a pidfd that was kept since it was pinned before.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn of_pidfd(host: &Arc<Host>, pidfd: OwnedFd) -> Result<Self, PinError> {
        Self::pin(host, pidfd, None).map(|pinned| pinned.process)
    }

    /// [`Self::of_pid`], with what was read on the way.
    pub(crate) fn of_number(host: &Arc<Host>, pid: u32) -> Result<Pinned, PinError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(PinError::Exited)?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty()).map_err(io::Error::from)?;
        let pinned = Self::pin(host, pidfd, None)?;
        // pidfd_open counts in our own pid namespace, the procfs may count in another.
        if pinned.process.key.pid == pid { Ok(pinned) } else { Err(PinError::Overflow) }
    }

    /// Names the process for ever.
    pub fn key(&self) -> ProcessKey {
        self.key
    }

    /// Number in the pid namespace of our procfs; only for people to read.
    pub fn pid(&self) -> u32 {
        self.key.pid
    }

    /// Effective uid when it connected, or when it was pinned by number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Effective gid when it connected, or when it was pinned by number.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether it has not exited. A process whose first thread has exited lives on; one killed but held back by
    /// a tracer or a core dump counts as alive too.
    pub fn is_alive(&self) -> bool {
        is_alive(self.pidfd.as_fd())
    }

    /// The pidfd itself, readable once the process has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Id of the cgroup it is in now, in the v2 hierarchy; `None` where the kernel does not tell (before 6.13).
    pub fn cgroup_id(&self) -> Option<u64> {
        Live::of_pidfd(self.pidfd.as_fd()).ok()?.cgroup_id
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub(crate) fn shared_pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }

    /// Credentials and cgroup as they are now: from the pidfd, or from `dir` where the kernel cannot tell (before
    /// 6.13). Fails with ESRCH once the process is gone.
    pub(crate) fn live(&self, dir: &ProcDir) -> io::Result<Live> {
        if self.host.features().pidfd_info {
            return Live::of_pidfd(self.pidfd.as_fd());
        }
        let status = dir.status()?;
        Ok(Live { uids: status.uids, gids: status.gids, cgroup_id: None })
    }

    fn pin(host: &Arc<Host>, pidfd: OwnedFd, peer: Option<(u32, u32)>) -> Result<Pinned, PinError> {
        let pid = match host.pid_of(pidfd.as_fd())? {
            0 => return Err(PinError::Overflow),
            gone if gone < 0 => return Err(PinError::Exited),
            pid => u32::try_from(pid).or(Err(PinError::Overflow))?,
        };
        let dir = ProcDir::open(host, pid).map_err(|e| hidden_or_exited(e, &pidfd))?;
        if !is_alive(pidfd.as_fd()) {
            return Err(PinError::Exited);
        }
        let stat = dir.stat().map_err(|e| hidden_or_exited(e, &pidfd))?;
        let pidfs_inode = socket::pidfs_inode(pidfd.as_fd());
        let key = ProcessKey { boot_id: host.boot_id(), pid, start_time: stat.start_time, pidfs_inode };
        let mut process = Self { host: Arc::clone(host), pidfd: Arc::new(pidfd), key, uid: 0, gid: 0 };
        let live = process.live(&dir)?;
        (process.uid, process.gid) = peer.unwrap_or((live.uids.effective, live.gids.effective));
        let strangers = [process.uid, live.uids.real, live.uids.effective, live.uids.saved];
        if strangers.into_iter().any(|uid| host.is_overflow(uid)) {
            return Err(PinError::Overflow);
        }
        if process.is_alive() { Ok(Pinned { process, dir, stat }) } else { Err(PinError::Exited) }
    }
}

/// `PIDFD_GET_INFO`, which Linux before 6.13 does not have.
pub(crate) fn pidfd_info(pidfd: BorrowedFd<'_>, wanted: u64) -> io::Result<[u64; 8]> {
    if failpoint::fails("pidfd.info") {
        return Err(rustix::io::Errno::NOTTY.into());
    }
    sys::pidfd_info(pidfd, wanted)
}

impl Live {
    fn of_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<Self> {
        let words = pidfd_info(pidfd, WANT_CREDENTIALS | WANT_CGROUP)?;
        let half = |at: usize| -> Option<u32> {
            let bytes = words.get(at / 2)?.to_ne_bytes();
            bytes.get(at % 2 * 4..)?.first_chunk().map(|four| u32::from_ne_bytes(*four))
        };
        let [mask, cgroup, ..] = words;
        if mask & WANT_CREDENTIALS == 0 {
            return Err(rustix::io::Errno::SRCH.into());
        }
        // After two u64: pid, tgid, ppid, then ruid, rgid, euid, egid, suid, sgid.
        let ids = |real, effective, saved| -> Option<Ids> {
            Some(Ids { real: half(real)?, effective: half(effective)?, saved: half(saved)? })
        };
        let both = ids(7, 9, 11).zip(ids(8, 10, 12));
        let (uids, gids) = both.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { uids, gids, cgroup_id: (mask & WANT_CGROUP != 0).then_some(cgroup) })
    }
}

impl From<io::Error> for PinError {
    /// Reading about a process fails because it is gone, unless it is us who ran out of something.
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            _ if is_want_of_ours(&error) => Self::Descriptors,
            Some(libc::ENOENT | libc::ESRCH) => Self::Exited,
            _ => Self::Unsupported(error),
        }
    }
}

/// Whether we ran out of descriptors or of the kernel's memory, or the machine did. Such an error says nothing about
/// the process that was being looked at: it must never read as "gone" or "changed".
pub(crate) fn is_want_of_ours(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// `/proc/PID` missing for a process that lives: it is hidden from us (hidepid), which is our misconfiguration.
fn hidden_or_exited(error: io::Error, pidfd: &OwnedFd) -> PinError {
    match error.raw_os_error() {
        Some(libc::ENOENT) if is_alive(pidfd.as_fd()) => PinError::Unsupported(error),
        _ => error.into(),
    }
}

/// A pidfd becomes readable when the process has exited. If it cannot be asked, the process counts as gone.
pub(crate) fn is_alive(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

const WANT_CREDENTIALS: u64 = 1 << 1;
const WANT_CGROUP: u64 = 1 << 2;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;
    use crate::testing::{end, host, peer, sleeper};

    fn live(process: &Process) -> Live {
        process.live(&ProcDir::open(process.host(), process.pid()).unwrap()).unwrap()
    }

    #[test]
    fn a_peer_is_pinned_with_its_own_key() {
        let host = host();
        let (child, socket) = peer("time.sleep(30)");
        let process = Process::of_peer(&host, socket.as_fd()).unwrap();
        assert_eq!(process.pid(), child.id());
        assert_eq!((process.uid(), process.gid()), (0, 0));
        assert_eq!(process.key(), Process::of_pid(&host, child.id()).unwrap().key());
        assert!(process.is_alive() && process.key().pidfs_inode.is_some());
        end(child);
        assert!(!process.is_alive());
    }

    #[test]
    fn a_peer_that_died_before_the_pin_is_refused() {
        let host = host();
        let (mut child, socket) = peer("s.send(b'x')");
        child.wait().unwrap();
        assert!(matches!(Process::of_peer(&host, socket.as_fd()), Err(PinError::Exited)));
    }

    #[test]
    fn a_dead_number_is_exited() {
        let child = sleeper();
        let pid = child.id();
        end(child);
        assert!(matches!(Process::of_pid(&host(), pid), Err(PinError::Exited)));
        assert!(matches!(Process::of_pid(&host(), 0), Err(PinError::Exited)));
    }

    #[test]
    fn an_unreaped_zombie_is_not_alive() {
        let host = host();
        let mut child = sleeper();
        let process = Process::of_pid(&host, child.id()).unwrap();
        child.kill().unwrap();
        while process.is_alive() {
            std::thread::yield_now();
        }
        assert!(matches!(Process::of_pid(&host, child.id()), Err(PinError::Exited)));
        child.wait().unwrap();
    }

    #[test]
    fn the_overflow_user_is_refused() {
        let child = Command::new("/bin/sleep").arg("30").uid(65534).gid(65534).spawn().unwrap();
        assert!(matches!(Process::of_pid(&host(), child.id()), Err(PinError::Overflow)));
        end(child);
    }

    #[test]
    fn live_credentials_follow_a_change_of_user() {
        let host = host();
        let code = "sys.stdin.read(1)\nos.setgroups([]);os.setresgid(7,7,7);os.setresuid(20003,20003,20003)\ns.send(b'x')\ntime.sleep(30)";
        let (mut child, mut socket) = peer(code);
        let process = Process::of_peer(&host, socket.as_fd()).unwrap();
        let before = live(&process);
        child.stdin.take().unwrap().write_all(b"x").unwrap();
        io::Read::read_exact(&mut socket, &mut [0; 1]).unwrap();
        let after = live(&process);
        assert_eq!(before.uids, Ids { real: 0, effective: 0, saved: 0 });
        assert_eq!(after.uids, Ids { real: 20003, effective: 20003, saved: 20003 });
        assert_eq!(after.gids, Ids { real: 7, effective: 7, saved: 7 });
        assert_eq!(process.uid(), 0, "the uid at connect is kept");
        assert!(after.cgroup_id.is_some());
        end(child);
    }

    #[test]
    fn both_sources_of_credentials_agree() {
        let host = host();
        let child = Command::new("/bin/sleep").arg("30").uid(20004).gid(20005).spawn().unwrap();
        let process = Process::of_pid(&host, child.id()).unwrap();
        let status = ProcDir::open(&host, child.id()).unwrap().status().unwrap();
        let now = live(&process);
        assert_eq!((now.uids, now.gids), (status.uids, status.gids));
        end(child);
    }

    #[test]
    fn exec_keeps_the_key() {
        let host = host();
        let (child, mut socket) =
            peer("s.set_inheritable(True)\nsys.stdin.read(1)\nos.execv('/bin/sleep',['sleep','30'])");
        let before = Process::of_peer(&host, socket.as_fd()).unwrap();
        let mut child = child;
        child.stdin.take().unwrap().write_all(b"x").unwrap();
        let exe = format!("/proc/{}/exe", child.id());
        while !std::fs::read_link(&exe).unwrap().ends_with("sleep") {
            std::thread::yield_now();
        }
        assert_eq!(Process::of_pid(&host, child.id()).unwrap().key(), before.key());
        assert!(before.is_alive());
        socket.write_all(b"x").unwrap();
        end(child);
    }

    #[test]
    fn a_process_whose_first_thread_exited_is_alive_and_readable() {
        let host = host();
        let code = "def f():\n  time.sleep(.2);s.send(b'x');time.sleep(30)\nthreading.Thread(target=f).start()\nimport ctypes\nctypes.CDLL(None).syscall(60,0)";
        let (child, mut socket) = peer(code);
        io::Read::read_exact(&mut socket, &mut [0; 1]).unwrap();
        let process = Process::of_peer(&host, socket.as_fd()).unwrap();
        let dir = ProcDir::open(&host, process.pid()).unwrap();
        assert_eq!(dir.stat().unwrap().state, b'Z');
        assert!(process.is_alive());
        assert!(dir.live_task().unwrap().link("exe").is_ok());
        end(child);
        assert!(!process.is_alive());
    }

    #[test]
    fn a_held_directory_never_names_the_next_process() {
        let host = host();
        let child = sleeper();
        let dir = ProcDir::open(&host, child.id()).unwrap();
        end(child);
        assert_eq!(dir.stat().unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
