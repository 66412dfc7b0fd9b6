//! Who is trusted at one moment: authorities of each trust domain, never pooled, and revocation lists.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::crl::{CrlError, Issuer, RevocationList, Status, status};
use super::leaf::{self, Leaf, LeafError, Serial};
use crate::id::{SpiffeId, TrustDomain};

/// What is asked of revocation lists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RevocationPolicy {
    /// A certificate no list speaks for.
    pub unknown: Unknown,
    /// A list whose next one should have been out by now. Whoever it names stays revoked in any case.
    pub expired: Expired,
    /// Which certificates of a chain are looked up.
    pub depth: Depth,
}

/// What happens to a certificate whose status nobody tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unknown {
    /// It passes.
    Allow,
    /// It is refused.
    Refuse,
}

/// What an expired list is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expired {
    /// As much as before: an agent that is down for a while cuts nobody off.
    Use,
    /// Who is not on it is refused.
    Refuse,
}

/// How far up a chain is looked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Depth {
    /// The peer's own certificate.
    Leaf,
    /// Intermediates too. Needs a list of everybody who issued one.
    Chain,
}

impl RevocationPolicy {
    /// Refuses whoever a list names, and nobody else. For trust domains whose agents publish no lists.
    pub const fn permissive() -> Self {
        Self { unknown: Unknown::Allow, expired: Expired::Use, depth: Depth::Chain }
    }

    /// Refuses whoever is not known to be good by a current list.
    pub const fn strict() -> Self {
        Self { unknown: Unknown::Refuse, expired: Expired::Refuse, depth: Depth::Chain }
    }
}

/// Why a peer is refused. All but [`PeerError::NotAuthorized`] mean that it is not certain who it is.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PeerError {
    /// No certificate was presented.
    #[error("the peer presented no certificate")]
    Nobody,
    /// The certificate is no workload's.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// There is no bundle of the peer's trust domain.
    #[error("the peer's trust domain `{0}` is not trusted here")]
    TrustDomain(TrustDomain),
    /// No valid path leads from it to its trust domain's authorities (RFC 5280 §6).
    #[error("the certificate of `{id}` does not verify: {}", plainly(why))]
    Path {
        /// Whom it names.
        id: SpiffeId,
        /// What is wrong.
        why: webpki::Error,
    },
    /// It was taken back.
    #[error("the certificate of `{id}` is revoked (serial {serial})")]
    Revoked {
        /// Whom it names.
        id: SpiffeId,
        /// The serial number on the list: its own, or that of an intermediate.
        serial: Serial,
    },
    /// No list speaks for it, and the policy wants one.
    #[error("nobody tells whether the certificate of `{0}` is revoked")]
    Unknown(SpiffeId),
    /// The list that speaks for it is out of date, and the policy wants a current one.
    #[error("the revocation list for the certificate of `{0}` has expired")]
    Expired(SpiffeId),
    /// A list claims to be its issuer's and is not.
    #[error("the revocation list for the certificate of `{0}` is not signed by its issuer")]
    Forged(SpiffeId),
    /// It is who it says, and not meant to be here.
    #[error("`{0}` is not authorised")]
    NotAuthorized(SpiffeId),
}

/// The commonest faults of a path in words for people.
fn plainly(why: &webpki::Error) -> String {
    match why {
        webpki::Error::CertExpired { .. } => "it has expired".to_owned(),
        webpki::Error::CertNotValidYet { .. } => {
            "it is not valid yet (is this machine's clock right?)".to_owned()
        }
        webpki::Error::UnknownIssuer => "no authority of its trust domain issued it".to_owned(),
        other => other.to_string(),
    }
}

/// What the peer is to us; decides which extended key usage is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// It connected to us.
    Client,
    /// We connected to it.
    Server,
}

/// A peer whose certificate was good when it was looked at. Only [`Trust::verify`] makes one.
#[derive(Clone, Debug)]
pub struct Peer {
    leaf: Leaf,
    links: Vec<Link>,
    anchor: KeyHash,
}

/// SHA-256 of a public key (`SubjectPublicKeyInfo`).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyHash([u8; 32]);

/// One certificate of a verified path, and who issued it.
#[derive(Clone, Debug)]
struct Link {
    serial: Serial,
    issuer_name: Vec<u8>,
    issuer_key_id: Option<Vec<u8>>,
    issuer_public_key: Vec<u8>,
}

