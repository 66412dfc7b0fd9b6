//! What is tried against tasks, by the names of the threats: budgets that many race for, credentials of the dead, clocks
//! that jump.

use std::collections::BTreeSet;

use mayfly_harness::tasks::detail;
use mayfly_harness::{Entry, Holder, TaskRefusal, WallClock, until};
use mayfly_proto::task as proto;
use serde_json::{Value, json};

use crate::children::{ANN, WIKI, World, begin, child, entries, get, issue, lasting, seconds, wanted};
use crate::http::local;

/// A root that may do what [`begin`] asks for, with this life and these limits.
fn root(planner: &mut Holder, life: i64, limits: Option<proto::Limits>) -> proto::Task {
    let details = vec![detail(WIKI, &["read"])];
    let request = proto::BeginRequest { details, ttl: lasting(life), limits, ..Default::default() };
    planner.task_call("Begin", &request).unwrap()
}

/// The audit lines of an event about a credential of one of these.
fn lines(world: &World, event: &str, about: &[&str]) -> Vec<Value> {
    let of = |line: &Value| {
        let text = line.to_string();
        line["event"] == event && about.iter().any(|word| text.contains(word))
    };
    world.agent.audit().into_iter().filter(of).collect()
}

/// Fewer than the sixty of a minute that each task has, so that only the budget refuses.
const EACH: usize = 50;

#[test]
fn k07_a_budget_that_a_hundred_calls_race_for_is_never_exceeded() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let limits = proto::Limits { max_calls: 10, ..Default::default() };
    let root = root(&mut planner, 600, Some(limits));
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    for _ in 0..EACH {
        planner.task_begin_call("Issue", &wanted(&root, proto::Format::AccessToken));
        ann.task_begin_call("Issue", &wanted(&below, proto::Format::AccessToken));
    }
    let answers: Vec<Result<proto::Credential, TaskRefusal>> =
        (0..EACH).flat_map(|_| [planner.task_answer(), ann.task_answer()]).collect();
    let (given, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    for refused in refused.into_iter().map(Result::unwrap_err) {
        assert_eq!((refused.code, refused.reason.as_str()), (8, "limit_calls"));
    }
    let given: Vec<proto::Credential> = given.into_iter().map(Result::unwrap).collect();
    let ids: BTreeSet<&str> = given.iter().map(|one| one.id.as_str()).collect();
    assert_eq!((given.len(), ids.len()), (10, 10), "each is another");
    assert_eq!(lines(&world, "credential.issue", &[&root.id, &below.id]).len(), 10, "on record as well");
    assert!(given.iter().all(|one| world.is_active(&one.token)));
    let (above, under) = (get(&mut planner, &root).unwrap(), get(&mut planner, &below).unwrap());
    assert_eq!(above.used.unwrap().calls, 10);
    assert_eq!(above.live_credentials + under.live_credentials, 10, "and no other stands");
}

#[test]
fn h10_what_the_dead_held_is_refused_at_every_door_and_told_of_once_for_each() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let task = begin(&mut planner);
    let mut held =
        |format| -> proto::Credential { planner.task_call("Issue", &wanted(&task, format)).unwrap() };
    let validated = held(proto::Format::JwtSvid);
    let [introspected, revoked] = [(); 2].map(|()| held(proto::Format::AccessToken));
    assert!(ann.validate(WIKI, &validated.token).is_ok());
    assert!(world.is_active(&introspected.token) && world.is_active(&revoked.token));
    planner.kill();
    world.agent.audited(&["task.ended", "\"reason\":\"process_exit\"", &task.id]);
    for _ in 0..3 {
        assert_eq!(ann.validate(WIKI, &validated.token).unwrap_err().code, 3);
        assert_eq!(world.introspect(&introspected.token), json!({"active": false}));
        // Whoever revokes learns nothing, not even that there was nothing to revoke (RFC 7009).
        assert_eq!(local(&world.agent, "/revoke", &["-d", &format!("token={}", revoked.token)]).status, 200);
    }
    // At another door than before, it is no news.
    assert_eq!(world.introspect(&validated.token), json!({"active": false}));
    // What is on record later than this was said later.
    let later = begin(&mut world.planner());
    world.agent.audited(&["task.begin", &later.id]);
    let places =
        [(&validated, "ValidateJWTSVID"), (&introspected, "introspection"), (&revoked, "revocation")];
    for (credential, place) in places {
        let told = lines(&world, "credential.reuse_after_end", &[&credential.id]);
        assert_eq!(told.len(), 1, "{place}: {told:?}");
        assert!(told[0].to_string().contains(&format!("task_ended, {place}")), "{told:?}");
        assert_eq!(lines(&world, "credential.revoke", &[&credential.id]).len(), 1, "{place}");
    }
}

