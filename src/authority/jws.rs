//! A JWS authority, for JWT-SVIDs or for WIT-SVIDs: signs compact JWS with the header `alg kid typ` and publishes
//! its public JWK. A key serves one of the two and never the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Value, json};

use super::keys::{CryptoError, KeyType, SigningKey};
use super::{AuthorityError, State};
use crate::id::TrustDomain;

/// What a JWS key signs.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum JwsUse {
    /// JWT-SVIDs.
    JwtSvid,
    /// WIT-SVIDs.
    WitSvid,
}

impl JwsUse {
    /// The `use` of the public JWK.
    pub fn jwk_use(self) -> &'static str {
        match self {
            Self::JwtSvid => "jwt-svid",
            Self::WitSvid => "wit-svid",
        }
    }

    /// The `typ` of the header.
    pub fn typ(self) -> &'static str {
        match self {
            Self::JwtSvid => "JWT",
            Self::WitSvid => "wit+jwt",
        }
    }
}

/// A signing key for tokens, and its state. Clones share the key.
#[derive(Clone, Debug)]
pub struct JwsAuthority {
    key: Arc<dyn SigningKey>,
    usage: JwsUse,
    trust_domain: TrustDomain,
    kid: String,
    /// Encoded once: it is the same for every token.
    header: String,
    jwk: Value,
    not_before: SystemTime,
    not_after: SystemTime,
    state: State,
}

impl JwsAuthority {
    pub(super) fn assemble(
        key: Arc<dyn SigningKey>,
        usage: JwsUse,
        trust_domain: TrustDomain,
        validity: (SystemTime, SystemTime),
        state: State,
    ) -> Result<Self, AuthorityError> {
        let members = public_members(key.as_ref())?;
        let kid = thumbprint(&members)?;
        let header = serde_json::to_vec(
            &json!({ "alg": key.key_type().jws_algorithm(), "kid": kid.as_str(), "typ": usage.typ() }),
        )?;
        let mut jwk = members;
        jwk.insert("use", usage.jwk_use().to_owned());
        jwk.insert("kid", kid.clone());
        let jwk = serde_json::to_value(jwk)?;
        let header = URL_SAFE_NO_PAD.encode(header);
        let (not_before, not_after) = validity;
        Ok(Self { key, usage, trust_domain, kid, header, jwk, not_before, not_after, state })
    }

    /// The same key in another state.
    pub(super) fn in_state(&self, state: State) -> Self {
        Self { state, ..self.clone() }
    }

    /// What it signs.
    pub fn usage(&self) -> JwsUse {
        self.usage
    }

    /// Key identifier: the RFC 7638 thumbprint of the public key, so that no two keys share one.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The JWS `alg` of its tokens.
    pub fn algorithm(&self) -> &'static str {
        self.key.key_type().jws_algorithm()
    }

    /// The type of its key.
    pub fn key_type(&self) -> KeyType {
        self.key.key_type()
    }

    /// The public JWK: key members, `use`, `kid`.
    pub fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Start of its validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of its validity: no token outlives it.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Where it stands in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Signs claims, in the order they serialise; compact JWS.
    ///
    /// # Errors
    /// [`AuthorityError::Claims`] when they are not JSON, [`AuthorityError::Crypto`] when signing fails.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, AuthorityError> {
        self.sign_under(self.header.clone(), claims)
    }

    /// As [`Self::sign`], with another `typ`: for what is no SVID and must not pass for one.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn sign_as(&self, typ: &str, claims: &impl Serialize) -> Result<String, AuthorityError> {
        let header = json!({ "alg": self.algorithm(), "kid": self.kid.as_str(), "typ": typ });
        self.sign_under(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header)?), claims)
    }

    fn sign_under(&self, mut token: String, claims: &impl Serialize) -> Result<String, AuthorityError> {
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut token);
        let signature = self.key.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

/// The `kid` of a key: what it will be called once it is an authority.
pub(super) fn kid_of(key: &dyn SigningKey) -> Result<String, AuthorityError> {
    thumbprint(&public_members(key)?)
}

/// Exactly the members that RFC 7638 §3.2 hashes, in its order.
pub(super) type Members = BTreeMap<&'static str, String>;

pub(super) fn public_members(key: &dyn SigningKey) -> Result<Members, CryptoError> {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    if let Some((n, e)) = key.rsa_components() {
        return Ok(Members::from([("kty", "RSA".to_owned()), ("n", encode(&n)), ("e", encode(&e))]));
    }
    let (curve, width) = match key.key_type() {
        KeyType::EcP256 => ("P-256", 32),
        KeyType::EcP384 => ("P-384", 48),
        KeyType::Rsa2048 => return Err(CryptoError),
    };
    // 0x04, then both coordinates at full width.
    let (x, y) =
        key.public_key().get(1..).and_then(|point| point.split_at_checked(width)).ok_or(CryptoError)?;
    Ok(Members::from([
        ("kty", "EC".to_owned()),
        ("crv", curve.to_owned()),
        ("x", encode(x)),
        ("y", encode(y)),
    ]))
}

pub(super) fn thumbprint(members: &Members) -> Result<String, AuthorityError> {
    // Sorted by member name and without spaces, as RFC 7638 §3 wants it.
    let canonical = serde_json::to_vec(members)?;
    Ok(URL_SAFE_NO_PAD.encode(digest(&SHA256, &canonical)))
}
