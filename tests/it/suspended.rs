//! A freeze is visible to whoever is shown what tasks have: suspended, and good again after the thaw. Lists are read as the
//! draft says, by hand.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly_harness::{Agent, until};
use mayfly_proto::task as proto;
use serde_json::Value;

use crate::children::{ANN, BEN, WIKI, World, begin, child, end, get, issue, wanted};
use crate::http::local;

pub(crate) const VALID: u8 = 0;
pub(crate) const INVALID: u8 = 1;
pub(crate) const SUSPENDED: u8 = 2;

pub(crate) fn world() -> World {
    World::prepared(|agent| {
        agent.plan().settings += "\n[status_list]\nuri = \"https://id.example.org/statuslists\"\n";
        agent.write_config();
    })
}

fn claims(token: &str) -> Value {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

/// What the published list says of a token.
pub(crate) fn status(agent: &Agent, token: &str) -> u8 {
    let place = claims(token)["status"]["status_list"].clone();
    let index = usize::try_from(place["idx"].as_u64().unwrap()).unwrap();
    let uri = place["uri"].as_str().unwrap();
    let answer = local(agent, uri.strip_prefix("https://id.example.org").unwrap(), &[]);
    let list = claims(std::str::from_utf8(&answer.body).unwrap());
    assert_eq!(list["sub"], uri);
    assert!((5..=30).contains(&list["ttl"].as_u64().unwrap()));
    let (bits, packed) = (&list["status_list"]["bits"], list["status_list"]["lst"].as_str().unwrap());
    assert_eq!(*bits, 2);
    let mut octets = Vec::new();
    let packed = URL_SAFE_NO_PAD.decode(packed).unwrap();
    flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_end(&mut octets).unwrap();
    octets[index / 4] >> (index % 4 * 2) & 3
}

fn run(world: &World, arguments: &[&str]) {
    output(world, arguments);
}

#[test]
fn what_is_frozen_is_suspended_for_everybody_who_looks_until_it_is_thawed() {
    let mut world = world();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    let elsewhere = begin(&mut planner);
    let tokens = [
        issue(&mut planner, &root).unwrap().token,
        issue(&mut ann, &below).unwrap().token,
        issue(&mut ben, &deepest).unwrap().token,
        issue(&mut planner, &elsewhere).unwrap().token,
    ];
    let looks = |world: &World, expected: [u8; 4], when: &str| {
        for (at, (token, expected)) in tokens.iter().zip(expected).enumerate() {
            assert_eq!(status(&world.agent, token), expected, "{when}: {at} in the list");
            assert_eq!(world.is_active(token), expected == VALID, "{when}: {at} by introspection");
        }
    };
    let all = [VALID; 4];
    looks(&world, all, "before");
    for (what, expected) in [
        (["--agent", ANN], [VALID, SUSPENDED, SUSPENDED, VALID]),
        (["--agent", BEN], [VALID, VALID, SUSPENDED, VALID]),
        (["--task", &root.id], [SUSPENDED, SUSPENDED, SUSPENDED, VALID]),
        (["--task", &deepest.id], [VALID, VALID, SUSPENDED, VALID]),
        (["--target", "wiki"], [SUSPENDED; 4]),
        (["--target", "another"], all),
    ] {
        run(&world, &["freeze", what[0], what[1]]);
        looks(&world, expected, &what.join(" "));
        run(&world, &["thaw", what[0], what[1]]);
        looks(&world, all, "thawed");
    }
    let flag = world.agent.dir().join("FREEZE");
    std::fs::write(&flag, "").unwrap();
    looks(&world, [SUSPENDED; 4], "by the flag file");
    std::fs::remove_file(&flag).unwrap();
    looks(&world, all, "without the flag file");
    // A restart thaws nothing, and what is taken back meanwhile is never good again.
    run(&world, &["freeze", "--task", &root.id]);
    world.agent.crash_and_restart();
    looks(&world, [SUSPENDED, SUSPENDED, SUSPENDED, VALID], "after a restart");
    run(&world, &["task", "end", &below.id, "--reason", "ticket 17"]);
    looks(&world, [SUSPENDED, INVALID, INVALID, VALID], "taken back while it was frozen");
    run(&world, &["thaw", "--task", &root.id]);
    looks(&world, [VALID, INVALID, INVALID, VALID], "thawed");
    run(&world, &["freeze", "--task", &root.id, "--revoke"]);
    run(&world, &["thaw", "--task", &root.id]);
    looks(&world, [INVALID, INVALID, INVALID, VALID], "revoked by the freeze");
    planner.connect();
    end(&mut planner, &elsewhere).unwrap();
    looks(&world, [INVALID; 4], "ended");
}

/// Introspection is not the only question, and a holder may give back what is suspended.
#[test]
fn a_suspended_svid_of_a_task_validates_nowhere_and_can_be_given_back() {
    let world = world();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let mut svid = || -> String {
        let credential: proto::Credential =
            planner.task_call("Issue", &wanted(&root, proto::Format::JwtSvid)).unwrap();
        credential.token
    };
    let (kept, returned) = (svid(), svid());
    let fetched = ann.jwt(WIKI).unwrap().remove(0).text;
    assert!([&kept, &returned].iter().all(|token| ann.validate(WIKI, token).is_ok()));
    run(&world, &["freeze", "--task", &root.id]);
    for token in [&kept, &returned] {
        assert_eq!(ann.validate(WIKI, token).unwrap_err().code, 3);
        assert_eq!((world.is_active(token), status(&world.agent, token)), (false, SUSPENDED));
    }
    assert!(ann.validate(WIKI, &fetched).is_ok(), "what is of no task is not suspended");
    assert_eq!(status(&world.agent, &fetched), VALID);
    local(&world.agent, "/revoke", &["-d", &format!("token={returned}")]);
    assert_eq!(status(&world.agent, &returned), INVALID);
    run(&world, &["thaw", "--task", &root.id]);
    assert!(ann.validate(WIKI, &kept).is_ok() && world.is_active(&kept));
    assert_eq!(ann.validate(WIKI, &returned).unwrap_err().code, 3);
    assert_eq!((status(&world.agent, &kept), status(&world.agent, &returned)), (VALID, INVALID));
}

/// The state of each, wherever an operator looks.
fn is_shown(world: &World, all: &[String; 4], expected: [&str; 4], when: &str) {
    let listed = output(world, &["task", "list"]);
    for (id, state) in all.iter().zip(expected) {
        let of = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        let task = of(&output(world, &["task", "show", id, "--output", "json"]));
        assert_eq!(task["state"], state, "{when}: {task}");
        let reason = if state == "suspended" { "kill_switch" } else { "" };
        assert_eq!(task["reason"].as_str().unwrap_or_default(), reason, "{when}: {task}");
        let line = listed.lines().find(|line| line.contains(id.as_str())).unwrap();
        assert!(line.contains(state), "{when}: {line}");
    }
    let tree = output(world, &["task", "tree"]);
    let suspended = expected.iter().filter(|state| **state == "suspended").count();
    assert_eq!(tree.matches("suspended").count(), suspended, "{when}: {tree}");
}

/// How often each has taken that step, by the record.
fn is_recorded(world: &World, all: &[String; 4], step: &str, expected: [usize; 4]) {
    until(&format!("{expected:?} of {step}"), || {
        let log = world.agent.audit();
        let is_of = |line: &&Value, id: &String| line["event"] == step && line["task"]["id"] == id.as_str();
        let count = |id| log.iter().filter(|line| is_of(line, id)).count();
        (all.each_ref().map(count) == expected).then_some(())
    });
}

/// What operators and the tasks' own processes are shown of the tasks themselves, and what the record says.
#[test]
fn a_frozen_task_and_all_below_it_are_shown_as_suspended_and_each_change_is_recorded_once() {
    let mut world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    let elsewhere = begin(&mut planner);
    let all = [&root, &below, &deepest, &elsewhere].map(|task| task.id.clone());
    let shown = |world: &World, expected, when: &str| is_shown(world, &all, expected, when);
    let recorded = |world: &World, step: &str, expected| is_recorded(world, &all, step, expected);
    let (on, off) = ("active", "suspended");
    shown(&world, [on; 4], "before");
    for (what, expected) in [
        (["--agent", ANN], [on, off, off, on]),
        (["--agent", BEN], [on, on, off, on]),
        (["--task", &root.id], [off, off, off, on]),
        (["--target", "wiki"], [on; 4]),
    ] {
        run(&world, &["freeze", what[0], what[1]]);
        shown(&world, expected, &what.join(" "));
        run(&world, &["thaw", what[0], what[1]]);
        shown(&world, [on; 4], "thawed");
    }
    recorded(&world, "task.suspend", [1, 2, 3, 0]);
    recorded(&world, "task.resume", [1, 2, 3, 0]);
    let line = world.agent.audited(&["task.suspend", &deepest.id]);
    assert_eq!(line["task"]["state"], "suspended", "{line}");
    let flag = world.agent.dir().join("FREEZE");
    std::fs::write(&flag, "").unwrap();
    shown(&world, [off; 4], "by the flag file");
    std::fs::remove_file(&flag).unwrap();
    shown(&world, [on; 4], "without the flag file");
    recorded(&world, "task.resume", [2, 3, 4, 1]);
    // Whoever holds one sees it as well; two freezes are one suspension, which lasts until the last thaw.
    run(&world, &["freeze", "--task", &root.id]);
    run(&world, &["freeze", "--agent", ANN]);
    let own = get(&mut ben, &deepest).unwrap();
    assert_eq!((own.state(), own.reason.as_str()), (proto::TaskState::Suspended, "kill_switch"));
    world.agent.crash_and_restart();
    shown(&world, [off, off, off, on], "after a restart");
    run(&world, &["thaw", "--task", &root.id]);
    shown(&world, [on, off, off, on], "half thawed");
    run(&world, &["task", "end", &below.id, "--reason", "ticket 17"]);
    run(&world, &["thaw", "--agent", ANN]);
    // What has ended does not go on.
    recorded(&world, "task.suspend", [3, 4, 5, 1]);
    recorded(&world, "task.resume", [3, 3, 4, 1]);
    planner.connect();
    assert_eq!(get(&mut planner, &root).unwrap().state(), proto::TaskState::Active);
    issue(&mut planner, &root).unwrap();
}

fn output(world: &World, arguments: &[&str]) -> String {
    let (code, out, err) = world.agent.mayfly(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    out
}
