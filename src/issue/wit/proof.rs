//! Proofs of possession: the WIMSE Workload Proof Token (draft-ietf-wimse-wpt-01), a short-lived JWS by the key in
//! the WIT-SVID, over a hash of that very token and for one audience.
//!
//! A proof may be shown more than once while it lasts: whoever wants it once only keeps [`Proven::proof_id`] until
//! the proof has expired (WIT-35), or asks [`crate::proof::wpt::check`], which does that.

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::super::compact::{NoTime, Parts, text, time};
use super::validate::{MAX_TOKEN_BYTES, Unproven};
use crate::authority::JwsAlgorithm;
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::SpiffeId;
use crate::json;

/// A workload that has shown a good WIT-SVID and that it has its key.
#[derive(Clone, Debug)]
pub struct Proven {
    /// Who it is.
    pub spiffe_id: SpiffeId,
    /// The claims of the WIT-SVID.
    pub claims: Map<String, Value>,
    /// The `jti` of the proof.
    pub proof_id: String,
    /// When the proof ends.
    pub proof_ends: SystemTime,
}

/// What a proof must be about, besides its WIT-SVID.
pub struct About<'a> {
    /// Whether one audience of the proof is us.
    pub is_us: &'a dyn Fn(&str) -> bool,
    /// The access token that came with it.
    pub access_token: Option<&'a str>,
}

impl fmt::Debug for About<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("About([..])")
    }
}

impl Unproven {
    /// Checks a proof made for `audience` (ours), with no other token beside it.
    ///
    /// # Errors
    /// The first [`ProofRefusal`].
    pub fn prove(&self, proof: &str, audience: &str, now: SystemTime) -> Result<Proven, ProofRefusal> {
        let is_us = |one: &str| !audience.is_empty() && one == audience;
        self.prove_about(proof, &About { is_us: &is_us, access_token: None }, now)
    }

    /// Checks a proof made for us, and for the access token that was shown with it.
    ///
    /// # Errors
    /// The first [`ProofRefusal`].
    pub fn prove_about(
        &self,
        proof: &str,
        about: &About<'_>,
        now: SystemTime,
    ) -> Result<Proven, ProofRefusal> {
        let claims = self.signed_claims(proof)?;
        let names = |name: &str, token: &str| text(&claims, name) == Some(&token_hash(token));
        if !names("wth", &self.token) {
            return Err(ProofRefusal::OtherToken);
        }
        let is_whole = match about.access_token {
            Some(token) => names("ath", token),
            None => !claims.contains_key("ath"),
        };
        // We are shown no other token that these could be about.
        if !is_whole || ["tth", "oth"].iter().any(|name| claims.contains_key(*name)) {
            return Err(ProofRefusal::OtherToken);
        }
        if !is_for(&claims, about.is_us) {
            return Err(ProofRefusal::Audience);
        }
        let ends = times(&claims, unix_seconds(now))?;
        let proof_id = text(&claims, "jti").filter(|jti| !jti.is_empty()).ok_or(ProofRefusal::Malformed)?;
        Ok(Proven {
            spiffe_id: self.spiffe_id.clone(),
            claims: self.claims.clone(),
            proof_id: proof_id.to_owned(),
            proof_ends: from_unix_seconds(ends),
        })
    }

    /// What the token's key signed as a proof.
    fn signed_claims(&self, proof: &str) -> Result<Map<String, Value>, ProofRefusal> {
        if proof.len() > MAX_TOKEN_BYTES {
            return Err(ProofRefusal::Malformed);
        }
        let parts = Parts::split(proof).ok_or(ProofRefusal::Malformed)?;
        let header = json::object(&parts.header).ok_or(ProofRefusal::Malformed)?;
        if text(&header, "typ") != Some(TYP) || header.contains_key("crit") {
            return Err(ProofRefusal::Type);
        }
        let algorithm = text(&header, "alg").and_then(JwsAlgorithm::parse);
        if algorithm != Some(self.key.algorithm()) {
            return Err(ProofRefusal::Key);
        }
        let verified = self.key.verify(parts.signed.as_bytes(), &parts.signature);
        verified.map_err(|_refusal| ProofRefusal::Key)?;
        json::object(&parts.claims).ok_or(ProofRefusal::Malformed)
    }
}

/// How a proof names a token (RFC 9449 §4.1 for `ath`, and so for the others): base64url of its SHA-256.
pub(crate) fn token_hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes()))
}

/// Why a proof was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProofRefusal {
    /// Not a compact JWS of JSON objects with the claims it must have.
    #[error("proof is malformed")]
    Malformed,
    /// `typ` is not `wpt+jwt`, or a critical header is not understood.
    #[error("proof is not of type wpt+jwt")]
    Type,
    /// The key in the WIT-SVID did not sign it.
    #[error("proof is not by the token's key")]
    Key,
    /// It is about another WIT-SVID, or about further tokens that were not shown.
    #[error("proof is about another token")]
    OtherToken,
    /// It was made for somebody else.
    #[error("proof is for another audience")]
    Audience,
    /// It has expired, or would last longer than [`MAX_PROOF_SECONDS`].
    #[error("proof has expired or lasts too long")]
    Times,
}

/// One string, or a list that has one of ours.
fn is_for(claims: &Map<String, Value>, is_us: &dyn Fn(&str) -> bool) -> bool {
    match claims.get("aud") {
        Some(Value::String(one)) => is_us(one),
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).any(is_us),
        _ => false,
    }
}

/// WIT-34: a proof whose end is far away is as good as one without an end. Gives the end.
fn times(claims: &Map<String, Value>, now: u64) -> Result<u64, ProofRefusal> {
    let time = |name| time(claims, name).map_err(|NoTime| ProofRefusal::Times);
    let expiry = time("exp")?.ok_or(ProofRefusal::Times)?;
    let begun = time("nbf")?.is_none_or(|from| from <= now);
    let lasts = now < expiry && expiry - now <= MAX_PROOF_SECONDS;
    if begun && lasts { Ok(expiry) } else { Err(ProofRefusal::Times) }
}

/// The furthest end of a proof, in seconds from now.
pub const MAX_PROOF_SECONDS: u64 = 300;
const TYP: &str = "wpt+jwt";
