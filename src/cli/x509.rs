//! Reads an X.509 answer of the Workload API and believes it only after checking it.
//!
//! For each SVID: mandatory fields present (WAPI-14), chain leads from the leaf to the bundle of its own
//! trust domain now, exactly one URI name and it is the promised SPIFFE ID, key fits the leaf, not on a
//! CRL of the same answer. No clock and no I/O here; an answer replaces the one before as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mayfly_proto::workload::{X509svid, X509svidResponse};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, TrustAnchor, UnixTime};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, KeyUsage, RevocationOptionsBuilder,
    UnknownStatusPolicy, anchor_from_trusted_cert,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::render;
use crate::secret::KeyBytes;

/// The agent sent something that no workload should use.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum VerifyError {
    /// A mandatory field is empty.
    #[error("the agent's answer is incomplete: `{0}` is empty")]
    Empty(&'static str),
    /// A field does not parse.
    #[error("the agent's answer is malformed: {0}")]
    Malformed(&'static str),
    /// The certificate does not lead to its bundle, or is not valid now, or is revoked.
    #[error("the certificate of `{id}` does not verify: {why}")]
    Chain {
        /// Whose.
        id: String,
        /// What the verifier says.
        why: String,
    },
    /// The certificate names somebody else.
    #[error("the certificate of `{id}` does not name it and nobody else")]
    Name {
        /// The promised identity.
        id: String,
    },
    /// The private key belongs to another certificate.
    #[error("the private key of `{id}` does not fit its certificate")]
    Key {
        /// Whose.
        id: String,
    },
}

/// A checked answer of `FetchX509SVID`.
#[derive(Debug)]
pub(crate) struct Update {
    /// At least one; the first is the default identity.
    pub(crate) svids: Vec<Svid>,
    /// Revocation lists, one for each issuing key.
    pub(crate) crls: Vec<Crl>,
    /// Foreign trust domain ID to its authorities, DER.
    pub(crate) federated: BTreeMap<String, Vec<Bytes>>,
    /// Identities left out because an earlier one has the same hint (WAPI-19).
    pub(crate) repeated_hints: Vec<String>,
}

/// One identity with its key.
#[derive(Debug)]
pub(crate) struct Svid {
    /// SPIFFE ID.
    pub(crate) spiffe_id: String,
    /// The operator's word, or empty.
    pub(crate) hint: String,
    /// Serial number, lower-case hex: the lease.
    pub(crate) serial: String,
    /// Unix seconds.
    pub(crate) not_before: i64,
    /// Unix seconds.
    pub(crate) not_after: i64,
    /// Leaf first, DER.
    pub(crate) chain: Vec<Bytes>,
    /// PKCS#8.
    pub(crate) key: KeyBytes,
    /// Own trust domain's authorities, DER.
    pub(crate) bundle: Vec<Bytes>,
}

/// What a CRL says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Crl {
    /// DER, as received.
    pub(crate) der: Bytes,
    /// Issuer's name, DER: says which bundle it belongs to.
    pub(crate) issuer: Vec<u8>,
    /// Authority key identifier, lower-case hex; empty when missing.
    pub(crate) key_id: String,
    /// CRL number, 0 when missing.
    pub(crate) number: u64,
    /// Unix seconds.
    pub(crate) this_update: i64,
    /// Unix seconds; 0 when missing.
    pub(crate) next_update: i64,
    /// Serials, lower-case hex, with the time of revocation in Unix seconds.
    pub(crate) revoked: BTreeMap<String, i64>,
}

impl Update {
    /// Checks everything; one bad SVID spoils the answer, because half an answer is a wrong answer.
    pub(crate) fn check(response: &X509svidResponse, now: SystemTime) -> Result<Self, VerifyError> {
        if response.svids.is_empty() {
            return Err(VerifyError::Empty("svids"));
        }
        let crls = response.crl.iter().map(read_crl).collect::<Result<Vec<_>, _>>()?;
        let mut federated = BTreeMap::new();
        for (domain, bundle) in &response.federated_bundles {
            federated.insert(domain.clone(), split(bundle)?);
        }
        let mut hints = BTreeSet::new();
        let mut repeated_hints = Vec::new();
        let mut svids = Vec::new();
        for svid in &response.svids {
            if !svid.hint.is_empty() && !hints.insert(svid.hint.clone()) {
                repeated_hints.push(svid.spiffe_id.clone());
                continue;
            }
            svids.push(check_svid(svid, &crls, now)?);
        }
        Ok(Self { svids, crls, federated, repeated_hints })
    }

