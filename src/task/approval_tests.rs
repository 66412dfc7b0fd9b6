//! What an approval is good for, and who can give it, on chosen and on random histories.

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::clock::{Clock as _, SystemClock};

fn task(n: u8) -> TaskId {
    TaskId::from_bytes([n; 16])
}

fn name(n: u64) -> ApprovalId {
    ApprovalId::new(n, [0; 10])
}

fn subject(n: u8) -> Subject {
    Subject {
        agent: "spiffe://example.org/a".to_owned(),
        task: task(n),
        action: Action::Write,
        target: "wiki".to_owned(),
        operation: Some([7; 32]),
    }
}

fn groups(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn jury(quorum: u32) -> Jury {
    Jury { groups: groups(&["oncall"]), quorum, not: Some("alice".to_owned()) }
}

fn vote(approve: bool) -> Vote {
    let by = String::new();
    Vote { shown_by: by.clone(), by, approve, at: UNIX_EPOCH, reason: String::new() }
}

struct World {
    book: Approvals,
    start: Instant,
    oncall: BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        Self {
            book: Approvals::default(),
            start: SystemClock.monotonic(),
            oncall: groups(&["oncall", "staff"]),
        }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn ask(&mut self, n: u64, subject: Subject, quorum: u32, at: u64) -> Result<(ApprovalId, bool), Refused> {
        let now = self.at(at);
        let asked = self.book.request(name(n), subject, jury(quorum), String::new(), now, UNIX_EPOCH);
        asked.map(|(approval, new)| (approval.id, new))
    }

    fn answer(&mut self, n: u64, who: &str, approve: bool, at: u64) -> Result<ApprovalState, ApprovalError> {
        let (now, groups) = (self.at(at), self.oncall.clone());
        let person = Person { name: who, groups: &groups };
        self.book.vote(name(n), person, Some([7; 32]), vote(approve), now).map(|approval| approval.state)
    }

    fn spend(&mut self, n: u64, subject: &Subject, at: u64) -> Result<(), ApprovalError> {
        let now = self.at(at);
        self.book.spend(name(n), subject, now).map(drop)
    }
}

#[test]
fn an_answer_that_is_weighed_is_none_yet() {
    let mut world = World::new();
    world.ask(1, subject(1), 1, 0).unwrap();
    let (now, groups) = (world.at(1), world.oncall.clone());
    let person = Person { name: "bob", groups: &groups };
    let weighed = world.book.weigh(name(1), person, Some([7; 32]), vote(true), now).unwrap();
    assert!(matches!(weighed.state, ApprovalState::Approved(_)));
    assert_eq!(world.book.get(name(1)).unwrap().state, ApprovalState::Pending);
    assert!(world.spend(1, &subject(1), 2).is_err());
    assert_eq!(world.book.has_room_for("spiffe://example.org/a", now), Ok(()));
    for n in 2..=12 {
        let own = Subject { task: task(u8::try_from(n).unwrap()), ..subject(1) };
        world.ask(n, own, 1, 1).unwrap();
    }
    assert!(world.book.has_room_for("spiffe://example.org/a", now).is_err(), "twelve wait");
    assert_eq!(world.book.has_room_for("spiffe://example.org/b", now), Ok(()));
}

#[test]
fn an_approval_is_good_once_and_only_for_exactly_what_it_is_for() {
    let mut world = World::new();
    world.ask(1, subject(1), 1, 0).unwrap();
    assert_eq!(world.spend(1, &subject(1), 1), Err(ApprovalError::State(ApprovalState::Pending)));
    world.answer(1, "bob", true, 1).unwrap();
    let tampered = [
        Subject { agent: "spiffe://example.org/b".to_owned(), ..subject(1) },
        Subject { action: Action::Delete, ..subject(1) },
        Subject { action: Action::Begin, ..subject(1) },
        Subject { action: Action::Delegate, ..subject(1) },
        Subject { target: "wiki2".to_owned(), ..subject(1) },
        Subject { operation: Some([8; 32]), ..subject(1) },
        Subject { operation: None, ..subject(1) },
    ];
    for other in &tampered {
        assert_eq!(world.spend(1, other, 2), Err(ApprovalError::Other), "{other:?}");
    }
    assert_eq!(world.spend(1, &subject(2), 2), Err(ApprovalError::Unknown), "another task learns nothing");
    assert_eq!(world.spend(1, &subject(1), 2), Ok(()));
    assert_eq!(world.spend(1, &subject(1), 2), Err(ApprovalError::State(ApprovalState::Used)), "a replay");
}

#[test]
fn nobody_decides_for_himself_or_twice_or_out_of_his_groups_or_about_what_he_has_not_seen() {
    let mut world = World::new();
    world.ask(1, subject(1), 2, 0).unwrap();
    assert_eq!(world.answer(1, "alice", true, 1), Err(ApprovalError::OwnWork));
    let now = world.at(1);
    let staff = groups(&["staff"]);
    let stranger = Person { name: "eve", groups: &staff };
    let refused = world.book.vote(name(1), stranger, Some([7; 32]), vote(true), now).map(drop);
    assert_eq!(refused, Err(ApprovalError::NotInGroups));
    let oncall = groups(&["oncall"]);
    let bob = Person { name: "bob", groups: &oncall };
    for shown in [None, Some([8; 32])] {
        let refused = world.book.vote(name(1), bob, shown, vote(true), now).map(drop);
        assert_eq!(refused, Err(ApprovalError::Other));
    }
    assert_eq!(world.answer(1, "bob", true, 1), Ok(ApprovalState::Pending));
    assert_eq!(world.answer(1, "bob", true, 1), Err(ApprovalError::Twice));
    assert!(matches!(world.answer(1, "carol", true, 1), Ok(ApprovalState::Approved(_))));
}

#[test]
fn one_no_is_enough_and_nothing_is_good_for_long() {
    let mut world = World::new();
    world.ask(1, subject(1), 2, 0).unwrap();
    world.answer(1, "bob", true, 1).unwrap();
    assert_eq!(world.answer(1, "carol", false, 2), Ok(ApprovalState::Denied));
    assert_eq!(world.answer(1, "dave", true, 3), Err(ApprovalError::State(ApprovalState::Denied)));
    assert_eq!(world.spend(1, &subject(1), 3), Err(ApprovalError::State(ApprovalState::Denied)));
    world.ask(2, subject(1), 1, 10).unwrap();
    assert_eq!(world.answer(2, "bob", true, 610), Err(ApprovalError::State(ApprovalState::Expired)));
    world.ask(3, subject(1), 1, 1_000).unwrap();
    world.answer(3, "bob", true, 1_010).unwrap();
    assert_eq!(world.spend(3, &subject(1), 1_310), Err(ApprovalError::State(ApprovalState::Expired)));
}

#[test]
fn people_are_not_asked_again_and_again() {
    let mut world = World::new();
    assert_eq!(world.ask(1, subject(1), 1, 0), Ok((name(1), true)));
    assert_eq!(world.ask(2, subject(1), 1, 1), Ok((name(1), false)), "the same question");
    let other = |n: u8| Subject { operation: Some([n; 32]), ..subject(1) };
    world.ask(3, other(3), 1, 1).unwrap();
    world.ask(4, other(4), 1, 1).unwrap();
    assert_eq!(world.ask(5, other(5), 1, 1), Err(Refused::Limit(Limit::Approvals)), "three wait");
    world.ask(6, subject(2), 1, 1).unwrap();
    for n in [1, 3, 4] {
        let operation = world.book.get(name(n)).unwrap().subject.operation;
        let (now, groups) = (world.at(2), world.oncall.clone());
        let bob = Person { name: "bob", groups: &groups };
        world.book.vote(name(n), bob, operation, vote(false), now).unwrap();
    }
    world.ask(7, other(7), 1, 3).unwrap();
    world.ask(8, other(8), 1, 3).unwrap();
    assert_eq!(world.ask(9, other(9), 1, 3), Err(Refused::Limit(Limit::Approvals)), "five in ten minutes");
    assert!(world.ask(9, other(9), 1, 700).is_ok());
}

/// Who says yes is half of what was asked for: another jury is another question.
#[test]
fn a_request_to_other_people_is_another_request() {
    let mut world = World::new();
    let now = world.at(0);
    let mut ask = |n: u64, jury: Jury| {
        let asked = world.book.request(name(n), subject(1), jury, String::new(), now, UNIX_EPOCH);
        asked.map(|(approval, new)| (approval.id, new))
    };
    assert_eq!(ask(1, jury(1)), Ok((name(1), true)));
    assert_eq!(ask(2, jury(2)), Ok((name(2), true)), "more of them");
    assert_eq!(ask(3, Jury { not: None, ..jury(1) }), Ok((name(3), true)));
    assert_eq!(ask(4, jury(1)), Ok((name(1), false)));
}

/// What would be refused is refused before anything is made for it.
#[test]
fn whether_there_is_room_is_known_before_anything_is_asked() {
    let mut world = World::new();
    let a = "spiffe://example.org/a";
    for n in 1..=30 {
        assert_eq!(world.book.has_room_for(a, world.at(0)), Ok(()), "{n}");
        world.ask(u64::from(n), subject(n), 1, 0).unwrap();
        world.book.end_task(task(n));
    }
    assert!(world.book.has_room_for(a, world.at(0)).is_err(), "thirty in ten minutes");
    assert_eq!(world.book.has_room_for("spiffe://example.org/b", world.at(0)), Ok(()));
    assert_eq!(world.book.has_room_for(a, world.at(601)), Ok(()));
    // In a full book a closed one makes room, an open one does not.
    world.book = Approvals::new(ApprovalBounds { most: 2, ..ApprovalBounds::default() });
    world.ask(1, subject(1), 1, 0).unwrap();
    world.ask(2, subject(2), 1, 0).unwrap();
    assert!(world.book.has_room_for(a, world.at(1)).is_err(), "all are open");
    world.book.end_task(task(1));
    assert_eq!(world.book.has_room_for(a, world.at(1)), Ok(()));
}

/// Whoever begins and ends tasks as fast as he can tires people no less, and fills the book.
#[test]
fn an_agent_asks_no_more_by_many_tasks_than_people_can_bear() {
    let mut world = World::new();
    for n in 1..=12 {
        world.ask(u64::from(n), subject(n), 1, 0).unwrap();
    }
    assert_eq!(world.ask(13, subject(13), 1, 0), Err(Refused::Limit(Limit::Approvals)), "twelve wait");
    let other = Subject { agent: "spiffe://example.org/b".to_owned(), ..subject(14) };
    assert!(world.ask(14, other, 1, 0).is_ok(), "another agent may ask");
    for n in 20..38 {
        world.book.end_task(task(n - 19));
        world.ask(u64::from(n), subject(n), 1, 1).unwrap();
        world.book.end_task(task(n));
    }
    assert_eq!(
        world.ask(40, subject(40), 1, 1),
        Err(Refused::Limit(Limit::Approvals)),
        "thirty in ten minutes"
    );
    assert!(world.ask(41, subject(41), 1, 700).is_ok());
}

#[test]
fn the_book_has_an_end_and_forgets_the_closed_first() {
    let mut world = World::new();
    world.book = Approvals::new(ApprovalBounds { most: 3, ..ApprovalBounds::default() });
    for n in 1..=3 {
        world.ask(u64::from(n), subject(n), 1, u64::from(n)).unwrap();
    }
    assert_eq!(world.ask(4, subject(4), 1, 4), Err(Refused::Limit(Limit::Approvals)), "all are open");
    world.book.end_task(task(2));
    world.ask(5, subject(5), 1, 5).unwrap();
    assert!(world.book.get(name(2)).is_none() && world.book.get(name(1)).is_some());
}

#[test]
fn what_a_task_was_allowed_ends_with_it() {
    let mut world = World::new();
    world.ask(1, subject(1), 1, 0).unwrap();
    world.ask(2, Subject { operation: Some([8; 32]), ..subject(1) }, 1, 0).unwrap();
    world.answer(1, "bob", true, 1).unwrap();
    assert_eq!(world.book.end_task(task(1)), [name(1), name(2)]);
    assert_eq!(world.spend(1, &subject(1), 2), Err(ApprovalError::State(ApprovalState::Cancelled)));
    assert_eq!(world.answer(2, "bob", true, 2), Err(ApprovalError::State(ApprovalState::Cancelled)));
    assert!(world.book.end_task(task(1)).is_empty());
}

#[derive(Clone, Debug)]
enum Op {
    Ask(u8, u8, u32),
    Vote(u64, usize, bool, bool),
    Spend(u64, u8, u8),
    End(u8),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (1..3u8, 0..3u8, 1..4u32).prop_map(|(task, operation, quorum)| Op::Ask(task, operation, quorum)),
        (0..12u64, 0..5usize, prop::bool::weighted(0.85), prop::bool::weighted(0.9))
            .prop_map(|(n, who, yes, seen)| Op::Vote(n, who, yes, seen)),
        (0..12u64, 1..3u8, 0..3u8).prop_map(|(n, task, operation)| Op::Spend(n, task, operation)),
        (1..3u8).prop_map(Op::End),
        (0..200u64).prop_map(Op::Wait),
    ]
}

