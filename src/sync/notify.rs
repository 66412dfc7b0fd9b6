//! Tells a program that its files have changed: a signal by PID file, a command.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use super::config::Notify;

/// Who could not be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotifyError {
    /// The PID file cannot be used.
    #[error("`{}` names no process to signal: {why}", .path.display())]
    PidFile { path: PathBuf, why: String },
    /// The process is gone, or not ours to signal.
    #[error("cannot signal process {pid}: {source}")]
    Signal { pid: i32, source: io::Error },
    /// The command did not do its work.
    #[error("`{command}` {why}")]
    Command { command: String, why: String },
}

/// Does all that was asked for; the first failure is reported, the rest still happens.
pub(super) async fn tell(notify: &Notify, directory: &Path) -> Result<(), NotifyError> {
    let signalled = match &notify.signal {
        Some((file, signal)) => signal_by_file(file, *signal),
        None => Ok(()),
    };
    let ran = match &notify.command {
        Some(command) => run(command, notify, directory).await,
        None => Ok(()),
    };
    signalled.and(ran)
}

fn signal_by_file(path: &Path, signal: Signal) -> Result<(), NotifyError> {
    let wrong = |why: String| NotifyError::PidFile { path: path.to_owned(), why };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.take(4096).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    let pid = pid(&text).ok_or_else(|| wrong("its first line is no process id above 1".to_owned()))?;
    let number = pid.as_raw_nonzero().get();
    kill_process(pid, signal).map_err(|error| NotifyError::Signal { pid: number, source: error.into() })
}

/// The first line: PostgreSQL writes more of them. Never 1, never a group or everybody.
fn pid(text: &str) -> Option<Pid> {
    let line = text.lines().next()?.trim();
    let digits = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| line.parse().ok()).flatten().filter(|pid: &i32| *pid > 1).and_then(Pid::from_raw)
}

async fn run(words: &[String], notify: &Notify, directory: &Path) -> Result<(), NotifyError> {
    let wrong = |why: String| NotifyError::Command { command: words.join(" "), why };
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env("MAYFLY_SYNC_DIRECTORY", directory)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| wrong(format!("cannot be started: {error}")))?;
    match tokio::time::timeout(notify.timeout, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(wrong(format!("failed: {status}"))),
        Ok(Err(error)) => Err(wrong(format!("is lost: {error}"))),
        Err(_elapsed) => Err(wrong(format!("was killed after {:?}", notify.timeout))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_never_names_init_a_group_or_everybody() {
        for good in ["42\n", " 42 \nmore\nlines", "42"] {
            assert_eq!(pid(good).map(|pid| pid.as_raw_nonzero().get()), Some(42), "{good:?}");
        }
        for bad in ["", "\n42", "0", "1", "-1", "-42", "+42", "4 2", "99999999999", "nginx"] {
            assert_eq!(pid(bad), None, "{bad:?}");
        }
    }
}
