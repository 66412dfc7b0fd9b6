//! WIT-SVIDs (incubating): minted with a key of their own and the claims `sub exp iat jti cnf` (and `iss` where it
//! is configured), validated strictly. A WIT-SVID is no bearer token: it says which key its holder has, and only a
//! proof with that key authenticates anybody.

mod proof;
mod validate;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::digest;
use mayfly_attestors::ProcessKey;
use serde::Serialize;

use super::{IssueError, not_after};
use crate::authority::{AuthorityError, BACKDATE, JwsAuthority, JwsUse, KeyType, ProofKey};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{EntryId, LeaseId, SpiffeId};
use crate::ledger::{self, Committed, Row};
use crate::policy::{self, Permit};
use crate::secret::KeyBytes;

pub use self::proof::{MAX_PROOF_SECONDS, ProofRefusal, Proven};
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
    Ok(MintedWit {
        svid: WitSvid {
            id: lease,
            spiffe_id: grant.spiffe_id,
            hint: grant.hint,
            token,
            key: key.into_private_jwk()?,
            issued_at: from_unix_seconds(unix_seconds(now)),
            not_after,
        },
        issuer: authority.kid().to_owned(),
        entry: grant.entry,
    })
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

/// A token that nobody may see before its lease is in the ledger. Dropping it is an issuance that never happened.
#[must_use = "commit its row, then release it"]
pub struct MintedWit {
    svid: WitSvid,
    issuer: String,
    entry: EntryId,
}

impl MintedWit {
    /// The lease: the `jti`.
    pub fn id(&self) -> LeaseId {
        self.svid.id
    }

    /// The `exp`.
    pub fn not_after(&self) -> SystemTime {
        self.svid.not_after
    }

    /// SHA-256 of the token, for the audit log.
    pub fn token_sha256(&self) -> digest::Digest {
        digest::digest(&digest::SHA256, self.svid.token.as_bytes())
    }

    /// The row to commit for the process that will hold it.
    pub fn row(&self, process: ProcessKey, uid: u32) -> Row {
        Row {
            id: self.svid.id,
            kind: ledger::Kind::Wit,
            issuer: self.issuer.clone(),
            spiffe_id: self.svid.spiffe_id.to_string(),
            entry: self.entry.clone(),
            process,
            uid,
            audience: Vec::new(),
            status: None,
            task: None,
            issued_at: unix_seconds(self.svid.issued_at),
            not_after: unix_seconds(self.svid.not_after),
            state: ledger::State::Live,
        }
    }

    /// Opens it, if that commit wrote its lease; else it is gone for good.
    pub fn release(self, committed: &Committed) -> Option<WitSvid> {
        committed.covers(self.svid.id).then_some(self.svid)
    }
}

impl fmt::Debug for MintedWit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MintedWit({})", self.svid.id)
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
