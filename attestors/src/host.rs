//! The machine, probed once at start: what this kernel can tell about processes, and whether the `/proc` given
//! to us and our own user namespace show them as they are.
//!
//! Floor: `SO_PEERPIDFD` (Linux 6.5). Everything newer is optional and its absence is a sentence in
//! [`Features::describe`]. The tree of `/proc` may be mounted elsewhere; every process number is one of *that*
//! tree, because it is only ever read from `<proc>/self/fdinfo/PIDFD`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::{CWD, Mode, OFlags};

use crate::process::{self, procfs};
use crate::{socket, sys};

/// The machine this agent runs on.
#[derive(Debug)]
pub struct Host {
    proc: OwnedFd,
    boot_id: BootId,
    features: Features,
    overflow_id: u32,
    namespaces: Namespaces,
}

/// What the kernel and our place in its namespaces offer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Features {
    /// Release, as `uname -r` prints it.
    pub kernel: String,
    /// `SO_PEERPIDFD` (6.5): always true in a probed host.
    pub peer_pidfd: bool,
    /// `SO_PASSRIGHTS` can be turned off (6.16).
    pub pass_rights_off: bool,
    /// `SO_PASSPIDFD` (6.5).
    pub pass_pidfd: bool,
    /// `PIDFD_GET_INFO` (6.13).
    pub pidfd_info: bool,
    /// A pidfd has an inode of its own, unique for the boot (6.9).
    pub pidfs_inode: bool,
    /// `statmount` (6.8).
    pub statmount: bool,
    /// We and our `/proc` are in the machine's first pid namespace, so every process can be pinned.
    pub host_pid_namespace: bool,
}

/// Why this machine or place cannot pin processes.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No `SO_PEERPIDFD`.
    #[error("kernel {kernel} cannot pin the peer of a socket (SO_PEERPIDFD): Linux 6.5 or later is needed")]
    KernelTooOld {
        /// Release of the running kernel.
        kernel: String,
    },
    /// Our user namespace does not map every id to itself, so strangers would all look like one user.
    #[error(
        "the agent is in a user namespace ({file} is not the identity): other users would all look alike"
    )]
    ForeignUserNamespace {
        /// `uid_map` or `gid_map`.
        file: &'static str,
    },
    /// Only the processes of one pid namespace can be named from here; everybody else has number 0.
    #[error(
        "the agent or its /proc is not in the machine's first pid namespace: it could not tell the processes outside \
         its own apart; run it there (hostPID: true in Kubernetes, --pid=host in Docker)"
    )]
    ForeignPidNamespace,
    /// The procfs is not one in which our own pidfd resolves to ourselves.
    #[error("{path} is not the procfs of this machine's processes: {why}")]
    ForeignProcfs {
        /// Where it is mounted.
        path: String,
        /// What was found.
        why: String,
    },
    /// A file that every kernel has could not be read.
    #[error("cannot read {what}")]
    Unreadable {
        /// Path below the procfs, or the name of the call.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The kernel's random id of this boot. Text form: the 36 characters of `/proc/sys/kernel/random/boot_id`.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BootId([u8; 16]);

/// Text that is not a boot id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a boot id is 32 hexadecimal digits in groups of 8-4-4-4-12")]
pub struct BootIdError;

/// Inodes of the namespaces that decide what a path or uid means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Namespaces {
    pub(crate) user: Option<u64>,
    pub(crate) mount: Option<u64>,
}

