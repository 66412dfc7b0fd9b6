//! No bytes make the reader of bundle documents panic, and what it takes it writes and reads again unchanged.

use std::time::Duration;

use mayfly::trust::{BundleDocument, DocumentForm, map};

/// One input.
pub(crate) fn check(bytes: &[u8]) {
    if let Ok(found) = map::parse(bytes) {
        found.values().for_each(same_again);
    }
    if let Ok(document) = BundleDocument::parse(bytes) {
        same_again(&document);
    }
}

fn same_again(document: &BundleDocument) {
    // Hints beyond a year are capped by their users; `Duration` holds every u64.
    assert!(document.refresh_hint.is_none_or(|hint| hint > Duration::ZERO));
    let form =
        DocumentForm { sequence: document.sequence, refresh_hint: document.refresh_hint, wit_keys: true };
    // A certificate with a key of an unknown type can be trusted, but not written as a JWK.
    let Ok(bytes) = document.bundle.document(&form) else { return };
    let again = BundleDocument::parse(&bytes).expect("what we write we can read");
    assert_eq!(again.remarks, []);
    assert_eq!((again.sequence, again.refresh_hint), (document.sequence, document.refresh_hint));
    assert_eq!(again.bundle.document(&form).expect("as before"), bytes);
}
