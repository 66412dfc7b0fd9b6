//! How long and how much: nothing lives longer than policy and its task let it, what is told is what counts, and what
//! nobody counts is refused.

use std::time::Duration;

use mayfly_harness::tasks::{detail, reason};
use mayfly_harness::{Holder, Pause, Plan, Policies, TaskRefusal};
use mayfly_proto::task as proto;

use crate::children::{ANN, POLICY, WIKI, World, begin, get, lasting, offer, seconds, wanted};
use crate::following::put_in_force;
use crate::support::{client, own_uid};

fn lasts(task: &proto::Task) -> i64 {
    seconds(task.deadline.as_ref()) - seconds(task.begun_at.as_ref())
}

fn left(deadline: Option<&prost_types::Timestamp>, since: &proto::Task) -> i64 {
    seconds(deadline) - seconds(since.begun_at.as_ref())
}

/// The policies of [`World`], with limits on what may be begun and handed on.
fn capped() -> World {
    let rules = POLICY
        .replace("@id(\"begin\")", "@id(\"begin\") @max_ttl(\"60s\")")
        .replace("@id(\"hand-on\")", "@id(\"hand-on\") @max_ttl(\"20s\")");
    World::prepared(|agent| agent.write_policies(&rules))
}

#[test]
fn policy_says_how_long_a_task_lives_and_a_renewal_gives_no_more() {
    let world = capped();
    let mut planner = world.planner();
    let details = vec![detail(WIKI, &["read"])];
    for ttl in [None, lasting(3600)] {
        let request = proto::BeginRequest { details: details.clone(), ttl, ..Default::default() };
        let task: proto::Task = planner.task_call("Begin", &request).unwrap();
        assert!((59..=61).contains(&lasts(&task)), "{}", lasts(&task));
        let more = proto::RenewRequest { task_id: task.id.clone(), ttl: lasting(3600) };
        let renewed: proto::Task = planner.task_call("Renew", &more).unwrap();
        // From when it was renewed, which was soon.
        assert!(lasts(&renewed) < 300, "{}", lasts(&renewed));
    }
    let short = proto::BeginRequest { details, ttl: lasting(30), ..Default::default() };
    let task: proto::Task = planner.task_call("Begin", &short).unwrap();
    assert!((29..=31).contains(&lasts(&task)), "what is shorter stays so: {}", lasts(&task));
}

#[test]
fn policy_says_how_long_a_part_lives_that_is_handed_on() {
    let world = capped();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let offered: proto::Delegation = planner.task_call("Delegate", &offer(&root, ANN, "/docs")).unwrap();
    assert!(left(offered.deadline.as_ref(), &root) < 40, "a part lives no minute: {offered:?}");
    let join = proto::JoinRequest { delegation_id: offered.id, ..Default::default() };
    let joined: proto::Task = ann.task_call("Join", &join).unwrap();
    assert!((19..=21).contains(&lasts(&joined)), "{}", lasts(&joined));
    let more = proto::RenewRequest { task_id: joined.id.clone(), ttl: lasting(50) };
    let renewed: proto::Task = ann.task_call("Renew", &more).unwrap();
    assert!(left(renewed.deadline.as_ref(), &root) < 50, "nor does it when it is renewed: {renewed:?}");
    // What was offered under another policy is held to the one in force.
    put_in_force(&world, POLICY);
    let offered: proto::Delegation = planner.task_call("Delegate", &offer(&root, ANN, "/docs")).unwrap();
    assert!(left(offered.deadline.as_ref(), &root) > 55, "as long as the parent: {offered:?}");
    put_in_force(&world, &POLICY.replace("@id(\"hand-on\")", "@id(\"hand-on\") @max_ttl(\"5s\")"));
    let join = proto::JoinRequest { delegation_id: offered.id, ..Default::default() };
    let joined: proto::Task = ann.task_call("Join", &join).unwrap();
    assert!((4..=6).contains(&lasts(&joined)), "{}", lasts(&joined));
}

