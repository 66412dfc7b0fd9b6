//! Signing keys: what they certify, how they are kept, and where they stand in their life.

mod jwk;
mod jws;
mod keys;
mod load;
mod proof_key;
mod set;
mod store;
mod x509;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use self::jwk::{
    BundleError, JWT_SVID, JwsAlgorithm, JwtBundle, JwtBundles, JwtKey, KeyRefusal, WIT_SVID,
};
pub use self::jws::{JwsAuthority, JwsUse};
pub use self::keys::{CryptoError, KeyType, UnknownKeyType, WorkloadKey};
pub use self::load::{AuthoritySettings, LoadError, Unusable, create_anew, load_or_create};
pub use self::proof_key::{ConfirmationFault, ConfirmationKey, ProofKey};
pub use self::set::{Authorities, AuthoritySet};
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
