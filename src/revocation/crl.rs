//! Signing a CRL and reading it back before anybody else does (I05): a list that verifiers cannot parse, or
//! that forgets a serial, is worse than the one before it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::extensions::ParsedExtension;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use super::witness::LastCrl;
use crate::authority::{AuthorityError, CrlProfile, RevokedSerial, X509Authority};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::LeaseId;

/// A complete CRL of one authority, read back and found right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Crl {
    /// The list, DER.
    pub der: Bytes,
    /// CRL number.
    pub number: u64,
    /// Issue date, Unix seconds; see [`CrlNumbering`](super::CrlNumbering) for why it lies in the past.
    pub this_update: u64,
    /// Verifiers may refuse the list from then on, Unix seconds. Re-sign long before.
    pub next_update: u64,
    /// How many serials it names.
    pub entries: usize,
}

/// Why there is no new CRL. The last one stays in force; the revocations stay refused in memory.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// It could not be signed.
    #[error(transparent)]
    Sign(#[from] AuthorityError),
    /// It was signed and must not be published.
    #[error("the new crl is wrong: {0}")]
    Wrong(#[from] CrlFault),
}

/// What is wrong with a CRL of ours.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CrlFault {
    /// A strict parser refuses it.
    #[error("cannot be parsed")]
    Unparsable,
    /// Name, key identifier or signature is not the authority's.
    #[error("is not by its authority")]
    Issuer,
    /// Number or dates are not the planned ones.
    #[error("has another number or another date than planned")]
    Header,
    /// Serials are missing.
    #[error("lacks {0} revoked serials")]
    Missing(usize),
    /// Serials are there that should not be.
    #[error("names {0} serials that are not revoked")]
    Surplus(usize),
}

/// Signs the complete CRL with the number and date of a [`CrlTurn::Now`](super::CrlTurn::Now), reads it back
/// with the parser of rustls and with another one, and compares. `revoked` ascends by serial and must be what
/// the ledger says; `next_update` is that far from `now`.
///
/// # Errors
/// [`CrlError`]: publish nothing, keep the last CRL, raise an alarm, try again with the next turn.
pub fn sign_and_lint(
    authority: &X509Authority,
    revoked: &[RevokedSerial],
    (number, this_update): (u64, u64),
    next_update: Duration,
    now: SystemTime,
) -> Result<Crl, CrlError> {
    let until = unix_seconds(now).max(this_update).saturating_add(next_update.as_secs().max(1));
    let der = authority.sign_crl(&CrlProfile {
        number,
        this_update: from_unix_seconds(this_update),
        next_update: from_unix_seconds(until),
        revoked,
    })?;
    let crl = Crl { der, number, this_update, next_update: until, entries: revoked.len() };
    lint(authority, &crl, revoked)?;
    Ok(crl)
}

/// Reads a CRL back and compares it with what it should say.
///
/// # Errors
/// The first [`CrlFault`].
pub fn lint(authority: &X509Authority, crl: &Crl, revoked: &[RevokedSerial]) -> Result<(), CrlFault> {
    let strict = OwnedCertRevocationList::from_der(&crl.der).map_err(|_error| CrlFault::Unparsable)?;
    let strict = CertRevocationList::from(strict);
    let found = |one: &&RevokedSerial| matches!(strict.find_serial(one.serial.as_bytes()), Ok(Some(_)));
    let missing = revoked.len() - revoked.iter().filter(found).count();
    if missing > 0 {
        return Err(CrlFault::Missing(missing));
    }
    let read = read_back(authority, &crl.der)?;
    if (read.number, read.this_update, read.next_update) != (crl.number, crl.this_update, crl.next_update) {
        return Err(CrlFault::Header);
    }
    // All expected ones are there, so any difference is one too many, or a wrong date.
    match read.revoked.len().checked_sub(revoked.len()) {
        Some(0) if read.revoked == revoked => Ok(()),
        Some(0) | None => Err(CrlFault::Header),
        Some(surplus) => Err(CrlFault::Surplus(surplus)),
    }
}

/// Reads a CRL of that authority; checks name, key identifier and signature.
pub(super) fn read_back(authority: &X509Authority, der: &[u8]) -> Result<LastCrl, CrlFault> {
    let (rest, crl) = x509_parser::parse_x509_crl(der).map_err(|_error| CrlFault::Unparsable)?;
    let by_name = crl.issuer().as_raw() == authority.subject();
    let by_key = key_identifier(&crl) == Some(authority.subject_key_id());
    let signed = authority.verify(crl.tbs_cert_list.as_ref(), &crl.signature_value.data).is_ok();
    if !rest.is_empty() || !by_name || !by_key || !signed {
        return Err(CrlFault::Issuer);
    }
    let number = crl.crl_number().map(|number| number.to_u64_digits());
    let (Some([number]), Some(next_update)) = (number.as_deref(), crl.next_update()) else {
        return Err(CrlFault::Header);
    };
    let mut revoked = crl
        .iter_revoked_certificates()
        .map(|entry| {
            let serial = entry.raw_serial().try_into().ok().map(LeaseId::from_bytes)?;
            Some(RevokedSerial { serial, at: seconds(entry.revocation_date) })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or(CrlFault::Unparsable)?;
    revoked.sort_unstable();
    Ok(LastCrl {
        number: *number,
        this_update: seconds(crl.last_update()),
        next_update: seconds(next_update),
        revoked,
    })
}

fn key_identifier<'a>(crl: &'a CertificateRevocationList<'_>) -> Option<&'a [u8]> {
    crl.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(key) => key.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

fn seconds(at: ASN1Time) -> u64 {
    u64::try_from(at.timestamp()).unwrap_or(0)
}
