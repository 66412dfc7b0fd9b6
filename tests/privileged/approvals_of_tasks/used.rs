//! What people's yes is worth by the time that it counts: policy and catalogue of that moment decide, and a yes is for the
//! one thing that was asked.

use std::time::Duration;

use mayfly_harness::pki::claims;
use mayfly_harness::{Idp, Jam};

use super::*;

const PEOPLE: &str = "@requires_approval(\"oncall\")\nforbid(principal, action == Mayfly::Action::";

/// The set, but with other people to be asked about that action.
fn others_are_asked(action: &str, group: &str) -> String {
    let asked = format!("{PEOPLE}\"{action}\"");
    let changed = policies().rules.replacen(&asked, &asked.replace("oncall", group), 1);
    assert_ne!(changed, policies().rules, "{action}");
    changed
}

fn use_of(task: &proto::Task, approval: &str) -> proto::IssueRequest {
    proto::IssueRequest { approval_id: approval.to_owned(), ..wanted(task) }
}

/// Policy need not say itself who must have said yes: what it asks for now is held against who did.
#[test]
fn k_a_yes_of_others_than_are_asked_for_now_begins_nothing_and_hands_nothing_on() {
    let mut world = World::new();
    let mut worker = Holder::start(&world.agent, WORKER);
    let task = world.begin();
    let root = world.free();
    let (waits, allowed) = (world.delegate(&root).unwrap(), world.delegate(&root).unwrap());
    world.decide(ANN, &allowed.approval_id, true).unwrap();
    let id = world.asked(&task);
    world.put("a.cedar", &others_are_asked("begin", "writers"));
    world.decide(ANN, &id, true).unwrap();
    world.agent.audited(&["task.ended", &task.id, "\"reason\":\"policy\""]);
    assert_eq!(world.shown(&id)["state"], "cancelled");
    assert_eq!(world.issue(&task).unwrap_err().reason, "task_ended");

    world.put("a.cedar", &others_are_asked("delegate", "writers"));
    world.decide(ANN, &waits.approval_id, true).unwrap();
    assert_eq!(world.shown(&waits.approval_id)["state"], "cancelled");
    until("the offer is gone", || {
        (join(&mut worker, &waits).unwrap_err().reason == "no_such_task").then_some(())
    });
    // What had been allowed by then is asked about again when it is taken up.
    assert_eq!(join(&mut worker, &allowed).unwrap_err().reason, "approval_required");
    assert_eq!(world.get(&root).state(), proto::TaskState::Active, "the task goes on");
    world.put("a.cedar", &policies().rules);
    join(&mut worker, &allowed).unwrap();
}

