//! `mayfly run-child PLAN PROGRAM ARGUMENT…`: the process that becomes the program.
//!
//! It is a process of its own, freshly started, because the agent must be able to believe it: whoever starts it can
//! say what it is to run and nothing that would make it lie about that. What it does between its start and the exec
//! is all there is to trust: read the files into sealed copies, check that the interpreter will run them and nothing
//! before them, tell the agent, clean the environment, exec.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use mayfly_attestors::{MAX_MEASURED_FILES, SealError, sealed_copy};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::begin::{BeginError, begin};
use super::environment::{self, Parted};
use super::interpreter::{Copy, Unmeasurable, kind_of, rewrite};
use super::launch::{Intent, LaunchError, announce};
use super::plan::{Measured, Plan};

/// What the process ends with when the program was not even tried.
const NOT_RUN: u8 = 125;
/// As shells say it.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Why the program does not run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("only `mayfly run` starts this")]
    Plan,
    #[error("mayfly ended before the program began")]
    Orphaned,
    #[error("`{}`: {source}", .program.to_string_lossy())]
    Program { program: OsString, source: io::Error },
    #[error(
        "`{}` is a script: with `--measure`, name the interpreter and measure the script, such as \
         `mayfly run --measure agent.py -- /usr/bin/python3 agent.py`",
        .0.display()
    )]
    Script(PathBuf),
    #[error("cannot measure `{file}`: {why}")]
    File { file: String, why: SealError },
    #[error("at most {MAX_MEASURED_FILES} files can be measured")]
    TooMany,
    #[error("`{0}` makes programs run code: it cannot carry a measured file")]
    Variable(String),
    #[error(transparent)]
    Line(#[from] Unmeasurable),
    #[error("cannot prove what is being run: {0}")]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Task(#[from] BeginError),
}

/// Returns only when the program does not run.
pub(in crate::cli) fn main(arguments: &[OsString]) -> ExitCode {
    let failure = match become_program(arguments) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let hint = if let Failure::Task(error) = &failure { error.hint() } else { None };
    let said = std::iter::once(failure.to_string()).chain(hint.map(|hint| format!("hint: {hint}")));
    said.for_each(|line| drop(writeln!(io::stderr(), "mayfly: {}", crate::cli::render::clean(&line))));
    ExitCode::from(match failure {
        Failure::Program { source, .. } if source.kind() == io::ErrorKind::NotFound => NOT_FOUND,
        Failure::Program { .. } => CANNOT_RUN,
        _ => NOT_RUN,
    })
}

fn become_program(arguments: &[OsString]) -> Result<std::convert::Infallible, Failure> {
    let [plan, program, arguments @ ..] = arguments else { return Err(Failure::Plan) };
    let plan: Plan = plan.to_str().and_then(|text| serde_json::from_str(text).ok()).ok_or(Failure::Plan)?;
    super::signals::give_back().map_err(|_errno| Failure::Plan)?;
    die_with(plan.parent)?;
    if let Some(cgroup) = &plan.cgroup
        && let Err(error) = super::cgroup::enter(cgroup)
    {
        writeln!(io::stderr(), "mayfly: runs without a cgroup of its own: {error}").ok();
    }
    let path = find(program).map_err(|source| Failure::Program { program: program.clone(), source })?;
    let mut command = Command::new(&path);
    command.arg0(program).env_clear().envs(variables(&plan)?);
    // Open until the exec, and in the program after it.
    let copies = seal(&plan.measured)?;
    if copies.is_empty() {
        command.args(arguments);
        if plan.task.is_some() {
            unmeasured(&plan, &path);
        }
    } else {
        command.envs(in_variables(&plan.measured, &copies)?);
        command.args(measured(&plan, program, &path, arguments, &copies)?);
    }
    if let Some(task) = &plan.task {
        command.env("MAYFLY_TASK", begin(task)?);
    }
    let source = command.exec();
    drop(copies);
    Err(Failure::Program { program: program.clone(), source })
}

/// The program is not to outlive the one who renews and ends what it works with.
fn die_with(parent: u32) -> Result<(), Failure> {
    let parent = i32::try_from(parent).ok().and_then(Pid::from_raw);
    let asked = set_parent_process_death_signal(Some(Signal::KILL));
    // A parent that died before we asked will not be told of any more.
    if asked.is_ok() && parent.is_some() && getppid() == parent { Ok(()) } else { Err(Failure::Orphaned) }
}

