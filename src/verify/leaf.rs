//! What makes a certificate an X.509-SVID of a workload, besides the path to its trust domain's authorities.
//!
//! Pure checks of one certificate (X509-SVID §2, §4 and §5.2): no clock, no bundle, no network. webpki looks
//! at dates, signatures, `cA` and extended key usage, and at nothing else; it does not even read the key
//! usage. Whoever authenticates a peer needs both: this, and a path checked by [`super::Trust::verify`].

use std::fmt;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Version;

use crate::id::{IdError, SpiffeId};

/// Why a certificate is not a workload's X.509-SVID. Whoever presented it is to blame.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LeafError {
    /// Not one DER certificate of version 3, or an extension that repeats or does not parse.
    #[error("the certificate is malformed: {0}")]
    Malformed(&'static str),
    /// No URI among its names, or several (X509-SVID §2).
    #[error("the certificate has {0} URI names, an X.509-SVID has exactly one")]
    UriCount(usize),
    /// The one URI is no SPIFFE ID (SPIFFE-ID §2).
    #[error("the certificate's URI name {0}")]
    Id(#[source] IdError),
    /// The SPIFFE ID is the trust domain's own: no workload holds that one (X509-SVID §5.2).
    #[error("the certificate's SPIFFE ID has no path")]
    RootPath,
    /// `cA` is set: a signing certificate authenticates nobody (X509-SVID §3.2).
    #[error("the certificate is a signing certificate")]
    SigningCertificate,
    /// Basic constraints or key usage are missing (X509-SVID §4.1, §4.3).
    #[error("the certificate has no {0} extension")]
    Missing(&'static str),
    /// The key usage lacks `digitalSignature`, or allows signing certificates or CRLs (X509-SVID §4.3).
    #[error("the certificate's key usage {0}")]
    KeyUsage(&'static str),
}

/// What a certificate that passed says about its holder. Only [`check`] makes one; it proves the shape of the
/// certificate, not who signed it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaf {
    spiffe_id: SpiffeId,
    serial: Serial,
    not_after: i64,
}

impl Leaf {
    /// Whom it names.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// Its serial number.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// End of validity in Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }
}

/// A certificate's serial number: the content bytes of its DER INTEGER, without leading zeros. Shown as
/// lower-case hex.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// From the content bytes of a DER INTEGER.
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes.get(zeros..).unwrap_or_default().to_vec())
    }

    /// Big endian, without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// Checks one DER certificate as the end of a chain.
///
/// Refused: anything but exactly one URI name, which is a SPIFFE ID with a path; `cA`; basic constraints or
/// key usage that are missing; a key usage without `digitalSignature`, or with `keyCertSign` or `cRLSign`.
/// Other names (DNS, IP) are allowed and mean nothing here (X509-SVID §2).
///
/// ```
/// use mayfly::verify::leaf::{LeafError, check};
///
/// assert!(matches!(check(b"no certificate"), Err(LeafError::Malformed(_))));
/// ```
///
/// # Errors
/// The first rule it breaks.
pub fn check(der: &[u8]) -> Result<Leaf, LeafError> {
    let certificate = parse(der).ok_or(LeafError::Malformed("it is not one DER certificate"))?;
    if certificate.version() != X509Version::V3 {
        return Err(LeafError::Malformed("it is not of version 3"));
    }
    let spiffe_id = spiffe_id(&certificate)?;
    not_an_authority(&certificate)?;
    Ok(Leaf {
        spiffe_id,
        serial: Serial::new(certificate.raw_serial()),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// One whole certificate, nothing after it.
pub(super) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().and_then(|(rest, found)| rest.is_empty().then_some(found))
}

/// The authority key identifier, where the certificate has one.
pub(super) fn authority_key_id<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    let found = certificate.extensions().iter().find(|e| e.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER)?;
    match found.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(aki) => aki.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    }
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, LeafError> {
    let uris: Vec<&[u8]> = match only(certificate, &OID_X509_EXT_SUBJECT_ALT_NAME)? {
        Some(ParsedExtension::SubjectAlternativeName(names)) => {
            let uris = names.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some(Ok(uri.as_bytes())),
                // A name the parser could not read might have been a second URI.
                GeneralName::Invalid(..) => Some(Err(LeafError::Malformed("a name does not parse"))),
                _ => None,
            });
            uris.collect::<Result<_, _>>()?
        }
        Some(_) => return Err(LeafError::Malformed("its names do not parse")),
        None => Vec::new(),
    };
    let [uri] = uris.as_slice() else { return Err(LeafError::UriCount(uris.len())) };
    let id = SpiffeId::parse(uri).map_err(LeafError::Id)?;
    if id.path().is_empty() {
        return Err(LeafError::RootPath);
    }
    Ok(id)
}

