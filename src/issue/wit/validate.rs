//! Strict validation of WIT-SVIDs: size, shape, header, subject, confirmation key, issuer's key, signature, times,
//! denylist. As for JWT-SVIDs the trust domain of `sub` picks the bundle and `kid` the key, and only keys whose
//! `use` is `wit-svid` count (WIT-32).
//!
//! What comes out is [`Unproven`]: the token is good, and nothing is known of who showed it (WIT-25). The way on is
//! [`Unproven::prove`].

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::super::compact::{NoTime, Parts, text, time};
use crate::authority::{ConfirmationKey, JwsAlgorithm, JwsUse, JwtBundles, KeyRefusal};
use crate::clock::unix_seconds;
use crate::id::{LeaseId, SpiffeId};
use crate::json;

/// What tokens are held to.
pub struct Rules<'a> {
    /// Keys by trust domain.
    pub bundles: &'a JwtBundles,
    /// Asked with the `jti` when that could be a lease of ours.
    pub revoked: &'a dyn Fn(LeaseId) -> bool,
    /// The longest time from `nbf` to `exp`, where a token has an `nbf` (WIT-19).
    pub longest: Option<Duration>,
    /// The moment of validation.
    pub now: SystemTime,
}

impl fmt::Debug for Rules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Checks a token. Neither `exp` nor `nbf` has any leeway: an identity does not outlast its end. `iat` limits
/// nothing (WIT-20), and a `jti` may be seen any number of times (WIT-15).
///
/// # Errors
/// The first [`WitRefusal`] in the order of the module's description.
pub fn validate(token: &str, rules: &Rules<'_>) -> Result<Unproven, WitRefusal> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(WitRefusal::TooLong);
    }
    let parts = Parts::split(token).ok_or(WitRefusal::Shape)?;
    let (algorithm, kid) = header(&json::object(&parts.header).ok_or(WitRefusal::Header)?)?;
    let claims = json::object(&parts.claims).ok_or(WitRefusal::Claims)?;
    let spiffe_id = text(&claims, "sub")
        .and_then(|sub| SpiffeId::parse(sub.as_bytes()).ok())
        .ok_or(WitRefusal::Subject)?;
    if claims.contains_key("aud") {
        return Err(WitRefusal::Audience);
    }
    let key = confirmation(&claims)?;
    let bundle = rules.bundles.get(spiffe_id.trust_domain()).ok_or(WitRefusal::TrustDomain)?;
    let issuer = bundle.key_for(JwsUse::WitSvid, &kid).ok_or(WitRefusal::UnknownKey)?;
    issuer.verify(algorithm, parts.signed.as_bytes(), &parts.signature)?;
    times(&claims, rules)?;
    match claims.get("jti").map(Value::as_str) {
        Some(None) => return Err(WitRefusal::Claims),
        Some(Some(jti)) if jti.parse().is_ok_and(rules.revoked) => return Err(WitRefusal::Revoked),
        _ => {}
    }
    Ok(Unproven { token: token.to_owned(), spiffe_id, claims, key })
}

/// A good token in unknown hands. Deliberately not an identity: see [`Unproven::prove`].
#[derive(Clone, Debug)]
pub struct Unproven {
    pub(super) token: String,
    pub(super) spiffe_id: SpiffeId,
    pub(super) claims: Map<String, Value>,
    pub(super) key: ConfirmationKey,
}

