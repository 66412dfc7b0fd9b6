//! RFC 9449 §4.3, a row each.

use aws_lc_rs::hmac;

use super::*;

#[test]
fn h12_whoever_has_the_key_holds_the_token_by_every_algorithm() {
    for alg in JwsAlgorithm::ALL {
        let mut client = Client::new(alg.as_str());
        let thumbprint = client.claims["cnf"]["jkt"].as_str().unwrap().to_owned();
        let proof = client.proof();
        let holder = Holder::Key { thumbprint, proof_id: "p1".to_owned() };
        assert_eq!(client.shows_proof(&proof), Ok(holder), "{alg:?}");
    }
}

/// And by a maker that is not ours.
#[test]
fn h12_a_proof_by_another_library_is_taken() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let key = jsonwebtoken::EncodingKey::from_ec_der(pair.serialized_der());
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::ES256).unwrap();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    header.typ = Some("dpop+jwt".to_owned());
    header.jwk = Some(jwk.clone());
    let proof = jsonwebtoken::encode(&header, &Client::said(), &key).unwrap();
    let mut client = Client::new("ES256");
    let jkt = jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap();
    client.claims = object(&json!({ "cnf": { "jkt": jkt } }));
    assert!(client.shows_proof(&proof).is_ok());
}

#[test]
fn h12_there_is_one_proof_and_no_more() {
    let mut client = Client::new("ES256");
    let proof = client.proof();
    assert_eq!(client.shows_proofs(&[]), Err(R::NoProof));
    assert_eq!(client.shows_proofs(&[&proof, &proof]), Err(R::Several));
    let two = format!("{proof}, {proof}");
    let long = format!("{proof}{}", "A".repeat(MAX_PROOF_BYTES));
    for text in ["", "a.b.c", &two, &long, &format!(" {proof}"), &format!("{proof}=")] {
        assert_eq!(client.shows_proof(text), Err(R::Malformed), "{text}");
    }
    assert!(client.shows_proof(&proof).is_ok(), "none of them used it up");
}

#[test]
fn h12_a_proof_says_that_it_is_one() {
    let mut client = Client::new("ES256");
    for typ in ["JWT", "jwt", "at+jwt", "wpt+jwt", "wit+jwt", "DPoP+JWT", "application/dpop+jwt", ""] {
        assert_eq!(client.under("typ", json!(typ)), Err(R::Type), "{typ}");
    }
    assert_eq!(client.under("typ", json!(null)), Err(R::Type));
    let token = client.key.sign(r#"{"alg":"ES256","kid":"k","typ":"at+jwt"}"#, "{}");
    assert_eq!(client.shows_proof(&token), Err(R::Type), "a token is no proof of itself");
}

#[test]
fn h12_nothing_is_signed_by_a_shared_secret_or_by_nobody() {
    let mut client = Client::new("RS256");
    for alg in ["none", "None", "", "HS256", "HS512", "EdDSA", "ES256", "es256"] {
        assert_eq!(client.under("alg", json!(alg)), Err(R::Algorithm), "{alg}");
    }
    assert_eq!(client.under("alg", json!(null)), Err(R::Algorithm));
    // Of its own kind, and another than the one that signed.
    assert_eq!(client.under("alg", json!("PS256")), Err(R::Signature));
    // The public key as a secret.
    let header = changed(client.header(), "alg", json!("HS256"));
    let signed = [header, Client::said()].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &client.key.public_bytes()), signed.as_bytes());
    let confused = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.as_ref()));
    assert_eq!(client.shows_proof(&confused), Err(R::Algorithm));
    let unsigned = format!("{signed}.");
    assert_eq!(client.shows_proof(&unsigned), Err(R::Malformed));
    client.rules.algorithms = vec![JwsAlgorithm::Es256];
    let proof = client.proof();
    assert_eq!(client.shows_proof(&proof), Err(R::Algorithm), "not one of the rules'");
}

