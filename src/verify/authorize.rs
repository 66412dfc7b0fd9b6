//! Whom a connection is for, once it is certain who the peer is.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::id::{SpiffeId, TrustDomain};

/// Says yes or no to a peer's SPIFFE ID. Cheap to clone.
///
/// It is asked after the certificate was verified against the bundle of the ID's own trust domain, so the ID is
/// the peer's true one. There is no "anybody": who wants that writes `Authorizer::when(|_| true)` and can be
/// found by it.
///
/// ```
/// use mayfly::id::SpiffeId;
/// use mayfly::verify::Authorizer;
///
/// let billing: SpiffeId = "spiffe://example.org/billing".parse()?;
/// let only_billing = Authorizer::exactly(billing.clone());
/// assert!(only_billing.allows(&billing));
/// assert!(!only_billing.allows(&"spiffe://example.org/billing/2".parse()?));
/// # Ok::<(), mayfly::id::IdError>(())
/// ```
#[derive(Clone)]
pub struct Authorizer(Rule);

#[derive(Clone)]
enum Rule {
    Ids(Arc<BTreeSet<SpiffeId>>),
    TrustDomain(TrustDomain),
    When(Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>),
}

impl Authorizer {
    /// That one, byte for byte.
    pub fn exactly(id: SpiffeId) -> Self {
        Self::one_of([id])
    }

    /// Any of these, byte for byte. An empty list allows nobody.
    pub fn one_of(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self(Rule::Ids(Arc::new(ids.into_iter().collect())))
    }

    /// Every workload of that trust domain.
    pub fn member_of(trust_domain: TrustDomain) -> Self {
        Self(Rule::TrustDomain(trust_domain))
    }

    /// Whoever the closure says yes to. It runs during the handshake: it must be quick and must not block.
    pub fn when(rule: impl Fn(&SpiffeId) -> bool + Send + Sync + 'static) -> Self {
        Self(Rule::When(Arc::new(rule)))
    }

    /// The answer.
    pub fn allows(&self, id: &SpiffeId) -> bool {
        match &self.0 {
            Rule::Ids(ids) => ids.contains(id),
            Rule::TrustDomain(trust_domain) => id.trust_domain() == trust_domain,
            Rule::When(rule) => rule(id),
        }
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Ids(ids) => f.debug_tuple("Authorizer").field(ids).finish(),
            Rule::TrustDomain(trust_domain) => f.debug_tuple("Authorizer").field(trust_domain).finish(),
            Rule::When(_) => f.write_str("Authorizer(when)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> impl Strategy<Value = SpiffeId> {
        ("[ab]{1,2}", "(/[abAB]{1,2}){1,2}")
            .prop_map(|(domain, path)| format!("spiffe://{domain}{path}").parse().expect("an ID"))
    }

    #[test]
    fn an_empty_list_allows_nobody() {
        assert!(!Authorizer::one_of([]).allows(&"spiffe://a/b".parse().expect("an ID")));
    }

    proptest! {
        #[test]
        fn a_list_allows_its_members_and_nobody_else(ids in proptest::collection::vec(id(), 0..6), asked in id()) {
            let rule = Authorizer::one_of(ids.clone());
            prop_assert_eq!(rule.allows(&asked), ids.contains(&asked));
            prop_assert!(ids.iter().all(|id| rule.allows(id)));
        }

        #[test]
        fn exactly_is_equality_of_bytes(one in id(), other in id()) {
            prop_assert_eq!(Authorizer::exactly(one.clone()).allows(&other), one.as_str() == other.as_str());
        }

        /// `spiffe://ab/x` is no member of `a`, however alike the texts are.
        #[test]
        fn a_trust_domain_is_compared_whole(domain in "[ab]{1,2}", asked in id()) {
            let rule = Authorizer::member_of(domain.parse().expect("a name"));
            prop_assert_eq!(rule.allows(&asked), asked.as_str().split('/').nth(2) == Some(domain.as_str()));
        }

        #[test]
        fn a_closure_is_asked_the_very_id(asked in id()) {
            let copy = asked.clone();
            prop_assert!(Authorizer::when(move |id| *id == copy).allows(&asked));
        }
    }
}
