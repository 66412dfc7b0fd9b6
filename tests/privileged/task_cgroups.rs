//! Tasks that are held by a cgroup: real ones, made by root and entered by processes of other users.

#[path = "task_cgroups_inside.rs"]
mod inside;
#[path = "task_cgroups_kill.rs"]
mod kill_and_restart;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use mayfly_harness::tasks::{TaskRefusal, detail};
use mayfly_harness::{Agent, Entry, Holder, Plan, files, require_root, until};
use mayfly_proto::admin::revoke_leases_request::Target;
use mayfly_proto::task::{self as proto, Scope};
use serde_json::Value;

use crate::support::{WIDE, hash_of, uid_selector};

const POLICY: &str = r#"
@id("fetch") permit(principal, action == Mayfly::Action::"fetch", resource);
@id("begin") permit(principal, action == Mayfly::Action::"begin", resource);
@id("delegate") permit(principal, action == Mayfly::Action::"delegate", resource);
@id("read") permit(principal, action == Mayfly::Action::"read", resource);
@id("write") permit(principal, action == Mayfly::Action::"write", resource)
  when { principal.posture.isolated };
"#;

const CATALOGUE: &str = r#"
[[agents]]
spiffe_id = "spiffe://example.org/**"
groups = ["researchers"]
owner = "docs"
templates = ["*"]

[[targets]]
name = "wiki"
audience = "https://wiki.example.org"
data_class = "internal"
groups = ["kb"]
owner = "docs"
binding = "none"

[[templates]]
name = "look-up"
description = "Reads"
owner = "docs"
[[templates.details]]
target = "wiki"
actions = ["read"]
"#;

const WIKI: &str = "https://wiki.example.org";
const UID: u32 = 20_941;
const OTHER: u32 = 20_942;
const STRANGER: u32 = 20_943;
const OWN: u32 = 20_944;

fn root() -> PathBuf {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.exists() { hybrid.to_owned() } else { PathBuf::from("/sys/fs/cgroup") }
}

/// A cgroup in root's hands, gone with the value, and everybody in it.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mayfly-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = root().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn take(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        std::fs::write(self.0.join("cgroup.kill"), "1").ok();
        for _ in 0..2_500 {
            if std::fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

fn prepare(entries: &[Entry], uid: Option<u32>) -> Agent {
    require_root();
    let mut plan = Plan::with_entries(entries).settings(WIDE);
    plan.uid = uid;
    let mut agent = plan.prepare();
    let dir = agent.dir().join("policy.d");
    std::fs::create_dir(&dir).unwrap();
    agent.plan().settings += &format!("\n[policy]\ndir = {dir:?}\n");
    agent.write_config();
    files::replace(&dir.join("a.cedar"), POLICY.as_bytes(), 0o644);
    files::replace(&dir.join("b.toml"), CATALOGUE.as_bytes(), 0o644);
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

/// Whether the process runs: one that is dead and not waited for does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn gone(task: &str, agent: &Agent) {
    until("the task has ended", || (!is_live(agent, task)).then_some(()));
}

#[test]
fn a_helper_acts_in_the_task_when_its_founder_has_exited_and_the_last_exit_ends_it() {
    let (agent, group) = (agent(), Group::new());
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
    let (agent, group) = (agent(), Group::new());
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
    let below = group.0.join("below");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("cgroup.procs"), outside.pid().to_string()).unwrap();
    assert_eq!(issue(&mut outside, &task).unwrap_err().reason, "no_such_task");
    group.take(outside.pid());
    issue(&mut outside, &task).unwrap();
    // Moved out by root, and with that out of the task, at the very next call.
    std::fs::write(root().join("cgroup.procs"), outside.pid().to_string()).unwrap();
    assert_eq!(issue(&mut outside, &task).unwrap_err().reason, "no_such_task");
    std::fs::write(root().join("cgroup.procs"), founder.pid().to_string()).unwrap();
    assert_eq!(issue(&mut founder, &task).unwrap_err().reason, "no_such_task");
    std::fs::remove_dir(below).unwrap();
}

