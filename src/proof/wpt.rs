//! Workload Proof Tokens (draft-ietf-wimse-wpt-01) for one HTTP request: [`Unproven::prove`] with the request's own URL
//! for an audience, and each proof once.

use super::replay::{Kind, Replays, Used};
use super::target::Target;
use super::{Request, dpop};
use crate::authority::jwk_thumbprint;
use crate::clock::unix_seconds;
use crate::issue::wit::{About, ProofRefusal, Proven, Unproven};

/// What came with a WIT-SVID.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// The values of all `Workload-Proof-Token` header fields.
    pub proofs: &'a [&'a str],
    /// The access token of the same request, if there is one: the proof must be for it too.
    pub access_token: Option<&'a str>,
}

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown([..])")
    }
}

/// Whether there is one proof, by the token's key, for this request, not used before.
///
/// # Errors
/// The first [`Refusal`]. Only a proof with no other fault is remembered as used.
pub fn check(
    wit: &Unproven,
    shown: &Shown<'_>,
    request: &Request<'_>,
    replays: &mut Replays,
) -> Result<Proven, Refusal> {
    let target = Target::of_request(request.url).ok_or(Refusal::Url)?;
    let [proof] = shown.proofs else { return Err(Refusal::Number) };
    let is_us = |audience: &str| Target::stated(audience).as_ref() == Some(&target);
    let about = About { is_us: &is_us, access_token: shown.access_token };
    let proven = wit.prove_about(proof, &about, request.now)?;
    if proven.proof_id.len() > dpop::MAX_JTI_BYTES {
        return Err(ProofRefusal::Malformed.into());
    }
    let jwk = proven.claims.get("cnf").and_then(|cnf| cnf.get("jwk"));
    let key = jwk.and_then(jwk_thumbprint).ok_or(ProofRefusal::Key)?;
    // It is taken before its end, not at it.
    let until = unix_seconds(proven.proof_ends).saturating_sub(1);
    replays.first(Kind::Wpt, &key, &proven.proof_id, until, unix_seconds(request.now))?;
    Ok(proven)
}

/// Why whoever showed a WIT-SVID did not prove to be its workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The URL of the request is none: the receiver's own mistake.
    #[error("the request's own url is no http or https url")]
    Url,
    /// Not exactly one proof.
    #[error("there is not exactly one proof")]
    Number,
    /// The proof is not good.
    #[error(transparent)]
    Proof(#[from] ProofRefusal),
    /// It is not the first time.
    #[error(transparent)]
    Used(#[from] Used),
}

impl Refusal {
    /// What an HTTP server answers. The draft wants 400 where the client is to blame: a 401 would have to come with a
    /// `WWW-Authenticate`, and there is none for these.
    pub fn status(self) -> u16 {
        match self {
            Self::Number | Self::Proof(_) | Self::Used(Used::Again) => 400,
            Self::Url => 500,
            Self::Used(Used::Full) => 503,
        }
    }
}
