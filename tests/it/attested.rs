//! What a process was attested as stands in the record once, and again when it is something else.

use mayfly_harness::holder::Who;
use mayfly_harness::{Agent, Entry, Holder, Jam, Plan, files, until};
use mayfly_proto::task as proto;
use serde_json::Value;

use crate::children::{World, begin, issue};
use crate::support::{client, own_uid};

/// Lines about that process, in order.
fn attested(agent: &Agent, pid: u32) -> Vec<Value> {
    let of_it = |line: &Value| line["event"] == "agent.attested" && line["agent"]["pid"] == pid;
    agent.audit().into_iter().filter(of_it).collect()
}

fn reasons(agent: &Agent, pid: u32) -> Vec<String> {
    attested(agent, pid).iter().map(|line| line["detail"]["reason"].as_str().unwrap().to_owned()).collect()
}

fn pause() {
    // An attestation serves for a second: after that each call makes another.
    std::thread::sleep(std::time::Duration::from_millis(1_200));
}

#[test]
fn a_process_is_told_of_once_however_often_it_calls() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let task = begin(&mut planner);
    let token = issue(&mut planner, &task).unwrap();
    for _ in 0..2 {
        pause();
        planner.connect();
        planner.jwt("urn:a").unwrap();
        ann.connect();
        ann.jwt("urn:b").unwrap();
    }
    for (holder, spiffe_id) in
        [(&planner, "spiffe://example.org/planner"), (&ann, "spiffe://example.org/worker/ann")]
    {
        let lines = attested(&world.agent, holder.pid());
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!((&line["detail"]["reason"], &line["severity"]), (&"first".into(), &"info".into()));
        let agent = &line["agent"];
        assert_eq!((&agent["spiffe_id"], &agent["uid"]), (&spiffe_id.into(), &own_uid().into()));
        assert!(agent["exe_sha256"].is_string() && agent["selectors_hash"].is_string(), "{line}");
        assert!(
            agent.get("k8s").is_none() && agent.get("image_digest").is_none(),
            "nobody said that: {line}"
        );
    }
    let first = &attested(&world.agent, planner.pid())[0];
    let begun = world.agent.audited(&["\"task.begin\"", &task.id]);
    let issued = world.agent.audited(&["\"credential.issue\"", &token.id]);
    assert_eq!(first["agent"], begun["agent"]);
    let seq = |line: &Value| line["seq"].as_u64().unwrap();
    assert!(seq(first) < seq(&begun) && seq(&begun) < seq(&issued), "who it is comes before what it does");
    let log = world.agent.audit_path();
    let (code, out, _) =
        world.agent.mayfly(&["audit", "query", "--event", "agent.attested", log.to_str().unwrap()]);
    assert!(code == Some(0) && out.lines().count() == 2 && out.contains("reason=first"), "{out}");
    assert_eq!(world.agent.mayfly(&["audit", "verify", log.to_str().unwrap()]).0, Some(0));
}

#[test]
fn a_process_that_becomes_another_program_is_told_of_again() {
    let agent = Plan::for_uids(&[own_uid()]).start();
    let mut holder = client(&agent);
    holder.jwt("urn:a").unwrap();
    assert_eq!(reasons(&agent, holder.pid()), ["first"]);
    let other = agent.dir().join("another");
    let copied = std::process::Command::new("cp").arg(files::built("mayfly-holder")).arg(&other).status();
    assert!(copied.unwrap().success());
    holder.exec(&other, &[agent.public().to_str().unwrap()]);
    holder.expect("started");
    for _ in 0..2 {
        until("it has an identity again", || holder.jwt("urn:a").ok());
        pause();
    }
    assert_eq!(reasons(&agent, holder.pid()), ["first", "changed"]);
    let lines = attested(&agent, holder.pid());
    assert_ne!(lines[0]["agent"]["selectors_hash"], lines[1]["agent"]["selectors_hash"]);
    assert_eq!(lines[1]["severity"], "notice");
}

#[test]
fn after_a_restart_whoever_holds_something_is_told_of_at_once() {
    let mut agent = Plan::for_uids(&[own_uid()]).start();
    let mut holder = client(&agent);
    holder.jwt("urn:a").unwrap();
    agent.crash_and_restart();
    let told = until("the next run says it", || {
        let lines = attested(&agent, holder.pid());
        (lines.len() == 2).then_some(lines)
    });
    assert_eq!(told[1]["detail"]["reason"], "first", "of this run");
    // Its ancestors may have been measured in time, or not.
    let same = ["spiffe_id", "instance", "pid", "start_time", "uid", "cgroup", "exe_sha256"];
    assert!(same.iter().all(|part| told[0]["agent"][part] == told[1]["agent"][part]), "{told:?}");
    holder.connect();
    holder.jwt("urn:a").unwrap();
    assert_eq!(attested(&agent, holder.pid()).len(), 2);
}

#[test]
fn where_the_record_takes_nothing_nobody_gets_anything_and_who_it_was_is_not_lost() {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    let (jam, spec) = Jam::at(agent.dir(), "audit.before_write");
    agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec));
    agent.launch();
    jam.set();
    let mut holder = client(&agent);
    holder.jwt("urn:a").unwrap_err();
    assert_eq!(attested(&agent, holder.pid()).len(), 0);
    jam.clear();
    until("the record takes lines again", || holder.jwt("urn:a").ok());
    let lines = agent.audit();
    let of_it = |line: &&Value| line["agent"]["pid"] == holder.pid();
    let events: Vec<&str> = lines.iter().filter(of_it).map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events.first(), Some(&"agent.attested"), "{events:?}");
    assert_eq!(events.iter().filter(|event| **event == "agent.attested").count(), 1, "{events:?}");
    assert_eq!(events.last(), Some(&"credential.issue"), "{events:?}");
}

#[test]
fn whoever_is_refused_is_told_with_what_it_was_attested_as() {
    let agent = Plan::with_entries(&[Entry::new("/other", &["unix:uid:1"])]).start();
    let mut holder: Holder = Who::uid(own_uid()).start(&agent);
    holder.jwt("urn:a").unwrap_err();
    let line = agent.audited(&["agent.attest_denied", "no entry matches", &holder.pid().to_string()]);
    assert!(line["agent"]["selectors_hash"].is_string() && line["agent"]["exe_sha256"].is_string(), "{line}");
    assert!(line["decision"].get("cached").is_none(), "policy was not asked: {line}");
    assert_eq!(attested(&agent, holder.pid()).len(), 0, "it has no identity");
}

/// Two equal questions are two evaluations: nothing is remembered from one to the next, and the record says so.
#[test]
fn no_decision_of_the_record_was_remembered() {
    let world = World::new();
    let mut planner = world.planner();
    let task = begin(&mut planner);
    let request = proto::AuthorizeRequest {
        task_id: task.id.clone(),
        action: "read".to_owned(),
        target: "wiki".to_owned(),
        ..Default::default()
    };
    let mut asked: Vec<String> = Vec::new();
    for _ in 0..3 {
        let said: proto::Decision = planner.task_call("Authorize", &request).unwrap();
        let line = world.agent.audited(&["\"decision.allow\"", &said.evaluation_id]);
        assert_eq!(line["decision"]["cached"], false, "{line}");
        assert!(!asked.contains(&said.evaluation_id), "another evaluation");
        asked.push(said.evaluation_id);
    }
    let begun = world.agent.audited(&["\"task.begin\"", &task.id]);
    assert_eq!(begun["decision"]["cached"], false);
}