/// Between the decision and the signature time goes by, and the task's with it.
#[test]
fn no_credential_ends_after_its_task_however_long_it_takes_to_make() {
    let mut pause = None;
    let world = World::prepared(|agent| {
        agent.plan().settings += "\n[wit]\nenabled = true\n";
        agent.write_config();
        let (at, spec) = Pause::at(agent.dir(), "task.before_mint");
        agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec));
        pause = Some(at);
    });
    let pause = pause.unwrap();
    let mut planner = world.planner();
    let forms =
        [proto::Format::AccessToken, proto::Format::JwtSvid, proto::Format::X509Svid, proto::Format::WitSvid];
    for (n, form) in forms.into_iter().enumerate() {
        let request = proto::BeginRequest {
            details: vec![detail(WIKI, &["read"])],
            ttl: lasting(20),
            ..Default::default()
        };
        let task: proto::Task = planner.task_call("Begin", &request).unwrap();
        if n > 0 {
            pause.arm();
        }
        planner.task_begin_call("Issue", &wanted(&task, form));
        pause.hit();
        // Longer than what rounding takes away.
        std::thread::sleep(Duration::from_millis(1200));
        pause.release();
        let made: proto::Credential = planner.task_answer().unwrap();
        let (ends, deadline) = (seconds(made.expires_at.as_ref()), seconds(task.deadline.as_ref()));
        // A certificate is good to the end of the second that it names.
        let last = i64::from(form == proto::Format::X509Svid);
        assert!(ends + last <= deadline, "{form:?} ends {ends}, its task {deadline}");
    }
}

#[test]
fn what_is_told_of_limits_is_what_counts_and_the_last_child_fits() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let request = proto::BeginRequest {
        details: vec![detail(WIKI, &["read"])],
        limits: Some(proto::Limits { max_children: 1000, max_depth: 100, ..Default::default() }),
        ..Default::default()
    };
    let task: proto::Task = planner.task_call("Begin", &request).unwrap();
    let limits = task.limits.unwrap();
    assert_eq!((limits.max_children, limits.max_depth), (8, 3), "no more than this agent lets anybody have");
    for _ in 0..limits.max_children {
        planner.task_call::<proto::Delegation>("Delegate", &offer(&task, ANN, "/docs")).unwrap();
    }
    let more = planner.task_call::<proto::Delegation>("Delegate", &offer(&task, ANN, "/docs")).unwrap_err();
    assert_eq!((more.code, more.reason.as_str()), (8, "limit_children"));
    let plain = begin(&mut planner).limits.unwrap();
    assert_eq!((plain.max_children, plain.max_depth), (8, 3), "also to whoever asks for nothing");
    let fewer = proto::DelegateRequest {
        limits: Some(proto::Limits { max_children: 2, max_depth: 9, ..Default::default() }),
        ..offer(&begin(&mut planner), ANN, "/docs")
    };
    let offered: proto::Delegation = planner.task_call("Delegate", &fewer).unwrap();
    let join = proto::JoinRequest { delegation_id: offered.id, ..Default::default() };
    let joined = ann.task_call::<proto::Task>("Join", &join).unwrap().limits.unwrap();
    assert_eq!((joined.max_children, joined.max_depth), (2, 3));
}

#[test]
fn a_limit_that_nobody_counts_is_refused() {
    let world = World::new();
    let mut planner = world.planner();
    let refused = |planner: &mut Holder, limits| {
        let details = vec![detail(WIKI, &["read"])];
        let request = proto::BeginRequest { details, limits: Some(limits), ..Default::default() };
        planner.task_call::<proto::Task>("Begin", &request).unwrap_err()
    };
    let root = begin(&mut planner);
    for limits in [
        proto::Limits { max_bytes: 1, ..Default::default() },
        proto::Limits { max_cost_microusd: 1, ..Default::default() },
    ] {
        let delegate = proto::DelegateRequest { limits: Some(limits), ..offer(&root, ANN, "/docs") };
        let handed_on = planner.task_call::<proto::Delegation>("Delegate", &delegate).unwrap_err();
        for refusal in [refused(&mut planner, limits), handed_on] {
            assert_eq!((refusal.code, refusal.reason.as_str()), (3, "malformed"));
            assert!(refusal.message.contains("nobody counts that yet"), "{}", refusal.message);
        }
    }
}

