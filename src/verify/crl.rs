//! Revocation lists: reading one, and choosing the one that speaks for a certificate.
//!
//! webpki tries the first list whose issuer *name* fits and no other: with two keys under one name, or an older
//! list before a newer one, a revoked certificate passes or a good one fails. So the choice is made here: same
//! issuer name, same authority key identifier, the newest whose signature the issuer's key made. A signature is
//! checked once for a list and a key, not in each handshake.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use rustls::crypto::aws_lc_rs::default_provider;
use webpki::OwnedCertRevocationList;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_ISSUER_DISTRIBUTION_POINT,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::der;
use super::leaf::Serial;

/// Why bytes are no list that can be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CrlError {
    /// Not one DER list of version 2 in a form every verifier understands: delta, indirect and partial lists
    /// are refused.
    #[error("not a complete DER revocation list: {0}")]
    Malformed(String),
}

/// A revocation list, read but not yet believed: its signature is checked with the key of the issuer of the
/// certificate in question.
#[derive(Debug)]
pub struct RevocationList {
    der: Vec<u8>,
    issuer: Vec<u8>,
    key_id: Option<Vec<u8>>,
    number: Serial,
    this_update: i64,
    next_update: Option<i64>,
    revoked: HashSet<Serial>,
    scope: Scope,
    /// Public keys this list was checked with, and the outcome.
    checked: Mutex<Vec<(Vec<u8>, bool)>>,
}

/// Which certificates a list speaks about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    All,
    Leaves,
    Authorities,
}

/// The issuer of a certificate in question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Issuer<'a> {
    /// Its name as it stands in the certificate, DER.
    pub(super) name: &'a [u8],
    /// The certificate's authority key identifier.
    pub(super) key_id: Option<&'a [u8]>,
    /// Its public key (`SubjectPublicKeyInfo`), DER.
    pub(super) public_key: &'a [u8],
}

/// What the lists say about a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Status {
    /// A current list does not name it.
    Good,
    /// A list names it; its being out of date changes nothing.
    Revoked,
    /// The newest list does not name it, and another should have been out by now.
    GoodWhenListed,
    /// No list speaks for it.
    Unknown,
    /// A list claims to be the issuer's, and its key did not sign it.
    Forged,
}

impl RevocationList {
    /// Reads one DER list.
    ///
    /// # Errors
    /// [`CrlError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CrlError> {
        let wrong = |what: &dyn ToString| CrlError::Malformed(what.to_string());
        // webpki's reader refuses what it cannot honour: deltas, indirect lists, unknown critical extensions.
        OwnedCertRevocationList::from_der(bytes).map_err(|error| wrong(&error))?;
        let (rest, list) = CertificateRevocationList::from_der(bytes).map_err(|error| wrong(&error))?;
        if !rest.is_empty() {
            return Err(wrong(&"bytes follow it"));
        }
        let key_id = list.extensions().iter().find(|e| e.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER);
        let key_id = match key_id.map(|extension| extension.parsed_extension()) {
            Some(ParsedExtension::AuthorityKeyIdentifier(aki)) => {
                aki.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            Some(_) => return Err(wrong(&"its authority key identifier does not parse")),
            None => None,
        };
        let points = list.extensions().iter().find(|e| e.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT);
        let scope = points.map_or(Some(Scope::All), |extension| scope(extension.value));
        let number = list.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default();
        Ok(Self {
            der: bytes.to_vec(),
            issuer: list.issuer().as_raw().to_vec(),
            key_id,
            number: Serial::new(&number),
            this_update: list.last_update().timestamp(),
            next_update: list.next_update().map(|at| at.timestamp()),
            revoked: list.iter_revoked_certificates().map(|entry| Serial::new(entry.raw_serial())).collect(),
            scope: scope.ok_or_else(|| wrong(&"its distribution point does not parse"))?,
            checked: Mutex::default(),
        })
    }

