//! What verifiers need, as one immutable value shared by all streams: our bundles, the CRLs, and the bundles
//! of federated trust domains. A change makes a new value with the next generation number; the bytes of what
//! did not change are shared.

mod bundle;
mod document;
mod federated;
mod jwk;
pub mod map;
pub mod oidc;
mod own;
pub mod sequence;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::authority::{AuthoritySet, JwtBundle};
use crate::id::{KeyId, TrustDomain};

pub use self::bundle::{DocumentForm, DomainBundle};
pub use self::document::{BundleDocument, DocumentError, Fault, MAX_DOCUMENT_BYTES, MAX_KEYS, Remark};
pub use self::federated::{FederatesWith, TrustMark, TrustView, publish_federated};
pub use self::jwk::UnsupportedKey;
pub use self::store::{BundleStore, Kept, Origin, StoreError as BundleStoreError};
pub use crate::authority::JwtBundles;

/// The trust of one moment.
#[derive(Clone, Debug)]
pub struct TrustSnapshot {
    generation: u64,
    trust_domain: TrustDomain,
    x509_bundle: Bytes,
    jwks: Bytes,
    jwt_bundles: JwtBundles,
    crls: BTreeMap<KeyId, Bytes>,
    crl_list: Vec<Bytes>,
    own: Arc<DomainBundle>,
    /// Never holds our own.
    federated: Arc<federated::Bundles>,
    /// The generation in which our own part last changed.
    own_generation: u64,
}

impl TrustSnapshot {
    /// The bundles of those authorities, without CRLs of their own; generation 1.
    pub fn new(trust_domain: &TrustDomain, authorities: &AuthoritySet) -> Self {
        let own = JwtBundle::of(authorities.jwt().iter().map(Arc::as_ref));
        let jwks = own.json().clone();
        let mut jwt_bundles = JwtBundles::default();
        jwt_bundles.insert(trust_domain.clone(), Arc::new(own));
        Self {
            generation: 1,
            trust_domain: trust_domain.clone(),
            x509_bundle: authorities.anchors().concat().into(),
            jwks,
            jwt_bundles,
            crl_list: authorities.parent_crls().iter().map(|crl| crl.der.clone()).collect(),
            crls: authorities.parent_crls().iter().map(|crl| (crl.issuer, crl.der.clone())).collect(),
            own: Arc::new(DomainBundle::of(authorities)),
            federated: Arc::default(),
            own_generation: 1,
        }
    }

    /// The next generation, with these CRLs (DER), each in place of its authority's earlier one: a verifier that saw
    /// two might believe the older.
    #[must_use]
    pub fn with_crls(&self, crls: &[(KeyId, Bytes)]) -> Self {
        let mut next = self.clone();
        next.generation += 1;
        // What tells an open stream that there is something new.
        next.own_generation = next.generation;
        next.crls.extend(crls.iter().cloned());
        next.crl_list = next.crls.values().cloned().collect();
        next
    }

    /// Counts the changes since start.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Our trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Our own bundle, as others may have it.
    pub fn own(&self) -> &Arc<DomainBundle> {
        &self.own
    }

    /// The trust anchors of our X.509 authorities: certificates, DER, concatenated.
    pub fn x509_bundle(&self) -> &Bytes {
        &self.x509_bundle
    }

    /// Our JWT authorities: a plain JWK Set, JSON; `{"keys":[]}` when there are none.
    pub fn jwks(&self) -> &Bytes {
        &self.jwks
    }

    /// The JWT keys of our own trust domain, ready to verify. Those of others are for callers that federate with
    /// them: see [`TrustView`].
    pub fn jwt_bundles(&self) -> &JwtBundles {
        &self.jwt_bundles
    }

    /// One complete CRL for each authority that has signed one, DER.
    pub fn crls(&self) -> &[Bytes] {
        &self.crl_list
    }

    /// The CRL of that authority, DER.
    pub fn crl(&self, key_id: &KeyId) -> Option<&Bytes> {
        self.crls.get(key_id)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::{AuthoritySettings, KeyType, in_memory};
    use crate::clock::from_unix_seconds;

    fn snapshot() -> (TrustSnapshot, AuthoritySet) {
        let settings = AuthoritySettings {
            trust_domain: "example.org".parse().unwrap(),
            x509_key: KeyType::EcP256,
            jwt_key: KeyType::EcP256,
            wit_key: None,
            ttl: Duration::from_secs(3_600),
            lead: Duration::ZERO,
        };
        let now = from_unix_seconds(1_800_000_000);
        let set = in_memory(&settings, now).unwrap();
        (TrustSnapshot::new(&settings.trust_domain, &set), set)
    }

    #[test]
    fn the_own_bundles_are_the_authorities() {
        let (trust, set) = snapshot();
        assert_eq!(trust.x509_bundle(), set.active_x509().certificate());
        let jwks: serde_json::Value = serde_json::from_slice(trust.jwks()).unwrap();
        assert_eq!(jwks, serde_json::json!({ "keys": [set.active_jwt().jwk()] }));
        assert!(trust.crls().is_empty() && trust.federated().next().is_none());
        let own = trust.jwt_bundles().get(trust.trust_domain()).unwrap();
        assert!(own.key(set.active_jwt().kid()).is_some());
    }

    #[test]
    fn an_authority_has_one_crl_at_a_time() {
        let (trust, set) = snapshot();
        let own = set.active_x509().key_id();
        let one = trust.with_crls(&[(own, Bytes::from_static(b"one"))]);
        let two = one.with_crls(&[(own, Bytes::from_static(b"two"))]);
        assert_eq!((one.generation(), two.generation()), (2, 3));
        assert_eq!(two.crls(), [Bytes::from_static(b"two")]);
        let other = KeyId::from_bytes([9; 20]);
        assert_eq!(two.with_crls(&[(other, Bytes::from_static(b"old key"))]).crls().len(), 2);
    }
}
