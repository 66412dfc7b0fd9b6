//! DPoP proofs (RFC 9449 §4.3) for a bound access token.

use serde_json::{Map, Value};

use super::replay::{Kind, Replays};
use super::target::Target;
use super::{Holder, LONGEST, Refusal, Request, Rules, Shown};
use crate::authority::{ConfirmationKey, JwsAlgorithm, jwk_thumbprint};
use crate::clock::unix_seconds;
use crate::issue::compact::{NoTime, Parts, text, time};
use crate::issue::wit::token_hash;
use crate::json;

/// Whether there is one proof, by the key with that thumbprint, for this request and this token, not used before.
pub(super) fn check(
    shown: &Shown<'_>,
    jkt: &str,
    request: &Request<'_>,
    rules: &Rules,
    replays: &mut Replays,
) -> Result<Holder, Refusal> {
    let target = Target::of_request(request.url).ok_or(Refusal::Url)?;
    let proof = match shown.proofs {
        [] => return Err(Refusal::NoProof),
        [one] if one.len() <= MAX_PROOF_BYTES => *one,
        [_] => return Err(Refusal::Malformed),
        _ => return Err(Refusal::Several),
    };
    let (thumbprint, claims) = signed_claims(proof, rules)?;
    if text(&claims, "htm") != Some(request.method) {
        return Err(Refusal::Method);
    }
    if text(&claims, "htu").and_then(Target::stated) != Some(target) {
        return Err(Refusal::Target);
    }
    let now = unix_seconds(request.now);
    let (issued, past) = issued(&claims, rules, now)?;
    if text(&claims, "ath") != Some(&token_hash(shown.token)) {
        return Err(Refusal::OtherToken);
    }
    if thumbprint != jkt {
        return Err(Refusal::OtherKey);
    }
    let proof_id = text(&claims, "jti").filter(|jti| (1..=MAX_JTI_BYTES).contains(&jti.len()));
    let proof_id = proof_id.ok_or(Refusal::Malformed)?;
    // Last, so that nobody fills the memory with what is refused anyway.
    let until = issued.saturating_add(replays.at_least(past));
    replays.first(Kind::Dpop, &thumbprint, proof_id, until, now)?;
    Ok(Holder::Key { thumbprint, proof_id: proof_id.to_owned() })
}

/// What was signed by the key that the proof brings, and that key's thumbprint. Nothing says yet whose key it is.
fn signed_claims(proof: &str, rules: &Rules) -> Result<(String, Map<String, Value>), Refusal> {
    let parts = Parts::split(proof).ok_or(Refusal::Malformed)?;
    let header = json::object(&parts.header).ok_or(Refusal::Malformed)?;
    if text(&header, "typ") != Some(TYP) {
        return Err(Refusal::Type);
    }
    if !header.keys().all(|name| HEADER.contains(&name.as_str())) {
        return Err(Refusal::Header);
    }
    let algorithm = text(&header, "alg").and_then(JwsAlgorithm::parse);
    let algorithm = algorithm.filter(|one| rules.algorithms.contains(one)).ok_or(Refusal::Algorithm)?;
    let jwk = header.get("jwk").ok_or(Refusal::Header)?;
    let key = ConfirmationKey::presented(jwk, algorithm)?;
    let verified = key.verify(parts.signed.as_bytes(), &parts.signature);
    verified.map_err(|_refusal| Refusal::Signature)?;
    let thumbprint = jwk_thumbprint(jwk).ok_or(Refusal::Header)?;
    Ok((thumbprint, json::object(&parts.claims).ok_or(Refusal::Malformed)?))
}

/// When the proof was made, and for how long from then it is taken, if that is not over and its time has come.
fn issued(claims: &Map<String, Value>, rules: &Rules, now: u64) -> Result<(u64, u64), Refusal> {
    let at = |name| time(claims, name).map_err(|NoTime| Refusal::Malformed);
    let (issued, from, expiry) = (at("iat")?.ok_or(Refusal::Malformed)?, at("nbf")?, at("exp")?);
    let (past, ahead) = (rules.past.min(LONGEST).as_secs(), rules.ahead.min(LONGEST).as_secs());
    if issued.max(from.unwrap_or_default()) > now.saturating_add(ahead) {
        return Err(Refusal::Future);
    }
    if now > issued.saturating_add(past) || expiry.is_some_and(|expiry| now >= expiry) {
        return Err(Refusal::Stale);
    }
    Ok((issued, past))
}

const TYP: &str = "dpop+jwt";
/// Members that a header may have: no other way of naming a key, nothing critical.
const HEADER: [&str; 4] = ["alg", "jwk", "kid", "typ"];
/// Longest proof that is looked at, in bytes.
pub const MAX_PROOF_BYTES: usize = 8 * 1024;
pub(super) const MAX_JTI_BYTES: usize = 256;
