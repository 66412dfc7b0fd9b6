//! Why our CRLs look as they do: what rustls's verifier and OpenSSL make of those that look otherwise. Each test pins
//! a behaviour of theirs, good or bad; one that has changed is a reason to look at the rules in `authority::x509`
//! and in `revocation::numbering` again. Nothing here is signed by us.

use std::path::Path;
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use time::OffsetDateTime;
use webpki::{Error, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth};

use super::judges::Case;
use crate::authority::testing::NOW;

type Ca = CertifiedIssuer<'static, KeyPair>;

const URL: &str = "http://crl.example.org/one.crl";
const GOOD: u64 = 1;
const BAD: u64 = 2;
/// OpenSSL's numbers.
const NO_CRL: u32 = 3;
const REVOKED: u32 = 23;
const OTHER_SCOPE: u32 = 44;

fn date(at: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(at).unwrap()).unwrap()
}

fn ca(name: &str, above: Option<&Ca>) -> Ca {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (date(NOW - 60), date(NOW + 86_400));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(u64::from(above.is_some()) + 100));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = above.is_some();
    let key = KeyPair::generate().unwrap();
    match above {
        None => Ca::self_signed(params, key),
        Some(above) => Ca::signed_by(params, key, above),
    }
    .unwrap()
}

fn leaf(by: &Ca, serial: u64, distribution_point: bool) -> Vec<u8> {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (date(NOW - 60), date(NOW + 900));
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from(serial));
    params.subject_alt_names = vec![SanType::URI("spiffe://example.org/web".try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    if distribution_point {
        params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![URL.to_owned()] }];
    }
    params.signed_by(&KeyPair::generate().unwrap(), by).unwrap().der().to_vec()
}

/// `number` also sets `thisUpdate`, in seconds after [`NOW`] − 30; `scoped`: with an issuing distribution point.
fn crl(by: &Ca, revoked: &[u64], (number, this_update): (u64, u64), scoped: bool) -> Vec<u8> {
    let entry = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date(NOW - 31),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date(NOW - 30 + this_update),
        next_update: date(NOW + 3_600),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: scoped.then(|| CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec![URL.to_owned()] },
            scope: Some(CrlScope::UserCertsOnly),
        }),
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(by).unwrap().der().to_vec()
}

/// Under one authority that is its own root.
fn case<'a>(authority: &'a Ca, leaf: &'a [u8], crls: &[&'a Vec<u8>]) -> Case<'a> {
    let crls = crls.iter().map(|crl| crl.as_slice()).collect();
    Case { leaf, between: Vec::new(), anchors: vec![authority.der()], crls, at: NOW }
}