/// What policy has come to rule out for good is not in the task that goes on, whatever people allowed.
#[test]
fn k_what_policy_has_taken_meanwhile_is_not_in_the_task_that_goes_on() {
    let mut world = World::new();
    world.put(
        "b.toml",
        &policies().catalogue.replace("actions = [\"read\"]", "actions = [\"read\", \"write\"]"),
    );
    let task = world.begin();
    let actions = |task: &proto::Task| -> Vec<String> {
        let mut all: Vec<String> = task.details.iter().flat_map(|one| one.actions.clone()).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(actions(&task), ["read", "write"]);
    let never = "@id(\"never\") forbid(principal, action == Mayfly::Action::\"write\", resource);".to_owned();
    world.put("a.cedar", &policies().rule(&never).rules);
    world.decide(ANN, &world.asked(&task), true).unwrap();
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
    assert_eq!(actions(&world.get(&task)), ["read"]);
}

/// A yes is for one thing: a task to begin, an offer, or an operation, and none of these for another.
#[test]
fn k_a_yes_to_a_begin_or_an_offer_buys_no_credential() {
    let mut world = World::new();
    let task = world.begin();
    let begun = world.asked(&task);
    let root = world.free();
    let offer = world.delegate(&root).unwrap();
    // While they wait, in their own task and in another.
    assert_eq!(
        world.asker.task_call::<proto::Credential>("Issue", &use_of(&root, &begun)).unwrap_err().reason,
        "no_such_approval"
    );
    let mut buy = |task: &proto::Task, approval: &str| {
        let bought = world.asker.task_call::<proto::Credential>("Issue", &use_of(task, approval));
        let authorize = proto::AuthorizeRequest {
            task_id: task.id.clone(),
            action: "read".to_owned(),
            target: "wiki".to_owned(),
            approval_id: approval.to_owned(),
            ..Default::default()
        };
        let allowed = world.asker.task_call::<proto::Decision>("Authorize", &authorize);
        (bought.unwrap_err().reason, allowed.unwrap_err().reason)
    };
    let mismatch = || ("approval_mismatch".to_owned(), "approval_mismatch".to_owned());
    assert_eq!(buy(&root, &offer.approval_id), mismatch());
    let pending = || ("pending_approval".to_owned(), "pending_approval".to_owned());
    assert_eq!(buy(&task, &begun), pending());
    world.decide(ANN, &begun, true).unwrap();
    world.decide(ANN, &offer.approval_id, true).unwrap();
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
    let mut buy = |task: &proto::Task, approval: &str| {
        world.asker.task_call::<proto::Credential>("Issue", &use_of(task, approval)).unwrap_err().reason
    };
    assert_eq!(buy(&task, &begun), "approval_mismatch", "used, and for something else");
    assert_eq!(buy(&root, &offer.approval_id), "approval_mismatch");
    assert_eq!(buy(&root, &begun), "no_such_approval", "nobody's business but its task's");
}

/// Four eyes also where a task is to begin: whoever it works for does not answer.
#[test]
fn k_nobody_allows_a_task_in_their_own_name() {
    let idp = Idp::new();
    let mut world = World::prepared(|agent| {
        let jwks = agent.dir().join("idp.json");
        files::replace(&jwks, &idp.jwks(), 0o644);
        agent.plan().settings += &format!("\n{}\n", Idp::table(&jwks));
    });
    let uid = "uids = [\"20823\"]";
    let named = format!("{uid}\nsubjects = [\"{}#00u1\"]", Idp::ISSUER);
    world.put("b.toml", &policies().catalogue.replace(uid, &named));
    let request = proto::BeginRequest {
        template: "deep".to_owned(),
        params: [("space".to_owned(), "docs".to_owned())].into(),
        on_behalf_of: idp.token("00u1"),
        ..Default::default()
    };
    let task: proto::Task = world.asker.task_call("Begin", &request).unwrap();
    let id = world.asked(&task);
    for approve in [false, true] {
        assert_eq!(reason(world.decide(ANN, &id, approve)), "own_work");
    }
    assert_eq!(world.get(&task).state(), proto::TaskState::PendingApproval);
    world.decide(BOB, &id, true).unwrap();
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
}

/// Who holds the whole is not somebody else for a part of it.
#[test]
fn k_nobody_answers_for_a_part_as_the_user_of_the_whole() {
    let mut world = World::new();
    let mut worker = Holder::start(&world.agent, WORKER);
    let root = world.free();
    let offer = world.delegate(&root).unwrap();
    world.decide(ANN, &offer.approval_id, true).unwrap();
    let child = until("it can be taken up", || join(&mut worker, &offer).ok());
    let further = proto::DelegateRequest {
        task_id: child.id.clone(),
        spiffe_id: "spiffe://example.org/asker".to_owned(),
        details: child.details.clone(),
        ..Default::default()
    };
    let further: proto::Delegation = worker.task_call("Delegate", &further).unwrap();
    for uid in [WORKER, ASKER] {
        assert_eq!(reason(world.decide(uid, &further.approval_id, true)), "same_user", "{uid}");
    }
    world.decide(ANN, &further.approval_id, true).unwrap();
}

/// What goes on is on the disk by the time that anything comes of it; what still waits is over with the agent.
#[test]
fn k_what_people_allowed_goes_on_over_a_restart_and_what_waits_does_not() {
    let mut world = World::new();
    let (task, waits) = (world.begin(), world.begin());
    world.decide(ANN, &world.asked(&task), true).unwrap();
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
    // After that it is on the disk.
    world.issue(&task).unwrap();
    world.agent.crash_and_restart();
    world.agent.open_admin_socket();
    world.asker.connect();
    assert_eq!(world.get(&task).state(), proto::TaskState::Active);
    world.issue(&task).unwrap();
    let over = world.get(&waits);
    assert_eq!((over.state(), over.reason.as_str()), (proto::TaskState::Ended, "restart"));
}

/// One answer after the other: whoever comes second is not on record as having said something that did not count.
#[test]
fn k_of_two_who_answer_at_once_one_is_on_record() {
    let mut pause = None;
    let mut world = World::prepared(|agent| {
        let (paused, spec) = Pause::at(agent.dir(), "audit.before_write");
        paused.release();
        pause = Some(paused);
        agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec));
    });
    let pause = pause.take().unwrap();
    let task = world.begin();
    let id = world.asked(&task);
    let request = world.yes(&id);
    let (mut ann, mut bob) = (Holder::start(&world.agent, ANN), Holder::start(&world.agent, BOB));
    let agent = &world.agent;
    pause.arm();
    let counted = std::thread::scope(|scope| {
        let first = scope.spawn(|| decide(&mut ann, agent, &request).is_ok());
        pause.hit();
        let second = scope.spawn(|| decide(&mut bob, agent, &request).is_ok());
        // Long enough to be there while the first is not on record.
        std::thread::sleep(Duration::from_millis(300));
        pause.release();
        [first, second].into_iter().map(|one| one.join().unwrap()).filter(|done| *done).count()
    });
    assert_eq!(counted, 1);
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
    let lines = world.agent.audit();
    assert_eq!(lines.iter().filter(|line| line["event"] == "approval.granted").count(), 1);
}

