//! Tasks that are given more time, and whoever follows them.

use mayfly_harness::{Holder, TaskRefusal, until};
use mayfly_proto::task as proto;
use mayfly_proto::task::task_event::Event;
use nix::sys::signal::Signal;

use crate::children::{
    ANN, POLICY, WIKI, World, begin, child, end, get, issue, lasting, offer, seconds, wanted,
};
use crate::http::local;

fn renew(holder: &mut Holder, task: &proto::Task, ttl: i64) -> Result<proto::Task, TaskRefusal> {
    holder.task_call("Renew", &proto::RenewRequest { task_id: task.id.clone(), ttl: lasting(ttl) })
}

fn brief(holder: &mut Holder) -> proto::Task {
    let request = proto::BeginRequest {
        details: vec![mayfly_harness::tasks::detail(WIKI, &["read", "write"])],
        ttl: lasting(60),
        ..Default::default()
    };
    holder.task_call("Begin", &request).unwrap()
}

/// Puts another set in force, and waits until the record says so.
pub(crate) fn put_in_force(world: &World, policies: &str) {
    let before = std::fs::read_to_string(world.agent.audit_path()).unwrap().matches("policy.loaded").count();
    world.agent.write_policies(policies);
    until("the new set", || {
        let now = std::fs::read_to_string(world.agent.audit_path()).unwrap().matches("policy.loaded").count();
        (now > before).then_some(())
    });
}

/// The same moment, but for what two readings of the clocks differ by.
fn same(one: &Option<prost_types::Timestamp>, other: &Option<prost_types::Timestamp>) -> bool {
    (seconds(one.as_ref()) - seconds(other.as_ref())).abs() <= 1
}

/// The next message, which must be the task.
fn task_of(holder: &mut Holder) -> proto::Task {
    match holder.next_task_event().unwrap().event {
        Some(Event::Task(task)) => task,
        other => panic!("no task: {other:?}"),
    }
}

/// The newest task that fits, past those before it.
fn task_until(holder: &mut Holder, fits: impl Fn(&proto::Task) -> bool) -> proto::Task {
    loop {
        let task = task_of(holder);
        if fits(&task) {
            return task;
        }
    }
}

/// The last message of a stream, past whatever was before it; the stream must then close.
fn summary(holder: &mut Holder) -> proto::TaskSummary {
    loop {
        if let Some(Event::Ended(summary)) = holder.next_task_event().unwrap().event {
            let closed = holder.next_task_event().unwrap_err();
            assert_eq!(closed.code, 0, "{closed:?}");
            return summary;
        }
    }
}

#[test]
fn a_renewal_is_a_new_decision_and_never_a_revival() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = brief(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    assert_eq!(renew(&mut ann, &below, 600).unwrap_err().reason, "limit_life", "never past the parent");
    assert_eq!(renew(&mut ann, &root, 600).unwrap_err().reason, "no_such_task");
    let longer = renew(&mut planner, &root, 600).unwrap();
    assert!(seconds(longer.deadline.as_ref()) > seconds(root.deadline.as_ref()) + 500);
    assert!(same(&longer.latest_deadline, &root.latest_deadline));
    world.agent.audited(&["task.renew", &root.id, "\"action\":\"begin\""]);
    let all = renew(&mut ann, &below, 3600).unwrap();
    assert!(seconds(all.deadline.as_ref()) <= seconds(longer.deadline.as_ref()));
    assert!(seconds(all.deadline.as_ref()) > seconds(below.deadline.as_ref()) + 500);
    world.agent.audited(&["task.renew", &below.id, "\"action\":\"delegate\""]);
    let kept = renew(&mut planner, &root, 100).unwrap();
    assert!(same(&kept.deadline, &longer.deadline), "who asks for less than is left keeps that");
    assert_eq!(renew(&mut planner, &root, 9 * 3600).unwrap_err().reason, "limit_life");
    // A policy that fails denies, and is no clear no, by which the task would end.
    let fails = "@id(\"fails\") forbid(principal, action == Mayfly::Action::\"begin\", resource)\n\
                 when { context.task.depth + 9223372036854775807 + 1 > 0 };";
    put_in_force(&world, &format!("{POLICY}\n{fails}\n"));
    assert_eq!(renew(&mut planner, &root, 1200).unwrap_err().reason, "policy_denied");
    assert!(same(&get(&mut planner, &root).unwrap().deadline, &longer.deadline));
    end(&mut planner, &root).unwrap();
    assert_eq!(renew(&mut planner, &root, 1200).unwrap_err().reason, "task_ended");
    assert_eq!(renew(&mut ann, &below, 1200).unwrap_err().reason, "task_ended");
}

