//! What of a cgroup's task goes on after a restart of the agent, and what does not.

use super::freeze::Counter;
use super::*;

fn introspect(agent: &Agent, token: &str) -> Value {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--unix-socket"])
        .arg(agent.dir().join("http/http.sock"))
        .args(["-d", &format!("token={token}"), "http://localhost/introspect"])
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// Root asks, who has an identity here for that.
fn agent_that_is_asked() -> Agent {
    let mut agent = prepare(&[UID, OTHER, 0].map(Entry::for_uid), None);
    agent.launch();
    agent
}

pub(super) fn killed(agent: &mut Agent) {
    agent.crash_and_restart();
}

fn stopped(agent: &mut Agent) {
    assert!(agent.stop().success());
    agent.launch();
}

/// Whether the agent watches that cgroup: it holds its `cgroup.events` open as long as it does.
pub(super) fn watches(agent: &Agent, group: &Group) -> bool {
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
    let paths = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let name = group.dir().file_name().unwrap().to_str().unwrap();
    paths.into_iter().any(|path| path.to_str().unwrap().ends_with(&format!("{name}/cgroup.events")))
}

fn goes_on(how: fn(&mut Agent)) {
    let (mut agent, group) = (agent_that_is_asked(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let (mut helper, mut gone_meanwhile) = (Holder::start(&agent, UID), Holder::start(&agent, UID));
    group.take(helper.pid());
    group.take(gone_meanwhile.pid());
    let given =
        [&mut founder, &mut helper, &mut gone_meanwhile].map(|holder| issue(holder, &task).unwrap().token);
    kill(&agent, &mut gone_meanwhile, 1);
    how(&mut agent);
    founder.connect();
    helper.connect();
    let is = get(&mut founder, &task).unwrap();
    assert_eq!(
        (is.id.as_str(), is.state(), is.process_scope()),
        (&*task, proto::TaskState::Active, Scope::Cgroup)
    );
    assert_eq!((is.isolated, is.live_credentials), (true, 3));
    assert!(is_live(&agent, &task) && watches(&agent, &group));
    assert!(given.iter().all(|token| introspect(&agent, token)["active"] == true));
    issue(&mut founder, &task).unwrap();
    issue(&mut helper, &task).unwrap();
    let mut outside = Holder::start(&agent, UID);
    assert_eq!(issue(&mut outside, &task).unwrap_err().reason, "no_such_task");
    // What they were given is the task's, whoever of them exits, and whenever it was given.
    let first = kill(&agent, &mut founder, 2);
    assert_eq!(introspect(&agent, &given[0])["active"], true);
    issue(&mut helper, &task).unwrap();
    let second = helper.pid();
    helper.kill();
    agent.audited(&["task.ended", "process_exit", "\"credentials\":6", "\"isolated\":true", &task]);
    gone(&task, &agent);
    assert_eq!((live_of(&agent, first), live_of(&agent, second)), (0, 0));
    assert!(given.iter().all(|token| introspect(&agent, token)["active"] == false));
    let ended = agent.audit().into_iter().filter(|line| line["event"] == "task.ended").count();
    assert_eq!(ended, 1, "exactly once");
    until("nobody watches it", || (!watches(&agent, &group)).then_some(()));
}

#[test]
pub(super) fn a_task_in_a_cgroup_goes_on_after_a_restart() {
    goes_on(stopped);
}

#[test]
fn a_task_in_a_cgroup_goes_on_after_a_crash() {
    goes_on(killed);
}

/// What stands for the cgroup is held once for each task, however often the agent started meanwhile.
#[test]
fn a_cgroup_whose_tasks_have_ended_after_restarts_is_watched_no_more() {
    let (mut agent, group) = (agent(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let second = begin(&mut founder, Scope::Cgroup).unwrap().id;
    killed(&mut agent);
    stopped(&mut agent);
    founder.connect();
    assert!(!get(&mut founder, &task).unwrap().isolated, "two of them are there");
    for task in [task, second] {
        assert!(watches(&agent, &group));
        issue(&mut founder, &task).unwrap();
        let end = proto::EndRequest { task_id: task, ..Default::default() };
        founder.task_call::<proto::TaskSummary>("End", &end).unwrap();
    }
    assert!(!watches(&agent, &group));
    // Nor is anything left in the way of whoever begins there next.
    let third = begin(&mut founder, Scope::Cgroup).unwrap();
    assert!(third.isolated && watches(&agent, &group));
}

fn ended_by_the_restart(agent: &Agent, task: &str, token: &str) {
    agent.audited(&["task.ended", "\"reason\":\"restart\"", task]);
    assert!(!is_live(agent, task));
    assert_eq!(introspect(agent, token)["active"], false);
}

#[test]
fn a_task_in_a_cgroup_whose_founder_has_left_does_not_outlive_a_restart() {
    let (mut agent, group) = (agent_that_is_asked(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let mut helper = Holder::start(&agent, UID);
    group.take(helper.pid());
    let token = issue(&mut helper, &task).unwrap().token;
    kill(&agent, &mut founder, 0);
    assert!(is_live(&agent, &task));
    killed(&mut agent);
    ended_by_the_restart(&agent, &task, &token);
    helper.connect();
    assert_eq!(issue(&mut helper, &task).unwrap_err().reason, "no_such_task", "nobody holds it any more");
    assert!(!watches(&agent, &group));
}

#[test]
fn another_cgroup_of_the_same_path_holds_no_task_of_the_run_before() {
    let (mut agent, group) = (agent_that_is_asked(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let token = issue(&mut founder, &task).unwrap().token;
    agent.kill();
    cgroup::leave(founder.pid());
    until("the cgroup is removed", || std::fs::remove_dir(group.dir()).ok());
    std::fs::create_dir(group.dir()).unwrap();
    group.take(founder.pid());
    agent.launch();
    ended_by_the_restart(&agent, &task, &token);
    assert!(!watches(&agent, &group));
    founder.connect();
    assert!(begin(&mut founder, Scope::Cgroup).unwrap().isolated);
}

#[test]
fn a_cgroup_that_is_frozen_over_a_restart_goes_on_with_its_task() {
    let (mut agent, group) = (agent_that_is_asked(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let token = issue(&mut founder, &task).unwrap().token;
    let counter = Counter::start(&agent, &group);
    counter.goes_on();
    std::fs::write(group.dir().join("cgroup.freeze"), "1").unwrap();
    counter.stands_still(&group);
    killed(&mut agent);
    counter.stands_still(&group);
    assert!(is_live(&agent, &task));
    std::fs::write(group.dir().join("cgroup.freeze"), "0").unwrap();
    counter.goes_on();
    founder.connect();
    assert_eq!(get(&mut founder, &task).unwrap().state(), proto::TaskState::Active);
    issue(&mut founder, &task).unwrap();
    assert_eq!(introspect(&agent, &token)["active"], true);
}

#[test]
pub(super) fn a_task_of_one_process_beside_a_cgroups_task_is_seen_again_after_a_restart() {
    let (mut agent, group) = (agent(), Group::new("test"));
    let mut holder = Holder::start(&agent, UID);
    group.take(holder.pid());
    let one = begin(&mut holder, Scope::Cgroup).unwrap();
    assert!(one.isolated);
    let two = begin(&mut holder, Scope::Process).unwrap();
    killed(&mut agent);
    holder.connect();
    assert!(!get(&mut holder, &one.id).unwrap().isolated && !get(&mut holder, &two.id).unwrap().isolated);
    let end = proto::EndRequest { task_id: two.id, ..Default::default() };
    holder.task_call::<proto::TaskSummary>("End", &end).unwrap();
    assert!(get(&mut holder, &one.id).unwrap().isolated);
    let alone = proto::BeginRequest { require_isolated: true, ..request(Scope::Cgroup) };
    let refused = holder.task_call::<proto::Task>("Begin", &alone).unwrap_err();
    assert_eq!(refused.reason, "scope_unavailable", "somebody is there");
}
