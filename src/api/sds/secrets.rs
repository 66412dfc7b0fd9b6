//! The secrets of one caller at one moment, under all their names.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use mayfly_proto::xds::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use prost::Message as _;
use prost_types::Any;

use super::client::Validator;
use super::closed::{self, Expired};
use super::contexts::{self, Contexts, Domain};
use super::conversation::{Catalog, Finding, Kind, Piece};
use crate::authority::CryptoError;
use crate::config::SdsNames;
use crate::id::{SCHEME, SpiffeId, TrustDomain};
use crate::issue::x509::X509Svid;
use crate::pem;

/// Type of every resource here.
pub(super) const SECRET_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// What a caller may be told.
#[derive(Clone, Debug)]
pub(super) struct Secrets {
    pub(super) names: SdsNames,
    pub(super) validator: Validator,
    /// Its certificates, the default first.
    pub(super) svids: Arc<[Arc<X509Svid>]>,
    /// What it is to trust; `None` when that is not for it to know.
    pub(super) contexts: Option<Arc<Contexts>>,
    /// Of other trust domains, those it may know.
    pub(super) federates_with: Arc<BTreeSet<TrustDomain>>,
}

impl Secrets {
    fn svid(&self, name: &str) -> Option<&Arc<X509Svid>> {
        if name == self.names.svid {
            return self.svids.first();
        }
        self.svids.iter().find(|svid| svid.spiffe_id.as_str() == name)
    }

    /// The trust domains that `name` means; `None` when it is no such name.
    fn domains<'a>(&self, contexts: &'a Contexts, name: &str) -> Option<Vec<&'a Domain>> {
        let visible = self.visible(contexts);
        if name == self.names.bundle {
            return Some(visible.filter(|domain| domain.name == contexts.own).collect());
        }
        if name == self.names.all_bundles {
            return Some(visible.collect());
        }
        let id = SpiffeId::parse(name.as_bytes()).ok().filter(|id| id.path().is_empty())?;
        Some(visible.filter(|domain| &domain.name == id.trust_domain()).collect())
    }

    fn visible<'a>(&self, contexts: &'a Contexts) -> impl Iterator<Item = &'a Domain> {
        let known =
            |domain: &&Domain| domain.name == contexts.own || self.federates_with.contains(&domain.name);
        contexts.domains.iter().filter(known)
    }

    fn is_certificate(&self, name: &str) -> bool {
        name == self.names.svid || SpiffeId::parse(name.as_bytes()).is_ok_and(|id| !id.path().is_empty())
    }

    /// The secrets of pieces that this catalog answered for.
    ///
    /// # Errors
    /// No throw-away key could be made.
    pub(super) fn encode(&self, pieces: &[Piece], now: SystemTime) -> Result<Vec<Any>, CryptoError> {
        // One replacement serves all names of a response: it is for one process.
        let ended = pieces.iter().any(|piece| piece.closed);
        let replacement = if ended { Some(closed::expired(now)?) } else { None };
        Ok(pieces.iter().map(|piece| self.encode_one(piece, replacement.as_ref())).collect())
    }

    fn encode_one(&self, piece: &Piece, replacement: Option<&Expired>) -> Any {
        let kind = match (piece.kind, replacement.filter(|_| piece.closed)) {
            (Kind::Certificate, None) => self.svid(&piece.name).map(|svid| certificate(svid)),
            (Kind::Certificate, Some(expired)) => Some(expired_certificate(expired)),
            (Kind::Context, None) => self.context(&piece.name).map(secret::Type::ValidationContext),
            (Kind::Context, Some(expired)) => {
                let barren = contexts::barren(&piece.name, &expired.certificate, self.validator);
                Some(secret::Type::ValidationContext(barren))
            }
        };
        let secret = Secret { name: piece.name.clone(), r#type: kind };
        Any { type_url: SECRET_TYPE.to_owned(), value: secret.encode_to_vec() }
    }

    fn context(&self, name: &str) -> Option<CertificateValidationContext> {
        let domains = self.domains(self.contexts.as_ref()?, name)?;
        contexts::context(&domains, self.validator)
    }
}

impl Catalog for Secrets {
    fn find(&self, name: &str) -> Finding {
        if let Some(svid) = self.svid(name) {
            return Finding::Value(Kind::Certificate, svid.id.to_string());
        }
        if self.is_certificate(name) {
            return Finding::Gone(Some(Kind::Certificate));
        }
        let Some(contexts) = &self.contexts else { return Finding::Withheld };
        match self.domains(contexts, name) {
            None => Finding::Gone(None),
            Some(domains) if domains.is_empty() => Finding::Gone(None),
            // The default validator would take any authority of any of them for any identity.
            Some(_) if name == self.names.all_bundles && self.validator == Validator::Plain => {
                Finding::Gone(None)
            }
            Some(domains) => Finding::Value(Kind::Context, contexts::version(&domains, self.validator)),
        }
    }

    fn names(&self) -> Vec<String> {
        let ids = self.svids.iter().map(|svid| svid.spiffe_id.to_string());
        let domains = self.contexts.iter().flat_map(|contexts| self.visible(contexts));
        ids.chain(domains.map(|domain| format!("{SCHEME}{}", domain.name))).collect()
    }
}

fn certificate(svid: &X509Svid) -> secret::Type {
    let chain = contexts::blocks(pem::CERTIFICATE, &contexts::split(&svid.chain));
    let key = pem::encode(pem::PRIVATE_KEY, svid.key.expose());
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(contexts::inline(&chain)),
        private_key: Some(contexts::inline(&key)),
    })
}

fn expired_certificate(expired: &Expired) -> secret::Type {
    let chain = pem::encode(pem::CERTIFICATE, &expired.certificate);
    let key = pem::encode(pem::PRIVATE_KEY, &expired.key);
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(contexts::inline(&chain)),
        private_key: Some(contexts::inline(&key)),
    })
}
