//! Tasks and offers that wait for people, as far as one user can play, and what else hangs on answers. Answering takes
//! users of their own: `tests/privileged/approvals_of_tasks.rs`.

mod unrecorded;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mayfly_harness::policies::{ONCALL_APPROVES, TASKS_NEED_A_PERSON, WIKI};
use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Holder, Idp, Plan, Policies, TaskRefusal, files, is_running, until};
use mayfly_proto::task as proto;
use mayfly_proto::task::task_event::Event;
use serde_json::Value;

use crate::support::{client, own_uid};

fn policies() -> Policies {
    Policies::open()
        .permit("delegate")
        .permit("read")
        .rule(TASKS_NEED_A_PERSON)
        .rule(ONCALL_APPROVES)
        .target("wiki", &[("location", WIKI)])
        .template("deep", "wiki", &["read"])
        .template("plain", "wiki", &["read"])
        .person("ann", 20_831, "oncall")
}

/// With `settings` for the agent's directory at the end of its configuration.
fn world(settings: impl Fn(&Path) -> String) -> Agent {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    let settings = settings(agent.dir());
    agent.plan().settings += &format!("\n{settings}\n");
    policies().install(&mut agent);
    agent.launch();
    agent
}

fn begin_by(holder: &mut Holder, template: &str, key: &str) -> Result<proto::Task, TaskRefusal> {
    let (template, idempotency_key) = (template.to_owned(), key.to_owned());
    holder.task_call("Begin", &proto::BeginRequest { template, idempotency_key, ..Default::default() })
}

fn get(holder: &mut Holder, task: &proto::Task) -> proto::Task {
    holder.task_call("Get", &proto::GetTaskRequest { task_id: task.id.clone() }).unwrap()
}

fn offer(holder: &mut Holder, parent: &proto::Task) -> proto::Delegation {
    let request = proto::DelegateRequest {
        task_id: parent.id.clone(),
        spiffe_id: format!("spiffe://example.org/uid/{}", own_uid()),
        details: vec![detail(WIKI, &["read"])],
        ..Default::default()
    };
    holder.task_call("Delegate", &request).unwrap()
}

fn join(holder: &mut Holder, offer: &proto::Delegation) -> Result<proto::Task, TaskRefusal> {
    let request = proto::JoinRequest { delegation_id: offer.id.clone(), ..Default::default() };
    holder.task_call("Join", &request)
}

fn approvals(agent: &Agent) -> Vec<Value> {
    let (code, out, err) = agent.mayfly(&["approve", "list", "--all", "--output", "json"]);
    assert_eq!(code, Some(0), "{err}");
    serde_json::from_str::<Value>(&out).unwrap()["approvals"].as_array().unwrap().clone()
}

#[test]
fn what_people_were_asked_about_a_task_is_void_when_it_ends() {
    let agent = world(|_| String::new());
    let mut holder = client(&agent);
    let task = begin_by(&mut holder, "deep", "").unwrap();
    assert_eq!(task.state(), proto::TaskState::PendingApproval);
    assert_eq!(approvals(&agent).len(), 1);
    let end = proto::EndRequest { task_id: task.id.clone(), ..Default::default() };
    let summary: proto::TaskSummary = holder.task_call("End", &end).unwrap();
    assert_eq!(summary.reason, "completed");
    assert_eq!(approvals(&agent)[0]["state"], "cancelled");
    agent.audited(&["approval.cancelled", &task.id]);
    // The same for an offer, whose parent ends.
    let parent = begin_by(&mut holder, "plain", "").unwrap();
    let offered = offer(&mut holder, &parent);
    let end = proto::EndRequest { task_id: parent.id.clone(), ..Default::default() };
    holder.task_call::<proto::TaskSummary>("End", &end).unwrap();
    agent.audited(&["approval.cancelled", &offered.approval_id]);
    // And with the process that waits.
    let mut other = client(&agent);
    let task = begin_by(&mut other, "deep", "").unwrap();
    other.kill();
    agent.audited(&["approval.cancelled", &task.id]);
}

#[test]
fn what_nobody_answers_in_time_is_over() {
    let agent = world(|_| "[approvals]\nanswer_within = \"1s\"".to_owned());
    let mut holder = client(&agent);
    let task = begin_by(&mut holder, "deep", "").unwrap();
    holder.task_watch(&task.id);
    let summary = loop {
        if let Some(Event::Ended(summary)) = holder.next_task_event().unwrap().event {
            break summary;
        }
    };
    assert_eq!(summary.reason, "policy");
    agent.audited(&["approval.expired", &task.id]);
    agent.audited(&["task.ended", &task.id, "\"reason\":\"policy\""]);
    let parent = begin_by(&mut holder, "plain", "").unwrap();
    let offered = offer(&mut holder, &parent);
    until("the offer is gone", || {
        (join(&mut holder, &offered).unwrap_err().reason == "no_such_task").then_some(())
    });
    assert_eq!(get(&mut holder, &parent).state(), proto::TaskState::Active);
}