impl Peer {
    /// Who it is.
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.leaf.spiffe_id()
    }

    /// Its certificate.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// What names its certificate among all: the issuer's key and the serial number.
    pub fn certificate(&self) -> (KeyHash, Serial) {
        let issuer = self.links.first().map_or(self.anchor, |link| hash(&link.issuer_public_key));
        (issuer, self.leaf.serial().clone())
    }
}

/// Authorities of one trust domain.
#[derive(Debug, Default)]
struct Bundle {
    anchors: Vec<TrustAnchor<'static>>,
    /// `SubjectPublicKeyInfo` of each, in the same order.
    public_keys: Vec<Vec<u8>>,
}

/// An immutable set of bundles and revocation lists.
#[derive(Debug, Default)]
pub struct Trust {
    bundles: BTreeMap<TrustDomain, Bundle>,
    lists: Vec<RevocationList>,
}

/// What does not go into a [`Trust`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TrustError {
    /// An authority is no certificate.
    #[error("an authority of `{0}` is not a certificate")]
    Authority(TrustDomain),
    /// A list cannot be used.
    #[error(transparent)]
    List(#[from] CrlError),
}

impl Trust {
    /// Nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an authority (a DER certificate) of one trust domain. It vouches for that domain only, whatever
    /// it says about itself.
    ///
    /// # Errors
    /// [`TrustError::Authority`].
    pub fn add_authority(&mut self, domain: &TrustDomain, der: &[u8]) -> Result<(), TrustError> {
        let wrong = || TrustError::Authority(domain.clone());
        let parsed = leaf::parse(der).ok_or_else(wrong)?;
        let certificate = CertificateDer::from(der);
        let anchor = anchor_from_trusted_cert(&certificate).map_err(|_syntax| wrong())?;
        let bundle = self.bundles.entry(domain.clone()).or_default();
        bundle.anchors.push(anchor.to_owned());
        bundle.public_keys.push(parsed.public_key().raw.to_vec());
        Ok(())
    }

    /// Adds a revocation list (DER). Which authority it belongs to is found when it is needed.
    ///
    /// # Errors
    /// [`TrustError::List`].
    pub fn add_list(&mut self, der: &[u8]) -> Result<(), TrustError> {
        self.lists.push(RevocationList::parse(der)?);
        Ok(())
    }

    /// The trust domains that have an authority.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.bundles.keys()
    }

    /// The revocation lists.
    pub fn lists(&self) -> &[RevocationList] {
        &self.lists
    }

    /// Who presents this chain (DER, leaf first), if it is a workload of a trusted domain, its certificate is
    /// valid at `now` for that role, and it is not revoked.
    ///
    /// # Errors
    /// [`PeerError`]; never [`PeerError::NotAuthorized`], because nothing here knows who is wanted.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        policy: RevocationPolicy,
        now: SystemTime,
    ) -> Result<Peer, PeerError> {
        let (end, intermediates) = chain.split_first().ok_or(PeerError::Nobody)?;
        let leaf = leaf::check(end)?;
        let domain = leaf.spiffe_id().trust_domain();
        let bundle = self.bundles.get(domain).ok_or_else(|| PeerError::TrustDomain(domain.clone()))?;
        let (links, anchor) = path(end, intermediates, bundle, role, now)
            .map_err(|why| PeerError::Path { id: leaf.spiffe_id().clone(), why })?;
        let peer = Peer { leaf, links, anchor };
        self.revocation(&peer, policy, now)?;
        Ok(peer)
    }

    /// Whether a peer that was let in must be let go: its certificate or an intermediate above it is revoked
    /// (or a list about it was forged), or its authority is not trusted any more. That a list has expired or
    /// is missing ends no connection.
    ///
    /// # Errors
    /// The reason.
    pub fn still_trusts(&self, peer: &Peer, now: SystemTime) -> Result<(), PeerError> {
        let domain = peer.spiffe_id().trust_domain();
        let bundle = self.bundles.get(domain);
        if !bundle.is_some_and(|bundle| bundle.public_keys.iter().any(|key| hash(key) == peer.anchor)) {
            return Err(PeerError::TrustDomain(domain.clone()));
        }
        self.revocation(peer, RevocationPolicy::permissive(), now)
    }

    fn revocation(&self, peer: &Peer, policy: RevocationPolicy, now: SystemTime) -> Result<(), PeerError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let id = || peer.spiffe_id().clone();
        let looked_up = match policy.depth {
            Depth::Leaf => 1,
            Depth::Chain => peer.links.len(),
        };
        for (at, link) in peer.links.iter().enumerate().take(looked_up) {
            match status(&self.lists, &link.issuer(), &link.serial, at == 0, now) {
                Status::Good => {}
                Status::Revoked => {
                    return Err(PeerError::Revoked { id: id(), serial: link.serial.clone() });
                }
                Status::Forged => return Err(PeerError::Forged(id())),
                Status::GoodWhenListed if policy.expired == Expired::Use => {}
                Status::GoodWhenListed => return Err(PeerError::Expired(id())),
                Status::Unknown if policy.unknown == Unknown::Allow => {}
                Status::Unknown => return Err(PeerError::Unknown(id())),
            }
        }
        Ok(())
    }
}

