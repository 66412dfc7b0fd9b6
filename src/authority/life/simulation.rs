//! Random histories of the life cycle: time that passes and steps, agents that die, operators that order
//! anything at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::authority::State;

const START: u64 = 1_800_000_000;
const TTL: u64 = 6_000;
const LEAD: Duration = Duration::from_secs(90);

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    StepBack(u64),
    StepForth(u64),
    /// The shell does what is due.
    Tend,
    Publish,
    Die,
    Prepare(AuthorityKind),
    Activate(AuthorityKind, bool),
    Taint(usize),
    Revoke(usize),
    Replaced,
}

fn kind() -> impl Strategy<Value = AuthorityKind> {
    prop_oneof![Just(AuthorityKind::X509), Just(AuthorityKind::Jwt), Just(AuthorityKind::Wit)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0_u64..2_000).prop_map(Op::Pass),
        1 => (0_u64..20_000).prop_map(Op::StepBack),
        1 => (0_u64..20_000).prop_map(Op::StepForth),
        6 => Just(Op::Tend),
        2 => Just(Op::Publish),
        1 => Just(Op::Die),
        1 => kind().prop_map(Op::Prepare),
        2 => (kind(), any::<bool>()).prop_map(|(kind, hurry)| Op::Activate(kind, hurry)),
        1 => any::<usize>().prop_map(Op::Taint),
        2 => any::<usize>().prop_map(Op::Revoke),
        1 => Just(Op::Replaced),
    ]
}

struct World {
    life: Life,
    now: Moment,
    made: u64,
    /// What verifiers were told of in this run, and when.
    published: BTreeMap<String, Duration>,
    revoked: BTreeSet<String>,
    /// State and end of everything ever seen.
    seen: BTreeMap<String, Record>,
    /// The largest wall time there was.
    latest: u64,
}

fn settings() -> LifeSettings {
    LifeSettings { kinds: vec![AuthorityKind::X509, AuthorityKind::Jwt], lead: LEAD, prompt: Vec::new() }
}

impl World {
    fn new() -> Self {
        Self {
            life: Life::restore(Vec::new(), settings(), START).unwrap(),
            now: Moment { wall: START, up: Duration::ZERO },
            made: 0,
            published: BTreeMap::new(),
            revoked: BTreeSet::new(),
            seen: BTreeMap::new(),
            latest: START,
        }
    }

    fn prepare(&mut self, kind: AuthorityKind) -> Result<(), Refused> {
        let id = format!("{kind}-{}", self.made);
        let record = Record::prepared(kind, id, self.now.wall + TTL, self.now.wall);
        self.life.add(record)?;
        self.made += 1;
        Ok(())
    }

    fn publish(&mut self) {
        self.life.mark_published(self.now.up);
        for record in self.life.records().iter().filter(|one| one.in_bundle()) {
            self.published.entry(record.id.clone()).or_insert(self.now.up);
        }
    }

    /// As the shell does: each step is published before the next.
    fn tend(&mut self) {
        for _ in 0..100 {
            match self.life.due(self.now) {
                None => return,
                Some(Step::Prepare(kind)) => self.prepare(kind).unwrap(),
                Some(Step::Activate { id, hurried }) => {
                    let given = self.now.up.saturating_sub(self.published[&id]);
                    assert_eq!(hurried, given < LEAD, "said so exactly when it is so");
                    if hurried {
                        let kind = self.life.records().iter().find(|one| one.id == id).unwrap().kind;
                        let active = self.life.active(kind);
                        assert!(active.is_none_or(|one| self.now.wall + 60 >= one.not_after), "for nothing");
                    }
                    self.life.take_over(&id, self.now.wall);
                    assert!(self.life.records().iter().any(|one| one.id == id && one.state == State::Active));
                }
                Some(Step::Expire(id)) => self.life.expire(&id, self.now.wall),
            }
            self.publish();
        }
        panic!("never done: {:?}", self.life);
    }

