//! Which CRLs go into a validation context. A verifier that is given one CRL wants one for every issuer it meets,
//! and refuses whoever's is missing or over: so they are given when the set is known to be complete, or not at
//! all.

use std::time::SystemTime;

use bytes::Bytes;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::clock::unix_seconds;
use crate::config::SdsCrl;
use crate::id::hex_text;

/// What is known of one trust domain.
#[derive(Clone, Debug)]
pub(super) struct Authorities<'a> {
    /// Its trust anchors, DER.
    pub(super) anchors: &'a [Bytes],
    /// Every CRL there is, of whatever issuer, DER.
    pub(super) crls: &'a [Bytes],
}

/// The CRLs of one trust domain, by how much the verifier checks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Crls {
    /// For one that checks the whole chain.
    pub(super) whole_chain: Option<Vec<Bytes>>,
    /// For one that can be told to check the leaf only.
    pub(super) leaf_only: Option<Vec<Bytes>>,
    /// Why there are none although they are wanted.
    pub(super) withheld: Option<Withheld>,
}

/// Why CRLs are kept back.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Withheld {
    /// Something in the set cannot be read.
    #[error("an authority or CRL cannot be read")]
    Unreadable,
    /// An authority has none that is in force.
    #[error("authority `{0}` has no current CRL")]
    Missing(String),
    /// There may be issuers that we know nothing of.
    #[error(
        "below authority `{0}` there may be issuers whose CRLs are not known here; `sds.crl = \"leaf\"` says there are none"
    )]
    Unbounded(String),
}

/// Chooses. `own` is the trust domain whose leaves this agent signs: with `sds.crl = "leaf"` the operator says that
/// nobody else does.
pub(super) fn choose(policy: SdsCrl, known: &Authorities<'_>, own: bool, now: SystemTime) -> Crls {
    if policy == SdsCrl::Off || known.anchors.is_empty() {
        return Crls::default();
    }
    let chosen = Known::read(known, now).and_then(|read| match policy {
        SdsCrl::Leaf if own => read.as_the_operator_says(),
        _ => read.complete(policy),
    });
    chosen.unwrap_or_else(|withheld| Crls { withheld: Some(withheld), ..Crls::default() })
}

struct Known<'a> {
    anchors: Vec<Anchor<'a>>,
    current: Vec<Crl<'a>>,
}

struct Anchor<'a> {
    name: String,
    subject: &'a [u8],
    key_id: Option<Vec<u8>>,
    /// Whether it may have issuers below it.
    delegates: bool,
}

struct Crl<'a> {
    der: &'a Bytes,
    issuer: &'a [u8],
    key_id: Option<Vec<u8>>,
    this_update: i64,
}

impl<'a> Known<'a> {
    fn read(known: &Authorities<'a>, now: SystemTime) -> Result<Self, Withheld> {
        let now = i64::try_from(unix_seconds(now)).unwrap_or(i64::MAX);
        let anchors = known.anchors.iter().map(anchor).collect::<Result<_, _>>()?;
        let crls = known.crls.iter().map(|der| crl(der, now)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { anchors, current: crls.into_iter().flatten().collect() })
    }

    /// The newest one of each issuer: with two, a verifier may believe the older.
    fn of(&self, anchor: &Anchor<'_>) -> Option<&Crl<'a>> {
        self.current.iter().filter(|crl| crl.is_by(anchor)).max_by_key(|crl| crl.this_update)
    }

    /// No issuer can exist whose CRL is not in the set.
    fn complete(&self, policy: SdsCrl) -> Result<Crls, Withheld> {
        if let Some(anchor) = self.anchors.iter().find(|anchor| anchor.delegates) {
            return Err(match self.of(anchor) {
                Some(_) => Withheld::Unbounded(anchor.name.clone()),
                None => Withheld::Missing(anchor.name.clone()),
            });
        }
        let each = |anchor: &Anchor<'_>| match self.of(anchor) {
            Some(crl) => Ok(crl.der.clone()),
            None => Err(Withheld::Missing(anchor.name.clone())),
        };
        let crls = self.anchors.iter().map(each).collect::<Result<Vec<_>, _>>()?;
        let leaf_only = (policy == SdsCrl::Leaf).then(|| crls.clone());
        Ok(Crls { whole_chain: Some(crls), leaf_only, withheld: None })
    }

