//! Descriptors that a service manager passed at exec, and pidfds that it kept for us.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::socket::PID_FS_MAGIC;
use crate::sys;

/// The first `count` descriptors from 3 on, as the protocol of `LISTEN_FDS` numbers them. Only the first call in a
/// process gets any: call it before anything else has opened a descriptor, and only when the manager's variables name
/// this very process.
pub fn adopt_passed(count: u32) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Vec::new();
    }
    let numbers = (FIRST..).take(usize::try_from(count).unwrap_or_default());
    let is_open = |number: &i32| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    numbers.take_while(is_open).map(sys::adopt).collect()
}

/// The inode that names a process for the whole boot, if this is a pidfd (Linux 6.9).
pub fn inode_of_pidfd(descriptor: impl AsFd) -> Option<u64> {
    let system = rustix::fs::fstatfs(&descriptor).ok()?;
    let is_pidfd = i128::from(system.f_type) == PID_FS_MAGIC;
    is_pidfd.then(|| rustix::fs::fstat(&descriptor).ok().map(|stat| stat.st_ino)).flatten()
}

/// `SD_LISTEN_FDS_START`
const FIRST: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;
    use crate::testing::{end, host, sleeper};

    #[test]
    fn a_pidfd_is_told_from_other_descriptors() {
        let child = sleeper();
        let process = Process::of_pid(&host(), child.id()).unwrap();
        assert_eq!(inode_of_pidfd(process.pidfd()), process.key().pidfs_inode);
        assert_eq!(inode_of_pidfd(std::fs::File::open("/dev/null").unwrap()), None);
        assert_eq!(inode_of_pidfd(std::os::unix::net::UnixStream::pair().unwrap().0), None);
        end(child);
    }

    #[test]
    fn a_process_is_pinned_again_by_the_pidfd_that_was_kept() {
        let child = sleeper();
        let process = Process::of_pid(&host(), child.id()).unwrap();
        let kept = process.pidfd().try_clone_to_owned().unwrap();
        assert_eq!(Process::of_pidfd(&host(), kept).unwrap().key(), process.key());
        let kept = process.pidfd().try_clone_to_owned().unwrap();
        end(child);
        assert!(matches!(Process::of_pidfd(&host(), kept), Err(crate::PinError::Exited)));
    }
}
