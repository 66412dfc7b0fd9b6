//! X.509-SVIDs: a fresh key and a certificate for it. The key has never been anywhere else.

use std::time::SystemTime;

use bytes::Bytes;

use super::minted::{Lease, Minted};
use super::{IssueError, not_after};
use crate::authority::{BACKDATE, LeafProfile, WorkloadKey, X509Authority};
use crate::id::{LeaseId, SpiffeId};
use crate::ledger;
use crate::policy::{self, Permit};
use crate::secret::KeyBytes;

/// Makes a key pair and certifies it. Takes some 100 µs of CPU for `ec-p256`, no I/O; what comes out is shut.
///
/// # Errors
/// [`IssueError`]; the permit is spent either way.
pub fn mint(
    permit: Permit,
    authority: &X509Authority,
    lease: LeaseId,
    now: SystemTime,
) -> Result<MintedX509, IssueError> {
    let grant = permit.spend();
    if grant.kind != policy::Kind::X509 {
        return Err(IssueError::WrongKind);
    }
    let not_after = not_after(now, grant.ttl, (authority.not_before(), authority.not_after()))?;
    let not_before = now.checked_sub(BACKDATE).unwrap_or(now);
    let key = WorkloadKey::generate(authority.algorithm())?;
    let leaf = authority.sign_leaf(&LeafProfile {
        serial: lease,
        spiffe_id: &grant.spiffe_id,
        dns_names: &grant.dns_names,
        not_before,
        not_after,
        key: &key,
    })?;
    let chain = match authority.intermediates() {
        [] => leaf,
        intermediates => Bytes::from([&leaf, intermediates].concat()),
    };
    let svid = X509Svid {
        id: lease,
        spiffe_id: grant.spiffe_id,
        hint: grant.hint,
        chain,
        key: key.into_pkcs8()?,
        not_before,
        not_after,
    };
    let lease = Lease {
        id: lease,
        kind: ledger::Kind::X509,
        issuer: authority.key_id().to_string(),
        spiffe_id: svid.spiffe_id.to_string(),
        entry: grant.entry,
        audience: Vec::new(),
        issued_at: now,
        not_after,
        status: None,
        task: None,
    };
    Ok(Minted::new(svid, lease))
}

/// A certificate that nobody may see before its lease is in the ledger.
pub type MintedX509 = Minted<X509Svid>;

/// A released X.509-SVID.
#[derive(Clone, Debug)]
pub struct X509Svid {
    /// The lease: the serial number.
    pub id: LeaseId,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// The operator's hint; may be empty.
    pub hint: String,
    /// Leaf and intermediates, DER, concatenated; without the trust anchor.
    pub chain: Bytes,
    /// PKCS#8 DER.
    pub key: KeyBytes,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::PublicKeyData as _;

    use super::*;
    use crate::authority::testing::{NOW, authorities, now};
    use crate::authority::{AuthorityError, KeyType};
    use crate::issue::new_lease;
    use crate::issue::testing::{permit, process};
    use crate::ledger::Committed;
    use crate::policy::Kind;

    fn minted(authority: &X509Authority, ttl: u64, at: SystemTime) -> Result<MintedX509, IssueError> {
        let permit = permit(Kind::X509, "spiffe://example.org/web", ttl, &[]);
        mint(permit, authority, new_lease().unwrap(), at)
    }

    #[test]
    fn a_certificate_opens_only_for_the_commit_that_names_it() {
        let set = authorities("example.org", KeyType::EcP256);
        let (one, other) =
            (minted(set.active_x509(), 900, now()).unwrap(), minted(set.active_x509(), 900, now()).unwrap());
        let committed = Committed::for_test(vec![one.id()]);
        assert!(other.release(&committed).is_none());
        let id = one.id();
        assert_eq!(one.release(&committed).unwrap().id, id);
    }

    #[test]
    fn key_and_certificate_belong_together_and_agree_with_the_row() {
        for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let set = authorities("example.org", kind);
            let minted = minted(set.active_x509(), 900, now()).unwrap();
            let row = minted.row(process(), 1_000);
            let svid = minted.release(&Committed::for_test(vec![row.id])).unwrap();
            let (rest, leaf) = x509_parser::parse_x509_certificate(&svid.chain).unwrap();
            assert!(rest.is_empty(), "the anchor is not part of the chain");
            let key = rcgen::KeyPair::try_from(svid.key.expose()).unwrap();
            assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
            assert_eq!(leaf.raw_serial(), row.id.as_bytes());
            assert_eq!(leaf.validity().not_after.timestamp(), i64::try_from(row.not_after).unwrap());
            assert_eq!((row.issued_at, row.not_after), (NOW, NOW + 900));
            assert_eq!(svid.not_before, now() - Duration::from_secs(10));
            assert_eq!(row.issuer, set.active_x509().key_id().to_string());
            assert_eq!((row.kind, row.state), (ledger::Kind::X509, ledger::State::Live));
            assert_eq!((row.entry.as_str(), row.spiffe_id.as_str()), ("web", "spiffe://example.org/web"));
            assert_eq!((svid.hint.as_str(), row.uid, row.audience.len()), ("internal", 1_000, 0));
        }
    }

    #[test]
    fn keys_are_fresh_every_time() {
        let set = authorities("example.org", KeyType::EcP256);
        let key = || {
            let minted = minted(set.active_x509(), 900, now()).unwrap();
            let committed = Committed::for_test(vec![minted.id()]);
            minted.release(&committed).unwrap().key.expose().to_vec()
        };
        assert_ne!(key(), key());
    }

    #[test]
    fn a_leaf_ends_with_its_issuer_at_the_latest() {
        let set = authorities("example.org", KeyType::EcP256);
        let end = set.active_x509().not_after();
        let late = minted(set.active_x509(), 900, end - Duration::from_secs(60)).unwrap();
        assert_eq!(late.not_after(), end);
        assert!(matches!(minted(set.active_x509(), 900, end), Err(IssueError::AuthorityExpired)));
        let early = now() - Duration::from_secs(11);
        let refused = minted(set.active_x509(), 900, early);
        assert!(matches!(refused, Err(IssueError::AuthorityNotYetValid)));
    }

    #[test]
    fn the_wrong_permit_buys_nothing() {
        let set = authorities("example.org", KeyType::EcP256);
        let lease = new_lease().unwrap();
        let jwt = permit(Kind::Jwt, "spiffe://example.org/web", 60, &["a"]);
        let refused = mint(jwt, set.active_x509(), lease, now());
        assert!(matches!(refused, Err(IssueError::WrongKind)));
        for id in ["spiffe://example.org", "spiffe://other.test/web"] {
            let refused = mint(permit(Kind::X509, id, 60, &[]), set.active_x509(), lease, now());
            assert!(matches!(refused, Err(IssueError::Authority(AuthorityError::ForeignIdentity))), "{id}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let set = authorities("example.org", KeyType::EcP256);
        let minted = minted(set.active_x509(), 900, now()).unwrap();
        let committed = Committed::for_test(vec![minted.id()]);
        assert_eq!(format!("{minted:?}"), format!("Minted({})", minted.id()));
        let svid = minted.release(&committed).unwrap();
        assert!(format!("{svid:?}").contains("key: KeyBytes([..])"));
    }
}
