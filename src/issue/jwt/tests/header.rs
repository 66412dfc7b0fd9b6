//! Headers, keys and the shape of the JSON: H01–H05.

use aws_lc_rs::hmac;

use super::*;
use crate::pem;

#[test]
fn all_nine_algorithms_are_accepted() {
    for alg in ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"] {
        let world = World::new(alg);
        assert_eq!(world.verdict(&world.header(), &claims()), Ok(()), "{alg}");
    }
}

#[test]
fn the_algorithm_comes_from_the_key() {
    // H01, JWT-05.
    let (curve, rsa) = (World::new("ES256"), World::new("RS256"));
    for alg in ["none", "None", "NONE", "", "HS256", "HS384", "HS512", "EdDSA", "ES256K", "es256", "ES256 "] {
        assert_eq!(curve.with_header("alg", json!(alg)), Err(R::Algorithm), "{alg}");
    }
    for alg in [json!(null), json!(7), json!(["ES256"])] {
        assert_eq!(curve.with_header("alg", alg), Err(R::Algorithm));
    }
    assert_eq!(curve.verdict(&without(curve.header(), "alg"), &claims()), Err(R::Algorithm));
    for alg in ["RS256", "PS256", "ES384", "ES512"] {
        assert_eq!(curve.with_header("alg", json!(alg)), Err(R::Algorithm), "{alg} with a P-256 key");
    }
    assert_eq!(rsa.with_header("alg", json!("ES256")), Err(R::Algorithm));
    assert_eq!(rsa.with_header("alg", json!("RS384")), Err(R::Signature));
    assert_eq!(rsa.with_header("alg", json!("PS256")), Err(R::Signature));
}

#[test]
fn a_public_key_is_no_hmac_secret() {
    // H01: HS256 keyed with each form in which the public key is known.
    for alg in ["ES256", "RS256"] {
        let world = World::new(alg);
        let der = world.forge.public_bytes();
        let secrets = [
            der.clone(),
            pem::encode("PUBLIC KEY", &der).as_bytes().to_vec(),
            world.forge.jwk("k1").to_string().into_bytes(),
            Vec::new(),
        ];
        for secret in secrets {
            for named in ["HS256", alg] {
                let header = json!({ "alg": named, "kid": "k1", "typ": "JWT" });
                let signed = format!(
                    "{}.{}",
                    URL_SAFE_NO_PAD.encode(header.to_string()),
                    URL_SAFE_NO_PAD.encode(claims().to_string())
                );
                let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
                let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
                let expected = if named == "HS256" { R::Algorithm } else { R::Signature };
                assert_eq!(world.check(&token).map(drop), Err(expected));
            }
        }
    }
}

#[test]
fn a_kid_is_a_map_key_and_nothing_else() {
    // H02, JWT-06.
    let world = World::new("ES256");
    for kid in ["../../etc/passwd", "' OR 1=1 --", "k1\0", "K1", "k1 ", "/dev/null", &"k".repeat(4_096)] {
        assert_eq!(world.with_header("kid", json!(kid)), Err(R::UnknownKey), "{kid}");
    }
    for kid in [json!(""), json!(null), json!(1), json!(["k1"]), json!({ "k1": 1 })] {
        assert_eq!(world.with_header("kid", kid), Err(R::NoKeyId));
    }
    assert_eq!(world.verdict(&without(world.header(), "kid"), &claims()), Err(R::NoKeyId));
}

#[test]
fn a_key_of_another_use_or_twice_in_the_set_validates_nothing() {
    // H02, JWT-22.
    let world = World::new("ES256");
    let token = world.forge.sign(&world.header().to_string(), &claims().to_string());
    let with = |keys: Value| {
        let bundles = bundles(&[("example.org", json!({ "keys": keys }))]);
        validate(&token, "aud1", &bundles, &|_| false, now()).map(drop)
    };
    let jwk = world.forge.jwk("k1");
    assert_eq!(with(json!([jwk])), Ok(()));
    for kind in ["x509-svid", "wit-svid", "sig", "JWT-SVID"] {
        let mut other = jwk.clone();
        other["use"] = json!(kind);
        assert_eq!(with(json!([other])), Err(R::UnknownKey), "{kind}");
    }
    assert_eq!(with(json!([jwk, Forge::new("ES256").jwk("k1")])), Err(R::UnknownKey));
    assert_eq!(with(json!([])), Err(R::UnknownKey));
}