/// People are asked about everything that was asked for, and about nothing else: each has a digest of its own.
#[test]
fn k_what_people_answer_to_is_the_digest_of_what_would_be() {
    let mut world = World::new();
    let (task, other) = (world.begin(), world.begin());
    let root = world.free();
    let offer = world.delegate(&root).unwrap();
    let ids = [world.asked(&task), world.asked(&other), offer.approval_id];
    let mut digests: Vec<String> = ids
        .iter()
        .map(|id| {
            let shown = world.shown(id);
            let digest = shown["operation_sha256"].as_str().unwrap().to_owned();
            assert_eq!((digest.len(), fact(&shown, "SHA-256 of all that")), (64, digest.as_str()));
            digest
        })
        .collect();
    let mut unseen = proto::DecideRequest { operation_sha256: String::new(), ..world.yes(&ids[0]) };
    let mut ann = Holder::start(&world.agent, ANN);
    assert_eq!(reason(decide(&mut ann, &world.agent, &unseen)), "approval_mismatch");
    unseen.operation_sha256.clone_from(&digests[1]);
    assert_eq!(reason(decide(&mut ann, &world.agent, &unseen)), "approval_mismatch", "that of another task");
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 3);
}

/// Two minutes, and the action that was asked about, however long and for whatever else the task could have one.
#[test]
fn k_a_yes_buys_what_was_asked_about_and_not_for_long() {
    let mut world = World::new();
    let task = world.free();
    let ask = proto::AuthorizeRequest {
        task_id: task.id.clone(),
        action: "write".to_owned(),
        target: "wiki".to_owned(),
        request_approval: true,
        ..Default::default()
    };
    let decision: proto::Decision = world.asker.task_call("Authorize", &ask).unwrap();
    let id = decision.access_request.unwrap().approval_id;
    for uid in [ANN, BOB] {
        world.decide(uid, &id, true).unwrap();
    }
    let long = prost_types::Duration { seconds: 600, nanos: 0 };
    let issue = proto::IssueRequest { ttl: Some(long), ..use_of(&task, &id) };
    let token: proto::Credential = world.asker.task_call("Issue", &issue).unwrap();
    let said = claims(&token.token);
    assert_eq!(said["scope"], "write");
    assert!(said["exp"].as_u64().unwrap() - said["iat"].as_u64().unwrap() <= 120, "{said}");
}

/// No record, no task: people's yes to it comes to nothing.
#[test]
fn k_what_people_allowed_and_cannot_be_recorded_does_not_go_on() {
    let mut points = None;
    let mut world = World::prepared(|agent| {
        let (pause, first) = Pause::at(agent.dir(), "task.before_go_on");
        let (jam, second) = Jam::at(agent.dir(), "audit.before_write");
        pause.release();
        points = Some((pause, jam));
        agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), format!("{first};{second}")));
    });
    let (pause, jam) = points.take().unwrap();
    let task = world.begin();
    let id = world.asked(&task);
    let (request, mut ann) = (world.yes(&id), Holder::start(&world.agent, ANN));
    let agent = &world.agent;
    pause.arm();
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| decide(&mut ann, agent, &request));
        pause.hit();
        jam.set();
        pause.release();
        answering.join().unwrap().unwrap();
    });
    jam.clear();
    assert_eq!(world.shown(&id)["state"], "cancelled");
    let over = world.get(&task);
    assert_eq!((over.state(), over.reason.as_str()), (proto::TaskState::Ended, "policy"));
}
