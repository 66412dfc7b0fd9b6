//! The key that a WIT-SVID binds a workload to: made for it once, handed out once; and the same key as verifiers
//! find it in the token (`cnf.jwk`, RFC 7800 §3.2).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::jwk::Material;
use super::jws::{Members, public_members, thumbprint};
use super::keys::{CryptoError, KeyType, SignatureForm, SigningPair};
use super::{JwsAlgorithm, KeyRefusal};
use crate::secret::KeyBytes;

/// A fresh key pair for one workload and entry.
#[derive(Debug)]
pub struct ProofKey {
    pair: SigningPair,
    public: Members,
}

impl ProofKey {
    /// Makes a new key pair, on a curve: an RSA key would cost more than everything else.
    ///
    /// # Errors
    /// [`CryptoError`] for RSA, or when the library cannot make one.
    pub fn generate(kind: KeyType) -> Result<Self, CryptoError> {
        if kind == KeyType::Rsa2048 {
            return Err(CryptoError);
        }
        let pair = SigningPair::generate(kind, SignatureForm::Jws)?;
        let mut public = public_members(&pair)?;
        public.insert("alg", kind.jws_algorithm().to_owned());
        Ok(Self { pair, public })
    }

    /// The public JWK for `cnf.jwk`: `alg`, `crv`, `kty`, `x`, `y`.
    pub fn public_jwk(&self) -> &impl serde::Serialize {
        &self.public
    }

    /// The private JWK, JSON. Consumes the pair: the key is handed out once.
    ///
    /// # Errors
    /// [`CryptoError`] when the library does not give it.
    pub fn into_private_jwk(self) -> Result<KeyBytes, CryptoError> {
        let scalar = self.pair.private_scalar().ok_or(CryptoError)?;
        // Room for all of it from the start, so that no half-grown copy of the key stays in freed memory. All
        // values are base64url or names of RFC 7518: nothing needs escaping.
        let mut json = String::with_capacity(64 + 12 * self.public.len() + 6 * scalar.expose().len());
        json.push_str("{\"d\":\"");
        URL_SAFE_NO_PAD.encode_string(scalar.expose(), &mut json);
        for (name, value) in &self.public {
            for part in ["\",\"", name, "\":\"", value] {
                json.push_str(part);
            }
        }
        json.push_str("\"}");
        Ok(KeyBytes::new(json.into_bytes()))
    }
}

/// What is wrong with a `cnf.jwk`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConfirmationFault {
    /// It has a private member, or is a shared secret.
    Private,
    /// `alg` is missing, not one of the nine, or does not fit the key.
    Algorithm,
    /// It is no key that the nine algorithms could use.
    Key,
}

/// The public half, as a token states it.
#[derive(Clone)]
pub struct ConfirmationKey {
    algorithm: JwsAlgorithm,
    material: Material,
}

impl ConfirmationKey {
    /// Reads a public JWK with `alg` (WIT-SVID §3.2).
    ///
    /// # Errors
    /// The [`ConfirmationFault`].
    pub fn from_jwk(jwk: &Value) -> Result<Self, ConfirmationFault> {
        let material = public(jwk)?;
        let algorithm = own_algorithm(jwk).filter(|one| material.fits(*one));
        Ok(Self { algorithm: algorithm.ok_or(ConfirmationFault::Algorithm)?, material })
    }

    /// Reads a public JWK whose algorithm is named beside it, as in the header of a DPoP proof (RFC 9449 §4.2). What it
    /// says itself (`alg`, `use`) must agree.
    ///
    /// # Errors
    /// The [`ConfirmationFault`].
    pub fn presented(jwk: &Value, algorithm: JwsAlgorithm) -> Result<Self, ConfirmationFault> {
        let material = public(jwk)?;
        if jwk.get("use").is_some_and(|usage| usage.as_str() != Some("sig")) {
            return Err(ConfirmationFault::Key);
        }
        let agrees = jwk.get("alg").is_none() || own_algorithm(jwk) == Some(algorithm);
        if !agrees || !material.fits(algorithm) {
            return Err(ConfirmationFault::Algorithm);
        }
        Ok(Self { algorithm, material })
    }

    /// The one algorithm that proofs of this key may use.
    pub fn algorithm(&self) -> JwsAlgorithm {
        self.algorithm
    }

    /// Checks a JWS signature, given as raw bytes (R‖S for curves).
    ///
    /// # Errors
    /// [`KeyRefusal::Signature`].
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyRefusal> {
        self.material.verify(self.algorithm, message, signature)
    }
}

impl fmt::Debug for ConfirmationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfirmationKey({:?})", self.algorithm)
    }
}

fn public(jwk: &Value) -> Result<Material, ConfirmationFault> {
    if PRIVATE.iter().any(|name| jwk.get(name).is_some()) {
        return Err(ConfirmationFault::Private);
    }
    Material::read(jwk).ok_or(ConfirmationFault::Key)
}

fn own_algorithm(jwk: &Value) -> Option<JwsAlgorithm> {
    jwk.get("alg").and_then(Value::as_str).and_then(JwsAlgorithm::parse)
}

/// The RFC 7638 thumbprint (SHA-256) of a public JWK on a curve or of RSA; `None` for anything else.
pub fn jwk_thumbprint(jwk: &Value) -> Option<String> {
    let names: &[&'static str] = match jwk.get("kty")?.as_str()? {
        "EC" => &["crv", "kty", "x", "y"],
        "RSA" => &["e", "kty", "n"],
        _ => return None,
    };
    let member = |name: &&'static str| Some((*name, jwk.get(*name)?.as_str()?.to_owned()));
    thumbprint(&names.iter().map(member).collect::<Option<Members>>()?).ok()
}

