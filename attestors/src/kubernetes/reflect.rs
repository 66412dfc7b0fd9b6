//! What to ask an API server next: list, then watch, then watch again. Pure: no clock, no I/O.
//!
//! The first list takes what the server has in memory, which is cheap for it. Every later one asks for nothing older
//! than what was seen already: behind one address several servers stand, and one that lags must not make a living pod
//! look deleted. A server that cannot serve that version (its store was restored from a backup) is asked for the
//! newest there is.

use std::time::Duration;

/// Follows one collection.
#[derive(Debug, Default)]
pub(crate) struct Reflector {
    phase: Phase,
    /// The last version seen, in the server's opaque words.
    last: Option<String>,
    /// The next list asks for the newest.
    newest: bool,
    /// Since a watch last lived.
    backoff: Backoff,
}

/// How long to wait after failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
enum Phase {
    /// The rest of a list begins there.
    List(Option<String>, usize),
    #[default]
    Start,
    Watch,
}

/// The next request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Ask {
    /// A page of a list: of which version, and from where on.
    List(Version, Option<String>),
    /// Everything that happens from this version on.
    Watch(String),
}

/// How fresh a list must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Version {
    /// What is at hand (`resourceVersion=0`).
    Any,
    /// Not older than this.
    NotOlderThan(String),
    /// The newest (no `resourceVersion`).
    Newest,
}

/// How a request ended that brought no page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// The watch ended in good order: the server ends each after some minutes.
    Over,
    /// 410: what was asked for is no longer kept.
    Expired,
    /// 504: the server has not seen that version yet.
    Behind,
    /// What came cannot be read: what was missed is not known.
    Garbled,
    /// Anything else.
    Failed,
}

impl Reflector {
    /// What to ask now.
    pub(crate) fn ask(&self) -> Ask {
        match (&self.phase, &self.last) {
            (Phase::Watch, Some(last)) => Ask::Watch(last.clone()),
            // The version is part of where a list goes on.
            (Phase::List(Some(from), _), _) => Ask::List(Version::Newest, Some(from.clone())),
            _ if self.newest => Ask::List(Version::Newest, None),
            (_, Some(last)) => Ask::List(Version::NotOlderThan(last.clone()), None),
            (_, None) => Ask::List(Version::Any, None),
        }
    }

    /// A page came. Whether it was the last; `false` also when there are more than any list has, which ends it.
    pub(crate) fn page(&mut self, version: String, next: Option<String>) -> bool {
        let pages = if let Phase::List(_, pages) = self.phase { pages + 1 } else { 1 };
        match next {
            Some(next) => {
                self.phase = Phase::List(Some(next), pages);
                false
            }
            None => {
                self.phase = Phase::Watch;
                self.last = Some(version);
                self.newest = false;
                true
            }
        }
    }

    /// How many pages of the present list have come.
    pub(crate) fn pages(&self) -> usize {
        if let Phase::List(_, pages) = self.phase { pages } else { 0 }
    }

    /// The watch has told of something up to this version.
    pub(crate) fn moved(&mut self, version: String) {
        self.backoff = Backoff::default();
        if !version.is_empty() {
            self.last = Some(version);
        }
    }

    /// A request ended after `lived`. How long to wait before the next: see [`Backoff::next`].
    pub(crate) fn ended(&mut self, end: End, lived: Duration, dice: u32) -> Duration {
        if end == End::Over && lived >= SOUND {
            self.backoff = Backoff::default();
            return Duration::ZERO;
        }
        match (end, &self.phase) {
            (End::Expired, Phase::Watch) | (End::Garbled, _) => self.phase = Phase::Start,
            (End::Expired | End::Behind, _) => (self.phase, self.newest) = (Phase::Start, true),
            (End::Failed | End::Over, Phase::List(..)) => self.phase = Phase::Start,
            (End::Failed | End::Over, _) => {}
        }
        self.backoff.next(dice)
    }
}

impl Backoff {
    /// A random part of a bound that doubles with each failure, so that a thousand agents do not come back in step.
    /// `dice` is any number.
    pub(crate) fn next(&mut self, dice: u32) -> Duration {
        let bound = LEAST.saturating_mul(1 << self.failures.min(16)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(f64::from(dice) / f64::from(u32::MAX))
    }
}

/// A random number; a constant would only make agents come in step.
pub(crate) fn dice() -> u32 {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).ok();
    u32::from_ne_bytes(bytes)
}