#[test]
fn c08_a_cgroup_that_a_user_owns_or_that_others_are_in_isolates_nothing() {
    let (agent, group) = (agent(), Group::new());
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
    std::os::unix::fs::chown(group.0.join("cgroup.procs"), Some(UID), None).unwrap();
    not_isolated("it is the user's", &mut holder);
    agent.audited(&["\"phase\":\"scope\"", "other hands than root's"]);
    std::os::unix::fs::chown(group.0.join("cgroup.procs"), Some(0), None).unwrap();
    // The tasks above are live: whoever acts in them is in this cgroup.
    let shared = begin(&mut holder, Scope::Cgroup).unwrap();
    assert_eq!((shared.process_scope(), shared.isolated), (Scope::Cgroup, false));
}

#[test]
fn a_task_is_isolated_as_long_as_nobody_else_has_a_seat_in_its_cgroup() {
    let (agent, group) = (agent(), Group::new());
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
    let (group, elsewhere) = (Group::new(), Group::new());
    require_root();
    let mut shell = Shell::start(UID);
    group.take(shell.child.id());
    let (own, other, top) = (group.0.display(), elsewhere.0.display(), root());
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
    let (agent, group) = (agent(), Group::new());
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
    let (agent, group) = (agent(), Group::new());
    let (mut founder, task) = founder(&agent, &group);
    issue(&mut founder, &task).unwrap();
    let mut parent = Shell::start(UID);
    group.take(parent.child.id());
    // Twice forked, with a session of its own and nobody to wait for it.
    let daemon: u32 = parent.ask("(setsid sleep 1000 >/dev/null 2>&1 & echo $!)").parse().unwrap();
    let first = kill(&agent, &mut founder, 1);
    drop(parent);
    assert!(is_live(&agent, &task) && runs(daemon));
    assert_eq!(group.read("cgroup.procs").trim(), daemon.to_string());
    let (code, out, err) = agent.mayfly(&["kill", "--task", &task, "--output", "json"]);
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!((code, &said["tasks"], &said["processes"]), (Some(0), &1.into(), &1.into()), "{said} {err}");
    until("the daemon is gone", || (!runs(daemon)).then_some(()));
    agent.audited(&["task.ended", "kill_switch", &task]);
    assert_eq!(live_of(&agent, first), 0);
}

/// A process that counts, as seen from outside.
struct Counter {
    shell: Shell,
    file: PathBuf,
}

impl Counter {
    fn start(agent: &Agent, group: &Group) -> Self {
        let file = agent.dir().join("count");
        let mut shell = Shell::start(0);
        group.take(shell.child.id());
        shell.tell(&format!("i=0; while :; do i=$((i+1)); echo $i > {}; done", file.display()));
        Self { shell, file }
    }