    /// The CRLs issued by an authority of this SVID's bundle.
    pub(crate) fn crls_of(&self, svid: &Svid) -> Vec<&Crl> {
        crls_for(&svid.bundle, &self.crls)
    }
}

/// The CRLs whose issuer is one of these certificates.
pub(crate) fn crls_for<'a>(bundle: &[Bytes], crls: &'a [Crl]) -> Vec<&'a Crl> {
    let subjects: Vec<Vec<u8>> = bundle
        .iter()
        .filter_map(|der| X509Certificate::from_der(der).ok())
        .map(|(_, cert)| cert.subject().as_raw().to_vec())
        .collect();
    crls.iter().filter(|crl| subjects.contains(&crl.issuer)).collect()
}

/// Cuts concatenated DER certificates apart.
pub(crate) fn split(concatenated: &Bytes) -> Result<Vec<Bytes>, VerifyError> {
    let mut rest: &[u8] = concatenated;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (after, _) =
            X509Certificate::from_der(rest).map_err(|_syntax| VerifyError::Malformed("not a certificate"))?;
        let length = rest.len() - after.len();
        parts.push(concatenated.slice_ref(rest.get(..length).unwrap_or_default()));
        rest = after;
    }
    Ok(parts)
}

/// Subject key identifier in lower-case hex (empty when missing) and end of validity in Unix seconds.
pub(crate) fn authority_facts(der: &[u8]) -> Option<(String, i64)> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let key_id = cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(render::hex(id.0)),
        _ => None,
    });
    Some((key_id.unwrap_or_default(), cert.validity().not_after.timestamp()))
}

/// Reads a DER CRL.
pub(crate) fn read_crl(der: &Bytes) -> Result<Crl, VerifyError> {
    let wrong = VerifyError::Malformed("not a certificate revocation list");
    let (rest, list) = CertificateRevocationList::from_der(der).map_err(|_syntax| wrong.clone())?;
    if !rest.is_empty() {
        return Err(wrong);
    }
    let key_id = list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(aki) => {
            aki.key_identifier.as_ref().map(|id| render::hex(id.0))
        }
        _ => None,
    });
    let revoked = list
        .iter_revoked_certificates()
        .map(|entry| (render::hex(entry.raw_serial()), entry.revocation_date.timestamp()))
        .collect();
    Ok(Crl {
        der: der.clone(),
        issuer: list.issuer().as_raw().to_vec(),
        key_id: key_id.unwrap_or_default(),
        number: list.crl_number().and_then(|number| u64::try_from(number).ok()).unwrap_or(0),
        this_update: list.last_update().timestamp(),
        next_update: list.next_update().map_or(0, |at| at.timestamp()),
        revoked,
    })
}

/// Verifies a leaf against a bundle the way a careful TLS server would, CRLs included.
///
/// # Errors
/// The verifier's own error; `CertRevoked` when a CRL lists it.
pub(crate) fn verify_chain(
    chain: &[Bytes],
    bundle: &[Bytes],
    crls: &[&Crl],
    now: SystemTime,
) -> Result<(), webpki::Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(webpki::Error::BadDer)?;
    let der = |bytes: &Bytes| CertificateDer::from(bytes.to_vec());
    let (leaf, intermediates) = (der(leaf), intermediates.iter().map(der).collect::<Vec<_>>());
    let roots: Vec<_> = bundle.iter().map(der).collect();
    let anchors = roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<TrustAnchor<'_>>, _>>()?;
    let lists = crls
        .iter()
        .map(|crl| BorrowedCertRevocationList::from_der(&crl.der).map(CertRevocationList::from))
        .collect::<Result<Vec<_>, _>>()?;
    let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
    let revocation = RevocationOptionsBuilder::new(&lists)
        .ok()
        .map(|options| options.with_status_policy(UnknownStatusPolicy::Allow).build());
    let at = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    EndEntityCert::try_from(&leaf)?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &intermediates,
            at,
            KeyUsage::client_auth(),
            revocation,
            None,
        )
        .map(drop)
}

