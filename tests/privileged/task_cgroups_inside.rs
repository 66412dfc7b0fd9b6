//! Who acts in a cgroup without being its founder: what is taken from him counts at once, and what the founder becomes counts
//! for all.

use super::*;
use mayfly_harness::{Jam, Pause};

fn with(agent: &mut Agent, spec: &str) {
    let plan = agent.plan().clone().failpoints(spec);
    *agent.plan() = plan;
}

fn helper(agent: &Agent, group: &Group) -> Holder {
    let helper = Holder::start(agent, UID);
    group.take(helper.pid());
    helper
}

/// The ticket of what is in flight is the stand-in's: a bar does not reach it.
#[test]
fn what_is_in_flight_for_a_process_of_a_cgroup_that_is_barred_meanwhile_is_taken_back() {
    let mut agent = prepare(&[UID, OTHER].map(Entry::for_uid), None);
    let (pause, spec) = Pause::at(agent.dir(), "task.before_land");
    with(&mut agent, &spec);
    agent.launch();
    let group = Group::new("inside");
    let (mut founder, task) = founder(&agent, &group);
    let mut helper = helper(&agent, &group);
    let pid = helper.pid().to_string();
    std::thread::scope(|scope| {
        let pause = pause;
        let issued = scope.spawn(|| issue(&mut helper, &task).map_err(|refused| refused.code));
        pause.hit();
        let words = ["lease", "revoke", "--pid", &pid, "--reason", "stolen"];
        let (code, out, err) = agent.mayfly(&words);
        assert_eq!(code, Some(0), "{out}{err}");
        assert!(err.contains("1 process gets nothing of the kind any more"), "{out}{err}");
        pause.release();
        assert_eq!(issued.join().unwrap().unwrap_err(), 7, "barred before it was handed over");
    });
    assert_eq!(live_of(&agent, helper.pid()), 0);
    agent.audited(&["credential.revoke", "operator"]);
    issue(&mut founder, &task).unwrap();
    assert!(is_live(&agent, &task), "nobody else has lost anything");
}

/// The task goes on, and with it the stand-in: what nobody is there for any more is not left good.
#[test]
fn what_is_in_flight_for_a_process_of_a_cgroup_that_exits_meanwhile_is_taken_back() {
    let mut agent = prepare(&[UID, OTHER].map(Entry::for_uid), None);
    let (pause, spec) = Pause::at(agent.dir(), "task.before_land");
    with(&mut agent, &spec);
    agent.launch();
    let group = Group::new("inside");
    let (_founder, task) = founder(&agent, &group);
    let mut helper = helper(&agent, &group);
    let request = proto::IssueRequest {
        task_id: task.clone(),
        format: proto::Format::AccessToken.into(),
        audience: vec![WIKI.to_owned()],
        ..Default::default()
    };
    helper.jwt(WIKI).unwrap();
    helper.task_begin_call("Issue", &request);
    pause.hit();
    let pid = helper.pid();
    helper.kill();
    until("the exit is seen", || (live_of(&agent, pid) == 0).then_some(()));
    pause.release();
    agent.audited(&["credential.revoke", "exited", &task]);
    assert_eq!(live_of(&agent, pid), 0);
    assert!(is_live(&agent, &task), "nobody else has lost anything");
}

/// Its founder is something else for so long that patience is over, and nobody can say what: others do not go on in its name.
#[test]
fn a_founder_that_cannot_be_looked_at_for_too_long_takes_its_cgroups_task_along() {
    require_root();
    let mut agent = prepare(&[], None);
    let program = mayfly_harness::holder::holder_program(&agent);
    agent.write_entries(&[Entry::new("/agent", &[&uid_selector(UID), &hash_of(&program)])]);
    let (jam, spec) = Jam::at(agent.dir(), "attest.hash");
    with(&mut agent, &spec);
    agent.launch();
    let group = Group::new("inside");
    let (mut one, task) = founder(&agent, &group);
    let mut other = helper(&agent, &group);
    issue(&mut one, &task).unwrap();
    issue(&mut other, &task).unwrap();
    jam.set();
    one.exec(Path::new("/bin/sleep"), &["1000"]);
    agent.audited(&["agent.cut", "exec_mismatch"]);
    agent.audited(&["task.ended", "\"policy\"", "attestation", "\"credentials\":2", &task]);
    assert_eq!((live_of(&agent, one.pid()), live_of(&agent, other.pid())), (0, 0));
    jam.clear();
    assert_eq!(issue(&mut other, &task).unwrap_err().reason, "task_ended");
    one.kill();
}

#[test]
fn a_process_of_a_cgroup_that_is_barred_is_told_no_more_of_the_task_that_it_follows() {
    let (agent, group) = (agent(), Group::new("inside"));
    let (mut founder, task) = founder(&agent, &group);
    let mut helper = helper(&agent, &group);
    helper.task_watch(&task);
    helper.next_task_event().unwrap();
    issue(&mut founder, &task).unwrap();
    helper.next_task_event().unwrap();
    agent.admin().revoke(Target::Pid(helper.pid())).unwrap();
    issue(&mut founder, &task).unwrap();
    let end = loop {
        match helper.next_task_event() {
            Ok(event) => assert!(!format!("{event:?}").contains("live_credentials: 2"), "{event:?}"),
            Err(end) => break end,
        }
    };
    assert_eq!(end.reason, "no_such_task");
    assert!(is_live(&agent, &task));
}

/// Nobody can say any more who lives: nothing goes on, and the record does not say that somebody exited.
#[test]
fn a_task_whose_process_cannot_be_watched_any_more_ends_with_a_reason_of_its_own() {
    let mut agent = prepare(&[UID, OTHER].map(Entry::for_uid), None);
    let (jam, spec) = Jam::at(agent.dir(), "reaper.wait");
    with(&mut agent, &spec);
    agent.launch();
    let group = Group::new("inside");
    let (_founder, task) = founder(&agent, &group);
    let mut alone = Holder::start(&agent, OTHER);
    let other = begin(&mut alone, Scope::Process).unwrap().id;
    let mut gone = Holder::start(&agent, OTHER);
    gone.jwt(WIKI).unwrap();
    jam.set();
    // Whoever watches is woken by any exit.
    gone.kill();
    for task in [&task, &other] {
        agent.audited(&["task.ended", "\"reason\":\"watch_lost\"", task]);
    }
}
