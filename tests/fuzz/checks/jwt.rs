//! No bytes make the JWT validator or the bundle parser panic; nothing validates that our key did not sign;
//! and claims that validate say what the validator answers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mayfly::authority::{AuthoritySet, AuthoritySettings, JwtBundle, JwtBundles, KeyType, in_memory};
use mayfly::clock::from_unix_seconds;
use mayfly::issue::jwt::{MAX_LIFETIME_SECONDS, validate};
use serde_json::Value;

const NOW: u64 = 1_800_000_000;

fn world() -> &'static (AuthoritySet, JwtBundles) {
    static WORLD: OnceLock<(AuthoritySet, JwtBundles)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let settings = AuthoritySettings {
            trust_domain: "example.org".parse().expect("valid"),
            x509_key: KeyType::EcP256,
            jwt_key: KeyType::EcP256,
            wit_key: None,
            ttl: Duration::from_secs(3_600),
            lead: Duration::ZERO,
        };
        let set = in_memory(&settings, from_unix_seconds(NOW)).expect("authorities");
        let mut bundles = JwtBundles::default();
        bundles.insert(settings.trust_domain, Arc::new(JwtBundle::of([set.active_jwt().as_ref()])));
        (set, bundles)
    })
}

/// One input.
pub(crate) fn check(bytes: &[u8]) {
    let (set, bundles) = world();
    let check = |token: &str| validate(token, "aud1", bundles, &|_| false, from_unix_seconds(NOW));
    if let Ok(bundle) = JwtBundle::parse(bytes) {
        let again = JwtBundle::parse(bundle.json()).expect("what we write we can read");
        assert_eq!(again.json(), bundle.json());
    }
    if let Ok(token) = std::str::from_utf8(bytes) {
        assert!(check(token).is_err(), "a forged signature");
    }
    let Ok(claims) = serde_json::from_slice::<Value>(bytes) else { return };
    let token = set.active_jwt().sign(&claims).expect("json");
    if let Ok(valid) = check(&token) {
        assert_eq!(claims["sub"], valid.spiffe_id.as_str());
        assert!(valid.claims["aud"].as_array().expect("a list").iter().any(|one| one == "aud1"));
        let exp = claims["exp"].as_u64().expect("an integer");
        assert!(exp > NOW && claims["iat"].as_u64().is_none_or(|iat| exp <= iat + MAX_LIFETIME_SECONDS));
    }
}
