//! What an X.509-SVID must be to stand for a peer (X509-SVID §5.2, conformance 3.2). Path building looks at none of
//! this: rustls and webpki pass leaves that sign certificates, name two workloads, or none.

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::id::{IdError, SpiffeId};

/// The SPIFFE ID of a leaf that may stand for a peer. Signatures, times and authorities are not looked at: see
/// [`super::verify_chain`].
///
/// # Errors
/// The first [`LeafFault`] found.
pub fn leaf_id(der: &[u8]) -> Result<SpiffeId, LeafFault> {
    let (rest, leaf) = X509Certificate::from_der(der).ok().ok_or(LeafFault::NotACertificate)?;
    if !rest.is_empty() {
        return Err(LeafFault::NotACertificate);
    }
    // Each of these fails when the extension is there twice.
    let basic = leaf.basic_constraints().ok().flatten().ok_or(LeafFault::NoBasicConstraints)?;
    if basic.value.ca {
        return Err(LeafFault::Authority);
    }
    let usage = leaf.key_usage().ok().flatten().ok_or(LeafFault::NoKeyUsage)?.value;
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(LeafFault::SigningUsage);
    }
    if !usage.digital_signature() {
        return Err(LeafFault::NoDigitalSignature);
    }
    let id = only_uri(&leaf)?;
    let id = SpiffeId::parse(id.as_bytes()).map_err(LeafFault::NotASpiffeId)?;
    if id.path().is_empty() { Err(LeafFault::RootPath) } else { Ok(id) }
}

/// A second URI spoils it, be it of SPIFFE or not (X509-02).
fn only_uri<'a>(leaf: &'a X509Certificate<'_>) -> Result<&'a str, LeafFault> {
    let names = leaf.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let mut uris = names.flatten().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let first = uris.next().ok_or(LeafFault::NoUri)?;
    if uris.next().is_some() { Err(LeafFault::SeveralUris) } else { Ok(first) }
}

/// Why a certificate cannot stand for a peer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LeafFault {
    /// Not one certificate in DER.
    #[error("not an X.509 certificate")]
    NotACertificate,
    /// Without basicConstraints nobody can tell it from an authority (AMB-17).
    #[error("certificate does not say that it is no authority")]
    NoBasicConstraints,
    /// `cA` is set.
    #[error("certificate is an authority's")]
    Authority,
    /// There is no keyUsage (AMB-18).
    #[error("certificate has no key usage")]
    NoKeyUsage,
    /// It may sign certificates or CRLs.
    #[error("certificate may sign certificates or CRLs")]
    SigningUsage,
    /// It may not sign a handshake (AMB-18).
    #[error("certificate may not sign a handshake")]
    NoDigitalSignature,
    /// No URI in the SAN extension.
    #[error("certificate names no SPIFFE ID")]
    NoUri,
    /// More than one URI.
    #[error("certificate has more than one URI")]
    SeveralUris,
    /// The URI is no SPIFFE ID.
    #[error("certificate's URI is no SPIFFE ID: {0}")]
    NotASpiffeId(#[source] IdError),
    /// The ID of a trust domain, which is no workload's.
    #[error("certificate names a trust domain and no workload")]
    RootPath,
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
        string::Ia5String,
    };

    use super::*;

    fn uri(text: &str) -> SanType {
        SanType::URI(Ia5String::try_from(text).unwrap())
    }

    fn good() -> CertificateParams {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "w");
        params.subject_alt_names = vec![uri("spiffe://example.org/w")];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params
    }

    fn check(change: impl FnOnce(&mut CertificateParams)) -> Result<SpiffeId, LeafFault> {
        let mut params = good();
        change(&mut params);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        leaf_id(certificate.der())
    }

    #[test]
    fn good_leaves_pass() {
        assert_eq!(check(|_| {}).unwrap().as_str(), "spiffe://example.org/w");
        let with_dns = |p: &mut CertificateParams| {
            p.subject_alt_names.push(SanType::DnsName(Ia5String::try_from("w.example.org").unwrap()));
        };
        assert!(check(with_dns).is_ok());
        assert!(check(|p| p.distinguished_name = Default::default()).is_ok());
        let long = format!("spiffe://example.org/{}", "x".repeat(2048 - 21));
        assert!(check(|p| p.subject_alt_names = vec![uri(&long)]).is_ok());
    }

    #[test]
    fn the_rows_of_conformance_are_refused() {
        let san = |texts: &[&str]| {
            let names: Vec<SanType> = texts.iter().map(|text| uri(text)).collect();
            check(|p| p.subject_alt_names = names)
        };
        assert_eq!(san(&["spiffe://example.org"]), Err(LeafFault::RootPath));
        for bad in [
            "spiffe://example.org/",
            "https://example.org/w",
            "SPIFFE://example.org/w",
            "spiffe://Example.org/w",
            "spiffe://example.org/%77",
        ] {
            assert!(matches!(san(&[bad]), Err(LeafFault::NotASpiffeId(_))), "{bad}");
        }
        let long = format!("spiffe://example.org/{}", "x".repeat(2049 - 21));
        assert!(matches!(san(&[&long]), Err(LeafFault::NotASpiffeId(_))));
        assert_eq!(san(&["spiffe://example.org/w", "spiffe://example.org/v"]), Err(LeafFault::SeveralUris));
        assert_eq!(san(&["spiffe://example.org/w", "https://example.org"]), Err(LeafFault::SeveralUris));
        assert_eq!(san(&[]), Err(LeafFault::NoUri));
        assert_eq!(check(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), Err(LeafFault::Authority));
        assert_eq!(check(|p| p.is_ca = IsCa::NoCa), Err(LeafFault::NoBasicConstraints));
        let usage = |usages: &[KeyUsagePurpose]| check(|p| p.key_usages = usages.to_vec());
        assert_eq!(usage(&[]), Err(LeafFault::NoKeyUsage));
        assert_eq!(usage(&[KeyUsagePurpose::KeyEncipherment]), Err(LeafFault::NoDigitalSignature));
        for signing in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
            assert_eq!(usage(&[KeyUsagePurpose::DigitalSignature, signing]), Err(LeafFault::SigningUsage));
        }
        assert_eq!(leaf_id(b"\x30\x00"), Err(LeafFault::NotACertificate));
    }
}
