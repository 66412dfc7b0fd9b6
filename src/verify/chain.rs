//! Path validation of an X.509-SVID (RFC 5280) against the authorities of its own trust domain.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::leaf::{self, LeafError};
use crate::id::SpiffeId;

/// What the peer is being asked to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// It answers.
    Server,
    /// It called.
    Client,
}

/// Checks that `chain` (DER, leaf first) is an X.509-SVID, signed below one of `authorities` (DER), which must be
/// those of the trust domain that the leaf names: the caller looks them up by the ID that [`leaf::check`] reads. `now`
/// is the time since the Unix epoch. Revocation is not looked at.
///
/// # Errors
/// [`ChainError`].
pub fn verify_chain<'a>(
    chain: &[CertificateDer<'_>],
    authorities: impl IntoIterator<Item = &'a [u8]>,
    purpose: Purpose,
    now: Duration,
) -> Result<SpiffeId, ChainError> {
    let (leaf, intermediates) =
        chain.split_first().ok_or(ChainError::Leaf(LeafError::Malformed("the chain is empty")))?;
    let id = leaf::check(leaf)?.spiffe_id().clone();
    let roots: Vec<CertificateDer<'_>> = authorities.into_iter().map(CertificateDer::from).collect();
    // One that webpki cannot read vouches for nobody.
    let anchors: Vec<_> = roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
    let leaf = EndEntityCert::try_from(leaf)?;
    let usage = match purpose {
        Purpose::Server => KeyUsage::server_auth(),
        Purpose::Client => KeyUsage::client_auth(),
    };
    let now = UnixTime::since_unix_epoch(now);
    leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, intermediates, now, usage, None, None)?;
    Ok(id)
}

/// Why a chain was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChainError {
    /// The leaf cannot stand for a peer.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// No valid path to an authority of the trust domain.
    #[error("certificate does not verify: {0}")]
    Path(#[from] webpki::Error),
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
        SanType, string::Ia5String,
    };
    use time::OffsetDateTime;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    struct Pki {
        root: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn pki() -> Pki {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        Pki { root: root.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn leaf(pki: &Pki, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([]).unwrap();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from("spiffe://example.org/w").unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = OffsetDateTime::from_unix_timestamp(NOW - 10).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(NOW + 100).unwrap();
        change(&mut params);
        params.signed_by(&KeyPair::generate().unwrap(), &pki.issuer).unwrap().der().clone()
    }

    fn verify(
        pki: &Pki,
        leaf: CertificateDer<'_>,
        purpose: Purpose,
        at: i64,
    ) -> Result<SpiffeId, ChainError> {
        let now = Duration::from_secs(u64::try_from(at).unwrap());
        verify_chain(&[leaf], [pki.root.as_ref()], purpose, now)
    }

    #[test]
    fn a_leaf_of_the_trust_domain_stands_within_its_time_and_for_its_purpose() {
        let (own, other) = (pki(), pki());
        let good = leaf(&own, |_| {});
        assert_eq!(
            verify(&own, good.clone(), Purpose::Server, NOW).unwrap().as_str(),
            "spiffe://example.org/w"
        );
        assert!(verify(&own, good.clone(), Purpose::Client, NOW).is_ok());
        for (pki, at) in [(&other, NOW), (&own, NOW - 60), (&own, NOW + 200)] {
            assert!(matches!(verify(pki, good.clone(), Purpose::Server, at), Err(ChainError::Path(_))));
        }
        let server = leaf(&own, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        assert!(verify(&own, server.clone(), Purpose::Server, NOW).is_ok());
        assert!(matches!(verify(&own, server, Purpose::Client, NOW), Err(ChainError::Path(_))));
        let signs = leaf(&own, |p| p.key_usages.push(KeyUsagePurpose::CrlSign));
        assert_eq!(
            verify(&own, signs, Purpose::Server, NOW),
            Err(ChainError::Leaf(LeafError::KeyUsage("allows to sign revocation lists")))
        );
        assert!(verify_chain(&[], [], Purpose::Server, Duration::ZERO).is_err());
        assert!(verify_chain(&[good], [], Purpose::Server, Duration::from_secs(1_800_000_000)).is_err());
    }
}
