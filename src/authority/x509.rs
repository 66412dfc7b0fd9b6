//! The X.509 authority: a key, its certificate, and the profiles of everything it signs (conformance 1.6).
//!
//! The issuer is kept parsed: a leaf costs one encoding and one signature. Four rules make its CRLs work with
//! every verifier: the subject is unique per key (webpki picks a CRL by issuer name alone), every authority key
//! identifier equals the subject key identifier *in the certificate*, a CRL is complete and carries no
//! distribution point, and no leaf outlives its issuer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use super::State;
use super::keys::{CryptoError, KeyType, Signer, SigningKey, WorkloadKey, key_id, verify};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{KeyId, LeaseId, SpiffeId, TrustDomain};

/// How far every validity reaches back, for verifiers whose clock is a little late.
pub const BACKDATE: Duration = Duration::from_secs(10);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key could not be made or used.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The profile cannot be written as DER.
    #[error("cannot encode: {0}")]
    Encode(#[from] rcgen::Error),
    /// The claims cannot be written as JSON.
    #[error("cannot encode claims: {0}")]
    Claims(#[from] serde_json::Error),
    /// A time is outside what a certificate can hold.
    #[error("time is out of range")]
    Time,
    /// The validity asked for ends after the authority's own.
    #[error("the credential would outlive its issuer")]
    OutlivesIssuer,
    /// The identity belongs to another trust domain, or is the trust domain itself.
    #[error("the identity is not a workload of this trust domain")]
    ForeignIdentity,
}

/// The certificates from an authority's own up to its trust anchors, DER.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct CaPath {
    /// The authority's own first, then those above it short of the anchors.
    pub(super) chain: Vec<Bytes>,
    /// The anchors; none when the authority itself is the anchor.
    pub(super) roots: Vec<Bytes>,
}

impl CaPath {
    /// Certificate, intermediates one after the other, anchors.
    fn split(self) -> Result<(Bytes, Bytes, Vec<Bytes>), AuthorityError> {
        let certificate = self.chain.first().cloned().ok_or(rcgen::Error::CouldNotParseCertificate)?;
        if self.roots.is_empty() {
            return Ok((certificate.clone(), Bytes::new(), vec![certificate]));
        }
        Ok((certificate, self.chain.concat().into(), self.roots))
    }
}

/// An X.509 signing key, its certificate and its state. Clones share the key.
#[derive(Clone)]
pub struct X509Authority {
    issuer: Arc<Issuer<'static, Signer>>,
    trust_domain: TrustDomain,
    key_id: KeyId,
    subject_key_id: Bytes,
    certificate: Bytes,
    intermediates: Bytes,
    anchors: Vec<Bytes>,
    subject: Bytes,
    not_before: SystemTime,
    not_after: SystemTime,
    state: State,
}

