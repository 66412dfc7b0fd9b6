//! A program that runs under us: started when its files are there, signalled or restarted when they change,
//! given the signals we get, and followed in its exit code.
//!
//! It must not outlive us: our end revokes the certificate it uses. So it is started through this very program
//! (`mayfly sync-child PARENT PROGRAM …`), which asks the kernel for SIGTERM at the parent's death and then
//! becomes the program.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Running {
    child: tokio::process::Child,
    pid: Option<Pid>,
}

impl Running {
    pub(super) fn start(words: &[OsString]) -> io::Result<Self> {
        let parent = std::process::id().to_string();
        let child = tokio::process::Command::new("/proc/self/exe")
            .arg0("mayfly")
            .arg("sync-child")
            .arg(parent)
            .args(words)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(Self { child, pid })
    }

    /// Resolves when it has ended. The number to pass on: its exit code, or 128 and the signal.
    pub(super) async fn ended(&mut self) -> u8 {
        match self.child.wait().await {
            Ok(status) => code(status),
            Err(_lost) => 255,
        }
    }

    /// Sends a signal. That it has just ended is seen elsewhere.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            kill_process(pid, signal).ok();
        }
    }

    /// SIGTERM, and SIGKILL after `grace`.
    pub(super) async fn stop(&mut self, grace: Duration) -> u8 {
        self.signal(Signal::TERM);
        if let Ok(code) = tokio::time::timeout(grace, self.ended()).await {
            return code;
        }
        self.signal(Signal::KILL);
        self.ended().await
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code & 0xff).ok()).unwrap_or(255)
}

/// The other side: `mayfly sync-child PARENT PROGRAM ARGUMENT…`. Returns only when the program cannot be run:
/// 127 if it is not there, 126 otherwise, as a shell says it.
pub fn exec_child(arguments: &[OsString]) -> ExitCode {
    let [parent, program, rest @ ..] = arguments else { return ExitCode::from(126) };
    let parent = parent.to_str().and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
    let asked = set_parent_process_death_signal(Some(Signal::TERM));
    // A parent that died before we asked will not be told of any more.
    if asked.is_err() || parent.is_none() || getppid() != parent {
        return ExitCode::from(126);
    }
    let error = Command::new(program).args(rest).exec();
    let missing = error.kind() == io::ErrorKind::NotFound;
    ExitCode::from(if missing { 127 } else { 126 })
}
