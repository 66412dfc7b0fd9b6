//! What opens nothing. Envoy obeys no withdrawal of a secret: an empty response, a removed resource and a stream
//! that ends all leave it serving with what it has. What it obeys is a replacement (measured with Envoy 1.40).

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, IsCa, KeyPair};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::authority::CryptoError;
use crate::clock::unix_seconds;

/// A certificate that nobody accepts, with its key: expired, signed by itself.
pub(super) struct Expired {
    /// DER.
    pub(super) certificate: Vec<u8>,
    /// PKCS#8 DER.
    pub(super) key: Zeroizing<Vec<u8>>,
}

/// Made anew each time: two processes never share a key, not even one that is worth nothing. As a trust anchor it is
/// barren: it is over, and may sign nothing.
pub(super) fn expired(now: SystemTime) -> Result<Expired, CryptoError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_refused| CryptoError)?;
    let mut params = CertificateParams::default();
    params.not_before = date(now, Duration::from_secs(7_200));
    params.not_after = date(now, Duration::from_secs(3_600));
    params.distinguished_name.push(DnType::CommonName, "withdrawn");
    params.is_ca = IsCa::ExplicitNoCa;
    let certificate = params.self_signed(&key).map_err(|_refused| CryptoError)?;
    Ok(Expired { certificate: certificate.der().to_vec(), key: Zeroizing::new(key.serialize_der()) })
}

fn date(now: SystemTime, ago: Duration) -> OffsetDateTime {
    let seconds = unix_seconds(now).saturating_sub(ago.as_secs());
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_unix_seconds;

    #[test]
    fn the_replacement_has_expired_and_its_key_fits() {
        let now = from_unix_seconds(1_800_000_000);
        let made = expired(now).unwrap();
        let (_, read) = x509_parser::parse_x509_certificate(&made.certificate).unwrap();
        assert!(read.validity().not_after.timestamp() < 1_800_000_000);
        let key = KeyPair::try_from(made.key.as_slice()).unwrap();
        assert_eq!(read.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
        assert_ne!(expired(now).unwrap().key, made.key);
    }
}
