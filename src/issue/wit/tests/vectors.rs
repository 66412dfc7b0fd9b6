//! Conformance 3.4 by name, and what a validator must also withstand.

use super::*;

/// `example.org` trusts the forge's key under the name `k1`.
struct World {
    forge: Forge,
    bundles: JwtBundles,
}

fn jwk(forge: &Forge, kid: &str, usage: &str) -> Value {
    let mut jwk = forge.jwk(kid);
    jwk["use"] = json!(usage);
    jwk
}

fn bundles(keys: &[Value]) -> JwtBundles {
    let mut bundles = JwtBundles::default();
    let own = JwtBundle::of_keys(JwsUse::WitSvid, keys);
    bundles.insert("example.org".parse().unwrap(), Arc::new(own));
    bundles
}

impl World {
    fn new(alg: &'static str) -> Self {
        let forge = Forge::new(alg);
        Self { bundles: bundles(&[jwk(&forge, "k1", "wit-svid")]), forge }
    }

    fn header(&self) -> Value {
        json!({ "alg": self.forge.alg, "kid": "k1", "typ": "wit+jwt" })
    }

    fn verdict(&self, header: &Value, claims: &Value) -> Result<(), R> {
        self.raw(&header.to_string(), &claims.to_string())
    }

    fn raw(&self, header: &str, claims: &str) -> Result<(), R> {
        check(&self.forge.sign(header, claims), &self.bundles).map(drop)
    }

    fn with_header(&self, name: &str, value: Value) -> Result<(), R> {
        let mut header = self.header();
        header[name] = value;
        self.verdict(&header, &claims())
    }

    fn without_header(&self, name: &str) -> Result<(), R> {
        let mut header = self.header();
        header.as_object_mut().unwrap().remove(name).unwrap();
        self.verdict(&header, &claims())
    }

    fn with_claim(&self, name: &str, value: Value) -> Result<(), R> {
        let mut changed = claims();
        changed[name] = value;
        self.verdict(&self.header(), &changed)
    }

    fn without_claim(&self, name: &str) -> Result<(), R> {
        let mut changed = claims();
        changed.as_object_mut().unwrap().remove(name).unwrap();
        self.verdict(&self.header(), &changed)
    }

    fn with_cnf(&self, change: impl Fn(&mut Value)) -> Result<(), R> {
        let mut changed = claims();
        change(&mut changed["cnf"]);
        self.verdict(&self.header(), &changed)
    }
}

fn claims() -> Value {
    // A point of P-256: that of the specification's example.
    let jwk = json!({
        "alg": "ES256", "crv": "P-256", "kty": "EC",
        "x": "rzP7mLCKAHWmsM6X0EwVISC_hI3ujcu95ffUkyeDGGo",
        "y": "uOrfDljtX9m3jY-hsyhLJYaxtGkzDv5e5kmCe58Z97g",
    });
    json!({ "sub": SUB, "exp": NOW + 900, "iat": NOW - 10, "jti": "x", "cnf": { "jwk": jwk } })
}

#[test]
fn the_vectors_of_conformance_3_4() {
    let world = World::new("ES256");
    assert_eq!(world.verdict(&world.header(), &claims()), Ok(()), "good");
    assert_eq!(world.with_header("typ", json!("JWT")), Err(R::Type), "typ-JWT");
    assert_eq!(world.with_header("typ", json!("WIT+JWT")), Err(R::Type), "typ-case");
    assert_eq!(world.without_header("kid"), Err(R::NoKeyId), "no-kid");
    assert_eq!(world.without_claim("cnf"), Err(R::Confirmation), "no-cnf");
    let no_alg = world.with_cnf(|cnf| drop(cnf["jwk"].as_object_mut().unwrap().remove("alg")));
    assert_eq!(no_alg, Err(R::Confirmation), "cnf-no-alg");
    for (name, alg) in [("cnf-alg-EdDSA", "EdDSA"), ("cnf-alg-mismatch-kty", "RS256")] {
        assert_eq!(world.with_cnf(|cnf| cnf["jwk"]["alg"] = json!(alg)), Err(R::Confirmation), "{name}");
    }
    assert_eq!(world.with_cnf(|cnf| cnf["jwk"]["d"] = json!("AA")), Err(R::Confirmation), "cnf-private-jwk");
    assert_eq!(world.with_claim("aud", json!("aud1")), Err(R::Audience), "aud-present");
    assert_eq!(world.with_claim("aud", json!([])), Err(R::Audience), "aud-empty-array");
    assert_eq!(world.without_claim("exp"), Err(R::Times), "exp-missing");
    assert_eq!(world.with_claim("exp", json!(NOW - 30)), Err(R::Expired), "exp-minus-30s: no leeway here");
    assert_eq!(world.with_claim("exp", json!(NOW - 90)), Err(R::Expired), "exp-minus-90s");
    assert_eq!(world.with_claim("exp", json!(NOW - 150)), Err(R::Expired), "WIT-17");
    assert_eq!(world.with_claim("nbf", json!(NOW + 30)), Err(R::NotYetValid), "nbf-plus-30s");
    assert_eq!(world.with_claim("nbf", json!(NOW + 600)), Err(R::NotYetValid), "nbf-plus-10m");
    assert_eq!(world.with_claim("iat", json!(NOW + 600)), Ok(()), "iat-plus-10m");
    assert_eq!(world.with_header("foo", json!("bar")), Ok(()), "extra-header");
    assert_eq!(world.with_header("crit", json!(["foo"])), Err(R::Critical), "crit-unknown");
    assert_eq!(world.with_claim("iss", json!("https://example.org")), Ok(()), "iss-https");
    assert_eq!(world.with_claim("foo", json!({ "bar": [1] })), Ok(()), "extra-claim");
    assert_eq!(world.with_claim("sub", json!("spiffe://example.org")), Ok(()), "sub-root-path");
}

