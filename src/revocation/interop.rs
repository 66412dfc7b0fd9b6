//! Our certificates and CRLs in the hands of others: rustls's verifier at its strictest, and OpenSSL.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use webpki::{KeyUsage, RevocationCheckDepth};

use super::judges::Case;
use super::*;
use crate::authority::testing::{NOW, authorities, now};
use crate::authority::{KeyType, LeafProfile, RevokedSerial, WorkloadKey, X509Authority};
use crate::id::{LeaseId, SpiffeId};

const KEYS: [KeyType; 3] = [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048];

fn serial(n: u8) -> LeaseId {
    LeaseId::from_random([n; 16])
}

fn leaf(authority: &X509Authority, n: u8, dns_names: &[String]) -> Bytes {
    let key = WorkloadKey::generate(authority.algorithm()).unwrap();
    authority
        .sign_leaf(&LeafProfile {
            serial: serial(n),
            spiffe_id: &SpiffeId::parse(b"spiffe://example.org/web").unwrap(),
            dns_names,
            not_before: now() - Duration::from_secs(10),
            not_after: now() + Duration::from_secs(900),
            key: &key,
        })
        .unwrap()
}

fn crl(authority: &X509Authority, revoked: &[u8], numbering: &mut CrlNumbering) -> Bytes {
    let CrlTurn::Now { number, this_update } = numbering.next(now(), Duration::ZERO) else {
        panic!("no turn")
    };
    let revoked: Vec<_> = revoked.iter().map(|n| RevokedSerial { serial: serial(*n), at: NOW }).collect();
    let hour = Duration::from_secs(3_600);
    sign_and_lint(authority, &revoked, (number, this_update), hour, now()).unwrap().der
}

fn case<'a>(authority: &'a X509Authority, leaf: &'a [u8], crls: &[&'a Bytes], at: u64) -> Case<'a> {
    let crls = crls.iter().map(|crl| -> &'a [u8] { crl }).collect();
    Case { leaf, between: Vec::new(), anchors: vec![authority.certificate()], crls, at }
}

/// Full chain, unknown status refused, `nextUpdate` enforced.
fn webpki_verdict(
    authority: &X509Authority,
    leaf: &[u8],
    crls: &[&Bytes],
    usage: KeyUsage,
    at: u64,
) -> Result<(), webpki::Error> {
    case(authority, leaf, crls, at).by_webpki(usage, RevocationCheckDepth::Chain)
}

#[test]
fn webpki_at_its_strictest_takes_the_good_and_refuses_the_revoked() {
    for kind in KEYS {
        let set = authorities("example.org", kind);
        let authority = set.active_x509();
        let mut numbering = CrlNumbering::resume(None, now());
        let (good, bad) = (leaf(authority, 1, &[]), leaf(authority, 2, &[]));
        let (empty, one) = (crl(authority, &[], &mut numbering), crl(authority, &[2], &mut numbering));
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            let verdict = |leaf, crl: &Bytes, at| webpki_verdict(authority, leaf, &[crl], usage, at);
            assert_eq!(verdict(&good, &one, NOW), Ok(()));
            assert_eq!(verdict(&bad, &empty, NOW), Ok(()), "not yet");
            assert_eq!(verdict(&bad, &one, NOW), Err(webpki::Error::CertRevoked));
            assert!(verdict(&good, &one, NOW + 901).is_err(), "expired");
        }
    }
}

#[test]
fn crls_of_two_keys_of_one_trust_domain_do_not_disturb_each_other() {
    let (old, new) =
        (authorities("example.org", KeyType::EcP256), authorities("example.org", KeyType::EcP256));
    let (old, new) = (old.active_x509(), new.active_x509());
    let mut numbering = CrlNumbering::resume(None, now());
    let (of_old, of_new) = (crl(old, &[1], &mut numbering), crl(new, &[2], &mut numbering));
    for crls in [[&of_old, &of_new], [&of_new, &of_old]] {
        let verdict = |by: &X509Authority, n| {
            webpki_verdict(by, &leaf(by, n, &[]), &crls, KeyUsage::client_auth(), NOW)
        };
        assert_eq!(verdict(old, 2), Ok(()));
        assert_eq!(verdict(new, 1), Ok(()));
        assert_eq!(verdict(old, 1), Err(webpki::Error::CertRevoked));
        assert_eq!(verdict(new, 2), Err(webpki::Error::CertRevoked));
    }
}