#[test]
fn h12_the_key_in_a_proof_is_public_whole_and_the_only_one_it_names() {
    let mut client = Client::new("ES256");
    for name in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        let jwk = changed(public(&client.key), name, json!("AA"));
        assert_eq!(client.under("jwk", jwk), Err(R::PrivateKey), "{name}");
    }
    let of = |name: &str, value: Value| changed(public(&Forge::new("ES256")), name, value);
    for (jwk, why) in [
        (json!(null), R::Header),
        (json!("k"), R::Header),
        (json!({}), R::Header),
        (json!({ "kty": "oct" }), R::Header),
        (of("x", json!("AA")), R::Header),
        (of("kty", json!("OKP")), R::Header),
        (of("crv", json!("P-384")), R::Header),
        (of("use", json!("enc")), R::Header),
        (of("alg", json!("ES384")), R::Algorithm),
        (public(&Forge::new("ES384")), R::Algorithm),
        (public(&Forge::new("RS256")), R::Algorithm),
    ] {
        assert_eq!(client.under("jwk", jwk.clone()), Err(why), "{jwk}");
    }
    for (name, value) in [
        ("crit", json!(["b64"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("jku", json!("https://evil.example.org/keys")),
        ("x5u", json!("https://evil.example.org/chain")),
        ("x5c", json!(["MII"])),
        ("x5t", json!("AA")),
        ("zip", json!("DEF")),
    ] {
        assert_eq!(client.under(name, value), Err(R::Header), "{name}");
    }
    assert!(client.under("kid", json!("k")).is_ok(), "a name of its own means nothing");
}

#[test]
fn h12_another_key_or_another_signature_proves_nothing() {
    let (mut client, thief) = (Client::new("ES256"), Client::new("ES256"));
    let proof = thief.proof();
    assert_eq!(client.shows_proof(&proof), Err(R::OtherKey), "good, and not by the token's key");
    let forged = thief.sign(&client.header(), &Client::said());
    assert_eq!(client.shows_proof(&forged), Err(R::Signature));
    let good = client.proof();
    let (head, rest) = good.split_once('.').unwrap();
    let said = URL_SAFE_NO_PAD.encode(changed(Client::said(), "htm", json!("POST")).to_string());
    let swapped = format!("{head}.{said}.{}", rest.split_once('.').unwrap().1);
    assert_eq!(client.shows_proof(&swapped), Err(R::Signature));
}

#[test]
fn h12_a_proof_is_for_one_method_and_one_url() {
    let mut client = Client::new("ES256");
    for method in [json!("POST"), json!("get"), json!("GET "), json!(""), json!(7), json!(null)] {
        assert_eq!(client.with("htm", method.clone()), Err(R::Method), "{method}");
    }
    for url in [
        "https://wiki.example.org/api/pages",
        "https://wiki.example.org/api",
        "https://wiki.example.org/api/page/",
        "https://wiki.example.org/api//page",
        "https://wiki.example.org/API/page",
        "https://wiki.example.org/api%2Fpage",
        "https://wiki.example.org/x/../api/page",
        "https://wiki.example.org/api/page?id=7",
        "https://wiki.example.org/api/page?",
        "https://wiki.example.org/api/page#top",
        "http://wiki.example.org/api/page",
        "https://wiki.example.org:8443/api/page",
        "https://wiki.example.org.evil.org/api/page",
        "https://evil.org/api/page",
        "https://evil@wiki.example.org/api/page",
        "wiki.example.org/api/page",
        "/api/page",
        "",
    ] {
        assert_eq!(client.with("htu", json!(url)), Err(R::Target), "{url}");
    }
    for none in [json!(null), json!(7), json!([URL])] {
        assert_eq!(client.with("htu", none), Err(R::Target));
    }
    for (n, url) in [
        "HTTPS://wiki.example.org/api/page",
        "https://WIKI.example.org/api/page",
        "https://wiki.example.org:443/api/page",
        "https://wiki.example.org/api/%70age",
    ]
    .into_iter()
    .enumerate()
    {
        let said = changed(changed(Client::said(), "htu", json!(url)), "jti", json!(n.to_string()));
        let proof = client.sign(&client.header(), &said);
        assert!(client.shows_proof(&proof).is_ok(), "{url} is the same");
    }
}

#[test]
fn h12_the_query_of_the_request_does_not_count_and_its_own_url_must_be_one() {
    let mut client = Client::new("ES256");
    let proof = client.proof();
    let mut at = |url: &str, method: &str| {
        let shown = Shown { token: TOKEN, scheme: Scheme::Dpop, proofs: &[&proof], certificate: None };
        client.shows(&shown, &Request { method, url, now: now() })
    };
    for url in ["", "/api/page", "ftp://wiki.example.org/api/page", "https:///api/page"] {
        let refused = at(url, "GET").unwrap_err();
        assert_eq!((refused, refused.status(), refused.challenge(&[])), (R::Url, 500, None), "{url}");
    }
    assert_eq!(at(URL, "HEAD"), Err(R::Method));
    assert_eq!(at("https://wiki.example.org/", "GET"), Err(R::Target));
    assert!(at("https://wiki.example.org/api/page?id=7#top", "GET").is_ok());
}

#[test]
fn h12_a_proof_lasts_a_minute_and_comes_from_no_future() {
    let mut client = Client::new("ES256");
    for (name, value, why) in [
        ("iat", json!(NOW - 61), R::Stale),
        ("iat", json!(0), R::Stale),
        ("iat", json!(NOW + 31), R::Future),
        ("iat", json!(NOW + 86_400), R::Future),
        ("nbf", json!(NOW + 31), R::Future),
        ("exp", json!(NOW), R::Stale),
        ("iat", json!(null), R::Malformed),
        ("iat", json!("now"), R::Malformed),
        ("iat", json!(1.5), R::Malformed),
        ("iat", json!(-1), R::Malformed),
        ("exp", json!("never"), R::Malformed),
    ] {
        assert_eq!(client.with(name, value.clone()), Err(why), "{name} {value}");
    }
    for (n, iat) in [NOW - 60, NOW, NOW + 30].into_iter().enumerate() {
        let said = changed(changed(Client::said(), "iat", json!(iat)), "jti", json!(n.to_string()));
        let proof = client.sign(&client.header(), &said);
        assert!(client.shows_proof(&proof).is_ok(), "{iat}");
    }
    // However long somebody wants it.
    client.rules.past = Duration::from_secs(86_400);
    assert_eq!(client.with("iat", json!(NOW - 301)), Err(R::Stale));
    client.rules.ahead = Duration::from_secs(86_400);
    assert_eq!(client.with("iat", json!(NOW + 301)), Err(R::Future));
}

#[test]
fn h12_a_proof_is_for_one_token() {
    let mut client = Client::new("ES256");
    for ath in [json!(null), json!(""), json!(hash("other")), json!(TOKEN), json!(7)] {
        assert_eq!(client.with("ath", ath.clone()), Err(R::OtherToken), "{ath}");
    }
    let padded = format!("{}=", hash(TOKEN));
    assert_eq!(client.with("ath", json!(padded)), Err(R::OtherToken));
}

#[test]
fn h12_a_proof_is_used_once() {
    let mut client = Client::new("ES256");
    let proof = client.proof();
    assert!(client.shows_proof(&proof).is_ok());
    assert_eq!(client.shows_proof(&proof), Err(R::Used(Used::Again)));
    assert_eq!(client.with("iat", json!(NOW - 1)), Err(R::Used(Used::Again)), "its name, signed again");
    assert!(client.with("jti", json!("p2")).is_ok());
    for jti in [json!(null), json!(""), json!(7), json!("x".repeat(257))] {
        assert_eq!(client.with("jti", jti.clone()), Err(R::Malformed), "{jti}");
    }
    let before = client.replays.len();
    assert!(client.with("htm", json!("PUT")).is_err() && client.with("ath", json!("x")).is_err());
    assert_eq!(client.replays.len(), before, "what is refused takes no room");
}

#[test]
fn h12_what_is_said_twice_is_not_believed_once() {
    let mut client = Client::new("ES256");
    let (header, said) = (client.header().to_string(), Client::said().to_string());
    for (header, said) in [
        (header.clone(), said.replacen('{', r#"{"htm":"POST","#, 1)),
        (header.clone(), said.replacen('{', r#"{"h\u0074m":"POST","#, 1)),
        (header.replacen('{', r#"{"alg":"none","#, 1), said.clone()),
        (header.replace(r#""kty":"#, r#""kty":"RSA","kty":"#), said.clone()),
        (header.clone(), "[]".to_owned()),
        ("[]".to_owned(), said.clone()),
    ] {
        let proof = client.key.sign(&header, &said);
        assert_eq!(client.shows_proof(&proof), Err(R::Malformed), "{header} {said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is changed in a proof, or in the token that it is for, nothing is proven.
    #[test]
    fn h12_a_changed_proof_proves_nothing(at in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.-]") {
        let mut client = Client::new("ES256");
        let mut proof = client.proof();
        let place = at.index(proof.len());
        prop_assume!(proof.as_bytes()[place] != with.as_bytes()[0]);
        proof.replace_range(place..=place, &with);
        prop_assert!(client.shows_proof(&proof).is_err());
        let mut token = TOKEN.to_owned();
        let place = at.index(token.len());
        prop_assume!(token.as_bytes()[place] != with.as_bytes()[0]);
        token.replace_range(place..=place, &with);
        let proof = client.proof();
        let shown = Shown { token: &token, scheme: Scheme::Dpop, proofs: &[&proof], certificate: None };
        let refused = client.shows(&shown, &Request { method: "GET", url: URL, now: now() });
        prop_assert_eq!(refused, Err(R::OtherToken));
    }

    /// Each claim that is checked is needed, and each value of it but the right one is refused.
    #[test]
    fn h12_every_claim_counts(
        name in prop::sample::select(vec!["htm", "htu", "ath"]),
        value in prop_oneof![".*".prop_map(Value::from), any::<i64>().prop_map(Value::from), Just(json!(null))],
    ) {
        let mut client = Client::new("ES256");
        prop_assume!(Client::said()[name] != value);
        // Another spelling of the same URL is the same.
        let is_same = name == "htu" && value.as_str().and_then(Target::stated) == Target::of_request(URL);
        prop_assume!(!is_same);
        prop_assert!(client.with(name, value).is_err());
    }
}

/// One memory under two rules: what was shown under one is not taken under the other, whichever came first.
#[test]
fn h12_a_proof_is_used_once_under_all_rules_that_share_a_memory() {
    let strict = Rules { past: Duration::from_secs(10), ..Rules::default() };
    let lenient = Rules { past: Duration::from_secs(120), ..Rules::default() };
    for used_before in [false, true] {
        let mut client = Client::new("ES256");
        let show = |client: &mut Client, name: &str, rules: &Rules, later: u64| {
            client.rules = rules.clone();
            let proof = client.sign(&client.header(), &changed(Client::said(), "jti", json!(name)));
            let shown = Shown { token: TOKEN, scheme: Scheme::Dpop, proofs: &[&proof], certificate: None };
            let now = now() + Duration::from_secs(later);
            client.shows(&shown, &Request { method: "GET", url: URL, now })
        };
        if used_before {
            assert!(show(&mut client, "first", &lenient, 0).is_ok());
        }
        assert!(show(&mut client, "p", &strict, 5).is_ok());
        assert_eq!(show(&mut client, "q", &strict, 11), Err(R::Stale));
        let again = Err(R::Used(Used::Again));
        assert_eq!(show(&mut client, "p", &lenient, 9), again, "still remembered");
        assert_eq!(show(&mut client, "p", &lenient, 60), again, "{used_before}");
        assert_eq!(show(&mut client, "p", &lenient, 120), again, "{used_before}");
        assert_eq!(show(&mut client, "p", &lenient, 121), Err(R::Stale));
    }
    // It was forgotten before the lenient rule was known: nobody knows whether it was used.
    let mut client = Client::new("ES256");
    let mut show = |name: &str, rules: &Rules, issued: u64, now_is: u64| {
        client.rules = rules.clone();
        let claims = changed(changed(Client::said(), "jti", json!(name)), "iat", json!(issued));
        let proof = client.sign(&client.header(), &claims);
        let shown = Shown { token: TOKEN, scheme: Scheme::Dpop, proofs: &[&proof], certificate: None };
        let now = now() + Duration::from_secs(now_is - NOW);
        client.shows(&shown, &Request { method: "GET", url: URL, now })
    };
    assert!(show("old", &strict, NOW, NOW).is_ok());
    assert!(show("new", &strict, NOW + 50, NOW + 50).is_ok());
    assert_eq!(show("old", &lenient, NOW, NOW + 51), Err(R::Used(Used::Again)));
    assert_eq!(show("new", &lenient, NOW + 50, NOW + 100), Err(R::Used(Used::Again)));
    assert!(show("other", &lenient, NOW + 60, NOW + 100).is_ok());
}
