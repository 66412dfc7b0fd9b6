//! What the authorities sign, keep and publish, field by field.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};
use x509_parser::prelude::*;

use super::testing::{Forge, NOW, authorities, now};
use super::*;
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{LeaseId, SpiffeId};

const KEYS: [KeyType; 3] = [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048];

fn leaf(authority: &X509Authority, id: &str, dns_names: &[&str]) -> Result<Bytes, AuthorityError> {
    let key = WorkloadKey::generate(authority.algorithm()).unwrap();
    authority.sign_leaf(&LeafProfile {
        serial: LeaseId::from_random([7; 16]),
        spiffe_id: &SpiffeId::parse(id.as_bytes()).unwrap(),
        dns_names: &dns_names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>(),
        not_before: now() - BACKDATE,
        not_after: now() + Duration::from_secs(900),
        key: &key,
    })
}

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    let (rest, certificate) = parse_x509_certificate(der).unwrap();
    assert!(rest.is_empty());
    certificate
}

/// Dotted OID, criticality and content of each extension, in order.
fn extensions(certificate: &X509Certificate<'_>) -> Vec<(String, bool, Vec<u8>)> {
    certificate
        .extensions()
        .iter()
        .map(|one| (one.oid.to_id_string(), one.critical, one.value.to_vec()))
        .collect()
}

fn uris(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

const SAN: &str = "2.5.29.17";
const KEY_USAGE: &str = "2.5.29.15";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
const SUBJECT_KEY_ID: &str = "2.5.29.14";
const AUTHORITY_KEY_ID: &str = "2.5.29.35";

#[test]
fn a_leaf_has_exactly_the_extensions_of_the_profile() {
    for kind in KEYS {
        let set = authorities("example.org", kind);
        let authority = set.active_x509();
        let der = leaf(authority, "spiffe://example.org/web", &[]).unwrap();
        let leaf = parsed(&der);
        let found = extensions(&leaf);
        let key_id = authority.key_id();
        let aki = [&[0x30, 22, 0x80, 20], &key_id.as_bytes()[..]].concat();
        let of = |oid: &str| found.iter().find(|one| one.0 == oid).unwrap();
        assert_eq!(found.len(), 6, "and no CRL distribution point, no name constraints: {found:?}");
        assert_eq!((of(BASIC_CONSTRAINTS).1, of(BASIC_CONSTRAINTS).2.as_slice()), (true, &[0x30, 0][..]));
        assert_eq!((of(KEY_USAGE).1, of(KEY_USAGE).2.as_slice()), (true, &[3, 2, 7, 0x80][..]));
        assert_eq!((of(AUTHORITY_KEY_ID).1, &of(AUTHORITY_KEY_ID).2), (false, &aki));
        assert!(of(SAN).1, "the subject is empty, so the name is critical");
        assert!(!of(SUBJECT_KEY_ID).1 && !of(EXTENDED_KEY_USAGE).1);
        let usages = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usages.server_auth && usages.client_auth && !usages.any && usages.other.is_empty());
        assert_eq!(uris(&leaf), ["spiffe://example.org/web"]);
        assert_eq!(leaf.version(), X509Version::V3);
        assert_eq!(leaf.raw_serial(), LeaseId::from_random([7; 16]).as_bytes());
        assert_eq!(leaf.subject().iter_attributes().count(), 0);
        assert_eq!(leaf.issuer().as_raw(), authority.subject());
        let validity = leaf.validity();
        assert_eq!(validity.not_before.timestamp(), i64::try_from(NOW - 10).unwrap());
        assert_eq!(validity.not_after.timestamp(), i64::try_from(NOW + 900).unwrap());
        assert!(authority.verify(leaf.tbs_certificate.as_ref(), &leaf.signature_value.data).is_ok());
    }
}

