//! Errors of tasks: a gRPC code, and a `google.rpc.ErrorInfo` that a program can read.

use std::collections::HashMap;

use mayfly_proto::{ErrorInfo, RichStatus};
use prost::Message as _;
use tonic::{Code, Status};

use super::super::status::Busy;
use crate::issue::IssueError;
use crate::policy::{Decision, Verdict};
use crate::task::approval::ApprovalError;
use crate::task::{Ending, Limit, Refused, Standing};
use crate::workload::{Refusal, TaskError, TaskView};

/// Who names the reasons.
const DOMAIN: &str = "mayfly.task.v1";

/// A request that is wrong in itself: where, and after a colon what, if there is more to say.
pub(in crate::api) fn malformed(field: &str) -> Status {
    let (field, message) = match field.split_once(": ") {
        Some((field, what)) => (field, format!("`{field}`: {what}")),
        None => (field, format!("`{field}` is missing or malformed")),
    };
    reason(Code::InvalidArgument, "malformed", &message, &[("field", field)])
}

/// A status with its reason.
pub(in crate::api) fn reason(code: Code, reason: &str, message: &str, metadata: &[(&str, &str)]) -> Status {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let info = ErrorInfo { reason: reason.to_owned(), domain: DOMAIN.to_owned(), metadata };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.ErrorInfo".to_owned(),
        value: info.encode_to_vec(),
    };
    let status = RichStatus { code: code.into(), message: message.to_owned(), details: vec![any] };
    Status::with_details(code, message, status.encode_to_vec().into())
}

/// What the caller learns.
pub(in crate::api) fn of_error(error: TaskError) -> Status {
    match error {
        TaskError::Malformed(field) => malformed(&field),
        TaskError::Refused(refused) => of_refused(&refused),
        TaskError::Denied(decision) => of_decision(&decision),
        TaskError::Unbound(decision) => {
            let id = decision.evaluation_id.to_string();
            let message = "this target takes only credentials that are bound to a key of yours";
            reason(Code::FailedPrecondition, "binding_required", message, &[("evaluation_id", &id)])
        }
        TaskError::Frozen => frozen(),
        TaskError::User(_) => {
            let message = "the token does not prove a user: an operator finds out why in the audit log";
            reason(Code::PermissionDenied, "user_not_verified", message, &[])
        }
        TaskError::Keeper => {
            let message = "your parent cannot keep your credentials: only `mayfly run` of this agent can";
            reason(Code::PermissionDenied, "not_granted", message, &[])
        }
        TaskError::Approval(error) => of_approval(error),
        TaskError::NotSingleUse => {
            let message = error.to_string();
            reason(Code::FailedPrecondition, "approval_needs_access_token", &message, &[])
        }
        TaskError::Workload(Refusal::Authority(IssueError::TooLong)) => {
            of_refused(&Refused::Limit(Limit::Token))
        }
        TaskError::Workload(refusal) => of_refusal(&refusal),
    }
}

/// What an agent, or whoever answers, learns of an approval.
pub(in crate::api) fn of_approval(error: ApprovalError) -> Status {
    let (code, word) = match error {
        ApprovalError::Unknown => (Code::NotFound, "no_such_approval"),
        ApprovalError::Other => (Code::PermissionDenied, "approval_mismatch"),
        ApprovalError::NotInGroups => (Code::PermissionDenied, "not_an_approver"),
        ApprovalError::OwnWork => (Code::PermissionDenied, "own_work"),
        ApprovalError::Twice => (Code::AlreadyExists, "decided_already"),
        ApprovalError::State(state) => {
            let word = format!("approval_{}", state.as_str());
            return reason(Code::FailedPrecondition, &word, &error.to_string(), &[]);
        }
    };
    reason(code, word, &error.to_string(), &[])
}

/// An operator has stopped this; it may go on one day.
pub(super) fn frozen() -> Status {
    let message = "an operator has frozen this task or an agent in its chain";
    reason(Code::FailedPrecondition, "frozen", message, &[])
}

fn of_decision(decision: &Decision) -> Status {
    let id = decision.evaluation_id.to_string();
    let metadata = [("evaluation_id", id.as_str())];
    match decision.verdict {
        Verdict::Requestable => {
            let message = "people would have to allow this";
            reason(Code::FailedPrecondition, "approval_required", message, &metadata)
        }
        Verdict::Deny if decision.reason == crate::policy::Reason::Frozen => {
            let message = "an operator has frozen this";
            reason(Code::FailedPrecondition, "frozen", message, &metadata)
        }
        Verdict::Deny if decision.reason == crate::policy::Reason::BodyHash => {
            let message = "this is allowed for a named operation only, with what it carries: say `operation`, with \
                           `http.body_sha256`, `mcp.arguments` or `sql.statement_sha256`";
            reason(Code::FailedPrecondition, "body_hash_required", message, &metadata)
        }
        Verdict::Deny | Verdict::Allow => {
            let message = "policy does not allow this: an operator finds out why by the evaluation id";
            reason(Code::PermissionDenied, "policy_denied", message, &metadata)
        }
    }
}

