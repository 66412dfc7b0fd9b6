//! The kill switch: nothing is decided in favour of what is frozen. Pure: no clock, no disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use super::reach::Reach;
use super::{Catalogue, Object, Principal, Question};

/// What stands still.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Frozen {
    /// Everything.
    All,
    /// One agent, by its SPIFFE ID, whatever it asks for.
    Agent(String),
    /// One task and every one below it.
    Task(String),
    /// One target, for everybody: by its name, or by an audience that is no target's.
    Target(String),
}

/// Who froze something, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Freeze {
    /// The operator, such as `uid 0`.
    pub by: String,
    /// In the operator's words.
    pub reason: String,
    /// Since when.
    pub at: SystemTime,
    /// What was given already is taken back, too.
    pub revoke: bool,
    /// Of a target: every audience that it has had since it was frozen.
    pub audiences: BTreeSet<String>,
}

/// What a thaw did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Thawed {
    /// It was not frozen.
    #[default]
    Nothing,
    /// It goes on.
    Done,
    /// It is everything, and a second person must say so, too.
    NeedsAnother,
}

/// Everything that is frozen.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Freezes {
    all: BTreeMap<Frozen, Freeze>,
    /// What its targets stand for.
    reach: Reach,
    /// The first who wants everything to go on, and when that was said.
    first: Option<(u32, SystemTime)>,
    /// The flag file is there.
    flag: bool,
}

impl Freezes {
    /// Freezes. What is frozen already stays so, by whoever was first; that it is revoked, too, is added.
    pub fn freeze(&mut self, what: Frozen, freeze: Freeze) {
        let revoke = freeze.revoke;
        self.all.entry(what).or_insert(freeze).revoke |= revoke;
        // Whoever wanted everything to go on did not know of this.
        self.first = None;
    }

    /// Finds out what frozen targets stand for now.
    pub(super) fn learn(&mut self, catalogue: &Catalogue) {
        self.reach = Reach::learn(&mut self.all, catalogue);
    }

    /// What an operator wants frozen, as it is kept: a target by its name, so that it stays frozen whatever its audience.
    pub fn to_freeze(what: Frozen, catalogue: &Catalogue) -> Frozen {
        let Frozen::Target(word) = &what else { return what };
        let named = catalogue.target_for(word).filter(|_| catalogue.target(word).is_none());
        named.map_or_else(|| what.clone(), |target| Frozen::Target(target.name.clone()))
    }

    /// What an operator wants thawed: of a target whatever was frozen that stops it, by what it is called now or was.
    pub fn to_thaw(&self, what: Frozen, catalogue: &Catalogue) -> Frozen {
        let named = Self::to_freeze(what.clone(), catalogue);
        if self.all.contains_key(&what) || self.all.contains_key(&named) {
            return if self.all.contains_key(&what) { what } else { named };
        }
        let (Frozen::Target(word), Frozen::Target(name)) = (&what, &named) else { return what };
        let mut stops = self.reach.of_name(name).chain(self.reach.of_audience(word));
        stops.next().map_or_else(|| named.clone(), |word| Frozen::Target(word.clone()))
    }

    /// Lets something go on. Everything only goes on when two different people have said so within ten minutes.
    pub fn thaw(&mut self, what: &Frozen, uid: u32, now: SystemTime) -> Thawed {
        if !self.all.contains_key(what) {
            return Thawed::Nothing;
        }
        if *what == Frozen::All {
            let fresh = |at| now.duration_since(at).is_ok_and(|age| age <= SECOND);
            match self.first {
                Some((first, at)) if first != uid && fresh(at) => {}
                _ => {
                    self.first = Some((uid, now));
                    return Thawed::NeedsAnother;
                }
            }
            self.first = None;
        }
        self.all.remove(what);
        Thawed::Done
    }

    /// Lets something go on by the word of one, where there is nobody else: everything, too.
    pub fn thaw_alone(&mut self, what: &Frozen) -> Thawed {
        self.first = None;
        if self.all.remove(what).is_some() { Thawed::Done } else { Thawed::Nothing }
    }

    /// Lets something go on that was thawed.
    pub fn lift(&mut self, what: &Frozen) {
        self.all.remove(what);
        if *what == Frozen::All {
            self.first = None;
        }
    }

    /// The flag file came or went; whether that is news.
    pub fn set_flag(&mut self, raised: bool) -> bool {
        std::mem::replace(&mut self.flag, raised) != raised
    }

    /// Whether the flag file freezes everything.
    pub fn is_flagged(&self) -> bool {
        self.flag
    }