const HOUR: i64 = 3600;

/// G07, G08 for tasks: how long they live is measured by a clock that nobody sets.
#[test]
fn g07_g08_a_wall_clock_that_jumps_lengthens_no_task_and_revives_none() {
    let mut clock = None;
    let world = World::prepared(|agent| clock = Some(WallClock::give(agent)));
    let clock = clock.unwrap();
    let mut planner = world.planner();
    let brief = root(&mut planner, 2, None);
    let token = issue(&mut planner, &brief).unwrap().token;
    let long = root(&mut planner, HOUR, None);
    let before = seconds(long.deadline.as_ref());
    clock.shift(-24 * HOUR);
    // Now, though it is a day away by the wall clock.
    world.agent.audited(&["task.ended", "\"reason\":\"deadline\"", &brief.id]);
    let left = seconds(get(&mut planner, &long).unwrap().deadline.as_ref());
    assert!(left <= before - 24 * HOUR + 1, "it is shown by the clock that there is, and not a day longer");
    clock.shift(24 * HOUR);
    let seen = get(&mut planner, &long).unwrap();
    assert_eq!(seen.state(), proto::TaskState::Active, "its hour is not over");
    for shift in [24 * HOUR, -24 * HOUR, 0] {
        clock.shift(shift);
        assert_eq!(get(&mut planner, &brief).unwrap().reason, "deadline");
        assert_eq!(issue(&mut planner, &brief).unwrap_err().reason, "task_ended");
        let longer = proto::RenewRequest { task_id: brief.id.clone(), ttl: lasting(60) };
        let refused = planner.task_call::<proto::Task>("Renew", &longer).unwrap_err();
        assert_eq!(refused.reason, "task_ended");
        assert!(!world.is_active(&token), "{shift}");
    }
    let after = seconds(get(&mut planner, &long).unwrap().deadline.as_ref());
    assert!((before - 1..=before + 1).contains(&after), "there and back again is as long as before");
    assert!(issue(&mut planner, &long).is_ok());
}

/// What was decided is overtaken: the identity is gone when the task is to be seated.
#[test]
fn k07_whoever_loses_its_identity_while_a_task_is_begun_has_no_task() {
    let mut pause = None;
    let world = World::prepared(|agent| {
        let seat = agent.pause_at("task.before_seat");
        pause = Some(seat);
    });
    let pause = pause.unwrap();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let token = planner.jwt(WIKI).unwrap().remove(0).text;
    assert!(ann.validate(WIKI, &token).is_ok());
    let details = vec![detail(WIKI, &["read"])];
    planner.task_begin_call("Begin", &proto::BeginRequest { details, ..Default::default() });
    pause.hit();
    let others: Vec<Entry> =
        entries(&world.agent).into_iter().filter(|entry| entry.path != "/planner").collect();
    world.agent.write_entries(&others);
    until("the identity is gone", || ann.validate(WIKI, &token).is_err().then_some(()));
    pause.release();
    let refused = planner.task_answer::<proto::Task>().unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (7, "not_granted"));
    assert!(lines(&world, "task.begin", &[""]).is_empty(), "there was none");
}

/// A keeper is somebody's parent, and our own program: no other may be named.
#[test]
fn k01_nobody_else_keeps_the_credentials_of_a_task() {
    let world = World::new();
    let mut planner = world.planner();
    let details = vec![detail(WIKI, &["read"])];
    let keeper = Some(proto::Keeper { audiences: vec![WIKI.to_owned()] });
    let request = proto::BeginRequest { details, keeper, ..Default::default() };
    let refused = planner.task_call::<proto::Task>("Begin", &request).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (7, "not_granted"));
    world.agent.audited(&["\"phase\":\"keeper\"", "not the file that the agent runs"]);
    assert!(lines(&world, "task.begin", &[""]).is_empty());
}
