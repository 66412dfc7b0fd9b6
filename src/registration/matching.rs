//! Which identities a process has earned: a pure function of what is known of it, the entries and the time.
//!
//! More knowledge never costs an identity, with three exceptions that are meant: a process that is traced, a second
//! value for a placeholder that needs exactly one, and a measured file beside those that an entry names: whoever
//! could bring another script along would only have to name the right one as well.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use mayfly_attestors::{Attestation, Gap, Selector};

use super::entry::{Entry, EntrySet, Identity};
use super::selector::{MEASURED, SelectorPattern};
use super::unknown;
use crate::diag::Shown;
use crate::id::SpiffeId;

/// What is known of a process.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Everything the attestors said.
    pub selectors: &'a BTreeSet<Selector>,
    /// Some thread of it is under a tracer.
    pub traced: bool,
    /// Its executable is a memfd or was deleted.
    pub anonymous_exe: bool,
    /// What is unknown: that one of these selectors is missing says nothing.
    pub gaps: &'a [Gap],
}

impl Facts<'_> {
    /// Whether selectors of that kind and key are unknown.
    pub(super) fn is_open(&self, kind: &str, key: &str) -> bool {
        self.gaps.iter().any(|gap| gap.covers(kind, key))
    }
}

impl<'a> From<&'a Attestation> for Facts<'a> {
    fn from(attestation: &'a Attestation) -> Self {
        let posture = attestation.posture();
        Self {
            selectors: attestation.selectors(),
            traced: posture.traced,
            anonymous_exe: posture.anonymous_exe,
            gaps: attestation.gaps(),
        }
    }
}

/// An entry that does not match, and why.
#[derive(Clone, Debug)]
pub struct NearMiss {
    /// The entry.
    pub entry: Arc<Entry>,
    /// The selectors it asks for that were not found, as the entry writes them.
    pub missing: Vec<String>,
    /// Another reason: the date, the process's posture, a placeholder.
    pub other: Option<String>,
}

const UNKNOWN: &str = "what it lacks is unknown, for an attestor is silent: the caller is told to try again";

/// How many near misses are told.
pub const MAX_NEAR_MISSES: usize = 5;

/// Every identity that the process has earned, best first: by priority, then by the entry's name. The first
/// is the default identity.
pub fn match_entries(set: &EntrySet, facts: Facts<'_>, now: SystemTime) -> Vec<Identity> {
    hints_once(set.iter().filter_map(|entry| identity(entry, facts, now)))
}

/// A hint names one identity of a caller (Workload API §5.2.1); the first keeps it.
pub(super) fn hints_once(identities: impl Iterator<Item = Identity>) -> Vec<Identity> {
    let mut taken = HashSet::new();
    let once = |mut identity: Identity| {
        if !taken.insert(identity.hint.clone()) {
            identity.hint.clear();
        }
        identity
    };
    identities.map(once).collect()
}

/// What the entry gives, if the process has earned it.
pub(super) fn identity(entry: &Arc<Entry>, facts: Facts<'_>, now: SystemTime) -> Option<Identity> {
    if missing(entry, facts).next().is_some() {
        return None;
    }
    let spiffe_id = earned(entry, facts, now).ok()?;
    let because = entry.selectors.iter().map(|wanted| reason(wanted, facts)).collect();
    Some(Identity { entry: Arc::clone(entry), spiffe_id, hint: entry.terms.hint.clone(), because })
}

/// The entries that the process has not earned, those first that lack the fewest selectors, then those of
/// which it has most; at most [`MAX_NEAR_MISSES`].
pub fn near_misses(set: &EntrySet, facts: Facts<'_>, now: SystemTime) -> Vec<NearMiss> {
    let mut misses = Vec::new();
    for entry in set.iter() {
        let missing = missing(entry, facts).map(|wanted| Shown(&wanted.to_string()).to_string());
        let missing = missing.collect::<Vec<_>>();
        let mut other = earned(entry, facts, now).err();
        if unknown::may_be_earned(entry, facts, now) && (!missing.is_empty() || other.is_some()) {
            other = Some(UNKNOWN.to_owned());
        }
        if !missing.is_empty() || other.is_some() {
            misses.push(NearMiss { entry: Arc::clone(entry), missing, other });
        }
    }
    // Stable: entries that are equally near stay in the set's order.
    misses.sort_by_key(|miss| {
        let found = miss.entry.selectors.len().saturating_sub(miss.missing.len());
        (miss.missing.len(), std::cmp::Reverse(found))
    });
    misses.truncate(MAX_NEAR_MISSES);
    misses
}

