//! No text makes loading panic, and the same text makes the same set.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly::registration::{EntryRules, parse_files};

fuzz_target!(|bytes: &[u8]| {
    let rules = EntryRules::default();
    if let Ok(set) = parse_files([("fuzz", bytes)], &rules) {
        let again = parse_files([("again", bytes)], &rules).map(|set| set.version());
        assert_eq!(again, Ok(set.version()));
        assert!(set.iter().all(|entry| !entry.selectors.is_empty()));
    }
});