impl Host {
    /// Looks at kernel, namespaces and procfs.
    ///
    /// # Errors
    /// When processes cannot be pinned here, or not be told apart.
    pub fn probe(proc_root: &Path) -> Result<Arc<Self>, HostError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let foreign = |why: String| HostError::ForeignProcfs { path: proc_root.display().to_string(), why };
        let proc =
            rustix::fs::openat(CWD, proc_root, flags, Mode::empty()).map_err(|e| foreign(e.to_string()))?;
        let kind = rustix::fs::fstatfs(&proc).map_err(|e| foreign(e.to_string()))?;
        if i128::from(kind.f_type) != i128::from(libc::PROC_SUPER_MAGIC) {
            return Err(foreign("it is not a procfs".to_owned()));
        }
        let own = own_pidfd()?;
        let kernel = String::from_utf8_lossy(rustix::system::uname().release().to_bytes()).into_owned();
        let features = Features::probe(kernel, own.as_fd())?;
        let mut host = Self {
            boot_id: read_boot_id(&proc)?,
            overflow_id: read_overflow_id(&proc)?,
            namespaces: Namespaces::of(proc.as_fd(), "self/"),
            features,
            proc,
        };
        host.prove_procfs(own.as_fd()).map_err(foreign)?;
        host.refuse_mapped_ids()?;
        host.features.host_pid_namespace = host.is_first_pid_namespace();
        Ok(Arc::new(host))
    }

    /// Which boot this is.
    pub fn boot_id(&self) -> BootId {
        self.boot_id
    }

    /// A12: an agent that serves the whole machine must be able to name all of its processes.
    ///
    /// # Errors
    /// [`HostError::ForeignPidNamespace`].
    pub fn serves_whole_machine(&self) -> Result<(), HostError> {
        if self.features.host_pid_namespace { Ok(()) } else { Err(HostError::ForeignPidNamespace) }
    }

    /// What the kernel offers.
    pub fn features(&self) -> &Features {
        &self.features
    }

    pub(crate) fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    pub(crate) fn namespaces(&self) -> Namespaces {
        self.namespaces
    }

    /// Whether cgroup paths are shown to us as they are.
    pub(crate) fn in_first_cgroup_namespace(&self) -> bool {
        namespace_inode(self.proc(), "self/ns/cgroup") == Some(FIRST_CGROUP_NAMESPACE)
            || crate::failpoint::fails("host.whole_machine")
    }

    /// Whether an id is the one the kernel shows for everybody it cannot map.
    pub(crate) fn is_overflow(&self, id: u32) -> bool {
        id == self.overflow_id || id == u32::MAX
    }

    /// The process number behind a pidfd in *our procfs*; 0: outside its pid namespace, -1: gone.
    pub(crate) fn pid_of(&self, pidfd: BorrowedFd<'_>) -> io::Result<i64> {
        let path = format!("self/fdinfo/{}", pidfd.as_raw_fd());
        let text = procfs::read_at(self.proc(), &path, 4096)?;
        procfs::field(&text, b"Pid")
            .and_then(procfs::integer)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// A12: the numbers of this procfs are those our pidfds have in it, and its `self` is really us.
    fn prove_procfs(&self, own: BorrowedFd<'_>) -> Result<(), String> {
        let pid = self.pid_of(own).map_err(|e| format!("our own pidfd cannot be resolved in it: {e}"))?;
        if pid <= 0 {
            return Err(format!("our own pidfd resolves to {pid} in it"));
        }
        let through = |who: &str| rustix::fs::readlinkat(self.proc(), who, Vec::new()).ok();
        let (by_pid, by_self) = (format!("{pid}/ns/pid"), "self/ns/pid");
        match (through("self"), through(&by_pid), through(by_self)) {
            (Some(own), Some(a), Some(b)) if a == b && own.to_bytes() == pid.to_string().as_bytes() => Ok(()),
            _ => Err("its `self` is not this process".to_owned()),
        }
    }

    /// This machine as if its kernel were of 6.5: every optional feature off.
    #[cfg(test)]
    pub(crate) fn as_of_6_5(proc_root: &Path) -> Arc<Self> {
        let mut host = Arc::into_inner(Self::probe(proc_root).unwrap()).unwrap();
        (host.features.pidfd_info, host.features.statmount) = (false, false);
        Arc::new(host)
    }

    /// A11: with any other mapping, strangers appear as one overflow uid.
    fn refuse_mapped_ids(&self) -> Result<(), HostError> {
        for (file, path) in [("uid_map", "self/uid_map"), ("gid_map", "self/gid_map")] {
            let text = procfs::read_at(self.proc(), path, 4096)
                .map_err(|source| HostError::Unreadable { what: path, source })?;
            if !procfs::is_identity_map(&text) {
                return Err(HostError::ForeignUserNamespace { file });
            }
        }
        Ok(())
    }

    fn is_first_pid_namespace(&self) -> bool {
        let inode = |path: &str| namespace_inode(self.proc(), path);
        // Whoever is in the first namespace sees a procfs of no other, for it has no ancestors; else ask pid 1.
        inode("self/ns/pid") == Some(FIRST_PID_NAMESPACE)
            || inode("1/ns/pid") == Some(FIRST_PID_NAMESPACE)
            // A whole machine in a container, in tests: its processes are all that there is.
            || crate::failpoint::fails("host.whole_machine")
    }
}