/// Private members of RFC 7518 §6.2.2, §6.3.2 and §6.4.1.
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_private_jwk_is_the_key_of_the_public_one() {
        for kind in [KeyType::EcP256, KeyType::EcP384] {
            let key = ProofKey::generate(kind).unwrap();
            let public = serde_json::to_value(key.public_jwk()).unwrap();
            assert_eq!(public["alg"], kind.jws_algorithm());
            assert!(ConfirmationKey::from_jwk(&public).is_ok());
            let mut private: Value =
                serde_json::from_slice(key.into_private_jwk().unwrap().expose()).unwrap();
            let scalar = private.as_object_mut().unwrap().remove("d").unwrap();
            assert_eq!(private, public);
            if kind == KeyType::EcP256 {
                let part = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap();
                let point = [&[4][..], &part(&public["x"]), &part(&public["y"])].concat();
                let pair = EcdsaKeyPair::from_private_key_and_public_key(
                    &ECDSA_P256_SHA256_FIXED_SIGNING,
                    &part(&scalar),
                    &point,
                );
                assert_eq!(pair.unwrap().public_key().as_ref(), point, "the library checks that they belong");
            }
        }
        assert!(ProofKey::generate(KeyType::Rsa2048).is_err());
    }

    #[test]
    fn debug_shows_no_key() {
        let key = ProofKey::generate(KeyType::EcP256).unwrap();
        let scalar = key.pair.private_scalar().unwrap();
        let shown = format!("{key:?}");
        assert!(!shown.contains(&URL_SAFE_NO_PAD.encode(scalar.expose())), "{shown}");
        let public = serde_json::to_value(key.public_jwk()).unwrap();
        let read = ConfirmationKey::from_jwk(&public).unwrap();
        assert_eq!(format!("{read:?}"), "ConfirmationKey(Es256)");
    }

    #[test]
    fn a_key_is_public_and_says_for_which_algorithm_it_is() {
        let good = serde_json::to_value(ProofKey::generate(KeyType::EcP256).unwrap().public_jwk()).unwrap();
        let with = |name: &str, value: Value| {
            let mut jwk = good.clone();
            jwk[name] = value;
            ConfirmationKey::from_jwk(&jwk).err()
        };
        for name in PRIVATE {
            assert_eq!(with(name, json!("AA")), Some(ConfirmationFault::Private), "{name}");
        }
        for alg in ["ES384", "RS256", "PS256", "EdDSA", "HS256", "none", ""] {
            assert_eq!(with("alg", json!(alg)), Some(ConfirmationFault::Algorithm), "{alg}");
        }
        assert_eq!(with("kty", json!("OKP")), Some(ConfirmationFault::Key));
        assert_eq!(with("x", json!("AA")), Some(ConfirmationFault::Key));
        let mut jwk = good.clone();
        jwk.as_object_mut().unwrap().remove("alg");
        assert_eq!(ConfirmationKey::from_jwk(&jwk).err(), Some(ConfirmationFault::Algorithm));
        assert_eq!(ConfirmationKey::from_jwk(&json!([])).err(), Some(ConfirmationFault::Key));
    }

    #[test]
    fn a_key_that_is_presented_goes_by_the_algorithm_beside_it() {
        let mut jwk =
            serde_json::to_value(ProofKey::generate(KeyType::EcP256).unwrap().public_jwk()).unwrap();
        let read = |jwk: &Value| ConfirmationKey::presented(jwk, JwsAlgorithm::Es256).err();
        assert_eq!(read(&jwk), None);
        let other = ConfirmationKey::presented(&jwk, JwsAlgorithm::Es384).err();
        assert_eq!(other, Some(ConfirmationFault::Algorithm));
        for (usage, fault) in [(json!("sig"), None), (json!("enc"), Some(ConfirmationFault::Key))] {
            jwk["use"] = usage;
            assert_eq!(read(&jwk), fault);
        }
        jwk.as_object_mut().unwrap().remove("use");
        jwk["alg"] = json!("ES384");
        assert_eq!(read(&jwk), Some(ConfirmationFault::Algorithm), "it says otherwise itself");
        jwk.as_object_mut().unwrap().remove("alg");
        assert_eq!(read(&jwk), None);
    }

    #[test]
    fn thumbprints_are_those_of_another_library() {
        for kind in [KeyType::EcP256, KeyType::EcP384] {
            let jwk = serde_json::to_value(ProofKey::generate(kind).unwrap().public_jwk()).unwrap();
            let theirs: jsonwebtoken::jwk::Jwk = serde_json::from_value(jwk.clone()).unwrap();
            let theirs = theirs.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap();
            assert_eq!(jwk_thumbprint(&jwk), Some(theirs));
        }
        // The example of RFC 7638 §3.1.
        let jwk = json!({
            "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCi\
                  FV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d\
                  0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-cs\
                  FCur-kEgU8awapJzKnqDKgw",
        });
        assert_eq!(jwk_thumbprint(&jwk).as_deref(), Some("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"));
        for none in
            [json!({}), json!([]), json!({"kty": "oct", "k": "AA"}), json!({"kty": "EC", "crv": "P-256"})]
        {
            assert_eq!(jwk_thumbprint(&none), None);
        }
    }
}