/// The best entry whose selectors the process has all, and what else stands against it. For a process that
/// has earned nothing.
pub fn held_back<'a>(
    set: &'a EntrySet,
    facts: Facts<'_>,
    now: SystemTime,
) -> Option<(&'a Arc<Entry>, String)> {
    let described = set.iter().filter(|entry| missing(entry, facts).next().is_none());
    described.into_iter().find_map(|entry| Some((entry, earned(entry, facts, now).err()?)))
}

pub(super) fn missing<'a>(entry: &'a Entry, facts: Facts<'a>) -> impl Iterator<Item = &'a SelectorPattern> {
    let allowed = entry.conditions.allow_anonymous_exe;
    entry.selectors.iter().filter(move |wanted| {
        if facts.anonymous_exe && wanted.is_about_executable() {
            // The attestors tell the hash of a nameless program apart; it counts only with the entry's word.
            let same = wanted.of_nameless().is_some_and(|nameless| facts.selectors.contains(&nameless));
            return !(allowed && (same || found(wanted, facts).is_some()));
        }
        found(wanted, facts).is_none()
    })
}

fn found<'a>(wanted: &SelectorPattern, facts: Facts<'a>) -> Option<&'a Selector> {
    match wanted {
        SelectorPattern::Exact(exact) => facts.selectors.get(exact),
        SelectorPattern::CgroupPath(..) => facts.selectors.iter().find(|selector| wanted.fits(selector)),
    }
}

/// The ID, if nothing but selectors could stand against it; else why not.
fn earned(entry: &Entry, facts: Facts<'_>, now: SystemTime) -> Result<SpiffeId, String> {
    let conditions = &entry.conditions;
    if conditions.until.is_some_and(|until| until <= now) {
        return Err("its date (`until`) is over: set a later one or remove the entry".to_owned());
    }
    if facts.traced && !conditions.allow_traced {
        return Err("the process is being traced: stop the tracer, or write `allow_traced = true`".to_owned());
    }
    if let Some(extra) = unnamed_file(entry, facts) {
        return Err(format!(
            "the process reads a measured file that the entry does not name: add `{extra}`, or do not measure that file"
        ));
    }
    entry.spiffe_id.fill(facts.selectors, conditions.advisory_accepted).map_err(|error| error.to_string())
}

/// For an entry that names measured files: one that the process has and the entry has not.
pub(super) fn unnamed_file<'a>(entry: &Entry, facts: Facts<'a>) -> Option<&'a Selector> {
    if !entry.selectors.iter().any(SelectorPattern::is_about_measured_file) {
        return None;
    }
    let is_measured = |selector: &&Selector| (selector.kind(), selector.key()) == MEASURED;
    let is_named = |selector: &Selector| entry.selectors.iter().any(|wanted| wanted.fits(selector));
    facts.selectors.iter().filter(is_measured).find(|selector| !is_named(selector))
}