impl Link {
    fn issuer(&self) -> Issuer<'_> {
        Issuer {
            name: &self.issuer_name,
            key_id: self.issuer_key_id.as_deref(),
            public_key: &self.issuer_public_key,
        }
    }
}

/// Builds and checks the path (RFC 5280 §6: dates, signatures, `cA`, path length, name constraints, critical
/// extensions, extended key usage), then says what it consists of.
fn path(
    end: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &Bundle,
    role: Role,
    now: SystemTime,
) -> Result<(Vec<Link>, KeyHash), webpki::Error> {
    let at = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let end_entity = EndEntityCert::try_from(end)?;
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    let found =
        end_entity.verify_for_usage(algorithms, &bundle.anchors, intermediates, at, usage, None, None)?;
    let anchor = bundle.anchors.iter().position(|anchor| anchor == found.anchor());
    let anchor_key = anchor.and_then(|at| bundle.public_keys.get(at)).ok_or(webpki::Error::UnknownIssuer)?;
    let mut certificates = vec![end_entity.der()];
    certificates.extend(found.intermediate_certificates().map(|certificate| certificate.der()));
    let mut issuer_key = anchor_key.clone();
    let mut links = Vec::with_capacity(certificates.len());
    for der in certificates.iter().rev() {
        let certificate = leaf::parse(der).ok_or(webpki::Error::BadDer)?;
        links.push(Link {
            serial: Serial::new(certificate.raw_serial()),
            issuer_name: certificate.issuer().as_raw().to_vec(),
            issuer_key_id: leaf::authority_key_id(&certificate).map(<[u8]>::to_vec),
            issuer_public_key: issuer_key,
        });
        issuer_key = certificate.public_key().raw.to_vec();
    }
    links.reverse();
    Ok((links, hash(anchor_key)))
}

