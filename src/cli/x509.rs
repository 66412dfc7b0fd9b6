//! An X.509 answer of the Workload API as people and files want it: checked by [`crate::verify`], with what the
//! certificates and revocation lists say beside it. No clock and no I/O here; an answer replaces the one before as a
//! whole.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use mayfly_proto::workload::X509svidResponse;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::render;
use crate::secret::KeyBytes;
use crate::verify::{AnswerError, OwnSvid, X509Answer};

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
    pub(crate) fn check(response: &X509svidResponse, now: SystemTime) -> Result<Self, AnswerError> {
        let X509Answer { svids, mut bundles, lists, repeated_hints, .. } = X509Answer::check(response, now)?;
        let crls = lists.iter().map(read_crl).collect::<Result<_, _>>()?;
        let own: Vec<_> = svids.iter().map(|svid| svid.spiffe_id.trust_domain().clone()).collect();
        let svids = svids.into_iter().map(|svid| {
            let bundle = bundles.get(svid.spiffe_id.trust_domain()).cloned();
            Svid::new(svid, bundle.unwrap_or_default())
        });
        let svids = svids.collect::<Result<_, _>>()?;
        bundles.retain(|domain, _| !own.contains(domain));
        Ok(Self {
            svids,
            crls,
            federated: bundles
                .into_iter()
                .map(|(domain, bundle)| (domain.id().to_string(), bundle))
                .collect(),
            repeated_hints: repeated_hints.iter().map(ToString::to_string).collect(),
        })
    }

    /// The CRLs issued by an authority of this SVID's bundle.
    pub(crate) fn crls_of(&self, svid: &Svid) -> Vec<&Crl> {
        crls_for(&svid.bundle, &self.crls)
    }
}

impl Svid {
    fn new(own: OwnSvid, bundle: Vec<Bytes>) -> Result<Self, AnswerError> {
        let OwnSvid { spiffe_id, hint, chain, key, .. } = own;
        let leaf = chain.first().ok_or(AnswerError::Empty("x509_svid"))?;
        let (_, leaf) =
            X509Certificate::from_der(leaf).map_err(|_syntax| AnswerError::Malformed("not a certificate"))?;
        let (serial, validity) = (render::hex(leaf.raw_serial()), leaf.validity());
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Ok(Self { spiffe_id: spiffe_id.to_string(), hint, serial, not_before, not_after, chain, key, bundle })
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
pub(crate) fn read_crl(der: &Bytes) -> Result<Crl, AnswerError> {
    let wrong = AnswerError::Malformed("not a certificate revocation list");
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
    fn what_is_wrong_with_a_certificate_is_said_plainly() {
        let pki = Pki::new("example.org");
        let leaf = pki.leaf(ID);
        let why =
            |response: &X509svidResponse, at| Update::check(response, at).expect_err("refused").to_string();
        assert!(why(&pki.answer(&[&leaf], &[&leaf]), now()).contains("is revoked"));
        assert!(why(&answer(&pki, &leaf), now() + Duration::from_secs(86_400)).contains("has expired"));
        assert!(why(&answer(&pki, &leaf), now() - Duration::from_secs(600)).contains("clock right?"));
        let mut foreign = answer(&pki, &leaf);
        foreign.svids[0].bundle = Pki::new("example.org").bundle();
        assert!(why(&foreign, now()).contains("no authority"));
        let mut forged = answer(&pki, &leaf);
        forged.crl = vec![pki.forger().crl_in_the_name_of(&pki)];
        assert!(why(&forged, now()).contains("not signed by its issuer"));
        let mut bytes = answer(&pki, &leaf);
        bytes.svids[0].bundle = [&bytes.svids[0].bundle[..], &[0]].concat().into();
        assert!(matches!(Update::check(&bytes, now()), Err(AnswerError::Malformed(_))));
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
    fn pem_has_sixty_four_columns() {
        let text = pem("X509 CRL", &[0; 60]);
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(widths, [24, 64, 16, 22]);
    }
}
