//! CRLs for verifiers that fetch: `/crl/AKI.crl` (DER), `/crl/AKI.pem`, and all of them in `/crl/bundle.pem`.
//! A CRL vouches for itself by its signature, so anybody may have it from anywhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;

use super::conditional::Document;
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{KeyId, hex_text};
use crate::pem;
use crate::trust::TrustSnapshot;

/// What was read of the CRLs served last: reading one of 10,000 entries for each request would be a gift to
/// whoever wants to keep us busy.
#[derive(Debug, Default)]
pub(super) struct Crls(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    single: BTreeMap<KeyId, (Bytes, Arc<Dates>)>,
    all: Option<(u64, Arc<Bundle>)>,
}

#[derive(Debug)]
struct Dates {
    number: String,
    this_update: u64,
    next_update: u64,
    pem: Bytes,
}

#[derive(Debug)]
struct Bundle {
    pem: Bytes,
    tag: String,
    this_update: u64,
    next_update: u64,
}

/// The file of that name; `None` when there is none.
pub(super) fn document(crls: &Crls, trust: &TrustSnapshot, file: &str, now: SystemTime) -> Option<Document> {
    if file == "bundle.pem" {
        let bundle = crls.bundle(trust)?;
        return Some(Document {
            body: bundle.pem.clone(),
            content_type: PEM,
            tag: bundle.tag.clone(),
            modified: Some(from_unix_seconds(bundle.this_update)),
            cache: cache(bundle.next_update, now),
        });
    }
    let (name, form) = file.rsplit_once('.')?;
    let key_id: KeyId = name.parse().ok()?;
    let der = trust.crl(&key_id)?;
    let dates = crls.dates(key_id, der)?;
    let (body, content_type) = match form {
        "crl" => (der.clone(), "application/pkix-crl"),
        "pem" => (dates.pem.clone(), PEM),
        _ => return None,
    };
    Some(Document {
        body,
        content_type,
        tag: dates.number.clone(),
        modified: Some(from_unix_seconds(dates.this_update)),
        cache: cache(dates.next_update, now),
    })
}

impl Crls {
    fn dates(&self, key_id: KeyId, der: &Bytes) -> Option<Arc<Dates>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, dates)) = known.single.get(&key_id)
            && is_same(of, der)
        {
            return Some(Arc::clone(dates));
        }
        let dates = Arc::new(Dates::read(der)?);
        known.single.insert(key_id, (der.clone(), Arc::clone(&dates)));
        Some(dates)
    }

    fn bundle(&self, trust: &TrustSnapshot) -> Option<Arc<Bundle>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((generation, bundle)) = &known.all
            && *generation == trust.generation()
        {
            return Some(Arc::clone(bundle));
        }
        let mut text = Vec::new();
        let (mut this_update, mut next_update) = (0, u64::MAX);
        for der in trust.crls() {
            let dates = Dates::read(der)?;
            this_update = this_update.max(dates.this_update);
            next_update = next_update.min(dates.next_update);
            text.extend_from_slice(&dates.pem);
        }
        let tag = hex_text(digest(&SHA256, &text).as_ref());
        let bundle = Arc::new(Bundle { pem: text.into(), tag, this_update, next_update });
        known.all = Some((trust.generation(), Arc::clone(&bundle)));
        // What belongs to no authority any more need not be remembered.
        known.single.retain(|key_id, _| trust.crl(key_id).is_some());
        Some(bundle)
    }
}

impl Dates {
    fn read(der: &[u8]) -> Option<Self> {
        let (_, crl) = x509_parser::parse_x509_crl(der).ok()?;
        let seconds = |at: i64| u64::try_from(at).ok();
        Some(Self {
            number: crl.crl_number()?.to_string(),
            this_update: seconds(crl.last_update().timestamp())?,
            next_update: seconds(crl.next_update()?.timestamp())?,
            pem: Bytes::copy_from_slice(pem::encode(pem::CRL, der).as_bytes()),
        })
    }
}

/// The very same octets, without comparing megabytes.
fn is_same(one: &Bytes, other: &Bytes) -> bool {
    one.as_ptr() == other.as_ptr() && one.len() == other.len()
}

/// A cache may answer in our place for a minute, and never with a list that has run out.
fn cache(next_update: u64, now: SystemTime) -> String {
    let left = next_update.saturating_sub(unix_seconds(now));
    format!("public, max-age={}, must-revalidate", left.min(MAX_AGE_SECONDS))
}

const MAX_AGE_SECONDS: u64 = 60;
const PEM: &str = "application/x-pem-file";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::KeyType;
    use crate::authority::testing::{NOW, authorities, now};
    use crate::revocation::sign_and_lint;

    fn signed(number: u64) -> (TrustSnapshot, String, Bytes) {
        let set = authorities("example.org", KeyType::EcP256);
        let authority = set.active_x509();
        let hour = Duration::from_secs(3_600);
        let crl = sign_and_lint(authority, &[], (number, NOW), hour, now()).unwrap();
        let trust = TrustSnapshot::new(authority.trust_domain(), &set);
        let trust = trust.with_crls(&[(authority.key_id(), crl.der.clone())]);
        (trust, authority.key_id().to_string(), crl.der)
    }

    #[test]
    fn each_form_is_served_under_its_name() {
        let (trust, aki, der) = signed(1_800_000_000_123);
        let crls = Crls::default();
        let get = |file: &str| document(&crls, &trust, file, now());
        let single = get(&format!("{aki}.crl")).unwrap();
        assert_eq!((single.body, single.tag.as_str()), (der.clone(), "1800000000123"));
        assert_eq!(single.modified, Some(from_unix_seconds(NOW)));
        let text = get(&format!("{aki}.pem")).unwrap().body;
        assert!(text.starts_with(b"-----BEGIN X509 CRL-----\n"));
        assert_eq!(get("bundle.pem").unwrap().body, text);
        for absent in ["", "crl", &format!("{aki}.der"), &format!("{}.crl", "0".repeat(40)), "../x.crl"] {
            assert!(get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn nobody_keeps_a_list_longer_than_it_is_good() {
        let (trust, aki, _) = signed(7);
        let crls = Crls::default();
        let age = |at| document(&crls, &trust, &format!("{aki}.crl"), at).unwrap().cache;
        assert_eq!(age(now()), "public, max-age=60, must-revalidate");
        assert_eq!(age(now() + Duration::from_secs(3_590)), "public, max-age=10, must-revalidate");
        assert_eq!(age(now() + Duration::from_secs(9_999)), "public, max-age=0, must-revalidate");
    }

    #[test]
    fn a_new_crl_is_seen_at_once() {
        let (trust, aki, _) = signed(7);
        let crls = Crls::default();
        let file = format!("{aki}.crl");
        let old = document(&crls, &trust, &file, now()).unwrap();
        let old_bundle = document(&crls, &trust, "bundle.pem", now()).unwrap();
        let (other, other_aki, der) = signed(8);
        let next = trust.with_crls(&[(aki.parse().unwrap(), der)]);
        assert_ne!(document(&crls, &next, &file, now()).unwrap().tag, old.tag);
        assert_ne!(document(&crls, &next, "bundle.pem", now()).unwrap().tag, old_bundle.tag);
        assert!(document(&crls, &other, &format!("{other_aki}.crl"), now()).is_some());
    }
}
