//! Public keys for checking JWT-SVIDs, and the bundles that hold them. A key is chosen by trust domain and
//! `kid` alone; its type, never the token's header, decides which algorithms it may check.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, EcdsaVerificationAlgorithm,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{JwsAuthority, JwsUse};
use crate::id::TrustDomain;

/// The nine algorithms a JWT-SVID may use (JWT-SVID §2.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are those of RFC 7518")]
pub enum JwsAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

impl JwsAlgorithm {
    /// All nine.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// The `alg` value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    /// Reads an `alg` value, exactly as RFC 7518 spells it; `None` for every other, `none` and HMAC included.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::Es512 => return None,
        })
    }
}

/// Why a key did not vouch for a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyRefusal {
    /// The algorithm is not one for this type of key.
    #[error("algorithm does not fit the key")]
    Algorithm,
    /// The signature is not this key's over this message.
    #[error("signature does not verify")]
    Signature,
}

/// One public key of a bundle.
#[derive(Clone, Debug)]
pub struct JwtKey {
    kid: String,
    usage: Option<JwsUse>,
    material: Material,
}

#[derive(Clone, Debug)]
pub(super) enum Material {
    Curve { algorithm: JwsAlgorithm, key: Arc<ParsedPublicKey> },
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
}

impl JwtKey {
    /// Reads a JWK. `None` for a key that a JWT-SVID validator must skip: another `use`, no or an empty `kid`,
    /// a key type or curve outside RFC 7518's for the nine algorithms, a point off the curve, RSA under 2048
    /// bits.
    pub fn from_jwk(jwk: &Value) -> Option<Self> {
        (jwk.get("use").and_then(Value::as_str) == Some(JwsUse::JwtSvid.jwk_use()))
            .then(|| Self::read(jwk))
            .flatten()
    }

    /// As [`Self::from_jwk`], whatever the `use`.
    pub fn read(jwk: &Value) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let kid = text("kid").filter(|kid| !kid.is_empty())?.to_owned();
        let usage =
            [JwsUse::JwtSvid, JwsUse::WitSvid].into_iter().find(|one| text("use") == Some(one.jwk_use()));
        Some(Self { kid, usage, material: Material::read(jwk)? })
    }

    /// The key identifier.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Checks a JWS signature, given as raw bytes (R‖S for curves).
    ///
    /// # Errors
    /// [`KeyRefusal`]: the algorithm does not fit, or the signature is wrong.
    pub fn verify(
        &self,
        algorithm: JwsAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), KeyRefusal> {
        self.material.verify(algorithm, message, signature)
    }
}

impl Material {
    /// The key in a JWK, whatever it is for; `None` as [`JwtKey::from_jwk`] says.
    pub(super) fn read(jwk: &Value) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        match text("kty")? {
            "EC" => curve_key(text("crv")?, &bytes("x")?, &bytes("y")?),
            "RSA" => {
                let (modulus, exponent) = (bytes("n")?, bytes("e")?);
                // Leading zeros would let a short modulus pass for a long one.
                let sound = (MIN_RSA_BYTES..=MAX_RSA_BYTES).contains(&modulus.len())
                    && modulus.first().is_some_and(|first| *first >= 0x80)
                    && exponent.len() <= MAX_EXPONENT_BYTES;
                sound.then_some(Self::Rsa { modulus, exponent })
            }
            _ => None,
        }
    }

    /// Whether such a key can sign with that algorithm.
    pub(super) fn fits(&self, algorithm: JwsAlgorithm) -> bool {
        match self {
            Self::Curve { algorithm: own, .. } => *own == algorithm,
            Self::Rsa { .. } => algorithm.rsa().is_some(),
        }
    }

    pub(super) fn verify(
        &self,
        algorithm: JwsAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), KeyRefusal> {
        let checked = match self {
            Self::Curve { algorithm: own, key } if *own == algorithm => key.verify_sig(message, signature),
            Self::Curve { .. } => return Err(KeyRefusal::Algorithm),
            Self::Rsa { modulus, exponent } => {
                let parameters = algorithm.rsa().ok_or(KeyRefusal::Algorithm)?;
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(parameters, message, signature)
            }
        };
        checked.map_err(|aws_lc_rs::error::Unspecified| KeyRefusal::Signature)
    }
}

fn curve_key(curve: &str, x: &[u8], y: &[u8]) -> Option<Material> {
    let (algorithm, verifier, width): (_, &'static EcdsaVerificationAlgorithm, _) = match curve {
        "P-256" => (JwsAlgorithm::Es256, &ECDSA_P256_SHA256_FIXED, 32),
        "P-384" => (JwsAlgorithm::Es384, &ECDSA_P384_SHA384_FIXED, 48),
        "P-521" => (JwsAlgorithm::Es512, &ECDSA_P521_SHA512_FIXED, 66),
        _ => return None,
    };
    // RFC 7518 §6.2.1.2: full width, always.
    if x.len() != width || y.len() != width {
        return None;
    }
    let point = [&[0x04], x, y].concat();
    let key = Arc::new(ParsedPublicKey::new(verifier, point).ok()?);
    Some(Material::Curve { algorithm, key })
}

