//! One approval in words, and as JSON. What the agent's daemon found out comes first, what the agent says of itself last,
//! and no line of either can pass for one of ours (threats K03).

use std::time::SystemTime;

use mayfly_proto::task::{Approval, ApprovalState, Fact, Vote};
use prost_types::Timestamp;
use serde::Serialize;

use super::super::render::{cell, clean, relative, stamp_unix};

/// `pending`, `approved`, ….
pub(super) fn state(approval: &Approval) -> String {
    let name = match approval.state() {
        ApprovalState::Unspecified => "unknown",
        ApprovalState::Pending => "pending",
        ApprovalState::Approved => "approved",
        ApprovalState::Denied => "denied",
        ApprovalState::Expired => "expired",
        ApprovalState::Cancelled => "cancelled",
        ApprovalState::Used => "used",
    };
    name.to_owned()
}

/// Everything that a person has to know.
pub(super) fn page(approval: &Approval, now: SystemTime) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", cell(&approval.id), standing(approval, now)), String::new()];
    let widest = approval.facts.iter().map(|fact| fact.name.len()).max().unwrap_or(0).min(WIDEST_NAME);
    for Fact { name, value } in &approval.facts {
        let label = format!("  {:widest$}  ", cell(name));
        lines.extend(wrapped(&label, value));
    }
    if !approval.votes.is_empty() {
        lines.extend([String::new(), "answers:".to_owned()]);
        lines.extend(approval.votes.iter().map(|vote| answered(vote, now)));
    }
    lines.extend([String::new(), UNTRUSTED.to_owned()]);
    lines.extend(wrapped("  | ", &approval.untrusted_purpose));
    lines
}

fn standing(approval: &Approval, now: SystemTime) -> String {
    let until = |at: Option<Timestamp>| at.map(|at| relative(at.seconds, now)).unwrap_or_default();
    let yes = approval.votes.iter().filter(|vote| vote.approve).count();
    let of = format!("{yes} of {} from {}", approval.quorum.max(1), cell(&approval.approvers));
    match approval.state() {
        ApprovalState::Pending => format!("pending ({of}), runs out {}", until(approval.expires_at)),
        ApprovalState::Approved => {
            format!("approved ({of}), not used, runs out {}", until(approval.approved_until))
        }
        _ => state(approval),
    }
}

fn answered(vote: &Vote, now: SystemTime) -> String {
    let word = if vote.approve { "yes" } else { "no" };
    let at = vote.at.map(|at| format!("  {}", relative(at.seconds, now))).unwrap_or_default();
    let why = if vote.reason.is_empty() { String::new() } else { format!("  \"{}\"", cell(&vote.reason)) };
    format!("  {word}  {}{at}{why}", cell(&vote.by))
}

/// Whole, since all of it is what is approved, and broken by us: a terminal would begin the next line at its edge, where
/// only we write.
fn wrapped(label: &str, text: &str) -> Vec<String> {
    let text: Vec<char> = clean(text).chars().collect();
    let blank = format!("{}| ", " ".repeat(label.chars().count().saturating_sub(2)));
    let mut lines: Vec<String> = Vec::new();
    for piece in text.chunks(WIDTH) {
        let begin = if lines.is_empty() { label } else { blank.as_str() };
        lines.push(format!("{begin}{}", piece.iter().collect::<String>()));
    }
    if lines.is_empty() {
        lines.push(label.trim_end().to_owned());
    }
    lines
}

const UNTRUSTED: &str = "UNTRUSTED, the agent's own words, checked by nobody:";
const WIDEST_NAME: usize = 24;
const WIDTH: usize = 80;

/// As `docs/cli.md` has it.
#[derive(Serialize)]
pub(super) struct ApprovalJson {
    approval: String,
    state: String,
    task: String,
    agent: String,
    action: String,
    target: String,
    operation_sha256: String,
    approvers: String,
    quorum: u32,
    requested_at: Option<String>,
    expires_at: Option<String>,
    approved_until: Option<String>,
    votes: Vec<VoteJson>,
    evaluation_id: String,
    facts: Vec<FactJson>,
    untrusted_purpose: String,
}

#[derive(Serialize)]
struct VoteJson {
    by: String,
    approve: bool,
    at: Option<String>,
    reason: String,
}

#[derive(Serialize)]
struct FactJson {
    name: String,
    value: String,
}

impl From<Approval> for ApprovalJson {
    fn from(approval: Approval) -> Self {
        let at = |at: Option<Timestamp>| at.map(|at| stamp_unix(at.seconds));
        let vote = |vote: Vote| VoteJson {
            by: vote.by,
            approve: vote.approve,
            at: at(vote.at),
            reason: vote.reason,
        };
        Self {
            state: state(&approval),
            approval: approval.id,
            task: approval.task_id,
            agent: approval.spiffe_id,
            action: approval.action,
            target: approval.target,
            operation_sha256: approval.operation_sha256,
            approvers: approval.approvers,
            quorum: approval.quorum,
            requested_at: at(approval.requested_at),
            expires_at: at(approval.expires_at),
            approved_until: at(approval.approved_until),
            votes: approval.votes.into_iter().map(vote).collect(),
            evaluation_id: approval.evaluation_id,
            facts: approval.facts.into_iter().map(|Fact { name, value }| FactJson { name, value }).collect(),
            untrusted_purpose: approval.untrusted_purpose,
        }
    }
}
