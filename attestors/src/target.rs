//! One process opened for one attestation: everything the attestors share is read here, once, through handles that
//! name the process and its program and not their numbers and paths.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::attestation::{ExeIdentity, Fingerprint, Posture};
use crate::host::Namespaces;
use crate::launch::Record;
use crate::measure::{FileFacts, Gate, Subject, mount_namespace};
use crate::origin::MOST_BYTES;
use crate::process::procfs::Status;
use crate::process::{Live, ProcDir, Process, is_want_of_ours};

/// A process with its `/proc` directory open.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) process: &'a Process,
    pub(crate) dir: ProcDir,
    pub(crate) live: Live,
    pub(crate) status: Status,
    pub(crate) exe: Result<Exe, io::Error>,
    pub(crate) namespaces: Namespaces,
    cgroups: Option<Vec<u8>>,
    launch: Option<Arc<Record>>,
}

/// The program, as a handle that was never opened.
#[derive(Debug)]
pub(crate) struct Exe {
    pub(crate) handle: Arc<OwnedFd>,
    pub(crate) facts: FileFacts,
    pub(crate) gate: Gate,
    pub(crate) path: io::Result<Vec<u8>>,
}

/// Why a process could not be read.
#[derive(Debug)]
pub(crate) enum OpenError {
    Exited,
    /// Our own table is full, or there is no memory: says nothing about the process.
    Descriptors,
    Failed(io::Error),
}

impl<'a> Target<'a> {
    pub(crate) fn open(process: &'a Process) -> Result<Self, OpenError> {
        let gone_or = |error| OpenError::of(error, process);
        let dir = open_dir(process)?;
        let live = process.live(&dir).map_err(gone_or)?;
        let task = dir.live_task().map_err(gone_or)?;
        Ok(Self {
            process,
            live,
            status: dir.status().map_err(gone_or)?,
            exe: unless_want_of_ours(Exe::open(&task)).map_err(gone_or)?,
            namespaces: Namespaces::of(task.fd(), ""),
            cgroups: cgroups_if_needed(&live, &dir).map_err(gone_or)?,
            launch: None,
            dir,
        })
    }

    /// The text of `/proc/PID/cgroup` now.
    pub(crate) fn cgroup_text(&self) -> Result<Vec<u8>, OpenError> {
        let read = self.dir.read("cgroup", MOST_BYTES + 1);
        read.map_err(|error| OpenError::of(error, self.process))
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let exe = self.exe_identity();
        Fingerprint {
            exe,
            live: self.live,
            cgroups: self.cgroups.clone(),
            launch: self.launch().map(Record::id),
        }
    }

    pub(crate) fn exe_identity(&self) -> ExeIdentity {
        match &self.exe {
            Ok(exe) => ExeIdentity::File(exe.facts.id),
            Err(error) => hidden(error),
        }
    }

    /// From now on the process is what it was launched as, also while it is still the launcher.
    pub(crate) fn stand_for(&mut self, launch: Arc<Record>) {
        self.exe = Ok(launch.exe());
        self.launch = Some(launch);
    }

    pub(crate) fn launch(&self) -> Option<&Record> {
        self.launch.as_deref()
    }

    /// What is odd at first sight; tracing is found out later. A namespace that cannot be read counts as foreign.
    pub(crate) fn posture(&self) -> Posture {
        let ours = self.process.host().namespaces();
        let foreign = |theirs: Option<u64>, ours: Option<u64>| theirs.is_none() || theirs != ours;
        let gate = self.exe.as_ref().ok().map(|exe| exe.gate);
        Posture {
            foreign_userns: foreign(self.namespaces.user, ours.user),
            foreign_mount_ns: foreign(self.namespaces.mount, ours.mount),
            mixed_uid: !self.live.uids.agree(),
            traced: false,
            anonymous_exe: self.exe.as_ref().is_ok_and(|exe| exe.facts.anonymous),
            cgroup_not_root_owned: false,
            exe_fs_not_trusted: !matches!(gate, Some(Gate::Open(_) | Gate::Ajar)),
        }
    }
}

impl Exe {
    /// Of a process or one of its threads; touches no file system.
    pub(crate) fn open(task: &ProcDir) -> io::Result<Self> {
        let handle = Arc::new(task.open_path("exe")?);
        let facts = FileFacts::of(handle.as_fd())?;
        // A full table must not turn one file system into an unknown one.
        let mut namespace = Ok(());
        let gate = facts.gate(|| match unless_want_of_ours(task.open_namespace("ns/mnt")) {
            Ok(opened) => mount_namespace(opened.ok()?.as_fd()),
            Err(error) => {
                namespace = Err(error);
                None
            }
        });
        namespace?;
        Ok(Self { gate, path: task.link("exe"), handle, facts })
    }

    /// To measure it for `process`, on the share of `uid`.
    pub(crate) fn subject(&self, process: &Process, uid: u32) -> Subject {
        Subject {
            handle: Arc::clone(&self.handle),
            facts: self.facts,
            gate: self.gate,
            holder: process.shared_pidfd(),
            process: process.key().pidfs_inode,
            uid,
        }
    }
}