#[test]
fn people_are_not_asked_about_tasks_without_end() {
    let agent = world(|_| String::new());
    let mut holder = client(&agent);
    // The same request with the same key is one task and one question.
    let first = begin_by(&mut holder, "deep", "k").unwrap();
    assert_eq!(begin_by(&mut holder, "deep", "k").unwrap().id, first.id);
    assert_eq!(approvals(&agent).len(), 1);
    for _ in 1..12 {
        begin_by(&mut holder, "deep", "").unwrap();
    }
    let refused = begin_by(&mut holder, "deep", "").unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (8, "limit_approvals"));
    let (_, listed, _) = agent.mayfly(&["task", "list", "--output", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 12, "nothing is left of what was refused");
    let events: Vec<Value> = agent.audit().into_iter().map(|line| line["event"].clone()).collect();
    assert!(
        !events.iter().any(|event| event == "task.ended"),
        "it was not even there for a moment: {events:?}"
    );
    // What needs nobody goes on.
    let parent = begin_by(&mut holder, "plain", "").unwrap();
    assert_eq!(parent.state(), proto::TaskState::Active);
    let request = proto::DelegateRequest {
        task_id: parent.id.clone(),
        spiffe_id: parent.spiffe_id.clone(),
        details: parent.details.clone(),
        ..Default::default()
    };
    let refused = holder.task_call::<proto::Delegation>("Delegate", &request).unwrap_err();
    assert_eq!(refused.reason, "limit_approvals");
    assert_eq!(get(&mut holder, &parent).live_children, 0);
}

/// Whoever is not in a task learns the same of one that there is and of one that there is not.
#[test]
fn a_stranger_does_not_learn_which_tasks_there_are() {
    let agent = world(|_| String::new());
    let (mut holder, mut stranger) = (client(&agent), client(&agent));
    let real = begin_by(&mut holder, "plain", "").unwrap().id;
    let ended = begin_by(&mut holder, "plain", "").unwrap().id;
    let end = proto::EndRequest { task_id: ended.clone(), ..Default::default() };
    holder.task_call::<proto::TaskSummary>("End", &end).unwrap();
    let made_up = "tsk_01K6E4ZQ7M0000000000000000".to_owned();
    let mut probe = |task_id: String| {
        let id = || task_id.clone();
        let issue = proto::IssueRequest {
            task_id: id(),
            format: proto::Format::AccessToken.into(),
            audience: vec![WIKI.to_owned()],
            ..Default::default()
        };
        let authorize = proto::AuthorizeRequest {
            task_id: id(),
            action: "read".to_owned(),
            target: "wiki".to_owned(),
            ..Default::default()
        };
        let delegate = proto::DelegateRequest {
            task_id: id(),
            spiffe_id: "spiffe://example.org/a".to_owned(),
            details: vec![detail(WIKI, &["read"])],
            ..Default::default()
        };
        let get = proto::GetTaskRequest { task_id: id() };
        let renew = proto::RenewRequest { task_id: id(), ..Default::default() };
        let end = proto::EndRequest { task_id: id(), ..Default::default() };
        stranger.task_watch(&task_id);
        [
            stranger.next_task_event().map(drop).unwrap_err(),
            stranger.task_call::<proto::Task>("Get", &get).unwrap_err(),
            stranger.task_call::<proto::Credential>("Issue", &issue).unwrap_err(),
            stranger.task_call::<proto::Decision>("Authorize", &authorize).unwrap_err(),
            stranger.task_call::<proto::Delegation>("Delegate", &delegate).unwrap_err(),
            stranger.task_call::<proto::Task>("Renew", &renew).unwrap_err(),
            stranger.task_call::<proto::TaskSummary>("End", &end).unwrap_err(),
        ]
    };
    let of_none = probe(made_up);
    for refused in &of_none {
        assert_eq!((refused.code, refused.reason.as_str()), (5, "no_such_task"), "{refused:?}");
    }
    assert_eq!(probe(real), of_none);
    assert_eq!(probe(ended), of_none);
}

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Whoever is told has a process group of his own, and nobody of it is left behind: not at the end, not at a stop.
#[test]
fn whoever_is_told_leaves_nobody_behind() {
    for (name, text) in [
        ("done", "/bin/sleep 1000 &\necho $! > DIR/pid.new\n/bin/mv DIR/pid.new DIR/pid\nexit 0"),
        ("stopped", "/bin/sleep 1000 &\necho $$ $! > DIR/pid.new\n/bin/mv DIR/pid.new DIR/pid\nwait"),
    ] {
        let mut agent = world(|dir| {
            let text = format!("#!/bin/sh\n{text}\n").replace("DIR", &dir.display().to_string());
            format!("[approvals]\nnotify_exec = [{:?}]\n", script(dir, name, &text))
        });
        let mut holder = client(&agent);
        begin_by(&mut holder, "deep", "").unwrap();
        let file = agent.dir().join("pid");
        let pids = until("somebody is told", || std::fs::read_to_string(&file).ok());
        let pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        if name == "stopped" {
            assert!(pids.iter().all(|pid| is_running(*pid)), "{pids:?}");
            let status = agent.stop();
            assert_eq!(status.code(), Some(0), "{status:?}");
            assert!(!pids.iter().any(|pid| is_running(*pid)), "left behind: {pids:?}");
        } else {
            until("nobody of the group is left", || (!pids.iter().any(|pid| is_running(*pid))).then_some(()));
        }
    }
}