fn check_svid(svid: &X509svid, crls: &[Crl], now: SystemTime) -> Result<Svid, VerifyError> {
    let fields = [
        ("spiffe_id", svid.spiffe_id.is_empty()),
        ("x509_svid", svid.x509_svid.is_empty()),
        ("x509_svid_key", svid.x509_svid_key.is_empty()),
        ("bundle", svid.bundle.is_empty()),
    ];
    if let Some((field, _)) = fields.iter().find(|(_, empty)| *empty) {
        return Err(VerifyError::Empty(field));
    }
    let id = || svid.spiffe_id.clone();
    let (chain, bundle) = (split(&svid.x509_svid)?, split(&svid.bundle)?);
    let leaf_der = chain.first().ok_or(VerifyError::Empty("x509_svid"))?;
    let (_, leaf) =
        X509Certificate::from_der(leaf_der).map_err(|_syntax| VerifyError::Malformed("not a certificate"))?;
    verify_chain(&chain, &bundle, &crls_for(&bundle, crls), now)
        .map_err(|why| VerifyError::Chain { id: id(), why: describe(&why) })?;
    if !names_only(&leaf, &svid.spiffe_id) {
        return Err(VerifyError::Name { id: id() });
    }
    let key = KeyBytes::new(svid.x509_svid_key.to_vec());
    if !fits(&key, &leaf) {
        return Err(VerifyError::Key { id: id() });
    }
    let validity = leaf.validity();
    Ok(Svid {
        spiffe_id: id(),
        hint: svid.hint.clone(),
        serial: render::hex(leaf.raw_serial()),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        key,
        bundle,
        chain: chain.clone(),
    })
}

/// Exactly one URI name, and it is this one (X509-SVID §2).
fn names_only(leaf: &X509Certificate<'_>, spiffe_id: &str) -> bool {
    let Ok(Some(names)) = leaf.subject_alternative_name() else {
        return false;
    };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    uris.eq([spiffe_id])
}

fn fits(key: &KeyBytes, leaf: &X509Certificate<'_>) -> bool {
    use rcgen::PublicKeyData as _;
    rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.expose()))
        .is_ok_and(|pair| pair.subject_public_key_info() == leaf.public_key().raw)
}

fn describe(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertRevoked => "it is on the revocation list".to_owned(),
        webpki::Error::CertExpired { .. } => "it has expired".to_owned(),
        webpki::Error::CertNotValidYet { .. } => {
            "it is not valid yet (is this machine's clock right?)".to_owned()
        }
        webpki::Error::UnknownIssuer => "no authority of the bundle issued it".to_owned(),
        other => other.to_string(),
    }
}

/// DER as PEM, 64 columns.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|&byte| char::from(byte)));
        out.push('\n');
    }
    out + "-----END " + label + "-----\n"
}

