//! Reads a ledger that may be damaged. The store's own parser can panic on foreign bytes and a release
//! build aborts on a panic, so the agent lets a child process do it: `mayfly ledger-check PATH`.

use std::io::{self, Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::IntegrityCheck;
use super::disk::{open_file, open_private};
use super::store::{self, Fault};

/// Body of the hidden subcommand `mayfly ledger-check PATH`. Exit codes 0: whole; 1: damaged; 5: cannot be
/// read or written; 6: in use. What was found is on standard output, in one line.
pub fn check_main(path: &Path) -> ExitCode {
    let (code, why) = match read_all(path) {
        // A newer schema is for the agent to report: it reads the version itself.
        Ok(()) | Err(Fault::Schema(_)) => return ExitCode::SUCCESS,
        Err(Fault::Damaged(why)) => (DAMAGED, why),
        Err(Fault::Io(error)) if is_damage(&error) => (DAMAGED, error.to_string()),
        Err(Fault::Io(error)) => (UNUSABLE, error.to_string()),
        Err(Fault::Busy) => (BUSY, "in use".to_owned()),
    };
    // The exit code says it too if nobody reads.
    writeln!(io::stdout(), "{why}").ok();
    ExitCode::from(code)
}

/// Answers whether the file is whole, by the chosen means.
pub(super) fn run(check: &IntegrityCheck, path: &Path) -> Result<(), Fault> {
    match check {
        IntegrityCheck::InProcess => {
            let result = catch_unwind(AssertUnwindSafe(|| read_all(path)));
            result.unwrap_or_else(|_panic| Err(Fault::Damaged("reading it panics".to_owned())))
        }
        IntegrityCheck::Child { program } => {
            let child = Command::new(program)
                .arg(SUBCOMMAND)
                .arg(path)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn();
            judge(child.map_err(Fault::Io)?)
        }
    }
}

fn read_all(path: &Path) -> Result<(), Fault> {
    let database = open_file(open_private(path)?, true)?;
    store::load(&database)?;
    Ok(database.close()?)
}

fn judge(mut child: Child) -> Result<(), Fault> {
    if !ends_in_time(&child).map_err(Fault::Io)? {
        child.kill().map_err(Fault::Io)?;
        child.wait().map_err(Fault::Io)?;
        return Err(Fault::Damaged(format!("checking it took more than {DEADLINE_SECONDS} s")));
    }
    let mut why = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_REPORT_BYTES).read_to_string(&mut why).map_err(Fault::Io)?;
    }
    let why = why.trim_end().to_owned();
    match child.wait().map_err(Fault::Io)?.code().and_then(|code| u8::try_from(code).ok()) {
        Some(0) => Ok(()),
        Some(UNUSABLE) => Err(Fault::Io(io::Error::other(why))),
        Some(BUSY) => Err(Fault::Busy),
        Some(DAMAGED) => Err(Fault::Damaged(why)),
        Some(code) => Err(Fault::Damaged(format!("checking it ended with exit code {code}"))),
        None => Err(Fault::Damaged("checking it crashes".to_owned())),
    }
}

/// Waits for the child's end; false if it takes too long.
fn ends_in_time(child: &Child) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no such process"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
    let patience = Timespec { tv_sec: DEADLINE_SECONDS, tv_nsec: 0 };
    loop {
        match poll(&mut watched, Some(&patience)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether an I/O error is how the store reports bytes that are no database.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

const SUBCOMMAND: &str = "ledger-check";
const DAMAGED: u8 = 1;
const UNUSABLE: u8 = 5;
const BUSY: u8 = 6;
const DEADLINE_SECONDS: i64 = 30;
const MAX_REPORT_BYTES: u64 = 4096;