    fn name(&self, at: usize) -> String {
        let all = self.life.records();
        if all.is_empty() { "none".to_owned() } else { all[at % all.len()].id.clone() }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Pass(by) => {
                self.now.wall += by;
                self.now.up += Duration::from_secs(*by);
            }
            Op::StepBack(by) => self.now.wall -= by,
            Op::StepForth(by) => self.now.wall += by,
            Op::Tend => self.tend(),
            Op::Publish => self.publish(),
            Op::Die => {
                let text = serde_json::to_string(self.life.records()).unwrap();
                let records = serde_json::from_str(&text).unwrap();
                self.life = Life::restore(records, settings(), self.now.wall).unwrap();
                self.now.up = Duration::ZERO;
                self.published.clear();
                // The first thing a new run does, before it serves.
                self.publish();
                self.tend();
            }
            Op::Prepare(kind) => {
                let may = self.life.may_prepare(*kind);
                assert_eq!(self.prepare(*kind), may);
                assert!(*kind != AuthorityKind::Wit || may.is_err(), "switched off");
            }
            Op::Activate(kind, hurry) => {
                let prepared = self.life.prepared(*kind).cloned();
                if let Ok(id) = self.life.activate(*kind, *hurry, self.now) {
                    assert_eq!(prepared.unwrap().id, id);
                    let given = self.now.up - self.published[&id];
                    assert!(*hurry || given >= LEAD);
                }
            }
            Op::Taint(at) => drop(self.life.taint(&self.name(*at), self.now.wall)),
            Op::Revoke(at) => drop(self.life.revoke(&self.name(*at), self.now.wall)),
            Op::Replaced => {
                let leaving: Vec<_> = self.life.leaving().map(|one| one.id.clone()).collect();
                leaving.iter().for_each(|id| self.life.finish(id, self.now.wall));
            }
        }
        self.latest = self.latest.max(self.now.wall);
    }

    fn check(&mut self) {
        let mut active: BTreeMap<AuthorityKind, usize> = BTreeMap::new();
        for record in self.life.records() {
            if record.state == State::Active {
                *active.entry(record.kind).or_default() += 1;
            }
            assert!(record.in_bundle() || record.revoked_at.is_some());
            assert!(!self.revoked.contains(&record.id) || record.state == State::Revoked, "came back");
            if record.state == State::Revoked {
                self.revoked.insert(record.id.clone());
            }
            let before = self.seen.insert(record.id.clone(), record.clone());
            match (before.map(|one| one.state), record.state) {
                (None | Some(State::Prepared), _) => {}
                (Some(State::Active), next) => assert_ne!(next, State::Prepared),
                (Some(State::Old), next) => {
                    assert!(matches!(next, State::Old | State::Tainted | State::Revoked));
                }
                (Some(State::Tainted), next) => assert!(matches!(next, State::Tainted | State::Revoked)),
                (Some(State::Revoked), next) => assert_eq!(next, State::Revoked),
            }
        }
        assert!(active.values().all(|count| *count == 1));
        let had: BTreeSet<_> =
            self.seen.values().filter(|one| one.activated_at.is_some()).map(|one| one.kind).collect();
        assert!(had.iter().all(|kind| active.contains_key(kind)), "{had:?} {active:?}");
        // What is old or tainted and not over is still there: somebody may hold what it signed, and needs its CRL.
        let there: BTreeSet<_> = self.life.records().iter().map(|one| one.id.as_str()).collect();
        for gone in self.seen.values().filter(|one| !there.contains(one.id.as_str())) {
            let over = gone.not_after <= self.latest || gone.state == State::Revoked;
            assert!(over, "{gone:?} left the bundle early");
        }
    }
}

proptest! {
    #[test]
    fn the_rules_hold_in_every_history(ops in proptest::collection::vec(op(), 0..120)) {
        let mut world = World::new();
        world.tend();
        world.check();
        for op in &ops {
            world.run(op);
            world.check();
        }
    }
}