#[test]
fn dns_names_stand_beside_the_id_and_name_the_subject() {
    let set = authorities("example.org", KeyType::EcP256);
    let long = "a".repeat(65);
    let der = leaf(set.active_x509(), "spiffe://example.org/db", &["db.example.org", &long]).unwrap();
    let certificate = parsed(&der);
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert!(!names.critical);
    let expected = [
        GeneralName::URI("spiffe://example.org/db"),
        GeneralName::DNSName("db.example.org"),
        GeneralName::DNSName(&long),
    ];
    assert_eq!(names.value.general_names, expected);
    assert_eq!(certificate.subject().to_string(), "CN=db.example.org");
    let der = leaf(set.active_x509(), "spiffe://example.org/db", &[&long]).unwrap();
    assert_eq!(parsed(&der).subject().iter_attributes().count(), 0, "over the bound of a common name");
}

#[test]
fn an_authority_certificate_is_a_signing_certificate_and_no_more() {
    for kind in KEYS {
        let set = authorities("example.org", kind);
        let authority = set.active_x509();
        let certificate = parsed(authority.certificate());
        let found = extensions(&certificate);
        let of = |oid: &str| found.iter().find(|one| one.0 == oid).unwrap();
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(
            (of(BASIC_CONSTRAINTS).1, of(BASIC_CONSTRAINTS).2.as_slice()),
            (true, &[0x30, 6, 1, 1, 0xff, 2, 1, 0][..])
        );
        assert_eq!(
            (of(KEY_USAGE).1, of(KEY_USAGE).2.as_slice()),
            (true, &[3, 2, 1, 6][..]),
            "keyCertSign, cRLSign"
        );
        assert_eq!(of(SUBJECT_KEY_ID).2[2..], authority.key_id().as_bytes()[..]);
        assert_eq!(uris(&certificate), ["spiffe://example.org"]);
        assert_eq!(certificate.subject(), certificate.issuer());
        let subject = certificate.subject().to_string();
        assert_eq!(subject, format!("O=Mayfly, CN=example.org, serialNumber={}", authority.key_id()));
        assert!(certificate.raw_serial().len() == 16 && certificate.raw_serial()[0] < 0x80);
        assert_eq!(unix_seconds(authority.not_before()), NOW - 10);
        assert_eq!(unix_seconds(authority.not_after()), NOW + 7 * 86_400);
    }
}

#[test]
fn no_two_keys_share_a_subject() {
    let (one, other) =
        (authorities("example.org", KeyType::EcP256), authorities("example.org", KeyType::EcP256));
    assert_ne!(one.active_x509().subject(), other.active_x509().subject());
    assert_ne!(one.active_jwt().kid(), other.active_jwt().kid());
}

#[test]
fn an_authority_refuses_what_it_must_not_sign() {
    let set = authorities("example.org", KeyType::EcP256);
    for foreign in ["spiffe://example.org", "spiffe://other.test/web", "spiffe://sub.example.org/web"] {
        let refused = leaf(set.active_x509(), foreign, &[]).unwrap_err();
        assert!(matches!(refused, AuthorityError::ForeignIdentity), "{foreign}: {refused}");
    }
    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    let outliving = set.active_x509().sign_leaf(&LeafProfile {
        serial: LeaseId::from_random([7; 16]),
        spiffe_id: &SpiffeId::parse(b"spiffe://example.org/web").unwrap(),
        dns_names: &[],
        not_before: now(),
        not_after: set.active_x509().not_after() + Duration::from_secs(1),
        key: &key,
    });
    assert!(matches!(outliving, Err(AuthorityError::OutlivesIssuer)));
}

