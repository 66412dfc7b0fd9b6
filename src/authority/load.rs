//! Finding the authorities again after a restart, and making them the first time.
//!
//! What is found is used or refused, never quietly replaced: a new key takes the trust away from everything
//! the old one signed, and that is the operator's decision. The one exception is a lost ledger
//! ([`create_anew`]): a key whose credentials can no longer be revoked must not stay in the bundle.

use std::time::{Duration, SystemTime};

use rcgen::PublicKeyData as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{GeneralName, X509Certificate};

use super::jws::{JwsAuthority, JwsUse};
use super::keys::{CryptoError, KeyType, SignatureForm, SigningPair, refused, verify};
use super::store::{KeyStore, Slot, StoreError};
use super::x509::{AuthorityError, BACKDATE, CertificateUse, X509Authority, self_sign};
use super::{AuthoritySet, State};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{LeaseId, TrustDomain};
use crate::pem;
use crate::secret::KeyBytes;

/// What the authorities should be.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    /// The trust domain they sign for.
    pub trust_domain: TrustDomain,
    /// Key type of the X.509 authority, and of the keys it certifies.
    pub x509_key: KeyType,
    /// Key type of the JWT authority.
    pub jwt_key: KeyType,
    /// Key type of the WIT authority; `None` while there is to be none.
    pub wit_key: Option<KeyType>,
    /// Lifetime of a new authority.
    pub ttl: Duration,
}

/// Why there are no authorities. The text tells the operator what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A new authority cannot be made.
    #[error("cannot make a new authority: {0}")]
    Make(#[from] AuthorityError),
    /// There is one, but it cannot be used.
    #[error("{place}: {why}")]
    Unusable {
        /// Where it is kept.
        place: String,
        /// What is wrong, and the way out.
        why: Unusable,
    },
    /// Of some kind none, or more than one, is active: our mistake.
    #[error("there is not exactly one active authority of each kind")]
    NoActive,
}

/// What is wrong with an authority that was found.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unusable {
    /// Not a PEM document with a private key and a certificate of the right kind.
    #[error("is not a private key followed by its certificate; restore it from a backup, or {WAY_OUT}")]
    Malformed,
    /// The certificate is another key's, or its signature is wrong.
    #[error("holds a certificate that does not belong to its key; restore it from a backup, or {WAY_OUT}")]
    KeyMismatch,
    /// It signs for another trust domain.
    #[error("belongs to another trust domain, not `{0}`; correct `trust_domain`, or {WAY_OUT}")]
    TrustDomain(TrustDomain),
    /// Its validity is over.
    #[error("expired {0} seconds ago; check the clock; if it is right, {WAY_OUT}")]
    Expired(u64),
    /// Its validity has not begun.
    #[error("is valid only in {0} seconds: the clock is behind, set it and start again")]
    NotYetValid(u64),
    /// Its key is of another type than configured.
    #[error(
        "has a key of type {found} while the configuration says {wanted}; change `key_type` back, or {WAY_OUT}"
    )]
    KeyType {
        /// What is there.
        found: KeyType,
        /// What the configuration says.
        wanted: KeyType,
    },
}