fn hash(public_key: &[u8]) -> KeyHash {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, public_key).as_ref());
    KeyHash(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{Authority, Issued, List, Shape};
    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    const PERMISSIVE: RevocationPolicy = RevocationPolicy::permissive();
    const STRICT: RevocationPolicy = RevocationPolicy::strict();

    fn trust(of: &[(&str, &Authority)], lists: &[Vec<u8>]) -> Trust {
        let mut trust = Trust::new();
        for (domain, authority) in of {
            trust.add_authority(&domain.parse().expect("a name"), authority.der()).expect("an authority");
        }
        lists.iter().for_each(|list| trust.add_list(list).expect("a list"));
        trust
    }

    fn ask(trust: &Trust, chain: &[&[u8]], policy: RevocationPolicy) -> Result<Peer, PeerError> {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
        trust.verify(&chain, Role::Client, policy, SystemClock.wall())
    }

    fn path_error(result: Result<Peer, PeerError>) -> webpki::Error {
        match result {
            Err(PeerError::Path { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_peer_is_named() {
        let authority = Authority::new("example.org");
        let leaf = authority.leaf("spiffe://example.org/w");
        let trust = trust(&[("example.org", &authority)], &[]);
        let peer = ask(&trust, &[&leaf.der], PERMISSIVE).expect("good");
        assert_eq!(peer.spiffe_id().as_str(), "spiffe://example.org/w");
        assert_eq!(peer.certificate().1, leaf.serial);
        assert_eq!(ask(&trust, &[], PERMISSIVE).expect_err("nobody"), PeerError::Nobody);
    }

    /// ID-25, WAPI-15, FED-38: another domain's authority is trusted, for its own domain.
    #[test]
    fn id_25_a_leaf_is_checked_with_its_own_trust_domains_bundle_only() {
        let (ours, theirs) = (Authority::new("example.org"), Authority::new("other.test"));
        let trust = trust(&[("example.org", &ours), ("other.test", &theirs)], &[]);
        let usurper = theirs.leaf("spiffe://example.org/w");
        assert_eq!(path_error(ask(&trust, &[&usurper.der], PERMISSIVE)), webpki::Error::UnknownIssuer);
        ask(&trust, &[&theirs.leaf("spiffe://other.test/w").der], PERMISSIVE).expect("good");
        let stranger = ours.leaf("spiffe://third.test/w");
        assert!(matches!(ask(&trust, &[&stranger.der], PERMISSIVE), Err(PeerError::TrustDomain(_))));
    }

    #[test]
    fn x509_28_dates_signatures_and_issuers_are_checked() {
        let authority = Authority::new("example.org");
        let trust = trust(&[("example.org", &authority)], &[]);
        let dated = |validity| {
            let leaf = authority.issue(&Shape { validity, ..Shape::default() });
            path_error(ask(&trust, &[&leaf.der], PERMISSIVE))
        };
        assert!(matches!(dated((-60, -10)), webpki::Error::CertExpired { .. }));
        assert!(matches!(dated((60, 120)), webpki::Error::CertNotValidYet { .. }));
        let impostor = Authority::new("example.org").leaf("spiffe://example.org/w");
        path_error(ask(&trust, &[&impostor.der], PERMISSIVE));
        let mut broken = authority.leaf("spiffe://example.org/w").der;
        *broken.last_mut().expect("bytes") ^= 1;
        assert!(ask(&trust, &[&broken], PERMISSIVE).is_err());
        // An issuer that is no authority.
        let leaf = authority.leaf("spiffe://example.org/w");
        let key = rcgen::KeyPair::try_from(&rustls::pki_types::PrivatePkcs8KeyDer::from(&leaf.key[..]));
        let der = CertificateDer::from(&leaf.der[..]);
        let issuer = rcgen::Issuer::from_ca_cert_der(&der, key.expect("key")).expect("issuer");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let uri = "spiffe://example.org/v".try_into().expect("URI");
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        let below = params.signed_by(&rcgen::KeyPair::generate().expect("key"), &issuer).expect("signed");
        path_error(ask(&trust, &[below.der(), &leaf.der], PERMISSIVE));
    }

    #[test]
    fn x509_28_an_intermediate_that_is_over_ends_its_path_or_says_what_nobody_knows_is_refused() {
        let root = Authority::new("example.org");
        let trust = trust(&[("example.org", &root)], &[]);
        let by = |change: fn(&mut rcgen::CertificateParams)| {
            let node = root.special("example.org", change);
            ask(&trust, &[&node.leaf("spiffe://example.org/w").der, node.der()], PERMISSIVE)
        };
        by(|_| {}).expect("good");
        let over = by(|params| params.not_after = params.not_before + time::Duration::minutes(1));
        assert!(matches!(path_error(over), webpki::Error::CertExpired { .. }));
        path_error(by(|params| {
            let mut unknown =
                rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            params.custom_extensions.push(unknown);
        }));
        let ends = root.special("example.org", |params| {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        });
        let below = ends.intermediate("example.org", "one too many");
        let leaf = below.leaf("spiffe://example.org/w");
        path_error(ask(&trust, &[&leaf.der, below.der(), ends.der()], PERMISSIVE));
    }

    #[test]
    fn x509_15_an_id_outside_its_issuers_name_constraints_is_refused() {
        let root = Authority::new("example.org");
        let trust = trust(&[("example.org", &root)], &[]);
        // permittedSubtrees: a URI whose host is `other.test`.
        let host = b"other.test";
        let subtree = [&[0x30, 16, 0xa0, 14, 0x30, 12, 0x86, 10], &host[..]].concat();
        let node = root.special("example.org", |params| {
            let mut names = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], subtree);
            names.set_criticality(true);
            params.custom_extensions.push(names);
        });
        let leaf = node.leaf("spiffe://example.org/w");
        assert_eq!(
            path_error(ask(&trust, &[&leaf.der, node.der()], PERMISSIVE)),
            webpki::Error::NameConstraintViolation
        );
    }

    #[test]
    fn x509_11_a_signing_certificate_authenticates_nobody() {
        let authority = Authority::new("example.org");
        let below = authority.intermediate("example.org", "node");
        let trust = trust(&[("example.org", &authority)], &[]);
        for der in [authority.der(), below.der()] {
            assert!(matches!(ask(&trust, &[der], PERMISSIVE), Err(PeerError::Leaf(_))));
        }
    }

    #[test]
    fn eku_server_only_is_refused_as_a_client() {
        let authority = Authority::new("example.org");
        let trust = trust(&[("example.org", &authority)], &[]);
        let extended = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = authority.issue(&Shape { extended, ..Shape::default() });
        path_error(ask(&trust, &[&leaf.der], PERMISSIVE));
        let chain = [CertificateDer::from(&leaf.der[..])];
        trust.verify(&chain, Role::Server, PERMISSIVE, SystemClock.wall()).expect("good as a server");
    }

    #[test]
    fn x509_10_an_intermediate_is_followed_and_looked_up_too() {
        let root = Authority::new("example.org");
        let node = root.intermediate("example.org", "node 1");
        let leaf = node.leaf("spiffe://example.org/w");
        let chain: [&[u8]; 2] = [&leaf.der, node.der()];
        let node_serial = Serial::new(leaf::parse(node.der()).expect("parses").raw_serial());
        let with = |lists: &[Vec<u8>], policy| ask(&trust(&[("example.org", &root)], lists), &chain, policy);
        let (of_root, of_node) = (root.crl(&List::of(&[], 1)), node.crl(&List::of(&[], 1)));
        with(&[of_root.clone(), of_node.clone()], STRICT).expect("both issuers say it is good");
        assert!(matches!(with(std::slice::from_ref(&of_node), STRICT), Err(PeerError::Unknown(_))));
        with(&[of_node], RevocationPolicy { depth: Depth::Leaf, ..STRICT }).expect("the leaf's issuer does");
        let revoked = [root.crl(&List::of(&[&node_serial], 2))];
        let error = with(&revoked, PERMISSIVE).expect_err("the node was revoked");
        assert!(matches!(error, PeerError::Revoked { serial, .. } if serial == node_serial));
        with(&[root.crl(&List::of(&[&leaf.serial], 2))], PERMISSIVE)
            .expect("the root's list says nothing about the node's leaves");
    }

    fn modes(
        authority: &Authority,
        leaf: &Issued,
        lists: &[Vec<u8>],
    ) -> (Option<PeerError>, Option<PeerError>) {
        let trust = trust(&[("example.org", authority)], lists);
        (ask(&trust, &[&leaf.der], PERMISSIVE).err(), ask(&trust, &[&leaf.der], STRICT).err())
    }

    #[test]
    fn permissive_lets_unknown_pass_and_strict_does_not() {
        let authority = Authority::new("example.org");
        let leaf = authority.leaf("spiffe://example.org/w");
        let id = || "spiffe://example.org/w".parse().expect("an ID");
        assert_eq!(modes(&authority, &leaf, &[]), (None, Some(PeerError::Unknown(id()))));
        assert_eq!(modes(&authority, &leaf, &[authority.crl(&List::of(&[], 1))]), (None, None));
        let expired = List { revoked: &[], number: 1, updates: (-600, -10) };
        assert_eq!(
            modes(&authority, &leaf, &[authority.crl(&expired)]),
            (None, Some(PeerError::Expired(id())))
        );
        let revoked = Some(PeerError::Revoked { id: id(), serial: leaf.serial.clone() });
        let list = authority.crl(&List::of(&[&leaf.serial], 1));
        assert_eq!(modes(&authority, &leaf, &[list]), (revoked.clone(), revoked));
        let mut forged = authority.crl(&List::of(&[], 1));
        *forged.last_mut().expect("bytes") ^= 1;
        assert_eq!(
            modes(&authority, &leaf, &[forged]),
            (Some(PeerError::Forged(id())), Some(PeerError::Forged(id())))
        );
    }

    #[test]
    fn a_live_peer_goes_with_its_certificate_or_its_authority() {
        let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
        let leaf = old.leaf("spiffe://example.org/w");
        let peer = ask(&trust(&[("example.org", &old)], &[]), &[&leaf.der], PERMISSIVE).expect("good");
        let now = SystemClock.wall();
        let both = trust(&[("example.org", &old), ("example.org", &new)], &[]);
        assert_eq!(both.still_trusts(&peer, now + Duration::from_secs(86_400)), Ok(()));
        let without = trust(&[("example.org", &new)], &[]);
        assert!(matches!(without.still_trusts(&peer, now), Err(PeerError::TrustDomain(_))));
        let listed = trust(&[("example.org", &old)], &[old.crl(&List::of(&[&leaf.serial], 1))]);
        assert!(matches!(listed.still_trusts(&peer, now), Err(PeerError::Revoked { .. })));
    }
}