/// Left alone for a long time the cycle turns by itself, in good time.
#[test]
fn left_alone_every_successor_is_known_long_before_it_signs() {
    let mut world = World::new();
    world.tend();
    let first = world.life.active(AuthorityKind::X509).unwrap().clone();
    let mut signers = BTreeSet::from([first.id]);
    while world.now.wall < START + 20 * TTL {
        let wait = world.life.next(world.now).expect("there is always a next step");
        // Seconds, as the wall has them.
        world.run(&Op::Pass((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)));
        if let Some(Step::Activate { hurried, .. }) = world.life.due(world.now) {
            assert!(!hurried);
        }
        world.tend();
        world.check();
        let active = world.life.active(AuthorityKind::X509).unwrap();
        assert!(
            active.not_after >= world.now.wall + TTL / 6 - 1,
            "the active one never gets close to its end"
        );
        signers.insert(active.id.clone());
        assert!(world.life.records().len() <= 6, "what is over goes");
    }
    assert!((35..=42).contains(&signers.len()), "about one every half life: {}", signers.len());
}

#[test]
fn an_agent_that_slept_through_it_all_makes_a_new_one_at_once_and_says_so() {
    let mut world = World::new();
    world.tend();
    let old = world.life.active(AuthorityKind::Jwt).unwrap().id.clone();
    world.now.wall += 2 * TTL;
    assert_eq!(world.life.due(world.now), Some(Step::Prepare(AuthorityKind::X509)));
    world.tend();
    world.check();
    assert_ne!(world.life.active(AuthorityKind::Jwt).unwrap().id, old);
    assert!(world.life.records().iter().all(|one| one.id != old));
}

#[test]
fn orders_that_do_not_fit_say_what_would() {
    let mut world = World::new();
    world.tend();
    let id = world.life.active(AuthorityKind::X509).unwrap().id.clone();
    let words = |refused: Refused| refused.to_string();
    assert!(words(world.life.taint(&id, START).unwrap_err()).contains("prepare and activate"));
    assert!(words(world.life.revoke(&id, START).unwrap_err()).contains("successor first"));
    let none = world.life.activate(AuthorityKind::X509, false, world.now).unwrap_err();
    assert!(words(none).contains("mayfly authority prepare x509"));
    world.prepare(AuthorityKind::X509).unwrap();
    let unpublished = world.life.activate(AuthorityKind::X509, true, world.now);
    assert!(matches!(unpublished, Err(Refused::TooEarly { .. })), "not even in a hurry");
    world.publish();
    let early = world.life.activate(AuthorityKind::X509, false, world.now).unwrap_err();
    assert!(words(early).contains("0 s of the 90 s"));
    let again = world.life.may_prepare(AuthorityKind::X509).unwrap_err();
    assert!(words(again).contains("prepared already"));
    world.life.activate(AuthorityKind::X509, true, world.now).unwrap();
    assert_eq!(world.life.revoke(&id, START), Ok(Revoking::WhenReplaced));
    assert_eq!(world.life.leaving().count(), 1);
    world.life.finish(&id, START);
    assert!(matches!(world.life.revoke(&id, START), Err(Refused::State { state: State::Revoked, .. })));
    assert!(words(world.life.taint("nobody", START).unwrap_err()).contains("authority show"));
}

#[test]
fn contradicting_records_are_refused() {
    let record = |id: &str, state| Record {
        state,
        ..Record::prepared(AuthorityKind::X509, id.to_owned(), START + TTL, START)
    };
    let twice = Life::restore(vec![record("a", State::Old), record("a", State::Active)], settings(), START);
    assert_eq!(twice.unwrap_err(), Inconsistent::Twice("a".to_owned()));
    let two = Life::restore(vec![record("a", State::Active), record("b", State::Active)], settings(), START);
    assert_eq!(two.unwrap_err(), Inconsistent::TwoActive(AuthorityKind::X509));
}

#[test]
fn a_kind_that_is_switched_off_loses_its_authorities() {
    let record = Record::prepared(AuthorityKind::Wit, "w".to_owned(), START + TTL, START);
    let life = Life::restore(vec![record], settings(), START).unwrap();
    assert_eq!(life.records()[0].state, State::Revoked);
    assert!(life.kinds().iter().all(|kind| *kind != AuthorityKind::Wit));
}
