//! An upstream whose root lies in files of this machine: certificate and key, read again when they change. We sign
//! the root's CRL ourselves.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use rcgen::{
    CertificateRevocationListParams, CertificateSigningRequestParams, Issuer, KeyIdMethod,
    PublicKeyData as _, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::check::{Read, is_by_any};
use super::{Offer, Signed, Upstream, UpstreamError, Wanted, revoked};
use crate::authority::AuthorityError;
use crate::authority::keys::{SignatureForm, Signer, SigningKey, SigningPair, refused, verify};
use crate::authority::x509::{BACKDATE, ca_params, date, subject_key_id};
use crate::clock::{from_unix_seconds, unix_millis, unix_seconds};
use crate::files::{self, TrustRules};
use crate::id::{KeyId, LeaseId, TrustDomain};
use crate::pem;
use crate::secret::KeyBytes;

/// Where the root lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiskPaths {
    /// PEM, the self-signed certificate.
    pub certificate: PathBuf,
    /// PEM, its private key as unencrypted PKCS#8, readable by its owner alone.
    pub key: PathBuf,
    /// The list of revoked node certificates.
    pub revoked: PathBuf,
}

/// `[upstream.disk]`
#[derive(Debug)]
pub struct DiskUpstream {
    paths: DiskPaths,
    trust_domain: TrustDomain,
    loaded: Mutex<Option<Arc<Root>>>,
}

/// A root that was found good.
#[derive(Debug)]
struct Root {
    certificate: Bytes,
    key_id: Vec<u8>,
    until: u64,
    issuer: Issuer<'static, Signer>,
    /// Of both files, to see that they have changed.
    files: [u8; 32],
}

impl DiskUpstream {
    /// Reads nothing yet.
    pub fn new(paths: DiskPaths, trust_domain: TrustDomain) -> Self {
        Self { paths, trust_domain, loaded: Mutex::default() }
    }

