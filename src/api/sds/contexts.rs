//! What clients are told to trust, made once for each state of the trust and shared by all streams.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mayfly_proto::xds::envoy::config::core::v3::data_source::Specifier;
use mayfly_proto::xds::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use mayfly_proto::xds::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain as Judged;
use mayfly_proto::xds::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SpiffeCertValidatorConfig,
};
use prost::Message as _;
use prost_types::Any;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::client::Validator;
use super::crl::{self, Authorities, Withheld};
use crate::clock::Clock;
use crate::config::SdsCrl;
use crate::id::{TrustDomain, hex_text};
use crate::pem;
use crate::trust::TrustSnapshot;

/// One trust domain, ready to send.
#[derive(Clone, Debug)]
pub(super) struct Domain {
    pub(super) name: TrustDomain,
    anchors: String,
    whole_chain: Option<String>,
    leaf_only: Option<String>,
    version: String,
    pub(super) withheld: Option<Withheld>,
}

/// All trust domains of one state of the trust, our own first.
#[derive(Clone, Debug)]
pub(super) struct Contexts {
    generation: u64,
    pub(super) own: TrustDomain,
    pub(super) domains: Vec<Domain>,
}

/// Keeps the latest [`Contexts`].
pub(super) struct ContextCache {
    policy: SdsCrl,
    clock: Arc<dyn Clock>,
    latest: Mutex<Option<Arc<Contexts>>>,
}

impl ContextCache {
    pub(super) fn new(policy: SdsCrl, clock: Arc<dyn Clock>) -> Self {
        Self { policy, clock, latest: Mutex::default() }
    }

    /// The contexts of that state of the trust.
    pub(super) fn of(&self, trust: &TrustSnapshot) -> Arc<Contexts> {
        // Held while they are made, so that a thousand streams that wake at once make them once.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = latest.as_ref().filter(|known| known.generation == trust.generation()) {
            return Arc::clone(known);
        }
        let made = Arc::new(self.make(trust));
        // A stream that is behind must not throw away what the others use.
        if latest.as_ref().is_none_or(|known| known.generation < made.generation) {
            *latest = Some(Arc::clone(&made));
        }
        made
    }

    fn make(&self, trust: &TrustSnapshot) -> Contexts {
        let now = self.clock.wall();
        let domain = |name: &TrustDomain, anchors: &[Bytes], own: bool| {
            let known = Authorities { anchors, crls: trust.crls() };
            Domain::new(name.clone(), anchors, crl::choose(self.policy, &known, own, now))
        };
        let own = domain(trust.trust_domain(), trust.own().x509(), true);
        let foreign = trust.federated().map(|(name, bundle)| domain(name, bundle.x509(), false));
        let domains = std::iter::once(own).chain(foreign).filter(|domain| !domain.anchors.is_empty());
        let own = trust.trust_domain().clone();
        Contexts { generation: trust.generation(), own, domains: domains.collect() }
    }
}

impl Domain {
    fn new(name: TrustDomain, anchors: &[Bytes], crls: crl::Crls) -> Self {
        let anchors = blocks(pem::CERTIFICATE, anchors);
        let whole_chain = crls.whole_chain.map(|list| blocks(pem::CRL, &list));
        let leaf_only = crls.leaf_only.map(|list| blocks(pem::CRL, &list));
        let all = format!("{name}\n{anchors}\n{whole_chain:?}\n{leaf_only:?}");
        Self { version: digest(&all), name, anchors, whole_chain, leaf_only, withheld: crls.withheld }
    }

    /// For the default validator.
    fn plain(&self) -> CertificateValidationContext {
        // Leaf only where the operator chose it: it is the weaker check.
        let crl = self.leaf_only.as_ref().or(self.whole_chain.as_ref());
        CertificateValidationContext {
            trusted_ca: Some(inline(&self.anchors)),
            crl: crl.map(|text| inline(text)),
            only_verify_leaf_cert_crl: self.leaf_only.is_some(),
            custom_validator_config: None,
        }
    }

    /// For the SPIFFE validator, which heeds CRLs only where they stand among the anchors (measured with Envoy 1.40;
    /// docs/decisions/0030).
    fn judged(&self) -> Judged {
        let crls = self.whole_chain.as_deref().unwrap_or_default();
        Judged { name: self.name.to_string(), trust_bundle: Some(inline(&format!("{}{crls}", self.anchors))) }
    }
}

/// A context for exactly these trust domains. The default validator cannot keep several apart: `None`.
pub(super) fn context(domains: &[&Domain], validator: Validator) -> Option<CertificateValidationContext> {
    match (validator, domains) {
        (_, []) => None,
        (Validator::Plain, [one]) => Some(one.plain()),
        (Validator::Plain, _) => None,
        (Validator::Spiffe, _) => Some(spiffe(domains.iter().map(|domain| domain.judged()).collect())),
    }
}

/// A context that trusts nobody, for peers of the trust domain that `name` may be the ID of. `anchor` is DER.
pub(super) fn barren(name: &str, anchor: &[u8], validator: Validator) -> CertificateValidationContext {
    let anchor = pem::encode(pem::CERTIFICATE, anchor);
    match validator {
        Validator::Plain => CertificateValidationContext {
            trusted_ca: Some(inline(&anchor)),
            ..CertificateValidationContext::default()
        },
        Validator::Spiffe => {
            let name = name.strip_prefix(crate::id::SCHEME).unwrap_or("withdrawn.invalid").to_owned();
            spiffe(vec![Judged { name, trust_bundle: Some(inline(&anchor)) }])
        }
    }
}

/// Two contexts with the same version are the same.
pub(super) fn version(domains: &[&Domain], validator: Validator) -> String {
    let mut text = String::new();
    for domain in domains {
        // Writing into a `String` cannot fail.
        writeln!(text, "{validator:?} {} {}", domain.name, domain.version).ok();
    }
    digest(&text)
}

fn spiffe(trust_domains: Vec<Judged>) -> CertificateValidationContext {
    let config = SpiffeCertValidatorConfig { trust_domains };
    let typed_config = Some(Any { type_url: VALIDATOR_TYPE.to_owned(), value: config.encode_to_vec() });
    CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig { name: VALIDATOR.to_owned(), typed_config }),
        ..CertificateValidationContext::default()
    }
}

pub(super) fn inline(text: &str) -> DataSource {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }
}

/// PEM blocks one after the other.
pub(super) fn blocks(label: &str, ders: &[Bytes]) -> String {
    ders.iter().map(|der| pem::encode(label, der).as_str().to_owned()).collect()
}

/// Concatenated DER certificates, one by one. What cannot be read, and all behind it, is left out.
pub(super) fn split(concatenated: &Bytes) -> Vec<Bytes> {
    let mut found = Vec::new();
    let mut rest: &[u8] = concatenated;
    while let Ok((after, _)) = X509Certificate::from_der(rest) {
        let length = rest.len() - after.len();
        found.push(concatenated.slice_ref(rest.get(..length).unwrap_or_default()));
        rest = after;
    }
    found
}

fn digest(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    hex_text(digest.as_ref().first_chunk::<8>().unwrap_or(&[0; 8]))
}

const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const VALIDATOR_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