/// What the model knows of one request.
struct Told {
    subject: Subject,
    quorum: usize,
    yes: BTreeSet<&'static str>,
    complete: Option<u64>,
    asked: u64,
    dead: bool,
}

proptest! {
    /// Whatever happens in whatever order: nothing is bought but with enough different people's yes to exactly that,
    /// given in time, used in time, once, for a task that lives.
    #[test]
    fn nothing_is_bought_without_a_whole_and_fresh_yes(ops in prop::collection::vec(op(), 1..120)) {
        const PEOPLE: [&str; 5] = ["alice", "bob", "carol", "dave", "eve"];
        let mut world = World::new();
        let mut told: BTreeMap<u64, Told> = BTreeMap::new();
        let (mut at, mut next) = (0, 0);
        let of = |task: u8, operation: u8| Subject { operation: Some([operation; 32]), ..subject(task) };
        for op in ops {
            match op {
                Op::Wait(seconds) => at += seconds,
                Op::Ask(task, operation, quorum) => {
                    let subject = of(task, operation);
                    if let Ok((_, true)) = world.ask(next, subject.clone(), quorum, at) {
                        let quorum = usize::try_from(quorum).unwrap();
                        let (yes, complete, asked, dead) = (BTreeSet::new(), None, at, false);
                        told.insert(next, Told { subject, quorum, yes, complete, asked, dead });
                        next += 1;
                    }
                }
                Op::Vote(n, who, approve, seen) => {
                    let person = PEOPLE[who];
                    let operation = told.get(&n).and_then(|told| told.subject.operation);
                    let shown = if seen { operation } else { Some([99; 32]) };
                    let own = if person == "eve" { groups(&["staff"]) } else { groups(&["oncall"]) };
                    let (now, by) = (world.at(at), Person { name: person, groups: &own });
                    let taken = world.book.vote(name(n), by, shown, vote(approve), now).is_ok();
                    if taken {
                        prop_assert!(seen && person != "alice" && person != "eve");
                        let told = told.get_mut(&n).unwrap();
                        prop_assert!(!told.dead && told.complete.is_none() && at < told.asked + 600);
                        prop_assert!(!approve || told.yes.insert(person), "twice");
                        told.dead |= !approve;
                        if told.yes.len() >= told.quorum {
                            told.complete = Some(at);
                        }
                    }
                }
                Op::Spend(n, task, operation) => {
                    let subject = of(task, operation);
                    let spent = world.spend(n, &subject, at).is_ok();
                    let good = told.get_mut(&n).filter(|told| {
                        let fresh = told.complete.is_some_and(|since| at < since + 300);
                        fresh && !told.dead && told.subject == subject
                    });
                    prop_assert_eq!(spent, good.is_some(), "{} for {:?}", n, subject);
                    if let Some(told) = good {
                        told.dead = true;
                    }
                }
                Op::End(n) => {
                    world.book.end_task(task(n));
                    told.values_mut().filter(|told| told.subject.task == task(n)).for_each(|told| told.dead = true);
                }
            }
        }
    }
}