impl Features {
    fn probe(kernel: String, own: BorrowedFd<'_>) -> Result<Self, HostError> {
        let unreadable = |source| HostError::Unreadable { what: "socketpair", source };
        let (socket, _other) = std::os::unix::net::UnixStream::pair().map_err(unreadable)?;
        if getsockopt(&socket, sockopt::PeerPidfd).is_err() {
            return Err(HostError::KernelTooOld { kernel });
        }
        Ok(Self {
            kernel,
            peer_pidfd: true,
            pass_pidfd: socket::listen_options::set_pass_pidfd(&socket).is_ok(),
            pass_rights_off: socket::listen_options::set_pass_rights_off(&socket).is_ok(),
            pidfd_info: process::pidfd_info(own, 1).is_ok(),
            pidfs_inode: socket::pidfs_inode(own).is_some(),
            // A refused request still proves that the call exists.
            statmount: sys::statmount(&[0; 4]).err().and_then(|e| e.raw_os_error()) != Some(libc::ENOSYS),
            host_pid_namespace: false,
        })
    }

    /// Plain sentences for the log and `status`: what is in force, and what the fallbacks cost.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = vec![format!("kernel {}: peers are pinned by pidfd", self.kernel)];
        for (there, fallback) in [
            (self.pass_rights_off, NO_PASS_RIGHTS),
            (self.pass_pidfd, NO_PASS_PIDFD),
            (self.pidfd_info, NO_PIDFD_INFO),
            (self.pidfs_inode, NO_PIDFS_INODE),
            (self.statmount, NO_STATMOUNT),
            (self.host_pid_namespace, NOT_HOST_PIDS),
        ] {
            if !there {
                lines.push(fallback.to_owned());
            }
        }
        lines
    }
}

impl Namespaces {
    pub(crate) fn of(dir: BorrowedFd<'_>, prefix: &str) -> Self {
        let inode = |name: &str| namespace_inode(dir, &format!("{prefix}ns/{name}"));
        Self { user: inode("user"), mount: inode("mnt") }
    }
}

impl BootId {
    /// From stored bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for BootId {
    type Err = BootIdError;

    fn from_str(text: &str) -> Result<Self, BootIdError> {
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        if groups != [8, 4, 4, 4, 12] || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BootIdError);
        }
        u128::from_str_radix(&digits, 16).map(|n| Self(n.to_be_bytes())).or(Err(BootIdError))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

fn own_pidfd() -> Result<OwnedFd, HostError> {
    rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .map_err(|source| HostError::Unreadable { what: "pidfd_open", source: source.into() })
}

fn read_boot_id(proc: &OwnedFd) -> Result<BootId, HostError> {
    let what = "sys/kernel/random/boot_id";
    let text =
        procfs::read_at(proc.as_fd(), what, 64).map_err(|source| HostError::Unreadable { what, source })?;
    let text = String::from_utf8_lossy(&text);
    let invalid = |_| HostError::Unreadable { what, source: io::ErrorKind::InvalidData.into() };
    text.trim_end().parse().map_err(invalid)
}

fn read_overflow_id(proc: &OwnedFd) -> Result<u32, HostError> {
    let what = "sys/kernel/overflowuid";
    let text =
        procfs::read_at(proc.as_fd(), what, 64).map_err(|source| HostError::Unreadable { what, source })?;
    let number = procfs::integer(text.trim_ascii()).and_then(|n| u32::try_from(n).ok());
    number.ok_or_else(|| HostError::Unreadable { what, source: io::ErrorKind::InvalidData.into() })
}

