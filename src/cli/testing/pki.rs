//! A small authority made with rcgen.

use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use mayfly_proto::workload::{X509svid, X509svidResponse};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::cli::render::hex;

/// One trust domain's authority.
pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    name: String,
}

/// A leaf and its key.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) id: String,
    pub(crate) serial: String,
    pub(crate) chain: Bytes,
    pub(crate) key: Bytes,
}

/// The number of every CRL made here.
pub(crate) const CRL_NUMBER: u64 = 1_763_797_200_000;

static NEXT: AtomicU8 = AtomicU8::new(1);

fn now() -> OffsetDateTime {
    use crate::clock::Clock as _;
    crate::clock::SystemClock.wall().into()
}

impl Pki {
    pub(crate) fn new(domain: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let name = format!("{domain} {}", hex(&key.public_key_raw()[..8]));
        Self::named(domain, &name, key)
    }

    /// Another key under the same name.
    pub(crate) fn forger(&self) -> Self {
        let name = self.name.clone();
        Self::named("example.org", &name, KeyPair::generate().expect("key"))
    }

    fn named(domain: &str, name: &str, key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into().expect("URI"))];
        (params.not_before, params.not_after) = (now() - Duration::hours(1), now() + Duration::days(7));
        let issuer = CertifiedIssuer::self_signed(params, key).expect("self-signed");
        Self { issuer, name: name.to_owned() }
    }

    /// A leaf that is valid for an hour.
    pub(crate) fn leaf(&self, id: &str) -> Leaf {
        let key = KeyPair::generate().expect("key");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let serial = [&[0x40, number][..], &[7; 14]].concat();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("URI"))];
        (params.not_before, params.not_after) = (now() - Duration::seconds(10), now() + Duration::hours(1));
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Leaf {
            id: id.to_owned(),
            serial: hex(&serial),
            chain: cert.der().to_vec().into(),
            key: key.serialize_der().into(),
        }
    }

    /// Authorities, DER.
    pub(crate) fn bundle(&self) -> Bytes {
        self.issuer.der().to_vec().into()
    }

    /// A CRL over these leaves.
    pub(crate) fn crl(&self, revoked: &[&Leaf]) -> Bytes {
        self.crl_for_key(revoked, rcgen::KeyIdMethod::Sha256)
    }

    /// A CRL of ours that claims to be of another's key: of the same issuer, as whoever reads it tells issuers apart.
    pub(crate) fn crl_in_the_name_of(&self, other: &Self) -> Bytes {
        let certificate = other.bundle();
        let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).expect("a certificate");
        let key = certificate.extensions().iter().find_map(|one| match one.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(key) => Some(key.0.to_vec()),
            _ => None,
        });
        self.crl_for_key(&[], rcgen::KeyIdMethod::PreSpecified(key.expect("an authority has one")))
    }

    fn crl_for_key(&self, revoked: &[&Leaf], key: rcgen::KeyIdMethod) -> Bytes {
        let entry = |leaf: &&Leaf| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&unhex(&leaf.serial)),
            revocation_time: now(),
            reason_code: None,
            invalidity_date: None,
        };
        CertificateRevocationListParams {
            this_update: now() - Duration::minutes(10),
            next_update: now() + Duration::hours(1),
            crl_number: SerialNumber::from_slice(&CRL_NUMBER.to_be_bytes()[2..]),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: key,
        }
        .signed_by(&self.issuer)
        .expect("signed")
        .der()
        .to_vec()
        .into()
    }

    /// An X.509 answer with a CRL.
    pub(crate) fn answer(&self, leaves: &[&Leaf], revoked: &[&Leaf]) -> X509svidResponse {
        let svid = |leaf: &&Leaf| X509svid {
            spiffe_id: leaf.id.clone(),
            x509_svid: leaf.chain.clone(),
            x509_svid_key: leaf.key.clone(),
            bundle: self.bundle(),
            hint: String::new(),
        };
        X509svidResponse {
            svids: leaves.iter().map(svid).collect(),
            crl: vec![self.crl(revoked)],
            ..X509svidResponse::default()
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex");
    text.as_bytes().chunks(2).map(byte).collect()
}