    /// The root in force, and what is wrong with the files if they hold another by now.
    fn root(&self, now: SystemTime) -> Result<(Arc<Root>, Option<String>), UpstreamError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.read(loaded.as_ref(), now), loaded.as_ref()) {
            (Ok(root), before) => {
                if before.is_some_and(|before| before.files != root.files) {
                    tracing::info!(path = %self.paths.certificate.display(), "the upstream's root was replaced");
                }
                *loaded = Some(Arc::clone(&root));
                Ok((root, None))
            }
            (Err(error), Some(before)) => {
                Ok((Arc::clone(before), Some(format!("{error}; the root read before stays in use"))))
            }
            (Err(error), None) => Err(error),
        }
    }

    fn read(&self, before: Option<&Arc<Root>>, now: SystemTime) -> Result<Arc<Root>, UpstreamError> {
        let certificate = files::read_trusted(&self.paths.certificate, &TrustRules::public(MAX_BYTES))?;
        let key = KeyBytes::new(files::read_trusted(&self.paths.key, &TrustRules::private(MAX_BYTES))?);
        let sums = [digest(&SHA256, &certificate), digest(&SHA256, key.expose())];
        let mut files = [0; 32];
        let sum = digest(&SHA256, &sums.map(|sum| sum.as_ref().to_vec()).concat());
        files.iter_mut().zip(sum.as_ref()).for_each(|(to, from)| *to = *from);
        if let Some(before) = before.filter(|before| before.files == files) {
            return Ok(Arc::clone(before));
        }
        let of_key = |why: &str| unusable(&self.paths.key, why);
        let pkcs8 = pem::decode(pem::PRIVATE_KEY, key.expose()).ok_or_else(|| of_key(NO_KEY))?;
        let pair = SigningPair::parse(&pkcs8, SignatureForm::X509).map_err(|_error| of_key(WRONG_KEY))?;
        let pair: Arc<dyn SigningKey> = Arc::new(pair);
        let of_certificate = |why: &str| unusable(&self.paths.certificate, why);
        let der =
            pem::decode(pem::CERTIFICATE, &certificate).ok_or_else(|| of_certificate(NO_CERTIFICATE))?;
        let (key_id, until) = self.check(&der, &pair, now).map_err(of_certificate)?;
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(der.as_slice()), Signer(pair));
        let issuer = issuer.map_err(|_error| of_certificate(NO_CERTIFICATE))?;
        Ok(Arc::new(Root { certificate: Bytes::copy_from_slice(&der), key_id, until, issuer, files }))
    }

    /// Its key identifier and its end, Unix seconds.
    fn check(
        &self,
        der: &[u8],
        key: &Arc<dyn SigningKey>,
        now: SystemTime,
    ) -> Result<(Vec<u8>, u64), &'static str> {
        let (_, root) = X509Certificate::from_der(der).map_err(|_error| NO_CERTIFICATE)?;
        if root.public_key().raw != Signer(Arc::clone(key)).subject_public_key_info() {
            return Err("is another key's than `key` holds; replace both files together");
        }
        let signed = verify(key.as_ref(), root.tbs_certificate.as_ref(), &root.signature_value.data).is_ok();
        if root.subject.as_raw() != root.issuer.as_raw() || !signed {
            return Err("is not self-signed; write the root here, not an intermediate");
        }
        let constraints = root.basic_constraints().ok().flatten().map(|found| found.value);
        if !constraints.is_some_and(|found| found.ca && found.path_len_constraint != Some(0)) {
            return Err(
                "is no CA below which another may stand (basicConstraints CA:TRUE, no path length 0)",
            );
        }
        let usage = root.key_usage().ok().flatten().map(|found| found.value);
        if !usage.is_some_and(|usage| usage.key_cert_sign() && usage.crl_sign()) {
            return Err("may not sign certificates and CRLs (keyUsage keyCertSign, cRLSign)");
        }
        let names = root.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|found| &found.value.general_names);
        let own = self.trust_domain.id();
        let foreign = |name: &GeneralName<'_>| matches!(name, GeneralName::URI(uri) if uri.starts_with("spiffe://") && *uri != own.as_str());
        if names.into_iter().any(foreign) {
            return Err("is another trust domain's");
        }
        if root.subject.iter_rdn().next().is_none() {
            return Err("has no subject, and verifiers find CRLs by it");
        }
        let key_id = subject_key_id(&root).ok_or("has no subjectKeyIdentifier, which CRLs refer to")?;
        let seconds = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0);
        let (from, until) = (seconds(root.validity().not_before), seconds(root.validity().not_after));
        match unix_seconds(now) {
            now if now < from => Err("is not valid yet; compare the clock"),
            now if until <= now.saturating_add(60) => {
                Err("is expired or about to; replace certificate and key")
            }
            _ => Ok((key_id.to_vec(), until)),
        }
    }

    /// The root's CRL: the last one while it says all and is young, otherwise a new one; and what is amiss with the
    /// list of revoked certificates.
    fn crl(
        &self,
        root: &Root,
        known: &[Bytes],
        now: SystemTime,
    ) -> Result<(Bytes, Option<String>), UpstreamError> {
        let last = known.iter().find(|crl| is_by_any(crl, std::iter::once(&root.certificate)));
        let last = last.and_then(|der| Some((der.clone(), Read::of(der)?)));
        let before = last.as_ref().map(|(_, read)| read.revoked.clone()).unwrap_or_default();
        let (wanted, remark) = self.wanted(&before, unix_seconds(now));
        let mut dates = (unix_millis(now), unix_seconds(now).saturating_sub(CRL_BACKDATE));
        if let Some((der, read)) = last {
            let serials = |all: &[(Vec<u8>, u64)]| all.iter().map(|(one, _)| one.clone()).collect::<Vec<_>>();
            let (mut had, mut has) = (serials(&before), serials(&wanted));
            had.sort_unstable();
            has.sort_unstable();
            let is_young = unix_seconds(now) < read.this_update.saturating_add(CRL_AGAIN.as_secs());
            if had == has && is_young {
                return Ok((der, remark));
            }
            dates = (dates.0.max(read.number + 1), dates.1.max(read.this_update + 1));
            if dates.1 > unix_seconds(now) {
                // Dates from the future would make verifiers refuse everybody.
                let why = "the clock was set back: the parent CRL waits until it has caught up";
                return Ok((der, Some(remark.unwrap_or_else(|| why.to_owned()))));
            }
        }
        sign_crl(root, &wanted, dates).map(|der| (der, remark)).map_err(|error| UpstreamError::Unusable {
            place: "parent CRL".to_owned(),
            why: error.to_string(),
        })
    }

    /// What the CRL is to name. A list that is gone or cannot be read takes nothing back.
    fn wanted(&self, before: &[(Vec<u8>, u64)], now: u64) -> (Vec<(Vec<u8>, u64)>, Option<String>) {
        let since: BTreeMap<&Vec<u8>, u64> = before.iter().map(|(serial, at)| (serial, *at)).collect();
        match revoked::read(&self.paths.revoked) {
            Ok(Some(all)) => {
                let at =
                    |serial, time: Option<u64>| time.or_else(|| since.get(serial).copied()).unwrap_or(now);
                (
                    all.iter().map(|(serial, time)| (serial.clone(), at(serial, *time).min(now))).collect(),
                    None,
                )
            }
            Ok(None) if before.is_empty() => (Vec::new(), None),
            Ok(None) => {
                let path = self.paths.revoked.display();
                (before.to_vec(), Some(format!("{path} is gone; the parent CRL stays as it was")))
            }
            Err(error) => (before.to_vec(), Some(format!("{error}; the parent CRL stays as it was"))),
        }
    }
}

