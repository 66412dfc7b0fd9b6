//! What follows for entries when some of an attestation is unknown, because an attestor is silent.
//!
//! Two rules. Who might match if everything were known is told to try again: never that he has nothing, and never less
//! than he would have. Who has an identity already keeps what the unchanged facts earned him, and gains nothing by them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use mayfly_attestors::Selector;

use super::entry::{Entry, EntrySet, Identity};
use super::matching::{Facts, hints_once, identity, missing, unnamed_file};

/// The first entry that the process has not earned as far as is known, and may have earned if the gaps were filled.
pub fn undecided<'a>(set: &'a EntrySet, facts: Facts<'_>, now: SystemTime) -> Option<&'a Arc<Entry>> {
    if facts.gaps.is_empty() {
        return None;
    }
    set.iter().find(|entry| may_be_earned(entry, facts, now) && identity(entry, facts, now).is_none())
}

/// Whether nothing that is known stands against it.
pub(super) fn may_be_earned(entry: &Entry, facts: Facts<'_>, now: SystemTime) -> bool {
    let conditions = &entry.conditions;
    let open = |kind: &str, key: &str| facts.is_open(kind, key);
    if conditions.until.is_some_and(|until| until <= now) {
        return false;
    }
    // Counts as traced also while nobody can say.
    if facts.traced && !conditions.allow_traced && !open("process", "traced") {
        return false;
    }
    if unnamed_file(entry, facts).is_some() {
        return false;
    }
    let unknown = missing(entry, facts).all(|wanted| {
        let (kind, key) = wanted.kind_and_key();
        open(kind, key)
    });
    unknown && entry.spiffe_id.may_fill(facts.selectors, conditions.advisory_accepted, open)
}