/// Under a node's certificate that a root signed.
fn under<'a>(root: &'a Ca, node: &'a Ca, leaf: &'a [u8], crls: &[&'a Vec<u8>]) -> Case<'a> {
    Case { between: vec![node.der()], ..case(root, leaf, crls) }
}

fn webpki(case: &Case<'_>) -> Result<(), Error> {
    case.by_webpki(KeyUsage::client_auth(), RevocationCheckDepth::EndEntity)
}

fn openssl(case: &Case<'_>) -> Vec<(u32, u32)> {
    let scratch = tempfile::tempdir().unwrap();
    case.by_openssl(scratch.path(), &["-crl_check"])
}

#[test]
fn a_whole_chain_needs_a_crl_of_every_authority_in_it() {
    let scratch = tempfile::tempdir().unwrap();
    let root = ca("root", None);
    let node = ca("node", Some(&root));
    let (good, bad) = (leaf(&node, GOOD, false), leaf(&node, BAD, false));
    let (of_root, of_node) = (crl(&root, &[], (1, 0), false), crl(&node, &[BAD], (1, 0), false));
    let strict = |case: &Case<'_>| case.by_webpki(KeyUsage::client_auth(), RevocationCheckDepth::Chain);
    let all = |case: &Case<'_>| case.by_openssl(scratch.path(), &["-crl_check_all"]);
    let both = [&of_root, &of_node];
    assert_eq!(strict(&under(&root, &node, &good, &both)), Ok(()));
    assert_eq!(all(&under(&root, &node, &good, &both)), []);
    assert_eq!(strict(&under(&root, &node, &bad, &both)), Err(Error::CertRevoked));
    assert_eq!(all(&under(&root, &node, &bad, &both)), [(REVOKED, 0)]);
    // The node's alone: enough for the leaf, not for the chain.
    let alone = under(&root, &node, &good, &[&of_node]);
    assert_eq!(strict(&alone), Err(Error::UnknownRevocationStatus));
    assert!(all(&alone).contains(&(NO_CRL, 1)), "{:?}", all(&alone));
    assert_eq!((webpki(&alone), openssl(&alone)), (Ok(()), vec![]));
    assert_eq!(openssl(&under(&root, &node, &bad, &[&of_node])), [(REVOKED, 0)]);
    // The node itself revoked.
    let gone = crl(&root, &[101], (2, 1), false);
    assert_eq!(strict(&under(&root, &node, &good, &[&gone, &of_node])), Err(Error::CertRevoked));
    assert_eq!(all(&under(&root, &node, &good, &[&gone, &of_node])), [(REVOKED, 1)]);
}

#[test]
fn a_node_may_be_the_anchor_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let root = ca("root", None);
    let node = ca("node", Some(&root));
    let of_node = crl(&node, &[BAD], (1, 0), false);
    for (serial, expected, errors) in
        [(GOOD, Ok(()), vec![]), (BAD, Err(Error::CertRevoked), vec![(REVOKED, 0)])]
    {
        let leaf = leaf(&node, serial, false);
        let case = case(&node, &leaf, &[&of_node]);
        assert_eq!(webpki(&case), expected);
        assert_eq!(case.by_openssl(scratch.path(), &["-crl_check", "-partial_chain"]), errors);
    }
}

/// Why each of our keys has a subject of its own.
#[test]
fn two_keys_under_one_name_lock_webpki_out() {
    let (former, new) = (ca("same", None), ca("same", None));
    let (of_former, of_new) = (crl(&former, &[], (1, 0), false), crl(&new, &[BAD], (2, 1), false));
    let good = leaf(&new, GOOD, false);
    let both = case(&new, &good, &[&of_former, &of_new]);
    assert_eq!(
        webpki(&both),
        Err(Error::InvalidCrlSignatureForPublicKey),
        "the first of that name is tried, no other"
    );
    assert_eq!(openssl(&both), [], "OpenSSL goes by the key identifier");
}

/// Why there is one CRL of each key in any bundle, and dates rise by whole seconds.
#[test]
fn of_two_crls_of_one_key_verifiers_may_believe_the_wrong_one() {
    let authority = ca("one", None);
    let bad = leaf(&authority, BAD, false);
    let (former, later) = (crl(&authority, &[], (1, 0), false), crl(&authority, &[BAD], (2, 1), false));
    let older_first = case(&authority, &bad, &[&former, &later]);
    let newer_first = case(&authority, &bad, &[&later, &former]);
    assert_eq!(webpki(&older_first), Ok(()), "revoked, and accepted: the first match wins");
    assert_eq!(webpki(&newer_first), Err(Error::CertRevoked));
    for order in [older_first, newer_first] {
        assert_eq!(openssl(&order), [(REVOKED, 0)], "the later date wins");
    }
    let same_second = crl(&authority, &[BAD], (2, 0), false);
    let orders = [[&former, &same_second], [&same_second, &former]];
    let accepted = orders.iter().filter(|crls| openssl(&case(&authority, &bad, *crls)).is_empty()).count();
    assert_eq!(accepted, 1, "of two with one date OpenSSL believes one by position, whatever their numbers");
}