    /// As it was read.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The issuer's name, DER.
    pub fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// How many certificates it names.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    fn speaks_for(&self, issuer: &Issuer<'_>, is_leaf: bool) -> bool {
        let same_key = match (&self.key_id, issuer.key_id) {
            (Some(ours), Some(theirs)) => ours == theirs,
            // Where one of them does not tell, the signature decides.
            _ => true,
        };
        let in_scope = match self.scope {
            Scope::All => true,
            Scope::Leaves => is_leaf,
            Scope::Authorities => !is_leaf,
        };
        same_key && in_scope && self.issuer == issuer.name
    }

    /// Newer lists first. Numbers are compared as numbers; the date decides where there are none.
    fn age(&self) -> (usize, &[u8], i64) {
        let number = self.number.as_bytes();
        (number.len(), number, self.this_update)
    }

    fn signed_by(&self, public_key: &[u8]) -> bool {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, good)) = checked.iter().find(|(key, _)| key == public_key) {
            return *good;
        }
        let good = signature_fits(&self.der, public_key);
        // A list of one name may be tried with few keys; more than that is an attack on our memory.
        if checked.len() < 4 {
            checked.push((public_key.to_vec(), good));
        }
        good
    }
}

/// Looks a serial up in the list that speaks for its issuer, at `now` (Unix seconds).
pub(super) fn status(
    lists: &[RevocationList],
    issuer: &Issuer<'_>,
    serial: &Serial,
    is_leaf: bool,
    now: i64,
) -> Status {
    let mut candidates: Vec<_> = lists.iter().filter(|list| list.speaks_for(issuer, is_leaf)).collect();
    candidates.sort_by(|a, b| b.age().cmp(&a.age()));
    let Some(list) = candidates.iter().find(|list| list.signed_by(issuer.public_key)) else {
        let claimed = candidates.iter().any(|list| list.key_id.is_some() && issuer.key_id.is_some());
        return if claimed { Status::Forged } else { Status::Unknown };
    };
    if list.revoked.contains(serial) {
        Status::Revoked
    } else if list.next_update.is_some_and(|next| next < now) {
        Status::GoodWhenListed
    } else {
        Status::Good
    }
}

/// `onlyContainsUserCerts` is `[1]`, `onlyContainsCACerts` is `[2]`; webpki has refused the other restrictions.
fn scope(distribution_point: &[u8]) -> Option<Scope> {
    let tags = der::context_tags(distribution_point)?;
    Some(match (tags.contains(&1), tags.contains(&2)) {
        (true, _) => Scope::Leaves,
        (false, true) => Scope::Authorities,
        (false, false) => Scope::All,
    })
}

