//! What the tests of this crate share: real processes, and hash helpers that are this test binary.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use crate::origin::Origin;
use crate::{
    AttestSettings, Attestation, AttestorSet, Depth, Host, MeasureLimits, Measurer, Posture, Process,
    WorkerCommand, measure_worker,
};

pub(crate) fn host() -> Arc<Host> {
    Host::probe(Path::new("/proc")).unwrap()
}

pub(crate) fn sleeper() -> Child {
    Command::new("/bin/sleep").arg("30").spawn().unwrap()
}

pub(crate) fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A python child that runs `code` with `s` connected to a listener of ours; the accepted end is returned.
pub(crate) fn peer(code: &str) -> (Child, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let imports = "import socket,os,sys,time,threading,ctypes";
    let connect = format!("s=socket.socket(socket.AF_UNIX)\ns.connect('{}')", path.display());
    let child = Command::new("/usr/bin/python3")
        .args(["-c", &format!("{imports}\n{connect}\n{code}")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    (child, listener.accept().unwrap().0)
}

/// Starts `command` and waits until the process runs `program` (a shell or `unshare` execs it in the end).
pub(crate) fn running(command: &mut Command, program: &str) -> (Child, Process) {
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    let exe = format!("/proc/{}/exe", child.id());
    let arrived = || std::fs::read_link(&exe).is_ok_and(|exe| exe.to_string_lossy().contains(program));
    while !arrived() {
        std::thread::yield_now();
    }
    let process = Process::of_pid(&host(), child.id()).unwrap();
    (child, process)
}

/// Runs one test of this binary alone, in namespaces of its own, with `MAYFLY_TEST_ENTRY` set.
pub(crate) fn within(unshare: &[&str], test: &str, entry: &str) {
    let status = Command::new("/usr/bin/unshare")
        .args(unshare)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(ENTRY, entry)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{test} within {unshare:?}");
}

/// What [`within`] was given, in the process it started.
pub(crate) fn entry() -> Option<String> {
    std::env::var(ENTRY).ok()
}

/// This binary, made to run [`worker_entry`] alone.
pub(crate) fn worker() -> WorkerCommand {
    let this = std::env::current_exe().unwrap().into_os_string();
    let mut args = vec![format!("{WORKER}=1").into(), this];
    args.extend(["--exact", "testing::tests::worker_entry", "--nocapture"].map(Into::into));
    WorkerCommand { program: "/usr/bin/env".into(), args }
}

pub(crate) fn set(limits: MeasureLimits) -> AttestorSet {
    AttestorSet::new(host(), AttestSettings::default(), Measurer::new(worker(), limits))
}

/// An attestation of this process in which nobody has said anything yet.
pub(crate) fn empty() -> Attestation {
    let process = Process::of_pid(&host(), std::process::id()).unwrap();
    Attestation {
        selectors: Default::default(),
        answers: Vec::new(),
        posture: Posture::default(),
        fingerprint: crate::target::fingerprint(&process).unwrap(),
        depth: Depth::Full,
        origin: Origin::Host,
        cgroups: [0; 32],
        gaps: Vec::new(),
        kept: Default::default(),
    }
}

const WORKER: &str = "MAYFLY_TEST_WORKER";
const ENTRY: &str = "MAYFLY_TEST_ENTRY";

mod tests {
    use super::*;

    /// Not a test: the body of the hash helper when this binary is started as one.
    #[test]
    fn worker_entry() {
        if std::env::var_os(WORKER).is_some() {
            assert_eq!(measure_worker(), ExitCode::SUCCESS);
        }
    }
}
