//! The kill switch: nothing is decided in favour of what is frozen. Pure: no clock, no disk.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::{Object, Principal, Question};

/// What stands still.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Frozen {
    /// Everything.
    All,
    /// One agent, by its SPIFFE ID, whatever it asks for.
    Agent(String),
    /// One task and every one below it.
    Task(String),
    /// One target, for everybody.
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
        let target = target.map(|name| Frozen::Target(name.to_owned()));
        let mut all = std::iter::once(Frozen::All).chain(agents).chain(tasks).chain(target);
        self.flag || all.any(|what| self.all.contains_key(&what))
    }

    /// Whether what was given for such a question is to be taken back.
    pub fn revokes(&self, question: &Question) -> bool {
        self.of(question).any(|freeze| freeze.revoke)
    }

    /// Frozen targets.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.all.keys().filter_map(|what| match what {
            Frozen::Target(name) => Some(name.as_str()),
            _ => None,
        })
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
        let target = match &question.object {
            Object::Target(name) => Some(Frozen::Target(name.clone())),
            _ => None,
        };
        let all = std::iter::once(Frozen::All).chain(agents).chain(tasks).chain(target);
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
        Freeze { by: "uid 0".to_owned(), reason: String::new(), at: at(0), revoke }
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
}
