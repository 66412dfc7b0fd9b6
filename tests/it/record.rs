//! What stands on record of a task: enough to say afterwards who got what, why, and what was frozen meanwhile.

use mayfly_harness::tasks::detail;
use serde_json::Value;

use crate::children::{ANN, BEN, WIKI, World, begin, child, issue};

const PLANNER: &str = "spiffe://example.org/planner";

/// What the command says of the agent's own log.
fn audit(world: &World, arguments: &[&str]) -> String {
    let log = world.agent.audit_path();
    let (code, out, err) = world.agent.mayfly(&[&["audit"], arguments, &[log.to_str().unwrap()]].concat());
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    out
}

fn run(world: &World, arguments: &[&str]) -> String {
    let (code, out, err) = world.agent.mayfly(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    out
}

fn is_whole(agent: &Value) -> bool {
    ["exe_sha256", "selectors_hash", "spiffe_id"].iter().all(|name| agent[*name].is_string())
}

#[test]
fn a_credential_of_a_task_names_the_decisions_that_it_rests_on() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    for (holder, task, scope) in [(&mut planner, &root, "read write"), (&mut ann, &below, "read")] {
        let token = issue(holder, task).unwrap();
        let line = world.agent.audited(&["\"credential.issue\"", &token.id]);
        let said = &line["credential"];
        assert_eq!((&said["target"], &said["scope"]), (&"wiki".into(), &scope.into()), "{line}");
        assert_eq!(said["binding"], "none");
        let rests_on: Vec<&str> =
            said["evaluations"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        assert_eq!(rests_on.len(), scope.split(' ').count(), "one an action class: {line}");
        for (evaluation, action) in rests_on.iter().zip(scope.split(' ')) {
            let decided = world.agent.audited(&["\"decision.allow\"", evaluation]);
            let decision = &decided["decision"];
            assert_eq!((&decision["action"], &decision["target"]), (&action.into(), &"wiki".into()));
            assert_eq!(decided["task"]["id"], task.id.as_str());
            let found = audit(&world, &["query", "--evaluation", evaluation]);
            assert!(found.contains("decision.allow") && found.contains("credential.issue"), "{found}");
        }
        let told = audit(&world, &["task", &task.id]);
        let granted = format!("{scope} on wiki, binding none; evaluations {}", rests_on.join(", "));
        assert!(told.contains(&granted), "{granted}\n{told}");
    }
}

#[test]
fn begin_join_and_every_decision_say_what_the_process_was_attested_as() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    for (holder, task, steps) in [
        (&mut planner, &root, &["\"task.begin\"", "\"task.delegate\"", "\"decision.allow\""][..]),
        (&mut ann, &below, &["\"task.join\"", "\"decision.allow\""]),
    ] {
        let token = issue(holder, task).unwrap();
        let issued = world.agent.audited(&["\"credential.issue\"", &token.id]);
        let agent = &issued["agent"];
        assert!(is_whole(agent), "{issued}");
        for step in steps {
            let line = world.agent.audited(&[step, &format!("\"id\":\"{}\"", task.id)]);
            assert_eq!(&line["agent"], agent, "{step}");
        }
    }
    // A no, too: to a task that never began, and to handing on.
    let ben = world.ben();
    for (mut holder, name) in [(ben, BEN), (ann, ANN)] {
        let refused = holder.task_call::<mayfly_proto::task::Task>(
            "Begin",
            &mayfly_proto::task::BeginRequest {
                purpose: name.to_owned(),
                details: vec![detail(WIKI, &["read"])],
                ..Default::default()
            },
        );
        assert_eq!(refused.unwrap_err().reason, "policy_denied");
        let line = world.agent.audited(&["\"decision.deny\"", "\"state\":\"refused\"", name]);
        assert!(is_whole(&line["agent"]), "{line}");
    }
    let wide = crate::children::offer(&root, PLANNER, "/docs");
    planner.task_call::<mayfly_proto::task::Delegation>("Delegate", &wide).unwrap_err();
    let line = world.agent.audited(&["\"decision.deny\"", "\"action\":\"delegate\"", &root.id]);
    assert!(is_whole(&line["agent"]), "{line}");
}

