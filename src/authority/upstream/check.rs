//! What an upstream answered, held against what was asked. The last word is webpki's: a leaf made for the purpose
//! must verify under the new chain, CRLs included, as strictly as any verifier will ever look.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rcgen::PublicKeyData as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::Signed;
use crate::authority::keys::{Signer, SigningKey};
use crate::authority::x509::{BACKDATE, CaPath, CrlProfile, LeafProfile, X509Authority, subject_key_id};
use crate::authority::{KeyType, State, WorkloadKey};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{KeyId, LeaseId, SpiffeId, TrustDomain};

/// Why an upstream's answer is not used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswerFault {
    /// Nothing, or too much.
    #[error("it has {0}")]
    Size(&'static str),
    /// Not DER of the right kind.
    #[error("the {0} cannot be read")]
    Unreadable(&'static str),
    /// Somebody else's certificate.
    #[error("the certificate is another key's")]
    Key,
    /// A leaf.
    #[error("the certificate is no CA's: let the upstream sign CA requests as such")]
    NotCa,
    /// More, or fewer, CAs could follow than leaves only.
    #[error("the path length is not 0: let the upstream keep what the request says")]
    PathLength,
    /// Cannot sign leaves or CRLs.
    #[error("the key usage is not exactly certificate and CRL signing")]
    Usage,
    /// Names another trust domain, none, or more.
    #[error("the one URI is not the trust domain's ID")]
    Name,
    /// No subject key identifier: nothing could refer to it.
    #[error("there is no subject key identifier")]
    KeyId,
    /// The subject is empty, or another key's: verifiers pick CRLs by it.
    #[error("the subject is not its own: each key needs a name that no other has")]
    Subject,
    /// It is over, has not begun, ends too soon, too late, or after those above it.
    #[error("the validity {0}")]
    Validity(&'static str),
    /// A root is not one.
    #[error("a root is no certificate authority that is valid now")]
    Root,
    /// A verifier would refuse what is signed under it.
    #[error("a leaf under it does not verify: {0}")]
    Path(webpki::Error),
    /// A leaf for the purpose cannot be made.
    #[error("nothing can be signed under it")]
    Unsignable,
    /// A CRL is wrong.
    #[error("a CRL {0}")]
    Crl(&'static str),
}

/// What was asked for.
pub(in crate::authority) struct Asked<'a> {
    pub(in crate::authority) key: &'a Arc<dyn SigningKey>,
    pub(in crate::authority) trust_domain: &'a TrustDomain,
    pub(in crate::authority) now: SystemTime,
    pub(in crate::authority) ttl: Duration,
    /// Subjects that other keys have, DER.
    pub(in crate::authority) taken: &'a [Bytes],
}

/// Checks all of it; answers the certificates in order and the validity, Unix seconds.
pub(in crate::authority) fn check_signed(
    signed: &Signed,
    asked: &Asked<'_>,
) -> Result<(CaPath, (u64, u64)), AnswerFault> {
    let path = tidy(signed)?;
    let own = path.chain.first().ok_or(AnswerFault::Size("no certificate"))?;
    let own = parse(own, "certificate")?;
    shape(&own, asked)?;
    let subject = own.subject.as_raw();
    let foreign = path.chain.iter().skip(1).chain(&path.roots);
    let above = foreign.map(|der| parse(der, "chain")).collect::<Result<Vec<_>, _>>()?;
    let taken = asked.taken.iter().any(|one| one.as_ref() == subject)
        || above.iter().any(|one| one.subject.as_raw() == subject);
    if own.subject.iter_rdn().next().is_none() || taken {
        return Err(AnswerFault::Subject);
    }
    let validity = validity(&own, &above, asked)?;
    let now = unix_seconds(asked.now);
    let roots = path.roots.iter().map(|der| parse(der, "root"));
    for root in roots.collect::<Result<Vec<_>, _>>()? {
        let (from, until) = span(&root);
        if !root.is_ca() || now < from || until <= now {
            return Err(AnswerFault::Root);
        }
    }
    check_crls(&signed.parent_crls, path.chain.iter().skip(1).chain(&path.roots), asked.now)?;
    probe(&path, &signed.parent_crls, validity, asked)?;
    Ok((path, validity))
}

/// Whatever the upstream repeats is left out, and roots stand among the roots only.
fn tidy(signed: &Signed) -> Result<CaPath, AnswerFault> {
    if signed.roots.is_empty() {
        return Err(AnswerFault::Size("no root"));
    }
    let all = signed.chain.iter().chain(&signed.roots).chain(&signed.parent_crls);
    if signed.chain.len() > MAX_CHAIN
        || signed.roots.len() > MAX_ROOTS
        || signed.parent_crls.len() > MAX_ROOTS
    {
        return Err(AnswerFault::Size("too many certificates"));
    }
    if all.map(Bytes::len).sum::<usize>() > MAX_BYTES {
        return Err(AnswerFault::Size("too many bytes"));
    }
    let mut path = CaPath::default();
    for root in &signed.roots {
        if !path.roots.contains(root) {
            path.roots.push(root.clone());
        }
    }
    for one in &signed.chain {
        if !path.roots.contains(one) && !path.chain.contains(one) {
            path.chain.push(one.clone());
        }
    }
    Ok(path)
}

fn shape(own: &X509Certificate<'_>, asked: &Asked<'_>) -> Result<(), AnswerFault> {
    if own.public_key().raw != Signer(Arc::clone(asked.key)).subject_public_key_info() {
        return Err(AnswerFault::Key);
    }
    let constraints = own.basic_constraints().ok().flatten().ok_or(AnswerFault::NotCa)?.value;
    if !constraints.ca {
        return Err(AnswerFault::NotCa);
    }
    if constraints.path_len_constraint != Some(0) {
        return Err(AnswerFault::PathLength);
    }
    let usage = own.key_usage().ok().flatten().ok_or(AnswerFault::Usage)?.value;
    if usage.flags != CERT_AND_CRL_SIGN {
        return Err(AnswerFault::Usage);
    }
    let names = own.subject_alternative_name().ok().flatten().ok_or(AnswerFault::Name)?.value;
    let id = asked.trust_domain.id();
    if !matches!(names.general_names.as_slice(), [GeneralName::URI(uri)] if *uri == id.as_str()) {
        return Err(AnswerFault::Name);
    }
    let key_id = subject_key_id(own).ok_or(AnswerFault::KeyId)?;
    if key_id.is_empty() { Err(AnswerFault::KeyId) } else { Ok(()) }
}

fn validity(
    own: &X509Certificate<'_>,
    above: &[X509Certificate<'_>],
    asked: &Asked<'_>,
) -> Result<(u64, u64), AnswerFault> {
    let (now, (from, until)) = (unix_seconds(asked.now), span(own));
    let most = asked.ttl.saturating_add(SLACK);
    if now < from {
        return Err(AnswerFault::Validity("has not begun: compare the clocks"));
    }
    if until < now.saturating_add(LEAST.as_secs()) {
        return Err(AnswerFault::Validity("is over or ends within a minute"));
    }
    if until > now.saturating_add(most.as_secs()) {
        return Err(AnswerFault::Validity("is longer than was asked for"));
    }
    // Among several roots one will do; which one that is, the path will tell.
    if !above.is_empty() && above.iter().all(|one| span(one).1 < until) {
        return Err(AnswerFault::Validity("ends after that of whoever signed it"));
    }
    Ok((from, until))
}

/// Signs a leaf and an empty CRL with the new authority and lets webpki judge them.
fn probe(
    path: &CaPath,
    parent_crls: &[Bytes],
    (from, until): (u64, u64),
    asked: &Asked<'_>,
) -> Result<(), AnswerFault> {
    let span = (from_unix_seconds(from), from_unix_seconds(until));
    let key = Arc::clone(asked.key);
    let authority =
        X509Authority::assemble(key, asked.trust_domain.clone(), path.clone(), span, State::Prepared)
            .map_err(|_error| AnswerFault::Unsignable)?;
    let leaf = probe_leaf(&authority, asked).ok_or(AnswerFault::Unsignable)?;
    let next_update = asked.now + LEAST;
    let this_update = asked.now.checked_sub(BACKDATE).unwrap_or(asked.now);
    let own = authority.sign_crl(&CrlProfile { number: 1, this_update, next_update, revoked: &[] });
    let own = own.map_err(|_error| AnswerFault::Unsignable)?;
    let crls = parent_crls.iter().chain([&own]).map(|der| OwnedCertRevocationList::from_der(der));
    let crls: Vec<_> = crls.collect::<Result<_, _>>().map_err(|_error| AnswerFault::Unreadable("CRL"))?;
    let crls: Vec<_> = crls.into_iter().map(Into::into).collect();
    let crls: Vec<_> = crls.iter().collect();
    let leaf = CertificateDer::from(leaf.as_ref());
    let leaf = EndEntityCert::try_from(&leaf).map_err(AnswerFault::Path)?;
    let roots: Vec<_> = path.roots.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
    let anchors = roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>();
    let anchors = anchors.map_err(AnswerFault::Path)?;
    let chain: Vec<_> = path.chain.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
    // An upstream without CRLs can be checked as far as its own verifiers can.
    let depth = match parent_crls {
        [] => RevocationCheckDepth::EndEntity,
        _ => RevocationCheckDepth::Chain,
    };
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        let options = RevocationOptionsBuilder::new(&crls).map_err(|_error| AnswerFault::Unsignable)?;
        let options = options
            .with_depth(depth)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(unix_seconds(asked.now)));
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        leaf.verify_for_usage(algorithms, &anchors, &chain, now, usage, Some(options), None)
            .map_err(AnswerFault::Path)?;
    }
    Ok(())
}

fn probe_leaf(authority: &X509Authority, asked: &Asked<'_>) -> Option<Bytes> {
    let id = SpiffeId::parse(format!("{}/probe", asked.trust_domain.id()).as_bytes()).ok()?;
    let key = WorkloadKey::generate(KeyType::EcP256).ok()?;
    let profile = LeafProfile {
        serial: LeaseId::from_random([1; 16]),
        spiffe_id: &id,
        dns_names: &[],
        not_before: asked.now.checked_sub(BACKDATE)?,
        not_after: asked.now.checked_add(LEAST)?,
        key: &key,
    };
    authority.sign_leaf(&profile).ok()
}

/// Checks that each CRL is complete, in force, and signed by one of `issuers` (DER), with one CRL for each.
pub(in crate::authority) fn check_crls<'a>(
    crls: &[Bytes],
    issuers: impl Iterator<Item = &'a Bytes>,
    now: SystemTime,
) -> Result<(), AnswerFault> {
    let issuers: Vec<&Bytes> = issuers.collect();
    let now = unix_seconds(now);
    let mut seen = Vec::new();
    for der in crls {
        // webpki reads no delta, no indirect and no partial list.
        OwnedCertRevocationList::from_der(der)
            .map_err(|_error| AnswerFault::Crl("cannot be used by verifiers"))?;
        let read = Read::of(der).ok_or(AnswerFault::Unreadable("CRL"))?;
        if read.partial {
            return Err(AnswerFault::Crl("covers only a part (issuing distribution point)"));
        }
        if read.this_update > now || read.next_update <= now {
            return Err(AnswerFault::Crl("is not in force"));
        }
        if seen.contains(&crl_issuer(der)) {
            return Err(AnswerFault::Crl("is there twice of one issuer"));
        }
        if !is_by_any(der, issuers.iter().copied()) {
            return Err(AnswerFault::Crl("is by nobody above us"));
        }
        seen.push(crl_issuer(der));
    }
    Ok(())
}