/// Why a document is not a JWK Set at all. A single bad key is skipped instead.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    /// Not JSON, or not an object.
    #[error("not a json object")]
    NotJson,
    /// No `keys`, or not an array. An empty array is a bundle: it trusts nobody.
    #[error("has no array `keys`")]
    NoKeys,
}

/// The JWT keys of one trust domain: what verifiers are sent, and the same keys ready to verify.
#[derive(Clone, Debug)]
pub struct JwtBundle {
    keys: BTreeMap<String, JwtKey>,
    json: Bytes,
}

impl JwtBundle {
    /// The bundle of our own authorities.
    pub fn of<'a>(authorities: impl IntoIterator<Item = &'a JwsAuthority>) -> Self {
        Self::from_jwks(authorities.into_iter().map(JwsAuthority::jwk).collect())
    }

    /// Reads a JWK Set or SPIFFE bundle document. Keys that are not usable for JWT-SVIDs are skipped; a `kid`
    /// that occurs twice is skipped both times, because nobody can say which key was meant.
    ///
    /// # Errors
    /// [`BundleError`] when the document as a whole says nothing.
    pub fn parse(document: &[u8]) -> Result<Self, BundleError> {
        let document: Value = serde_json::from_slice(document).ok().ok_or(BundleError::NotJson)?;
        let members = document.as_object().ok_or(BundleError::NotJson)?;
        let keys = members.get("keys").and_then(Value::as_array).ok_or(BundleError::NoKeys)?;
        Ok(Self::of_keys(JwsUse::JwtSvid, keys))
    }

    /// The bundle of those JWKs that have this `use`, skipping as [`Self::parse`]
    /// does. Only public members are kept.
    pub fn of_keys<'a>(wanted: JwsUse, jwks: impl IntoIterator<Item = &'a Value>) -> Self {
        let is_wanted = |jwk: &&Value| jwk.get("use").and_then(Value::as_str) == Some(wanted.jwk_use());
        let usable = |jwk: &&Value| JwtKey::read(jwk).is_some();
        Self::from_jwks(jwks.into_iter().filter(is_wanted).filter(usable).map(public_half).collect())
    }

    fn from_jwks(jwks: Vec<Value>) -> Self {
        let mut keys = BTreeMap::new();
        let mut twice = BTreeSet::new();
        for key in jwks.iter().filter_map(JwtKey::read) {
            if let Some(earlier) = keys.insert(key.kid.clone(), key) {
                twice.insert(earlier.kid);
            }
        }
        keys.retain(|kid, _| !twice.contains(kid));
        let kept = |jwk: &Value| jwk["kid"].as_str().is_some_and(|kid| keys.contains_key(kid));
        let jwks: Vec<Value> = jwks.into_iter().filter(kept).collect();
        let json = Bytes::from(crate::json::sorted(json!({ "keys": jwks })).to_string());
        Self { keys, json }
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// A plain JWK Set: `{"keys":[…]}` with nothing but keys of one `use`.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The key of that identifier, if it is for that use: a key of one kind of token vouches for no other.
    pub fn key_for(&self, usage: JwsUse, kid: &str) -> Option<&JwtKey> {
        self.keys.get(kid).filter(|key| key.usage == Some(usage))
    }

    /// The key of that identifier.
    pub fn key(&self, kid: &str) -> Option<&JwtKey> {
        self.keys.get(kid)
    }
}

/// Only members that are public and that readers know: a foreign document may carry anything.
fn public_half(jwk: &Value) -> Value {
    let members = ["kty", "use", "kid", "crv", "x", "y", "n", "e", "alg"];
    members.iter().filter_map(|name| Some(((*name).to_owned(), jwk.get(name)?.clone()))).collect()
}

/// JWT bundles by trust domain: the own one and those federated with.
#[derive(Clone, Debug, Default)]
pub struct JwtBundles(BTreeMap<TrustDomain, Arc<JwtBundle>>);

impl JwtBundles {
    /// Adds or replaces the bundle of a trust domain.
    pub fn insert(&mut self, trust_domain: TrustDomain, bundle: Arc<JwtBundle>) {
        self.0.insert(trust_domain, bundle);
    }

    /// The bundle of exactly that trust domain.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&JwtBundle> {
        self.0.get(trust_domain).map(Arc::as_ref)
    }
}

const MIN_RSA_BYTES: usize = 256;
const MAX_RSA_BYTES: usize = 1024;
const MAX_EXPONENT_BYTES: usize = 4;
