//! Tasks that are held by a cgroup: real ones, made by root and entered by processes of other users.

#[path = "task_cgroups_exec.rs"]
mod exec;
#[path = "task_cgroups_freeze.rs"]
mod freeze;
#[path = "task_cgroups_inside.rs"]
mod inside;
#[path = "task_cgroups_kill.rs"]
mod kill_and_restart;
#[path = "task_cgroups_older.rs"]
mod older;
#[path = "task_cgroups_restart.rs"]
mod restart;
#[path = "task_cgroups_run.rs"]
mod run;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use mayfly_harness::cgroup::{self, Group};
use mayfly_harness::policies::WIKI;
use mayfly_harness::tasks::{TaskRefusal, detail};
use mayfly_harness::{Agent, Entry, Holder, Plan, Policies, is_running, require_root, until};
use mayfly_proto::admin::revoke_leases_request::Target;
use mayfly_proto::task::{self as proto, Scope};
use serde_json::Value;

use crate::support::{WIDE, hash_of, uid_selector};

/// Only the isolated write.
fn policies() -> Policies {
    Policies::open()
        .permit("delegate")
        .permit("read")
        .rule(
            "@id(\"write\") permit(principal, action == Mayfly::Action::\"write\", resource)
             when { principal.posture.isolated };",
        )
        .target("wiki", &[])
        .template("look-up", "wiki", &["read"])
}

const UID: u32 = 20_941;
const OTHER: u32 = 20_942;
const STRANGER: u32 = 20_943;
const OWN: u32 = 20_944;

fn prepare(entries: &[Entry], uid: Option<u32>) -> Agent {
    require_root();
    let mut plan = Plan::with_entries(entries).settings(WIDE);
    plan.uid = uid;
    let mut agent = older::as_told(plan).prepare();
    policies().install(&mut agent);
    agent
}

fn agent() -> Agent {
    let mut agent = prepare(&[UID, OTHER].map(Entry::for_uid), None);
    agent.launch();
    agent
}

fn request(scope: Scope) -> proto::BeginRequest {
    proto::BeginRequest {
        details: vec![detail(WIKI, &["read", "write"])],
        process_scope: scope.into(),
        ..Default::default()
    }
}

fn begin(holder: &mut Holder, scope: Scope) -> Result<proto::Task, TaskRefusal> {
    holder.task_call("Begin", &request(scope))
}

fn get(holder: &mut Holder, task: &str) -> Result<proto::Task, TaskRefusal> {
    holder.task_call("Get", &proto::GetTaskRequest { task_id: task.to_owned() })
}

fn issue(holder: &mut Holder, task: &str) -> Result<proto::Credential, TaskRefusal> {
    let request = proto::IssueRequest {
        task_id: task.to_owned(),
        format: proto::Format::AccessToken.into(),
        audience: vec![WIKI.to_owned()],
        ..Default::default()
    };
    holder.task_call("Issue", &request)
}

/// A holder in the group, which holds a task by it.
fn founder(agent: &Agent, group: &Group) -> (Holder, String) {
    let mut holder = Holder::start(agent, UID);
    group.take(holder.pid());
    let task = begin(&mut holder, Scope::Unspecified).unwrap();
    assert_eq!((task.process_scope(), task.isolated), (Scope::Cgroup, true));
    (holder, task.id)
}

