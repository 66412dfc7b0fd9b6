//! No bytes make the WIT validator, the reader of confirmation keys or that of proofs panic; nothing validates that
//! our key did not sign, nothing is proven that the token's key did not sign; and claims that validate hold to the
//! rules.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mayfly::authority::{
    AuthoritySet, AuthoritySettings, ConfirmationKey, JwtBundle, JwtBundles, KeyType, ProofKey, in_memory,
};
use mayfly::clock::from_unix_seconds;
use mayfly::issue::wit::{Rules, Unproven, WitRefusal, validate};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

struct World {
    set: AuthoritySet,
    bundles: JwtBundles,
    jwk: Value,
    good: Unproven,
}

fn validated(token: &str, bundles: &JwtBundles) -> Result<Unproven, WitRefusal> {
    validate(token, &Rules { bundles, revoked: &|_| false, longest: None, now: from_unix_seconds(NOW) })
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let settings = AuthoritySettings {
            trust_domain: "example.org".parse().expect("valid"),
            x509_key: KeyType::EcP256,
            jwt_key: KeyType::EcP256,
            wit_key: Some(KeyType::EcP256),
            ttl: Duration::from_secs(3_600),
            lead: Duration::ZERO,
        };
        let set = in_memory(&settings, from_unix_seconds(NOW)).expect("authorities");
        let mut bundles = JwtBundles::default();
        bundles.insert(settings.trust_domain, Arc::new(JwtBundle::of(set.wit().iter().map(Arc::as_ref))));
        let key = ProofKey::generate(KeyType::EcP256).expect("key");
        let jwk = serde_json::to_value(key.public_jwk()).expect("json");
        let claims = json!({ "sub": "spiffe://example.org/a", "exp": NOW + 60, "cnf": { "jwk": jwk } });
        let token = set.active_wit().expect("on").sign(&claims).expect("json");
        let good = validated(&token, &bundles).expect("our own");
        World { set, bundles, jwk, good }
    })
}

/// One input.
pub(crate) fn check(bytes: &[u8]) {
    let world = world();
    if let Ok(token) = std::str::from_utf8(bytes) {
        assert!(validated(token, &world.bundles).is_err(), "a forged signature");
        assert!(world.good.prove(token, "db", from_unix_seconds(NOW)).is_err(), "a forged proof");
    }
    let Ok(mut claims) = serde_json::from_slice::<Value>(bytes) else { return };
    drop(ConfirmationKey::from_jwk(&claims));
    // A key that is on its curve is hard to guess: where the input only says where it goes, ours is put in.
    if claims.pointer("/cnf/jwk") == Some(&json!("ours")) {
        claims["cnf"]["jwk"] = world.jwk.clone();
    }
    let token = world.set.active_wit().expect("on").sign(&claims).expect("json");
    if let Ok(good) = validated(&token, &world.bundles) {
        assert_eq!(claims["sub"], good.named().as_str());
        assert!(claims.get("aud").is_none() && claims["exp"].as_u64().expect("an integer") > NOW);
        let jwk = claims["cnf"]["jwk"].as_object().expect("a key");
        assert!(jwk.contains_key("alg") && !jwk.contains_key("d"));
        assert!(good.prove(&token, "db", from_unix_seconds(NOW)).is_err(), "a token is no proof of itself");
    }
}
