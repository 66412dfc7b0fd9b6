//! Our JWT keys in the words of OIDC libraries: `use` is `sig` and `alg` is said (RFC 7517 §4.2, §4.4), where a
//! SPIFFE bundle says `use: jwt-svid` and no `alg`. Same key, same `kid`.

use serde_json::{Value, json};

use super::TrustSnapshot;

/// The public JWKs. One whose algorithm is not known is left out.
pub fn keys(trust: &TrustSnapshot) -> Vec<Value> {
    let set: Option<Value> = serde_json::from_slice(trust.jwks()).ok();
    let keys = set.as_ref().and_then(|set| set.get("keys")).and_then(Value::as_array);
    keys.into_iter().flatten().filter_map(translated).collect()
}

/// The whole key set as JSON text, for vendors that take it inline.
pub fn key_set(trust: &TrustSnapshot) -> String {
    json!({ "keys": keys(trust) }).to_string()
}

fn translated(jwk: &Value) -> Option<Value> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let algorithm = match (text("kty")?, text("crv")) {
        ("EC", Some("P-256")) => "ES256",
        ("EC", Some("P-384")) => "ES384",
        ("EC", Some("P-521")) => "ES512",
        ("RSA", None) => "RS256",
        _ => return None,
    };
    let mut members = jwk.as_object()?.clone();
    members.insert("use".to_owned(), "sig".into());
    members.insert("alg".to_owned(), algorithm.into());
    Some(crate::json::sorted(Value::Object(members)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::KeyType;
    use crate::authority::testing::authorities;

    #[test]
    fn the_same_key_in_other_words() {
        for (kind, algorithm) in [(KeyType::EcP256, "ES256"), (KeyType::Rsa2048, "RS256")] {
            let set = authorities("example.org", kind);
            let trust = TrustSnapshot::new(&"example.org".parse().unwrap(), &set);
            let keys = keys(&trust);
            let own = set.active_jwt().jwk();
            assert_eq!((&keys[0]["kid"], &keys[0]["use"]), (&own["kid"], &json!("sig")));
            assert_eq!(keys[0]["alg"], algorithm);
            assert_eq!(keys[0]["alg"], set.active_jwt().algorithm());
            assert!(keys[0].get("d").is_none());
            assert!(key_set(&trust).starts_with("{\"keys\":[{"));
        }
    }
}
