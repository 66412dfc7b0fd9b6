//! How a command fails: an exit code, one sentence, and where possible what to do next.
//!
//! The one file that turns the errors of the parts below into what a person reads. Messages are made of
//! our words and of the agent's; [`super::render::Console`] filters both before they reach a terminal.

use std::io;
use std::path::Path;

use mayfly_proto::{ErrorInfo, RichStatus};
use prost::Message as _;
use tonic::{Code, Status};

use super::client::{ConnectError, EndpointError};
use crate::exit::Exit;
use crate::files::WriteError;
use crate::verify::AnswerError;

/// A command's refusal to go on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    /// What the parent process sees.
    pub(crate) exit: Exit,
    /// What went wrong: lower case, no full stop. Empty = say nothing (the reader has gone).
    pub(crate) message: String,
    /// What to try next.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What could not be done to which file.
    pub(crate) fn file(what: &str, path: &Path, source: &io::Error) -> Self {
        Self::failed(format!("cannot {what} `{}`: {source}", path.display()))
    }

    /// Nobody answered within the time a person is willing to wait.
    pub(crate) fn timed_out(seconds: u64) -> Self {
        Self::new(Exit::Unreachable, format!("the agent did not answer within {seconds} s"))
            .hint("`mayfly healthcheck` and the agent's log say whether it is stuck")
    }

    /// True when trying again later may help: nothing there, not ready, or no identity yet. Never for an
    /// answer that says the request itself is wrong (WEP-08).
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.exit, Exit::NoIdentity | Exit::Unreachable)
    }

    /// Policy has decided: the caller learns by which evaluation, and an operator finds it in the record.
    fn of_policy(status: &Status) -> Option<Self> {
        let info = error_info(status)?;
        let evaluation = info.metadata.get("evaluation_id")?;
        let exit = if status.code() == Code::PermissionDenied { Exit::NoIdentity } else { Exit::Failed };
        let failure = Self::new(exit, format!("{}: {} ({evaluation})", info.reason, status.message()));
        Some(failure.hint(match info.reason.as_str() {
            "binding_required" => BIND.to_owned(),
            _ => format!("an operator finds out why: `mayfly audit query --evaluation {evaluation}`"),
        }))
    }

    /// What the agent's refusal means for the caller.
    pub(crate) fn from_status(status: &Status) -> Self {
        let said = status.message();
        if let Some(refusal) = Self::of_policy(status) {
            return refusal;
        }
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => {
                let failure = Self::new(Exit::NoIdentity, format!("permission denied: {said}"));
                match task_reason(status).as_str() {
                    "" | "not_attested" => failure.hint(EXPLAIN),
                    "in_task" => failure.hint("about its own task a process asks with `--own`"),
                    _ => failure,
                }
            }
            Code::Unavailable | Code::Cancelled => {
                Self::new(Exit::Unreachable, format!("the agent is unavailable: {said}"))
            }
            Code::DeadlineExceeded => Self::new(Exit::Unreachable, format!("the agent was too slow: {said}")),
            Code::Unimplemented => Self::failed(format!("this agent does not offer that call: {said}"))
                .hint("is this another vendor's agent? only the Workload API is common to all"),
            Code::InvalidArgument => Self::failed(format!("the agent refuses the request: {said}")),
            Code::NotFound => Self::failed(format!("not found: {said}")),
            Code::FailedPrecondition | Code::ResourceExhausted => Self::failed(said),
            // A connection that broke in the middle of a call comes as one of these, with the cause beneath.
            _ if std::error::Error::source(status).is_some() => {
                Self::new(Exit::Unreachable, "the connection to the agent broke")
            }
            code => Self::failed(format!("the agent failed: {said} ({})", code.description())),
        }
    }
}

/// The reason of a refusal of the task API, for programs; empty where there is none.
pub(crate) fn task_reason(status: &Status) -> String {
    error_info(status).map(|info| info.reason).unwrap_or_default()
}

