//! An answer of the Workload API, taken apart and believed only after checking it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use mayfly_proto::workload::{X509svid, X509svidResponse};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::identity::{Identity, IdentityError};
use super::source::State;
use super::trust::{PeerError, RevocationPolicy, Role, Trust, TrustError};
use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::secret::KeyBytes;

/// The agent sent something that no workload should use; what was there before stays.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// A mandatory field is empty (WAPI-14).
    #[error("the agent's answer is incomplete: `{0}` is empty")]
    Empty(&'static str),
    /// A field does not parse.
    #[error("the agent's answer is malformed: {0}")]
    Malformed(&'static str),
    /// A name does not parse.
    #[error("the agent's answer names a trust domain or SPIFFE ID that {0}")]
    Name(#[from] IdError),
    /// An authority or a list cannot be used.
    #[error("the agent's answer cannot be trusted: {0}")]
    Trust(#[from] TrustError),
    /// A certificate and its key are no identity.
    #[error("the identity `{id}` cannot be used: {why}")]
    Identity {
        /// Whose.
        id: SpiffeId,
        /// What is wrong.
        why: IdentityError,
    },
    /// A certificate does not verify with the bundle beside it.
    #[error("our own certificate does not verify: {0}")]
    Own(PeerError),
}

/// A checked answer of `FetchX509SVID`. It replaces the one before as a whole.
#[derive(Clone, Debug)]
pub struct X509Answer {
    /// At least one; the first is the default identity.
    pub svids: Vec<OwnSvid>,
    /// Authorities (DER) of our own trust domains and of those we federate with.
    pub bundles: BTreeMap<TrustDomain, Vec<Bytes>>,
    /// Revocation lists, DER, one for each issuing key.
    pub lists: Vec<Bytes>,
    /// The same bundles and lists, ready to verify with.
    pub trust: Arc<Trust>,
    /// Identities left out because an earlier one has the same hint (WAPI-19).
    pub repeated_hints: Vec<SpiffeId>,
}

/// One of our own identities.
#[derive(Clone, Debug)]
pub struct OwnSvid {
    /// SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// The operator's word, or empty.
    pub hint: String,
    /// Leaf first, DER.
    pub chain: Vec<Bytes>,
    /// PKCS#8.
    pub key: KeyBytes,
    /// For handshakes.
    pub identity: Identity,
}

impl X509Answer {
    /// Checks everything; one bad SVID spoils the answer, because half an answer is a wrong answer.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub(crate) fn check(response: &X509svidResponse, now: SystemTime) -> Result<Self, AnswerError> {
        if response.svids.is_empty() {
            return Err(AnswerError::Empty("svids"));
        }
        let bundles = bundles(response)?;
        let mut trust = Trust::new();
        for (domain, authorities) in &bundles {
            authorities.iter().try_for_each(|der| trust.add_authority(domain, der))?;
        }
        response.crl.iter().try_for_each(|der| trust.add_list(der))?;
        let (mut hints, mut repeated_hints, mut svids) = (BTreeSet::new(), Vec::new(), Vec::new());
        for svid in &response.svids {
            if !svid.hint.is_empty() && !hints.insert(svid.hint.as_str()) {
                repeated_hints.push(svid.spiffe_id.parse()?);
                continue;
            }
            svids.push(own(svid, &trust, now)?);
        }
        let lists = response.crl.clone();
        Ok(Self { svids, bundles, lists, trust: Arc::new(trust), repeated_hints })
    }

    /// The identity of that ID, or the default one.
    pub fn pick(&self, id: Option<&SpiffeId>) -> Option<&OwnSvid> {
        self.svids.iter().find(|svid| id.is_none_or(|id| svid.spiffe_id == *id))
    }

    /// What a [`super::Source`] is to be fed, with that identity or the default one.
    pub fn state(&self, id: Option<&SpiffeId>) -> State {
        let identity = self.pick(id).map(|svid| svid.identity.clone());
        State { identity, trust: Arc::clone(&self.trust) }
    }
}

/// Cuts concatenated DER certificates apart.
pub(crate) fn split(concatenated: &Bytes) -> Result<Vec<Bytes>, AnswerError> {
    let mut rest: &[u8] = concatenated;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (after, _) =
            X509Certificate::from_der(rest).map_err(|_syntax| AnswerError::Malformed("not a certificate"))?;
        let length = rest.len() - after.len();
        parts.push(concatenated.slice_ref(rest.get(..length).unwrap_or_default()));
        rest = after;
    }
    Ok(parts)
}

/// Each SVID's bundle under its own trust domain, then the foreign ones under the names they came with.
fn bundles(response: &X509svidResponse) -> Result<BTreeMap<TrustDomain, Vec<Bytes>>, AnswerError> {
    let mut bundles: BTreeMap<TrustDomain, Vec<Bytes>> = BTreeMap::new();
    for svid in &response.svids {
        if svid.spiffe_id.is_empty() {
            return Err(AnswerError::Empty("spiffe_id"));
        }
        let id: SpiffeId = svid.spiffe_id.parse()?;
        let authorities = split(&svid.bundle)?;
        if authorities.is_empty() {
            return Err(AnswerError::Empty("bundle"));
        }
        bundles.insert(id.trust_domain().clone(), authorities);
    }
    for (name, bundle) in &response.federated_bundles {
        let id: SpiffeId = name.parse()?;
        // Nobody else's message may widen what our own trust domain trusts.
        if !bundles.contains_key(id.trust_domain()) {
            bundles.insert(id.trust_domain().clone(), split(bundle)?);
        }
    }
    Ok(bundles)
}

fn own(svid: &X509svid, trust: &Trust, now: SystemTime) -> Result<OwnSvid, AnswerError> {
    if svid.x509_svid.is_empty() {
        return Err(AnswerError::Empty("x509_svid"));
    }
    if svid.x509_svid_key.is_empty() {
        return Err(AnswerError::Empty("x509_svid_key"));
    }
    let id: SpiffeId = svid.spiffe_id.parse()?;
    let (chain, key) = (split(&svid.x509_svid)?, KeyBytes::new(svid.x509_svid_key.to_vec()));
    let identity =
        Identity::new(&chain, &key).map_err(|why| AnswerError::Identity { id: id.clone(), why })?;
    if *identity.leaf().spiffe_id() != id {
        return Err(AnswerError::Malformed("a certificate names somebody else"));
    }
    let certificates: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
    trust
        .verify(&certificates, Role::Client, RevocationPolicy::permissive(), now)
        .map_err(AnswerError::Own)?;
    Ok(OwnSvid { spiffe_id: id, hint: svid.hint.clone(), chain, key, identity })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Authority, Issued, List};
    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    const ID: &str = "spiffe://example.org/w";

    fn entry(authority: &Authority, id: &str, leaf: &Issued) -> X509svid {
        X509svid {
            spiffe_id: id.to_owned(),
            x509_svid: leaf.der.clone().into(),
            x509_svid_key: leaf.key.clone().into(),
            bundle: authority.der().to_vec().into(),
            hint: String::new(),
        }
    }

    fn check(response: &X509svidResponse) -> Result<X509Answer, AnswerError> {
        X509Answer::check(response, SystemClock.wall())
    }

    #[test]
    fn a_good_answer_becomes_identity_and_trust() {
        let (ours, theirs) = (Authority::new("example.org"), Authority::new("other.test"));
        let leaf = ours.leaf(ID);
        let response = X509svidResponse {
            svids: vec![entry(&ours, ID, &leaf)],
            crl: vec![ours.crl(&List::of(&[], 1)).into()],
            federated_bundles: [("spiffe://other.test".to_owned(), theirs.der().to_vec().into())].into(),
        };
        let answer = check(&response).expect("good");
        assert_eq!(answer.trust.trust_domains().count(), 2);
        assert_eq!(answer.trust.lists().len(), 1);
        let state = answer.state(None);
        assert_eq!(state.identity.expect("one").leaf().spiffe_id().as_str(), ID);
        let absent: SpiffeId = "spiffe://example.org/absent".parse().expect("an ID");
        assert!(answer.state(Some(&absent)).identity.is_none());
    }

    /// A federated bundle under our own name must not add authorities to ours.
    #[test]
    fn a_foreign_bundle_under_our_own_name_is_ignored() {
        let (ours, theirs) = (Authority::new("example.org"), Authority::new("example.org"));
        let response = X509svidResponse {
            svids: vec![entry(&ours, ID, &ours.leaf(ID))],
            federated_bundles: [("spiffe://example.org".to_owned(), theirs.der().to_vec().into())].into(),
            ..X509svidResponse::default()
        };
        let answer = check(&response).expect("good");
        assert_eq!(answer.bundles.values().map(Vec::len).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn what_no_workload_should_use_is_refused() {
        let ours = Authority::new("example.org");
        let (leaf, other) = (ours.leaf(ID), ours.leaf(ID));
        let good = X509svidResponse { svids: vec![entry(&ours, ID, &leaf)], ..X509svidResponse::default() };
        check(&good).expect("good");
        let spoilt = |spoil: &dyn Fn(&mut X509svidResponse)| {
            let mut response = good.clone();
            spoil(&mut response);
            check(&response).expect_err("spoilt")
        };
        assert_eq!(spoilt(&|r| r.svids.clear()), AnswerError::Empty("svids"));
        assert_eq!(spoilt(&|r| r.svids[0].bundle.clear()), AnswerError::Empty("bundle"));
        assert_eq!(spoilt(&|r| r.svids[0].x509_svid.clear()), AnswerError::Empty("x509_svid"));
        assert_eq!(spoilt(&|r| r.svids[0].x509_svid_key.clear()), AnswerError::Empty("x509_svid_key"));
        assert_eq!(spoilt(&|r| r.svids[0].spiffe_id.clear()), AnswerError::Empty("spiffe_id"));
        let key = |r: &mut X509svidResponse| r.svids[0].x509_svid_key = other.key.clone().into();
        assert!(matches!(spoilt(&key), AnswerError::Identity { .. }));
        let named = |r: &mut X509svidResponse| r.svids[0].spiffe_id = "spiffe://example.org/x".to_owned();
        assert!(matches!(spoilt(&named), AnswerError::Malformed(_)));
        let revoked = |r: &mut X509svidResponse| r.crl = vec![ours.crl(&List::of(&[&leaf.serial], 1)).into()];
        assert!(matches!(spoilt(&revoked), AnswerError::Own(PeerError::Revoked { .. })));
        let foreign = Authority::new("example.org");
        let bundle = |r: &mut X509svidResponse| r.svids[0].bundle = foreign.der().to_vec().into();
        assert!(matches!(spoilt(&bundle), AnswerError::Own(PeerError::Path { .. })));
        let list = |r: &mut X509svidResponse| r.crl = vec![Bytes::from_static(b"no list")];
        assert!(matches!(spoilt(&list), AnswerError::Trust(_)));
    }

    #[test]
    fn of_two_identities_with_one_hint_the_first_counts() {
        let ours = Authority::new("example.org");
        let mut svids = vec![
            entry(&ours, ID, &ours.leaf(ID)),
            entry(&ours, "spiffe://example.org/v", &ours.leaf("spiffe://example.org/v")),
        ];
        svids.iter_mut().for_each(|svid| svid.hint = "internal".to_owned());
        let answer = check(&X509svidResponse { svids, ..X509svidResponse::default() }).expect("good");
        assert_eq!((answer.svids.len(), answer.repeated_hints.len()), (1, 1));
    }
}
