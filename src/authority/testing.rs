//! Fixtures for the tests of every module that signs or verifies.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{AuthoritySet, AuthoritySettings, KeyType, in_memory};
use crate::clock::from_unix_seconds;

pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn now() -> SystemTime {
    from_unix_seconds(NOW)
}

pub(crate) fn settings(trust_domain: &str, key: KeyType) -> AuthoritySettings {
    AuthoritySettings {
        trust_domain: trust_domain.parse().unwrap(),
        x509_key: key,
        jwt_key: key,
        wit_key: Some(key),
        ttl: Duration::from_secs(7 * 86_400),
        lead: Duration::from_secs(900),
    }
}

pub(crate) fn authorities(trust_domain: &str, key: KeyType) -> AuthoritySet {
    in_memory(&settings(trust_domain, key), now()).unwrap()
}

/// A JWT key that signs whatever it is told to.
pub(crate) struct Forge {
    pub(crate) alg: &'static str,
    key: ForgeKey,
}

enum ForgeKey {
    Curve(EcdsaKeyPair, &'static str),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
}

impl Forge {
    pub(crate) fn new(alg: &'static str) -> Self {
        let curve = |algorithm, name| ForgeKey::Curve(EcdsaKeyPair::generate(algorithm).unwrap(), name);
        let rsa = |encoding| ForgeKey::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap(), encoding);
        let key = match alg {
            "ES256" => curve(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            "ES384" => curve(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            "ES512" => curve(&ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "RS384" => rsa(&RSA_PKCS1_SHA384),
            "RS512" => rsa(&RSA_PKCS1_SHA512),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "PS384" => rsa(&RSA_PSS_SHA384),
            "PS512" => rsa(&RSA_PSS_SHA512),
            _ => panic!("{alg}"),
        };
        Self { alg, key }
    }

    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.key {
            ForgeKey::Curve(pair, name) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({ "kty": "EC", "use": "jwt-svid", "kid": kid, "crv": name, "x": text(x), "y": text(y) })
            }
            ForgeKey::Rsa(pair, _) => {
                let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
                let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
                json!({ "kty": "RSA", "use": "jwt-svid", "kid": kid, "n": text(n), "e": text(e) })
            }
        }
    }

    pub(crate) fn signature(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            ForgeKey::Curve(pair, _) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            ForgeKey::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// The public key, PKCS#1 or a point: what a confused verifier would use as an HMAC secret.
    pub(crate) fn public_bytes(&self) -> Vec<u8> {
        match &self.key {
            ForgeKey::Curve(pair, _) => pair.public_key().as_ref().to_vec(),
            ForgeKey::Rsa(pair, _) => pair.public_key().as_ref().to_vec(),
        }
    }

    pub(crate) fn sign(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.signature(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}
