//! Times, audiences, subjects, encodings and signatures: H06–H09.

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE};

use super::*;

#[test]
fn times_are_integers_in_range() {
    // H06, JWT-13 to JWT-15.
    let world = World::new("ES256");
    let good = claims().to_string();
    for text in ["1e400", "9e15", "9000000000000000", "-1", "1.5", "\"123\"", "true", "null", "[]", "1e10"] {
        for name in ["exp", "iat"] {
            let old = format!("\"{name}\":{}", claims()[name]);
            let changed = good.replace(&old, &format!("\"{name}\":{text}"));
            assert_ne!(changed, good);
            let refused = world.raw(&world.header().to_string(), &changed);
            // A number that no float holds is not JSON for us at all.
            let expected = if text == "1e400" { R::Claims } else { R::Times };
            assert_eq!(refused, Err(expected), "{name} = {text}");
        }
        let added = format!("{{\"nbf\":{text},{}", good.strip_prefix('{').unwrap());
        assert!(world.raw(&world.header().to_string(), &added).is_err(), "nbf = {text}");
    }
    assert_eq!(world.verdict(&world.header(), &without(claims(), "exp")), Err(R::Times));
    assert_eq!(world.verdict(&world.header(), &without(claims(), "iat")), Ok(()));
    assert_eq!(world.with_claim("exp", json!(NOW - 10 + 86_400)), Ok(()));
    assert_eq!(world.with_claim("exp", json!(NOW - 10 + 86_401)), Err(R::Times), "a day is the longest");
    assert_eq!(world.with_claim("iat", json!(NOW + 200)), Ok(()), "AMB-15: it limits nothing");
}

#[test]
fn expiry_has_no_leeway_and_not_before_has_ten_seconds() {
    let world = World::new("ES256");
    for (exp, expected) in [
        (NOW + 1, Ok(())),
        (NOW, Err(R::Expired)),
        (NOW - 5, Err(R::Expired)),
        (NOW - 90, Err(R::Expired)),
        (0, Err(R::Expired)),
    ] {
        assert_eq!(world.with_claim("exp", json!(exp)), expected, "{exp}");
    }
    for (nbf, expected) in [
        (NOW - 60, Ok(())),
        (NOW + 10, Ok(())),
        (NOW + 11, Err(R::NotYetValid)),
        (NOW + 600, Err(R::NotYetValid)),
    ] {
        assert_eq!(world.with_claim("nbf", json!(nbf)), expected, "{nbf}");
    }
}

#[test]
fn the_audience_must_match_exactly() {
    // H07, JWT-11.
    let world = World::new("ES256");
    let many = |count: usize| (0..count).map(|n| format!("aud{}", n + 1)).collect::<Vec<_>>();
    for good in [json!("aud1"), json!(["aud1"]), json!(["x", "aud1"]), json!(many(16))] {
        assert_eq!(world.with_claim("aud", good.clone()), Ok(()), "{good}");
    }
    for bad in [
        json!("aud2"),
        json!("AUD1"),
        json!("aud"),
        json!("aud11"),
        json!(""),
        json!([]),
        json!(["aud2"]),
        json!([["aud1"]]),
        json!({ "aud1": 1 }),
        json!(null),
        json!(1),
        json!(["aud1", 1]),
        json!("aud1 "),
        json!(many(17)),
        json!(many(10_000 / 12)),
    ] {
        assert_eq!(world.with_claim("aud", bad.clone()), Err(R::Audience), "{bad}");
    }
    assert_eq!(world.verdict(&world.header(), &without(claims(), "aud")), Err(R::Audience));
    let token = world.forge.sign(&world.header().to_string(), &claims().to_string());
    for expected in ["", "aud", "aud1,aud2"] {
        let refused = validate(&token, expected, &world.bundles, &|_| false, now());
        assert_eq!(refused.map(drop), Err(R::Audience), "{expected}");
    }
    let empty = json!({ "sub": SUB, "aud": [""], "exp": NOW + 300 });
    let token = world.forge.sign(&world.header().to_string(), &empty.to_string());
    assert_eq!(validate(&token, "", &world.bundles, &|_| false, now()).map(drop), Err(R::Audience));
}

#[test]
fn the_subject_is_a_spiffe_id() {
    let world = World::new("ES256");
    assert_eq!(world.verdict(&world.header(), &without(claims(), "sub")), Err(R::Subject));
    for sub in [
        json!(""),
        json!("web"),
        json!("https://example.org/web"),
        json!("SPIFFE://example.org/web"),
        json!("spiffe://Example.org/web"),
        json!("spiffe://example.org/"),
        json!("spiffe://example.org/a//b"),
        json!("spiffe://example.org/%77eb"),
        json!(7),
        json!(null),
        json!([SUB]),
        json!(format!("spiffe://example.org/{}", "a".repeat(2_048))),
    ] {
        assert_eq!(world.with_claim("sub", sub.clone()), Err(R::Subject), "{sub}");
    }
    assert_eq!(world.with_claim("sub", json!("spiffe://example.org")), Ok(()), "AMB-46");
}

