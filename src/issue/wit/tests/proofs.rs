//! A token alone proves nothing; with a proof by its key it does.

use aws_lc_rs::digest::{SHA256, digest};

use super::*;

use ProofRefusal as P;

/// A good token for the forge's key, and that key.
struct Holder {
    token: String,
    unproven: Unproven,
    key: Forge,
}

fn holder() -> Holder {
    let (issuer, key) = (Forge::new("ES256"), Forge::new("ES256"));
    let mut published = issuer.jwk("k1");
    published["use"] = json!("wit-svid");
    let mut bundles = JwtBundles::default();
    let own = JwtBundle::of_keys(JwsUse::WitSvid, &[published]);
    bundles.insert("example.org".parse().unwrap(), Arc::new(own));
    let mut jwk = key.jwk("unused");
    jwk["alg"] = json!("ES256");
    let claims = json!({ "sub": SUB, "exp": NOW + 900, "cnf": { "jwk": jwk } });
    let header = json!({ "alg": "ES256", "kid": "k1", "typ": "wit+jwt" });
    let token = issuer.sign(&header.to_string(), &claims.to_string());
    let unproven = check(&token, &bundles).unwrap();
    Holder { token, unproven, key }
}

fn header() -> Value {
    json!({ "alg": "ES256", "typ": "wpt+jwt" })
}

impl Holder {
    fn claims(&self) -> Value {
        let hash = URL_SAFE_NO_PAD.encode(digest(&SHA256, self.token.as_bytes()));
        json!({ "aud": "https://db.example.org/rows", "exp": NOW + 30, "jti": "p1", "wth": hash })
    }

    fn verdict(&self, header: &Value, claims: &Value) -> Result<Proven, P> {
        let proof = self.key.sign(&header.to_string(), &claims.to_string());
        self.unproven.prove(&proof, "https://db.example.org/rows", now())
    }

    fn with(&self, name: &str, value: Value) -> Result<(), P> {
        let mut claims = self.claims();
        claims[name] = value;
        self.verdict(&header(), &claims).map(drop)
    }
}

#[test]
fn the_holder_of_the_key_is_the_workload() {
    let holder = holder();
    let proven = holder.verdict(&header(), &holder.claims()).unwrap();
    assert_eq!((proven.spiffe_id.as_str(), proven.proof_id.as_str()), (SUB, "p1"));
}

#[test]
fn one_token_goes_with_any_number_of_proofs() {
    // WIT-15; and WIT-35: each proof says which it is.
    let holder = holder();
    for id in ["p1", "p2"] {
        let mut claims = holder.claims();
        claims["jti"] = json!(id);
        assert_eq!(holder.verdict(&header(), &claims).unwrap().proof_id, id);
    }
}

#[test]
fn a_proof_by_another_key_or_none_is_refused() {
    // WIT-25, WIT-26.
    let (mine, theirs) = (holder(), holder());
    let proof = theirs.key.sign(&header().to_string(), &mine.claims().to_string());
    let prove = |proof: &str| mine.unproven.prove(proof, "https://db.example.org/rows", now()).map(drop);
    assert_eq!(prove(&proof), Err(P::Key));
    assert_eq!(prove(""), Err(P::Malformed));
    assert_eq!(prove(&mine.token), Err(P::Type), "the token is no proof of itself");
    for alg in ["ES384", "none", "HS256", "RS256"] {
        let refused = mine.verdict(&json!({ "alg": alg, "typ": "wpt+jwt" }), &mine.claims());
        assert_eq!(refused.map(drop), Err(P::Key), "{alg}");
    }
}

#[test]
fn a_proof_is_for_this_token_this_audience_and_a_short_time() {
    // WIT-34.
    let holder = holder();
    assert_eq!(holder.with("aud", json!(["x", "https://db.example.org/rows"])), Ok(()));
    assert_eq!(holder.with("wth", json!("AA")), Err(P::OtherToken));
    for name in ["ath", "tth", "oth"] {
        assert_eq!(holder.with(name, json!("AA")), Err(P::OtherToken), "{name}");
    }
    for aud in [json!("https://db.example.org"), json!([]), json!(7), json!("")] {
        assert_eq!(holder.with("aud", aud), Err(P::Audience));
    }
    for exp in [json!(NOW), json!(NOW + MAX_PROOF_SECONDS + 1), json!("1"), json!(null)] {
        assert_eq!(holder.with("exp", exp.clone()), Err(P::Times), "{exp}");
    }
    assert_eq!(holder.with("exp", json!(NOW + MAX_PROOF_SECONDS)), Ok(()));
    assert_eq!(holder.with("nbf", json!(NOW + 1)), Err(P::Times));
    for jti in [json!(""), json!(7)] {
        assert_eq!(holder.with("jti", jti), Err(P::Malformed));
    }
    let proof = holder.key.sign(&header().to_string(), &holder.claims().to_string());
    let refused = holder.unproven.prove(&proof, "", now()).map(drop);
    assert_eq!(refused, Err(P::Audience), "nobody is no audience");
    let long = json!("x".repeat(MAX_TOKEN_BYTES));
    assert_eq!(holder.with("note", long), Err(P::Malformed), "nobody looks at so much");
}

#[test]
fn a_proof_says_what_it_is() {
    let holder = holder();
    let typed = |header: Value| holder.verdict(&header, &holder.claims()).map(drop);
    for typ in ["JWT", "wit+jwt", "dpop+jwt", "WPT+JWT"] {
        assert_eq!(typed(json!({ "alg": "ES256", "typ": typ })), Err(P::Type), "{typ}");
    }
    assert_eq!(typed(json!({ "alg": "ES256" })), Err(P::Type));
    let critical = json!({ "alg": "ES256", "typ": "wpt+jwt", "crit": ["b64"], "b64": false });
    assert_eq!(typed(critical), Err(P::Type));
}
