//! A frozen target is its name and its audience, for tasks and for whoever fetches a token without one.

use mayfly_harness::Holder;
use mayfly_proto::task as proto;
use serde_json::Value;

use crate::children::{ANN, WIKI, World, begin, issue, policies, wanted};
use crate::suspended::{INVALID, SUSPENDED, VALID, status, world};

/// Another audience, of nobody yet.
const NEW: &str = "https://wiki.new.example.org";

fn run(world: &World, arguments: &[&str]) -> Value {
    let (code, out, err) = world.agent.mayfly(&[arguments, &["--output", "json"]].concat());
    assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}: {out}");
    serde_json::from_str(&out).unwrap()
}

fn fetched(holder: &mut Holder, audience: &str) -> String {
    holder.jwt(audience).unwrap().remove(0).text
}

fn is_refused(holder: &mut Holder, audience: &str) -> bool {
    holder.jwt(audience).is_err_and(|refusal| refusal.code == 7)
}

/// Whoever reads an audience in a log freezes that, and must have frozen the target.
#[test]
fn a_freeze_by_audience_is_a_freeze_of_the_target_and_each_of_its_names_thaws_it() {
    let world = World::new();
    let mut planner = world.planner();
    let root = begin(&mut planner);
    for (freeze, thaw) in [("wiki", WIKI), (WIKI, "wiki"), (WIKI, WIKI)] {
        let answer = run(&world, &["freeze", "--target", freeze]);
        assert_eq!(
            (&answer["frozen"], answer.get("unknown")),
            (&Value::from("target wiki"), None),
            "{answer}"
        );
        assert_eq!(issue(&mut planner, &root).unwrap_err().reason, "frozen", "by {freeze}");
        let concerns = world.agent.admin().status().concerns.join("\n");
        assert!(concerns.contains("frozen: target wiki"), "{concerns}");
        assert_eq!(run(&world, &["thaw", "--target", thaw])["thawed"], "target wiki");
        assert!(issue(&mut planner, &root).is_ok(), "thawed by {thaw}");
    }
    let of_wiki = |line: &Value| line["event"] == "freeze" && line["detail"]["what"] == "target wiki";
    assert_eq!(world.agent.audit().iter().filter(|line| of_wiki(line)).count(), 3);
    // And so does a kill, for whoever has no task as well.
    let token = fetched(&mut planner, WIKI);
    run(&world, &["kill", "--target", WIKI]);
    assert!(is_refused(&mut planner, WIKI) && !world.is_active(&token));
    assert_eq!(issue(&mut planner, &root).unwrap_err().reason, "frozen");
}

/// What fetched tokens are worth while something is frozen.
fn looks(world: &World, holder: &mut Holder, tokens: [&String; 2], expected: [u8; 2], when: &str) {
    for (token, expected) in tokens.into_iter().zip(expected) {
        assert_eq!(status(&world.agent, token), expected, "{when}: in the list");
        assert_eq!(world.is_active(token), expected == VALID, "{when}: by introspection");
        let audience = if token == tokens[0] { WIKI } else { "urn:other" };
        assert_eq!(holder.validate(audience, token).is_ok(), expected == VALID, "{when}: by validation");
    }
}

#[test]
fn nothing_is_fetched_for_a_frozen_target_and_what_was_is_suspended_or_taken_back() {
    let world = world();
    let mut ann = world.ann();
    let (of_wiki, other) = (fetched(&mut ann, WIKI), fetched(&mut ann, "urn:other"));
    let tokens = [&of_wiki, &other];
    looks(&world, &mut ann, tokens, [VALID; 2], "before");
    for word in ["wiki", WIKI] {
        assert_eq!(run(&world, &["freeze", "--target", word])["credentials"], 1);
        assert!(is_refused(&mut ann, WIKI) && ann.jwt("urn:other").is_ok());
        looks(&world, &mut ann, tokens, [SUSPENDED, VALID], word);
        run(&world, &["thaw", "--target", word]);
        looks(&world, &mut ann, tokens, [VALID; 2], "thawed");
    }
    world.agent.audited(&["agent.attest_denied", "\"phase\":\"policy\"", "frozen"]);
    // The same of an agent, and of everything, without a task.
    run(&world, &["freeze", "--agent", ANN]);
    assert!(is_refused(&mut ann, WIKI) && is_refused(&mut ann, "urn:other"));
    looks(&world, &mut ann, tokens, [SUSPENDED; 2], "its agent");
    run(&world, &["thaw", "--agent", ANN]);
    looks(&world, &mut ann, tokens, [VALID; 2], "thawed");
    run(&world, &["freeze", "--target", "wiki", "--revoke"]);
    run(&world, &["thaw", "--target", "wiki"]);
    looks(&world, &mut ann, tokens, [INVALID, VALID], "taken back");
    assert!(ann.jwt(WIKI).is_ok());
}

/// A frozen target stays frozen whatever a new catalogue calls it, and over a restart after that.
#[test]
fn another_audience_or_name_thaws_no_target() {
    let mut world = world();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let (before, after) = (fetched(&mut ann, WIKI), fetched(&mut ann, NEW));
    run(&world, &["freeze", "--target", "wiki"]);
    assert!(is_refused(&mut ann, WIKI) && ann.jwt(NEW).is_ok());
    let version = |world: &World| world.agent.admin().status().policy.unwrap().version;
    let put = |world: &World, from: &str, to: &str| {
        let was = version(world);
        world.agent.write_catalogue(&policies().catalogue.replace(from, to));
        mayfly_harness::until("another catalogue", || (version(world) != was).then_some(()));
    };
    let moved = (format!("audience = {WIKI:?}"), format!("audience = {NEW:?}"));
    put(&world, &moved.0, &moved.1);
    let all_frozen = |world: &World, ann: &mut Holder, when: &str| {
        assert!(is_refused(ann, WIKI) && is_refused(ann, NEW), "{when}");
        assert_eq!([&before, &after].map(|token| status(&world.agent, token)), [SUSPENDED; 2], "{when}");
    };
    all_frozen(&world, &mut ann, "another audience");
    let wanted =
        proto::IssueRequest { audience: vec![NEW.to_owned()], ..wanted(&root, proto::Format::AccessToken) };
    let refused = planner.task_call::<proto::Credential>("Issue", &wanted).unwrap_err();
    assert_eq!(refused.reason, "frozen");
    // The name goes, too; and then the agent.
    let catalogue = policies().catalogue.replace(&moved.0, &moved.1);
    let was = version(&world);
    world.agent.write_catalogue(&catalogue.replace("\"wiki\"", "\"pages\""));
    mayfly_harness::until("another catalogue", || (version(&world) != was).then_some(()));
    all_frozen(&world, &mut ann, "another name");
    let written = world.agent.data_dir().join("freezes.json");
    let is_written = || std::fs::read_to_string(&written).is_ok_and(|text| text.contains(NEW));
    mayfly_harness::until("what it stands for is written down", || is_written().then_some(()));
    world.agent.crash_and_restart();
    ann.connect();
    all_frozen(&world, &mut ann, "a restart");
    // Taken back now, both are; and thawed by the name that it has today.
    assert_eq!(run(&world, &["freeze", "--target", "wiki", "--revoke"])["frozen"], "target wiki");
    assert_eq!(run(&world, &["thaw", "--target", "pages"])["thawed"], "target wiki");
    assert_eq!([&before, &after].map(|token| status(&world.agent, token)), [INVALID; 2]);
    assert!(ann.jwt(NEW).is_ok() && ann.jwt(WIKI).is_ok());
}
