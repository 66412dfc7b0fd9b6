//! Who is at the other end of a connection, as far as the transport tells.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::api::peer::Peer;
use crate::id::{LeaseId, SpiffeId};

/// The other end of a connection. Handlers find it among the extensions of a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A process of this machine, pinned.
    Process(Arc<Peer>),
    /// Whoever holds the key of an X.509-SVID of our trust domain that was valid when it connected.
    Svid(Arc<SvidCaller>),
    /// Anybody.
    Nobody,
}

/// A caller by TLS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SvidCaller {
    /// Its identity.
    pub spiffe_id: SpiffeId,
    /// The serial number, if it is one that we could have given: revocation is looked up for each request.
    pub lease: Option<LeaseId>,
}

impl SvidCaller {
    /// Reads a leaf whose chain has been verified, and holds it to what makes a certificate an X.509-SVID
    /// leaf (X509-SVID §2, §4): one URI name, which is the SPIFFE ID of a workload; not an authority.
    pub(super) fn of_leaf(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(leaf).ok().filter(|(rest, _)| rest.is_empty())?;
        if leaf.is_ca() {
            return None;
        }
        if let Some(usage) = leaf.key_usage().ok()? {
            let usage = usage.value;
            if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
                return None;
            }
        }
        let names = leaf.subject_alternative_name().ok()??;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
        let spiffe_id = SpiffeId::parse(uri.as_bytes()).ok().filter(|id| !id.path().is_empty())?;
        let serial = leaf.raw_serial();
        let lease = serial.try_into().ok().map(LeaseId::from_bytes);
        Some(Self { spiffe_id, lease })
    }
}