#[test]
fn only_compact_canonical_jws_is_read() {
    // H08, JWT-01, JWT-03.
    let world = World::new("ES256");
    let token = world.forge.sign(&world.header().to_string(), &claims().to_string());
    assert!(world.check(&token).is_ok());
    let parts: Vec<_> = token.split('.').collect();
    let [header, body, signature] = parts[..] else { panic!() };
    let flattened = json!({ "protected": header, "payload": body, "signature": signature }).to_string();
    let padded = URL_SAFE.encode(claims().to_string() + "  ");
    let standard = STANDARD_NO_PAD.encode(URL_SAFE_NO_PAD.decode(signature).unwrap());
    // 64 bytes leave four unused bits in the last of 86 characters: A Q g w are canonical.
    let last = signature.chars().last().unwrap();
    let sloppy = match last {
        'A' => 'B',
        'Q' => 'R',
        'g' => 'h',
        'w' => 'x',
        other => panic!("{other}"),
    };
    let mut shapes = vec![
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        format!("{header}.{body}"),
        format!("{header}.{body}."),
        format!(".{body}.{signature}"),
        format!("{header}..{signature}"),
        format!("{token}.{signature}"),
        format!("{token}.{signature}.{signature}"),
        format!("{token}="),
        format!("{header}.{padded}.{signature}"),
        format!(" {token}"),
        format!("{token}\n"),
        format!("{header}.{body} .{signature}"),
        format!("{}{sloppy}", signature.strip_suffix(last).map(|s| format!("{header}.{body}.{s}")).unwrap()),
        format!("{header}.{body}.{signature}é"),
        flattened,
    ];
    if standard != signature {
        shapes.push(format!("{header}.{body}.{standard}"));
    }
    for shape in shapes {
        assert_eq!(world.check(&shape).map(drop), Err(R::Shape), "{shape}");
    }
    let long = format!("{token}{}", "A".repeat(16 * 1024));
    assert_eq!(world.check(&long).map(drop), Err(R::TooLong));
}

#[test]
fn a_signature_is_two_numbers_in_range_at_full_width() {
    // H09. The order of P-256, and n − 1 at the other end.
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
        0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let world = World::new("ES256");
    let token = world.forge.sign(&world.header().to_string(), &claims().to_string());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let good = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let (r, s) = good.split_at(32);
    let zero = [0; 32];
    let high: Vec<u8> = subtract(&ORDER, s);
    let check =
        |signature: &[u8]| world.check(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))).map(drop);
    assert_eq!(check(&[r, &high].concat()), Ok(()), "high and low s are both in range");
    let der = [&[0x30, 68, 2, 32], r, &[2, 32], s].concat();
    for bad in [
        [&zero, s].concat(),
        [r, &zero].concat(),
        [zero, zero].concat(),
        [&ORDER, s].concat(),
        [r, &ORDER].concat(),
        [&[0xff; 32], s].concat(),
        good[..63].to_vec(),
        [&good, &[0][..]].concat(),
        [&[0][..], &good].concat(),
        [s, r].concat(),
        der,
    ] {
        assert_eq!(check(&bad), Err(R::Signature), "{bad:02x?}");
    }
    let other = Forge::new("ES256").sign(&world.header().to_string(), &claims().to_string());
    assert_eq!(world.check(&other).map(drop), Err(R::Signature));
}

/// Big-endian `a − b` for 32 bytes, `a ≥ b`.
fn subtract(a: &[u8; 32], b: &[u8]) -> Vec<u8> {
    let (mut out, mut borrow) = (vec![0; 32], 0);
    for at in (0..32).rev() {
        let difference = i16::from(a[at]) - i16::from(b[at]) - borrow;
        borrow = i16::from(difference < 0);
        out[at] = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    out
}

#[test]
fn foreign_claims_go_no_further_and_an_audience_is_always_a_list() {
    let world = World::new("ES256");
    let extra = json!({ "sub": SUB, "aud": "aud1", "exp": NOW + 300, "role": "admin", "f": 1.5 });
    let valid = world.check(&world.forge.sign(&world.header().to_string(), &extra.to_string())).unwrap();
    assert_eq!(valid.claims["aud"], json!(["aud1"]));
    let own = valid.clone().into_claims(&domain("example.org"));
    assert_eq!((&own["role"], &own["f"]), (&json!("admin"), &json!(1.5)));
    let foreign = Value::Object(valid.into_claims(&domain("other.test")));
    assert_eq!(foreign, json!({ "sub": SUB, "aud": ["aud1"], "exp": NOW + 300 }));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_validator_panic_or_accept(text in "\\PC{0,200}", tail in "[A-Za-z0-9_.-]{0,120}") {
        let bundles = bundles(&[("example.org", json!({ "keys": [] }))]);
        for token in [text.clone(), tail.clone(), format!("{text}.{tail}")] {
            proptest::prop_assert!(validate(&token, "aud1", &bundles, &|_| false, now()).is_err());
        }
    }
}
