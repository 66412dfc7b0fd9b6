//! "Revoked" is answered when the ledger has it, and not before: memory refuses at once, and a crash must not undo what
//! somebody was told.

use mayfly_harness::policies::WIKI;
use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Entry, Holder, Jam, Plan, Policies, until};
use mayfly_proto::task as proto;
use serde_json::Value;

use crate::http::local;
use crate::support::own_uid;

/// An agent whose ledger cannot be written while it is jammed, and a process with a task and a token.
struct World {
    agent: Agent,
    jam: Jam,
    holder: Holder,
    task: String,
    token: String,
}

impl World {
    fn new() -> Self {
        let mut agent = Plan::with_entries(&[Entry::for_uid(own_uid())]).prepare();
        let (jam, spec) = Jam::at(agent.dir(), "ledger.before_begin");
        let plan = agent.plan().clone().failpoints(&spec);
        *agent.plan() = plan;
        let policies = Policies::open().permit("read");
        policies.target("wiki", &[("location", "https://wiki.example.org/api")]).install(&mut agent);
        agent.launch();
        let mut holder = Holder::start(&agent, own_uid());
        let (task, token) = holder.task(&format!("{WIKI}/api"), WIKI).unwrap();
        Self { agent, jam, holder, task, token }
    }

    fn is_active(&self) -> bool {
        local(&self.agent, "/introspect", &["-d", &format!("token={}", self.token)]).json()["active"] == true
    }

    fn give_back(&self) -> u16 {
        local(&self.agent, "/revoke", &["-d", &format!("token={}", self.token)]).status
    }

    fn ended(&self) -> Option<Value> {
        self.agent.audit().into_iter().find(|line| line["event"] == "task.ended")
    }

    /// The order is not taken for done, though memory refuses; nothing is on record that a crash would undo. When the ledger
    /// can be written again it has that, and so has the record.
    fn not_done(mut self, words: &[&str]) {
        self.jam.set();
        let (code, out, err) = self.agent.mayfly(words);
        assert_ne!(code, Some(0), "{words:?}: {out}{err}");
        assert!(err.contains("could not be written down"), "{words:?}: {err}");
        assert!(!self.is_active(), "{words:?}: memory refuses all the same");
        assert_eq!(self.ended(), None, "{words:?}");
        self.jam.clear();
        until("it is on record", || self.ended());
        until("all is well", || self.agent.admin().status().ready.then_some(()));
        self.agent.crash_and_restart();
        assert!(!self.is_active(), "{words:?}: what was owed was written");
        let (_, out, _) = self.agent.mayfly(&["task", "list"]);
        assert!(!out.contains(&self.task), "{words:?}: {out}");
    }
}

#[test]
fn a_revocation_by_pid_is_done_when_the_ledger_has_it() {
    let world = World::new();
    let pid = world.holder.pid().to_string();
    world.not_done(&["lease", "revoke", "--pid", &pid, "--reason", "stolen"]);
}

#[test]
fn a_kill_is_done_when_the_ledger_has_it() {
    let world = World::new();
    let task = world.task.clone();
    world.not_done(&["kill", "--task", &task, "--reason", "stolen"]);
}

/// A crash comes first: nobody was told that it is revoked, and the record does not say that the task has ended.
#[test]
fn what_a_crash_undoes_nobody_was_told_of() {
    let mut world = World::new();
    world.jam.set();
    let pid = world.holder.pid().to_string();
    let (code, _, err) = world.agent.mayfly(&["lease", "revoke", "--pid", &pid, "--reason", "stolen"]);
    assert_ne!(code, Some(0), "{err}");
    world.agent.kill();
    world.jam.clear();
    world.agent.launch();
    let (_, out, _) = world.agent.mayfly(&["task", "list"]);
    assert!(out.contains(&world.task), "{out}");
    assert_eq!(world.ended(), None, "a record of an end that a restart undid");
}

/// RFC 7009: 503, and whoever asks again is not told that all is well either, until it is.
#[test]
fn a_token_that_is_given_back_is_revoked_when_the_ledger_has_it() {
    let mut world = World::new();
    world.jam.set();
    assert_eq!(world.give_back(), 503);
    assert!(!world.is_active(), "memory refuses all the same");
    assert_eq!(world.give_back(), 503, "it is refused already, and that is not written down yet");
    world.jam.clear();
    until("it is written down", || (world.give_back() == 200).then_some(()));
    world.agent.crash_and_restart();
    assert!(!world.is_active());
}

#[test]
fn a_freeze_that_takes_back_is_done_when_the_ledger_has_it() {
    let world = World::new();
    world.jam.set();
    let (code, out, err) = world.agent.mayfly(&["freeze", "--task", &world.task, "--revoke"]);
    assert_ne!(code, Some(0), "{out}{err}");
    assert!(!world.is_active());
}

/// Of one credential: nobody is barred, so that the ledger alone says whether it is done.
#[test]
fn a_revocation_of_one_credential_is_done_when_the_ledger_has_it() {
    let mut world = World::new();
    let live = world.agent.admin().live_leases_of(world.holder.pid());
    world.jam.set();
    let (code, out, err) =
        world.agent.mayfly(&["lease", "revoke", "--lease", &live[0].id, "--reason", "stolen"]);
    assert_ne!(code, Some(0), "{out}{err}");
    assert!(err.contains("could not be written down"), "{err}");
    assert!(!world.is_active(), "memory refuses all the same");
    world.jam.clear();
    until("all is well", || world.agent.admin().status().ready.then_some(()));
    world.agent.crash_and_restart();
    assert!(!world.is_active(), "what was owed was written");
}

/// There is no credential to write down, and what has ended must not come back all the same.
#[test]
fn the_end_of_a_task_that_holds_nothing_is_on_record_when_the_ledger_has_it() {
    let mut world = World::new();
    let request = proto::BeginRequest {
        details: vec![detail(&format!("{WIKI}/api"), &["read"])],
        process_scope: proto::Scope::Process.into(),
        ..Default::default()
    };
    let idle: proto::Task = world.holder.task_call("Begin", &request).unwrap();
    world.jam.set();
    world.agent.mayfly(&["task", "end", &idle.id, "--reason", "done"]);
    assert_eq!(world.ended(), None, "a crash would undo it");
    world.jam.clear();
    let ended = until("it is on record", || world.ended());
    assert_eq!(ended["task"]["id"], idle.id.as_str(), "{ended}");
    until("all is well", || world.agent.admin().status().ready.then_some(()));
    world.agent.crash_and_restart();
    let (_, out, _) = world.agent.mayfly(&["task", "list"]);
    assert!(!out.contains(&idle.id), "{out}");
}

/// The file says what is frozen when the agent starts: what goes on by memory alone would stop again.
#[test]
fn a_thaw_that_cannot_be_written_down_is_none() {
    let world = World::new();
    let freezes = world.agent.data_dir().join("freezes.json");
    let order = |words: &str| world.agent.mayfly(&[words, "--task", &world.task]);
    assert_eq!(order("freeze").0, Some(0));
    assert!(!world.is_active());
    std::fs::remove_file(&freezes).unwrap();
    std::fs::create_dir_all(freezes.join("in the way")).unwrap();
    let (code, out, err) = order("thaw");
    assert!(code != Some(0) && err.contains("could not be written down"), "{out}{err}");
    assert!(!world.is_active(), "it stays frozen");
    assert!(!world.agent.audit().iter().any(|line| line["event"] == "thaw"), "nothing was thawed");
    std::fs::remove_dir_all(&freezes).unwrap();
    assert_eq!(order("thaw").0, Some(0));
    assert!(world.is_active());
}
