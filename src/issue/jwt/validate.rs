//! Strict validation of JWT-SVIDs, in the order of conformance 1.7: size, shape, header, subject, key,
//! signature, times, audience, denylist. Nothing in the token chooses how it is checked: the trust domain of
//! `sub` picks the bundle, `kid` picks the key, and the key's type says which algorithms it may check.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::super::compact::{NoTime, Parts, text, time};
use crate::authority::{JwsAlgorithm, JwsUse, JwtBundles, KeyRefusal};
use crate::clock::unix_seconds;
use crate::config;
use crate::id::{LeaseId, SpiffeId, TrustDomain};
use crate::json;

/// Checks a token for one audience. `revoked` is asked with the `jti` when that is a lease of ours.
///
/// `exp` has no leeway: an identity does not outlast its end. `nbf`, which we never write, has
/// [`NBF_LEEWAY_SECONDS`]. `iat` never limits validity by itself (RFC 7519 §4.1.6).
///
/// # Errors
/// The first [`JwtRefusal`] in the order of the module's description.
pub fn validate(
    token: &str,
    audience: &str,
    bundles: &JwtBundles,
    revoked: &dyn Fn(LeaseId) -> bool,
    now: SystemTime,
) -> Result<ValidatedJwt, JwtRefusal> {
    check(token, Some(audience), bundles, revoked, now)
}

/// As [`validate`], for whoever wants to know what a token says and not whether it is for him: every audience
/// is good enough.
///
/// # Errors
/// As [`validate`].
pub fn inspect(
    token: &str,
    bundles: &JwtBundles,
    revoked: &dyn Fn(LeaseId) -> bool,
    now: SystemTime,
) -> Result<ValidatedJwt, JwtRefusal> {
    check(token, None, bundles, revoked, now)
}

fn check(
    token: &str,
    audience: Option<&str>,
    bundles: &JwtBundles,
    revoked: &dyn Fn(LeaseId) -> bool,
    now: SystemTime,
) -> Result<ValidatedJwt, JwtRefusal> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(JwtRefusal::TooLong);
    }
    let parts = Parts::split(token).ok_or(JwtRefusal::Shape)?;
    let (algorithm, kid) = header(&json::object(&parts.header).ok_or(JwtRefusal::Header)?)?;
    let mut claims = json::object(&parts.claims).ok_or(JwtRefusal::Claims)?;
    let spiffe_id = text(&claims, "sub")
        .and_then(|sub| SpiffeId::parse(sub.as_bytes()).ok())
        .ok_or(JwtRefusal::Subject)?;
    let bundle = bundles.get(spiffe_id.trust_domain()).ok_or(JwtRefusal::TrustDomain)?;
    let key = bundle.key_for(JwsUse::JwtSvid, &kid).ok_or(JwtRefusal::UnknownKey)?;
    key.verify(algorithm, parts.signed.as_bytes(), &parts.signature)?;
    times(&claims, unix_seconds(now))?;
    let audiences = audiences(&claims)?;
    // An empty expectation must never match: go-spiffe then takes a token for nobody.
    let wrong = |audience: &str| audience.is_empty() || !audiences.iter().any(|one| one == audience);
    if audience.is_some_and(wrong) {
        return Err(JwtRefusal::Audience);
    }
    match claims.get("jti").map(Value::as_str) {
        Some(None) => return Err(JwtRefusal::Claims),
        Some(Some(jti)) if jti.parse().is_ok_and(revoked) => return Err(JwtRefusal::Revoked),
        _ => {}
    }
    claims.insert("aud".to_owned(), audiences.into());
    Ok(ValidatedJwt { spiffe_id, claims })
}

/// What a valid token says.
#[derive(Clone, Debug)]
pub struct ValidatedJwt {
    /// The `sub`.
    pub spiffe_id: SpiffeId,
    /// All claims; `aud` is always a list.
    pub claims: Map<String, Value>,
}

impl ValidatedJwt {
    /// The claims to pass on: all of them for our own trust domain, only the registered ones for another,
    /// whose private names may mean something else here.
    pub fn into_claims(self, own: &TrustDomain) -> Map<String, Value> {
        let keep_all = self.spiffe_id.trust_domain() == own;
        self.claims.into_iter().filter(|(name, _)| keep_all || REGISTERED.contains(&name.as_str())).collect()
    }
}

