//! What is frozen that nobody bears, and what changes while nobody runs.

use mayfly_harness::{Agent, until};
use serde_json::Value;

use crate::children::{ANN, World, begin, child, end};

/// What it answers, and what it warns of.
fn run(agent: &Agent, arguments: &[&str]) -> (Value, String) {
    let (code, out, err) = agent.mayfly(&[arguments, &["--output", "json"]].concat());
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    (serde_json::from_str(&out).unwrap(), err)
}

/// To freeze ahead is right; to mistype a name in a hurry is not, and looks the same.
#[test]
fn a_freeze_of_what_nobody_bears_says_so_and_holds_all_the_same() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    child(&root, &mut planner, &mut ann, ANN, "/docs");
    let other = begin(&mut planner);
    end(&mut planner, &other).unwrap();
    let unheard_of = "tsk_01K6000000000000000000000A";
    for (words, unknown) in [
        (["--agent", ANN], None),
        (["--agent", "spiffe://example.org/planner"], None),
        (["--task", &root.id], None),
        (["--target", "wiki"], None),
        (
            ["--agent", "spiffe://example.org/worker/an"],
            Some("did you mean `spiffe://example.org/worker/ann`?"),
        ),
        (["--agent", "spiffe://elsewhere.example/x"], Some("no entry gives that identity")),
        (["--task", &other.id], Some("has ended (completed)")),
        (["--task", unheard_of], Some("no task has that name")),
        (["--target", "wikki"], Some("did you mean `wiki`?")),
    ] {
        let (answer, warned) = run(&world.agent, &["freeze", words[0], words[1]]);
        let said = answer["unknown"].as_str().unwrap_or_default();
        let line = world.agent.audited(&["\"event\":\"freeze\"", &format!(" {}\"", words[1])]);
        assert_eq!(line["detail"]["unknown"] == true, unknown.is_some(), "{words:?}: {line}");
        match unknown {
            None => assert!(said.is_empty() && warned.is_empty(), "{words:?}: {answer} {warned}"),
            Some(unknown) => {
                assert!(said.contains(unknown), "{words:?}: {answer}");
                assert!(
                    warned.contains("warning: this stops nobody now") && warned.contains(unknown),
                    "{warned}"
                );
            }
        }
        run(&world.agent, &["thaw", words[0], words[1]]);
    }
    let (code, _, warned) = world.agent.mayfly(&["kill", "--task", unheard_of]);
    assert!(code == Some(0) && warned.contains("no task has that name"), "{warned}");
    // Whoever comes to bear it is stopped.
    run(&world.agent, &["freeze", "--agent", "spiffe://example.org/worker/ben"]);
    let mut ben = world.ben();
    assert_eq!(ben.jwt("a").unwrap_err().code, 7);
}

fn steps(agent: &Agent, event: &str, task: &str) -> usize {
    agent.audit().iter().filter(|line| line["event"] == event && line["task"]["id"] == task).count()
}

/// The flag file comes and goes while the agent is down: the record has each change of it, and of each task, once.
#[test]
fn what_the_flag_file_froze_while_the_agent_was_down_is_on_record_when_it_starts() {
    let mut world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let part = child(&root, &mut planner, &mut ann, ANN, "/docs");
    // By an order, which is on record already.
    run(&world.agent, &["freeze", "--task", &part.id]);
    world.agent.audited(&["task.suspend", &part.id]);
    let flag = world.agent.dir().join("FREEZE");
    world.agent.kill();
    std::fs::write(&flag, "").unwrap();
    world.agent.launch();
    let line = world.agent.audited(&["task.suspend", &format!("{:?}:{:?}", "id", root.id)]);
    assert_eq!(line["task"]["state"], "suspended", "{line}");
    let frozen = world.agent.audited(&["\"event\":\"freeze\"", "the flag file"]);
    assert!(frozen["seq"].as_u64() < line["seq"].as_u64(), "first what froze it: {frozen} {line}");
    // Still there: nothing is news.
    world.agent.crash_and_restart();
    let flagged = |agent: &Agent, event: &str| {
        let of_flag = |line: &&Value| line["event"] == event && line["detail"]["reason"] == "the flag file";
        agent.audit().iter().filter(of_flag).count()
    };
    assert_eq!((flagged(&world.agent, "freeze"), flagged(&world.agent, "thaw")), (1, 0));
    assert_eq!([&root, &part].map(|task| steps(&world.agent, "task.suspend", &task.id)), [1, 1]);
    world.agent.kill();
    std::fs::remove_file(&flag).unwrap();
    world.agent.launch();
    world.agent.audited(&["task.resume", &root.id]);
    until("the thaw is on record", || (flagged(&world.agent, "thaw") == 1).then_some(()));
    assert_eq!(steps(&world.agent, "task.resume", &part.id), 0, "it is frozen by order");
    run(&world.agent, &["thaw", "--task", &part.id]);
    world.agent.audited(&["task.resume", &part.id]);
    assert_eq!([&root, &part].map(|task| steps(&world.agent, "task.suspend", &task.id)), [1, 1]);
}
