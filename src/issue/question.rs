//! The question that people were asked, signed: whoever shows it elsewhere (a portal, a chat) shows exactly what was
//! asked. It has a type of its own, no audience and no subject, so that nobody takes it for a credential (threats H04).

use std::time::SystemTime;

use serde::Serialize;

use super::IssueError;
use crate::authority::JwsAuthority;
use crate::clock::unix_seconds;
use crate::id::{ApprovalId, TaskId, hex_text};

/// The `typ` of the header.
pub const TYPE: &str = "mayfly-approval-request+jwt";

/// What is asked.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Who signs.
    pub issuer: &'a str,
    /// The name of the request.
    pub approval: ApprovalId,
    /// The evaluation that said so.
    pub evaluation: &'a str,
    /// In whose name.
    pub task: TaskId,
    /// What is to be done.
    pub action: &'static str,
    /// To which target, by name.
    pub target: &'a str,
    /// SHA-256 of the operation in canonical form; `None`: none was named.
    pub operation: Option<[u8; 32]>,
    /// Nobody can answer after that.
    pub expires_at: SystemTime,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: u64,
    exp: u64,
    approval: String,
    evaluation: &'a str,
    task: String,
    action: &'a str,
    target: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_sha256: Option<String>,
}

/// Signs it.
///
/// # Errors
/// When the authority cannot sign.
pub fn sign(asked: &Asked<'_>, authority: &JwsAuthority, now: SystemTime) -> Result<String, IssueError> {
    let claims = Claims {
        iss: asked.issuer,
        iat: unix_seconds(now),
        exp: unix_seconds(asked.expires_at),
        approval: asked.approval.to_string(),
        evaluation: asked.evaluation,
        task: asked.task.to_string(),
        action: asked.action,
        target: asked.target,
        operation_sha256: asked.operation.as_ref().map(|digest| hex_text(digest)),
    };
    Ok(authority.sign_as(TYPE, &claims)?)
}