/// X509-SVID §4.1, §4.3: a workload's certificate signs handshakes and nothing else.
fn not_an_authority(certificate: &X509Certificate<'_>) -> Result<(), LeafError> {
    match only(certificate, &OID_X509_EXT_BASIC_CONSTRAINTS)? {
        Some(ParsedExtension::BasicConstraints(found)) if found.ca => {
            return Err(LeafError::SigningCertificate);
        }
        Some(ParsedExtension::BasicConstraints(_)) => {}
        Some(_) => return Err(LeafError::Malformed("its basic constraints do not parse")),
        None => return Err(LeafError::Missing("basic constraints")),
    }
    match only(certificate, &OID_X509_EXT_KEY_USAGE)? {
        Some(ParsedExtension::KeyUsage(usage)) if usage.key_cert_sign() => {
            Err(LeafError::KeyUsage("allows to sign certificates"))
        }
        Some(ParsedExtension::KeyUsage(usage)) if usage.crl_sign() => {
            Err(LeafError::KeyUsage("allows to sign revocation lists"))
        }
        Some(ParsedExtension::KeyUsage(usage)) if !usage.digital_signature() => {
            Err(LeafError::KeyUsage("does not allow digital signatures"))
        }
        Some(ParsedExtension::KeyUsage(_)) => Ok(()),
        Some(_) => Err(LeafError::Malformed("its key usage does not parse")),
        None => Err(LeafError::Missing("key usage")),
    }
}

