//! What a freeze stops, and what it does not: whoever could let it go on.

use std::path::PathBuf;

use super::*;

/// A process that counts, as seen from outside.
pub(super) struct Counter {
    shell: Shell,
    file: PathBuf,
}

impl Counter {
    pub(super) fn start(agent: &Agent, group: &Group) -> Self {
        let file = agent.dir().join("count");
        let mut shell = Shell::start(0);
        group.take(shell.child.id());
        shell.tell(&format!("i=0; while :; do i=$((i+1)); echo $i > {}; done", file.display()));
        Self { shell, file }
    }

    fn count(&self) -> u64 {
        std::fs::read_to_string(&self.file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }

    pub(super) fn goes_on(&self) {
        let before = self.count();
        until("it counts", || (self.count() > before).then_some(()));
    }

    /// The kernel says so, and it is so.
    pub(super) fn stands_still(&self, group: &Group) {
        until("the cgroup is frozen", || group.read("cgroup.events").contains("frozen 1").then_some(()));
        let before = self.count();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(self.count(), before, "process {}", self.shell.child.id());
    }
}

#[test]
pub(super) fn what_is_frozen_stands_still_until_the_last_freeze_is_thawed() {
    let (agent, group) = (agent(), Group::new("test"));
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
    let (mut agent, group) = (agent(), Group::new("test"));
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
    let group = Group::new("test");
    let (_founder, task) = founder(&agent, &group);
    let counter = Counter::start(&agent, &group);
    let (code, out, err) = agent.mayfly(&["freeze", "--task", &task, "--server-uid", &OWN.to_string()]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("0 cgroups stand still, 1 holder of a task runs on"), "{out}");
    counter.goes_on();
    assert!(agent.log().contains("a cgroup of a frozen task does not stand still"), "{}", agent.log());
}

/// Whoever stops an agent must not stop the one that could let it go on, nor himself.
#[test]
fn the_cgroup_of_the_agent_or_of_whoever_orders_neither_stands_still_nor_dies() {
    let (agent, group) = (agent(), Group::new("test"));
    let (_founder, task) = founder(&agent, &group);
    group.take(agent.pid());
    let said = order(&agent, &["freeze", "--task", &task]);
    assert_eq!((&said["still"], &said["not_still"]), (&0.into(), &1.into()), "{said}");
    let (code, out, _) = agent.mayfly(&["kill", "--task", &task, "--output", "json"]);
    let said: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &said["tasks"], &said["not_killed"]), (Some(1), &1.into(), &1.into()), "{said}");
    cgroup::leave(agent.pid());
    order(&agent, &["thaw", "--task", &task]);
    let group = Group::new("test");
    let (_founder, task) = founder(&agent, &group);
    let below = group.dir().join("below");
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