fn signature_fits(list: &[u8], public_key: &[u8]) -> bool {
    let (Some((signed, algorithm, signature)), Some((kind, key))) =
        (der::signed(list), der::public_key(public_key))
    else {
        return false;
    };
    let fits = |a: &&&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
        a.signature_alg_id().as_ref() == algorithm && a.public_key_alg_id().as_ref() == kind
    };
    let algorithms = default_provider().signature_verification_algorithms.all;
    algorithms.iter().filter(fits).any(|a| a.verify_signature(key, signed, signature).is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::leaf::{authority_key_id, parse};
    use super::super::testing::{Authority, Issued, List};
    use super::*;
    use crate::clock::{Clock as _, SystemClock, unix_seconds};

    fn now() -> i64 {
        i64::try_from(unix_seconds(SystemClock.wall())).expect("a time")
    }

    /// What `lists` (DER) say about a leaf of `authority`.
    fn says(lists: &[Vec<u8>], authority: &Authority, leaf: &Issued) -> Status {
        let lists: Vec<_> = lists.iter().map(|der| RevocationList::parse(der).expect("a list")).collect();
        let certificate = parse(&leaf.der).expect("a leaf");
        let issuer = parse(authority.der()).expect("an authority");
        let issuer = Issuer {
            name: certificate.issuer().as_raw(),
            key_id: authority_key_id(&certificate),
            public_key: issuer.public_key().raw,
        };
        status(&lists, &issuer, &leaf.serial, true, now())
    }

    #[test]
    fn a_list_tells_revoked_from_good() {
        let authority = Authority::new("example.org");
        let (gone, alive) =
            (authority.leaf("spiffe://example.org/a"), authority.leaf("spiffe://example.org/b"));
        let lists = [authority.crl(&List::of(&[&gone.serial], 1))];
        assert_eq!(says(&lists, &authority, &gone), Status::Revoked);
        assert_eq!(says(&lists, &authority, &alive), Status::Good);
        assert_eq!(says(&[], &authority, &alive), Status::Unknown);
    }

    /// webpki's trap: it would try the first list of the name, and fail the good leaf of the second key.
    #[test]
    fn two_keys_under_one_name_have_a_list_each() {
        let (old, new) = (Authority::named("a", "same"), Authority::named("a", "same"));
        let (of_old, of_new) = (old.leaf("spiffe://a/w"), new.leaf("spiffe://a/w"));
        for lists in [
            [old.crl(&List::of(&[&of_old.serial], 1)), new.crl(&List::of(&[], 1))],
            [new.crl(&List::of(&[], 1)), old.crl(&List::of(&[&of_old.serial], 1))],
        ] {
            assert_eq!(says(&lists, &old, &of_old), Status::Revoked);
            assert_eq!(says(&lists, &new, &of_new), Status::Good);
        }
    }

    /// The other trap: of two lists of one key the newer counts, wherever it stands.
    #[test]
    fn an_older_list_before_a_newer_one_changes_nothing() {
        let authority = Authority::new("a");
        let leaf = authority.leaf("spiffe://a/w");
        let (older, newer) =
            (authority.crl(&List::of(&[], 255)), authority.crl(&List::of(&[&leaf.serial], 256)));
        assert_eq!(says(&[older.clone(), newer.clone()], &authority, &leaf), Status::Revoked);
        assert_eq!(says(&[newer, older], &authority, &leaf), Status::Revoked);
    }

    #[test]
    fn a_list_that_claims_the_key_and_is_not_signed_by_it_is_forged() {
        let authority = Authority::new("a");
        let leaf = authority.leaf("spiffe://a/w");
        let mut list = authority.crl(&List::of(&[], 1));
        *list.last_mut().expect("bytes") ^= 1;
        assert_eq!(says(&[list], &authority, &leaf), Status::Forged);
    }

    #[test]
    fn an_expired_list_still_names_the_revoked() {
        let authority = Authority::new("a");
        let (gone, other) = (authority.leaf("spiffe://a/w"), authority.leaf("spiffe://a/w"));
        let list = List { revoked: &[&gone.serial], number: 1, updates: (-600, -10) };
        let lists = [authority.crl(&list)];
        assert_eq!(says(&lists, &authority, &gone), Status::Revoked);
        assert_eq!(says(&lists, &authority, &other), Status::GoodWhenListed);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let authority = Authority::new("a");
        let mut list = authority.crl(&List::of(&[], 1));
        list.push(0);
        assert!(RevocationList::parse(&list).is_err());
        assert!(RevocationList::parse(authority.der()).is_err());
        assert!(RevocationList::parse(b"").is_err());
    }

    fn authorities() -> &'static [Authority; 3] {
        static MADE: std::sync::LazyLock<[Authority; 3]> = std::sync::LazyLock::new(|| {
            [Authority::named("a", "same"), Authority::named("a", "same"), Authority::named("a", "other")]
        });
        &MADE
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever lists there are and in whatever order: the newest of the leaf's own issuer decides.
        #[test]
        fn the_newest_list_of_the_issuers_own_key_decides(
            made in proptest::collection::vec((0_usize..3, 1_u64..600, any::<bool>()), 0..6),
            asked in 0_usize..3,
        ) {
            let leaf = authorities()[asked].leaf("spiffe://a/w");
            let mut lists = Vec::new();
            let mut newest: Option<(u64, bool)> = None;
            for (at, (who, number, named)) in made.iter().enumerate() {
                // Numbers are made unique: two different lists of one number are the issuer's mistake.
                let number = number * 8 + u64::try_from(at).expect("small");
                let revoked: &[&Serial] = if *named { &[&leaf.serial] } else { &[] };
                lists.push(authorities()[*who].crl(&List::of(revoked, number)));
                if *who == asked && newest.is_none_or(|(have, _)| have < number) {
                    newest = Some((number, *named));
                }
            }
            let want = match newest {
                None => Status::Unknown,
                Some((_, true)) => Status::Revoked,
                Some((_, false)) => Status::Good,
            };
            prop_assert_eq!(says(&lists, &authorities()[asked], &leaf), want);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(RevocationList::parse(&bytes).is_err());
        }
    }
}
