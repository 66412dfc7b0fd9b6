//! The authorities of one moment, and the handle through which everybody sees the moment change.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{JwsAuthority, JwsUse, State, X509Authority};
use crate::id::KeyId;

/// All authorities of the trust domain that this agent holds, those that were revoked left out. For each kind that
/// is switched on exactly one is active; X.509 and JWT always are on. Never changes: see [`Authorities`].
#[derive(Clone, Debug)]
pub struct AuthoritySet {
    x509: Vec<Arc<X509Authority>>,
    jwt: Vec<Arc<JwsAuthority>>,
    wit: Vec<Arc<JwsAuthority>>,
    active_x509: Arc<X509Authority>,
    active_jwt: Arc<JwsAuthority>,
    active_wit: Option<Arc<JwsAuthority>>,
    parent_crls: Vec<ParentCrl>,
}

/// A CRL of a certificate authority above ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParentCrl {
    /// Its authority key identifier where that has the usual 20 bytes; otherwise the first 20 of its SHA-256.
    pub issuer: KeyId,
    /// The list, DER.
    pub der: Bytes,
}

impl AuthoritySet {
    /// `None` unless exactly one authority of each kind is active; of WIT there may be no authority at all.
    pub(super) fn new(x509: Vec<X509Authority>, jws: Vec<JwsAuthority>) -> Option<Self> {
        let x509: Vec<_> = x509.into_iter().map(Arc::new).collect();
        let (wit, jwt): (Vec<_>, Vec<_>) =
            jws.into_iter().map(Arc::new).partition(|one| one.usage() == JwsUse::WitSvid);
        let active_x509 = one(x509.iter().filter(|one| one.state() == State::Active))?;
        let active_jwt = one(jwt.iter().filter(|one| one.state() == State::Active))?;
        let active_wit = match wit.as_slice() {
            [] => None,
            wit => Some(one(wit.iter().filter(|one| one.state() == State::Active))?),
        };
        Some(Self { x509, jwt, wit, active_x509, active_jwt, active_wit, parent_crls: Vec::new() })
    }

    pub(super) fn with_parent_crls(self, parent_crls: Vec<ParentCrl>) -> Self {
        Self { parent_crls, ..self }
    }

    /// One CRL of each certificate authority above ours, as far as they publish any.
    pub fn parent_crls(&self) -> &[ParentCrl] {
        &self.parent_crls
    }

    /// The trust anchors of all X.509 authorities, DER, each once.
    pub fn anchors(&self) -> Vec<Bytes> {
        let mut all: Vec<Bytes> = Vec::new();
        for anchor in self.x509.iter().flat_map(|one| one.anchors()) {
            if !all.contains(anchor) {
                all.push(anchor.clone());
            }
        }
        all
    }

    /// The X.509 authority that signs now.
    pub fn active_x509(&self) -> &Arc<X509Authority> {
        &self.active_x509
    }

    /// The JWT authority that signs now.
    pub fn active_jwt(&self) -> &Arc<JwsAuthority> {
        &self.active_jwt
    }

    /// The WIT authority that signs now; `None` while WIT-SVIDs are switched off.
    pub fn active_wit(&self) -> Option<&Arc<JwsAuthority>> {
        self.active_wit.as_ref()
    }

    /// All X.509 authorities in the bundle, each with a CRL of its own.
    pub fn x509(&self) -> &[Arc<X509Authority>] {
        &self.x509
    }

    /// All JWT authorities in the bundle.
    pub fn jwt(&self) -> &[Arc<JwsAuthority>] {
        &self.jwt
    }

    /// All WIT authorities in the bundle; none while WIT-SVIDs are switched off.
    pub fn wit(&self) -> &[Arc<JwsAuthority>] {
        &self.wit
    }
}

/// The only element.
fn one<'a, T: 'a>(mut all: impl Iterator<Item = &'a Arc<T>>) -> Option<Arc<T>> {
    let first = all.next()?;
    all.next().is_none().then(|| Arc::clone(first))
}

/// Where everybody finds the authorities in force. Clones share it.
#[derive(Clone, Debug)]
pub struct Authorities(watch::Sender<Arc<AuthoritySet>>);

impl Authorities {
    /// Begins with that set.
    pub fn new(set: AuthoritySet) -> Self {
        Self(watch::Sender::new(Arc::new(set)))
    }

    /// The set in force. Whoever signs takes it once and stays with it for the whole step.
    pub fn current(&self) -> Arc<AuthoritySet> {
        Arc::clone(&self.0.borrow())
    }

    /// Follows the set in force.
    pub fn subscribe(&self) -> watch::Receiver<Arc<AuthoritySet>> {
        self.0.subscribe()
    }

    /// Puts another set in force, in one step. Only whoever has already published what verifiers need may.
    pub fn replace(&self, set: Arc<AuthoritySet>) {
        self.0.send_replace(set);
    }
}
