//! Tasks and decisions as they stand in a line.

use serde::Serialize;

use super::{first, timestamp};
use crate::audit::event::Grant;
use crate::audit::task::{ApprovalFacts, ApprovalStep, PolicyDecision, TaskFacts, TaskStep, UserPrint};
use crate::audit::text::capped;
use crate::id::TaskId;

/// Of a credential only the name is known.
#[derive(Serialize)]
pub(super) struct TaskPart {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolated: Option<bool>,
}

#[derive(Serialize)]
pub(super) struct UserPart {
    iss: String,
    sub_hash: String,
}

/// Of a decision about a task, beside what every decision has.
#[derive(Default, Serialize)]
pub(super) struct PolicyPart {
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args_hash: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policy_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_version: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    obligations: Vec<String>,
}

impl TaskPart {
    pub(super) fn named(id: TaskId) -> Self {
        Self {
            id: id.to_string(),
            root: None,
            parent: None,
            depth: None,
            template: None,
            purpose: None,
            state: None,
            deadline: None,
            isolated: None,
        }
    }

    pub(super) fn of(task: &TaskFacts) -> Self {
        Self {
            id: task.id.to_string(),
            root: Some(task.root.to_string()),
            parent: task.parent.map(|parent| parent.to_string()),
            depth: Some(task.depth),
            template: task.template.as_deref().map(capped),
            purpose: (!task.purpose.is_empty()).then(|| capped(&task.purpose)),
            state: Some(task.state),
            deadline: task.deadline.map(timestamp),
            isolated: Some(task.isolated),
        }
    }
}

impl From<&UserPrint> for UserPart {
    fn from(user: &UserPrint) -> Self {
        Self { iss: capped(&user.iss), sub_hash: user.sub_hash.clone() }
    }
}

impl From<&PolicyDecision> for PolicyPart {
    fn from(decision: &PolicyDecision) -> Self {
        Self {
            evaluation_id: decision.evaluation_id.as_deref().map(capped),
            action: Some(decision.action),
            target: Some(capped(&decision.target)),
            tool: decision.tool.as_deref().map(capped),
            args_hash: decision.args_hash.clone(),
            policy_ids: first(decision.policy_ids.iter()),
            policy_version: decision.policy_version.as_deref().map(capped),
            obligations: first(decision.obligations.iter()),
        }
    }
}

/// Of a credential of a task, when it is issued.
#[derive(Default, Serialize)]
pub(super) struct GrantPart {
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binding: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evaluations: Vec<String>,
}

impl From<&Grant> for GrantPart {
    fn from(grant: &Grant) -> Self {
        Self {
            target: Some(capped(&grant.target)),
            scope: Some(capped(&grant.scope)),
            binding: Some(grant.binding),
            evaluations: first(grant.evaluations.iter()),
        }
    }
}

/// Of an approval.
#[derive(Serialize)]
pub(super) struct ApprovalPart {
    id: String,
    action: &'static str,
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    args_hash: Option<String>,
    evaluation_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl From<&ApprovalFacts> for ApprovalPart {
    fn from(approval: &ApprovalFacts) -> Self {
        Self {
            id: approval.id.clone(),
            action: approval.action,
            target: capped(&approval.target),
            args_hash: approval.operation_sha256.clone(),
            evaluation_id: capped(&approval.evaluation_id),
            by: approval.by.as_deref().map(capped),
            reason: approval.reason.as_deref().map(capped),
            at: approval.at.map(timestamp),
            until: approval.until.map(timestamp),
        }
    }
}

pub(super) fn approved(step: ApprovalStep) -> &'static str {
    match step {
        ApprovalStep::Requested => "approval.requested",
        ApprovalStep::Granted => "approval.granted",
        ApprovalStep::Denied => "approval.denied",
        ApprovalStep::Expired => "approval.expired",
        ApprovalStep::Cancelled => "approval.cancelled",
        ApprovalStep::Used => "approval.used",
        ApprovalStep::NotTold => "approval.not_told",
    }
}

pub(super) fn step(step: TaskStep) -> &'static str {
    match step {
        TaskStep::Begin => "task.begin",
        TaskStep::Delegate => "task.delegate",
        TaskStep::Join => "task.join",
        TaskStep::Renew => "task.renew",
        TaskStep::Suspend => "task.suspend",
        TaskStep::Resume => "task.resume",
        TaskStep::Ended => "task.ended",
    }
}

pub(super) fn decided(decision: &PolicyDecision) -> &'static str {
    match decision.result {
        "allow" => "decision.allow",
        "requestable" => "decision.requestable",
        _ => "decision.deny",
    }
}