#[test]
fn a_token_has_exactly_three_header_members_and_the_published_key() {
    for (kind, alg, members) in
        [(KeyType::EcP256, "ES256", 6), (KeyType::EcP384, "ES384", 6), (KeyType::Rsa2048, "RS256", 5)]
    {
        let set = authorities("example.org", kind);
        let authority = set.active_jwt();
        let token = authority.sign(&json!({ "sub": "spiffe://example.org/web" })).unwrap();
        let parts: Vec<_> = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
        let header: Value = serde_json::from_slice(&parts[0]).unwrap();
        assert_eq!(header, json!({ "alg": alg, "kid": authority.kid(), "typ": "JWT" }));
        assert_eq!(authority.algorithm(), alg);
        let jwk = authority.jwk();
        assert_eq!(jwk.as_object().unwrap().len(), members, "{jwk}");
        assert_eq!((&jwk["use"], &jwk["kid"]), (&json!("jwt-svid"), &json!(authority.kid())));
        assert!(["d", "p", "q", "dp", "dq", "qi", "k"].iter().all(|private| jwk.get(private).is_none()));
        let key = JwtKey::from_jwk(&jwk).unwrap();
        let message = token.rsplit_once('.').unwrap().0.as_bytes();
        let algorithm = JwsAlgorithm::parse(alg).unwrap();
        assert_eq!(key.verify(algorithm, message, &parts[2]), Ok(()));
        assert_eq!(key.verify(algorithm, b"other", &parts[2]), Err(KeyRefusal::Signature));
        // An independent implementation reads key and token alike.
        let theirs = jsonwebtoken::DecodingKey::from_jwk(&serde_json::from_value(jwk).unwrap()).unwrap();
        let mut validation = jsonwebtoken::Validation::new(alg.parse().unwrap());
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        assert!(jsonwebtoken::decode::<Value>(&token, &theirs, &validation).is_ok());
    }
}

#[test]
fn a_wit_key_says_so_in_header_and_jwk_and_is_in_no_jwt_bundle() {
    let set = authorities("example.org", KeyType::EcP256);
    let wit = set.active_wit().unwrap();
    assert_eq!((wit.usage(), wit.jwk()["use"].as_str()), (JwsUse::WitSvid, Some("wit-svid")));
    let token = wit.sign(&json!({})).unwrap();
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(header, json!({ "alg": "ES256", "kid": wit.kid(), "typ": "wit+jwt" }));
    assert_ne!(wit.kid(), set.active_jwt().kid());
    assert!(set.jwt().iter().all(|one| one.kid() != wit.kid()));
    assert!(JwtKey::from_jwk(&wit.jwk()).is_none());
}

#[test]
fn the_kid_is_the_thumbprint_of_rfc_7638() {
    let set = authorities("example.org", KeyType::EcP256);
    let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(set.active_jwt().jwk()).unwrap();
    let thumbprint = jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap();
    assert_eq!(set.active_jwt().kid(), thumbprint);
}

