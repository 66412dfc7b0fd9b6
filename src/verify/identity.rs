//! Our own certificate and key, ready for handshakes.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::leaf::{self, Leaf, LeafError};
use crate::secret::KeyBytes;

/// An X.509-SVID of our own with its key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    leaf: Leaf,
    certified: Arc<CertifiedKey>,
}

/// Why a certificate and a key are no identity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityError {
    /// There is no certificate.
    #[error("there is no certificate")]
    Empty,
    /// The certificate is no X.509-SVID.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// The key is none, or belongs to another certificate.
    #[error("the private key does not fit the certificate")]
    Key,
}

impl Identity {
    /// Puts a chain (DER, leaf first) and a PKCS#8 key together.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn new(chain: &[impl AsRef<[u8]>], key: &KeyBytes) -> Result<Self, IdentityError> {
        let leaf = leaf::check(chain.first().ok_or(IdentityError::Empty)?.as_ref())?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.expose()));
        let key = any_supported_type(&key).map_err(|_unusable| IdentityError::Key)?;
        let chain = chain.iter().map(|der| CertificateDer::from(der.as_ref().to_vec())).collect();
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_other_key| IdentityError::Key)?;
        Ok(Self { leaf, certified: Arc::new(certified) })
    }

    /// What our certificate says.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Authority;
    use super::*;

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let authority = Authority::new("example.org");
        let (one, other) =
            (authority.leaf("spiffe://example.org/a"), authority.leaf("spiffe://example.org/a"));
        let key = |bytes: &[u8]| KeyBytes::new(bytes.to_vec());
        assert!(Identity::new(&[&one.der], &key(&one.key)).is_ok());
        assert_eq!(Identity::new(&[&one.der], &key(&other.key)).expect_err("other"), IdentityError::Key);
        assert_eq!(Identity::new(&[&one.der], &key(b"none")).expect_err("none"), IdentityError::Key);
        let none: [&[u8]; 0] = [];
        assert_eq!(Identity::new(&none, &key(&one.key)).expect_err("empty"), IdentityError::Empty);
    }
}