impl X509Authority {
    /// Puts key and certificates together; the caller has checked that they belong together.
    pub(super) fn assemble(
        key: Arc<dyn SigningKey>,
        trust_domain: TrustDomain,
        path: CaPath,
        validity: (SystemTime, SystemTime),
        state: State,
    ) -> Result<Self, AuthorityError> {
        let key_id = key_id(&key);
        let (certificate, intermediates, anchors) = path.split()?;
        let der = rustls::pki_types::CertificateDer::from(certificate.as_ref());
        // Name and key identifier as they stand in the certificate, byte for byte, not as we would write them.
        let issuer = Arc::new(Issuer::from_ca_cert_der(&der, Signer(key))?);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|_error| rcgen::Error::CouldNotParseCertificate)?;
        let subject = Bytes::copy_from_slice(parsed.subject().as_raw());
        let subject_key_id = subject_key_id(&parsed).ok_or(rcgen::Error::CouldNotParseCertificate)?;
        let subject_key_id = Bytes::copy_from_slice(subject_key_id);
        let (not_before, not_after) = validity;
        Ok(Self {
            issuer,
            trust_domain,
            key_id,
            subject_key_id,
            certificate,
            intermediates,
            anchors,
            subject,
            not_before,
            not_after,
            state,
        })
    }

    /// The same key in another state.
    pub(super) fn in_state(&self, state: State) -> Self {
        Self { state, ..self.clone() }
    }

    /// Its name everywhere in this agent: made from the public key. Also the subject key identifier, unless an
    /// upstream chose another: see [`Self::subject_key_id`].
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// Subject key identifier as it stands in the certificate; authority key identifier of all it signs.
    pub fn subject_key_id(&self) -> &[u8] {
        &self.subject_key_id
    }

    /// The certificate of its key, DER: self-signed, or by an upstream.
    pub fn certificate(&self) -> &Bytes {
        &self.certificate
    }

    /// The certificate's subject, DER: issuer name of all it signs. No other key has the same.
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// What a workload gets after its leaf: intermediates up to, not including, the trust anchor, DER, one after
    /// the other. Empty while the authority itself is the anchor.
    pub fn intermediates(&self) -> &[u8] {
        &self.intermediates
    }

    /// The trust anchors of what it signs, DER: an upstream's roots, or its own certificate.
    pub fn anchors(&self) -> &[Bytes] {
        &self.anchors
    }

    /// Start of the certificate's validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the certificate's validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The type of its key, and of the keys it certifies.
    pub fn algorithm(&self) -> KeyType {
        self.issuer.key().0.key_type()
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Where it stands in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Signs one X.509-SVID; DER.
    ///
    /// # Errors
    /// [`AuthorityError::ForeignIdentity`] and [`AuthorityError::OutlivesIssuer`] when the profile asks for
    /// what this authority must not sign; the rest when it cannot.
    pub fn sign_leaf(&self, profile: &LeafProfile<'_>) -> Result<Bytes, AuthorityError> {
        let id = profile.spiffe_id;
        if id.trust_domain() != &self.trust_domain || id.path().is_empty() {
            return Err(AuthorityError::ForeignIdentity);
        }
        if profile.not_after > self.not_after {
            return Err(AuthorityError::OutlivesIssuer);
        }
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(profile.serial.as_bytes()));
        params.not_before = date(profile.not_before)?;
        params.not_after = date(profile.not_after)?;
        params.distinguished_name = leaf_subject(profile.dns_names);
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        for name in profile.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        // Written out although it is the default: rust-spiffe refuses a leaf without it.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(profile.key.public(), self.issuer.as_ref())?;
        Ok(Bytes::from(leaf.der().to_vec()))
    }

    /// Signs a complete CRL, DER; prefer [`crate::revocation::sign_and_lint`], which also reads it back.
    ///
    /// # Errors
    /// [`AuthorityError::Time`] and [`AuthorityError::Encode`] for dates that make no CRL.
    pub fn sign_crl(&self, profile: &CrlProfile<'_>) -> Result<Bytes, AuthorityError> {
        let revoked_certs = profile.revoked.iter().map(|revoked| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(revoked.serial.as_bytes()),
                revocation_time: date(from_unix_seconds(revoked.at))?,
                reason_code: None,
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: date(profile.this_update)?,
            next_update: date(profile.next_update)?,
            crl_number: SerialNumber::from(profile.number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect::<Result<_, AuthorityError>>()?,
            key_identifier_method: KeyIdMethod::PreSpecified(self.subject_key_id.to_vec()),
        };
        Ok(Bytes::from(params.signed_by(self.issuer.as_ref())?.der().to_vec()))
    }

    /// Checks that a signature over `message`, as it stands in a certificate or CRL, is this authority's.
    ///
    /// # Errors
    /// [`CryptoError`] when it is not.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        verify(self.issuer.key().0.as_ref(), message, signature)
    }
}

impl fmt::Debug for X509Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Authority({}, {:?})", self.key_id, self.state)
    }
}

/// What to write into a leaf. Times are cut to whole seconds.
#[derive(Debug)]
pub struct LeafProfile<'a> {
    /// Serial number.
    pub serial: LeaseId,
    /// The identity: the one URI in the subject alternative name.
    pub spiffe_id: &'a SpiffeId,
    /// DNS names beside it.
    pub dns_names: &'a [String],
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// The workload's key.
    pub key: &'a WorkloadKey,
}