fn error_info(status: &Status) -> Option<ErrorInfo> {
    let rich = RichStatus::decode(status.details()).unwrap_or_default();
    rich.details.iter().find_map(|any| ErrorInfo::decode(any.value.as_slice()).ok())
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

/// Standard output failed. A reader that has gone away (`mayfly … | head -1`) is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Ok, ""),
            _ => Self::failed(format!("cannot write the answer: {error}")),
        }
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        Self::usage(error.to_string()).hint("the form is `unix:///run/mayfly/public/api.sock`")
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let message = error.to_string();
        match error {
            ConnectError::NoSocket { .. } => Self::new(Exit::Unreachable, message)
                .hint("start one with `mayfly agent --dev`, or name its socket with `--socket`"),
            ConnectError::Refused { .. } => Self::new(Exit::Unreachable, message)
                .hint("no agent listens there any more: is it running? `--wait` waits for it"),
            ConnectError::Forbidden { .. } => {
                Self::new(Exit::Unreachable, message).hint("the admin socket is for root and its group")
            }
            ConnectError::Untrusted { uid, .. } => Self::new(Exit::Untrusted, message).hint(format!(
                "if uid {uid} really runs your agent, say so with `--server-uid {uid}` or MAYFLY_SERVER_UID"
            )),
            ConnectError::PathTooLong { .. } => Self::usage(message),
            ConnectError::Handshake { .. } => Self::new(Exit::Unreachable, message),
        }
    }
}

impl From<AnswerError> for Failure {
    fn from(error: AnswerError) -> Self {
        Self::failed(error.to_string()).hint("nothing was printed or written")
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Self::failed(error.to_string())
    }
}

/// `mayfly run` keeps tokens in files, and a file holds no key.
const BIND: &str = "`mayfly run` keeps tokens without a key: those are for targets with `binding = \"none\"` in the \
                    policy's catalogue; for others the program asks by itself, with a key or a certificate";
/// A client command is gone as soon as it fails, so the hint keeps one alive to look at.
const EXPLAIN: &str = "find out which selector is missing: `mayfly whoami`, or as an operator \
                       `mayfly fetch x509 --wait & mayfly explain --pid $!`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_identity_exits_7_and_says_what_to_do_next() {
        let failure = Failure::from_status(&Status::permission_denied("no identity issued"));
        assert_eq!(failure.exit, Exit::NoIdentity);
        assert!(failure.hint.expect("hint").contains("mayfly explain --pid"));
    }

    #[test]
    fn a_no_of_policy_names_the_evaluation_that_an_operator_looks_for() {
        let info = ErrorInfo {
            reason: "policy_denied".to_owned(),
            metadata: [("evaluation_id".to_owned(), "evl_7".to_owned())].into(),
            ..ErrorInfo::default()
        };
        let any = prost_types::Any { value: info.encode_to_vec(), ..prost_types::Any::default() };
        let rich = RichStatus { details: vec![any], ..RichStatus::default() };
        for (code, exit) in
            [(Code::PermissionDenied, Exit::NoIdentity), (Code::FailedPrecondition, Exit::Failed)]
        {
            let status = Status::with_details(code, "policy says no", rich.encode_to_vec().into());
            let failure = Failure::from_status(&status);
            assert_eq!(failure.exit, exit);
            assert_eq!(failure.message, "policy_denied: policy says no (evl_7)");
            assert!(failure.hint.expect("hint").contains("audit query --evaluation evl_7"));
        }
    }

    #[test]
    fn a_request_that_is_wrong_is_never_retried() {
        assert!(!Failure::from_status(&Status::invalid_argument("audience")).is_transient());
        assert!(!Failure::from_status(&Status::unimplemented("")).is_transient());
        assert!(Failure::from_status(&Status::unavailable("starting")).is_transient());
        assert!(Failure::from_status(&Status::permission_denied("no identity issued")).is_transient());
    }

    #[test]
    fn a_reader_that_has_gone_is_quiet_success() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Ok, ""));
    }
}