/// A node that is cut off falls silent, and its lists lapse: whoever enforces `nextUpdate` refuses from then on.
#[test]
fn a_lapsed_crl_is_refused_by_both() {
    let dir = tempfile::tempdir().unwrap();
    let set = authorities("example.org", KeyType::EcP256);
    let authority = set.active_x509();
    let mut numbering = CrlNumbering::resume(None, now());
    let CrlTurn::Now { number, this_update } = numbering.next(now(), Duration::ZERO) else {
        panic!("no turn")
    };
    let minute = Duration::from_secs(60);
    let short = sign_and_lint(authority, &[], (number, this_update), minute, now()).unwrap().der;
    let good = leaf(authority, 1, &[]);
    let by_webpki = |at| webpki_verdict(authority, &good, &[&short], KeyUsage::client_auth(), at);
    assert_eq!(by_webpki(NOW + 59), Ok(()));
    assert!(
        matches!(by_webpki(NOW + 61), Err(webpki::Error::CrlExpired { .. })),
        "{:?}",
        by_webpki(NOW + 61)
    );
    let by_openssl = |at: u64| openssl(dir.path(), authority, &good, &[&short], at, &["-crl_check"]);
    assert_eq!(by_openssl(NOW + 59), [0; 0]);
    assert_eq!(by_openssl(NOW + 61), [12], "CRL has expired");
}

/// `openssl verify` of one leaf; the error numbers it names, in order.
fn openssl(
    dir: &Path,
    authority: &X509Authority,
    leaf: &[u8],
    crls: &[&Bytes],
    at: u64,
    flags: &[&str],
) -> Vec<u32> {
    let errors = case(authority, leaf, crls, at).by_openssl(dir, flags);
    errors.into_iter().map(|(number, _)| number).collect()
}

const REVOKED: u32 = 23;
const NO_CRL: u32 = 3;

#[test]
fn openssl_accepts_the_living_and_refuses_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KEYS {
        let set = authorities("example.org", kind);
        let authority = set.active_x509();
        let mut numbering = CrlNumbering::resume(None, now());
        let (good, bad) = (leaf(authority, 1, &[]), leaf(authority, 2, &["web.example.org".to_owned()]));
        let (empty, one) = (crl(authority, &[], &mut numbering), crl(authority, &[2], &mut numbering));
        for depth in ["-crl_check", "-crl_check_all"] {
            for purpose in ["sslclient", "sslserver"] {
                let verdict = |leaf, crls: &[&Bytes]| {
                    openssl(dir.path(), authority, leaf, crls, NOW, &[depth, "-purpose", purpose])
                };
                assert_eq!(verdict(&good, &[&one]), [0; 0]);
                assert_eq!(verdict(&bad, &[&one]), [REVOKED]);
                assert_eq!(verdict(&bad, &[&empty]), [0; 0], "a list without entries is a list");
            }
        }
        assert!(openssl(dir.path(), authority, &good, &[], NOW, &["-crl_check"]).contains(&NO_CRL));
        let host = ["-verify_hostname", "web.example.org"];
        assert_eq!(openssl(dir.path(), authority, &bad, &[&one], NOW, &host), [0; 0]);
    }
}

#[test]
fn openssl_believes_the_later_of_two_crls_of_one_second() {
    let dir = tempfile::tempdir().unwrap();
    let set = authorities("example.org", KeyType::EcP256);
    let authority = set.active_x509();
    let mut numbering = CrlNumbering::resume(None, now());
    let (first, second) = (crl(authority, &[1], &mut numbering), crl(authority, &[1, 2], &mut numbering));
    let flags = ["-crl_check"];
    for crls in [[&first, &second], [&second, &first]] {
        let verdict = |n| openssl(dir.path(), authority, &leaf(authority, n, &[]), &crls, NOW, &flags);
        assert_eq!(verdict(1), [REVOKED]);
        assert_eq!(verdict(2), [REVOKED], "the second revocation of the second");
        assert_eq!(verdict(3), [0; 0]);
    }
}

#[test]
fn openssl_keeps_the_crls_of_two_keys_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) =
        (authorities("example.org", KeyType::EcP256), authorities("example.org", KeyType::EcP256));
    let (old, new) = (old.active_x509(), new.active_x509());
    let mut numbering = CrlNumbering::resume(None, now());
    let (of_old, of_new) = (crl(old, &[1], &mut numbering), crl(new, &[2], &mut numbering));
    let flags = ["-crl_check"];
    assert_eq!(openssl(dir.path(), new, &leaf(new, 1, &[]), &[&of_old, &of_new], NOW, &flags), [0; 0]);
    assert_eq!(openssl(dir.path(), new, &leaf(new, 2, &[]), &[&of_old, &of_new], NOW, &flags), [REVOKED]);
    assert_eq!(openssl(dir.path(), old, &leaf(old, 1, &[]), &[&of_new, &of_old], NOW, &flags), [REVOKED]);
}