/// What to write into a CRL.
#[derive(Debug)]
pub struct CrlProfile<'a> {
    /// CRL number.
    pub number: u64,
    /// Issue date.
    pub this_update: SystemTime,
    /// When the next one is there at the latest.
    pub next_update: SystemTime,
    /// All revoked serials that a verifier might still accept.
    pub revoked: &'a [RevokedSerial],
}

/// One entry of a CRL.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RevokedSerial {
    /// The serial number.
    pub serial: LeaseId,
    /// When it was revoked, Unix seconds.
    pub at: u64,
}

/// The certificate of a new authority, DER, signed by its own key.
pub(super) fn self_sign(
    key: &Arc<dyn SigningKey>,
    trust_domain: &TrustDomain,
    validity: (SystemTime, SystemTime),
    serial: LeaseId,
) -> Result<Bytes, AuthorityError> {
    let params = ca_params(key_id(key), trust_domain, validity, serial)?;
    Ok(Bytes::from(params.self_signed(&Signer(Arc::clone(key)))?.der().to_vec()))
}

/// A request for a certificate of that key, PKCS#10 DER: name, URI, CA with path length 0.
pub(super) fn request(
    key: &Arc<dyn SigningKey>,
    trust_domain: &TrustDomain,
) -> Result<Bytes, AuthorityError> {
    let mut params = CertificateParams::default();
    describe(&mut params, key_id(key), trust_domain)?;
    Ok(Bytes::from(params.serialize_request(&Signer(Arc::clone(key)))?.der().to_vec()))
}

/// The profile of an authority's certificate, whoever signs it.
pub(super) fn ca_params(
    key_id: KeyId,
    trust_domain: &TrustDomain,
    validity: (SystemTime, SystemTime),
    serial: LeaseId,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    (params.not_before, params.not_after) = (date(validity.0)?, date(validity.1)?);
    describe(&mut params, key_id, trust_domain)?;
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.as_bytes().to_vec());
    Ok(params)
}

fn describe(
    params: &mut CertificateParams,
    key_id: KeyId,
    trust_domain: &TrustDomain,
) -> Result<(), AuthorityError> {
    params.distinguished_name = authority_subject(trust_domain, key_id)?;
    params.subject_alt_names = vec![SanType::URI(trust_domain.id().as_str().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(())
}

/// The subject key identifier that a certificate bears.
pub(super) fn subject_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

/// Unique per key: the key identifier is part of it. Two keys under one name would make webpki check a CRL
/// against the wrong key.
fn authority_subject(trust_domain: &TrustDomain, key_id: KeyId) -> Result<DistinguishedName, AuthorityError> {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Mayfly");
    if trust_domain.as_str().len() <= MAX_COMMON_NAME {
        subject.push(DnType::CommonName, trust_domain.as_str());
    }
    let key_id = key_id.to_string();
    subject.push(
        DnType::CustomDnType(SERIAL_NUMBER_ATTRIBUTE.to_vec()),
        DnValue::PrintableString(key_id.as_str().try_into()?),
    );
    Ok(subject)
}

/// Empty, which makes the alternative name critical; or the first DNS name, because servers such as PostgreSQL
/// map users by common name and SPIRE does the same.
fn leaf_subject(dns_names: &[String]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if let Some(name) = dns_names.first().filter(|name| name.len() <= MAX_COMMON_NAME) {
        subject.push(DnType::CommonName, name.as_str());
    }
    subject
}

pub(super) fn date(at: SystemTime) -> Result<OffsetDateTime, AuthorityError> {
    i64::try_from(unix_seconds(at))
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(AuthorityError::Time)
}

/// `serialNumber`, X.520.
const SERIAL_NUMBER_ATTRIBUTE: [u64; 4] = [2, 5, 4, 5];
/// `ub-common-name` of RFC 5280, appendix A.
const MAX_COMMON_NAME: usize = 64;
