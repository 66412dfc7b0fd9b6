//! What is on record of which process, so that it is said again only when it has changed.
//!
//! An attestor that is silent, or was not waited for, changes nothing: what it said before stands until it says something
//! else. Else a busy machine would have every process change all the time.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::digest;
use mayfly_attestors::{Attestation, ProcessKey};

use crate::audit::Found;

/// What an attestation says, fact by fact, each by digests: ten thousand processes are remembered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Facts(Box<[(u64, Fact)]>);

/// All values of one kind and key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fact {
    Known(u64),
    Unknown,
}

impl Facts {
    /// The facts of an attestation, and what is odd about the process.
    pub(super) fn of(attestation: &Attestation) -> Self {
        let selectors = attestation.selectors().iter();
        let said = selectors.map(|one| (one.kind(), one.key(), one.value()));
        let unknown = attestation.gaps().iter().flat_map(mayfly_attestors::Gap::names);
        Self::from(said, unknown, &attestation.posture().names())
    }

    fn from<'a, 'b>(
        said: impl Iterator<Item = (&'a str, &'a str, &'a str)>,
        unknown: impl Iterator<Item = (&'b str, &'b str)>,
        posture: &[&str],
    ) -> Self {
        let mut values: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (kind, key, value) in said.filter(|(kind, key, _)| !is_of_others(kind, key)) {
            values.entry((kind, key)).or_default().push(value);
        }
        let unknown = unknown.filter(|(kind, key)| !is_of_others(kind, key));
        let mut facts: BTreeMap<u64, Fact> =
            unknown.map(|(kind, key)| (print([kind, key]), Fact::Unknown)).collect();
        // What is said in part is not known as a whole, and stays unknown.
        for ((kind, key), values) in values {
            facts.entry(print([kind, key])).or_insert_with(|| Fact::Known(print(values)));
        }
        facts.insert(print(["posture"]), Fact::Known(print(posture.iter().copied())));
        Self(facts.into_iter().collect())
    }

    /// Takes over what is known now; what is new about that.
    fn learn(&mut self, now: &Self) -> Option<Found> {
        let before: BTreeMap<u64, Fact> = self.0.iter().copied().collect();
        let now: BTreeMap<u64, Fact> = now.0.iter().copied().collect();
        let (mut known, mut news) = (BTreeMap::new(), None);
        for name in before.keys().chain(now.keys()) {
            let (fact, found) = match (before.get(name), now.get(name)) {
                (before, Some(Fact::Unknown)) => (before, None),
                (Some(Fact::Unknown), Some(now)) => (Some(now), Some(Found::More)),
                (Some(Fact::Unknown), None) => (None, None),
                (before, now) => (now, (before != now).then_some(Found::Changed)),
            };
            known.extend(fact.map(|fact| (*name, *fact)));
            news = if news == Some(Found::Changed) { news } else { found.or(news) };
        }
        self.0 = known.into_iter().collect();
        news
    }
}

/// Programs of ancestors: they are no part of the process, come and go, and are looked at only while an entry asks for them.
fn is_of_others(kind: &str, key: &str) -> bool {
    (kind, key) == ("process", "ancestor_sha256")
}

/// The first 8 bytes of a SHA-256: enough to see a change that nobody has worked for.
fn print<'a>(texts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    for text in texts {
        context.update(text.as_bytes());
        context.update(b"\n");
    }
    context.finish().as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// What was said of whom.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<ProcessKey, Facts>);

impl Told {
    /// Whether there is something to say, which is said then. `lives`: of whom it is remembered when there is no room for
    /// everybody; whoever is forgotten is told of once more.
    pub(super) fn news(
        &mut self,
        process: ProcessKey,
        facts: Facts,
        lives: impl Fn(&ProcessKey) -> bool,
    ) -> Option<Found> {
        if let Some(known) = self.0.get_mut(&process) {
            return known.learn(&facts);
        }
        if self.0.len() >= MOST {
            self.0.retain(|one, _| lives(one));
        }
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(process, facts);
        Some(Found::First)
    }

    /// Whether anything is on record of it.
    pub(super) fn knows(&self, process: &ProcessKey) -> bool {
        self.0.contains_key(process)
    }

    /// It has ended.
    pub(super) fn forget(&mut self, process: &ProcessKey) {
        self.0.remove(process);
    }
}

/// Whether two attestations say the same and leave the same open.
pub(super) fn is_same(one: &Attestation, other: &Attestation) -> bool {
    one.selectors() == other.selectors() && one.posture() == other.posture() && one.gaps() == other.gaps()
}

/// Processes remembered at once.
const MOST: usize = 16_384;

#[cfg(test)]
mod tests {
    use mayfly_attestors::BootId;
    use proptest::prelude::*;

