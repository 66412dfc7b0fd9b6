//! The demo's processes: started with a log file each, ended with the demo whatever happens.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::super::failure::Failure;

/// How long a process may take to stop by itself.
const GRACE: Duration = Duration::from_secs(5);

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running {
    name: &'static str,
    log: PathBuf,
    child: Child,
}

impl Running {
    /// Starts `program`; what it says goes to `NAME.log` in `home`.
    pub(crate) fn start(
        program: &Path,
        home: &Path,
        name: &'static str,
        args: &[String],
    ) -> Result<Self, Failure> {
        let log = home.join(format!("{name}.log"));
        let start = || {
            let out = File::create(&log)?;
            let err = out.try_clone()?;
            Command::new(program).args(args).stdin(Stdio::null()).stdout(out).stderr(err).spawn()
        };
        match start() {
            Ok(child) => Ok(Self { name, log, child }),
            Err(error) => Err(Failure::file("start", program, &error)),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`; does not wait.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// Resolves when it has ended by itself, with how.
    pub(crate) async fn ended(&mut self) -> String {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => return error.to_string(),
            }
        }
    }

    /// Asks it to stop and waits [`GRACE`] at most.
    ///
    /// # Errors
    /// It did not end in time, or not with exit code 0.
    pub(crate) async fn stop(&mut self) -> Result<(), Failure> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && matches!(self.child.try_wait(), Ok(None))
        {
            kill_process(pid, Signal::TERM).ok();
        }
        let why = match tokio::time::timeout(GRACE, self.ended()).await {
            Ok(status) if status == "exit status: 0" => return Ok(()),
            Ok(status) => status,
            Err(_elapsed) => "it had to be killed".to_owned(),
        };
        Err(Failure::failed(format!("the {} did not stop cleanly: {why}", self.name)).hint(self.last_words()))
    }

    /// The end of its log, for people.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("the {} said last: {line} ", self.name),
            None => String::new(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(home: &Path, script: &str) -> Running {
        Running::start(Path::new("/bin/sh"), home, "shell", &["-c".into(), script.into()]).expect("sh")
    }

    #[tokio::test]
    async fn a_process_that_ends_leaves_its_last_words() {
        let home = tempfile::tempdir().expect("tempdir");
        let mut shell = shell(home.path(), "echo first; echo second >&2; exit 3");
        assert_eq!(shell.ended().await, "exit status: 3");
        assert_eq!(shell.last_words(), "the shell said last: second ");
    }

    #[tokio::test]
    async fn stop_asks_first_and_drop_leaves_nobody() {
        let home = tempfile::tempdir().expect("tempdir");
        let mut polite = shell(home.path(), "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done");
        while polite.last_words().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(polite.stop().await, Ok(()));
        let mut rude = shell(home.path(), "exit 3");
        rude.ended().await;
        let failure = rude.stop().await.expect_err("exit code 3");
        assert!(failure.message.contains("exit status: 3"), "{}", failure.message);
        let stubborn = shell(home.path(), "trap '' TERM; sleep 60");
        let proc = PathBuf::from(format!("/proc/{}", stubborn.pid()));
        drop(stubborn);
        assert!(!proc.exists());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let home = tempfile::tempdir().expect("tempdir");
        let failure =
            Running::start(Path::new("/nonexistent/mayfly"), home.path(), "agent", &[]).expect_err("none");
        assert!(failure.message.contains("/nonexistent/mayfly"));
    }
}
