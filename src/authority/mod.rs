//! Signing keys: what they certify, how they are kept, and where they stand in their life.

use std::fmt;

use serde::{Deserialize, Serialize};

mod check;
mod custody;
mod journal;
mod jwk;
mod jws;
mod keys;
pub mod life;
mod proof_key;
mod protect;
mod set;
mod store;
mod takeover;
pub mod upstream;
mod x509;

#[cfg(test)]
mod custody_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use self::check::{AuthoritySettings, LoadError, Unusable};
pub use self::custody::{Change, Custody, Trouble, in_memory};
pub use self::journal::{Journal, JournalFault};
pub use self::jwk::{BundleError, JwsAlgorithm, JwtBundle, JwtBundles, JwtKey, KeyRefusal};
pub use self::jws::{JwsAuthority, JwsUse};
pub use self::keys::{CryptoError, KeyType, SignatureForm, SigningKey, UnknownKeyType, WorkloadKey};
pub use self::life::AuthorityKind;
pub use self::proof_key::{ConfirmationFault, ConfirmationKey, ProofKey, jwk_thumbprint};
pub use self::protect::{EmptyPassphrase, Protection, Unopened};
pub use self::set::{Authorities, AuthoritySet, ParentCrl};
pub use self::store::{Disk, KeyStore, Memory, StoreError, name_of};
pub use self::x509::{AuthorityError, BACKDATE, CrlProfile, LeafProfile, RevokedSerial, X509Authority};

/// Where an authority stands in its life.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
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

impl State {
    /// The word for it in the journal, in answers and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
            Self::Tainted => "tainted",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
