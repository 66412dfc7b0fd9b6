//! A founder that begins its own program anew, and exits before it has called again.

use mayfly_harness::Pause;

use std::path::PathBuf;

use super::restart::killed;
use super::*;

/// The founder begins the program anew and exits once the agent has looked at that; what becomes of the task is the
/// helper's.
fn begins_anew_and_exits(agent: &Agent, look: &Pause, founder: &mut Holder, program: &Path) {
    // What tells that its exit was seen.
    founder.jwt(WIKI).unwrap();
    look.arm();
    founder.exec(program, &[agent.public().to_str().unwrap()]);
    founder.expect("started");
    look.hit();
    look.release();
    founder.kill();
    until("the exit is seen", || (live_of(agent, founder.pid()) == 0).then_some(()));
}

fn with_looks() -> (Agent, Pause, PathBuf) {
    let mut agent = prepare(&[], None);
    let program = mayfly_harness::holder::holder_program(&agent);
    agent.write_entries(&[Entry::new("/agent", &[&uid_selector(UID), &hash_of(&program)])]);
    let (look, spec) = Pause::at(agent.dir(), "look.over");
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    look.release();
    agent.launch();
    (agent, look, program)
}

/// A Node or Python agent that starts itself again is what it was, and whoever is in its cgroup goes on when it exits.
#[test]
fn a_founder_that_began_the_same_program_anew_and_exits_leaves_its_task() {
    let (mut agent, look, program) = with_looks();
    let group = Group::new("test");
    let (mut one, task) = founder(&agent, &group);
    let mut helper = Holder::start(&agent, UID);
    group.take(helper.pid());
    begins_anew_and_exits(&agent, &look, &mut one, &program);
    issue(&mut helper, &task).unwrap();
    assert!(is_live(&agent, &task));
    end_it(&agent, &mut helper, &task);
    // The same for a task that was taken over from the run before.
    let (mut one, task) = founder(&agent, &group);
    let mut helper = Holder::start(&agent, UID);
    group.take(helper.pid());
    killed(&mut agent);
    one.connect();
    begins_anew_and_exits(&agent, &look, &mut one, &program);
    helper.connect();
    issue(&mut helper, &task).unwrap();
    // What it rests on is what was attested after the exec: it is matched again as ever.
    agent.write_entries(&[]);
    agent.audited(&["task.ended", "\"policy\"", "entries", &task]);
}

fn end_it(agent: &Agent, helper: &mut Holder, task: &str) {
    helper.kill();
    gone(task, agent);
}

#[test]
fn a_founder_that_was_looked_at_and_is_another_program_takes_its_task_along() {
    let (agent, look, _) = with_looks();
    let group = Group::new("test");
    let (mut one, task) = founder(&agent, &group);
    let mut helper = Holder::start(&agent, UID);
    group.take(helper.pid());
    look.arm();
    one.exec(Path::new("/bin/sleep"), &["1000"]);
    look.hit();
    look.release();
    agent.audited(&["task.ended", "\"policy\"", &task]);
    assert_eq!(issue(&mut helper, &task).unwrap_err().reason, "task_ended");
}
