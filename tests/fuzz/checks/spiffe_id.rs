//! Whatever the parser accepts is byte for byte what it was given, and is made of what the grammar allows.

use mayfly::id::{MAX_SPIFFE_ID_BYTES, SpiffeId, TrustDomain, check_segment};

/// One input.
pub(crate) fn check(bytes: &[u8]) {
    if let Ok(id) = SpiffeId::parse(bytes) {
        assert_eq!(id.as_str().as_bytes(), bytes);
        assert!(bytes.len() <= MAX_SPIFFE_ID_BYTES);
        assert_eq!(format!("{}{}", id.trust_domain().id(), id.path()), id.as_str());
        assert!(id.path().split('/').skip(1).all(|segment| check_segment(segment.as_bytes()).is_ok()));
    }
    if let Ok(domain) = TrustDomain::parse(bytes) {
        assert_eq!(SpiffeId::parse(domain.id().as_str().as_bytes()), Ok(domain.id()));
    }
}
