//! JWT-SVIDs: minted with the claims `sub aud exp iat iss jti` (and `status`, where lists are published), and validated strictly.

mod validate;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::digest;
use mayfly_attestors::ProcessKey;
use serde::Serialize;

use super::{IssueError, not_after};
use crate::authority::{AuthorityError, BACKDATE, JwsAuthority, JwsUse};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{EntryId, LeaseId, SpiffeId};
use crate::ledger::{self, Committed, Row, StatusIndex};
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
    mint_listed(permit, authority, lease, &Terms { issuer, status: None }, now)
}

/// What goes into a token besides its grant.
pub struct Terms<'a> {
    /// The `iss` claim.
    pub issuer: &'a str,
    /// Gives a token that ends then (Unix seconds) its place in a status list, and the list's URI.
    pub status: Option<&'a dyn Fn(u64) -> Option<(StatusIndex, String)>>,
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
    if grant.kind != policy::Kind::Jwt || authority.usage() != JwsUse::JwtSvid {
        return Err(IssueError::WrongKind);
    }
    let id = &grant.spiffe_id;
    if id.trust_domain() != authority.trust_domain() || id.path().is_empty() {
        return Err(AuthorityError::ForeignIdentity.into());
    }
    let not_after = not_after(now, grant.ttl, (authority.not_before(), authority.not_after()))?;
    let listed = terms.status.and_then(|status| status(unix_seconds(not_after)));
    let token = authority.sign(&Claims {
        sub: id.as_str(),
        aud: &grant.audience,
        exp: unix_seconds(not_after),
        // Some validators allow no leeway here.
        iat: unix_seconds(now.checked_sub(BACKDATE).unwrap_or(now)),
        iss: terms.issuer,
        jti: lease.to_string(),
        status: listed.as_ref().map(|(place, uri)| Status { status_list: Listed { idx: place.index, uri } }),
    })?;
    Ok(MintedJwt {
        svid: JwtSvid {
            id: lease,
            spiffe_id: grant.spiffe_id,
            hint: grant.hint,
            token,
            audience: grant.audience,
            issued_at: from_unix_seconds(unix_seconds(now)),
            not_after,
        },
        issuer: authority.kid().to_owned(),
        entry: grant.entry,
        status: listed.map(|(place, _)| place),
    })
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
#[must_use = "commit its row, then release it"]
pub struct MintedJwt {
    svid: JwtSvid,
    issuer: String,
    entry: EntryId,
    status: Option<StatusIndex>,
}

impl MintedJwt {
    /// The lease: the `jti`.
    pub fn id(&self) -> LeaseId {
        self.svid.id
    }

    /// The `exp`.
    pub fn not_after(&self) -> SystemTime {
        self.svid.not_after
    }

    /// SHA-256 of the token, for the audit log: the token itself stays shut.
    pub fn token_sha256(&self) -> digest::Digest {
        digest::digest(&digest::SHA256, self.svid.token.as_bytes())
    }

    /// The row to commit for the process that will hold it.
    pub fn row(&self, process: ProcessKey, uid: u32) -> Row {
        Row {
            id: self.svid.id,
            kind: ledger::Kind::Jwt,
            issuer: self.issuer.clone(),
            spiffe_id: self.svid.spiffe_id.to_string(),
            entry: self.entry.clone(),
            process,
            uid,
            audience: self.svid.audience.clone(),
            issued_at: unix_seconds(self.svid.issued_at),
            not_after: unix_seconds(self.svid.not_after),
            state: ledger::State::Live,
            status: self.status,
            task: None,
        }
    }

    /// Opens it, if that commit wrote its lease; else it is gone for good.
    pub fn release(self, committed: &Committed) -> Option<JwtSvid> {
        committed.covers(self.svid.id).then_some(self.svid)
    }
}

impl fmt::Debug for MintedJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MintedJwt({})", self.svid.id)
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
