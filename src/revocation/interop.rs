//! Our certificates and CRLs in the hands of others: rustls's verifier at its strictest, and OpenSSL.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};

use super::*;
use crate::authority::testing::{NOW, authorities, now};
use crate::authority::{KeyType, LeafProfile, RevokedSerial, WorkloadKey, X509Authority};
use crate::id::{LeaseId, SpiffeId};
use crate::pem;

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

/// Full chain, unknown status refused, `nextUpdate` enforced.
fn webpki_verdict(
    authority: &X509Authority,
    leaf: &[u8],
    crls: &[&Bytes],
    usage: KeyUsage,
    at: u64,
) -> Result<(), webpki::Error> {
    let anchor_der = CertificateDer::from(authority.certificate().as_ref());
    let anchors = [anchor_from_trusted_cert(&anchor_der).unwrap()];
    let crls: Vec<_> =
        crls.iter().map(|der| OwnedCertRevocationList::from_der(der).unwrap().into()).collect();
    let crls: Vec<_> = crls.iter().collect();
    let options = RevocationOptionsBuilder::new(&crls)
        .unwrap()
        .with_depth(RevocationCheckDepth::Chain)
        .with_status_policy(UnknownStatusPolicy::Deny)
        .with_expiration_policy(ExpirationPolicy::Enforce)
        .build();
    let leaf = CertificateDer::from(leaf);
    EndEntityCert::try_from(&leaf)?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            UnixTime::since_unix_epoch(Duration::from_secs(at)),
            usage,
            Some(options),
            None,
        )
        .map(drop)
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
    let by_openssl = |at: u64| {
        let at = at.to_string();
        openssl(dir.path(), authority, &good, &[&short], &["-attime", at.as_str(), "-crl_check"])
    };
    assert_eq!(by_openssl(NOW + 59), [0; 0]);
    assert_eq!(by_openssl(NOW + 61), [12], "CRL has expired");
}

/// `openssl verify` of one leaf; the error numbers it names, in order.
fn openssl(dir: &Path, authority: &X509Authority, leaf: &[u8], crls: &[&Bytes], extra: &[&str]) -> Vec<u32> {
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let block = |label: &str, der: &[u8]| pem::encode(label, der).to_string();
    let ca = file("ca.pem", block(pem::CERTIFICATE, authority.certificate()));
    let leaf = file("leaf.pem", block(pem::CERTIFICATE, leaf));
    let list = file("crl.pem", crls.iter().map(|der| block(pem::CRL, der)).collect());
    let lists = if crls.is_empty() { vec![] } else { vec![PathBuf::from("-CRLfile"), list] };
    let out = Command::new("openssl")
        .args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile"])
        .arg(ca)
        .args(lists)
        .args(extra)
        .arg(leaf)
        .output()
        .expect("openssl is installed");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let number = |line: &str| line.strip_prefix("error ")?.split_once(' ')?.0.parse().ok();
    let errors: Vec<u32> = text.lines().filter_map(number).collect();
    assert_eq!(errors.is_empty(), out.status.success(), "{text}");
    errors
}

const REVOKED: u32 = 23;
const NO_CRL: u32 = 3;

#[test]
fn openssl_accepts_the_living_and_refuses_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    let at = NOW.to_string();
    for kind in KEYS {
        let set = authorities("example.org", kind);
        let authority = set.active_x509();
        let mut numbering = CrlNumbering::resume(None, now());
        let (good, bad) = (leaf(authority, 1, &[]), leaf(authority, 2, &["web.example.org".to_owned()]));
        let (empty, one) = (crl(authority, &[], &mut numbering), crl(authority, &[2], &mut numbering));
        for depth in ["-crl_check", "-crl_check_all"] {
            for purpose in ["sslclient", "sslserver"] {
                let verdict = |leaf, crls: &[&Bytes]| {
                    let extra = ["-attime", &at, depth, "-purpose", purpose];
                    openssl(dir.path(), authority, leaf, crls, &extra)
                };
                assert_eq!(verdict(&good, &[&one]), [0; 0]);
                assert_eq!(verdict(&bad, &[&one]), [REVOKED]);
                assert_eq!(verdict(&bad, &[&empty]), [0; 0], "a list without entries is a list");
            }
        }
        let extra = ["-attime", at.as_str(), "-crl_check"];
        assert!(openssl(dir.path(), authority, &good, &[], &extra).contains(&NO_CRL));
        let host = ["-attime", at.as_str(), "-verify_hostname", "web.example.org"];
        assert_eq!(openssl(dir.path(), authority, &bad, &[&one], &host), [0; 0]);
    }
}

#[test]
fn openssl_believes_the_later_of_two_crls_of_one_second() {
    let dir = tempfile::tempdir().unwrap();
    let at = NOW.to_string();
    let set = authorities("example.org", KeyType::EcP256);
    let authority = set.active_x509();
    let mut numbering = CrlNumbering::resume(None, now());
    let (first, second) = (crl(authority, &[1], &mut numbering), crl(authority, &[1, 2], &mut numbering));
    let extra = ["-attime", at.as_str(), "-crl_check"];
    for crls in [[&first, &second], [&second, &first]] {
        let verdict = |n| openssl(dir.path(), authority, &leaf(authority, n, &[]), &crls, &extra);
        assert_eq!(verdict(1), [REVOKED]);
        assert_eq!(verdict(2), [REVOKED], "the second revocation of the second");
        assert_eq!(verdict(3), [0; 0]);
    }
}

#[test]
fn openssl_keeps_the_crls_of_two_keys_apart() {
    let dir = tempfile::tempdir().unwrap();
    let at = NOW.to_string();
    let (old, new) =
        (authorities("example.org", KeyType::EcP256), authorities("example.org", KeyType::EcP256));
    let (old, new) = (old.active_x509(), new.active_x509());
    let mut numbering = CrlNumbering::resume(None, now());
    let (of_old, of_new) = (crl(old, &[1], &mut numbering), crl(new, &[2], &mut numbering));
    let extra = ["-attime", at.as_str(), "-crl_check"];
    assert_eq!(openssl(dir.path(), new, &leaf(new, 1, &[]), &[&of_old, &of_new], &extra), [0; 0]);
    assert_eq!(openssl(dir.path(), new, &leaf(new, 2, &[]), &[&of_old, &of_new], &extra), [REVOKED]);
    assert_eq!(openssl(dir.path(), old, &leaf(old, 1, &[]), &[&of_new, &of_old], &extra), [REVOKED]);
}