    /// Whether a question is answered no before any policy is asked.
    pub fn stops(&self, question: &Question) -> bool {
        self.flag || self.of(question).next().is_some()
    }

    /// Whether one of these agents, one of these tasks or this target is frozen.
    pub fn touches<'a>(
        &self,
        agents: impl IntoIterator<Item = &'a str>,
        tasks: impl IntoIterator<Item = &'a str>,
        target: Option<&'a str>,
    ) -> bool {
        if self.is_empty() {
            return false;
        }
        let agents = agents.into_iter().map(|id| Frozen::Agent(id.to_owned()));
        let tasks = tasks.into_iter().map(|id| Frozen::Task(id.to_owned()));
        let mut all = std::iter::once(Frozen::All).chain(agents).chain(tasks);
        let is_target = |name: &str| self.reach.of_name(name).next().is_some();
        self.flag || all.any(|what| self.all.contains_key(&what)) || target.is_some_and(is_target)
    }

    /// Whether what was given for such a question is to be taken back.
    pub fn revokes(&self, question: &Question) -> bool {
        self.of(question).any(|freeze| freeze.revoke)
    }

    /// Whether an audience is one of a frozen target.
    pub fn stops_audience(&self, audience: &str) -> bool {
        self.reach.of_audience(audience).next().is_some()
    }

    /// Whether some target is frozen.
    pub fn has_targets(&self) -> bool {
        self.all.keys().any(|what| matches!(what, Frozen::Target(_)))
    }

    /// The audiences that a frozen target stands for.
    pub fn audiences(&self, what: &Frozen) -> BTreeSet<String> {
        self.all.get(what).map(|freeze| freeze.audiences.clone()).unwrap_or_default()
    }

    /// Everything that is frozen by order.
    pub fn iter(&self) -> impl Iterator<Item = (&Frozen, &Freeze)> {
        self.all.iter()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && !self.flag
    }

    fn of<'a>(&'a self, question: &'a Question) -> impl Iterator<Item = &'a Freeze> {
        let agents = std::iter::once(match &question.principal {
            Principal::Workload(workload) => Some(workload.spiffe_id.as_str()),
            Principal::User(_) => None,
        });
        let handed = match &question.object {
            Object::Agent(id) => Some(id.as_str()),
            _ => None,
        };
        let chain = question.circumstances.chain.iter().map(|id| Some(id.as_str()));
        let agents = agents.chain([handed]).chain(chain).flatten();
        let agents = agents.map(|id| Frozen::Agent(id.to_owned()));
        let own = question.task.iter().flat_map(|task| [&task.id, &task.root]);
        let tasks = own.chain(&question.circumstances.tasks_above);
        let tasks = tasks.map(|id| Frozen::Task(id.clone()));
        // By its name where a task asks, and by its audience where somebody asks for a token alone.
        let targets: Vec<&String> = match &question.object {
            Object::Target(name) => self.reach.of_name(name).collect(),
            Object::Identity(identity) => {
                identity.audiences.iter().flat_map(|audience| self.reach.of_audience(audience)).collect()
            }
            Object::Agent(_) | Object::Template(_) => Vec::new(),
        };
        let targets = targets.into_iter().map(|word| Frozen::Target(word.clone()));
        let all = std::iter::once(Frozen::All).chain(agents).chain(tasks).chain(targets);
        // Nothing is looked up where nothing is frozen, which is nearly always.
        let all = (!self.all.is_empty()).then_some(all).into_iter().flatten();
        all.filter_map(|what| self.all.get(&what))
    }
}

impl std::fmt::Display for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::Agent(id) => write!(f, "agent {id}"),
            Self::Task(id) => write!(f, "task {id}"),
            Self::Target(name) => write!(f, "target {name}"),
        }
    }
}