#[test]
fn each_of_the_nine_algorithms_and_no_other() {
    // WIT-05, WIT-06.
    for alg in ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"] {
        let world = World::new(alg);
        assert_eq!(world.verdict(&world.header(), &claims()), Ok(()), "{alg}");
    }
    let world = World::new("ES256");
    for alg in ["none", "None", "HS256", "EdDSA", "es256", "ES256K", ""] {
        assert_eq!(world.with_header("alg", json!(alg)), Err(R::Algorithm), "{alg}");
    }
    assert_eq!(world.without_header("alg"), Err(R::Algorithm));
    assert_eq!(world.with_header("alg", json!("RS256")), Err(R::Algorithm), "not one of this key");
}

#[test]
fn only_one_type_is_a_wit() {
    // WIT-04, H04.
    let world = World::new("ES256");
    assert_eq!(world.without_header("typ"), Err(R::Type));
    for typ in ["JOSE", "at+jwt", "wpt+jwt", "application/wit+jwt", "wit+jwt ", "wit", ""] {
        assert_eq!(world.with_header("typ", json!(typ)), Err(R::Type), "{typ}");
    }
    for typ in [json!(null), json!(["wit+jwt"])] {
        assert_eq!(world.with_header("typ", typ), Err(R::Type));
    }
}

#[test]
fn a_kid_is_opaque_and_case_sensitive() {
    // WIT-02.
    let (lower, upper) = (Forge::new("ES256"), Forge::new("ES256"));
    let bundles = bundles(&[jwk(&lower, "k1", "wit-svid"), jwk(&upper, "K1", "wit-svid")]);
    let by = |forge: &Forge, kid: &str| {
        let header = json!({ "alg": "ES256", "kid": kid, "typ": "wit+jwt" }).to_string();
        check(&forge.sign(&header, &claims().to_string()), &bundles).map(drop)
    };
    assert_eq!((by(&lower, "k1"), by(&upper, "K1")), (Ok(()), Ok(())));
    assert_eq!((by(&lower, "K1"), by(&upper, "k1")), (Err(R::Signature), Err(R::Signature)));
    let world = World::new("ES256");
    for kid in [json!(""), json!(null), json!(1), json!(["k1"])] {
        assert_eq!(world.with_header("kid", kid), Err(R::NoKeyId));
    }
    for kid in ["../../etc/passwd", "k1\0", "k1 ", &"k".repeat(4_096)] {
        assert_eq!(world.with_header("kid", json!(kid)), Err(R::UnknownKey), "{kid}");
    }
}

#[test]
fn only_keys_for_wit_svids_vouch_for_one() {
    // WIT-32, WAPI-36, WAPI-52: the same key, of another use or none.
    let world = World::new("ES256");
    let token = world.forge.sign(&world.header().to_string(), &claims().to_string());
    for usage in ["jwt-svid", "x509-svid", "sig", "WIT-SVID", ""] {
        for wanted in [JwsUse::JwtSvid, JwsUse::WitSvid] {
            let all = JwtBundle::of_keys(wanted, &[jwk(&world.forge, "k1", usage)]);
            let mut bundles = JwtBundles::default();
            bundles.insert("example.org".parse().unwrap(), Arc::new(all));
            assert_eq!(check(&token, &bundles).map(drop), Err(R::UnknownKey), "{usage}");
        }
    }
    let twice = [jwk(&world.forge, "k1", "wit-svid"), jwk(&Forge::new("ES256"), "k1", "wit-svid")];
    assert_eq!(check(&token, &bundles(&twice)).map(drop), Err(R::UnknownKey), "a kid that names two keys");
    // And the other way round: a WIT key vouches for no JWT-SVID.
    let jwt = json!({ "sub": SUB, "aud": ["a"], "exp": NOW + 300 }).to_string();
    let jwt = world.forge.sign(&json!({ "alg": "ES256", "kid": "k1" }).to_string(), &jwt);
    let refused = crate::issue::jwt::validate(&jwt, "a", &world.bundles, &|_| false, now());
    assert_eq!(refused.map(drop), Err(crate::issue::jwt::JwtRefusal::UnknownKey));
}