#[test]
fn what_policy_takes_away_at_a_renewal_everything_below_loses_as_well() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = brief(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let token = issue(&mut ann, &below).unwrap();
    put_in_force(&world, &POLICY.replace("@id(\"read\") permit", "@id(\"read\") forbid"));
    let left = renew(&mut planner, &root, 600).unwrap();
    assert_eq!(left.details.iter().flat_map(|one| &one.actions).collect::<Vec<_>>(), ["write"]);
    let gone = get(&mut planner, &below).unwrap();
    assert_eq!((gone.state(), gone.reason.as_str()), (proto::TaskState::Ended, "policy"));
    assert!(!world.is_active(&token.token));
}

#[test]
fn whoever_follows_a_task_sees_it_change_and_how_it_ends() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    planner.task_watch(&root.id);
    let first = task_of(&mut planner);
    let seen = get(&mut planner, &root).unwrap();
    assert!(same(&first.deadline, &seen.deadline));
    let seen = proto::Task { deadline: first.deadline, latest_deadline: first.latest_deadline, ..seen };
    assert_eq!(first, seen, "first the task as it is");
    let more = planner.wait_any(&["task_event"], std::time::Duration::from_millis(200));
    assert_eq!(more, None, "nothing has changed");
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    task_until(&mut planner, |task| task.live_children == 1);
    ann.task_watch(&below.id);
    assert_eq!(task_of(&mut ann).id, below.id);
    let token = issue(&mut ann, &below).unwrap();
    task_until(&mut ann, |task| task.live_credentials == 1);
    task_until(&mut planner, |task| task.used.unwrap().calls == 1);
    let longer = renew(&mut planner, &root, 3600).unwrap();
    task_until(&mut planner, |task| same(&task.deadline, &longer.deadline));
    // Given back by itself: the task goes on.
    assert_eq!(local(&world.agent, "/revoke", &["-d", &format!("token={}", token.token)]).status, 200);
    loop {
        match ann.next_task_event().unwrap().event.unwrap() {
            Event::CredentialRevoked(gone) => {
                assert_eq!((gone.id.as_str(), gone.audience.as_str()), (token.id.as_str(), WIKI));
                assert!(!gone.reason.is_empty());
                break;
            }
            Event::Task(task) => assert!(task.live_credentials <= 1),
            other => panic!("{other:?}"),
        }
    }
    let own = issue(&mut planner, &root).unwrap();
    let done = end(&mut planner, &root).unwrap();
    let told = summary(&mut planner);
    assert_eq!((told.task_id.as_str(), told.reason.as_str()), (root.id.as_str(), "completed"));
    assert_eq!((told.tasks, told.credentials), (done.tasks, done.credentials));
    assert_eq!((told.tasks, told.credentials, told.used), (2, 1, done.used));
    let told = summary(&mut ann);
    assert_eq!((told.reason.as_str(), told.tasks, told.credentials), ("parent_ended", 1, 0));
    assert!(!world.is_active(&own.token));
    planner.task_watch(&root.id);
    assert_eq!(planner.next_task_event().unwrap_err().reason, "task_ended");
}