/// Why our CRLs have no issuing distribution point.
#[test]
fn a_scoped_crl_covers_no_leaf_without_the_same_distribution_point() {
    let authority = ca("one", None);
    let scoped = crl(&authority, &[BAD], (1, 0), true);
    let plain = leaf(&authority, BAD, false);
    let pointed = leaf(&authority, BAD, true);
    let case = |leaf| case(&authority, leaf, &[&scoped]);
    assert_eq!(webpki(&case(&plain)), Err(Error::CertRevoked));
    assert!(openssl(&case(&plain)).contains(&(OTHER_SCOPE, 0)), "{:?}", openssl(&case(&plain)));
    assert_eq!(webpki(&case(&pointed)), Err(Error::CertRevoked));
    assert_eq!(openssl(&case(&pointed)), [(REVOKED, 0)]);
    let good = leaf(&authority, GOOD, false);
    assert!(openssl(&case(&good)).contains(&(OTHER_SCOPE, 0)), "even the good one is refused");
}

#[test]
fn an_unscoped_crl_covers_leaves_with_and_without_a_distribution_point() {
    let authority = ca("one", None);
    let whole = crl(&authority, &[BAD], (1, 0), false);
    for pointed in [false, true] {
        let (good, bad) = (leaf(&authority, GOOD, pointed), leaf(&authority, BAD, pointed));
        assert_eq!(
            (webpki(&case(&authority, &good, &[&whole])), openssl(&case(&authority, &good, &[&whole]))),
            (Ok(()), vec![])
        );
        assert_eq!(webpki(&case(&authority, &bad, &[&whole])), Err(Error::CertRevoked));
        assert_eq!(openssl(&case(&authority, &bad, &[&whole])), [(REVOKED, 0)]);
    }
}

/// Why ours are complete, direct, and for all reasons.
#[test]
fn partial_crls_cannot_even_be_read_by_webpki() {
    let dir = tempfile::tempdir().unwrap();
    let authority = ca("one", None);
    let fault = |extension: &str| {
        let der = openssl_crl(dir.path(), &authority, extension);
        OwnedCertRevocationList::from_der(&der).unwrap_err()
    };
    assert_eq!(fault("2.5.29.27 = critical,ASN1:INTEGER:1"), Error::UnsupportedDeltaCrl);
    let idp = |member: &str| {
        format!("issuingDistributionPoint = critical,@idp\n[idp]\nfullname = URI:{URL}\n{member}")
    };
    assert_eq!(fault(&idp("indirectCRL = TRUE")), Error::UnsupportedIndirectCrl);
    let reasons = idp("onlysomereasons = keyCompromise");
    assert_eq!(fault(&reasons), Error::UnsupportedRevocationReasonsPartitioning);
}

/// A CRL with an extension that rcgen does not write, by `openssl ca`.
fn openssl_crl(dir: &Path, by: &Ca, extension: &str) -> Vec<u8> {
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("ca.pem", &by.pem());
    write("ca.key", &by.key().serialize_pem());
    write("index.txt", "");
    write("crlnumber", "01\n");
    let settings = "[ca]\ndefault_ca = one\n[one]\ndatabase = index.txt\ncrlnumber = crlnumber\n\
                    certificate = ca.pem\nprivate_key = ca.key\ndefault_md = sha256\ndefault_crl_days = 1\n";
    write(
        "openssl.cnf",
        &format!("{settings}crl_extensions = more\n[more]\nauthorityKeyIdentifier = keyid\n{extension}\n"),
    );
    let out = Command::new("openssl")
        .args(["ca", "-config", "openssl.cnf", "-gencrl", "-out", "crl.pem"])
        .current_dir(dir)
        .output()
        .expect("openssl is installed");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = std::fs::read(dir.join("crl.pem")).unwrap();
    x509_parser::pem::parse_x509_pem(&text).unwrap().1.contents
}