#[test]
fn the_life_of_a_task_shows_what_it_was_frozen_by() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let other = begin(&mut planner);
    for (what, name) in [
        ("--task", below.id.as_str()),
        ("--task", &root.id),
        ("--agent", PLANNER),
        ("--task", &other.id),
        ("--agent", BEN),
    ] {
        run(&world, &["freeze", what, name, "--reason", "incident 4711"]);
        run(&world, &["thaw", what, name]);
    }
    world.agent.audited(&["\"thaw\"", BEN]);
    let told = audit(&world, &["task", &below.id]);
    let found = audit(&world, &["query", "--task", &below.id]);
    for (kind, name, is_concerned) in [
        ("task", below.id.as_str(), true),
        ("task", &root.id, true),
        ("agent", PLANNER, true),
        ("task", &other.id, false),
        ("agent", BEN, false),
    ] {
        for verb in ["frozen", "thawed"] {
            assert_eq!(told.contains(&format!("{verb}: {kind} {name}, by uid ")), is_concerned, "{told}");
        }
        let line = audit(&world, &["query", "--task", &below.id, "--event", "freeze", "--output", "json"]);
        assert_eq!(line.contains(&format!("\"what\":\"{kind} {name}\"")), is_concerned, "{line}");
    }
    assert!(told.contains("\"incident 4711\""), "{told}");
    assert!(found.contains("task.join") && !found.contains("task.begin"), "this task alone: {found}");
    run(&world, &["kill", "--task", &below.id]);
    world.agent.audited(&["\"agent.killed\""]);
    world.agent.audited(&["\"task.ended\"", &below.id]);
    let told = audit(&world, &["task", &below.id]);
    let killed = format!("pid {} is killed, by operator uid ", ann.pid());
    assert!(told.contains(&killed) && told.contains("what was given is taken back"), "{told}");
    run(&world, &["freeze", "--agent", PLANNER, "--reason", "much later"]);
    world.agent.audited(&["\"freeze\"", "much later"]);
    assert!(!audit(&world, &["task", &below.id]).contains("much later"));
    assert!(audit(&world, &["task", &root.id]).contains("much later"));
}

#[test]
fn a_begin_and_a_delegation_can_be_explained_before_there_is_a_task() {
    let world = World::new();
    let explain = |arguments: &[&str]| world.agent.mayfly(&[&["task", "explain"], arguments].concat());
    let (code, out, err) = explain(&["--as", ANN, "--action", "begin", "--target", "summarise"]);
    assert!(code == Some(7) && out.starts_with("not allowed (policy_denied)"), "{out}{err}");
    let would_help = "would help  `begin` would permit it if this were otherwise: the principal is not in";
    assert!(out.contains(would_help), "{out}");
    let (code, out, _) = explain(&["--as", ANN, "--action", "begin", "--target", "rewrite"]);
    assert!(code == Some(7) && out.contains("name the template in `templates` of the `[[agents]]`"), "{out}");
    for allowed in [
        &["--as", PLANNER, "--action", "begin", "--target", "rewrite"][..],
        &["--as", PLANNER, "--action", "begin"],
        &["--as", PLANNER, "--action", "delegate", "--target", ANN],
    ] {
        let (code, out, err) = explain(allowed);
        assert!(code == Some(0) && out.starts_with("allowed"), "{allowed:?}: {out}{err}");
    }
    let mut planner = world.planner();
    let root = begin(&mut planner);
    let (code, out, err) = explain(&[&root.id, "--action", "delegate", "--target", ANN]);
    assert!(code == Some(0) && out.contains("decided by  hand-on"), "{out}{err}");
    let (code, out, _) = explain(&[&root.id, "--action", "delegate", "--target", PLANNER]);
    assert!(code == Some(7) && out.contains("the resource is not in"), "{out}");
    for wrong in [
        &["--as", PLANNER, "--action", "delegate", "--target", "wiki"][..],
        &["--as", PLANNER, "--action", "read"],
        &[&root.id, "--action", "begin", "--target", "rewrite"],
    ] {
        let (code, out, err) = explain(wrong);
        assert!(!matches!(code, Some(0 | 7)) && err.contains("malformed"), "{wrong:?}: {code:?} {out}{err}");
    }
}