/// Who asks too often is told what limit it is, in the words of tasks; the Workload API keeps its own.
#[test]
fn a_user_that_asks_too_often_is_told_which_limit_that_is() {
    let agent = Plan::with_entries(&[]).settings("[attest]\nper_second = 1\nburst = 2\n").start();
    let mut stranger = client(&agent);
    let begin = proto::BeginRequest { details: vec![detail(WIKI, &["read"])], ..Default::default() };
    let refusals: Vec<TaskRefusal> =
        (0..10).map(|_| stranger.task_call::<proto::Task>("Begin", &begin).unwrap_err()).collect();
    let limited = refusals.iter().find(|one| one.code == 8).unwrap();
    assert_eq!(limited.reason, "limit_rate", "{refusals:?}");
    let svids: Vec<i64> = (0..10).map(|_| stranger.jwt("aud").unwrap_err().code).collect();
    assert!(svids.contains(&14) && !svids.contains(&8), "{svids:?}");
}

/// An order to end a task, as somebody newer would send it.
#[derive(Clone, PartialEq, prost::Message)]
struct NewerOrder {
    #[prost(string, tag = "1")]
    task_id: String,
    #[prost(string, tag = "2")]
    reason: String,
    #[prost(bool, tag = "99")]
    only_if_idle: bool,
}

/// A field that this agent does not know could be what an order was to be limited to.
#[test]
fn an_operators_order_with_an_unknown_field_is_refused() {
    let world = World::new();
    let (mut planner, mut operator) = (world.planner(), world.ben());
    let task = begin(&mut planner);
    let mut send = |order: &NewerOrder| {
        let method = "mayfly.task.v1.TaskAdmin/Revoke";
        operator.rpc_at::<proto::TaskSummary>(&world.agent.admin_socket(), method, order)
    };
    let order = NewerOrder { task_id: task.id.clone(), reason: "enough".to_owned(), only_if_idle: true };
    let (refusal, details) = send(&order).unwrap_err();
    assert_eq!((refusal.code, reason(&details).as_str()), (3, "malformed"));
    assert_eq!(get(&mut planner, &task).unwrap().state(), proto::TaskState::Active);
    assert_eq!(send(&NewerOrder { only_if_idle: false, ..order }).unwrap().tasks, 1);
}

#[test]
fn a_destination_is_new_until_a_credential_for_it_was_given_by_whichever_name() {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    Policies::open()
        .permit("read")
        .permit("write")
        .rule("@id(\"first\") forbid(principal, action == Mayfly::Action::\"write\", resource)")
        .rule("when { context.new_destination };")
        .target("wiki", &[])
        .install(&mut agent);
    agent.launch();
    let mut holder = client(&agent);
    let details = vec![detail(WIKI, &["read", "write"])];
    let request = proto::BeginRequest { details, ..Default::default() };
    let task: proto::Task = holder.task_call("Begin", &request).unwrap();
    let may_write = |holder: &mut Holder| {
        ["wiki", WIKI].map(|target| {
            let request = proto::AuthorizeRequest {
                task_id: task.id.clone(),
                action: "write".to_owned(),
                target: target.to_owned(),
                ..Default::default()
            };
            holder.task_call::<proto::Decision>("Authorize", &request).unwrap().allow
        })
    };
    assert_eq!(may_write(&mut holder), [false, false]);
    let read = vec![detail(WIKI, &["read"])];
    let request = proto::IssueRequest { details: read, ..wanted(&task, proto::Format::AccessToken) };
    holder.task_call::<proto::Credential>("Issue", &request).unwrap();
    assert_eq!(may_write(&mut holder), [true, true]);
}