impl Unproven {
    /// Whom the token names. For messages only: anybody can show a token.
    pub fn named(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The key whose owner the token is about.
    pub fn key(&self) -> &ConfirmationKey {
        &self.key
    }
}

/// Why a token was refused: for logs, tests and people who look at their own tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WitRefusal {
    /// Over [`MAX_TOKEN_BYTES`].
    #[error("token is too long")]
    TooLong,
    /// Not three segments of canonical, unpadded base64url.
    #[error("not a compact jws")]
    Shape,
    /// The header is not a JSON object, or has a member twice.
    #[error("header is malformed")]
    Header,
    /// `typ` is not exactly `wit+jwt`.
    #[error("not of type wit+jwt")]
    Type,
    /// `alg` is missing, not one of the nine, or does not fit the key.
    #[error("algorithm is not allowed")]
    Algorithm,
    /// No `kid`, or an empty one.
    #[error("names no key")]
    NoKeyId,
    /// `crit` asks for something that we do not know: that is everything.
    #[error("has a critical header that is not understood")]
    Critical,
    /// The claims are not a JSON object, have a member twice, or one of the wrong type.
    #[error("claims are malformed")]
    Claims,
    /// `sub` is missing or not a SPIFFE ID.
    #[error("subject is not a spiffe id")]
    Subject,
    /// There is an `aud`, even an empty one.
    #[error("has an audience, which belongs into the proof")]
    Audience,
    /// No `cnf.jwk` with a public key and an `alg` that fits it.
    #[error("confirmation key is missing, not public, or does not fit its algorithm")]
    Confirmation,
    /// There is no bundle for the trust domain of `sub`.
    #[error("trust domain is not known")]
    TrustDomain,
    /// The bundle has no such key for WIT-SVIDs.
    #[error("key is not known")]
    UnknownKey,
    /// The signature is wrong.
    #[error("signature does not verify")]
    Signature,
    /// `exp` is missing, a time is not an integer in range, or the lifetime is over the limit.
    #[error("times are missing or out of range")]
    Times,
    /// `exp` has come.
    #[error("token has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("token is not valid yet")]
    NotYetValid,
    /// The lease was taken back.
    #[error("token is revoked")]
    Revoked,
}

impl From<KeyRefusal> for WitRefusal {
    fn from(refusal: KeyRefusal) -> Self {
        match refusal {
            KeyRefusal::Algorithm => Self::Algorithm,
            KeyRefusal::Signature => Self::Signature,
        }
    }
}

/// Members that nobody knows are passed over (WIT-08), which is safe because only these four mean anything here.
fn header(members: &Map<String, Value>) -> Result<(JwsAlgorithm, String), WitRefusal> {
    if text(members, "typ") != Some(JwsUse::WitSvid.typ()) {
        return Err(WitRefusal::Type);
    }
    let algorithm = text(members, "alg").and_then(JwsAlgorithm::parse).ok_or(WitRefusal::Algorithm)?;
    let kid = text(members, "kid").filter(|kid| !kid.is_empty()).ok_or(WitRefusal::NoKeyId)?;
    if members.contains_key("crit") {
        return Err(WitRefusal::Critical);
    }
    Ok((algorithm, kid.to_owned()))
}

/// `cnf.jwk`; other ways of naming a key (`kid`, `jku`, `jwe`) are none here (WIT-12).
fn confirmation(claims: &Map<String, Value>) -> Result<ConfirmationKey, WitRefusal> {
    let jwk = claims.get("cnf").and_then(|cnf| cnf.get("jwk")).ok_or(WitRefusal::Confirmation)?;
    ConfirmationKey::from_jwk(jwk).map_err(|_fault| WitRefusal::Confirmation)
}

fn times(claims: &Map<String, Value>, rules: &Rules<'_>) -> Result<(), WitRefusal> {
    let time = |name| time(claims, name).map_err(|NoTime| WitRefusal::Times);
    let (expiry, not_before, _issued_at) = (time("exp")?, time("nbf")?, time("iat")?);
    let expiry = expiry.ok_or(WitRefusal::Times)?;
    let now = unix_seconds(rules.now);
    if now >= expiry {
        return Err(WitRefusal::Expired);
    }
    let Some(from) = not_before else { return Ok(()) };
    if rules.longest.is_some_and(|longest| expiry.saturating_sub(from) > longest.as_secs()) {
        return Err(WitRefusal::Times);
    }
    if from > now { Err(WitRefusal::NotYetValid) } else { Ok(()) }
}

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