#[test]
fn each_process_that_a_kill_ends_is_on_record() {
    let agent = world(|_| String::new());
    let mut holder = client(&agent);
    let task = begin_by(&mut holder, "plain", "").unwrap();
    let (code, _, err) = agent.mayfly(&["kill", "--task", &task.id, "--reason", "incident 4711"]);
    assert_eq!(code, Some(0), "{err}");
    let pid = format!("\"pid\":{}", holder.pid());
    agent.audited(&["agent.killed", &pid, &format!("operator uid {}", own_uid())]);
    let lines = agent.audit();
    assert_eq!(lines.iter().filter(|line| line["event"] == "agent.killed").count(), 1);
    assert!(!lines.iter().any(|line| line["event"] == "agent.not_killed"));
}

/// The token is in a file that only its owner can read, and nowhere else.
#[test]
fn a_program_works_for_the_user_whose_token_is_in_a_file() {
    let idp = Idp::new();
    let agent = world(|dir| {
        let jwks = dir.join("idp.json");
        files::replace(&jwks, &idp.jwks(), 0o644);
        Idp::table(&jwks)
    });
    let file = agent.dir().join("user.jwt");
    let run = |mode: u32| {
        files::replace(&file, format!("{}\n", idp.token("00u1")).as_bytes(), mode);
        std::process::Command::new(agent.binary())
            .args(["run", "--task", "plain", "--on-behalf-of-file"])
            .arg(&file)
            .args(["--", "sh", "-c", "tr '\\0' ' ' < /proc/$PPID/cmdline; env; echo task=$MAYFLY_TASK"])
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()))
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    };
    let output = run(0o600);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{err}");
    let task = out.lines().find_map(|line| line.strip_prefix("task=")).unwrap();
    let begun = agent.audited(&["task.begin", task]);
    assert_eq!(begun["on_behalf_of"]["iss"], Idp::ISSUER, "{begun}");
    assert!(out.contains("--on-behalf-of-file") && !out.contains("eyJ"), "{out}");
    for open in [0o644, 0o640] {
        let output = run(open);
        assert_eq!(output.status.code(), Some(125));
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(err.contains("the user's token") && !err.contains("eyJ"), "{err}");
    }
    let (code, _, _) = agent.mayfly(&["run", "--on-behalf-of-file", "x", "--", "true"]);
    assert_eq!(code, Some(2), "a user is a task's");
}

/// Who asks again because the answer was lost on the way learns it, and people are not asked again.
#[test]
fn a_repeated_delegate_learns_that_nobody_allowed_it() {
    let agent = world(|_| "[approvals]\nanswer_within = \"1s\"".to_owned());
    let mut holder = client(&agent);
    let parent = begin_by(&mut holder, "plain", "").unwrap();
    let request = |key: &str| proto::DelegateRequest {
        task_id: parent.id.clone(),
        spiffe_id: parent.spiffe_id.clone(),
        details: vec![detail(WIKI, &["read"])],
        idempotency_key: key.to_owned(),
        ..Default::default()
    };
    let offered: proto::Delegation = holder.task_call("Delegate", &request("once")).unwrap();
    agent.audited(&["approval.expired", &offered.approval_id]);
    until("the offer is gone", || {
        (join(&mut holder, &offered).unwrap_err().reason == "no_such_task").then_some(())
    });
    for _ in 0..2 {
        let refused = holder.task_call::<proto::Delegation>("Delegate", &request("once")).unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (9, "approval_expired"), "{refused:?}");
    }
    assert_eq!(approvals(&agent).len(), 1, "people were asked once");
    let again: proto::Delegation = holder.task_call("Delegate", &request("twice")).unwrap();
    assert_ne!(again.approval_id, offered.approval_id, "another key is another request");
}
