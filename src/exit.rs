//! What the process tells its parent: one enum of exit codes, documented in `docs/cli.md` and stable.
//!
//! It sits at the bottom of the layers because the agent (`app`) and the client commands (`cli`) both
//! answer with it.

use std::process::ExitCode;

/// Why the process ended. The numbers are a public interface: scripts and units match on them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Exit {
    /// 0: did what was asked.
    Ok,
    /// 1: failed in a way no other code names.
    Failed,
    /// 2: the command line is wrong.
    Usage,
    /// 3: this kernel or namespace cannot pin processes.
    CannotPin,
    /// 4: the socket's owner is not trusted.
    Untrusted,
    /// 5: the data directory is unusable.
    DataDir,
    /// 6: the data directory is in use by another agent.
    DataDirBusy,
    /// 7: no identity, or permission denied.
    NoIdentity,
    /// 8: the agent cannot be reached or is not ready to serve.
    Unreachable,
    /// 9: drained, but some streams were cut off.
    CutOff,
    /// 10: configuration or entries are invalid.
    Invalid,
    /// Any: what the program that we ran for the user ended with.
    Passed(u8),
}

impl Exit {
    /// All of our own, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::CannotPin,
        Self::Untrusted,
        Self::DataDir,
        Self::DataDirBusy,
        Self::NoIdentity,
        Self::Unreachable,
        Self::CutOff,
        Self::Invalid,
    ];

    /// The number the parent sees: 0 to 10, or the other program's own.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::CannotPin => 3,
            Self::Untrusted => 4,
            Self::DataDir => 5,
            Self::DataDirBusy => 6,
            Self::NoIdentity => 7,
            Self::Unreachable => 8,
            Self::CutOff => 9,
            Self::Invalid => 10,
            Self::Passed(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_documented_ones() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(codes, (0..=10).collect::<Vec<u8>>());
    }
}
