//! Tests of bundle documents: every shared vector, with the verdict of conformance 3.3.

use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use super::*;
use crate::trust::DocumentForm;

fn vector(name: &str) -> Vec<u8> {
    let file = format!("{}/tests/vectors/bundles/bundle-{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&file).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn value(name: &str) -> Value {
    serde_json::from_slice(&vector(name)).unwrap()
}

fn parse(document: &Value) -> Result<BundleDocument, DocumentError> {
    BundleDocument::parse(document.to_string().as_bytes())
}

/// X.509 authorities, JWT keys, WIT keys.
fn counts(document: &BundleDocument) -> (usize, usize, usize) {
    let bundle = &document.bundle;
    (bundle.x509().len(), bundle.jwt().len(), bundle.wit().len())
}

/// The vectors that conformance lists and that are not files: each is a file with one change.
fn made() -> Vec<(&'static str, Value)> {
    let good = value("extra-top-level");
    let with_key = |key: Value| {
        let mut document = good.clone();
        document["keys"].as_array_mut().unwrap().push(key);
        document
    };
    let with_x5c = |x5c: Value| {
        let mut document = good.clone();
        document["keys"][0]["x5c"] = x5c;
        document
    };
    let der = good["keys"][0]["x5c"][0].clone();
    let jwt = value("jwt-no-kid")["keys"][1].clone();
    let jwt_with = |name: &str, value: Value| {
        let mut key = jwt.clone();
        key["kid"] = "k".into();
        key[name] = value;
        key
    };
    let mut missing_use = jwt_with("kid", "k".into());
    missing_use.as_object_mut().unwrap().remove("use");
    let mut bare = good.clone();
    bare["keys"][0] = json!({ "kty": "EC", "use": "x509-svid", "x5c": [der.clone()] });
    let mut most = good.clone();
    most["spiffe_sequence"] = u64::MAX.into();
    vec![
        ("good", good.clone()),
        ("missing-use", with_key(missing_use)),
        ("unknown-kty", with_key(json!({ "kty": "AKP", "use": "jwt-svid", "kid": "pq", "pub": "AA" }))),
        ("unknown-kty-x509", with_key(json!({ "kty": "AKP", "use": "x509-svid", "x5c": ["!"] }))),
        ("unknown-kty-unknown-use", with_key(json!({ "kty": "AKP", "use": "frob" }))),
        ("x509-two-x5c", with_x5c(json!([der.clone(), der.clone()]))),
        ("x509-second-x5c-garbage", with_x5c(json!([der, "!", 7]))),
        ("x509-no-key-params", bare),
        ("wit", with_key(jwt_with("use", "wit-svid".into()))),
        ("seq-u64max", most),
    ]
}

#[test]
fn every_vector_has_the_verdict_of_conformance() {
    let files = [
        ("empty-keys-array", (0, 0, 0)),
        ("extra-top-level", (1, 0, 0)),
        ("unknown-use", (1, 0, 0)),
        ("use-wrong-case", (1, 0, 0)),
        ("use-sig", (1, 0, 0)),
        ("missing-kty", (1, 0, 0)),
        ("okp-x25519", (1, 0, 0)),
        ("x509-no-x5c", (1, 0, 0)),
        ("x509-empty-x5c", (1, 0, 0)),
        ("x509-with-kid", (1, 0, 0)),
        ("x509-key-mismatch", (1, 0, 0)),
        ("jwt-no-kid", (1, 0, 0)),
        ("jwt-dup-kid", (0, 0, 0)),
        ("hint-float", (1, 0, 0)),
        ("hint-negative", (1, 0, 0)),
    ];
    for (name, expected) in files {
        let document = BundleDocument::parse(&vector(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((counts(&document), document.refresh_hint), (expected, None), "{name}");
    }
    let made_counts = [(1, 0, 0); 8].into_iter().chain([(1, 0, 1), (1, 0, 0)]);
    for ((name, document), expected) in made().into_iter().zip(made_counts) {
        assert_eq!(counts(&parse(&document).unwrap_or_else(|e| panic!("{name}: {e}"))), expected, "{name}");
    }
}

#[test]
fn a_refused_document_names_the_member() {
    for (name, said) in [
        ("no-keys-member", "keys: is missing"),
        ("keys-null", "keys: is not an array"),
        ("seq-string", "spiffe_sequence: is not a whole number"),
        ("seq-negative", "spiffe_sequence: is not a whole number"),
        ("seq-float", "spiffe_sequence: is not a whole number"),
    ] {
        let error = BundleDocument::parse(&vector(name)).unwrap_err().to_string();
        assert!(error.starts_with(said), "{name}: {error}");
    }
    let good = value("extra-top-level");
    for (member, broken, said) in [
        ("x5c", json!("MII"), "keys[0].x5c: is not an array"),
        ("x5c", json!(["MII="]), "keys[0].x5c[0]: is not standard base64"),
        ("x5c", json!([7]), "keys[0].x5c[0]: is not standard base64"),
        ("x5c", json!(["AAAA"]), "keys[0].x5c[0]: is not standard base64"),
    ] {
        let mut document = good.clone();
        document["keys"][0][member] = broken;
        let error = parse(&document).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
    assert_eq!(parse(&json!({ "keys": [7] })).unwrap_err().to_string(), "keys[0]: is not an object");
    assert_eq!(parse(&json!([])).unwrap_err().to_string(), "document: is not an object");
}

#[test]
fn a_member_that_occurs_twice_spoils_the_document() {
    for text in
        [r#"{"keys":[],"keys":[]}"#, r#"{"keys":[{"kty":"EC","kty":"EC"}]}"#, "{\"keys\":[]} x", "\u{feff}{}"]
    {
        let error = BundleDocument::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(error, DocumentError::NotJson(_)), "{text}: {error}");
    }
}

#[test]
fn size_keys_and_nesting_are_limited() {
    let long = vec![b' '; MAX_DOCUMENT_BYTES + 1];
    assert!(matches!(BundleDocument::parse(&long), Err(DocumentError::TooLong(_))));
    let many = json!({ "keys": vec![json!({}); MAX_KEYS + 1] });
    assert!(parse(&many).unwrap_err().to_string().starts_with("keys: has more than 1000"));
    let deep = format!("{{\"keys\":[],\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(BundleDocument::parse(deep.as_bytes()), Err(DocumentError::NotJson(_))));
}

#[test]
fn sequence_and_hint_are_read_exactly() {
    let document = |text: &str| BundleDocument::parse(text.as_bytes()).unwrap();
    let most = document(r#"{"keys":[],"spiffe_sequence":18446744073709551615,"spiffe_refresh_hint":300}"#);
    assert_eq!((most.sequence, most.refresh_hint), (Some(u64::MAX), Some(Duration::from_secs(300))));
    assert_eq!(document(r#"{"keys":[],"refresh_hint":9}"#).refresh_hint, None, "AMB-26");
    let zero = document(r#"{"keys":[],"spiffe_refresh_hint":0}"#);
    assert_eq!((zero.refresh_hint, zero.remarks.len()), (None, 1));
    assert!(BundleDocument::parse(br#"{"keys":[],"spiffe_sequence":18446744073709551616}"#).is_err());
}

#[test]
fn what_was_passed_over_is_said_in_the_order_of_the_document() {
    let mut document = value("jwt-dup-kid");
    document["keys"].as_array_mut().unwrap().insert(1, json!({ "kty": "AKP" }));
    document["spiffe_refresh_hint"] = json!(-1);
    let remarks = parse(&document).unwrap().remarks;
    let places: Vec<&str> = remarks.iter().map(|remark| remark.member.as_str()).collect();
    assert_eq!(places, ["keys[0].kid", "keys[1].kty", "keys[2].kid", "spiffe_refresh_hint"]);
    let mismatch = BundleDocument::parse(&vector("x509-key-mismatch")).unwrap().remarks;
    assert!(mismatch[0].to_string().starts_with("keys[0].x5c: is for another key"), "{mismatch:?}");
}

#[test]
fn a_kid_is_unique_among_jwt_and_wit_keys() {
    let mut document = value("jwt-dup-kid");
    document["keys"][1]["use"] = "wit-svid".into();
    assert!(parse(&document).unwrap().bundle.is_empty());
    document["keys"][1]["kid"] = "k2".into();
    assert_eq!(counts(&parse(&document).unwrap()), (0, 1, 1));
}

#[test]
fn the_same_certificate_counts_once() {
    let mut document = value("extra-top-level");
    let again = document["keys"][0].clone();
    document["keys"].as_array_mut().unwrap().push(again);
    assert_eq!(counts(&parse(&document).unwrap()), (1, 0, 0));
}

#[test]
fn what_we_write_we_read_and_writes_the_same_again() {
    let mut document = value("jwt-dup-kid");
    document["keys"][1]["use"] = "wit-svid".into();
    document["keys"][1]["kid"] = "k2".into();
    document["keys"][0]["d"] = "secret".into();
    document["keys"].as_array_mut().unwrap().push(value("extra-top-level")["keys"][0].clone());
    let read = parse(&document).unwrap();
    let form = DocumentForm {
        sequence: Some(u64::MAX),
        refresh_hint: Some(Duration::from_secs(300)),
        wit_keys: true,
    };
    let bytes = read.bundle.document(&form).unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(!text.contains("secret"), "{text}");
    let again = BundleDocument::parse(&bytes).unwrap();
    assert_eq!((counts(&again), again.remarks.len()), ((1, 1, 1), 0));
    assert_eq!((again.sequence, again.refresh_hint), (Some(u64::MAX), Some(Duration::from_secs(300))));
    assert_eq!(again.bundle.document(&form).unwrap(), bytes);
    let without = again.bundle.document(&DocumentForm::default()).unwrap();
    let without: Value = serde_json::from_slice(&without).unwrap();
    assert_eq!(without.as_object().unwrap().len(), 1, "nothing but keys");
    assert_eq!(without["keys"].as_array().unwrap().len(), 2, "no WIT key unless asked for (INT-05)");
    let root = &without["keys"][0];
    let members: Vec<&String> = root.as_object().unwrap().keys().collect();
    assert_eq!(members, ["crv", "kty", "use", "x", "x5c", "y"], "X509-33..37, TDB-12");
    assert_eq!(root, &value("extra-top-level")["keys"][0]);
    assert_eq!(
        serde_json::from_slice::<Value>(
            &DomainBundle::new([], JwtBundle::of([]), JwtBundle::of([]))
                .document(&DocumentForm::default())
                .unwrap()
        )
        .unwrap(),
        json!({ "keys": [] }),
        "INT-04"
    );
}

#[test]
fn certificates_of_every_common_key_have_a_jwk() {
    let kinds = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "EC", "P-256"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "EC", "P-384"),
        (&rcgen::PKCS_ECDSA_P521_SHA512, "EC", "P-521"),
        (&rcgen::PKCS_ED25519, "OKP", "Ed25519"),
        (&rcgen::PKCS_RSA_SHA256, "RSA", ""),
    ];
    for (algorithm, kty, curve) in kinds {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = CertificateParams::new([]).unwrap().self_signed(&key).unwrap();
        let jwk = certificate_jwk(certificate.der()).unwrap();
        assert_eq!(jwk["kty"], kty);
        assert_eq!(jwk.get("crv").and_then(Value::as_str).unwrap_or_default(), curve);
        let mut signing = Value::Object(jwk);
        signing["kid"] = "k".into();
        assert_eq!(JwtKey::read(&signing).is_some(), kty != "OKP", "{kty} {curve}");
    }
}
