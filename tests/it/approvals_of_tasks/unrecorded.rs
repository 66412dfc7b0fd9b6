//! What waits for people and could not be recorded is not there, and nobody is asked about it.

use mayfly_harness::{Jam, Pause};

use super::*;

/// With failpoints that the directory of the agent has something to do with.
fn prepared<T>(failpoint: impl FnOnce(&Path) -> (T, String)) -> (Agent, T) {
    let mut agent = world(|_| String::new());
    agent.stop();
    let (handle, spec) = failpoint(agent.dir());
    agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec));
    agent.launch();
    (agent, handle)
}

fn waiting(agent: &Agent) -> Vec<String> {
    let all = approvals(agent).into_iter().filter(|one| one["state"] == "pending");
    all.map(|one| one["approval"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_task_that_waits_and_is_not_on_record_is_none_and_nobody_is_asked_about_it() {
    let (agent, jam) = prepared(|dir| Jam::at(dir, "audit.before_write"));
    let mut holder = client(&agent);
    jam.set();
    assert_eq!(begin_by(&mut holder, "deep", "k").unwrap_err().code, 14);
    assert_eq!(waiting(&agent), [""; 0]);
    jam.clear();
    // The key is free, and what it makes now is on record.
    let task = until("tasks begin again", || begin_by(&mut holder, "deep", "k").ok());
    assert_eq!(task.state(), proto::TaskState::PendingApproval);
    agent.audited(&["task.begin", &task.id]);
    let [id] = &waiting(&agent)[..] else { panic!("one is asked about") };
    agent.audited(&["approval.requested", id, &task.id]);
}

#[test]
fn an_offer_that_waits_and_is_not_on_record_is_none_and_nobody_is_asked_about_it() {
    let (agent, jam) = prepared(|dir| Jam::at(dir, "audit.before_write"));
    let mut holder = client(&agent);
    let parent = begin_by(&mut holder, "plain", "").unwrap();
    let request = proto::DelegateRequest {
        task_id: parent.id.clone(),
        spiffe_id: parent.spiffe_id.clone(),
        details: vec![detail(WIKI, &["read"])],
        idempotency_key: "k".to_owned(),
        ..Default::default()
    };
    jam.set();
    let refused = holder.task_call::<proto::Delegation>("Delegate", &request).unwrap_err();
    assert_eq!(refused.code, 14, "{refused:?}");
    assert_eq!(waiting(&agent), [""; 0]);
    jam.clear();
    let offered =
        until("offers are made again", || holder.task_call::<proto::Delegation>("Delegate", &request).ok());
    assert_eq!(waiting(&agent), std::slice::from_ref(&offered.approval_id));
    agent.audited(&["approval.requested", &offered.approval_id]);
}

/// It ends between what policy said and the question: whoever ends it has looked for questions before this one was there.
#[test]
fn nobody_is_asked_for_a_task_that_has_ended_meanwhile() {
    let (agent, pause) = prepared(|dir| {
        let (pause, spec) = Pause::at(dir, "task.before_ask");
        pause.release();
        (pause, spec)
    });
    let mut holder = client(&agent);
    let parent = begin_by(&mut holder, "plain", "").unwrap();
    let request = proto::DelegateRequest {
        task_id: parent.id.clone(),
        spiffe_id: parent.spiffe_id.clone(),
        details: vec![detail(WIKI, &["read"])],
        ..Default::default()
    };
    pause.arm();
    holder.task_begin_call("Delegate", &request);
    pause.hit();
    let (code, _, err) = agent.mayfly(&["task", "end", &parent.id, "--reason", "over"]);
    assert_eq!(code, Some(0), "{err}");
    pause.release();
    let refused = holder.task_answer::<proto::Delegation>().unwrap_err();
    assert_eq!(refused.reason, "task_ended", "{refused:?}");
    assert_eq!(waiting(&agent), [""; 0]);
}

/// Two equal requests, both past the look at the keys before either is seated: one task, and one question.
#[test]
fn equal_requests_at_the_same_moment_are_asked_about_once() {
    let (agent, pause) = prepared(|dir| Pause::at(dir, "task.before_seat"));
    let mut holder = client(&agent);
    let request = proto::BeginRequest {
        template: "deep".to_owned(),
        idempotency_key: "k".to_owned(),
        ..Default::default()
    };
    for _ in 0..2 {
        holder.task_begin_call("Begin", &request);
        pause.hit();
        pause.forget();
    }
    pause.release();
    let both = [holder.task_answer::<proto::Task>().unwrap(), holder.task_answer::<proto::Task>().unwrap()];
    assert_eq!(both[0].id, both[1].id);
    assert_eq!(approvals(&agent).len(), 1);
    let lines = agent.audit();
    assert_eq!(lines.iter().filter(|line| line["event"] == "task.begin").count(), 1);
}