#[test]
fn a_key_vouches_only_for_its_own_trust_domain() {
    // WAPI-45: the same kid in another domain's bundle, and a domain nobody knows.
    let (own, other) = (Forge::new("ES256"), Forge::new("ES256"));
    let bundles = bundles(&[
        ("example.org", json!({ "keys": [own.jwk("k1")] })),
        ("other.test", json!({ "keys": [other.jwk("k1"), other.jwk("k2")] })),
    ]);
    let check = |by: &Forge, kid: &str, sub: &str| {
        let mut claims = claims();
        claims["sub"] = json!(sub);
        let header = json!({ "alg": "ES256", "kid": kid }).to_string();
        validate(&by.sign(&header, &claims.to_string()), "aud1", &bundles, &|_| false, now()).map(drop)
    };
    assert_eq!(check(&own, "k1", SUB), Ok(()));
    assert_eq!(check(&other, "k1", "spiffe://other.test/web"), Ok(()));
    assert_eq!(check(&other, "k1", SUB), Err(R::Signature));
    assert_eq!(check(&other, "k2", SUB), Err(R::UnknownKey));
    assert_eq!(check(&own, "k1", "spiffe://other.test/web"), Err(R::Signature));
    assert_eq!(check(&own, "k1", "spiffe://third.test/web"), Err(R::TrustDomain));
    assert_eq!(check(&own, "k1", "spiffe://sub.example.org/web"), Err(R::TrustDomain));
}

#[test]
fn every_unknown_header_is_refused() {
    // H03, AMB-12: signed by the right key, and refused all the same.
    let world = World::new("ES256");
    for name in
        ["jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip", "cty", "enc", "foo", "Alg"]
    {
        assert_eq!(world.with_header(name, json!("x")), Err(R::Header), "{name}");
    }
    assert_eq!(world.with_header("crit", json!(["exp"])), Err(R::Header));
    assert_eq!(world.with_header("b64", json!(false)), Err(R::Header));
}

#[test]
fn only_two_types_are_jwt_svids() {
    // H04, JWT-07.
    let world = World::new("ES256");
    assert_eq!(world.verdict(&without(world.header(), "typ"), &claims()), Ok(()));
    assert_eq!(world.with_header("typ", json!("JOSE")), Ok(()));
    for kind in [
        "jwt",
        "at+jwt",
        "wit+jwt",
        "wpt+jwt",
        "txntoken+jwt",
        "statuslist+jwt",
        "secevent+jwt",
        "oauth-id-jag+jwt",
        "application/jwt",
        "JWT ",
        "",
    ] {
        assert_eq!(world.with_header("typ", json!(kind)), Err(R::Type), "{kind}");
    }
    for kind in [json!(null), json!(7), json!(["JWT"])] {
        assert_eq!(world.with_header("typ", kind), Err(R::Type));
    }
}

#[test]
fn json_that_reads_two_ways_is_refused() {
    // H05: all correctly signed.
    let world = World::new("ES256");
    let good_header = world.header().to_string();
    let good = claims().to_string();
    let body = good.strip_prefix('{').unwrap();
    for doubled in [
        format!(r#"{{"sub":"spiffe://example.org/admin",{body}"#),
        format!(r#"{{"s\u0075b":"spiffe://example.org/admin",{body}"#),
        format!(r#"{{"exp":9999999999,{body}"#),
        format!(r#"{{"aud":"aud2",{body}"#),
        format!(r#"{{"x":{{"y":1,"y":2}},{body}"#),
        format!("\u{feff}{good}"),
        format!("{good}{{}}"),
        format!("{good}\0"),
        format!(r#"{{"x":"\ud800",{body}"#),
        "[]".to_owned(),
        "null".to_owned(),
    ] {
        assert_eq!(world.raw(&good_header, &doubled), Err(R::Claims), "{doubled}");
    }
    for doubled in [
        r#"{"alg":"none","alg":"ES256","kid":"k1"}"#,
        r#"{"alg":"ES256","\u0061lg":"none","kid":"k1"}"#,
        r#"{"alg":"ES256","kid":"k2","kid":"k1"}"#,
        r#"["ES256"]"#,
    ] {
        assert_eq!(world.raw(doubled, &good), Err(R::Header), "{doubled}");
    }
    assert_eq!(world.raw(&good_header, &format!(" {good}\n")), Ok(()), "white space is just that");
}