/// Loads the authorities from the store, or makes and stores those that are missing. Blocking.
///
/// # Errors
/// [`LoadError`]; nothing that was found is changed.
pub fn load_or_create(
    store: &dyn KeyStore,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<AuthoritySet, LoadError> {
    let found = |slot, kind| match store.load(slot)? {
        Some(document) => parse(&document, slot, kind, settings, now)
            .map(Some)
            .map_err(|why| LoadError::Unusable { place: store.place(slot), why }),
        None => Ok(None),
    };
    // All that is there is looked at before anything is made.
    let all: Vec<_> = slots(settings)
        .map(|(slot, kind)| Ok((slot, kind, found(slot, kind)?)))
        .collect::<Result<_, LoadError>>()?;
    let or_new = |(slot, kind, parts): (Slot, KeyType, Option<Parts>)| {
        let parts = parts.map_or_else(|| make(store, slot, kind, settings, now), Ok)?;
        Ok((slot, parts))
    };
    assemble(all.into_iter().map(or_new).collect::<Result<_, LoadError>>()?, settings)
}

/// The authorities there are to be, each with the type of its key.
fn slots(settings: &AuthoritySettings) -> impl Iterator<Item = (Slot, KeyType)> {
    let wit = settings.wit_key.map(|kind| (Slot::Wit, kind));
    [(Slot::X509, settings.x509_key), (Slot::Jwt, settings.jwt_key)].into_iter().chain(wit)
}

/// Makes all authorities anew and puts them in place of whatever is stored: for a ledger that is lost or was
/// rolled back (G04, G05). Everything signed before stops verifying once verifiers have the new bundle.
///
/// # Errors
/// [`LoadError`]; a part of the store may then be new already, which the next start accepts.
pub fn create_anew(
    store: &dyn KeyStore,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<AuthoritySet, LoadError> {
    let new = |(slot, kind)| Ok((slot, make(store, slot, kind, settings, now)?));
    assemble(slots(settings).map(new).collect::<Result<_, LoadError>>()?, settings)
}

/// A key with the certificate that binds it to its trust domain and validity.
struct Parts {
    key: SigningPair,
    certificate: Vec<u8>,
    validity: (SystemTime, SystemTime),
}

fn assemble(all: Vec<(Slot, Parts)>, settings: &AuthoritySettings) -> Result<AuthoritySet, LoadError> {
    let domain = &settings.trust_domain;
    let (mut x509, mut tokens) = (Vec::new(), Vec::new());
    for (slot, Parts { key, certificate, validity }) in all {
        let jws = |key, usage| JwsAuthority::assemble(key, usage, domain.clone(), validity, State::Active);
        match slot {
            Slot::X509 => x509.push(X509Authority::assemble(
                key,
                domain.clone(),
                certificate.into(),
                validity,
                State::Active,
            )?),
            Slot::Jwt => tokens.push(jws(key, JwsUse::JwtSvid)?),
            Slot::Wit => tokens.push(jws(key, JwsUse::WitSvid)?),
        }
    }
    AuthoritySet::new(x509, tokens).ok_or(LoadError::NoActive)
}

fn make(
    store: &dyn KeyStore,
    slot: Slot,
    kind: KeyType,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<Parts, LoadError> {
    let key = SigningPair::generate(kind, SignatureForm::X509).map_err(crypto)?;
    let now = from_unix_seconds(unix_seconds(now));
    let not_before = now.checked_sub(BACKDATE).unwrap_or(now);
    let not_after = now.checked_add(settings.ttl).ok_or(AuthorityError::Time)?;
    let validity = (not_before, from_unix_seconds(unix_seconds(not_after)));
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|error| crypto(refused(error)))?;
    let serial = LeaseId::from_random(serial);
    let certificate = self_sign(&key, &settings.trust_domain, certificate_use(slot), validity, serial)?;
    let secret = key.pkcs8().map_err(crypto)?;
    let mut document = pem::encode(pem::PRIVATE_KEY, secret.expose()).as_bytes().to_vec();
    // Exactly once, so that no half-grown copy of the key stays in freed memory.
    let certificate_text = pem::encode(pem::CERTIFICATE, &certificate);
    document.reserve_exact(certificate_text.len());
    document.extend_from_slice(certificate_text.as_bytes());
    store.store(slot, &KeyBytes::new(document))?;
    let key = in_form(key, &secret, slot).map_err(crypto)?;
    Ok(Parts { key, certificate: certificate.to_vec(), validity })
}

fn parse(
    document: &KeyBytes,
    slot: Slot,
    wanted: KeyType,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<Parts, Unusable> {
    let secret = PrivatePkcs8KeyDer::from_pem_slice(document.expose()).ok().ok_or(Unusable::Malformed)?;
    let certificate = CertificateDer::from_pem_slice(document.expose()).ok().ok_or(Unusable::Malformed)?;
    let form = signature_form(slot);
    let key = SigningPair::parse(secret.secret_pkcs8_der(), form).ok().ok_or(Unusable::Malformed)?;
    let validity = check(&certificate, &key, slot, settings, now)?;
    if key.kind() != wanted {
        return Err(Unusable::KeyType { found: key.kind(), wanted });
    }
    Ok(Parts { key, certificate: certificate.to_vec(), validity })
}

fn check(
    certificate: &[u8],
    key: &SigningPair,
    slot: Slot,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<(SystemTime, SystemTime), Unusable> {
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).ok().ok_or(Unusable::Malformed)?;
    if !rest.is_empty() || parsed.is_ca() != (certificate_use(slot) == CertificateUse::X509) {
        return Err(Unusable::Malformed);
    }
    let same_key = parsed.public_key().raw == key.subject_public_key_info();
    let tbs = parsed.tbs_certificate.as_ref();
    // The signature covers neither of these two.
    let regular = parsed.signature_algorithm == parsed.tbs_certificate.signature
        && parsed.signature_value.unused_bits == 0;
    if !same_key || !regular || verify(key, tbs, &parsed.signature_value.data).is_err() {
        return Err(Unusable::KeyMismatch);
    }
    if !names(&parsed, &settings.trust_domain) {
        return Err(Unusable::TrustDomain(settings.trust_domain.clone()));
    }
    let seconds = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0);
    let validity = parsed.validity();
    let (from, until, now) = (seconds(validity.not_before), seconds(validity.not_after), unix_seconds(now));
    if now >= until {
        return Err(Unusable::Expired(now - until));
    }
    if now < from {
        return Err(Unusable::NotYetValid(from - now));
    }
    Ok((from_unix_seconds(from), from_unix_seconds(until)))
}

/// Whether its one URI is the trust domain's own ID.
fn names(certificate: &X509Certificate<'_>, trust_domain: &TrustDomain) -> bool {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let own = trust_domain.id();
    matches!(names.value.general_names.as_slice(), [GeneralName::URI(uri)] if *uri == own.as_str())
}

fn in_form(key: SigningPair, secret: &KeyBytes, slot: Slot) -> Result<SigningPair, CryptoError> {
    match signature_form(slot) {
        SignatureForm::X509 => Ok(key),
        SignatureForm::Jws => SigningPair::parse(secret.expose(), SignatureForm::Jws),
    }
}

fn signature_form(slot: Slot) -> SignatureForm {
    match slot {
        Slot::X509 => SignatureForm::X509,
        Slot::Jwt | Slot::Wit => SignatureForm::Jws,
    }
}

fn certificate_use(slot: Slot) -> CertificateUse {
    match slot {
        Slot::X509 => CertificateUse::X509,
        Slot::Jwt | Slot::Wit => CertificateUse::Jws,
    }
}

fn crypto(error: CryptoError) -> LoadError {
    LoadError::Make(AuthorityError::Crypto(error))
}

const WAY_OUT: &str = "move the file away and start again: a new authority will be made, and credentials \
                       signed by the old one stop verifying";
