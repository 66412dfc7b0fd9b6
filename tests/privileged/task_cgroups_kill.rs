//! Who may order, what is killed, what stands still and what goes on after a restart.

use mayfly_harness::Jam;

use super::freeze::Counter;
use super::*;

/// A child of the shell goes to that cgroup and runs `mayfly` there; what it says.
fn order_from(shell: &mut Shell, agent: &Agent, group: &Group, words: &str) -> String {
    let socket = agent.admin_socket();
    let command = format!("exec {} {words} --socket unix://{}", agent.binary().display(), socket.display());
    let script = format!("echo $$ > {}/cgroup.procs; {command}", group.dir().display());
    shell.ask(&format!("sh -c \"{script}\" 2>&1 | tr '\\n' ' '; echo").replace("$$", "\\$\\$"))
}

/// A child leaves the cgroup by a scope of its own or by another session; whoever it descends from has not.
#[test]
fn k01_a_descendant_of_a_task_gives_no_orders_whichever_cgroup_it_is_in() {
    let (agent, group, elsewhere) = (agent(), Group::new("test"), Group::new("test"));
    let (_founder, task) = founder(&agent, &group);
    let mut tool = Shell::start(0);
    group.take(tool.child.id());
    let said = order_from(&mut tool, &agent, &elsewhere, &format!("task end {task} --reason x"));
    assert!(is_live(&agent, &task), "{said}");
    agent.audited(&["\"phase\":\"operator\"", "in_task"]);
    let mut stranger = Shell::start(0);
    let said = order_from(&mut stranger, &agent, &elsewhere, &format!("task end {task} --reason x"));
    assert!(!is_live(&agent, &task), "{said}");
}

/// A crash between the two records, or a disk that was full: nothing is frozen, and something stands still.
#[test]
fn what_stands_still_for_no_freeze_goes_on_when_the_agent_starts() {
    let (mut agent, group) = (agent(), Group::new("test"));
    let (_founder, task) = founder(&agent, &group);
    let counter = Counter::start(&agent, &group);
    counter.goes_on();
    order(&agent, &["freeze", "--target", "wiki"]);
    let freezes = agent.data_dir().join("freezes.json");
    let before = std::fs::read(&freezes).unwrap();
    order(&agent, &["freeze", "--task", &task]);
    counter.stands_still(&group);
    agent.kill();
    std::fs::write(&freezes, before).unwrap();
    agent.launch();
    counter.goes_on();
    let still = std::fs::read_to_string(agent.data_dir().join("standstill.json")).unwrap();
    assert!(still.contains("\"still\":[]"), "{still}");
}

/// An agent in which this fails as long as it is jammed.
fn failing(point: &str) -> (Agent, Jam) {
    let mut agent = prepare(&[UID, OTHER].map(Entry::for_uid), None);
    let jam = agent.jam_at(point);
    agent.launch();
    (agent, jam)
}

#[test]
fn what_the_kernel_did_not_let_go_on_goes_on_when_it_is_thawed_again() {
    let (agent, jam) = failing("cgroup.thaw");
    let group = Group::new("test");
    let (_founder, task) = founder(&agent, &group);
    let counter = Counter::start(&agent, &group);
    counter.goes_on();
    order(&agent, &["freeze", "--task", &task]);
    jam.set();
    order(&agent, &["thaw", "--task", &task]);
    counter.stands_still(&group);
    assert!(agent.log().contains("a cgroup that was thawed stands still"), "{}", agent.log());
    jam.clear();
    order(&agent, &["thaw", "--task", &task]);
    counter.goes_on();
    let (code, out, _) = agent.mayfly(&["thaw", "--task", &task]);
    assert_ne!(code, Some(0), "nothing stands still any more: {out}");
}