/// The extension of that kind; two of one kind are refused (RFC 5280 §4.2).
fn only<'a, 'c>(
    certificate: &'c X509Certificate<'a>,
    kind: &Oid<'_>,
) -> Result<Option<&'c ParsedExtension<'a>>, LeafError> {
    let mut found = certificate.extensions().iter().filter(|extension| extension.oid == *kind);
    match (found.next(), found.next()) {
        (first, None) => Ok(first.map(X509Extension::parsed_extension)),
        (_, Some(_)) => Err(LeafError::Malformed("an extension is there twice")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Authority, Shape};
    use super::*;

    const ID: &str = "spiffe://example.org/w";

    fn verdict(shape: &Shape) -> Result<Leaf, LeafError> {
        check(&Authority::new("example.org").shaped(shape))
    }

    fn uris(uris: &[&str]) -> Result<Leaf, LeafError> {
        verdict(&Shape { uris: uris.iter().map(|uri| (*uri).to_owned()).collect(), ..Shape::default() })
    }

    #[test]
    fn the_accepted_rows_of_conformance_3_2_pass() {
        let long = format!("spiffe://example.org/{}", "a".repeat(2048 - 21));
        for shape in [
            Shape::default(),
            Shape { dns: vec!["w.example.org".to_owned()], ..Shape::default() },
            Shape { common_name: None, ..Shape::default() },
            Shape { extended: Vec::new(), ..Shape::default() },
        ] {
            assert_eq!(verdict(&shape).expect("accepted").spiffe_id().as_str(), ID);
        }
        assert_eq!(uris(&[&long]).expect("2048 bytes").spiffe_id().as_str(), long);
    }

    #[test]
    fn x509_02_x509_31_a_leaf_has_exactly_one_uri_and_it_is_a_spiffe_id() {
        let second = "spiffe://example.org/v";
        assert_eq!(uris(&[]), Err(LeafError::UriCount(0)));
        assert_eq!(uris(&[ID, second]), Err(LeafError::UriCount(2)));
        assert_eq!(uris(&[ID, ID]), Err(LeafError::UriCount(2)));
        assert_eq!(uris(&[ID, "https://example.org/w"]), Err(LeafError::UriCount(2)));
        let long = format!("spiffe://example.org/{}", "a".repeat(2049 - 21));
        for wrong in [
            "https://example.org/w",
            "SPIFFE://example.org/w",
            "spiffe://EXAMPLE.org/w",
            "spiffe://example.org/%77",
            "spiffe://example.org/",
            "spiffe://example.org/a/../b",
            "spiffe://example.org/w?x=1",
            "spiffe://user@example.org/w",
            &long,
        ] {
            assert!(matches!(uris(&[wrong]), Err(LeafError::Id(_))), "{wrong}");
        }
    }

    #[test]
    fn x509_32_the_trust_domains_own_id_is_no_workloads() {
        assert_eq!(uris(&["spiffe://example.org"]), Err(LeafError::RootPath));
    }

    #[test]
    fn x509_11_x509_29_a_signing_certificate_authenticates_nobody() {
        assert_eq!(
            verdict(&Shape { ca: Some(true), ..Shape::default() }),
            Err(LeafError::SigningCertificate)
        );
        assert_eq!(
            verdict(&Shape { ca: None, ..Shape::default() }),
            Err(LeafError::Missing("basic constraints"))
        );
        let authority = Authority::new("example.org");
        assert!(check(authority.der()).is_err());
    }

    #[test]
    fn x509_30_a_leafs_key_signs_no_certificates_and_no_crls() {
        use rcgen::KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
        let usage = |usage: &[rcgen::KeyUsagePurpose]| {
            verdict(&Shape { usage: usage.to_vec(), ..Shape::default() }).map(drop)
        };
        assert!(matches!(usage(&[DigitalSignature, KeyCertSign]), Err(LeafError::KeyUsage(_))));
        assert!(matches!(usage(&[DigitalSignature, CrlSign]), Err(LeafError::KeyUsage(_))));
        assert!(matches!(usage(&[KeyEncipherment]), Err(LeafError::KeyUsage(_))));
        assert_eq!(usage(&[]), Err(LeafError::Missing("key usage")));
        assert_eq!(usage(&[DigitalSignature, KeyEncipherment]), Ok(()));
    }

    #[test]
    fn bytes_after_the_certificate_are_refused() {
        let mut der = Authority::new("example.org").shaped(&Shape::default());
        der.push(0);
        assert!(matches!(check(&der), Err(LeafError::Malformed(_))));
    }

    #[test]
    fn serials_compare_as_numbers() {
        assert_eq!(Serial::new(&[0, 0x8f, 1]), Serial::new(&[0x8f, 1]));
        assert_eq!(Serial::new(&[0x0f, 0xa0]).to_string(), "0fa0");
        assert_ne!(Serial::new(&[1, 0]), Serial::new(&[1]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_pass(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(check(&bytes).is_err());
        }

        /// A flipped bit may leave a certificate that still reads well (its signature does not fit any more,
        /// which the path check sees); it never yields an ID that is not one.
        #[test]
        fn a_flipped_bit_never_makes_a_bad_id(at in 0_usize..500, bit in 0_u8..8) {
            let mut der = Authority::fixed().shaped(&Shape::default());
            let at = at % der.len();
            der[at] ^= 1 << bit;
            if let Ok(leaf) = check(&der) {
                prop_assert!(SpiffeId::parse(leaf.spiffe_id().as_str().as_bytes()).is_ok());
                prop_assert!(!leaf.spiffe_id().path().is_empty());
            }
        }
    }
}
