//! What changes in a snapshot when our own authorities change.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::TrustSnapshot;
use crate::authority::{AuthoritySet, JwtBundle};
use crate::id::KeyId;

impl TrustSnapshot {
    /// The next generation, with the bundles of that set. `crls` are new ones of its authorities; those of
    /// authorities that are not in the set any more leave with them; those of authorities above ours come with the
    /// set. Federated bundles stay.
    #[must_use]
    pub fn with_authorities(&self, set: &AuthoritySet, crls: &[(KeyId, Bytes)]) -> Self {
        let own = Self::new(&self.trust_domain, set);
        let mut next = self.clone();
        next.generation += 1;
        next.own_generation = next.generation;
        next.own = own.own;
        next.x509_bundle = own.x509_bundle;
        next.jwks = own.jwks;
        let keys = JwtBundle::of(set.jwt().iter().map(Arc::as_ref));
        next.jwt_bundles.insert(self.trust_domain.clone(), Arc::new(keys));
        next.crls.extend(crls.iter().cloned());
        let parents = set.parent_crls();
        next.crls.extend(parents.iter().map(|crl| (crl.issuer, crl.der.clone())));
        let there = set.x509().iter().map(|one| one.key_id()).chain(parents.iter().map(|crl| crl.issuer));
        let there: BTreeSet<KeyId> = there.collect();
        next.crls.retain(|issuer, _| there.contains(issuer));
        next.crl_list = next.crls.values().cloned().collect();
        next
    }

    /// Whether our own bundles and CRLs are the same as there: then there is nothing to tell anybody, whatever became
    /// of the authorities among themselves.
    pub fn tells_the_same(&self, other: &Self) -> bool {
        self.own.same_as(&other.own) && self.crls == other.crls
    }
}
