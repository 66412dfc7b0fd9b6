//! Approvals between the wire's types and ours.

use mayfly_proto::task as proto;
use prost_types::Timestamp;

use crate::id::hex_text;
use crate::task::Operation;
use crate::task::approval::{ApprovalState, Vote};
use crate::workload::{AccessRequest, ApprovalView};

/// How to ask people, or what they were asked.
pub(super) fn access_request(request: &AccessRequest) -> proto::AccessRequest {
    let approvers = request.groups.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    match &request.asked {
        None => proto::AccessRequest { approvers, ..proto::AccessRequest::default() },
        Some(asked) => proto::AccessRequest {
            approval_id: asked.id.to_string(),
            approvers,
            expires_at: Some(Timestamp::from(asked.expires_at)),
            binding_token: asked.binding_token.clone(),
        },
    }
}

/// One approval, for people.
pub(in crate::api) fn approval(view: &ApprovalView) -> proto::Approval {
    let approval = &view.approval;
    let subject = &approval.subject;
    let fact = |(name, value): &(&'static str, String)| proto::Fact {
        name: (*name).to_owned(),
        value: value.clone(),
    };
    proto::Approval {
        id: approval.id.to_string(),
        task_id: subject.task.to_string(),
        spiffe_id: view.spiffe_id.clone(),
        action: subject.action.as_str().to_owned(),
        target: subject.target.clone(),
        operation_sha256: subject.operation.as_ref().map(|digest| hex_text(digest)).unwrap_or_default(),
        state: state(approval.state).into(),
        requested_at: Some(Timestamp::from(approval.requested_at)),
        expires_at: Some(Timestamp::from(approval.expires_at)),
        approved_until: approval.approved_until.map(Timestamp::from),
        quorum: approval.jury.quorum,
        votes: approval.votes.iter().map(vote).collect(),
        approvers: approval.jury.groups.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        evaluation_id: approval.evaluation.clone(),
        facts: view.facts.iter().map(fact).collect(),
        untrusted_purpose: view.purpose.clone(),
        operation: view.operation.as_ref().map(operation),
    }
}

fn state(state: ApprovalState) -> proto::ApprovalState {
    match state {
        ApprovalState::Pending => proto::ApprovalState::Pending,
        ApprovalState::Approved(_) => proto::ApprovalState::Approved,
        ApprovalState::Denied => proto::ApprovalState::Denied,
        ApprovalState::Expired => proto::ApprovalState::Expired,
        ApprovalState::Cancelled => proto::ApprovalState::Cancelled,
        ApprovalState::Used => proto::ApprovalState::Used,
    }
}

fn vote(vote: &Vote) -> proto::Vote {
    proto::Vote {
        by: vote.shown_by.clone(),
        approve: vote.approve,
        at: Some(Timestamp::from(vote.at)),
        reason: vote.reason.clone(),
    }
}

fn operation(operation: &Operation) -> proto::Operation {
    use proto::operation::Kind;
    let bytes = |digest: &Option<[u8; 32]>| digest.map(|digest| digest.to_vec().into()).unwrap_or_default();
    let kind = match operation {
        Operation::Http { method, host, path, bytes: length, body_sha256 } => Kind::Http(proto::HttpCall {
            method: method.clone(),
            host: host.clone(),
            path: path.to_string(),
            bytes: *length,
            body_sha256: bytes(body_sha256),
        }),
        Operation::Mcp { server, tool, arguments } => Kind::Mcp(proto::McpCall {
            server: server.clone(),
            tool: tool.clone(),
            arguments: arguments.clone().unwrap_or_default(),
        }),
        Operation::Sql { db, role, statement_sha256 } => Kind::Sql(proto::SqlCall {
            db: db.clone(),
            role: role.clone(),
            statement_sha256: bytes(statement_sha256),
        }),
    };
    proto::Operation { kind: Some(kind) }
}
