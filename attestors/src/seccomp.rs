//! System calls that the agent never needs and that whoever took it over would want: to look into other processes and
//! take their descriptors, to change mounts, to load things into the kernel. Capabilities allow some of them to an agent
//! that may look at programs; this takes them away again.
//!
//! A list of what is denied, not of what is allowed: an allow-list breaks with the next version of a library, and then
//! it is switched off. The unit has one on top, kept by systemd.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// The filter cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot take system calls away from the agent: {0}")]
pub struct SeccompError(String);

/// Denies them, with `EPERM`, to the calling thread and to all that it starts, programs included. There is no way back.
///
/// # Errors
/// When the kernel refuses, or this architecture is not known.
pub fn deny_what_is_never_needed() -> Result<(), SeccompError> {
    let refused = |error: &dyn std::fmt::Display| SeccompError(error.to_string());
    let arch =
        std::env::consts::ARCH.try_into().map_err(|error: seccompiler::BackendError| refused(&error))?;
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        DENIED.iter().map(|(_, number)| (*number, Vec::new())).collect();
    let errno = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).map_err(|e| refused(&e))?;
    let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| refused(&e))?;
    // It also forbids new privileges, which the agent never gains.
    apply_filter(&program).map_err(|e| refused(&e))
}

/// Name and number of each.
const DENIED: &[(&str, i64)] = &[
    // Other processes: their memory, registers, descriptors, and whether they share something.
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("process_madvise", libc::SYS_process_madvise),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("kcmp", libc::SYS_kcmp),
    // The kernel's inside, and races with it.
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module),
    ("delete_module", libc::SYS_delete_module),
    ("kexec_load", libc::SYS_kexec_load),
    // Mounts and namespaces.
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("move_mount", libc::SYS_move_mount),
    ("open_tree", libc::SYS_open_tree),
    ("fsopen", libc::SYS_fsopen),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fspick", libc::SYS_fspick),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("setns", libc::SYS_setns),
    ("unshare", libc::SYS_unshare),
    // Keys in the kernel: nobody's business here.
    ("keyctl", libc::SYS_keyctl),
    ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key),
];

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Calls each with zeroes and prints name and errno.
    const PROBE: &str = "import ctypes,sys\nlibc=ctypes.CDLL(None,use_errno=True)\nfor a in sys.argv[1:]:\n  \
        n,i=a.split('=')\n  r=libc.syscall(int(i),0,0,0,0,0,0)\n  print(n,ctypes.get_errno() if r<0 else 0)";

    fn probed(denied: bool) -> BTreeMap<String, i32> {
        // `unshare(0)` and such do nothing; a call that would do harm even with zeroes is not in the list.
        let probe = move || {
            if denied {
                deny_what_is_never_needed().unwrap();
            }
            let words = DENIED.iter().map(|(name, number)| format!("{name}={number}"));
            let output = Command::new("/usr/bin/python3").arg("-c").arg(PROBE).args(words).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let text = std::thread::spawn(probe).join().unwrap();
        let line = |line: &str| {
            let (name, errno) = line.split_once(' ').unwrap();
            (name.to_owned(), errno.parse().unwrap())
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn each_is_refused_to_the_thread_and_to_what_it_starts() {
        let (free, denied) = (probed(false), probed(true));
        assert_eq!(denied.len(), DENIED.len());
        let allowed: Vec<_> = denied.iter().filter(|(_, errno)| **errno != libc::EPERM).collect();
        assert!(allowed.is_empty(), "{allowed:?}");
        // And not because nobody may have them anyway.
        let usual = free.values().filter(|errno| **errno != libc::EPERM).count();
        assert!(usual > DENIED.len() / 2, "{free:?}");
    }

    #[test]
    fn other_threads_and_what_the_agent_does_are_left_alone() {
        std::thread::spawn(|| {
            deny_what_is_never_needed().unwrap();
            let child = crate::testing::sleeper();
            let process = crate::Process::of_pid(&crate::testing::host(), child.id()).unwrap();
            assert!(process.is_alive());
            crate::testing::end(child);
        })
        .join()
        .unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("Seccomp:\t0"), "{status}");
    }
}
