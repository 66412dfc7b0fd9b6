//! Bundles of other trust domains: in the snapshot for everybody, in a caller's view only those that its entries
//! federate with.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::watch;

use super::bundle::DomainBundle;
use super::{JwtBundles, TrustSnapshot};
use crate::id::TrustDomain;

/// The trust domains that a caller's entries name, together.
pub type FederatesWith = Arc<BTreeSet<TrustDomain>>;

/// Each foreign bundle with the generation in which it came.
pub(super) type Bundles = BTreeMap<TrustDomain, (u64, Arc<DomainBundle>)>;

impl TrustSnapshot {
    /// The bundles of all other trust domains that are known, whoever may see them.
    pub fn federated(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<DomainBundle>)> {
        self.federated.iter().map(|(domain, (_, bundle))| (domain, bundle))
    }

    /// The next generation, with this bundle of another trust domain, or without any of that domain; `None` when
    /// that would change nothing, or when the domain is our own, whose bundle nobody else makes.
    #[must_use]
    pub fn with_federated(&self, domain: &TrustDomain, bundle: Option<&Arc<DomainBundle>>) -> Option<Self> {
        let same = match (self.federated.get(domain), bundle) {
            (None, None) => true,
            (Some((_, known)), Some(new)) => known.same_as(new),
            _ => false,
        };
        if same || *domain == self.trust_domain {
            return None;
        }
        let mut next = self.clone();
        next.generation += 1;
        let mut bundles = Bundles::clone(&next.federated);
        match bundle {
            Some(bundle) => bundles.insert(domain.clone(), (next.generation, Arc::clone(bundle))),
            None => bundles.remove(domain),
        };
        next.federated = Arc::new(bundles);
        Some(next)
    }
}

/// Puts the bundle of another trust domain in place of the one before, or takes it away; says whether verifiers see
/// a difference. One step: no other change of the trust is lost.
pub fn publish_federated(
    trust: &watch::Sender<Arc<TrustSnapshot>>,
    domain: &TrustDomain,
    bundle: Option<&Arc<DomainBundle>>,
) -> bool {
    trust.send_if_modified(|snapshot| {
        let next = snapshot.with_federated(domain, bundle);
        let news = next.is_some();
        if let Some(next) = next {
            *snapshot = Arc::new(next);
        }
        news
    })
}

/// What one caller may know of the trust of one moment: the whole of our own, of others what its entries name.
#[derive(Clone, Debug)]
pub struct TrustView {
    trust: Arc<TrustSnapshot>,
    federates_with: FederatesWith,
}

/// Two views with the same mark say the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustMark {
    own: u64,
    federated: Vec<(TrustDomain, u64)>,
}

impl TrustView {
    /// The snapshot as a caller sees it whose entries name those trust domains.
    pub fn new(trust: Arc<TrustSnapshot>, federates_with: FederatesWith) -> Self {
        Self { trust, federates_with }
    }

    fn visible(&self) -> impl Iterator<Item = (&TrustDomain, &(u64, Arc<DomainBundle>))> {
        self.trust.federated.iter().filter(|(domain, _)| self.federates_with.contains(*domain))
    }

    /// The foreign bundles that the caller may see. A domain without a bundle is absent.
    pub fn federated(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<DomainBundle>)> {
        self.visible().map(|(domain, (_, bundle))| (domain, bundle))
    }

    /// The JWT keys that the caller may rely on, ready to verify: our own and the foreign ones it may see.
    pub fn all_jwt_bundles(&self) -> JwtBundles {
        let mut all = self.trust.jwt_bundles().clone();
        for (domain, bundle) in self.federated() {
            all.insert(domain.clone(), Arc::clone(bundle.jwt()));
        }
        all
    }

    /// For telling whether a message would say anything new.
    pub fn mark(&self) -> TrustMark {
        let federated = self.visible().map(|(domain, (generation, _))| (domain.clone(), *generation));
        TrustMark { own: self.trust.own_generation, federated: federated.collect() }
    }
}

/// Our own part.
impl Deref for TrustView {
    type Target = TrustSnapshot;

    fn deref(&self) -> &TrustSnapshot {
        &self.trust
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::authority::testing::authorities;
    use crate::authority::{JwtBundle, KeyType};
    use crate::id::KeyId;

    fn domain(name: &str) -> TrustDomain {
        name.parse().unwrap()
    }

    fn bundle(certificate: &'static [u8]) -> Arc<DomainBundle> {
        let certificate = Bytes::from_static(certificate);
        Arc::new(DomainBundle::new([certificate], JwtBundle::of([]), JwtBundle::of([])))
    }

    fn publisher() -> watch::Sender<Arc<TrustSnapshot>> {
        let own = domain("example.org");
        watch::Sender::new(Arc::new(TrustSnapshot::new(&own, &authorities("example.org", KeyType::EcP256))))
    }

    fn view(trust: &watch::Sender<Arc<TrustSnapshot>>, names: &[&str]) -> TrustView {
        let names = names.iter().map(|name| domain(name)).collect();
        TrustView::new(trust.borrow().clone(), Arc::new(names))
    }

    fn names(view: &TrustView) -> Vec<String> {
        view.federated().map(|(domain, _)| domain.to_string()).collect()
    }

    #[test]
    fn a_caller_sees_what_its_entries_name_and_nothing_else() {
        let trust = publisher();
        assert!(publish_federated(&trust, &domain("a.org"), Some(&bundle(b"a"))));
        assert!(publish_federated(&trust, &domain("b.org"), Some(&bundle(b"b"))));
        assert!(names(&view(&trust, &[])).is_empty());
        let one = view(&trust, &["b.org", "unknown.org"]);
        assert_eq!(names(&one), ["b.org"]);
        assert!(one.all_jwt_bundles().get(&domain("b.org")).is_some());
        assert!(one.all_jwt_bundles().get(&domain("a.org")).is_none());
        assert!(one.all_jwt_bundles().get(&domain("example.org")).is_some());
        assert!(trust.borrow().jwt_bundles().get(&domain("b.org")).is_none());
    }

    #[test]
    fn only_a_difference_that_the_caller_sees_moves_its_mark() {
        let trust = publisher();
        publish_federated(&trust, &domain("a.org"), Some(&bundle(b"a")));
        let mark = || (view(&trust, &["a.org"]).mark(), view(&trust, &["b.org"]).mark());
        let before = mark();
        assert!(!publish_federated(&trust, &domain("a.org"), Some(&bundle(b"a"))), "the same again");
        assert_eq!(mark(), before);
        assert!(publish_federated(&trust, &domain("a.org"), Some(&bundle(b"a2"))));
        assert!(mark().0 != before.0 && mark().1 == before.1);
        let before = mark();
        assert!(publish_federated(&trust, &domain("a.org"), None));
        assert!(!publish_federated(&trust, &domain("a.org"), None));
        assert!(mark().0 != before.0 && mark().1 == before.1);
        assert!(names(&view(&trust, &["a.org"])).is_empty());
        let before = mark();
        trust
            .send_modify(|now| *now = Arc::new(now.with_crls(&[(KeyId::from_bytes([9; 20]), Bytes::new())])));
        assert!(mark().0 != before.0 && mark().1 != before.1, "a CRL is for everybody");
    }

    #[test]
    fn nobody_replaces_our_own_bundle_from_outside() {
        let trust = publisher();
        assert!(!publish_federated(&trust, &domain("example.org"), Some(&bundle(b"x"))));
        assert!(names(&view(&trust, &["example.org"])).is_empty());
    }
}
