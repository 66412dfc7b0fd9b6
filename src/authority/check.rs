//! Whether an authority that was found is the one that the journal, or an older agent's file, says it is.
//!
//! What is found is used or refused, never quietly replaced: a new key takes the trust away from everything the
//! old one signed. Only age replaces one ([`super::life`]), or a lost ledger.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use x509_parser::prelude::{GeneralName, X509Certificate};

use rcgen::PublicKeyData as _;

use super::journal::JournalFault;
use super::keys::{KeyType, Signer, SigningKey, verify};
use super::life::{Inconsistent, Refused};
use super::store::StoreError;
use super::upstream::UpstreamError;
use super::x509::AuthorityError;
use crate::clock::from_unix_seconds;
use crate::id::TrustDomain;

/// What the authorities should be.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    /// The trust domain they sign for.
    pub trust_domain: TrustDomain,
    /// Key type of a new X.509 authority, and so of the keys it certifies.
    pub x509_key: KeyType,
    /// Key type of a new JWT authority.
    pub jwt_key: KeyType,
    /// Key type of a new WIT authority; `None` while there is to be none.
    pub wit_key: Option<KeyType>,
    /// Lifetime of a new authority.
    pub ttl: Duration,
    /// How long an authority is published before it signs.
    pub lead: Duration,
}

/// Why there are no authorities, or a step was not taken. The text tells the operator what to do.
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
    /// The journal cannot be used.
    #[error("{place} {fault}; restore it from a backup, or {WAY_OUT}")]
    Journal {
        /// Where it is kept.
        place: String,
        /// What is wrong.
        fault: JournalFault,
    },
    /// There are keys, and nothing says what they are.
    #[error("{0} is gone while there are keys beside it; restore it from a backup, or {WAY_OUT}")]
    JournalLost(String),
    /// The journal contradicts itself.
    #[error("{place}: {why}; restore it from a backup, or {WAY_OUT}")]
    Inconsistent {
        /// Where it is kept.
        place: String,
        /// How.
        why: Inconsistent,
    },
    /// The order does not fit.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The upstream gave no certificate.
    #[error(transparent)]
    Upstream(UpstreamError),
}

/// What is wrong with an authority that was found.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unusable {
    /// Not a key with a certificate of the right kind.
    #[error("is not a private key with its certificate; restore it from a backup, or {WAY_OUT}")]
    Malformed,
    /// The certificate is another key's, or its signature is wrong.
    #[error("holds a certificate that does not belong to its key; restore it from a backup, or {WAY_OUT}")]
    KeyMismatch,
    /// It signs for another trust domain.
    #[error("belongs to another trust domain, not `{0}`; correct `trust_domain`, or {WAY_OUT}")]
    TrustDomain(TrustDomain),
    /// Its validity has not begun.
    #[error("is valid only in {0} seconds: the clock is behind, set it and start again")]
    NotYetValid(u64),
}

/// Checks a self-signed certificate against its key and trust domain; answers its validity, Unix seconds.
pub(super) fn certificate(
    der: &[u8],
    key: &Arc<dyn SigningKey>,
    is_ca: bool,
    trust_domain: &TrustDomain,
) -> Result<(u64, u64), Unusable> {
    let (rest, parsed) = x509_parser::parse_x509_certificate(der).ok().ok_or(Unusable::Malformed)?;
    if !rest.is_empty() || parsed.is_ca() != is_ca {
        return Err(Unusable::Malformed);
    }
    let same_key = parsed.public_key().raw == Signer(Arc::clone(key)).subject_public_key_info();
    let tbs = parsed.tbs_certificate.as_ref();
    // The signature covers neither of these two.
    let regular = parsed.signature_algorithm == parsed.tbs_certificate.signature
        && parsed.signature_value.unused_bits == 0;
    if !same_key || !regular || verify(key.as_ref(), tbs, &parsed.signature_value.data).is_err() {
        return Err(Unusable::KeyMismatch);
    }
    if !names(&parsed, trust_domain) {
        return Err(Unusable::TrustDomain(trust_domain.clone()));
    }
    let seconds = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0);
    let validity = parsed.validity();
    Ok((seconds(validity.not_before), seconds(validity.not_after)))
}

/// Checks the certificate that an upstream gave, when it is found again: key, kind and trust domain. Who signed it
/// was looked at when it came, and the journal's sum covers it.
pub(super) fn issued(
    der: &[u8],
    key: &Arc<dyn SigningKey>,
    trust_domain: &TrustDomain,
) -> Result<(u64, u64), Unusable> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok().ok_or(Unusable::Malformed)?;
    if !parsed.is_ca() {
        return Err(Unusable::Malformed);
    }
    if parsed.public_key().raw != Signer(Arc::clone(key)).subject_public_key_info() {
        return Err(Unusable::KeyMismatch);
    }
    if !names(&parsed, trust_domain) {
        return Err(Unusable::TrustDomain(trust_domain.clone()));
    }
    let seconds = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0);
    Ok((seconds(parsed.validity().not_before), seconds(parsed.validity().not_after)))
}

/// Whether its one URI is the trust domain's own ID.
fn names(certificate: &X509Certificate<'_>, trust_domain: &TrustDomain) -> bool {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let own = trust_domain.id();
    matches!(names.value.general_names.as_slice(), [GeneralName::URI(uri)] if *uri == own.as_str())
}

pub(super) fn times((from, until): (u64, u64)) -> (SystemTime, SystemTime) {
    (from_unix_seconds(from), from_unix_seconds(until))
}

const WAY_OUT: &str = "move the directory away and start again: new authorities will be made, and credentials \
                       signed by the old ones stop verifying";
