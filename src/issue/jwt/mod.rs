//! JWT-SVIDs: minted with the claims `sub aud exp iat iss jti` (and `status`, where lists are published), and validated strictly.

mod validate;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use super::minted::{Lease, Minted, Token};
use super::{IssueError, not_after};
use crate::authority::{AuthorityError, BACKDATE, JwsAuthority, JwsUse};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{LeaseId, SpiffeId, TaskId};
use crate::ledger::{self, StatusIndex};
use crate::policy::{self, Permit};

pub use self::validate::{
    JwtRefusal, MAX_AUDIENCES, MAX_LIFETIME_SECONDS, MAX_TOKEN_BYTES, NBF_LEEWAY_SECONDS, ValidatedJwt,
    inspect, validate,
};

/// Signs a token for the audiences of the permit. One token serves one call of one workload. `issuer` is the
/// `iss` claim. What comes out is shut.
///
/// # Errors
/// [`IssueError`]; the permit is spent either way.
pub fn mint(
    permit: Permit,
    authority: &JwsAuthority,
    lease: LeaseId,
    issuer: &str,
    now: SystemTime,
) -> Result<MintedJwt, IssueError> {
    mint_listed(permit, authority, lease, &Terms { issuer, status: None, task: None }, now)
}

/// What goes into a token besides its grant.
pub struct Terms<'a> {
    /// The `iss` claim.
    pub issuer: &'a str,
    /// Gives a token that ends then (Unix seconds) its place in a status list, and the list's URI.
    pub status: Option<&'a dyn Fn(u64) -> Option<(StatusIndex, String)>>,
    /// The task in whose name it is issued; there is one audience then.
    pub task: Option<TaskClaims<'a>>,
}

/// What a JWT-SVID says of its task: flat, since those who federate compare single claims. Never who delegated: what an
/// `act` in a JWT-SVID means is not agreed on.
#[derive(Clone, Copy, Debug)]
pub struct TaskClaims<'a> {
    /// Its name.
    pub id: TaskId,
    /// By which template.
    pub template: Option<&'a str>,
    /// For which actions, with a blank between them.
    pub actions: &'a str,
}

impl fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// As [`mint`], with a `status` claim where the terms give the token a place.
///
/// # Errors
/// As [`mint`].
pub fn mint_listed(
    permit: Permit,
    authority: &JwsAuthority,
    lease: LeaseId,
    terms: &Terms<'_>,
    now: SystemTime,
) -> Result<MintedJwt, IssueError> {
    let grant = permit.spend();
    let one_audience = terms.task.is_none() || grant.audience.len() == 1;
    if grant.kind != policy::Kind::Jwt || authority.usage() != JwsUse::JwtSvid || !one_audience {
        return Err(IssueError::WrongKind);
    }
    let id = &grant.spiffe_id;
    if id.trust_domain() != authority.trust_domain() || id.path().is_empty() {
        return Err(AuthorityError::ForeignIdentity.into());
    }
    let not_after = not_after(now, grant.ttl, (authority.not_before(), authority.not_after()))?;
    // Some validators allow no leeway here.
    let begins = unix_seconds(now.checked_sub(BACKDATE).unwrap_or(now));
    let listed = terms.status.and_then(|status| status(unix_seconds(not_after)));
    let token = authority.sign(&Claims {
        sub: id.as_str(),
        aud: &grant.audience,
        exp: unix_seconds(not_after),
        iat: begins,
        iss: terms.issuer,
        jti: lease.to_string(),
        status: listed.as_ref().map(|(place, uri)| Status { status_list: Listed { idx: place.index, uri } }),
        task: terms.task.map(|task| TaskPart::of(&task, begins, &grant.audience)),
    })?;
    let shut = Lease {
        id: lease,
        kind: ledger::Kind::Jwt,
        issuer: authority.kid().to_owned(),
        spiffe_id: id.to_string(),
        entry: grant.entry,
        audience: grant.audience.clone(),
        issued_at: now,
        not_after,
        status: listed.map(|(place, _)| place),
        task: terms.task.as_ref().map(|task| task.id),
    };
    let svid = JwtSvid {
        id: lease,
        spiffe_id: grant.spiffe_id,
        hint: grant.hint,
        token,
        audience: grant.audience,
        issued_at: from_unix_seconds(unix_seconds(now)),
        not_after,
    };
    Ok(Minted::new(svid, shut))
}

/// In the order they are written. `aud` is a list even for one audience (WAPI-30).
#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    aud: &'a [String],
    exp: u64,
    iat: u64,
    iss: &'a str,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(flatten)]
    task: Option<TaskPart<'a>>,
}

/// What only a token of a task has. `nbf` is for whoever federates.
#[derive(Serialize)]
struct TaskPart<'a> {
    nbf: u64,
    mayfly_task: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mayfly_template: Option<&'a str>,
    mayfly_action_class: &'a str,
    #[serde(rename = "https://aws.amazon.com/tags", skip_serializing_if = "Option::is_none")]
    aws: Option<Value>,
}

impl<'a> TaskPart<'a> {
    fn of(task: &TaskClaims<'a>, nbf: u64, audience: &[String]) -> Self {
        let is_aws = |one: &String| one == "sts.amazonaws.com" || one == "sts.amazonaws.com.cn";
        // Session tags: what a trust policy or a resource policy can compare the task with.
        let tags = || {
            json!({
                "principal_tags": { "mayfly_task": [task.id.to_string()] },
                "transitive_tag_keys": ["mayfly_task"],
            })
        };
        Self {
            nbf,
            mayfly_task: task.id.to_string(),
            mayfly_template: task.template,
            mayfly_action_class: task.actions,
            aws: audience.iter().any(is_aws).then(tags),
        }
    }
}

/// Token Status List §6.2: where the token's status is published.
#[derive(Serialize)]
struct Status<'a> {
    status_list: Listed<'a>,
}

#[derive(Serialize)]
struct Listed<'a> {
    idx: u32,
    uri: &'a str,
}

/// A token that nobody may see before its lease is in the ledger.
pub type MintedJwt = Minted<JwtSvid>;

impl Token for JwtSvid {
    fn token(&self) -> &str {
        &self.token
    }
}

/// A released JWT-SVID. The token is a bearer secret: `Debug` leaves it out.
#[derive(Clone)]
pub struct JwtSvid {
    /// The lease: the `jti`.
    pub id: LeaseId,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// The operator's hint; may be empty.
    pub hint: String,
    /// Compact JWS.
    pub token: String,
    /// For whom it is.
    pub audience: Vec<String>,
    /// When it was signed.
    pub issued_at: SystemTime,
    /// The `exp`.
    pub not_after: SystemTime,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtSvid({}, {})", self.id, self.spiffe_id)
    }
}