fn is_live(agent: &Agent, task: &str) -> bool {
    let (code, out, err) = agent.mayfly(&["task", "show", task, "--output", "json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    shown["state"] == "active"
}

/// Kills a holder; when this returns the agent has seen that, and only `left` of what it was given is good.
fn kill(agent: &Agent, holder: &mut Holder, left: usize) -> u32 {
    let pid = holder.pid();
    holder.jwt(WIKI).unwrap();
    holder.kill();
    until("the exit is seen", || (live_of(agent, pid) == left).then_some(()));
    pid
}

fn live_of(agent: &Agent, pid: u32) -> usize {
    agent.admin().live_leases_of(pid).len()
}

/// A shell that does what it is told, line by line.
struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Shell {
    fn start(uid: u32) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "while read -r line; do eval \"$line\"; done"]).uid(uid).gid(uid);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir("/").spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        Self { input: child.stdin.take().unwrap(), lines: Box::new(lines), child }
    }

    fn tell(&mut self, words: &str) {
        writeln!(self.input, "{words}").unwrap();
    }

    fn ask(&mut self, words: &str) -> String {
        self.tell(words);
        self.lines.next().expect("the shell ended")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn gone(task: &str, agent: &Agent) {
    until("the task has ended", || (!is_live(agent, task)).then_some(()));
}

#[test]
fn a_helper_acts_in_the_task_when_its_founder_has_exited_and_the_last_exit_ends_it() {
    let (agent, group) = (agent(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let mut helper = Holder::start(&agent, UID);
    group.take(helper.pid());
    issue(&mut founder, &task).unwrap();
    // What it had asked for is the task's.
    let first = kill(&agent, &mut founder, 1);
    let seen = get(&mut helper, &task).unwrap();
    assert!(seen.isolated && seen.state() == proto::TaskState::Active && seen.live_credentials == 1);
    issue(&mut helper, &task).unwrap();
    let second = helper.pid();
    helper.kill();
    agent.audited(&["task.ended", "process_exit", "\"credentials\":2", "\"isolated\":true", &task]);
    gone(&task, &agent);
    assert_eq!((live_of(&agent, first), live_of(&agent, second)), (0, 0));
    let ended = agent.audit().into_iter().filter(|line| line["event"] == "task.ended").count();
    assert_eq!(ended, 1, "exactly once");
}

#[test]
fn k01_whoever_is_outside_or_is_not_what_the_task_is_cannot_act_in_it() {
    let (agent, group) = (agent(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let (mut outside, mut other) = (Holder::start(&agent, UID), Holder::start(&agent, OTHER));
    let mut stranger = Holder::start(&agent, STRANGER);
    group.take(other.pid());
    group.take(stranger.pid());
    for holder in [&mut outside, &mut other] {
        assert_eq!(get(holder, &task).unwrap_err().reason, "no_such_task");
        assert_eq!(issue(holder, &task).unwrap_err().reason, "no_such_task");
    }
    let refused = issue(&mut stranger, &task).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (16, "not_attested"), "nothing is attested of it");
    // In a cgroup below: that is where a part of the task would be.
    let below = group.dir().join("below");
    std::fs::create_dir(&below).unwrap();
    cgroup::enter(&below, outside.pid());
    assert_eq!(issue(&mut outside, &task).unwrap_err().reason, "no_such_task");
    group.take(outside.pid());
    issue(&mut outside, &task).unwrap();
    // Moved out by root, and with that out of the task, at the very next call.
    cgroup::leave(outside.pid());
    assert_eq!(issue(&mut outside, &task).unwrap_err().reason, "no_such_task");
    cgroup::leave(founder.pid());
    assert_eq!(issue(&mut founder, &task).unwrap_err().reason, "no_such_task");
    std::fs::remove_dir(below).unwrap();
}

#[test]
fn c08_a_cgroup_that_a_user_owns_or_that_others_are_in_isolates_nothing() {
    let (agent, group) = (agent(), Group::new("test"));
    let mut holder = Holder::start(&agent, UID);
    let not_isolated = |why: &str, holder: &mut Holder| {
        let task = begin(holder, Scope::Unspecified).unwrap();
        assert_eq!((task.process_scope(), task.isolated), (Scope::Process, false), "{why}");
        let actions = task.details.iter().flat_map(|detail| detail.actions.clone()).collect::<Vec<_>>();
        assert_eq!(actions, ["read"], "{why}: policy gives `write` to the isolated alone");
        assert_eq!(begin(holder, Scope::Cgroup).unwrap_err().reason, "scope_unavailable", "{why}");
        let alone = proto::BeginRequest { require_isolated: true, ..request(Scope::Unspecified) };
        let refused = holder.task_call::<proto::Task>("Begin", &alone).unwrap_err();
        assert_eq!(refused.reason, "scope_unavailable", "{why}");
    };
    not_isolated("the root of the hierarchy", &mut holder);
    agent.audited(&["\"phase\":\"scope\"", "root of the hierarchy"]);
    group.take(holder.pid());
    let sleeper = Shell::start(UID);
    group.take(sleeper.child.id());
    not_isolated("somebody else is in it", &mut holder);
    drop(sleeper);
    std::os::unix::fs::chown(group.dir().join("cgroup.procs"), Some(UID), None).unwrap();
    not_isolated("it is the user's", &mut holder);
    agent.audited(&["\"phase\":\"scope\"", "other hands than root's"]);
    std::os::unix::fs::chown(group.dir().join("cgroup.procs"), Some(0), None).unwrap();
    // The tasks above are live: whoever acts in them is in this cgroup.
    let shared = begin(&mut holder, Scope::Cgroup).unwrap();
    assert_eq!((shared.process_scope(), shared.isolated), (Scope::Cgroup, false));
}

#[test]
fn a_task_is_isolated_as_long_as_nobody_else_has_a_seat_in_its_cgroup() {
    let (agent, group) = (agent(), Group::new("test"));
    let mut holder = Holder::start(&agent, UID);
    group.take(holder.pid());
    let alone = proto::BeginRequest { require_isolated: true, ..request(Scope::Unspecified) };
    let first: proto::Task = holder.task_call("Begin", &alone).unwrap();
    assert!(first.isolated);
    let actions = first.details.iter().flat_map(|detail| detail.actions.clone()).collect::<Vec<_>>();
    assert_eq!(actions, ["read", "write"]);
    for scope in [Scope::Cgroup, Scope::Process, Scope::Unspecified] {
        assert_eq!(begin(&mut holder, scope).unwrap_err().reason, "scope_unavailable", "{scope:?}");
    }
    let end = proto::EndRequest { task_id: first.id, ..Default::default() };
    holder.task_call::<proto::TaskSummary>("End", &end).unwrap();
    let one = begin(&mut holder, Scope::Cgroup).unwrap();
    assert!(one.isolated);
    let two = begin(&mut holder, Scope::Process).unwrap();
    assert!(!two.isolated && !get(&mut holder, &one.id).unwrap().isolated);
    let end = proto::EndRequest { task_id: two.id, ..Default::default() };
    holder.task_call::<proto::TaskSummary>("End", &end).unwrap();
    assert!(get(&mut holder, &one.id).unwrap().isolated);
    // Two in one cgroup end together.
    let three = begin(&mut holder, Scope::Cgroup).unwrap();
    assert!(!three.isolated && !get(&mut holder, &one.id).unwrap().isolated);
    holder.kill();
    gone(&one.id, &agent);
    gone(&three.id, &agent);
}

/// Threats C08: real attempts to get out, or into another's.
#[test]
fn c08_nobody_but_root_leaves_a_tasks_cgroup_or_enters_one() {
    let (group, elsewhere) = (Group::new("test"), Group::new("test"));
    require_root();
    let mut shell = Shell::start(UID);
    group.take(shell.child.id());
    let (own, other, top) = (group.dir().display(), elsewhere.dir().display(), cgroup::root());
    let top = top.display();
    for attempt in [
        format!("echo $$ > {top}/cgroup.procs"),
        format!("echo $$ > {other}/cgroup.procs"),
        format!("echo $$ > {own}/cgroup.procs"),
        format!("echo $$ > {top}/cgroup.threads"),
        format!("echo 0 > {own}/cgroup.freeze"),
        format!("echo 1 > {other}/cgroup.kill"),
        format!("mkdir {own}/below"),
    ] {
        let said = shell.ask(&format!("({attempt}) 2>&1 | tr '\\n' ' '; echo"));
        assert!(said.contains("Permission denied"), "{attempt}: {said}");
    }
    assert_eq!(group.read("cgroup.procs").trim(), shell.child.id().to_string());
}

#[test]
fn the_last_exit_ends_everything_below_as_well() {
    let (agent, group) = (agent(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    let mut child = Holder::start(&agent, OTHER);
    let offer = proto::DelegateRequest {
        task_id: task.clone(),
        spiffe_id: format!("spiffe://example.org/uid/{OTHER}"),
        details: vec![detail(WIKI, &["read"])],
        ..Default::default()
    };
    let offer: proto::Delegation = founder.task_call("Delegate", &offer).unwrap();
    let join = proto::JoinRequest { delegation_id: offer.id, ..Default::default() };
    let joined: proto::Task = child.task_call("Join", &join).unwrap();
    issue(&mut founder, &task).unwrap();
    issue(&mut child, &joined.id).unwrap();
    founder.kill();
    agent.audited(&["task.ended", "parent_ended", &joined.id]);
    agent.audited(&["task.ended", "process_exit", "\"credentials\":2", "\"descendants\":1", &task]);
    assert_eq!(issue(&mut child, &joined.id).unwrap_err().reason, "task_ended");
    assert_eq!((live_of(&agent, founder.pid()), live_of(&agent, child.pid())), (0, 0));
}

#[test]
fn a_child_that_outlives_its_parent_keeps_the_task_and_is_killed_with_it() {
    let (agent, group) = (agent(), Group::new("test"));
    let (mut founder, task) = founder(&agent, &group);
    issue(&mut founder, &task).unwrap();
    let mut parent = Shell::start(UID);
    group.take(parent.child.id());
    // Twice forked, with a session of its own and nobody to wait for it.
    let daemon: u32 = parent.ask("(setsid sleep 1000 >/dev/null 2>&1 & echo $!)").parse().unwrap();
    let first = kill(&agent, &mut founder, 1);
    drop(parent);
    assert!(is_live(&agent, &task) && is_running(daemon));
    assert_eq!(group.read("cgroup.procs").trim(), daemon.to_string());
    let (code, out, err) = agent.mayfly(&["kill", "--task", &task, "--output", "json"]);
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!((code, &said["tasks"], &said["processes"]), (Some(0), &1.into(), &1.into()), "{said} {err}");
    until("the daemon is gone", || (!is_running(daemon)).then_some(()));
    agent.audited(&["task.ended", "kill_switch", &task]);
    assert_eq!(live_of(&agent, first), 0);
}

fn order(agent: &Agent, words: &[&str]) -> Value {
    let words: Vec<&str> = words.iter().copied().chain(["--output", "json"]).collect();
    let (code, out, err) = agent.mayfly(&words);
    assert_eq!(code, Some(0), "{out}{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn a_cgroup_that_cannot_be_watched_holds_no_task() {
    let mut agent = prepare(&[UID].map(Entry::for_uid), None);
    let jam = agent.jam_at("reaper.cgroup");
    agent.launch();
    jam.set();
    let group = Group::new("test");
    let mut holder = Holder::start(&agent, UID);
    group.take(holder.pid());
    let refused = begin(&mut holder, Scope::Unspecified).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (14, ""), "{refused:?}");
    let list = order(&agent, &["task", "list"]);
    assert_eq!(list["tasks"].as_array().map(Vec::len), Some(0), "{list}");
    jam.clear();
    begin(&mut holder, Scope::Cgroup).unwrap();
}

#[test]
fn a_founder_that_becomes_something_else_loses_the_task_and_one_that_exits_does_not() {
    require_root();
    let mut agent = prepare(&[], None);
    let program = mayfly_harness::holder::holder_program(&agent);
    agent.write_entries(&[Entry::new("/agent", &[&uid_selector(UID), &hash_of(&program)])]);
    agent.launch();
    let group = Group::new("test");
    let (mut one, task) = founder(&agent, &group);
    let mut helper = Holder::start(&agent, UID);
    group.take(helper.pid());
    issue(&mut helper, &task).unwrap();
    one.exec(Path::new("/bin/sleep"), &["1000"]);
    agent.audited(&["task.ended", "\"policy\"", &task]);
    assert_eq!(issue(&mut helper, &task).unwrap_err().reason, "task_ended");
    assert_eq!(live_of(&agent, helper.pid()), 0);
    one.kill();
    // What rests on one that has exited is matched again when the entries change.
    let task = begin(&mut helper, Scope::Cgroup).unwrap().id;
    let mut second = Holder::start(&agent, UID);
    group.take(second.pid());
    kill(&agent, &mut helper, 0);
    issue(&mut second, &task).unwrap();
    agent.write_entries(&[]);
    agent.audited(&["task.ended", "\"policy\"", "entries", &task]);
    assert_eq!(live_of(&agent, second.pid()), 0);
}

#[test]
fn what_an_operator_takes_from_one_in_a_cgroup_is_taken() {
    let (agent, group) = (agent(), Group::new("test"));
    let mut tasks = Vec::new();
    let start = |holders: &mut Vec<Holder>| {
        let (founder, task) = founder(&agent, &group);
        let mut helper = Holder::start(&agent, UID);
        group.take(helper.pid());
        let issued = issue(&mut helper, &task).unwrap();
        let pid = kill(&agent, &mut helper, 1);
        holders.push(founder);
        (task, pid, issued.id)
    };
    // A credential whose process is long gone.
    let (task, pid, lease) = start(&mut tasks);
    agent.admin().revoke(Target::LeaseId(lease)).unwrap();
    assert!(!is_live(&agent, &task) && live_of(&agent, pid) == 0);
    tasks.clear();
    // The process that began.
    let (task, pid, _) = start(&mut tasks);
    agent.admin().revoke(Target::Pid(tasks[0].pid())).unwrap();
    assert!(!is_live(&agent, &task) && live_of(&agent, pid) == 0);
    tasks.clear();
    // The identity, when the process that began is gone.
    let (task, pid, _) = start(&mut tasks);
    let shell = Shell::start(UID);
    group.take(shell.child.id());
    tasks.clear();
    assert!(is_live(&agent, &task));
    agent.admin().revoke(Target::SpiffeId(format!("spiffe://example.org/uid/{UID}"))).unwrap();
    assert!(!is_live(&agent, &task) && live_of(&agent, pid) == 0);
}