/// A watch that lived so long was no accident of this moment.
pub(crate) const SOUND: Duration = Duration::from_secs(5);
const LEAST: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(300);
    const SHORT: Duration = Duration::from_millis(1);

    fn watching(version: &str) -> Reflector {
        let mut reflector = Reflector::default();
        assert!(reflector.page(version.to_owned(), None));
        reflector
    }

    #[test]
    fn it_lists_from_memory_page_by_page_and_watches_from_there() {
        let mut reflector = Reflector::default();
        assert_eq!(reflector.ask(), Ask::List(Version::Any, None));
        assert!(!reflector.page("7".to_owned(), Some("more".to_owned())));
        assert_eq!(reflector.ask(), Ask::List(Version::Newest, Some("more".to_owned())));
        assert!(reflector.page("7".to_owned(), None));
        assert_eq!(reflector.ask(), Ask::Watch("7".to_owned()));
        reflector.moved("9".to_owned());
        assert_eq!(reflector.ended(End::Over, LONG, u32::MAX), Duration::ZERO);
        assert_eq!(reflector.ask(), Ask::Watch("9".to_owned()), "a watch that ended goes on where it was");
    }

    #[test]
    fn what_expired_is_listed_again_and_never_older_than_what_was_seen() {
        let mut reflector = watching("9");
        reflector.ended(End::Expired, LONG, 0);
        assert_eq!(reflector.ask(), Ask::List(Version::NotOlderThan("9".to_owned()), None));
        reflector.ended(End::Behind, SHORT, 0);
        assert_eq!(reflector.ask(), Ask::List(Version::Newest, None), "a store that was set back");
        assert!(reflector.page("3".to_owned(), None));
        assert_eq!(reflector.ask(), Ask::Watch("3".to_owned()));
    }

    #[test]
    fn a_list_that_expires_half_way_begins_anew() {
        let mut reflector = Reflector::default();
        reflector.page("7".to_owned(), Some("more".to_owned()));
        reflector.ended(End::Expired, SHORT, 0);
        assert_eq!(reflector.ask(), Ask::List(Version::Newest, None));
        assert_eq!(reflector.pages(), 0);
    }

    #[test]
    fn what_cannot_be_read_is_listed_again_and_what_broke_off_is_watched_again() {
        let mut reflector = watching("9");
        reflector.ended(End::Failed, LONG, 0);
        assert_eq!(reflector.ask(), Ask::Watch("9".to_owned()));
        reflector.ended(End::Garbled, LONG, 0);
        assert_eq!(reflector.ask(), Ask::List(Version::NotOlderThan("9".to_owned()), None));
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_are_random_below_it() {
        let mut reflector = watching("9");
        let pauses: Vec<Duration> = (0..12).map(|_| reflector.ended(End::Failed, SHORT, u32::MAX)).collect();
        assert_eq!(pauses[..3], [LEAST, LEAST * 2, LEAST * 4]);
        assert_eq!(pauses[11], MOST);
        assert_eq!(reflector.ended(End::Failed, SHORT, 0), Duration::ZERO);
        reflector.moved("10".to_owned());
        assert_eq!(reflector.ended(End::Failed, SHORT, u32::MAX), LEAST, "a watch that told something works");
    }

    #[test]
    fn a_server_that_ends_every_watch_at_once_is_not_hammered() {
        let mut reflector = watching("9");
        let total: Duration = (0..10).map(|_| reflector.ended(End::Over, SHORT, u32::MAX / 2)).sum();
        assert!(total > Duration::from_secs(40), "{total:?}");
    }

    /// Some API servers over one store, each behind it by as much as it likes, as those of a real control plane.
    #[derive(Default)]
    struct Store {
        /// Every change there ever was, by version: name, and whether it is there afterwards.
        log: BTreeMap<u64, (u8, bool)>,
        compacted: u64,
    }

    impl Store {
        fn version(&self) -> u64 {
            self.log.keys().next_back().copied().unwrap_or(1)
        }

        fn change(&mut self, name: u8) {
            let is_there = self.at(self.version()).contains(&name);
            self.log.insert(self.version() + 1, (name, !is_there));
        }

        fn at(&self, version: u64) -> BTreeSet<u8> {
            let mut names = BTreeSet::new();
            for (name, is_there) in self.log.range(..=version).map(|(_, change)| *change) {
                if is_there {
                    names.insert(name)
                } else {
                    names.remove(&name)
                };
            }
            names
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Change(u8),
        Compact,
        /// One request, to a server that lags by so much, which breaks off after so many events.
        Ask(u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6_u8).prop_map(Step::Change),
            1 => Just(Step::Compact),
            6 => (0..5_u64, 0..4_usize).prop_map(|(lag, events)| Step::Ask(lag, events)),
        ]
    }

    /// Carries out one request; `seen` is what the client believes, of which version.
    fn serve(
        store: &Store,
        lag: u64,
        events: usize,
        reflector: &mut Reflector,
        seen: &mut (u64, BTreeSet<u8>),
    ) {
        let here = store.version().saturating_sub(lag).max(1);
        match reflector.ask() {
            Ask::List(version, _) => {
                let at = match version {
                    Version::Any => here,
                    Version::Newest => store.version(),
                    Version::NotOlderThan(least) if least.parse::<u64>().unwrap() <= here => here,
                    Version::NotOlderThan(_) => {
                        reflector.ended(End::Behind, SHORT, 0);
                        return;
                    }
                };
                assert!(at >= seen.0, "a list of {at} after {} was seen", seen.0);
                *seen = (at, store.at(at));
                reflector.page(at.to_string(), None);
            }
            Ask::Watch(from) => {
                let from: u64 = from.parse().unwrap();
                if from < store.compacted {
                    reflector.ended(End::Expired, SHORT, 0);
                    return;
                }
                let later = (Bound::Excluded(from), Bound::Included(here.max(from)));
                for (version, (name, is_there)) in store.log.range(later).take(events) {
                    if *is_there {
                        seen.1.insert(*name)
                    } else {
                        seen.1.remove(name)
                    };
                    seen.0 = *version;
                    reflector.moved(version.to_string());
                }
                reflector.ended(End::Failed, SHORT, 0);
            }
        }
    }

    proptest! {
        /// Whatever breaks, it never goes back, and in the end it knows what the store knows.
        #[test]
        fn it_never_goes_back_and_catches_up(steps in prop::collection::vec(step(), 0..80)) {
            let (mut store, mut reflector, mut seen) = (Store::default(), Reflector::default(), (0, BTreeSet::new()));
            for step in steps {
                match step {
                    Step::Change(name) => store.change(name),
                    Step::Compact => store.compacted = store.version(),
                    Step::Ask(lag, events) => serve(&store, lag, events, &mut reflector, &mut seen),
                }
            }
            for _ in 0..4 {
                serve(&store, 0, usize::MAX, &mut reflector, &mut seen);
            }
            prop_assert_eq!(seen, (store.version(), store.at(store.version())));
        }
    }
}