impl OpenError {
    fn of(error: io::Error, process: &Process) -> Self {
        match error {
            _ if !process.is_alive() => Self::Exited,
            error if is_want_of_ours(&error) => Self::Descriptors,
            error => Self::Failed(error),
        }
    }
}

/// Reads again what an attestation hangs on: program, credentials, cgroup. Some ten system calls.
pub(crate) fn fingerprint(process: &Process) -> Result<Fingerprint, OpenError> {
    let gone_or = |error| OpenError::of(error, process);
    let dir = open_dir(process)?;
    let live = process.live(&dir).map_err(gone_or)?;
    let cgroups = cgroups_if_needed(&live, &dir).map_err(gone_or)?;
    let task = dir.live_task().map_err(gone_or)?;
    let exe = task.open_path("exe").and_then(|handle| FileFacts::of(handle.as_fd()));
    let exe = match unless_want_of_ours(exe).map_err(gone_or)? {
        Ok(facts) => ExeIdentity::File(facts.id),
        Err(error) => hidden(&error),
    };
    // After the last read: what was read of a process that has gone may be another's.
    if process.is_alive() {
        Ok(Fingerprint { exe, live, cgroups, launch: None })
    } else {
        Err(OpenError::Exited)
    }
}

/// The text of `/proc/PID/cgroup` of a live process now.
pub(crate) fn cgroup_text(process: &Process) -> Result<Vec<u8>, OpenError> {
    let read = open_dir(process)?.read("cgroup", MOST_BYTES + 1);
    let text = read.map_err(|error| OpenError::of(error, process))?;
    if process.is_alive() { Ok(text) } else { Err(OpenError::Exited) }
}

/// Whether any thread has a tracer now; true when there are more threads than can be looked at.
pub(crate) fn is_traced(process: &Process) -> Result<bool, OpenError> {
    let gone_or = |error| OpenError::of(error, process);
    let dir = open_dir(process)?;
    let tasks = dir.tasks().map_err(gone_or)?;
    let mut traced = tasks.len() > MOST_THREADS;
    for task in tasks.iter().take(MOST_THREADS) {
        traced = traced || dir.is_task_traced(task).map_err(gone_or)?;
    }
    if process.is_alive() { Ok(traced) } else { Err(OpenError::Exited) }
}

fn open_dir(process: &Process) -> Result<ProcDir, OpenError> {
    let opened = ProcDir::open(process.host(), process.pid());
    let dir = opened.map_err(|error| OpenError::of(error, process))?;
    // Only now is it known that the number still was this process's when the directory was opened.
    if process.is_alive() { Ok(dir) } else { Err(OpenError::Exited) }
}

fn cgroups_if_needed(live: &Live, dir: &ProcDir) -> io::Result<Option<Vec<u8>>> {
    if live.cgroup_id.is_some() { Ok(None) } else { dir.read("cgroup", 1 << 16).map(Some) }
}

/// What went wrong for want of a descriptor or of memory is an error of ours; anything else is an answer.
fn unless_want_of_ours<T>(result: io::Result<T>) -> io::Result<io::Result<T>> {
    match result {
        Err(error) if is_want_of_ours(&error) => Err(error),
        answer => Ok(answer),
    }
}

fn hidden(error: &io::Error) -> ExeIdentity {
    ExeIdentity::Hidden(error.raw_os_error().unwrap_or_default())
}

/// Beyond this many threads a process counts as traced: nobody looked at all of them.
pub(crate) const MOST_THREADS: usize = 1024;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::measure::FileSystem;
    use crate::testing::{end, running};

    #[test]
    fn e13_want_of_a_descriptor_is_told_apart_from_a_change_and_from_an_exit() {
        let (child, process) = running(Command::new("/bin/sleep").arg("30"), "/sleep");
        let full = || io::Error::from_raw_os_error(libc::EMFILE);
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            let error = io::Error::from_raw_os_error(errno);
            assert!(matches!(OpenError::of(error, &process), OpenError::Descriptors), "{errno}");
        }
        assert!(matches!(OpenError::of(io::ErrorKind::NotFound.into(), &process), OpenError::Failed(_)));
        assert!(unless_want_of_ours::<()>(Err(full())).is_err(), "not a program that hides");
        let hidden = io::Error::from_raw_os_error(libc::EACCES);
        assert!(unless_want_of_ours::<()>(Err(hidden)).unwrap().is_err());
        end(child);
        assert!(matches!(OpenError::of(full(), &process), OpenError::Exited));
    }

    #[test]
    fn a_program_in_another_mount_namespace_is_still_named_exactly() {
        let mut command = Command::new("/usr/bin/unshare");
        let (child, process) = running(command.args(["-m", "/bin/sleep", "30"]), "/sleep");
        let target = Target::open(&process).unwrap();
        assert!(target.posture().foreign_mount_ns);
        assert_eq!(target.exe.unwrap().gate, Gate::Open(FileSystem::Disk));
        end(child);
    }
}