#[test]
fn a_confirmation_is_a_public_key_in_the_token() {
    // WIT-11, WIT-12, WIT-13.
    let world = World::new("ES256");
    for cnf in [
        json!(null),
        json!("jwk"),
        json!({}),
        json!({ "kid": "k1" }),
        json!({ "jku": "https://example.org/keys" }),
        json!({ "jwk": null }),
        json!({ "jwk": { "kty": "oct", "k": "AA", "alg": "HS256" } }),
        json!({ "jwk": { "kty": "OKP", "crv": "Ed25519", "x": "AA", "alg": "EdDSA" } }),
    ] {
        assert_eq!(world.with_claim("cnf", cnf.clone()), Err(R::Confirmation), "{cnf}");
    }
    assert_eq!(world.with_cnf(|cnf| cnf["jwk"]["x"] = cnf["jwk"]["y"].clone()), Err(R::Confirmation));
    let rsa = Forge::new("PS256");
    let with_rsa = |alg: &str| {
        let mut key = rsa.jwk("x");
        key["alg"] = json!(alg);
        world.with_claim("cnf", json!({ "jwk": key }))
    };
    assert_eq!((with_rsa("PS256"), with_rsa("RS512")), (Ok(()), Ok(())));
    assert_eq!(with_rsa("ES256"), Err(R::Confirmation));
}

#[test]
fn times_are_whole_seconds_and_a_lifetime_can_be_bounded() {
    // WIT-16 to WIT-20.
    let world = World::new("ES256");
    assert_eq!(world.with_claim("exp", json!(NOW)), Err(R::Expired), "the second it ends");
    assert_eq!(world.with_claim("exp", json!(NOW + 1)), Ok(()));
    assert_eq!(world.with_claim("nbf", json!(NOW)), Ok(()));
    for bad in [json!(1.5), json!("1"), json!(-1), json!(true), json!(null), json!(1_000_000_000_000_u64)] {
        for name in ["exp", "nbf", "iat"] {
            assert_eq!(world.with_claim(name, bad.clone()), Err(R::Times), "{name} {bad}");
        }
    }
    let mut long = claims();
    long["nbf"] = json!(NOW - 10);
    let token = world.forge.sign(&world.header().to_string(), &long.to_string());
    let within = |seconds| {
        let longest = Some(Duration::from_secs(seconds));
        let rules = Rules { bundles: &world.bundles, revoked: &|_| false, longest, now: now() };
        validate(&token, &rules).map(drop)
    };
    assert_eq!((within(910), within(909)), (Ok(()), Err(R::Times)));
}

#[test]
fn json_that_reads_two_ways_and_other_shapes_are_refused() {
    let world = World::new("ES256");
    let (header, good) = (world.header().to_string(), claims().to_string());
    let body = good.strip_prefix('{').unwrap();
    for doubled in [
        format!(r#"{{"sub":"spiffe://example.org/admin",{body}"#),
        format!(r#"{{"cnf":{{}},{body}"#),
        format!("{good}{{}}"),
        "[]".to_owned(),
    ] {
        assert_eq!(world.raw(&header, &doubled), Err(R::Claims), "{doubled}");
    }
    assert_eq!(world.raw(r#"{"typ":"wit+jwt","alg":"none","alg":"ES256"}"#, &good), Err(R::Header));
    assert_eq!(world.with_claim("jti", json!(7)), Err(R::Claims));
    for sub in [json!("example.org/web"), json!(7), json!("SPIFFE://example.org/web")] {
        assert_eq!(world.with_claim("sub", sub), Err(R::Subject));
    }
    let token = world.forge.sign(&header, &good);
    for bad in [format!("{token}."), format!("{token}="), token.replace('.', ""), String::new()] {
        assert_eq!(check(&bad, &world.bundles).map(drop), Err(R::Shape), "{bad}");
    }
    assert_eq!(check(&"a".repeat(MAX_TOKEN_BYTES + 1), &world.bundles).map(drop), Err(R::TooLong));
    let foreign = world.with_claim("sub", json!("spiffe://other.test/web"));
    assert_eq!(foreign, Err(R::TrustDomain), "a key vouches for its own domain only");
}
