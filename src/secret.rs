//! Bytes that are wiped on drop and never printed.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A private key: PKCS#8 DER, or a private JWK in JSON.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct KeyBytes(Vec<u8>);

impl KeyBytes {
    /// Takes ownership of the bytes; the caller must not keep a copy.
    pub fn new(key: Vec<u8>) -> Self {
        Self(key)
    }

    /// The bytes. The name makes each use easy to find in review.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBytes([..])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_key() {
        let key = KeyBytes::new(b"0123456789abcdef".to_vec());
        assert_eq!(format!("{key:?}"), "KeyBytes([..])");
        assert_eq!(key.expose().len(), 16);
    }
}
