//! Signing keys: what they certify, how they are kept, and where they stand in their life.

use std::sync::Arc;

mod jwk;
mod jwt;
mod keys;
mod load;
mod store;
mod x509;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use self::jwk::{
    BundleError, JWT_SVID, JwsAlgorithm, JwtBundle, JwtBundles, JwtKey, KeyRefusal, WIT_SVID,
};
pub use self::jwt::JwtAuthority;
pub use self::keys::{CryptoError, KeyType, UnknownKeyType, WorkloadKey};
pub use self::load::{AuthoritySettings, LoadError, Unusable, create_anew, load_or_create};
pub use self::store::{Disk, KeyStore, Memory, Slot, StoreError};
pub use self::x509::{AuthorityError, BACKDATE, CrlProfile, LeafProfile, RevokedSerial, X509Authority};

/// Where an authority stands in its life. Today every authority is active from the start; the other states
/// belong to rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// In the bundle, not yet signing: verifiers learn it before they meet it.
    Prepared,
    /// Signs.
    Active,
    /// No longer signs credentials, still signs its CRL and stays in the bundle.
    Old,
    /// Still in the bundle, but all it signed is being replaced.
    Tainted,
    /// Out of the bundle for ever.
    Revoked,
}

/// All authorities of the trust domain that this agent holds: for each kind exactly one is active.
#[derive(Clone, Debug)]
pub struct AuthoritySet {
    x509: Vec<Arc<X509Authority>>,
    jwt: Vec<Arc<JwtAuthority>>,
    active: (Arc<X509Authority>, Arc<JwtAuthority>),
}

impl AuthoritySet {
    /// One active authority of each kind and no others.
    fn new(x509: Arc<X509Authority>, jwt: Arc<JwtAuthority>) -> Self {
        Self { x509: vec![Arc::clone(&x509)], jwt: vec![Arc::clone(&jwt)], active: (x509, jwt) }
    }

    /// The X.509 authority that signs now.
    pub fn active_x509(&self) -> &Arc<X509Authority> {
        &self.active.0
    }

    /// The JWT authority that signs now.
    pub fn active_jwt(&self) -> &Arc<JwtAuthority> {
        &self.active.1
    }

    /// All X.509 authorities in the bundle, each with a CRL of its own.
    pub fn x509(&self) -> &[Arc<X509Authority>] {
        &self.x509
    }

    /// All JWT authorities in the bundle.
    pub fn jwt(&self) -> &[Arc<JwtAuthority>] {
        &self.jwt
    }
}
