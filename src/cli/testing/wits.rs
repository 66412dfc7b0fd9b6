//! An issuer of WIT-SVIDs, and holders who can prove theirs.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly_proto::workload::{WitBundlesResponse, Witsvid, WitsvidResponse};
use serde_json::{Value, json};

use super::agent::one;
use crate::authority::{AuthoritySet, AuthoritySettings, KeyType, ProofKey, in_memory};
use crate::clock::{Clock, SystemClock, unix_seconds};

/// The issuer of one trust domain.
pub(crate) struct Wits {
    domain: String,
    set: AuthoritySet,
}

/// A token and its key.
pub(crate) struct Wit {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) jwk: String,
}

impl Wits {
    pub(crate) fn new(domain: &str) -> Self {
        let settings = AuthoritySettings {
            trust_domain: domain.parse().expect("a trust domain"),
            x509_key: KeyType::EcP256,
            jwt_key: KeyType::EcP256,
            wit_key: Some(KeyType::EcP256),
            ttl: Duration::from_secs(3_600),
            lead: Duration::ZERO,
        };
        let set = in_memory(&settings, SystemClock.wall()).expect("authorities");
        Self { domain: format!("spiffe://{domain}"), set }
    }

    pub(crate) fn wit(&self, id: &str) -> Wit {
        let key = ProofKey::generate(KeyType::EcP256).expect("key");
        let jwk = serde_json::to_value(key.public_jwk()).expect("JSON");
        let claims = json!({ "sub": id, "exp": now() + 600, "jti": "4a", "cnf": { "jwk": jwk } });
        let token = self.set.active_wit().expect("switched on").sign(&claims).expect("signed");
        let jwk = key.into_private_jwk().expect("key");
        let jwk = String::from_utf8(jwk.expose().to_vec()).expect("text");
        Wit { id: id.to_owned(), token, jwk }
    }

    /// One fresh token for each identity.
    pub(crate) fn answer(&self, ids: &[&str]) -> WitsvidResponse {
        WitsvidResponse { svids: ids.iter().map(|id| self.wit(id).message()).collect() }
    }

    pub(crate) fn bundles(&self) -> WitBundlesResponse {
        let keys: Vec<Value> = self.set.wit().iter().map(|wit| wit.jwk()).collect();
        WitBundlesResponse { bundles: one(&self.domain, json!({ "keys": keys }).to_string()) }
    }
}

impl Wit {
    pub(crate) fn message(&self) -> Witsvid {
        Witsvid {
            spiffe_id: self.id.clone(),
            wit_svid: self.token.clone(),
            wit_svid_key: self.jwk.clone(),
            hint: String::new(),
        }
    }

    /// A Workload Proof Token for that audience.
    pub(crate) fn proof(&self, audience: &str) -> String {
        let jwk: Value = serde_json::from_str(&self.jwk).expect("JSON");
        let part = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().expect(name)).expect(name);
        let point = [&[4][..], &part("x"), &part("y")].concat();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair =
            EcdsaKeyPair::from_private_key_and_public_key(algorithm, &part("d"), &point).expect("pair");
        let hash = URL_SAFE_NO_PAD.encode(digest(&SHA256, self.token.as_bytes()));
        let claims = json!({ "aud": audience, "exp": now() + 60, "jti": "p", "wth": hash });
        let encode = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", encode(json!({ "alg": "ES256", "typ": "wpt+jwt" })), encode(claims));
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn now() -> u64 {
    unix_seconds(SystemClock.wall())
}