/// What a process that has `held` has now: `facts` may hold what a silent attestor said earlier, `fresh` is what was
/// learned just now. An identity is new only if `fresh` alone earns it; one that is held stays while `facts` earn it,
/// or nothing that is known stands against it.
pub fn match_held(
    set: &EntrySet,
    facts: Facts<'_>,
    fresh: &BTreeSet<Selector>,
    held: &[Identity],
    now: SystemTime,
) -> Vec<Identity> {
    let decide = |entry: &Arc<Entry>| {
        let had = held.iter().find(|had| had.entry.id == entry.id);
        match identity(entry, facts, now) {
            Some(found) => {
                let stays = had.is_some_and(|had| had.spiffe_id == found.spiffe_id);
                let certain = || identity(entry, Facts { selectors: fresh, ..facts }, now);
                (stays || certain().is_some_and(|certain| certain.spiffe_id == found.spiffe_id))
                    .then_some(found)
            }
            None => {
                // An entry that asks for something else now is another question, and nobody has answered it.
                let asks = |entry: &Entry| (entry.selectors.clone(), entry.spiffe_id.clone());
                let had = had.filter(|had| asks(&had.entry) == asks(entry))?;
                let (entry, hint) = (Arc::clone(entry), entry.terms.hint.clone());
                may_be_earned(&entry, facts, now).then(|| Identity { entry, hint, ..had.clone() })
            }
        }
    };
    hints_once(set.iter().filter_map(decide))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use mayfly_attestors::Gap;
    use proptest::prelude::*;

    use super::*;
    use crate::registration::matching::match_entries;
    use crate::registration::{EntryRules, parse_files};

    const NOW: SystemTime = UNIX_EPOCH;
    const CGROUP: Gap = Gap::new("cgroup", &["path", "delegated_path"]);
    const PROCESS: Gap = Gap::new("process", &["traced", "no_new_privs"]);

    /// Of the entries below; the cgroup attestor stands for any back-end.
    const ASKED: [&str; 4] = ["unix:uid:1", "unix:gid:1", "cgroup:path:/a", "process:no_new_privs:true"];
    const GIVEN: [(&str, &str, &str); 4] = [
        ("unix", "uid", "1"),
        ("unix", "gid", "1"),
        ("cgroup", "path", "/a"),
        ("process", "no_new_privs", "true"),
    ];

    fn set(text: &str) -> EntrySet {
        parse_files([("e.toml", text.as_bytes())], &EntryRules::default()).unwrap_or_else(|p| panic!("{p}"))
    }

    fn entry(name: &str, selectors: &[&str], rest: &str) -> String {
        let selectors: Vec<String> = selectors.iter().map(|one| format!("{one:?}")).collect();
        format!(
            "[[entries]]\nid = \"{name}\"\nspiffe_id = \"spiffe://td/{name}\"\nselectors = [{}]\nadvisory = \"accepted\"\n{rest}\n",
            selectors.join(",")
        )
    }

    fn known(selectors: &[(&'static str, &'static str, &str)]) -> BTreeSet<Selector> {
        selectors.iter().map(|(kind, key, value)| Selector::new(kind, key, *value)).collect()
    }

    fn facts<'a>(selectors: &'a BTreeSet<Selector>, gaps: &'a [Gap]) -> Facts<'a> {
        Facts { selectors, traced: false, anonymous_exe: false, gaps }
    }

    fn names(identities: &[Identity]) -> Vec<&str> {
        identities.iter().map(|identity| identity.entry.id.as_str()).collect()
    }

    fn first(set: &EntrySet, facts: Facts<'_>) -> Option<String> {
        undecided(set, facts, NOW).map(|entry| entry.id.to_string())
    }

    #[test]
    fn what_only_a_silent_attestor_could_say_is_undecided() {
        let entries = [
            entry("plain", &["unix:uid:1"], ""),
            entry("both", &["unix:uid:1", "cgroup:path:/a*"], ""),
            entry("other", &["unix:uid:2", "cgroup:path:/a"], "priority = 5"),
        ];
        let set = set(&entries.concat());
        let uid = known(&[("unix", "uid", "1")]);
        assert_eq!(first(&set, facts(&uid, &[])), None, "nothing is unknown");
        assert_eq!(first(&set, facts(&uid, &[CGROUP])).as_deref(), Some("both"));
        assert_eq!(first(&set, facts(&uid, &[PROCESS])), None, "silence about something else");
        let stranger = known(&[("unix", "uid", "3")]);
        assert_eq!(first(&set, facts(&stranger, &[CGROUP])), None, "something known stands against it");
        let all = known(&[("unix", "uid", "1"), ("cgroup", "path", "/abc")]);
        assert_eq!(first(&set, facts(&all, &[CGROUP])), None, "it is known after all");
    }

    #[test]
    fn what_stands_against_an_entry_besides_selectors_counts_while_it_is_known() {
        let text = entry("dated", &["unix:uid:1", "cgroup:path:/a"], "until = 1970-01-01T00:00:00Z")
            + &entry("traced", &["unix:uid:1"], "");
        let set = set(&text);
        let uid = known(&[("unix", "uid", "1")]);
        assert_eq!(first(&set, facts(&uid, &[CGROUP])), None);
        let traced = |gaps| Facts { traced: true, ..facts(&uid, gaps) };
        assert_eq!(first(&set, traced(&[])), None);
        assert_eq!(first(&set, traced(&[CGROUP])), None, "it is traced");
        assert_eq!(first(&set, traced(&[PROCESS])).as_deref(), Some("traced"), "nobody knows whether it is");
    }

    #[test]
    fn a_placeholder_that_only_a_silent_attestor_fills_is_undecided() {
        let text = "[[entries]]\nid = \"t\"\nspiffe_id = \"spiffe://td/{unix.user}\"\nselectors = [\"unix:uid:1\"]\n";
        let set = set(text);
        let uid = known(&[("unix", "uid", "1")]);
        let gap = [Gap::new("unix", &["user"])];
        assert_eq!(first(&set, facts(&uid, &gap)).as_deref(), Some("t"));
        assert_eq!(first(&set, facts(&uid, &[CGROUP])), None);
        let bad = known(&[("unix", "uid", "1"), ("unix", "user", "a/b")]);
        assert_eq!(first(&set, facts(&bad, &gap)), None, "no further value would make it a path segment");
    }

    #[test]
    fn what_is_held_stays_and_nothing_is_gained() {
        let entries = [
            entry("held", &["unix:uid:1", "cgroup:path:/a"], "hint = \"h\""),
            entry("new", &["unix:uid:1", "cgroup:path:/a"], "hint = \"h\"\npriority = 1"),
            entry("fresh", &["unix:uid:1"], ""),
        ];
        let all = set(&entries.concat());
        let before = set(&entries[0]);
        let full = known(&[("unix", "uid", "1"), ("cgroup", "path", "/a")]);
        let fresh = known(&[("unix", "uid", "1")]);
        let held = match_entries(&before, facts(&full, &[]), NOW);
        assert_eq!(names(&held), ["held"]);
        // The silent attestor's last words stand for what is held, and for nothing else.
        let now = match_held(&all, facts(&full, &[]), &fresh, &held, NOW);
        assert_eq!(names(&now), ["fresh", "held"]);
        assert_eq!(now[1].hint, "h", "the hint of who is not there is free");
        // It had said nothing that is remembered: what is held is not refuted.
        let now = match_held(&all, facts(&fresh, &[CGROUP]), &fresh, &held, NOW);
        assert_eq!(names(&now), ["fresh", "held"]);
        // Without the gap it is refuted.
        assert_eq!(names(&match_held(&all, facts(&fresh, &[]), &fresh, &held, NOW)), ["fresh"]);
        // An entry that gives another identity now gives it to nobody on old words.
        let other = entry("held", &["unix:uid:1", "cgroup:path:/a"], "").replace("td/held", "td/else");
        assert!(match_held(&set(&other), facts(&full, &[]), &fresh, &held, NOW).is_empty());
        assert!(match_held(&set(&other), facts(&fresh, &[CGROUP]), &fresh, &held, NOW).is_empty());
    }

    fn entries() -> impl Strategy<Value = String> {
        let parts = (proptest::collection::btree_set(0..4_usize, 1..4), any::<bool>(), any::<bool>());
        proptest::collection::vec(parts, 1..7).prop_map(|entries| {
            let text = |(n, (asked, dated, traced)): (usize, (BTreeSet<usize>, bool, bool))| {
                let asked: Vec<&str> = asked.iter().map(|at| ASKED[*at]).collect();
                let until = if dated { "until = 1970-01-01T00:00:00Z" } else { "" };
                entry(&format!("e{n}"), &asked, &format!("allow_traced = {traced}\n{until}"))
            };
            entries.into_iter().enumerate().map(text).collect()
        })
    }

    fn given() -> impl Strategy<Value = BTreeSet<usize>> {
        proptest::collection::btree_set(0..4_usize, 0..4)
    }

    fn selectors(given: &BTreeSet<usize>) -> BTreeSet<Selector> {
        given.iter().map(|at| Selector::new(GIVEN[*at].0, GIVEN[*at].1, GIVEN[*at].2)).collect()
    }

    fn without(selectors: &BTreeSet<Selector>, gaps: &[Gap]) -> BTreeSet<Selector> {
        let open = |one: &&Selector| !gaps.iter().any(|gap| gap.covers(one.kind(), one.key()));
        selectors.iter().filter(open).cloned().collect()
    }

    fn silences() -> impl Strategy<Value = Vec<Gap>> {
        proptest::sample::subsequence(vec![CGROUP, PROCESS], 0..=2)
    }

    proptest! {
        /// The promise to who asks: what he is given while somebody is silent is all that he would be given.
        #[test]
        fn who_is_served_in_spite_of_a_silence_has_all_he_would_have(
            text in entries(), given in given(), gaps in silences(), traced in any::<bool>(),
        ) {
            let (set, truth) = (set(&text), selectors(&given));
            let seen = without(&truth, &gaps);
            let full = Facts { traced, ..facts(&truth, &[]) };
            let shown = Facts { traced: traced || gaps.contains(&PROCESS), ..facts(&seen, &gaps) };
            let all = match_entries(&set, full, NOW);
            let some = match_entries(&set, shown, NOW);
            prop_assert!(names(&some).iter().all(|one| names(&all).contains(one)), "nothing is gained");
            if undecided(&set, shown, NOW).is_none() {
                prop_assert_eq!(names(&some), names(&all));
            }
        }

        /// The promise to who has something: while a back-end is silent he has what he had and still earns, never more.
        #[test]
        fn who_holds_keeps_and_never_gains(
            text in entries(), later in entries(), given in given(), gaps in silences(), kept in any::<bool>(),
        ) {
            let (before, after, truth) = (set(&text), set(&later), selectors(&given));
            let held = match_entries(&before, facts(&truth, &[]), NOW);
            let fresh = without(&truth, &gaps);
            let (known, open) = if kept { (&truth, &[][..]) } else { (&fresh, &gaps[..]) };
            let traced = !kept && gaps.contains(&PROCESS);
            let now = match_held(&after, Facts { traced, ..facts(known, open) }, &fresh, &held, NOW);
            let full = match_entries(&after, facts(&truth, &[]), NOW);
            let certain = match_entries(&after, Facts { traced, ..facts(&fresh, open) }, NOW);
            for one in &now {
                let had = held.iter().any(|had| had.same_as(one));
                prop_assert!(had || certain.iter().any(|other| other.same_as(one)), "gained {one:?}");
                prop_assert!(full.iter().any(|other| other.same_as(one)), "what it would not have: {one:?}");
            }
            let same = |had: &&Identity, other: &Identity| other.same_as(had) && other.entry.selectors == had.entry.selectors;
            for had in held.iter().filter(|had| full.iter().any(|other| same(had, other))) {
                prop_assert!(now.iter().any(|one| one.same_as(had)), "lost {had:?}");
            }
            // Nothing unknown, nothing held back.
            if gaps.is_empty() {
                prop_assert_eq!(names(&now), names(&full));
            }
        }
    }
}