fn reason(wanted: &SelectorPattern, facts: Facts<'_>) -> String {
    let asked = wanted.to_string();
    match (wanted, found(wanted, facts)) {
        (SelectorPattern::CgroupPath(..), Some(found)) => {
            format!("{} fits {}", Shown(&found.to_string()), Shown(&asked))
        }
        _ => Shown(&asked).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use mayfly_attestors::Depth;
    use proptest::prelude::*;

    use super::*;
    use crate::registration::{EntryRules, parse_files};

    const NOW: SystemTime = UNIX_EPOCH;

    fn set(text: &str) -> EntrySet {
        parse_files([("e.toml", text.as_bytes())], &EntryRules::default()).unwrap_or_else(|p| panic!("{p}"))
    }

    fn entry(name: &str, selectors: &str, rest: &str) -> String {
        format!(
            "[[entries]]\nid = \"{name}\"\nspiffe_id = \"spiffe://td/{name}\"\nselectors = [{selectors}]\n{rest}\n"
        )
    }

    fn known(selectors: &[(&'static str, &'static str, &str)]) -> BTreeSet<Selector> {
        selectors.iter().map(|(kind, key, value)| Selector::new(kind, key, *value)).collect()
    }

    fn facts(selectors: &BTreeSet<Selector>) -> Facts<'_> {
        Facts { selectors, traced: false, anonymous_exe: false, gaps: &[] }
    }

    fn names(identities: &[Identity]) -> Vec<&str> {
        identities.iter().map(|identity| identity.entry.id.as_str()).collect()
    }

    #[test]
    fn all_selectors_must_be_there_and_the_best_comes_first() {
        let set = set(&[
            entry("c-low", "\"unix:uid:1\"", "priority = -1"),
            entry("b", "\"unix:uid:1\"", ""),
            entry("a", "\"unix:uid:1\"", ""),
            entry("z-high", "\"unix:uid:1\", \"cgroup:path:/s/agent-*\"", "priority = 7"),
            entry("other", "\"unix:uid:1\", \"unix:gid:2\"", ""),
        ]
        .concat());
        let known = known(&[("unix", "uid", "1"), ("unix", "gid", "1"), ("cgroup", "path", "/s/agent-4")]);
        let identities = match_entries(&set, facts(&known), NOW);
        assert_eq!(names(&identities), ["z-high", "a", "b", "c-low"]);
        assert_eq!(identities[0].spiffe_id.as_str(), "spiffe://td/z-high");
        assert_eq!(
            identities[0].because,
            ["unix:uid:1", "cgroup:path:/s/agent-4 fits cgroup:path:/s/agent-*"]
        );
        assert!(match_entries(&set, facts(&BTreeSet::new()), NOW).is_empty());
    }

    #[test]
    fn a_dated_entry_matches_until_its_moment() {
        let set = set(&entry("a", "\"unix:uid:1\"", "until = 1970-01-02T00:00:00Z"));
        let known = known(&[("unix", "uid", "1")]);
        let day = Duration::from_secs(86_400);
        assert_eq!(match_entries(&set, facts(&known), NOW + day - Duration::from_nanos(1)).len(), 1);
        assert!(match_entries(&set, facts(&known), NOW + day).is_empty());
        let miss = &near_misses(&set, facts(&known), NOW + day)[0];
        assert!(miss.missing.is_empty());
        assert!(miss.other.as_ref().unwrap().contains("`until`"), "{miss:?}");
    }

    #[test]
    fn an_entry_that_names_measured_files_names_all_of_them() {
        let (good, data, evil) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        let named = |files: &[&String]| {
            let files: String = files.iter().map(|file| format!(", \"launch:sha256:{file}\"")).collect();
            format!("\"unix:uid:1\", \"unix:path:/usr/bin/python3\"{files}")
        };
        let set = set(&[
            entry("plain", "\"unix:uid:1\"", ""),
            entry("script", &named(&[&good]), ""),
            entry("script-and-data", &named(&[&good, &data]), ""),
        ]
        .concat());
        let base = [("unix", "uid", "1"), ("unix", "path", "/usr/bin/python3")];
        let names_with = |files: &[&String]| {
            let files = files.iter().map(|file| ("launch", "sha256", file.as_str()));
            let known = known(&base.into_iter().chain(files).collect::<Vec<_>>());
            names(&match_entries(&set, facts(&known), NOW)).join(" ")
        };
        assert_eq!(names_with(&[]), "plain");
        assert_eq!(names_with(&[&good]), "plain script");
        assert_eq!(names_with(&[&good, &data]), "plain script-and-data");
        assert_eq!(names_with(&[&good, &evil]), "plain", "another script, and the good one only named");
        assert_eq!(names_with(&[&good, &data, &evil]), "plain");
        let known = known(&[base[0], base[1], ("launch", "sha256", &good), ("launch", "sha256", &evil)]);
        let why = near_misses(&set, facts(&known), NOW)[0].other.clone().unwrap();
        assert!(why.contains(&format!("`launch:sha256:{evil}`")), "{why}");
    }

    #[test]
    fn b06_a_traced_process_has_nothing_without_the_entrys_word() {
        let set =
            set(&(entry("a", "\"unix:uid:1\"", "") + &entry("b", "\"unix:uid:1\"", "allow_traced = true")));
        let known = known(&[("unix", "uid", "1")]);
        let facts = Facts { traced: true, ..facts(&known) };
        assert_eq!(names(&match_entries(&set, facts, NOW)), ["b"]);
        assert!(near_misses(&set, facts, NOW)[0].other.as_ref().unwrap().contains("allow_traced"));
    }

    #[test]
    fn b07_the_hash_of_a_nameless_program_counts_only_with_the_entrys_word() {
        let (hash, other) = ("1".repeat(64), "2".repeat(64));
        let selectors = format!("\"unix:uid:1\", \"unix:sha256:{hash}\"");
        let path = "\"unix:uid:1\", \"unix:path:/memfd:x\"";
        let set = set(&[
            entry("plain", "\"unix:uid:1\"", ""),
            entry("hash", &selectors, ""),
            entry("word", &selectors, "allow_anonymous_exe = true"),
            entry("path", path, "allow_anonymous_exe = true"),
        ]
        .concat());
        let of = |key, hash: &str| known(&[("unix", "uid", "1"), ("unix", key, hash)]);
        let nameless = |known: &BTreeSet<Selector>| {
            let facts = Facts { anonymous_exe: true, ..facts(known) };
            names(&match_entries(&set, facts, NOW)).join(" ")
        };
        assert_eq!(nameless(&of("anonymous_sha256", &hash)), "plain word");
        assert_eq!(nameless(&of("sha256", &hash)), "plain word", "whichever way the attestor says it");
        assert_eq!(nameless(&of("anonymous_sha256", &other)), "plain");
        assert_eq!(names(&match_entries(&set, facts(&of("sha256", &hash)), NOW)), ["hash", "plain", "word"]);
        let lying = of("anonymous_sha256", &hash);
        assert_eq!(names(&match_entries(&set, facts(&lying), NOW)), ["plain"]);
    }

    #[test]
    fn a_hint_is_given_once() {
        let set = set(&[
            entry("a", "\"unix:uid:1\"", "hint = \"db\""),
            entry("b", "\"unix:uid:1\"", "hint = \"db\"\npriority = 1"),
            entry("c", "\"unix:uid:1\"", "hint = \"web\""),
            entry("d", "\"unix:uid:1\"", ""),
            entry("e", "\"unix:uid:2\"", "hint = \"db\"\npriority = 9"),
        ]
        .concat());
        let known = known(&[("unix", "uid", "1")]);
        let identities = match_entries(&set, facts(&known), NOW);
        let hints = identities.iter().map(|identity| identity.hint.as_str()).collect::<Vec<_>>();
        assert_eq!((names(&identities).join(" ").as_str(), hints), ("b a c d", vec!["db", "", "web", ""]));
    }

    #[test]
    fn a_placeholder_that_cannot_be_filled_is_a_reason() {
        let text = "[[entries]]\nspiffe_id = \"spiffe://td/{unix.user}\"\nselectors = [\"unix:gid:1\"]\n";
        let set = set(text);
        let other =
            |known: &BTreeSet<Selector>| near_misses(&set, facts(known), NOW)[0].other.clone().unwrap();
        let two = known(&[("unix", "gid", "1"), ("unix", "user", "a"), ("unix", "user", "b")]);
        assert_eq!(other(&two), "{unix.user} has 2 values where it needs exactly one");
        let none = known(&[("unix", "gid", "1")]);
        assert_eq!(other(&none), "nothing known of the process may fill {unix.user}");
        let bad = known(&[("unix", "gid", "1"), ("unix", "user", "a/\u{1b}b")]);
        assert!(!other(&bad).contains('\u{1b}'));
        let good = known(&[("unix", "gid", "1"), ("unix", "user", "ann")]);
        assert_eq!(match_entries(&set, facts(&good), NOW)[0].spiffe_id.as_str(), "spiffe://td/ann");
    }

    #[test]
    fn what_holds_a_described_process_back_is_told_and_nothing_else() {
        let set = set(&[
            entry("other", "\"unix:uid:2\"", ""),
            entry("a", "\"unix:uid:1\"", ""),
            entry("best", "\"unix:uid:1\"", "priority = 1"),
        ]
        .concat());
        let (known, stranger) = (known(&[("unix", "uid", "1")]), known(&[("unix", "uid", "3")]));
        let traced = Facts { traced: true, ..facts(&known) };
        let (held, why) = held_back(&set, traced, NOW).unwrap();
        assert_eq!(held.id.as_str(), "best");
        assert!(why.contains("traced"), "{why}");
        assert!(held_back(&set, Facts { traced: true, ..facts(&stranger) }, NOW).is_none());
        assert!(held_back(&set, facts(&known), NOW).is_none());
    }

    #[test]
    fn an_entry_that_asks_for_an_ancestor_makes_attestations_look_at_them() {
        let plain = entry("a", "\"unix:uid:1\"", "");
        assert_eq!(set(&plain).depth(), Depth::WithoutAncestors);
        let hash = "1".repeat(64);
        let selector = entry("b", &format!("\"unix:uid:1\", \"process:ancestor_sha256:{hash}\""), "");
        assert_eq!(set(&(plain.clone() + &selector)).depth(), Depth::Full);
        let template = "[[entries]]\nspiffe_id = \"spiffe://td/{process.ancestor_sha256}\"\nselectors = [\"unix:uid:1\"]\nadvisory = \"accepted\"\n";
        assert_eq!(set(&(plain + template)).depth(), Depth::Full);
    }

    #[test]
    fn the_nearest_misses_come_first() {
        let mut text = (0..9)
            .map(|n| entry(&format!("far{n}"), "\"unix:uid:8\", \"unix:gid:9\"", ""))
            .collect::<String>();
        text += &entry("one-of-one", "\"unix:uid:7\"", "");
        text += &entry("one-of-three", "\"unix:uid:1\", \"unix:gid:1\", \"unix:user:x\"", "");
        text += &entry("dated", "\"unix:uid:1\"", "until = 1970-01-01T00:00:00Z");
        text += &entry("match", "\"unix:uid:1\"", "");
        let known = known(&[("unix", "uid", "1"), ("unix", "gid", "1")]);
        let misses = near_misses(&set(&text), facts(&known), NOW);
        let names = misses.iter().map(|miss| miss.entry.id.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["dated", "one-of-three", "one-of-one", "far0", "far1"]);
        assert_eq!(misses[1].missing, ["unix:user:x"]);
    }

    /// Entries over few selectors, so that some match.
    fn entries() -> impl Strategy<Value = Vec<String>> {
        let selectors = proptest::collection::btree_set(0..5_usize, 1..4);
        let parts = (selectors, -1..2_i64, 0..3_usize, any::<bool>(), any::<bool>());
        proptest::collection::vec(parts, 1..8).prop_map(|entries| {
            let text = |(n, (selectors, priority, hint, dated, traced)): (
                usize,
                (BTreeSet<usize>, i64, usize, bool, bool),
            )| {
                let selectors = selectors.iter().map(|at| format!("\"{}\"", ASKED[*at])).collect::<Vec<_>>();
                let until = if dated { "until = 1970-01-01T00:00:00Z" } else { "" };
                let rest = format!(
                    "priority = {priority}\nhint = \"{}\"\nallow_traced = {traced}\n{until}",
                    ["", "x", "y"][hint]
                );
                entry(&format!("e{n}"), &selectors.join(","), &rest)
            };
            entries.into_iter().enumerate().map(text).collect()
        })
    }

    const ASKED: [&str; 5] =
        ["unix:uid:1", "unix:gid:1", "unix:user:a", "cgroup:path:/s/*", "cgroup:path:/s/a"];
    const GIVEN: [(&str, &str, &str); 5] = [
        ("unix", "uid", "1"),
        ("unix", "gid", "1"),
        ("unix", "user", "a"),
        ("cgroup", "path", "/s/b"),
        ("cgroup", "path", "/s/a"),
    ];

    fn given() -> impl Strategy<Value = BTreeSet<usize>> {
        proptest::collection::btree_set(0..5_usize, 0..5)
    }

    fn shown(set: &EntrySet, known: &BTreeSet<usize>, traced: bool) -> Vec<(String, String, String)> {
        let known = known.iter().map(|at| Selector::new(GIVEN[*at].0, GIVEN[*at].1, GIVEN[*at].2)).collect();
        let identities = match_entries(set, Facts { traced, ..facts(&known) }, NOW);
        let show = |i: &Identity| (i.entry.id.to_string(), i.spiffe_id.to_string(), i.hint.clone());
        identities.iter().map(show).collect()
    }

    proptest! {
        #[test]
        fn i10_the_order_of_entries_and_files_changes_nothing(
            entries in entries().prop_flat_map(|entries| (Just(entries.clone()), Just(entries).prop_shuffle())),
            given in given(),
            traced in any::<bool>(),
        ) {
            let (first, second) = (set(&entries.0.concat()), set(&entries.1.concat()));
            prop_assert_eq!(first.version(), second.version());
            prop_assert_eq!(shown(&first, &given, traced), shown(&second, &given, traced));
            let files = entries.1.iter().map(|text| ("f", text.as_bytes()));
            let third = parse_files(files, &EntryRules::default()).unwrap();
            prop_assert_eq!(shown(&first, &given, traced), shown(&third, &given, traced));
        }

        #[test]
        fn to_know_more_never_costs_an_identity(entries in entries(), less in given(), more in given()) {
            let set = set(&entries.concat());
            let more = less.union(&more).copied().collect();
            let has = |known| shown(&set, known, false).into_iter().map(|(name, ..)| name).collect::<BTreeSet<_>>();
            prop_assert!(has(&less).is_subset(&has(&more)));
        }

        /// Why an attestation may leave out what `EntrySet::depth` says nobody asks for.
        #[test]
        fn what_no_entry_asks_for_changes_no_match(entries in entries(), given in given(), hash in 0..3_u8, traced in any::<bool>()) {
            let set = set(&entries.concat());
            prop_assert_eq!(set.depth(), Depth::WithoutAncestors);
            let known: BTreeSet<Selector> =
                given.iter().map(|at| Selector::new(GIVEN[*at].0, GIVEN[*at].1, GIVEN[*at].2)).collect();
            let mut more = known.clone();
            more.extend((0..hash).map(|n| Selector::new("process", "ancestor_sha256", n.to_string().repeat(64))));
            let names = |known: &BTreeSet<Selector>| {
                let identities = match_entries(&set, Facts { traced, ..facts(known) }, NOW);
                identities.iter().map(|i| (i.entry.id.to_string(), i.spiffe_id.to_string(), i.hint.clone())).collect::<Vec<_>>()
            };
            prop_assert_eq!(names(&known), names(&more));
        }

        #[test]
        fn every_entry_matches_or_misses_and_says_why(entries in entries(), given in given(), traced in any::<bool>()) {
            let set = set(&entries[..entries.len().min(MAX_NEAR_MISSES)].concat());
            let known = given.iter().map(|at| Selector::new(GIVEN[*at].0, GIVEN[*at].1, GIVEN[*at].2)).collect();
            let facts = Facts { traced, ..facts(&known) };
            let misses = near_misses(&set, facts, NOW);
            prop_assert!(misses.iter().all(|miss| !miss.missing.is_empty() || miss.other.is_some()));
            prop_assert_eq!(misses.len() + match_entries(&set, facts, NOW).len(), set.len());
        }
    }
}