    use super::*;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid, start_time: 1, pidfs_inode: None }
    }

    /// `kind:key:value` each; `kind:key` what is unknown; words of posture.
    fn facts(said: &[&str], unknown: &[&str], posture: &[&str]) -> Facts {
        let said = said.iter().map(|one| {
            let mut parts = one.splitn(3, ':');
            let mut next = || parts.next().unwrap();
            (next(), next(), next())
        });
        Facts::from(said, unknown.iter().map(|one| one.split_once(':').unwrap()), posture)
    }

    #[test]
    fn a_process_is_told_of_once_and_again_when_it_is_something_else() {
        let mut told = Told::default();
        let mut news =
            |pid, said: &[&str], posture: &[&str]| told.news(key(pid), facts(said, &[], posture), |_| true);
        let (a, b) = (&["unix:uid:0", "unix:path:/a"][..], &["unix:uid:0", "unix:path:/b"][..]);
        assert_eq!((news(1, a, &[]), news(1, a, &[])), (Some(Found::First), None));
        assert_eq!((news(2, a, &[]), news(1, a, &[])), (Some(Found::First), None));
        assert_eq!((news(1, b, &[]), news(1, b, &[])), (Some(Found::Changed), None));
        assert_eq!(news(1, a, &[]), Some(Found::Changed), "and back");
        assert_eq!(news(1, &a[..1], &[]), Some(Found::Changed), "without one");
        assert_eq!(news(1, a, &[]), Some(Found::Changed), "with one that nobody left open");
        assert_eq!((news(1, a, &["traced"]), news(1, a, &["traced"])), (Some(Found::Changed), None));
        assert_eq!(
            news(1, &["unix:uid:0", "unix:path:/a", "unix:path:/b"], &["traced"]),
            Some(Found::Changed)
        );
        told.forget(&key(1));
        assert_eq!(told.news(key(1), facts(a, &[], &[]), |_| true), Some(Found::First));
        assert!(told.knows(&key(2)) && !told.knows(&key(3)));
    }

    #[test]
    fn what_nobody_says_is_no_change_and_what_is_known_later_is_more() {
        let mut told = Told::default();
        let mut news =
            |said: &[&str], unknown: &[&str]| told.news(key(1), facts(said, unknown, &[]), |_| true);
        let (alone, whole) = (&["unix:uid:0"][..], &["unix:uid:0", "docker:name:web"][..]);
        let open = &["docker:name", "docker:label"][..];
        assert_eq!(news(alone, open), Some(Found::First));
        assert_eq!(news(alone, open), None);
        assert_eq!((news(whole, &[]), news(whole, &[])), (Some(Found::More), None));
        // Silent from time to time.
        for _ in 0..3 {
            assert_eq!((news(alone, open), news(whole, &[])), (None, None));
        }
        assert_eq!(news(&["unix:uid:0", "docker:name:db"], &[]), Some(Found::Changed));
        assert_eq!(news(alone, open), None);
        assert_eq!(news(whole, &[]), Some(Found::Changed), "the silence has forgotten nothing");
        assert_eq!((news(alone, &[]), news(alone, &[])), (Some(Found::Changed), None), "it is in none now");
        // Unknown at first, and then known not to be there: nothing has changed.
        assert_eq!((news(alone, open), news(alone, &[])), (None, None));
        assert_eq!(news(&["unix:uid:0", "process:ancestor_sha256:ab"], &[]), None, "that is somebody else");
    }

    proptest! {
        /// However the answers of an attestor come and go: one line for each change of what it says, and no more.
        #[test]
        fn lines_are_bounded_by_changes(steps in proptest::collection::vec((0u8..3, any::<bool>()), 1..40)) {
            let mut told = Told::default();
            let (mut lines, mut last, mut changes) = (0, None, 0);
            for (value, is_silent) in steps {
                let name = format!("docker:name:{value}");
                let said: &[&str] = if is_silent { &["unix:uid:0"] } else { &["unix:uid:0", &name] };
                let unknown: &[&str] = if is_silent { &["docker:name"] } else { &[] };
                let news = told.news(key(1), facts(said, unknown, &[]), |_| true);
                lines += usize::from(news.is_some());
                if !is_silent && last != Some(value) {
                    changes += 1;
                    last = Some(value);
                }
            }
            // The first line tells of the first value, or that there is none yet.
            prop_assert!(lines == changes || lines == changes + 1, "{lines} lines, {changes} changes");
        }
    }

    #[test]
    fn what_is_remembered_has_a_bound_and_keeps_those_who_live() {
        let mut told = Told::default();
        let most = u32::try_from(MOST).unwrap();
        let same = facts(&["unix:uid:0"], &[], &[]);
        for pid in 0..2 * most {
            assert_eq!(told.news(key(pid), same.clone(), |one| one.pid == 7), Some(Found::First));
            assert!(told.0.len() <= MOST);
        }
        assert_eq!(told.news(key(7), same.clone(), |_| true), None, "it lived all the time");
        for pid in 0..2 * most {
            told.news(key(pid), same.clone(), |_| true);
            assert!(told.0.len() <= MOST, "also where all of them live");
        }
    }
}
