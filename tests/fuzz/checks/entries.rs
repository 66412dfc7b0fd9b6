//! No text makes loading panic, and the same text makes the same set.

use mayfly::registration::{EntryRules, parse_files};

/// One input.
pub(crate) fn check(bytes: &[u8]) {
    let rules = EntryRules::default();
    if let Ok(set) = parse_files([("fuzz", bytes)], &rules) {
        let again = parse_files([("again", bytes)], &rules).map(|set| set.version());
        assert_eq!(again, Ok(set.version()));
        assert!(set.iter().all(|entry| !entry.selectors.is_empty()));
    }
}
