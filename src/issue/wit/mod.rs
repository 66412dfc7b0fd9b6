//! WIT-SVIDs (incubating): minted with a key of their own and the claims `sub exp iat jti cnf` (and `iss` where it
//! is configured), validated strictly. A WIT-SVID is no bearer token: it says which key its holder has, and only a
//! proof with that key authenticates anybody.

mod proof;
mod validate;

#[cfg(test)]
mod tests;

use std::time::SystemTime;

use serde::Serialize;

use super::minted::{Lease, Minted, Token};
use super::{IssueError, not_after};
use crate::authority::{AuthorityError, BACKDATE, JwsAuthority, JwsUse, KeyType, ProofKey};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{LeaseId, SpiffeId};
use crate::ledger;
use crate::policy::{self, Permit};
use crate::secret::KeyBytes;

pub(crate) use self::proof::token_hash;
pub use self::proof::{About, MAX_PROOF_SECONDS, ProofRefusal, Proven};
pub use self::validate::{MAX_TOKEN_BYTES, Rules, Unproven, WitRefusal, validate};

/// How tokens are made.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Type of the workload's key.
    pub key: KeyType,
    /// The `iss` claim, if there is to be one.
    pub issuer: Option<String>,
}

/// Makes a key pair and signs a token that binds it to the identity. What comes out is shut.
///
/// # Errors
/// [`IssueError`]; the permit is spent either way.
pub fn mint(
    permit: Permit,
    authority: &JwsAuthority,
    lease: LeaseId,
    recipe: &Recipe,
    now: SystemTime,
) -> Result<MintedWit, IssueError> {
    let grant = permit.spend();
    if grant.kind != policy::Kind::Wit || authority.usage() != JwsUse::WitSvid {
        return Err(IssueError::WrongKind);
    }
    let id = &grant.spiffe_id;
    if id.trust_domain() != authority.trust_domain() || id.path().is_empty() {
        return Err(AuthorityError::ForeignIdentity.into());
    }
    let not_after = not_after(now, grant.ttl, (authority.not_before(), authority.not_after()))?;
    let key = ProofKey::generate(recipe.key)?;
    let token = authority.sign(&Claims {
        sub: id.as_str(),
        exp: unix_seconds(not_after),
        // Some validators take it for a limit, although they must not (WIT-20).
        iat: unix_seconds(now.checked_sub(BACKDATE).unwrap_or(now)),
        jti: lease.to_string(),
        cnf: Confirmation { jwk: key.public_jwk() },
        iss: recipe.issuer.as_deref(),
    })?;
    let shut = Lease {
        id: lease,
        kind: ledger::Kind::Wit,
        issuer: authority.kid().to_owned(),
        spiffe_id: id.to_string(),
        entry: grant.entry,
        audience: Vec::new(),
        issued_at: now,
        not_after,
        status: None,
        task: None,
    };
    let svid = WitSvid {
        id: lease,
        spiffe_id: grant.spiffe_id,
        hint: grant.hint,
        token,
        key: key.into_private_jwk()?,
        issued_at: from_unix_seconds(unix_seconds(now)),
        not_after,
    };
    Ok(Minted::new(svid, shut))
}

/// In the order they are written. Never `aud` (WIT-22): for whom a message is belongs into the proof.
#[derive(Serialize)]
struct Claims<'a, J: Serialize> {
    sub: &'a str,
    exp: u64,
    iat: u64,
    jti: String,
    cnf: Confirmation<'a, J>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// RFC 7800 §3.2.
#[derive(Serialize)]
struct Confirmation<'a, J: Serialize> {
    jwk: &'a J,
}

/// A token that nobody may see before its lease is in the ledger.
pub type MintedWit = Minted<WitSvid>;

impl Token for WitSvid {
    fn token(&self) -> &str {
        &self.token
    }
}

/// A released WIT-SVID.
#[derive(Clone, Debug)]
pub struct WitSvid {
    /// The lease: the `jti`.
    pub id: LeaseId,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// The operator's hint; may be empty.
    pub hint: String,
    /// Compact JWS. No secret: without the key it proves nothing.
    pub token: String,
    /// Private JWK, JSON.
    pub key: KeyBytes,
    /// When it was signed.
    pub issued_at: SystemTime,
    /// The `exp`.
    pub not_after: SystemTime,
}