/// As a shell finds it, made absolute; links stay as they are, because some programs look at their own name.
fn find(program: &OsStr) -> io::Result<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return std::path::absolute(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let places = std::env::split_paths(&path).filter(|place| place.is_absolute());
    let mut found = places.map(|place| place.join(program)).filter(|path| is_program(path));
    found.next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn is_program(path: &Path) -> bool {
    let executable = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    executable && std::fs::metadata(path).is_ok_and(|found| found.is_file())
}

fn variables(plan: &Plan) -> Result<Vec<(OsString, OsString)>, Failure> {
    let Parted { mut kept, .. } = environment::part(&plan.policy(), std::env::vars_os());
    if plan.measured.is_empty() {
        kept.extend(plan.loader.iter().map(|(name, value)| (name.into(), value.into())));
    }
    for (name, value) in &plan.set {
        if !plan.measured.is_empty() && environment::runs_code(OsStr::new(name)) {
            return Err(Failure::Variable(name.clone()));
        }
        kept.push((name.into(), value.into()));
    }
    Ok(kept)
}

fn seal(measured: &[Measured]) -> Result<Vec<OwnedFd>, Failure> {
    if measured.len() > MAX_MEASURED_FILES {
        return Err(Failure::TooMany);
    }
    let copy = |measured: &Measured| {
        let failed = |why| Failure::File { file: measured.file.clone(), why };
        let open = || {
            // A FIFO without a writer must not hold us up, and is then found to be no file.
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            let file = File::from(rustix::fs::openat(CWD, &*measured.file, flags, Mode::empty())?);
            if file.metadata()?.is_file() {
                Ok(file)
            } else {
                Err(io::Error::other("it is not a regular file"))
            }
        };
        sealed_copy(open().map_err(|error| failed(error.into()))?.as_fd()).map_err(failed)
    };
    measured.iter().map(copy).collect()
}

/// The arguments with the copies in them, once the agent knows of all this.
fn measured(
    plan: &Plan,
    program: &OsStr,
    path: &Path,
    arguments: &[OsString],
    copies: &[OwnedFd],
) -> Result<Vec<OsString>, Failure> {
    let wrong = |source| Failure::Program { program: program.to_owned(), source };
    let real = std::fs::canonicalize(path).map_err(wrong)?;
    let mut begins = [0; 4];
    File::open(&real).and_then(|mut file| file.read_exact(&mut begins)).map_err(wrong)?;
    if begins != *b"\x7fELF" {
        return Err(Failure::Script(real));
    }
    let named = plan.measured.iter().zip(copies).map(|(measured, copy)| Copy {
        file: OsString::from(&measured.file),
        at: place(copy),
        by_variable: measured.variable.is_some(),
    });
    let line = rewrite(program, kind_of(&real)?, arguments, &named.collect::<Vec<_>>())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| wrong(e.into()))?;
    let intent = Intent { program: (handle.as_fd(), path), files: copies, server_uid: plan.server_uid };
    announce(&plan.launch_socket, &intent)?;
    Ok(line)
}

/// Has the agent take this process for the program already, so that the task is the program's. Where that cannot be
/// (a script without its interpreter, a kernel that tells of no exec) the agent sees `mayfly` until the exec: whoever
/// has entries that look at the program gets no task then, and is told so.
fn unmeasured(plan: &Plan, path: &Path) {
    let announced = || -> Result<(), Box<dyn std::error::Error>> {
        let mut begins = [0; 4];
        File::open(path)?.read_exact(&mut begins)?;
        if begins != *b"\x7fELF" {
            return Err("it is a script".into());
        }
        let handle = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let intent = Intent { program: (handle.as_fd(), path), files: &[], server_uid: plan.server_uid };
        announce(&plan.launch_socket, &intent)?;
        Ok(())
    };
    if let Err(why) = announced() {
        tracing::debug!(why = why.to_string(), "the agent sees this launcher until the program runs");
    }
}

fn in_variables(measured: &[Measured], copies: &[OwnedFd]) -> Result<Vec<(OsString, OsString)>, Failure> {
    let mut out = Vec::new();
    for (measured, copy) in measured.iter().zip(copies) {
        let Some(name) = &measured.variable else { continue };
        if environment::runs_code(OsStr::new(name)) {
            return Err(Failure::Variable(name.clone()));
        }
        out.push((name.into(), place(copy)));
    }
    Ok(out)
}

/// Where the program opens it: for itself, from the start.
fn place(copy: &OwnedFd) -> OsString {
    format!("/proc/self/fd/{}", copy.as_raw_fd()).into()
}
