//! A small authority for tests: leaves of any shape, intermediates, CRLs as wanted.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use time::{Duration, OffsetDateTime};

use super::leaf::Serial;
use crate::clock::{Clock as _, SystemClock};

/// A signing key with its certificate.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a leaf looks like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) common_name: Option<String>,
    /// Basic constraints; `None` leaves them out.
    pub(crate) ca: Option<bool>,
    pub(crate) usage: Vec<KeyUsagePurpose>,
    pub(crate) extended: Vec<ExtendedKeyUsagePurpose>,
    /// Seconds from now.
    pub(crate) validity: (i64, i64),
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            uris: vec!["spiffe://example.org/w".to_owned()],
            dns: Vec::new(),
            common_name: Some("w".to_owned()),
            ca: Some(false),
            usage: vec![KeyUsagePurpose::DigitalSignature],
            extended: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            validity: (-60, 3600),
        }
    }
}

/// A leaf with its key.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) der: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) serial: Serial,
}

/// What a CRL says.
#[derive(Clone, Debug)]
pub(crate) struct List<'a> {
    pub(crate) revoked: &'a [&'a Serial],
    pub(crate) number: u64,
    /// Seconds from now.
    pub(crate) updates: (i64, i64),
}

impl<'a> List<'a> {
    pub(crate) fn of(revoked: &'a [&'a Serial], number: u64) -> Self {
        Self { revoked, number, updates: (-600, 3600) }
    }
}

fn now() -> OffsetDateTime {
    SystemClock.wall().into()
}

fn after(seconds: i64) -> OffsetDateTime {
    now() + Duration::seconds(seconds)
}

impl Authority {
    /// A trust domain's root, under a name of its own.
    pub(crate) fn new(domain: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self::named(domain, &format!("{domain} {}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// A root under a given name: two of one name have different keys.
    pub(crate) fn named(domain: &str, name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        Self { issuer: CertifiedIssuer::self_signed(ca_params(domain, name), key).expect("self-signed") }
    }

    /// An intermediate below this one.
    pub(crate) fn intermediate(&self, domain: &str, name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let params = ca_params(domain, name);
        Self { issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).expect("signed") }
    }

    /// Two certificates of one key below this one.
    pub(crate) fn twins(&self, domain: &str, name: &str) -> [Self; 2] {
        let key = KeyPair::generate().expect("key").serialize_der();
        [1_u64, 2].map(|serial| {
            let key = KeyPair::try_from(key.as_slice()).expect("key");
            let mut params = ca_params(domain, name);
            // By default it is made of the key.
            params.serial_number = Some(serial.into());
            Self { issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).expect("signed") }
        })
    }

    /// An intermediate below this one that is somehow special.
    pub(crate) fn special(&self, domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(domain, "special");
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        Self { issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).expect("signed") }
    }

    /// The same one for every call, for tests that make thousands of leaves.
    pub(crate) fn fixed() -> &'static Self {
        static FIXED: LazyLock<Authority> = LazyLock::new(|| Authority::new("example.org"));
        &FIXED
    }

    /// Its certificate.
    pub(crate) fn der(&self) -> &[u8] {
        self.issuer.der()
    }

    /// A leaf's certificate.
    pub(crate) fn shaped(&self, shape: &Shape) -> Vec<u8> {
        self.issue(shape).der
    }

    /// A leaf for that ID.
    pub(crate) fn leaf(&self, id: &str) -> Issued {
        self.issue(&Shape { uris: vec![id.to_owned()], ..Shape::default() })
    }

    /// A leaf.
    pub(crate) fn issue(&self, shape: &Shape) -> Issued {
        static SERIAL: AtomicU64 = AtomicU64::new(0x4000_0000_0000_0000);
        let key = KeyPair::generate().expect("key");
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = &shape.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.is_ca = match shape.ca {
            Some(true) => IsCa::Ca(BasicConstraints::Unconstrained),
            Some(false) => IsCa::ExplicitNoCa,
            None => IsCa::NoCa,
        };
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = shape.usage.clone();
        params.extended_key_usages = shape.extended.clone();
        params.use_authority_key_identifier_extension = true;
        let dns = shape.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().expect("DNS")));
        let uris = shape.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("URI")));
        params.subject_alt_names = dns.chain(uris).collect();
        (params.not_before, params.not_after) = (after(shape.validity.0), after(shape.validity.1));
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Issued { der: cert.der().to_vec(), key: key.serialize_der(), serial: Serial::new(&serial) }
    }

    /// A CRL, DER.
    pub(crate) fn crl(&self, list: &List<'_>) -> Vec<u8> {
        let entry = |serial: &&Serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial.as_bytes()),
            revocation_time: now(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: after(list.updates.0),
            next_update: after(list.updates.1),
            crl_number: SerialNumber::from_slice(&list.number.to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs: list.revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("signed").der().to_vec()
    }
}

fn ca_params(domain: &str, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into().expect("URI"))];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (after(-3600), after(7 * 24 * 3600));
    params
}
