//! OpenID Connect discovery for JWT-SVIDs, so that whoever takes OIDC tokens takes ours: two documents, made of
//! the same keys as the SPIFFE bundle in the words that OIDC libraries know (`use` is `sig`, and `alg` is said).

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::conditional::Document;
use crate::id::hex_text;
use crate::trust::{TrustSnapshot, oidc};

/// Discovery of one issuer.
#[derive(Debug)]
pub(super) struct Discovery {
    issuer: String,
    /// The issuer's path, without a slash at its end; empty for most.
    path: String,
}

impl Discovery {
    /// `None` for an issuer that is not a URL: nobody could look it up.
    pub(super) fn of_issuer(issuer: &str) -> Option<Self> {
        let place = issuer.strip_prefix("https://")?;
        let path = place.find('/').and_then(|at| place.get(at..)).unwrap_or_default();
        Some(Self { issuer: issuer.to_owned(), path: path.trim_end_matches('/').to_owned() })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The provider's configuration (Discovery 1.0 §3), without the endpoints of a login that there is not.
    pub(super) fn configuration(&self, trust: &TrustSnapshot, max_age: Duration) -> Document {
        let mut algorithms: Vec<Value> =
            oidc::keys(trust).into_iter().filter_map(|mut jwk| Some(jwk.get_mut("alg")?.take())).collect();
        algorithms.dedup();
        let base = self.issuer.trim_end_matches('/');
        document(
            &json!({
                "issuer": self.issuer,
                "jwks_uri": format!("{base}{KEYS}"),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": algorithms,
                "claims_supported": ["sub", "aud", "exp", "iat", "iss", "jti"],
            }),
            max_age,
        )
    }
}

/// The key set.
pub(super) fn keys(trust: &TrustSnapshot, max_age: Duration) -> Document {
    document(&json!({ "keys": oidc::keys(trust) }), max_age)
}

/// May be kept for one refresh hint: a key is published for at least three before it signs.
fn document(json: &Value, max_age: Duration) -> Document {
    let body = crate::json::sorted(json.clone()).to_string();
    Document {
        tag: hex_text(digest(&SHA256, body.as_bytes()).as_ref()),
        body: body.into(),
        content_type: "application/json",
        modified: None,
        cache: format!("public, max-age={}, must-revalidate", max_age.as_secs()),
    }
}

/// Below the issuer (Discovery 1.0 §4).
pub(super) const CONFIGURATION: &str = "/.well-known/openid-configuration";
/// What `jwks_uri` names.
pub(super) const KEYS: &str = "/keys";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::KeyType;
    use crate::authority::testing::authorities;

    #[test]
    fn the_configuration_names_the_issuer_as_it_stands_in_tokens() {
        let set = authorities("example.org", KeyType::EcP256);
        let trust = TrustSnapshot::new(&"example.org".parse().unwrap(), &set);
        for (issuer, path, jwks_uri) in [
            ("https://id.example.org", "", "https://id.example.org/keys"),
            ("https://id.example.org/", "", "https://id.example.org/keys"),
            ("https://id.example.org/a/b", "/a/b", "https://id.example.org/a/b/keys"),
        ] {
            let discovery = Discovery::of_issuer(issuer).unwrap();
            let document = discovery.configuration(&trust, Duration::from_secs(300));
            let json: Value = serde_json::from_slice(&document.body).unwrap();
            assert_eq!((json["issuer"].as_str(), discovery.path()), (Some(issuer), path));
            assert_eq!(json["jwks_uri"], jwks_uri);
            assert_eq!(json["id_token_signing_alg_values_supported"], json!(["ES256"]));
        }
        assert!(Discovery::of_issuer("spiffe://example.org").is_none());
    }
}