/// The number in a link such as `mnt:[4026531841]`.
fn namespace_inode(dir: BorrowedFd<'_>, path: &str) -> Option<u64> {
    let link = rustix::fs::readlinkat(dir, path, Vec::new()).ok()?;
    let text = link.to_str().ok()?;
    text.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// `PROC_PID_INIT_INO`: the first pid namespace has this inode on every kernel.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
/// `PROC_CGROUP_INIT_INO`.
const FIRST_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;
const NO_PASS_RIGHTS: &str = "before Linux 6.16 a client can attach descriptors to its bytes: they are received and \
    closed on a thread of their own";
const NO_PASS_PIDFD: &str = "no SO_PASSPIDFD: the writer of each message is checked by process number";
const NO_PIDFD_INFO: &str =
    "before Linux 6.13 credentials and cgroup are read from /proc instead of the pidfd";
const NO_PIDFS_INODE: &str = "before Linux 6.9 a process is keyed by boot, number and start time";
const NO_STATMOUNT: &str = "before Linux 6.8 the file system of a program is only known to the hash helper, which \
    may be lost to one that stalls";
const NOT_HOST_PIDS: &str = "the agent or its /proc is not in the machine's first pid namespace: processes outside \
    ours cannot be pinned and are refused";

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Arc<Host> {
        Host::probe(Path::new("/proc")).unwrap()
    }

    #[test]
    fn this_machine_can_pin() {
        let host = host();
        let features = host.features();
        assert!(features.peer_pidfd && features.pidfd_info && features.pidfs_inode && features.statmount);
        assert!(features.pass_rights_off && features.pass_pidfd);
        assert_eq!(
            host.boot_id().to_string(),
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim()
        );
    }

    #[test]
    fn every_missing_feature_is_a_sentence() {
        let mut features = host().features().clone();
        features.host_pid_namespace = true;
        assert_eq!(features.describe().len(), 1, "{:?}", features.describe());
        features = Features { pass_rights_off: false, pass_pidfd: false, pidfd_info: false, ..features };
        features = Features { pidfs_inode: false, statmount: false, host_pid_namespace: false, ..features };
        assert_eq!(features.describe().len(), 7);
    }

    #[test]
    fn a_directory_that_is_no_procfs_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Host::probe(dir.path()), Err(HostError::ForeignProcfs { .. })));
        assert!(matches!(Host::probe(&dir.path().join("missing")), Err(HostError::ForeignProcfs { .. })));
    }

    #[test]
    fn a_boot_id_survives_its_text_form() {
        let text = "0b0a1c2d-3e4f-5061-7283-94a5b6c7d8e9";
        assert_eq!(text.parse::<BootId>().unwrap().to_string(), text);
        for bad in [
            "",
            "0b0a1c2d3e4f5061728394a5b6c7d8e9",
            "0b0a1c2d-3e4f-5061-7283-94a5b6c7d8eg",
            "+b0a1c2d-3e4f-5061-7283-94a5b6c7d8e9",
        ] {
            assert_eq!(bad.parse::<BootId>(), Err(BootIdError), "{bad}");
        }
    }

    fn probed_within(unshare: &[&str], expected: &str) {
        crate::testing::within(unshare, "host::tests::probe_entry", expected);
    }

    /// Not a test by itself: says whether the probe answers what the environment expects.
    #[test]
    fn probe_entry() {
        let Some(expected) = crate::testing::entry() else { return };
        let found = match Host::probe(Path::new("/proc")) {
            Ok(host) => match host.serves_whole_machine() {
                Ok(()) => "host",
                Err(_) => "child pid namespace",
            },
            Err(HostError::ForeignUserNamespace { .. }) => "foreign user namespace",
            Err(HostError::ForeignProcfs { .. }) => "foreign procfs",
            Err(_) => "other",
        };
        assert_eq!(expected, found);
    }

    #[test]
    fn a11_any_user_namespace_of_our_own_is_refused() {
        probed_within(&["--user"], "foreign user namespace");
        probed_within(&["--user", "--map-root-user"], "foreign user namespace");
    }

    #[test]
    fn a12_a_procfs_that_does_not_show_us_is_refused_and_a_child_namespace_is_said() {
        probed_within(&["--mount"], "host");
        probed_within(&["--pid", "--fork", "--mount-proc"], "child pid namespace");
        // A procfs of a namespace below ours: its `self` is not us.
        let inner = "mount -t proc p /mnt && exec sleep 30";
        let dir = tempfile::tempdir().unwrap();
        let inner = inner.replace("/mnt", dir.path().to_str().unwrap());
        let mut command = std::process::Command::new("/usr/bin/unshare");
        command
            .args(["--pid", "--fork", "--mount", "/bin/sh", "-c", &inner])
            .stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        let through = std::path::PathBuf::from(format!("/proc/{}/root{}", child.id(), dir.path().display()));
        let found = || {
            (0..5000).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                let pid = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).ok()?;
                let root = format!("/proc/{}/root{}", pid.trim(), dir.path().display());
                std::fs::exists(format!("{root}/1/stat")).ok()?.then_some(root)
            })
        };
        let root = found().unwrap_or_else(|| through.display().to_string());
        let probed = Host::probe(Path::new(&root));
        assert!(matches!(probed, Err(HostError::ForeignProcfs { .. })), "{probed:?}");
        let inner =
            root.split('/').nth(2).unwrap().parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(inner, rustix::process::Signal::KILL).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn our_own_pidfd_names_us() {
        let own = own_pidfd().unwrap();
        assert_eq!(host().pid_of(own.as_fd()).unwrap(), i64::from(std::process::id()));
    }
}