/// Why a token was refused: for logs and tests. Callers are told no more than that it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JwtRefusal {
    /// Over [`MAX_TOKEN_BYTES`].
    #[error("token is too long")]
    TooLong,
    /// Not three segments of canonical, unpadded base64url.
    #[error("not a compact jws")]
    Shape,
    /// The header is not a JSON object, has a member twice, or has one other than `alg`, `kid`, `typ`.
    #[error("header is malformed or has a member other than alg, kid and typ")]
    Header,
    /// `typ` is neither absent nor `JWT` nor `JOSE`.
    #[error("not of type jwt")]
    Type,
    /// `alg` is missing, not one of the nine, or does not fit the key.
    #[error("algorithm is not allowed")]
    Algorithm,
    /// No `kid`, or an empty one.
    #[error("names no key")]
    NoKeyId,
    /// The claims are not a JSON object, have a member twice, or one of the wrong type.
    #[error("claims are malformed")]
    Claims,
    /// `sub` is missing or not a SPIFFE ID.
    #[error("subject is not a spiffe id")]
    Subject,
    /// There is no bundle for the trust domain of `sub`.
    #[error("trust domain is not known")]
    TrustDomain,
    /// The bundle has no such key.
    #[error("key is not known")]
    UnknownKey,
    /// The signature is wrong.
    #[error("signature does not verify")]
    Signature,
    /// `exp` is missing, or a time is not an integer in range, or the lifetime exceeds
    /// [`MAX_LIFETIME_SECONDS`].
    #[error("times are missing or out of range")]
    Times,
    /// `exp` has come.
    #[error("token has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("token is not valid yet")]
    NotYetValid,
    /// `aud` is missing, malformed, or does not hold the audience asked for.
    #[error("token is for another audience")]
    Audience,
    /// The lease was taken back.
    #[error("token is revoked")]
    Revoked,
}

impl From<KeyRefusal> for JwtRefusal {
    fn from(refusal: KeyRefusal) -> Self {
        match refusal {
            KeyRefusal::Algorithm => Self::Algorithm,
            KeyRefusal::Signature => Self::Signature,
        }
    }
}

fn header(members: &Map<String, Value>) -> Result<(JwsAlgorithm, String), JwtRefusal> {
    if !members.keys().all(|name| matches!(name.as_str(), "alg" | "kid" | "typ")) {
        return Err(JwtRefusal::Header);
    }
    if members.get("typ").is_some_and(|kind| !matches!(kind.as_str(), Some("JWT" | "JOSE"))) {
        return Err(JwtRefusal::Type);
    }
    let algorithm = text(members, "alg").and_then(JwsAlgorithm::parse).ok_or(JwtRefusal::Algorithm)?;
    let kid = text(members, "kid").filter(|kid| !kid.is_empty()).ok_or(JwtRefusal::NoKeyId)?;
    Ok((algorithm, kid.to_owned()))
}

fn times(claims: &Map<String, Value>, now: u64) -> Result<(), JwtRefusal> {
    let time = |name| time(claims, name).map_err(|NoTime| JwtRefusal::Times);
    let (expiry, not_before, issued_at) = (time("exp")?, time("nbf")?, time("iat")?);
    let expiry = expiry.ok_or(JwtRefusal::Times)?;
    if issued_at.is_some_and(|at| expiry.saturating_sub(at) > MAX_LIFETIME_SECONDS) {
        return Err(JwtRefusal::Times);
    }
    if now >= expiry {
        return Err(JwtRefusal::Expired);
    }
    if not_before.is_some_and(|from| from > now.saturating_add(NBF_LEEWAY_SECONDS)) {
        return Err(JwtRefusal::NotYetValid);
    }
    Ok(())
}

/// One string, or a list of 1 to [`MAX_AUDIENCES`] strings.
fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, JwtRefusal> {
    match claims.get("aud") {
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(several)) if several.len() <= MAX_AUDIENCES => several
            .iter()
            .map(|one| one.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or(JwtRefusal::Audience),
        _ => Err(JwtRefusal::Audience),
    }
}

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Most entries of `aud`: as many as a token of ours can have.
pub const MAX_AUDIENCES: usize = config::MAX_AUDIENCES as usize;
/// Longest time from `iat` to `exp`.
pub const MAX_LIFETIME_SECONDS: u64 = 24 * 60 * 60;
/// How far in the future `nbf` may be.
pub const NBF_LEEWAY_SECONDS: u64 = 10;
/// RFC 7519 §4.1.
const REGISTERED: [&str; 7] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"];