/// Several certificates as one PEM text.
pub(crate) fn pem_certificates(ders: &[Bytes]) -> String {
    ders.iter().map(|der| pem("CERTIFICATE", der)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::pki::{Leaf, Pki};
    use super::*;

    const ID: &str = "spiffe://example.org/web";

    fn now() -> SystemTime {
        use crate::clock::Clock as _;
        crate::clock::SystemClock.wall()
    }

    fn answer(pki: &Pki, leaf: &Leaf) -> X509svidResponse {
        pki.answer(&[leaf], &[])
    }

    #[test]
    fn a_good_answer_is_taken_apart() {
        let pki = Pki::new("example.org");
        let (leaf, gone) = (pki.leaf(ID), pki.leaf(ID));
        let mut response = pki.answer(&[&leaf], &[&gone]);
        let other = Pki::new("other.test");
        response.federated_bundles.insert("spiffe://other.test".into(), other.bundle());
        let update = Update::check(&response, now()).expect("good");
        let svid = &update.svids[0];
        assert_eq!((svid.spiffe_id.as_str(), &svid.serial), (ID, &leaf.serial));
        assert_eq!((svid.chain.len(), svid.bundle.len(), update.federated.len()), (1, 1, 1));
        assert_eq!(update.crls_of(svid).len(), 1);
        assert!(update.crls[0].revoked.contains_key(&gone.serial));
    }

    #[test]
    fn a_revoked_an_expired_and_a_foreign_certificate_are_refused() {
        let pki = Pki::new("example.org");
        let leaf = pki.leaf(ID);
        let why = |response: &X509svidResponse, at| match Update::check(response, at) {
            Err(VerifyError::Chain { why, .. }) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(&pki.answer(&[&leaf], &[&leaf]), now()).contains("revocation list"));
        assert!(why(&answer(&pki, &leaf), now() + Duration::from_secs(86_400)).contains("expired"));
        let mut foreign = answer(&pki, &leaf);
        foreign.svids[0].bundle = Pki::new("example.org").bundle();
        assert!(!why(&foreign, now()).is_empty());
    }

    #[test]
    fn a_forged_crl_is_not_believed() {
        let pki = Pki::new("example.org");
        let leaf = pki.leaf(ID);
        let mut response = answer(&pki, &leaf);
        response.crl = vec![pki.forger().crl(&[])];
        assert!(matches!(Update::check(&response, now()), Err(VerifyError::Chain { .. })));
    }

    #[test]
    fn another_ones_name_or_key_is_refused() {
        let pki = Pki::new("example.org");
        let (leaf, other) = (pki.leaf(ID), pki.leaf(ID));
        let mut named = answer(&pki, &leaf);
        named.svids[0].spiffe_id = "spiffe://example.org/admin".into();
        assert!(matches!(Update::check(&named, now()), Err(VerifyError::Name { .. })));
        let mut keyed = answer(&pki, &leaf);
        keyed.svids[0].x509_svid_key = other.key;
        assert!(matches!(Update::check(&keyed, now()), Err(VerifyError::Key { .. })));
    }

    #[test]
    fn empty_mandatory_fields_are_named() {
        let pki = Pki::new("example.org");
        let leaf = pki.leaf(ID);
        let empty = |change: fn(&mut X509svid)| {
            let mut response = answer(&pki, &leaf);
            change(&mut response.svids[0]);
            Update::check(&response, now()).expect_err("empty")
        };
        assert_eq!(empty(|s| s.spiffe_id.clear()), VerifyError::Empty("spiffe_id"));
        assert_eq!(empty(|s| s.x509_svid.clear()), VerifyError::Empty("x509_svid"));
        assert_eq!(empty(|s| s.x509_svid_key.clear()), VerifyError::Empty("x509_svid_key"));
        assert_eq!(empty(|s| s.bundle.clear()), VerifyError::Empty("bundle"));
        let none = Update::check(&X509svidResponse::default(), now()).expect_err("none");
        assert_eq!(none, VerifyError::Empty("svids"));
    }

    #[test]
    fn of_two_identities_with_one_hint_the_first_counts() {
        let pki = Pki::new("example.org");
        let (a, b) = (pki.leaf(ID), pki.leaf("spiffe://example.org/b"));
        let mut response = pki.answer(&[&a, &b], &[]);
        response.svids.iter_mut().for_each(|svid| svid.hint = "internal".into());
        let update = Update::check(&response, now()).expect("good");
        assert_eq!(update.svids.len(), 1);
        assert_eq!(update.repeated_hints, ["spiffe://example.org/b"]);
    }

    #[test]
    fn garbage_after_a_certificate_is_malformed() {
        let pki = Pki::new("example.org");
        let mut response = answer(&pki, &pki.leaf(ID));
        let mut bytes = response.svids[0].bundle.to_vec();
        bytes.push(0);
        response.svids[0].bundle = bytes.into();
        assert!(matches!(Update::check(&response, now()), Err(VerifyError::Malformed(_))));
    }

    #[test]
    fn pem_has_sixty_four_columns() {
        let text = pem("X509 CRL", &[0; 60]);
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(widths, [24, 64, 16, 22]);
    }
}
