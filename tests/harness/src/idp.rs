//! An issuer of users' tokens: an identity provider as far as an agent sees one.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// One, with a key of its own.
#[derive(Debug)]
pub struct Idp(EcdsaKeyPair);

impl Idp {
    /// The `iss` of its tokens.
    pub const ISSUER: &str = "https://idp.example.org";
    /// Their `aud`.
    pub const AUDIENCE: &str = "https://mayfly.example.org";

    /// A new key, for ES256.
    ///
    /// # Panics
    /// When none can be made.
    #[expect(clippy::new_without_default, reason = "no two are alike")]
    pub fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"))
    }

    /// Its public key.
    ///
    /// # Panics
    /// Never, for an uncompressed point.
    pub fn jwks(&self) -> Vec<u8> {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig", "x": text(x), "y": text(y)});
        json!({ "keys": [jwk] }).to_string().into_bytes()
    }

    /// What it says of a user, for five minutes.
    ///
    /// # Panics
    /// Before 1970.
    pub fn claims(sub: &str) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        json!({"iss": Self::ISSUER, "sub": sub, "aud": Self::AUDIENCE, "iat": now - 5, "exp": now + 300})
    }

    /// Signs anything.
    ///
    /// # Panics
    /// When there is no randomness.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_under(&json!({"alg": "ES256", "kid": "k1", "typ": "JWT"}), claims)
    }

    /// The same under any header.
    ///
    /// # Panics
    /// When there is no randomness.
    pub fn sign_under(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    /// A token of that user.
    pub fn token(&self, sub: &str) -> String {
        self.sign(&Self::claims(sub))
    }

    /// The table with which an agent believes it; its keys are in that file.
    pub fn table(jwks: &std::path::Path) -> String {
        format!(
            "\n[[tasks.users]]\nissuer = \"{}\"\naudience = \"{}\"\njwks = {jwks:?}\n",
            Self::ISSUER,
            Self::AUDIENCE
        )
    }
}
