//! No text makes loading policies, a catalogue or cases panic, the same text makes the same set, and whatever loads can be
//! asked and explained.

use std::time::UNIX_EPOCH;

use mayfly::policy::{PolicySet, parse_cases, parse_catalogue};

/// One input: read as each of the three.
pub(crate) fn check(bytes: &[u8]) {
    let set = |name: &str| PolicySet::parse(&[(name.to_owned(), bytes.to_vec())], None);
    let loaded = set("/one/f.cedar");
    if let Ok(loaded) = &loaded {
        assert!(loaded.policies() > 0, "a set without a policy loads");
        let again = set("/two/f.cedar").map(|set| set.version());
        assert_eq!(again, Ok(loaded.version()));
        let _ = loaded.lint(UNIX_EPOCH);
    }
    if let Ok(catalogue) = parse_catalogue([("f.toml", bytes)], None) {
        assert!(catalogue.targets().all(|target| !target.name.is_empty()));
    }
    if let Ok(cases) = parse_cases("f.yaml", bytes) {
        let set = loaded.unwrap_or_else(|_problems| PolicySet::none());
        cases.iter().for_each(|case| drop(case.run(&set, UNIX_EPOCH)));
    }
}