#[test]
fn a_key_checks_only_the_algorithms_of_its_type() {
    let all = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"];
    for alg in all {
        let forge = Forge::new(alg);
        let key = JwtKey::from_jwk(&forge.jwk("k")).unwrap();
        let signature = forge.signature(b"message");
        for other in all {
            let verdict = key.verify(JwsAlgorithm::parse(other).unwrap(), b"message", &signature);
            let expected = match other {
                _ if other == alg => Ok(()),
                _ if alg.starts_with("ES") || other.starts_with("ES") => Err(KeyRefusal::Algorithm),
                _ => Err(KeyRefusal::Signature),
            };
            assert_eq!(verdict, expected, "{alg} key, {other} header");
        }
    }
    for wrong in ["none", "None", "NONE", "", "HS256", "EdDSA", "ES256K", "es256", " ES256"] {
        assert_eq!(JwsAlgorithm::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn keys_that_a_jwt_validator_must_skip_are_skipped() {
    let (curve, rsa) = (Forge::new("ES256").jwk("k"), Forge::new("RS256").jwk("k"));
    assert!(JwtKey::from_jwk(&curve).is_some() && JwtKey::from_jwk(&rsa).is_some());
    let with = |jwk: &Value, name: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        jwk
    };
    let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
    let padded = URL_SAFE_NO_PAD.encode([&[0; 128][..], &[0xff; 128]].concat());
    for skipped in [
        with(&curve, "use", json!("x509-svid")),
        with(&curve, "use", json!("wit-svid")),
        with(&curve, "use", json!("sig")),
        with(&curve, "use", json!("JWT-SVID")),
        with(&curve, "use", json!(null)),
        with(&curve, "kid", json!("")),
        with(&curve, "kid", json!(null)),
        with(&curve, "kid", json!(7)),
        with(&curve, "kty", json!("OKP")),
        with(&curve, "kty", json!("oct")),
        with(&curve, "crv", json!("secp256k1")),
        with(&curve, "crv", json!("P-384")),
        with(&curve, "x", json!(URL_SAFE_NO_PAD.encode([1; 32]))),
        with(&curve, "x", json!("AA")),
        with(&rsa, "n", json!(short)),
        with(&rsa, "n", json!(padded)),
        json!("not an object"),
        json!({}),
    ] {
        assert!(JwtKey::from_jwk(&skipped).is_none(), "{skipped}");
    }
}

#[test]
fn bundles_skip_bad_keys_and_refuse_bad_documents() {
    let (one, two) = (Forge::new("ES256"), Forge::new("ES384"));
    let bundle = |document: Value| JwtBundle::parse(document.to_string().as_bytes());
    let kept = bundle(json!({
        "keys": [one.jwk("a"), { "kty": "OKP", "crv": "X25519", "x": "AA" }, two.jwk("b"), 7],
        "spiffe_sequence": 3, "other": {},
    }));
    let kept = kept.unwrap();
    assert!(kept.key("a").is_some() && kept.key("b").is_some() && kept.key("c").is_none());
    let again: Value = serde_json::from_slice(kept.json()).unwrap();
    assert_eq!(again, json!({ "keys": [one.jwk("a"), two.jwk("b")] }), "plain, and nothing else in it");
    let twice = bundle(json!({ "keys": [one.jwk("a"), two.jwk("a"), two.jwk("b")] })).unwrap();
    assert!(twice.key("a").is_none() && twice.key("b").is_some(), "nobody can say which `a` is meant");
    let empty = bundle(json!({ "keys": [] })).unwrap();
    assert_eq!(empty.json().as_ref(), br#"{"keys":[]}"#);
    assert!(matches!(bundle(json!({})), Err(BundleError::NoKeys)));
    assert!(matches!(bundle(json!({ "keys": null })), Err(BundleError::NoKeys)));
    assert!(matches!(bundle(json!([])), Err(BundleError::NotJson)));
    assert!(matches!(JwtBundle::parse(b"{"), Err(BundleError::NotJson)));
}

#[test]
fn private_members_of_a_foreign_document_go_no_further() {
    let mut jwk = Forge::new("ES256").jwk("a");
    jwk["d"] = json!("AAAA");
    let bundle = JwtBundle::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap();
    assert!(bundle.key("a").is_some() && !String::from_utf8_lossy(bundle.json()).contains("\"d\""));
}

#[test]
fn a_crl_is_complete_and_plain() {
    for kind in KEYS {
        let set = authorities("example.org", kind);
        let authority = set.active_x509();
        let revoked = [1, 2].map(|n| RevokedSerial { serial: LeaseId::from_random([n; 16]), at: NOW - 5 });
        for revoked in [&revoked[..], &[]] {
            let der = authority
                .sign_crl(&CrlProfile {
                    number: 1_800_000_000_000,
                    this_update: now(),
                    next_update: from_unix_seconds(NOW + 3_600),
                    revoked,
                })
                .unwrap();
            let (rest, crl) = parse_x509_crl(&der).unwrap();
            assert!(rest.is_empty());
            assert_eq!(crl.version(), Some(X509Version::V2));
            assert_eq!(crl.issuer().as_raw(), authority.subject());
            assert_eq!(crl.iter_revoked_certificates().count(), revoked.len());
            assert!(crl.iter_revoked_certificates().all(|one| one.extensions().is_empty()), "no reasons");
            let oids: Vec<_> = crl.extensions().iter().map(|one| one.oid.to_id_string()).collect();
            assert_eq!(oids, [AUTHORITY_KEY_ID, "2.5.29.20"], "no distribution point, no delta");
        }
    }
}