    /// The set that we have is all there is. A verifier of the whole chain needs one of each anchor too.
    fn as_the_operator_says(&self) -> Result<Crls, Withheld> {
        let lacking = self.anchors.iter().find(|anchor| self.of(anchor).is_none());
        if let Some(anchor) = lacking.filter(|anchor| !anchor.delegates) {
            return Err(Withheld::Missing(anchor.name.clone()));
        }
        let newest = |crl: &&Crl<'a>| {
            !self.current.iter().any(|other| {
                (other.issuer, &other.key_id) == (crl.issuer, &crl.key_id)
                    && other.this_update > crl.this_update
            })
        };
        let all: Vec<Bytes> = self.current.iter().filter(newest).map(|crl| crl.der.clone()).collect();
        let withheld = lacking.map(|anchor| Withheld::Missing(anchor.name.clone()));
        let whole_chain = lacking.is_none().then(|| all.clone());
        Ok(Crls { whole_chain, leaf_only: Some(all), withheld })
    }
}

impl Crl<'_> {
    fn is_by(&self, anchor: &Anchor<'_>) -> bool {
        let same_key = match (&self.key_id, &anchor.key_id) {
            (Some(theirs), Some(its)) => theirs == its,
            _ => true,
        };
        self.issuer == anchor.subject && same_key
    }
}

fn anchor(der: &Bytes) -> Result<Anchor<'_>, Withheld> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_error| Withheld::Unreadable)?;
    let key_id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    let constraints = certificate.basic_constraints().ok().flatten();
    let delegates = constraints.is_none_or(|found| found.value.path_len_constraint != Some(0));
    let name = key_id.as_deref().map_or_else(|| certificate.subject().to_string(), hex_text);
    Ok(Anchor { name, subject: certificate.subject.as_raw(), key_id, delegates })
}