/// How long the first word for a thaw of everything waits for the second.
const SECOND: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::id::SpiffeId;
    use crate::policy::{Action, Catalogue, Sketch};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn freeze(revoke: bool) -> Freeze {
        Freeze {
            by: "uid 0".to_owned(),
            reason: String::new(),
            at: at(0),
            revoke,
            audiences: BTreeSet::new(),
        }
    }

    fn id(n: u8) -> SpiffeId {
        SpiffeId::parse(format!("spiffe://example.org/a{n}").as_bytes()).unwrap()
    }

    /// Agent `n` reads target `t` in a task below agent `c`, whose own task is no root.
    fn question(n: u8, t: u8, c: u8) -> Question {
        let mut sketch = Sketch {
            agent: Some(id(n)),
            action: Some(Action::Read),
            target: Some(format!("t{t}")),
            ..Sketch::default()
        };
        sketch.circumstances.chain = vec![id(c)];
        sketch.circumstances.tasks_above = vec!["tsk_middle".to_owned()];
        sketch.question(&Catalogue::default(), at(0)).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Freeze(Frozen, bool),
        Thaw(Frozen, u32),
        Flag(bool),
        Wait(u16),
    }

    fn what() -> impl Strategy<Value = Frozen> {
        prop_oneof![
            Just(Frozen::All),
            (0..3u8).prop_map(|n| Frozen::Agent(id(n).to_string())),
            (0..2u8).prop_map(|n| Frozen::Target(format!("t{n}"))),
            Just(Frozen::Task("tsk_example".to_owned())),
            Just(Frozen::Task("tsk_middle".to_owned())),
            Just(Frozen::Task("tsk_elsewhere".to_owned())),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (what(), any::<bool>()).prop_map(|(what, revoke)| Step::Freeze(what, revoke)),
            3 => (what(), 0..3u32).prop_map(|(what, uid)| Step::Thaw(what, uid)),
            1 => any::<bool>().prop_map(Step::Flag),
            1 => (0..700u16).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn what_is_frozen_stops_until_it_is_thawed_and_nothing_else_stops(
            steps in proptest::collection::vec(step(), 0..40)
        ) {
            let (mut freezes, mut model, mut flag) = (Freezes::default(), BTreeMap::new(), false);
            let (mut now, mut first) = (0u64, None::<(u32, u64)>);
            for step in steps {
                match step {
                    Step::Freeze(what, revoke) => {
                        freezes.freeze(what.clone(), freeze(revoke));
                        *model.entry(what).or_insert(false) |= revoke;
                        first = None;
                    }
                    Step::Thaw(what, uid) => {
                        let thawed = freezes.thaw(&what, uid, at(now));
                        let second = first.is_some_and(|(one, then)| one != uid && now - then <= 600);
                        let expected = match (model.contains_key(&what), what == Frozen::All) {
                            (false, _) => Thawed::Nothing,
                            (true, true) if !second => Thawed::NeedsAnother,
                            (true, _) => Thawed::Done,
                        };
                        prop_assert_eq!(thawed, expected);
                        match expected {
                            Thawed::NeedsAnother => first = Some((uid, now)),
                            Thawed::Done => {
                                model.remove(&what);
                                if what == Frozen::All {
                                    first = None;
                                }
                            }
                            Thawed::Nothing => {}
                        }
                    }
                    Step::Flag(raised) => {
                        prop_assert_eq!(freezes.set_flag(raised), flag != raised);
                        flag = raised;
                    }
                    Step::Wait(seconds) => now += u64::from(seconds),
                }
                freezes.learn(&Catalogue::default());
                for (n, t, c) in [(0, 0, 1), (1, 1, 2), (2, 0, 0), (2, 1, 2)] {
                    let concerns = |what: &Frozen| match what {
                        Frozen::All => true,
                        Frozen::Agent(one) => *one == id(n).to_string() || *one == id(c).to_string(),
                        Frozen::Target(one) => *one == format!("t{t}"),
                        Frozen::Task(one) => one == "tsk_example" || one == "tsk_middle",
                    };
                    let hit: Vec<bool> =
                        model.iter().filter(|(what, _)| concerns(what)).map(|(_, revoke)| *revoke).collect();
                    let question = question(n, t, c);
                    prop_assert_eq!(freezes.stops(&question), flag || !hit.is_empty());
                    prop_assert_eq!(freezes.revokes(&question), hit.contains(&true));
                }
                prop_assert_eq!(freezes.is_empty(), model.is_empty() && !flag);
            }
        }
    }

    #[test]
    fn one_person_alone_never_thaws_everything() {
        let mut freezes = Freezes::default();
        freezes.freeze(Frozen::All, freeze(false));
        assert_eq!(freezes.thaw(&Frozen::All, 1, at(0)), Thawed::NeedsAnother);
        assert_eq!(freezes.thaw(&Frozen::All, 1, at(1)), Thawed::NeedsAnother);
        assert_eq!(freezes.thaw(&Frozen::All, 2, at(602)), Thawed::NeedsAnother, "too late");
        assert_eq!(freezes.thaw(&Frozen::All, 1, at(603)), Thawed::Done);
        assert!(freezes.is_empty());
    }

    fn catalogue(targets: &[(&str, &str)]) -> Catalogue {
        let each = targets.iter().map(|(name, audience)| {
            format!("[[targets]]\nname = \"{name}\"\naudience = \"{audience}\"\ndata_class = \"c\"\nowner = \"o\"\n")
        });
        let text: String = each.collect();
        crate::policy::parse_catalogue(vec![("c.toml", text.as_bytes())], None)
            .unwrap_or_else(|found| panic!("{found}"))
    }

    /// `None`: of the target by its name, as a task asks; else for that audience, as the Workload API asks.
    fn is_stopped(freezes: &Freezes, name: Option<&str>, audience: &str) -> bool {
        let mut question = question(0, 0, 1);
        question.object = match name {
            Some(name) => Object::Target(name.to_owned()),
            None => Object::Identity(crate::policy::IdentityFacts {
                spiffe_id: id(0),
                kind: crate::policy::Kind::Jwt,
                audiences: [audience.to_owned(), "urn:more".to_owned()].into(),
                entry: crate::id::EntryId::new("e"),
            }),
        };
        let stops = freezes.stops(&question);
        assert_eq!(freezes.revokes(&question), stops, "every freeze here revokes");
        stops
    }

    #[test]
    fn a_frozen_target_is_its_name_and_every_audience_that_it_has_had_since() {
        let mut freezes = Freezes::default();
        let first = catalogue(&[("wiki", "urn:wiki"), ("other", "urn:other")]);
        freezes.learn(&first);
        let wiki = Frozen::Target("wiki".to_owned());
        assert_eq!(
            Freezes::to_freeze(Frozen::Target("urn:wiki".to_owned()), &first),
            wiki,
            "by its audience"
        );
        freezes.freeze(wiki.clone(), freeze(true));
        freezes.learn(&first);
        let stopped = |freezes: &Freezes| {
            let names = ["wiki", "other", "wiki2"].map(|name| is_stopped(freezes, Some(name), ""));
            let audiences = ["urn:wiki", "urn:new", "urn:other"].map(|one| is_stopped(freezes, None, one));
            assert_eq!(freezes.touches([], [], Some("wiki2")), names[2]);
            assert_eq!(freezes.stops_audience("urn:new"), audiences[1]);
            (names, audiences)
        };
        assert_eq!(stopped(&freezes), ([true, false, false], [true, false, false]));
        // The same target with another audience: that one is frozen, and the one before still is.
        freezes.learn(&catalogue(&[("wiki", "urn:new"), ("other", "urn:other")]));
        assert_eq!(stopped(&freezes), ([true, false, false], [true, true, false]));
        // Another name for the same audience thaws nothing.
        let renamed = catalogue(&[("wiki2", "urn:new"), ("other", "urn:other")]);
        freezes.learn(&renamed);
        assert_eq!(stopped(&freezes), ([true, false, true], [true, true, false]));
        for word in ["wiki", "wiki2", "urn:wiki", "urn:new"] {
            assert_eq!(freezes.to_thaw(Frozen::Target(word.to_owned()), &renamed), wiki, "by {word}");
        }
        assert_eq!(freezes.thaw(&wiki, 0, at(0)), Thawed::Done);
        freezes.learn(&renamed);
        assert_eq!(stopped(&freezes), ([false; 3], [false; 3]));
    }

    #[test]
    fn an_audience_of_no_target_is_frozen_by_itself_and_so_is_a_target_that_comes_to_have_it() {
        let mut freezes = Freezes::default();
        let word = Frozen::Target("urn:wiki".to_owned());
        assert_eq!(Freezes::to_freeze(word.clone(), &Catalogue::default()), word);
        freezes.freeze(word.clone(), freeze(true));
        freezes.learn(&Catalogue::default());
        assert!(is_stopped(&freezes, None, "urn:wiki") && !is_stopped(&freezes, Some("wiki"), ""));
        let now = catalogue(&[("wiki", "urn:wiki")]);
        freezes.learn(&now);
        assert!(is_stopped(&freezes, None, "urn:wiki") && is_stopped(&freezes, Some("wiki"), ""));
        let by_name = Frozen::Target("wiki".to_owned());
        assert_eq!(freezes.to_thaw(by_name.clone(), &now), word);
        // Frozen by its name beside that, it stays frozen when it has another audience.
        assert_eq!(Freezes::to_freeze(word.clone(), &now), by_name);
        freezes.freeze(by_name.clone(), freeze(true));
        assert_eq!(freezes.to_thaw(by_name.clone(), &now), by_name);
        let later = catalogue(&[("wiki", "urn:new")]);
        freezes.learn(&later);
        assert_eq!(freezes.thaw(&freezes.clone().to_thaw(word, &later), 0, at(0)), Thawed::Done);
        freezes.learn(&later);
        assert!(is_stopped(&freezes, Some("wiki"), "") && is_stopped(&freezes, None, "urn:new"));
    }
}