/// What is read of a CRL.
pub(super) struct Read {
    pub(super) number: u64,
    pub(super) this_update: u64,
    pub(super) next_update: u64,
    partial: bool,
    /// Serial, big-endian, and when.
    pub(super) revoked: Vec<(Vec<u8>, u64)>,
}

impl Read {
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (_, crl) = CertificateRevocationList::from_der(der).ok()?;
        let seconds = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0);
        let digits = crl.crl_number().map(|number| number.to_u64_digits());
        let number = match digits.as_deref() {
            Some([number]) => *number,
            _ => 0,
        };
        let revoked = crl.iter_revoked_certificates();
        Some(Self {
            number,
            this_update: seconds(crl.last_update()),
            next_update: seconds(crl.next_update()?),
            partial: crl
                .extensions()
                .iter()
                .any(|one| matches!(one.parsed_extension(), ParsedExtension::IssuingDistributionPoint(_))),
            revoked: revoked.map(|one| (unpadded(one.raw_serial()), seconds(one.revocation_date))).collect(),
        })
    }
}

/// Without the zero that keeps an INTEGER positive.
pub(super) fn unpadded(serial: &[u8]) -> Vec<u8> {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros..).unwrap_or_default().to_vec()
}

/// Whether one of those certificates (DER) has the CRL's issuer name and its signature.
pub(in crate::authority) fn is_by_any<'a>(
    crl: &[u8],
    mut certificates: impl Iterator<Item = &'a Bytes>,
) -> bool {
    let Ok((_, crl)) = CertificateRevocationList::from_der(crl) else { return false };
    certificates.any(|der| {
        let named = X509Certificate::from_der(der)
            .is_ok_and(|(_, one)| one.subject.as_raw() == crl.tbs_cert_list.issuer.as_raw());
        let der = CertificateDer::from(der.as_ref());
        let Ok(issuer) = EndEntityCert::try_from(&der) else { return false };
        let (message, signature) = (crl.tbs_cert_list.as_ref(), crl.signature_value.data.as_ref());
        let verifies = |algorithm: &_| issuer.verify_signature(*algorithm, message, signature).is_ok();
        named && webpki::ALL_VERIFICATION_ALGS.iter().any(verifies)
    })
}