#[test]
fn a_parent_sees_its_child_die_and_nobody_else_sees_anything() {
    let world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    planner.task_watch(&below.id);
    assert_eq!(task_of(&mut planner).id, below.id);
    for task in [&below, &root] {
        ben.task_watch(&task.id);
        assert_eq!(ben.next_task_event().unwrap_err().reason, "no_such_task");
    }
    ann.task_watch(&root.id);
    assert_eq!(ann.next_task_event().unwrap_err().reason, "no_such_task", "a child does not see its parent");
    ann.kill();
    assert_eq!(summary(&mut planner).reason, "process_exit");
}

#[test]
fn a_credential_that_runs_out_is_told_of_once_and_in_time() {
    let world = World::new();
    let mut planner = world.planner();
    let root = begin(&mut planner);
    planner.task_watch(&root.id);
    let short = proto::IssueRequest { ttl: lasting(3), ..wanted(&root, proto::Format::AccessToken) };
    let short: proto::Credential = planner.task_call("Issue", &short).unwrap();
    let expiring = loop {
        match planner.next_task_event().unwrap().event.unwrap() {
            Event::Task(_) => {}
            Event::CredentialExpiring(expiring) => break expiring,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((expiring.id.as_str(), expiring.audience.as_str()), (short.id.as_str(), WIKI));
    assert_eq!(expiring.expires_at, short.expires_at);
    // It then expires by itself, of which nothing is said but that the task holds one fewer.
    task_until(&mut planner, |task| task.live_credentials == 0);
    end(&mut planner, &root).unwrap();
    summary(&mut planner);
}

#[test]
fn a_process_follows_four_tasks_at_a_time() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    for _ in 0..4 {
        planner.task_watch(&root.id);
        task_of(&mut planner);
    }
    planner.task_watch(&root.id);
    let fifth = planner.next_task_event().unwrap_err();
    assert_eq!((fifth.code, fifth.reason.as_str()), (8, "limit_streams"));
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    ann.task_watch(&below.id);
    assert_eq!(task_of(&mut ann).id, below.id, "each process has four of its own");
    end(&mut planner, &root).unwrap();
    for _ in 0..4 {
        loop {
            if planner.next_task_event().is_err() {
                break;
            }
        }
    }
    let again = begin(&mut planner);
    planner.task_watch(&again.id);
    assert_eq!(task_of(&mut planner).id, again.id, "a stream that has ended does not count");
}

#[test]
fn whoever_does_not_read_holds_up_nobody_and_hears_the_end() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    ann.task_watch(&below.id);
    task_of(&mut ann);
    planner.task_watch(&below.id);
    task_of(&mut planner);
    ann.signal(Signal::SIGSTOP);
    for _ in 0..20 {
        issue(&mut planner, &root).unwrap();
    }
    end(&mut planner, &root).unwrap();
    assert_eq!(summary(&mut planner).reason, "parent_ended");
    ann.signal(Signal::SIGCONT);
    assert_eq!(summary(&mut ann).reason, "parent_ended");
}

#[test]
fn a_frozen_task_is_not_followed_and_nothing_of_it_is_handed_on() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let open: proto::Delegation = planner.task_call("Delegate", &offer(&root, ANN, "/docs")).unwrap();
    ann.task_watch(&below.id);
    task_of(&mut ann);
    let (code, _, why) = world.agent.mayfly(&["freeze", "--task", &root.id, "--reason", "incident"]);
    assert_eq!(code, Some(0), "{why}");
    let stopped = loop {
        if let Err(stopped) = ann.next_task_event() {
            break stopped;
        }
    };
    assert_eq!((stopped.code, stopped.reason.as_str()), (9, "frozen"));
    let refused = [
        planner.task_call::<proto::Delegation>("Delegate", &offer(&root, ANN, "/docs")).unwrap_err(),
        renew(&mut planner, &root, 3600).unwrap_err(),
        issue(&mut ann, &below).unwrap_err(),
    ];
    assert!(refused.iter().all(|one| (one.code, one.reason.as_str()) == (9, "frozen")), "{refused:?}");
    let request = proto::JoinRequest { delegation_id: open.id, ..Default::default() };
    assert_eq!(ann.task_call::<proto::Task>("Join", &request).unwrap_err().reason, "frozen");
}