#[test]
fn a_yes_that_is_not_used_is_not_asked_for_again_and_looking_at_it_uses_nothing() {
    let mut world = World::new();
    world.ask(1, subject(1), 1, 0).unwrap();
    world.answer(1, "bob", true, 1).unwrap();
    assert_eq!(world.ask(2, subject(1), 1, 2), Ok((name(1), false)));
    let now = world.at(2);
    assert!(world.book.check(name(1), &subject(1), now).is_ok());
    assert_eq!(world.book.check(name(1), &subject(2), now).map(drop), Err(ApprovalError::Unknown));
    assert_eq!(world.spend(1, &subject(1), 3), Ok(()));
    assert_eq!(world.ask(2, subject(1), 1, 4), Ok((name(2), true)), "a used one is none");
}

#[test]
fn what_is_cancelled_is_void_and_the_next_end_is_known() {
    let mut world = World::new();
    assert_eq!(world.book.deadline(), None);
    world.ask(1, subject(1), 1, 0).unwrap();
    assert_eq!(world.book.deadline(), Some(world.at(600)));
    world.answer(1, "bob", true, 10).unwrap();
    assert_eq!(world.book.deadline(), Some(world.at(310)));
    assert!(world.book.cancel(name(1)) && !world.book.cancel(name(1)));
    assert_eq!(world.spend(1, &subject(1), 11), Err(ApprovalError::State(ApprovalState::Cancelled)));
    assert_eq!(world.book.deadline(), None);
}