/// `None`: it is over, or not yet in force.
fn crl(der: &Bytes, now: i64) -> Result<Option<Crl<'_>>, Withheld> {
    let (_, list) = CertificateRevocationList::from_der(der).map_err(|_error| Withheld::Unreadable)?;
    let this_update = list.last_update().timestamp();
    let next_update = list.next_update().map(|time| time.timestamp());
    if this_update > now || next_update.is_none_or(|next| next <= now) {
        return Ok(None);
    }
    let key_id = list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    Ok(Some(Crl { der, issuer: list.tbs_cert_list.issuer.as_raw(), key_id, this_update }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, SerialNumber,
    };
    use time::OffsetDateTime;

    use super::*;
    use crate::clock::from_unix_seconds;

    const NOW: u64 = 1_800_000_000;

    struct Signer {
        certificate: Bytes,
        issuer: Issuer<'static, KeyPair>,
    }

    fn at(seconds: u64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
    }

    fn signer(name: &str, constraints: BasicConstraints) -> Signer {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(constraints);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = Bytes::from(params.self_signed(&key).unwrap().der().to_vec());
        Signer { certificate, issuer: Issuer::new(params, key) }
    }

    fn list(signer: &Signer, from: u64, until: u64) -> Bytes {
        let params = CertificateRevocationListParams {
            this_update: at(from),
            next_update: at(until),
            crl_number: SerialNumber::from(from),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Bytes::from(params.signed_by(&signer.issuer).unwrap().der().to_vec())
    }

    fn current(signer: &Signer) -> Bytes {
        list(signer, NOW - 10, NOW + 3_600)
    }

    fn chosen(policy: SdsCrl, anchors: &[&Signer], crls: &[Bytes], own: bool) -> Crls {
        let anchors: Vec<Bytes> = anchors.iter().map(|s| s.certificate.clone()).collect();
        let now = from_unix_seconds(NOW) + Duration::from_millis(1);
        choose(policy, &Authorities { anchors: &anchors, crls }, own, now)
    }

    #[test]
    fn every_authority_with_its_crl_is_a_complete_set() {
        let (old, new) = (leaf_signer("old"), leaf_signer("new"));
        let crls = [current(&old), current(&new)];
        let full = chosen(SdsCrl::Full, &[&old, &new], &crls, true);
        assert_eq!(full.whole_chain.as_deref(), Some(&crls[..]));
        assert_eq!((full.leaf_only, full.withheld), (None, None));
        let leaf = chosen(SdsCrl::Leaf, &[&old, &new], &crls, false);
        assert_eq!(leaf.leaf_only.as_deref(), Some(&crls[..]));
        assert_eq!(chosen(SdsCrl::Off, &[&old, &new], &crls, true), Crls::default());
    }

    fn leaf_signer(name: &str) -> Signer {
        signer(name, BasicConstraints::Constrained(0))
    }

    #[test]
    fn one_missing_or_outdated_crl_keeps_all_of_them_back() {
        let (old, new) = (leaf_signer("old"), leaf_signer("new"));
        for crls in [
            vec![current(&new)],
            vec![current(&new), list(&old, NOW - 7_200, NOW)],
            vec![current(&new), list(&old, NOW + 60, NOW + 3_600)],
        ] {
            for policy in [SdsCrl::Full, SdsCrl::Leaf] {
                let none = chosen(policy, &[&old, &new], &crls, true);
                assert_eq!((none.whole_chain, none.leaf_only), (None, None));
                assert!(matches!(none.withheld, Some(Withheld::Missing(_))), "{:?}", none.withheld);
            }
        }
        let garbage = [current(&new), Bytes::from_static(b"?")];
        assert_eq!(chosen(SdsCrl::Full, &[&new], &garbage, true).withheld, Some(Withheld::Unreadable));
    }

    #[test]
    fn of_two_crls_of_one_authority_the_newer_is_given() {
        let signer = leaf_signer("one");
        let newer = current(&signer);
        let crls = [list(&signer, NOW - 60, NOW + 3_600), newer.clone()];
        assert_eq!(chosen(SdsCrl::Full, &[&signer], &crls, true).whole_chain, Some(vec![newer.clone()]));
        assert_eq!(chosen(SdsCrl::Leaf, &[&signer], &crls, true).leaf_only, Some(vec![newer]));
    }

    /// Another node's intermediate may be below the same root: its leaves would all be refused.
    #[test]
    fn issuers_that_may_exist_unseen_keep_the_crls_back_unless_the_operator_knows_better() {
        let (root, below) = (signer("root", BasicConstraints::Unconstrained), leaf_signer("intermediate"));
        let crls = [current(&below)];
        let full = chosen(SdsCrl::Full, &[&root], &[current(&below), current(&root)], true);
        assert!(matches!(full.withheld, Some(Withheld::Unbounded(_))));
        let leaf = chosen(SdsCrl::Leaf, &[&root], &crls, true);
        assert_eq!((leaf.whole_chain, leaf.leaf_only.as_deref()), (None, Some(&crls[..])));
        assert!(matches!(leaf.withheld, Some(Withheld::Missing(_))), "for a validator of the whole chain");
        let both = [current(&below), current(&root)];
        assert_eq!(chosen(SdsCrl::Leaf, &[&root], &both, true).whole_chain.as_deref(), Some(&both[..]));
        let foreign = chosen(SdsCrl::Leaf, &[&root], &both, false);
        assert!(
            matches!(foreign.withheld, Some(Withheld::Unbounded(_))),
            "nobody can say so of another domain"
        );
    }
}