fn of_refused(refused: &Refused) -> Status {
    let message = refused.to_string();
    let (code, word) = match refused {
        // Nor whether one is offered a part of: who takes up what is for another learns what he would of none.
        Refused::NoSuchDelegation | Refused::NotYours => {
            tracing::debug!(why = refused.to_string(), "a caller names a delegation that it cannot take up");
            let message = "there is no such delegation, it has expired, or it is not for you";
            return reason(Code::NotFound, "no_such_task", message, &[]);
        }
        // Whether a task exists is nobody's business who is not in it: both get the very same words.
        Refused::NoSuchTask | Refused::NotInTask => {
            tracing::debug!(why = refused.to_string(), "a caller names a task that it is not in");
            let message = "there is no such task, or you are not in it";
            return reason(Code::NotFound, "no_such_task", message, &[]);
        }
        Refused::DelegationUsed => (Code::FailedPrecondition, "delegation_used"),
        Refused::Ended(_) => (Code::FailedPrecondition, "task_ended"),
        Refused::Pending => (Code::FailedPrecondition, "pending_approval"),
        Refused::Exceeds(_) => (Code::PermissionDenied, "exceeds_parent"),
        Refused::NotGranted => (Code::PermissionDenied, "not_granted"),
        Refused::NotHeld(_) => (Code::FailedPrecondition, "operation_not_held"),
        Refused::Limit(limit) => {
            return reason(Code::ResourceExhausted, limit.reason(), &message, &[]);
        }
        Refused::Conflict => (Code::AlreadyExists, "idempotency_conflict"),
        Refused::NotIsolated => (Code::FailedPrecondition, "scope_unavailable"),
    };
    reason(code, word, &message, &[])
}

/// What a caller learns who is attested as nobody; not why.
pub(super) fn not_admitted(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::NotEntitled | Refusal::Exited | Refusal::CredentialsChanged => {
            let message = "there is no identity for this process here";
            reason(Code::Unauthenticated, "not_attested", message, &[])
        }
        refusal => of_refusal(refusal),
    }
}

/// What a caller learns whose user asks too often to be looked at.
pub(super) fn limited_rate(busy: &Busy) -> Status {
    let message = format!("{busy}: ask again in a second");
    reason(Code::ResourceExhausted, Limit::Rate.reason(), &message, &[])
}

fn of_refusal(refusal: &Refusal) -> Status {
    let word = match refusal {
        Refusal::Exited | Refusal::CredentialsChanged => Some("not_attested"),
        Refusal::NotEntitled => Some("not_granted"),
        Refusal::TooManyLeases => Some("limit_calls"),
        _ => None,
    };
    let status = super::super::status::of_refusal(refusal);
    match word {
        Some("limit_calls") => reason(Code::ResourceExhausted, "limit_calls", status.message(), &[]),
        Some(word) => reason(status.code(), word, status.message(), &[]),
        None => status,
    }
}

/// The state of a task, and the word for it, as `Task.reason` has it.
pub(super) fn standing(view: &TaskView) -> (i32, String) {
    use mayfly_proto::task::TaskState;
    let (state, why) = match view.task.standing {
        Standing::Pending => (TaskState::PendingApproval, ""),
        // So far only a freeze suspends.
        Standing::Active if view.is_suspended => (TaskState::Suspended, Ending::KillSwitch.as_str()),
        Standing::Active => (TaskState::Active, ""),
        Standing::Ended(why) => (TaskState::Ended, why.as_str()),
    };
    (state.into(), why.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// Every reason that stands in these files behind a code.
    fn reasons() -> BTreeSet<&'static str> {
        let sources = [include_str!("errors.rs"), include_str!("mod.rs")];
        let own = sources.map(|source| source.split("#[cfg(test)]").next().unwrap_or_default());
        let codes = own.into_iter().flat_map(|source| source.split("Code::").skip(1));
        let reason = |after: &'static str| {
            let (_code, rest) = after.split_once(',')?;
            let (word, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
            Some(word)
        };
        codes.filter_map(reason).filter(|word| !word.is_empty()).collect()
    }

    #[test]
    fn each_reason_is_in_the_docs_with_what_to_do() {
        let page = include_str!("../../../docs/tasks.md");
        let table: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        let named = |word: &str| table.iter().any(|row| row.contains(&format!("`{word}`")));
        let reasons = reasons();
        assert!(reasons.len() >= 18 && reasons.contains("one_audience_per_credential"), "{reasons:?}");
        let missing: Vec<_> =
            reasons.iter().filter(|word| !word.starts_with("limit_") && !named(word)).collect();
        assert!(missing.is_empty(), "docs/tasks.md does not say what to do about {missing:?}");
    }
}