impl Upstream for DiskUpstream {
    fn sign(&self, wanted: &Wanted) -> Result<Signed, UpstreamError> {
        let (root, _) = self.root(wanted.now)?;
        let certificate = sign(&root, wanted).map_err(|error| UpstreamError::Unusable {
            place: self.paths.certificate.display().to_string(),
            why: error.to_string(),
        })?;
        let (crl, _) = self.crl(&root, &wanted.crls, wanted.now)?;
        Ok(Signed { chain: vec![certificate], roots: vec![root.certificate.clone()], parent_crls: vec![crl] })
    }

    fn offer(&self, crls: &[Bytes], now: SystemTime) -> Result<Offer, UpstreamError> {
        let (root, of_root) = self.root(now)?;
        let (crl, of_crl) = self.crl(&root, crls, now)?;
        Ok(Offer {
            roots: vec![root.certificate.clone()],
            parent_crls: vec![crl],
            remark: of_root.or(of_crl),
        })
    }

    fn revoke(&self, serial: &[u8], now: SystemTime) -> Result<(), UpstreamError> {
        revoked::add(&self.paths.revoked, serial, unix_seconds(now))
    }
}

/// The node's certificate: key from the request, profile our own.
fn sign(root: &Root, wanted: &Wanted) -> Result<Bytes, AuthorityError> {
    let csr = CertificateSigningRequestDer::from(wanted.csr.to_vec());
    let csr = CertificateSigningRequestParams::from_der(&csr)?;
    let hash = digest(&SHA256, &csr.public_key.subject_public_key_info());
    let mut key_id = [0; 20];
    key_id.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(refused)?;
    let not_before = wanted.now.checked_sub(BACKDATE).unwrap_or(wanted.now);
    let not_after = wanted.now.checked_add(wanted.ttl).ok_or(AuthorityError::Time)?;
    let not_after = not_after.min(from_unix_seconds(root.until));
    let (key_id, serial) = (KeyId::from_bytes(key_id), LeaseId::from_random(serial));
    let mut params = ca_params(key_id, &wanted.trust_domain, (not_before, not_after), serial)?;
    params.use_authority_key_identifier_extension = true;
    Ok(Bytes::from(params.signed_by(&csr.public_key, &root.issuer)?.der().to_vec()))
}

fn sign_crl(
    root: &Root,
    revoked: &[(Vec<u8>, u64)],
    (number, this_update): (u64, u64),
) -> Result<Bytes, AuthorityError> {
    let revoked_certs = revoked.iter().map(|(serial, at)| {
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: date(from_unix_seconds(*at))?,
            reason_code: None,
            invalidity_date: None,
        })
    });
    let params = CertificateRevocationListParams {
        this_update: date(from_unix_seconds(this_update))?,
        next_update: date(from_unix_seconds(this_update.saturating_add(CRL_LIFE.as_secs())))?,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect::<Result<_, AuthorityError>>()?,
        key_identifier_method: KeyIdMethod::PreSpecified(root.key_id.clone()),
    };
    Ok(Bytes::from(params.signed_by(&root.issuer)?.der().to_vec()))
}

fn unusable(path: &std::path::Path, why: &str) -> UpstreamError {
    UpstreamError::Unusable { place: path.display().to_string(), why: why.to_owned() }
}

const NO_CERTIFICATE: &str = "holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)";
const NO_KEY: &str =
    "holds no private key as unencrypted PKCS#8; `openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW` makes one";
const WRONG_KEY: &str = "is no key of a type that is known here: EC P-256, EC P-384 or RSA with 2048 bits";
const MAX_BYTES: u64 = 65_536;
/// For verifiers whose clock is late, and so that changes within a minute have dates.
const CRL_BACKDATE: u64 = 60;
/// Longer than any certificate that this upstream signs lives: when the root was replaced, nobody can sign another
/// for the old one, and its last CRL must do until the last node certificate below it has ended.
const CRL_LIFE: Duration = Duration::from_secs(48 * 3600);
const CRL_AGAIN: Duration = Duration::from_secs(3 * 3600);