/// The name under which we keep and serve the CRL of another's authority.
pub(in crate::authority) fn crl_issuer(crl: &[u8]) -> Option<KeyId> {
    let (_, crl) = CertificateRevocationList::from_der(crl).ok()?;
    let key = crl.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(key) => key.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    });
    let key = key.unwrap_or_else(|| crl.tbs_cert_list.issuer.as_raw());
    let usual: Option<[u8; 20]> = key.try_into().ok();
    Some(KeyId::from_bytes(usual.unwrap_or_else(|| {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key);
        let mut id = [0; 20];
        id.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
        id
    })))
}

fn parse<'a>(der: &'a [u8], what: &'static str) -> Result<X509Certificate<'a>, AnswerFault> {
    match X509Certificate::from_der(der) {
        Ok(([], one)) => Ok(one),
        _ => Err(AnswerFault::Unreadable(what)),
    }
}

fn span(certificate: &X509Certificate<'_>) -> (u64, u64) {
    let seconds = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0);
    (seconds(certificate.validity().not_before), seconds(certificate.validity().not_after))
}

/// `keyCertSign` and `cRLSign` as x509-parser counts bits.
const CERT_AND_CRL_SIGN: u16 = 1 << 5 | 1 << 6;
const MAX_CHAIN: usize = 8;
const MAX_ROOTS: usize = 16;
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// A certificate that ends sooner is of no use.
const LEAST: Duration = Duration::from_secs(60);
/// How much longer than asked for is still taken.
const SLACK: Duration = Duration::from_secs(3_600);

/// Number, then date: what rises from one CRL of an issuer to the next.
pub(in crate::authority) fn crl_order(crl: &[u8]) -> Option<(u64, u64)> {
    Read::of(crl).map(|read| (read.number, read.this_update))
}
