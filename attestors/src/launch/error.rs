//! Why a launch is not recorded.

use std::io;

use super::{Code, MOST, MOST_OF_UID, SealError};
use crate::measure::MeasureError;
use crate::process::Process;

/// Why a launch is not recorded. All but the last four are the launcher's doing.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Not our program.
    #[error(
        "the launcher is not the file that the agent runs: use the same mayfly, and restart the agent after an upgrade"
    )]
    NotOurs,
    /// Its code is not what our program has.
    #[error("the launcher runs with code of somebody else ({}): start it without LD_PRELOAD and debuggers", explain(*.0))]
    Code(Code),
    /// Some thread is traced.
    #[error("the launcher is being traced")]
    Traced,
    /// Other processes of its user can still reach into it, or it acts for another user.
    #[error("the launcher can be reached into by other processes of its user")]
    Exposed,
    /// A container, or a user namespace.
    #[error(
        "the launcher is in another user or mount namespace than the agent: in a container, use the image's digest"
    )]
    Elsewhere,
    /// What it is about to run could be replaced by its user, or is no file.
    #[error("the program to run cannot be relied on: {0}")]
    Program(String),
    /// A file is not sealed, too large, or there are too many.
    #[error("a measured file is refused: {0}")]
    File(#[from] SealError),
    /// Its share is used up.
    #[error("this user has {MOST_OF_UID} live launches, or all users together {MOST}")]
    TooMany,
    /// It is gone, or it did not wait for the answer.
    #[error("the launcher ended")]
    Exited,
    /// Nobody would notice what the process becomes.
    #[error(
        "the kernel gives the agent no word of exec, so a launch could not be told from what comes after it"
    )]
    NoWord,
    /// We could not look.
    #[error("the agent cannot look at the launcher now: {0}")]
    Unseen(String),
}

/// That it is gone, if it is; else that we could not look.
pub(super) fn gone_or(process: &Process, error: &io::Error) -> LaunchError {
    if process.is_alive() { LaunchError::Unseen(error.to_string()) } else { LaunchError::Exited }
}

/// That we could not measure.
pub(super) fn unseen(error: &MeasureError) -> LaunchError {
    LaunchError::Unseen(error.to_string())
}

fn explain(code: Code) -> &'static str {
    match code {
        Code::Ours => "none",
        Code::Foreign => "a file is mapped that is not its own",
        Code::Loose => "code that comes from no file or can be written",
        Code::Patched => "code that was changed in memory",
        Code::Unreadable => "its mappings cannot be read",
    }
}