/// The agent is in the cgroup, so that it cannot be killed whole: whoever began the task does not live on for that.
#[test]
fn where_a_cgroup_cannot_be_killed_whoever_began_the_task_is() {
    let (agent, group) = (agent(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let other = Shell::start(UID);
    group.take(other.child.id());
    group.take(agent.pid());
    let (code, out, err) = agent.mayfly(&["kill", "--task", &task, "--output", "json"]);
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    cgroup::leave(agent.pid());
    assert_eq!((code, &said["processes"], &said["not_killed"]), (Some(1), &1.into(), &1.into()), "{said}");
    until("the founder is gone", || (!is_running(founder.pid())).then_some(()));
    assert!(is_running(other.child.id()), "nobody else is known");
    founder.kill();
}

/// A helper prints what it was given, and exits: it is the task's, over a restart of the agent too.
#[test]
fn what_a_helper_was_given_outlives_a_restart_with_the_task_and_ends_with_it() {
    let (mut agent, group) = (agent(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let helper = |agent: &Agent| {
        let mut helper = Holder::start(agent, UID);
        group.take(helper.pid());
        issue(&mut helper, &task).unwrap();
        helper
    };
    let gone = kill(&agent, &mut helper(&agent), 1);
    let mut stays = helper(&agent);
    agent.crash_and_restart();
    assert!(is_live(&agent, &task));
    assert_eq!((live_of(&agent, gone), live_of(&agent, stays.pid())), (1, 1));
    // Who lived at the restart is no other than who did not.
    stays.jwt(WIKI).unwrap();
    kill(&agent, &mut stays, 1);
    assert_eq!((live_of(&agent, gone), live_of(&agent, stays.pid())), (1, 1));
    assert_eq!(get(&mut founder, &task).unwrap().live_credentials, 2);
    // One that ends while the agent is down takes with it what it was given.
    agent.kill();
    founder.kill();
    agent.launch();
    assert!(!is_live(&agent, &task));
    assert_eq!((live_of(&agent, gone), live_of(&agent, stays.pid())), (0, 0));
}

#[test]
fn a_task_does_not_end_at_a_restart_for_want_of_a_descriptor() {
    let (mut agent, jam) = failing("cgroup.descriptors");
    let group = Group::new("test");
    let (mut founder, task) = founder(&agent, &group);
    issue(&mut founder, &task).unwrap();
    agent.kill();
    jam.set();
    agent.spawn();
    until("it waits", || agent.log().contains("look at the cgroups that hold tasks").then_some(()));
    jam.clear();
    let show = ["task", "show", &task];
    until("it serves", || (agent.mayfly(&show).0 == Some(0)).then_some(()));
    assert!(is_live(&agent, &task));
    assert_eq!(live_of(&agent, founder.pid()), 1);
}

/// Files are opened by whoever asks: nobody else waits for a file system that hangs.
#[test]
fn nobody_waits_for_a_cgroup_that_is_opened_for_another() {
    let mut agent = prepare(&[UID, OTHER].map(Entry::for_uid), None);
    let (pause, spec) = crate::support::Pause::at(agent.dir(), "cgroup.events");
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    agent.launch();
    let group = Group::new("test");
    let (mut holder, mut other) = (Holder::start(&agent, UID), Holder::start(&agent, OTHER));
    group.take(holder.pid());
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| begin(&mut holder, Scope::Cgroup));
        pause.hit();
        assert_eq!(other.jwt(WIKI).unwrap().len(), 1);
        pause.release();
        assert!(begun.join().unwrap().unwrap().isolated);
    });
}

/// What was attested of it is of before the exec; the agent is still looking.
#[test]
fn a_founder_that_exits_as_something_that_nobody_has_looked_at_takes_its_tasks_along() {
    require_root();
    let mut agent = prepare(&[], None);
    let program = mayfly_harness::holder::holder_program(&agent);
    agent.write_entries(&[Entry::new("/agent", &[&uid_selector(UID), &hash_of(&program)])]);
    let (pause, spec) = crate::support::Pause::at(agent.dir(), "attest.after_read");
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    pause.release();
    agent.launch();
    let group = Group::new("test");
    let (mut one, task) = founder(&agent, &group);
    let mut helper = Holder::start(&agent, UID);
    group.take(helper.pid());
    issue(&mut helper, &task).unwrap();
    pause.arm();
    one.exec(Path::new("/bin/sleep"), &["1000"]);
    pause.hit();
    one.kill();
    agent.audited(&["task.ended", "process_exit", &task]);
    pause.release();
    assert_eq!(issue(&mut helper, &task).unwrap_err().reason, "task_ended");
    assert_eq!(live_of(&agent, helper.pid()), 0);
}

/// What the agent watches cgroups by.
fn watched(agent: &Agent) -> usize {
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
    let events = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|path| path.ends_with("cgroup.events"))
    };
    open.map_while(Result::ok).filter(events).count()
}

#[test]
fn a_cgroup_whose_task_ended_under_an_issuance_is_watched_no_more() {
    let mut agent = prepare(&[UID, OTHER].map(Entry::for_uid), None);
    let (pause, spec) = crate::support::Pause::at(agent.dir(), "task.before_land");
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    agent.launch();
    let group = Group::new("test");
    let (mut founder, task) = founder(&agent, &group);
    assert_eq!(watched(&agent), 1);
    std::thread::scope(|scope| {
        let issued = scope.spawn(|| issue(&mut founder, &task));
        pause.hit();
        order(&agent, &["task", "end", &task, "--reason", "x"]);
        pause.release();
        assert_eq!(issued.join().unwrap().unwrap_err().reason, "task_ended");
    });
    until("it is forgotten", || (watched(&agent) == 0).then_some(()));
}
