//! Taking apart certificates that stand one after the other.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The certificates in `der`, as far as they can be read.
pub(super) fn certificates(mut der: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut found = Vec::new();
    while let Ok((rest, _)) = X509Certificate::from_der(der) {
        let length = der.len() - rest.len();
        let Some(one) = der.get(..length).filter(|one| !one.is_empty()) else { break };
        found.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::authority::KeyType;
    use crate::authority::testing::authorities;

    #[test]
    fn what_was_put_together_comes_apart() {
        let set = authorities("example.org", KeyType::EcP256);
        let one = set.active_x509().certificate();
        assert_eq!(certificates(&[one.as_ref(), one.as_ref()].concat()).len(), 2);
        assert_eq!(certificates(&[one.as_ref(), b"rubbish".as_slice()].concat()).len(), 1);
        assert!(certificates(b"").is_empty());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(certificates(&bytes).len() <= bytes.len());
        }
    }
}
