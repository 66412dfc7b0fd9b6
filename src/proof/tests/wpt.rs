//! draft-ietf-wimse-wpt-01 §2, a row each; what is older than this module is in `issue::wit::tests::proofs`.

use std::sync::Arc;

use super::super::wpt::{Refusal, Shown, check};
use super::*;
use crate::authority::{JwsUse, JwtBundle, JwtBundles};
use crate::issue::wit::{self, ProofRefusal, Proven, Unproven};

struct Workload {
    token: String,
    unproven: Unproven,
    key: Forge,
    replays: Replays,
}

impl Workload {
    fn new() -> Self {
        let (issuer, key) = (Forge::new("ES256"), Forge::new("ES256"));
        let mut bundles = JwtBundles::default();
        let own = JwtBundle::of_keys(JwsUse::WitSvid, &[changed(issuer.jwk("k1"), "use", json!("wit-svid"))]);
        bundles.insert("example.org".parse().unwrap(), Arc::new(own));
        let jwk = changed(public(&key), "alg", json!("ES256"));
        let claims = json!({ "sub": "spiffe://example.org/web", "exp": NOW + 900, "cnf": { "jwk": jwk } });
        let header = json!({ "alg": "ES256", "kid": "k1", "typ": "wit+jwt" });
        let token = issuer.sign(&header.to_string(), &claims.to_string());
        let rules = wit::Rules { bundles: &bundles, revoked: &|_| false, longest: None, now: now() };
        let unproven = wit::validate(&token, &rules).unwrap();
        Self { token, unproven, key, replays: Replays::new(1_000) }
    }

    fn said(&self) -> Value {
        json!({ "aud": URL, "exp": NOW + 30, "jti": "p1", "wth": hash(&self.token) })
    }

    fn proof(&self, claims: &Value) -> String {
        self.key.sign(r#"{"alg":"ES256","typ":"wpt+jwt"}"#, &claims.to_string())
    }

    fn shows(&mut self, proofs: &[&str], access_token: Option<&str>, url: &str) -> Result<Proven, Refusal> {
        let request = Request { method: "GET", url, now: now() };
        check(&self.unproven, &Shown { proofs, access_token }, &request, &mut self.replays)
    }

    fn with(&mut self, name: &str, value: Value) -> Result<(), Refusal> {
        let proof = self.proof(&changed(self.said(), name, value));
        self.shows(&[&proof], None, URL).map(drop)
    }
}

#[test]
fn h12_a_workload_proves_itself_once_for_each_proof() {
    let mut workload = Workload::new();
    let proof = workload.proof(&workload.said());
    let proven = workload.shows(&[&proof], None, "https://wiki.example.org:443/api/page?id=7").unwrap();
    assert_eq!((proven.spiffe_id.as_str(), proven.proof_id.as_str()), ("spiffe://example.org/web", "p1"));
    assert_eq!(workload.shows(&[&proof], None, URL).unwrap_err(), Refusal::Used(Used::Again));
    assert_eq!(
        workload.with("exp", json!(NOW + 31)),
        Err(Refusal::Used(Used::Again)),
        "its name, signed again"
    );
    assert_eq!(workload.with("jti", json!("p2")), Ok(()));
    let malformed = Err(Refusal::Proof(ProofRefusal::Malformed));
    assert_eq!(workload.with("jti", json!("x".repeat(257))), malformed);
    // Until its last second, and for no other workload.
    let later = Request { method: "GET", url: URL, now: now() + Duration::from_secs(29) };
    let shown = Shown { proofs: &[&proof], access_token: None };
    let again = check(&workload.unproven, &shown, &later, &mut workload.replays).unwrap_err();
    assert_eq!(again, Refusal::Used(Used::Again));
    let mut other = Workload::new();
    other.replays = workload.replays;
    assert_eq!(other.with("jti", json!("p1")), Ok(()));
}

#[test]
fn h12_a_proof_is_for_the_url_that_was_called() {
    let mut workload = Workload::new();
    let audience = Err(Refusal::Proof(ProofRefusal::Audience));
    for aud in [
        json!("https://wiki.example.org/api"),
        json!("https://wiki.example.org/api/page?id=7"),
        json!("http://wiki.example.org/api/page"),
        json!("https://evil.org/api/page"),
        json!("wiki"),
        json!(""),
        json!([]),
        json!(7),
        json!(null),
    ] {
        assert_eq!(workload.with("aud", aud.clone()), audience, "{aud}");
    }
    assert_eq!(
        workload.with("aud", json!(["https://other.example.org/", "HTTPS://wiki.example.org/api/page"])),
        Ok(())
    );
}

#[test]
fn h12_a_proof_is_for_the_access_token_that_came_with_it() {
    let mut workload = Workload::new();
    let both = workload.proof(&changed(workload.said(), "ath", json!(hash(TOKEN))));
    let alone = workload.proof(&workload.said());
    let other = Refusal::Proof(ProofRefusal::OtherToken);
    assert_eq!(
        workload.shows(&[&alone], Some(TOKEN), URL).unwrap_err(),
        other,
        "mandatory where there is one"
    );
    assert_eq!(workload.shows(&[&both], Some("another"), URL).unwrap_err(), other);
    assert_eq!(workload.shows(&[&both], None, URL).unwrap_err(), other, "it was left out on the way");
    assert!(workload.shows(&[&both], Some(TOKEN), URL).is_ok());
}

#[test]
fn h12_a_proof_by_another_key_or_about_another_token_is_refused_with_400() {
    let (mut workload, thief) = (Workload::new(), Workload::new());
    let said = workload.said();
    for (proof, why) in [
        (thief.proof(&said), ProofRefusal::Key),
        (workload.proof(&thief.said()), ProofRefusal::OtherToken),
        (workload.key.sign(r#"{"alg":"HS256","typ":"wpt+jwt"}"#, &said.to_string()), ProofRefusal::Key),
        (workload.key.sign(r#"{"alg":"ES256","typ":"dpop+jwt"}"#, &said.to_string()), ProofRefusal::Type),
        (workload.proof(&changed(said.clone(), "exp", json!(NOW + 301))), ProofRefusal::Times),
        (workload.proof(&changed(said, "exp", json!(NOW))), ProofRefusal::Times),
    ] {
        let refused = workload.shows(&[&proof], None, URL).unwrap_err();
        assert_eq!((refused, refused.status()), (Refusal::Proof(why), 400));
    }
    let proof = workload.proof(&workload.said());
    for several in [&[][..], &[&*proof, &*proof]] {
        let refused = workload.shows(several, None, URL).unwrap_err();
        assert_eq!((refused, refused.status()), (Refusal::Number, 400));
    }
    assert_eq!(workload.shows(&[&proof], None, "nowhere").unwrap_err().status(), 500);
    workload.replays = Replays::new(0);
    assert_eq!(workload.shows(&[&proof], None, URL).unwrap_err().status(), 503);
    assert!(workload.replays.is_empty());
}