    fn count(&self) -> u64 {
        std::fs::read_to_string(&self.file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }

    fn goes_on(&self) {
        let before = self.count();
        until("it counts", || (self.count() > before).then_some(()));
    }

    /// The kernel says so, and it is so.
    fn stands_still(&self, group: &Group) {
        until("the cgroup is frozen", || group.read("cgroup.events").contains("frozen 1").then_some(()));
        let before = self.count();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(self.count(), before, "process {}", self.shell.child.id());
    }
}

fn order(agent: &Agent, words: &[&str]) -> Value {
    let words: Vec<&str> = words.iter().copied().chain(["--output", "json"]).collect();
    let (code, out, err) = agent.mayfly(&words);
    assert_eq!(code, Some(0), "{out}{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn what_is_frozen_stands_still_until_the_last_freeze_is_thawed() {
    let (agent, group) = (agent(), Group::new());
    let (_founder, task) = founder(&agent, &group);
    let counter = Counter::start(&agent, &group);
    counter.goes_on();
    let id = format!("spiffe://example.org/uid/{UID}");
    let said = order(&agent, &["freeze", "--task", &task]);
    assert_eq!((&said["still"], &said["not_still"]), (&1.into(), &0.into()), "{said}");
    counter.stands_still(&group);
    order(&agent, &["freeze", "--agent", &id]);
    order(&agent, &["thaw", "--task", &task]);
    counter.stands_still(&group);
    order(&agent, &["thaw", "--agent", &id]);
    counter.goes_on();
}

#[test]
fn what_was_frozen_goes_on_when_it_is_thawed_after_a_restart_of_the_agent() {
    let (mut agent, group) = (agent(), Group::new());
    let (mut founder, task) = founder(&agent, &group);
    let counter = Counter::start(&agent, &group);
    counter.goes_on();
    order(&agent, &["freeze", "--task", &task]);
    counter.stands_still(&group);
    agent.crash_and_restart();
    counter.stands_still(&group);
    order(&agent, &["thaw", "--task", &task]);
    counter.goes_on();
    assert!(is_live(&agent, &task));
    founder.connect();
    issue(&mut founder, &task).unwrap();
}

#[test]
fn an_agent_that_may_not_write_to_cgroups_says_who_runs_on() {
    require_root();
    let mut agent = prepare(&[UID].map(Entry::for_uid), Some(OWN));
    agent.launch();
    let group = Group::new();
    let (_founder, task) = founder(&agent, &group);
    let counter = Counter::start(&agent, &group);
    let (code, out, err) = agent.mayfly(&["freeze", "--task", &task, "--server-uid", &OWN.to_string()]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("0 cgroups stand still, 1 holder of a task runs on"), "{out}");
    counter.goes_on();
    assert!(agent.log().contains("a cgroup of a frozen task does not stand still"), "{}", agent.log());
}

#[test]
fn a_cgroup_that_cannot_be_watched_holds_no_task() {
    let mut agent = prepare(&[UID].map(Entry::for_uid), None);
    let switch = agent.dir().to_owned();
    let spec = format!("reaper.cgroup=fail:{}", switch.display());
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    agent.launch();
    std::fs::write(switch.join("reaper.cgroup.fail"), "").unwrap();
    let group = Group::new();
    let mut holder = Holder::start(&agent, UID);
    group.take(holder.pid());
    let refused = begin(&mut holder, Scope::Unspecified).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (14, ""), "{refused:?}");
    let list = order(&agent, &["task", "list"]);
    assert_eq!(list["tasks"].as_array().map(Vec::len), Some(0), "{list}");
    std::fs::remove_file(switch.join("reaper.cgroup.fail")).unwrap();
    begin(&mut holder, Scope::Cgroup).unwrap();
}

#[test]
fn a_founder_that_becomes_something_else_loses_the_task_and_one_that_exits_does_not() {
    require_root();
    let mut agent = prepare(&[], None);
    let program = mayfly_harness::holder::holder_program(&agent);
    agent.write_entries(&[Entry::new("/agent", &[&uid_selector(UID), &hash_of(&program)])]);
    agent.launch();
    let group = Group::new();
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
    let (agent, group) = (agent(), Group::new());
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

/// `mayfly run` as root: whoever it starts says its pid, its task and its cgroup first.
struct Run {
    child: Child,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Run {
    fn start(agent: &Agent, arguments: &[&str]) -> Self {
        Self::start_by(agent, Command::new(agent.binary()), arguments)
    }

    /// With `mayfly run` in that cgroup itself.
    fn start_in(agent: &Agent, group: &Group, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"", group.0.display());
        command.args(["-c", &enter]).arg(agent.binary());
        Self::start_by(agent, command, arguments)
    }

    fn start_by(agent: &Agent, mut command: Command, arguments: &[&str]) -> Self {
        let script = "echo $$; echo $MAYFLY_TASK; grep ^0:: /proc/self/cgroup; \
                      while read -r line; do eval \"$line\"; done";
        command.arg("run").args(arguments).args(["--", "sh", "-c", script]);
        command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        Self { child, lines: Box::new(lines) }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the program ended")
    }

    fn tell(&mut self, words: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{words}").unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

fn agent_of_root() -> Agent {
    let mut agent = prepare(&[Entry::for_uid(0)], None);
    agent.launch();
    agent
}

#[test]
fn mayfly_run_gives_a_program_a_cgroup_which_goes_with_it_and_with_whom_it_left_behind() {
    let agent = agent_of_root();
    let mut run = Run::start(&agent, &["--task", "look-up"]);
    let (pid, task, line) = (run.line(), run.line(), run.line());
    let name = line.rsplit('/').next().unwrap();
    assert!(name.starts_with("mayfly-run-"), "{line}");
    let group = root().join(line.strip_prefix("0::/").unwrap());
    let shown = order(&agent, &["task", "show", &task]);
    assert_eq!((&shown["isolated"], &shown["scope"]), (&true.into(), &"cgroup".into()), "{shown}");
    assert!(std::fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().any(|line| line == pid));
    run.tell("setsid sleep 1000 >/dev/null 2>&1 & echo $!");
    let daemon: u32 = run.line().parse().unwrap();
    assert!(runs(daemon));
    run.tell("exit 7");
    let (code, said) = run.end();
    assert_eq!(code, Some(7));
    assert!(said.contains("killed 1 process that the program left behind"), "{said}");
    assert!(!runs(daemon) && !group.exists());
    agent.audited(&["task.ended", "process_exit", &task]);
}

#[test]
fn mayfly_run_leaves_a_program_where_it_is_if_that_is_wanted() {
    let agent = agent_of_root();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find(|line| line.starts_with("0::")).unwrap();
    let mut run = Run::start(&agent, &["--no-cgroup", "--task", "look-up"]);
    let (_, task, line) = (run.line(), run.line(), run.line());
    assert_eq!(line, own);
    let shown = order(&agent, &["task", "show", &task]);
    assert_eq!((&shown["isolated"], &shown["scope"]), (&false.into(), &"process".into()), "{shown}");
    assert_eq!(run.end().0, Some(0));
}

/// One that was killed could not tidy up; the next does.
#[test]
fn what_a_killed_mayfly_run_left_is_removed_by_the_next() {
    let agent = agent_of_root();
    let mut run = Run::start(&agent, &[]);
    let (pid, _, line) = (run.line(), run.line(), run.line());
    let group = root().join(line.strip_prefix("0::/").unwrap());
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    until("the program is gone", || (!runs(pid.parse().unwrap())).then_some(()));
    assert!(group.exists());
    assert_eq!(Run::start(&agent, &[]).end().0, Some(0));
    assert!(!group.exists());
}

/// A unit of systemd that runs `mayfly run` as a user: the keeper is in the same cgroup, and alone with the program.
#[test]
fn a_keeper_in_the_same_cgroup_does_no_harm_and_somebody_else_does() {
    let agent = agent_of_root();
    let token = format!("WIKI_FILE={WIKI}");
    let kept = ["--no-cgroup", "--task", "look-up", "--token", &token];
    let scope_of = |arguments: &[&str], besides: Option<&Shell>| {
        let group = Group::new();
        besides.into_iter().for_each(|shell| group.take(shell.child.id()));
        let mut run = Run::start_in(&agent, &group, arguments);
        let (_, task, _) = (run.line(), run.line(), run.line());
        let shown = order(&agent, &["task", "show", &task]);
        assert_eq!(shown["isolated"] == true, shown["scope"] == "cgroup", "{shown}");
        run.tell("exit 0");
        assert_eq!(run.end().0, Some(0));
        gone(&task, &agent);
        shown["scope"].as_str().unwrap().to_owned()
    };
    assert_eq!(scope_of(&kept, None), "cgroup");
    assert_eq!(scope_of(&kept, Some(&Shell::start(0))), "process");
    assert_eq!(scope_of(&kept[..3], None), "process", "its parent is there, and no keeper");
}

/// Whoever stops an agent must not stop the one that could let it go on, nor himself.
#[test]
fn the_cgroup_of_the_agent_or_of_whoever_orders_neither_stands_still_nor_dies() {
    let (agent, group) = (agent(), Group::new());
    let (_founder, task) = founder(&agent, &group);
    group.take(agent.pid());
    let said = order(&agent, &["freeze", "--task", &task]);
    assert_eq!((&said["still"], &said["not_still"]), (&0.into(), &1.into()), "{said}");
    let (code, out, _) = agent.mayfly(&["kill", "--task", &task, "--output", "json"]);
    let said: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &said["tasks"], &said["not_killed"]), (Some(1), &1.into(), &1.into()), "{said}");
    std::fs::write(root().join("cgroup.procs"), agent.pid().to_string()).unwrap();
    order(&agent, &["thaw", "--task", &task]);
    let group = Group::new();
    let (_founder, task) = founder(&agent, &group);
    let below = group.0.join("below");
    std::fs::create_dir(&below).unwrap();
    let words = format!(
        "echo $$ > {}/cgroup.procs; exec {} freeze --task {task} --socket unix://{} --output json",
        below.display(),
        agent.binary().display(),
        agent.admin_socket().display()
    );
    let output = Command::new("sh").args(["-c", &words]).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!((&said["still"], &said["not_still"]), (&0.into(), &1.into()), "{said}");
    assert!(group.read("cgroup.events").contains("frozen 0"));
    std::fs::remove_dir(below).unwrap();
}

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

fn killed(agent: &mut Agent) {
    agent.crash_and_restart();
}

fn stopped(agent: &mut Agent) {
    assert!(agent.stop().success());
    agent.launch();
}

/// Whether the agent watches that cgroup: it holds its `cgroup.events` open as long as it does.
fn watches(agent: &Agent, group: &Group) -> bool {
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
    let paths = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let name = group.0.file_name().unwrap().to_str().unwrap();
    paths.into_iter().any(|path| path.to_str().unwrap().ends_with(&format!("{name}/cgroup.events")))
}

fn goes_on(how: fn(&mut Agent)) {
    let (mut agent, group) = (agent_that_is_asked(), Group::new());
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
fn a_task_in_a_cgroup_goes_on_after_a_restart() {
    goes_on(stopped);
}

#[test]
fn a_task_in_a_cgroup_goes_on_after_a_crash() {
    goes_on(killed);
}

/// What stands for the cgroup is held once for each task, however often the agent started meanwhile.
#[test]
fn a_cgroup_whose_tasks_have_ended_after_restarts_is_watched_no_more() {
    let (mut agent, group) = (agent(), Group::new());
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
    let (mut agent, group) = (agent_that_is_asked(), Group::new());
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
    let (mut agent, group) = (agent_that_is_asked(), Group::new());
    let (mut founder, task) = founder(&agent, &group);
    let token = issue(&mut founder, &task).unwrap().token;
    agent.kill();
    std::fs::write(root().join("cgroup.procs"), founder.pid().to_string()).unwrap();
    until("the cgroup is removed", || std::fs::remove_dir(&group.0).ok());
    std::fs::create_dir(&group.0).unwrap();
    group.take(founder.pid());
    agent.launch();
    ended_by_the_restart(&agent, &task, &token);
    assert!(!watches(&agent, &group));
    founder.connect();
    assert!(begin(&mut founder, Scope::Cgroup).unwrap().isolated);
}

#[test]
fn a_cgroup_that_is_frozen_over_a_restart_goes_on_with_its_task() {
    let (mut agent, group) = (agent_that_is_asked(), Group::new());
    let (mut founder, task) = founder(&agent, &group);
    let token = issue(&mut founder, &task).unwrap().token;
    let counter = Counter::start(&agent, &group);
    counter.goes_on();
    std::fs::write(group.0.join("cgroup.freeze"), "1").unwrap();
    counter.stands_still(&group);
    killed(&mut agent);
    counter.stands_still(&group);
    assert!(is_live(&agent, &task));
    std::fs::write(group.0.join("cgroup.freeze"), "0").unwrap();
    counter.goes_on();
    founder.connect();
    assert_eq!(get(&mut founder, &task).unwrap().state(), proto::TaskState::Active);
    issue(&mut founder, &task).unwrap();
    assert_eq!(introspect(&agent, &token)["active"], true);
}

#[test]
fn a_task_of_one_process_beside_a_cgroups_task_is_seen_again_after_a_restart() {
    let (mut agent, group) = (agent(), Group::new());
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
