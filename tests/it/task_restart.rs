//! Tasks and restarts of the agent: what can be found again goes on as it was, everything else has ended before anybody is
//! served; and a crash loses nothing that was answered.

use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Entry, Holder, Pause, until};
use mayfly_proto::task as proto;
use serde_json::Value;

use crate::children::{
    ANN, BEN, WIKI, World, begin, child, end, entries, get, issue, lasting, offer, seconds,
};

/// Nothing of the run before is connected.
fn again(world: &mut World, holders: &mut [&mut Holder], how: fn(&mut Agent)) {
    how(&mut world.agent);
    holders.iter_mut().for_each(|holder| holder.connect());
}

fn killed(agent: &mut Agent) {
    agent.crash_and_restart();
}

fn stopped(agent: &mut Agent) {
    assert!(agent.stop().success());
    agent.launch();
}

#[expect(clippy::disallowed_methods, reason = "the agent under test lives in real time")]
fn seconds_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

fn live(agent: &Agent) -> Vec<Value> {
    let (code, out, err) = agent.mayfly(&["task", "list", "--output", "json"]);
    assert_eq!(code, Some(0), "{err}");
    let listed: Value = serde_json::from_str(&out).unwrap();
    listed["tasks"].as_array().unwrap().clone()
}

fn keyed(key: &str) -> proto::BeginRequest {
    proto::BeginRequest {
        details: vec![detail(WIKI, &["read", "write"])],
        limits: Some(proto::Limits { max_calls: 6, ..Default::default() }),
        idempotency_key: key.to_owned(),
        ..Default::default()
    }
}

fn goes_on(how: fn(&mut Agent)) {
    let mut world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root: proto::Task = planner.task_call("Begin", &keyed("once")).unwrap();
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    let open: proto::Delegation = planner.task_call("Delegate", &offer(&root, BEN, "/more")).unwrap();
    let before: Vec<proto::Credential> = vec![
        issue(&mut planner, &root).unwrap(),
        issue(&mut ann, &below).unwrap(),
        issue(&mut ben, &deepest).unwrap(),
    ];
    let was = get(&mut planner, &root).unwrap();
    again(&mut world, &mut [&mut planner, &mut ann, &mut ben], how);
    for one in &before {
        assert!(world.is_active(&one.token), "what was given still stands");
    }
    let is = get(&mut planner, &root).unwrap();
    assert_eq!((&is.id, is.state(), &is.instance), (&was.id, proto::TaskState::Active, &was.instance));
    assert_eq!((is.used, is.live_credentials, is.live_children), (was.used, 1, 1));
    assert!(
        (seconds(is.deadline.as_ref()) - seconds(was.deadline.as_ref())).abs() <= 1,
        "no longer, no shorter"
    );
    assert_eq!(get(&mut ann, &below).unwrap().parent, root.id);
    let same: proto::Task = planner.task_call("Begin", &keyed("once")).unwrap();
    assert_eq!(same.id, root.id, "the same request is the same task");
    let joined: proto::Task = ben
        .task_call("Join", &proto::JoinRequest { delegation_id: open.id.clone(), ..Default::default() })
        .expect("what was offered can be taken up");
    assert_eq!(joined.parent, root.id);
    // Six for all of them together: three are gone.
    let after: Vec<proto::Credential> = vec![
        issue(&mut ann, &below).unwrap(),
        issue(&mut ben, &joined).unwrap(),
        issue(&mut planner, &root).unwrap(),
    ];
    for (holder, task) in [(&mut planner, &root), (&mut ben, &deepest)] {
        assert_eq!(issue(holder, task).unwrap_err().reason, "limit_calls", "what was used up stays used up");
    }
    let longer = proto::RenewRequest { task_id: root.id.clone(), ttl: lasting(3_600) };
    let renewed: proto::Task = planner.task_call("Renew", &longer).unwrap();
    assert!(seconds(renewed.deadline.as_ref()) > seconds(was.deadline.as_ref()));
    again(&mut world, &mut [&mut planner, &mut ann, &mut ben], how);
    let kept = get(&mut planner, &root).unwrap();
    assert!((seconds(kept.deadline.as_ref()) - seconds(renewed.deadline.as_ref())).abs() <= 1);
    assert_eq!(kept.used.unwrap().calls, 6);
    let summary = end(&mut planner, &root).unwrap();
    assert_eq!((summary.tasks, summary.credentials), (4, 6));
    assert!(before.iter().chain(&after).all(|one| !world.is_active(&one.token)));
    again(&mut world, &mut [&mut planner, &mut ann, &mut ben], how);
    assert!(before.iter().chain(&after).all(|one| !world.is_active(&one.token)), "nothing is revived");
    assert!(live(&world.agent).is_empty());
    let new: proto::Task = planner.task_call("Begin", &keyed("once")).unwrap();
    assert_ne!(new.id, root.id);
}

#[test]
fn a_tree_of_tasks_goes_on_after_a_crash_as_it_was() {
    goes_on(killed);
}

#[test]
fn a_tree_of_tasks_goes_on_after_a_restart_as_it_was() {
    goes_on(stopped);
}

/// Its exit is still seen: the process is watched again.
#[test]
fn a_process_that_exits_after_a_restart_ends_its_task_at_once() {
    let mut world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let token = issue(&mut ann, &below).unwrap();
    killed(&mut world.agent);
    assert!(world.is_active(&token.token));
    planner.kill();
    until("refused with its root", || (!world.is_active(&token.token)).then_some(()));
    world.agent.audited(&["task.ended", "\"reason\":\"process_exit\"", &root.id]);
    world.agent.audited(&["task.ended", "\"reason\":\"parent_ended\"", &below.id]);
}

#[test]
fn who_died_while_the_agent_was_down_takes_everything_below_along_before_anybody_is_served() {
    let mut world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    let own = issue(&mut planner, &root).unwrap();
    let lost = [issue(&mut ann, &below).unwrap(), issue(&mut ben, &deepest).unwrap()];
    world.agent.kill();
    ann.kill();
    world.agent.launch();
    assert!(lost.iter().all(|one| !world.is_active(&one.token)), "at once");
    assert!(world.is_active(&own.token), "what is above stays");
    planner.connect();
    ben.connect();
    assert_eq!(get(&mut planner, &root).unwrap().live_children, 0);
    let gone = get(&mut ben, &deepest).unwrap();
    assert_eq!((gone.state(), gone.reason.as_str()), (proto::TaskState::Ended, "parent_ended"));
    assert_eq!(issue(&mut ben, &deepest).unwrap_err().reason, "task_ended");
    world.agent.audited(&[
        "task.ended",
        "\"reason\":\"restart\"",
        &below.id,
        "\"descendants\":1",
        "\"credentials\":1",
        "\"initiator\":\"agent\"",
    ]);
    world.agent.audited(&["task.ended", "\"reason\":\"parent_ended\"", &deepest.id]);
    let log = world.agent.audit_path();
    let (code, out, err) = world.agent.mayfly(&["audit", "task", &below.id, log.to_str().unwrap()]);
    assert!(code == Some(0) && out.contains("restart"), "{out}{err}");
    let list = live(&world.agent);
    assert_eq!(list.len(), 1, "{list:?}");
    // It is over for good.
    killed(&mut world.agent);
    assert_eq!(live(&world.agent).len(), 1);
}

/// Another process under the same number, which is what a restart of the machine or of a container makes, is not simulated
/// here: see the privileged tests of restarts. That a program is no longer what its entry matches is.
#[test]
fn who_has_lost_its_identity_while_the_agent_was_down_has_no_task() {
    let mut world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let token = issue(&mut planner, &root).unwrap();
    world.agent.kill();
    let others: Vec<Entry> =
        entries(&world.agent).into_iter().filter(|entry| entry.path != "/planner").collect();
    world.agent.write_entries(&others);
    world.agent.launch();
    assert!(!world.is_active(&token.token));
    world.agent.audited(&["task.ended", "\"reason\":\"restart\"", &root.id]);
    world.agent.audited(&["task.ended", "\"reason\":\"parent_ended\"", &below.id]);
    world.agent.write_entries(&entries(&world.agent));
    killed(&mut world.agent);
    assert!(live(&world.agent).is_empty(), "it does not come back with the entry");
}

#[test]
fn time_goes_on_while_the_agent_is_down() {
    let mut world = World::new();
    let mut planner = world.planner();
    let brief =
        proto::BeginRequest { details: vec![detail(WIKI, &["read"])], ttl: lasting(5), ..Default::default() };
    let long = begin(&mut planner);
    let token = issue(&mut planner, &long).unwrap();
    let brief: proto::Task = planner.task_call("Begin", &brief).unwrap();
    world.agent.kill();
    let has_ended = |agent: &Agent| agent.audit().iter().any(|line| line["event"] == "task.ended");
    assert!(!has_ended(&world.agent), "it is to end while nobody is there");
    let over = brief.deadline.unwrap().seconds;
    until("its time is over", || (seconds_now() > over).then_some(()));
    assert!(!has_ended(&world.agent));
    world.agent.launch();
    world.agent.audited(&["task.ended", "\"reason\":\"deadline\"", &brief.id]);
    planner.connect();
    assert_eq!(get(&mut planner, &brief).unwrap().reason, "deadline");
    assert!(world.is_active(&token.token) && issue(&mut planner, &long).is_ok());
}

#[test]
fn what_is_frozen_stays_frozen_and_goes_on_when_it_is_thawed() {
    let mut world = World::new();
    let mut planner = world.planner();
    let root = begin(&mut planner);
    let run = |agent: &Agent, arguments: &[&str]| {
        let (code, out, err) = agent.mayfly(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    };
    run(&world.agent, &["freeze", "--task", &root.id]);
    again(&mut world, &mut [&mut planner], killed);
    assert!(issue(&mut planner, &root).is_err());
    assert_eq!(get(&mut planner, &root).unwrap().id, root.id);
    run(&world.agent, &["thaw", "--task", &root.id]);
    issue(&mut planner, &root).unwrap();
}

/// A ledger that was lost knows no tasks and no leases: nothing goes on.
#[test]
fn with_the_ledger_the_tasks_are_gone() {
    let mut world = World::new();
    let mut planner = world.planner();
    let root = begin(&mut planner);
    let token = issue(&mut planner, &root).unwrap();
    world.agent.stop();
    let dir = world.agent.data_dir();
    let (code, _, err) = world.agent.mayfly(&["ledger", "reset", "--data-dir", dir.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{err}");
    world.agent.launch();
    planner.connect();
    assert!(!world.is_active(&token.token));
    assert!(live(&world.agent).is_empty());
    assert_eq!(issue(&mut planner, &root).unwrap_err().reason, "no_such_task");
}

/// Waits at a point of the agent from the moment that it is armed.
struct Crash {
    pause: Pause,
    world: World,
}

impl Crash {
    fn at(point: &str) -> Self {
        let mut pause = None;
        let world = World::prepared(|agent| {
            let at = agent.pause_at(point);
            at.release();
            pause = Some(at);
        });
        Self { pause: pause.unwrap(), world }
    }

    /// The agent is killed while it is there, and started again.
    fn strike(&mut self) {
        self.pause.hit();
        self.world.agent.kill();
        self.pause.release();
        self.world.agent.launch();
    }
}

/// On the way from the seat to the answer.
const BEGIN: [&str; 8] = [
    "task.before_seat",
    "task.after_seat",
    "ledger.before_begin",
    "ledger.after_insert",
    "ledger.after_commit",
    "audit.before_write",
    "audit.after_write",
    "task.before_answer",
];

#[test]
fn a_crash_anywhere_in_a_begin_loses_no_task_that_was_answered_and_leaves_no_second_one() {
    for point in BEGIN {
        let mut crash = Crash::at(point);
        let mut planner = crash.world.planner();
        let first = begin(&mut planner);
        let token = issue(&mut planner, &first).unwrap();
        crash.pause.arm();
        planner.task_begin_call("Begin", &keyed("twice"));
        crash.strike();
        assert!(planner.task_answer::<proto::Task>().is_err(), "{point}: nobody was answered");
        planner.connect();
        assert!(crash.world.is_active(&token.token), "{point}");
        let known = live(&crash.world.agent);
        assert!(known.iter().any(|task| task["id"] == first.id.as_str()), "{point}");
        match point {
            "task.before_seat" | "ledger.before_begin" | "ledger.after_insert" => {
                assert_eq!(known.len(), 1, "{point}: nothing was noted: {known:?}");
            }
            "ledger.after_commit" | "task.before_answer" => {
                assert_eq!(known.len(), 2, "{point}: what is noted goes on, though it holds nothing");
            }
            // The ledger is written meanwhile, or is not yet.
            _ => assert!((1..=2).contains(&known.len()), "{point}: {known:?}"),
        }
        let second: proto::Task = planner.task_call("Begin", &keyed("twice")).unwrap();
        let all = live(&crash.world.agent);
        assert_eq!(all.len(), 2, "{point}: one for one request: {all:?}");
        assert!(all.iter().any(|task| task["id"] == second.id.as_str()), "{point}");
        let is_known = known.iter().any(|task| task["id"] == second.id.as_str());
        assert_eq!(is_known, known.len() == 2, "{point}: the same request is the same task");
        issue(&mut planner, &second).unwrap();
    }
}

#[test]
fn a_crash_anywhere_in_an_issue_forgets_nothing_that_was_used_up() {
    for point in [
        "ledger.before_begin",
        "ledger.after_insert",
        "ledger.after_commit",
        "audit.before_write",
        "audit.after_write",
        "task.before_land",
    ] {
        let mut crash = Crash::at(point);
        let mut planner = crash.world.planner();
        let root: proto::Task = planner.task_call("Begin", &keyed("root")).unwrap();
        let given = [issue(&mut planner, &root).unwrap(), issue(&mut planner, &root).unwrap()];
        crash.pause.arm();
        planner.task_begin_call("Issue", &crate::children::wanted(&root, proto::Format::AccessToken));
        crash.strike();
        assert!(planner.task_answer::<proto::Credential>().is_err(), "{point}: nobody was answered");
        planner.connect();
        assert!(given.iter().all(|one| crash.world.is_active(&one.token)), "{point}");
        let used = get(&mut planner, &root).unwrap().used.unwrap().calls;
        assert!((2..=3).contains(&used), "{point}: {used}");
        for _ in used..6 {
            issue(&mut planner, &root).unwrap();
        }
        assert_eq!(issue(&mut planner, &root).unwrap_err().reason, "limit_calls", "{point}");
    }
}

/// An end that was not answered has happened or has not; the record says that it has only if it has.
#[test]
fn a_crash_anywhere_in_an_end_leaves_no_half_of_it() {
    for point in ["revoke.after_memory", "ledger.after_insert", "ledger.after_commit", "revoke.after_ledger"]
    {
        let mut crash = Crash::at(point);
        let (mut planner, mut ann) = (crash.world.planner(), crash.world.ann());
        let root = begin(&mut planner);
        let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
        let tokens = [issue(&mut planner, &root).unwrap(), issue(&mut ann, &below).unwrap()];
        crash.pause.arm();
        planner.task_begin_call("End", &proto::EndRequest { task_id: root.id.clone(), ..Default::default() });
        crash.strike();
        assert!(planner.task_answer::<proto::TaskSummary>().is_err(), "{point}: nobody was answered");
        planner.connect();
        let goes_on = live(&crash.world.agent).len();
        assert!(goes_on == 0 || goes_on == 2, "{point}: {goes_on}");
        let written = !matches!(point, "revoke.after_memory" | "ledger.after_insert");
        assert_eq!(goes_on == 0, written, "{point}");
        for one in &tokens {
            assert_eq!(crash.world.is_active(&one.token), goes_on == 2, "{point}");
        }
        let log = std::fs::read_to_string(crash.world.agent.audit_path()).unwrap();
        let said = log.lines().any(|line| line.contains("task.ended") && line.contains(&root.id));
        assert!(!said || goes_on == 0, "{point}: the record says that it has ended");
        if goes_on == 2 {
            end(&mut planner, &root).unwrap();
            assert!(tokens.iter().all(|one| !crash.world.is_active(&one.token)), "{point}");
        }
    }
}

/// A task of which no note could be made has not begun.
#[test]
fn while_the_ledger_cannot_be_written_no_task_begins_and_no_end_is_taken_for_done() {
    let mut broken = None;
    let mut world = World::prepared(|agent| {
        let fails = agent.jam_at("ledger.before_begin");
        broken = Some(fails);
    });
    let broken = broken.unwrap();
    let mut planner = world.planner();
    let root = begin(&mut planner);
    let token = issue(&mut planner, &root).unwrap();
    broken.set();
    let refused = planner.task_call::<proto::Task>("Begin", &keyed("k")).unwrap_err();
    assert_eq!(refused.code, 14, "{refused:?}");
    assert_eq!(live(&world.agent).len(), 1);
    assert_eq!(end(&mut planner, &root).unwrap_err().code, 14, "it has ended, and that is not certain yet");
    assert!(!world.is_active(&token.token), "memory refuses all the same");
    broken.clear();
    until("the ledger is written again", || world.agent.admin().status().ready.then_some(()));
    again(&mut world, &mut [&mut planner], killed);
    assert!(!world.is_active(&token.token));
    assert!(live(&world.agent).is_empty(), "what was owed was written");
}

/// The credentials of whoever died are refused first, by themselves: what ends then counts only what was still good.
#[test]
fn what_was_refused_with_its_process_is_not_counted_with_its_task_again() {
    let mut world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let own = [issue(&mut planner, &root).unwrap(), issue(&mut planner, &root).unwrap()];
    let lost = issue(&mut ann, &below).unwrap();
    world.agent.kill();
    planner.kill();
    world.agent.launch();
    assert!(own.iter().chain([&lost]).all(|one| !world.is_active(&one.token)));
    world.agent.audited(&["task.ended", "\"reason\":\"restart\"", &root.id, "\"credentials\":1"]);
    world.agent.audited(&["task.ended", "\"reason\":\"parent_ended\"", &below.id, "\"credentials\":1"]);
}

/// Limits are for what begins: a running task goes on within the new ones, and is not ended for what it was allowed.
#[test]
fn lower_limits_shorten_tasks_that_go_on_and_end_none() {
    let mut world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let longer = proto::RenewRequest { task_id: root.id.clone(), ttl: lasting(3_600) };
    planner.task_call::<proto::Task>("Renew", &longer).unwrap();
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    assert!(world.agent.stop().success());
    world.agent.plan().settings += "\n[tasks]\nlife = \"10m\"\ndefault_life = \"5m\"\ndepth = 1\n";
    world.agent.write_config();
    world.agent.launch();
    for (holder, task) in [(&mut planner, &root), (&mut ann, &below), (&mut ben, &deepest)] {
        holder.connect();
        let is = get(holder, task).unwrap();
        assert_eq!(is.state(), proto::TaskState::Active, "{is:?}");
        assert!(seconds(is.deadline.as_ref()) - seconds(root.begun_at.as_ref()) <= 601, "{is:?}");
        issue(holder, task).unwrap();
    }
}

/// Of what no record can be made nothing happens.
#[test]
fn while_the_record_cannot_be_written_nothing_begins_is_given_or_gets_more_time() {
    let mut broken = None;
    let mut world = World::prepared(|agent| {
        let fails = agent.jam_at("audit.before_write");
        broken = Some(fails);
    });
    let broken = broken.unwrap();
    let (mut planner, mut ben) = (world.planner(), world.ben());
    let root: proto::Task = planner.task_call("Begin", &keyed("root")).unwrap();
    let token = issue(&mut planner, &root).unwrap();
    let was = get(&mut planner, &root).unwrap();
    let more = proto::RenewRequest { task_id: root.id.clone(), ttl: lasting(3_600) };
    let part = proto::DelegateRequest { idempotency_key: "part".to_owned(), ..offer(&root, BEN, "/more") };
    broken.set();
    for (method, refused) in [
        ("Begin", planner.task_call::<proto::Task>("Begin", &keyed("k")).err()),
        ("Delegate", planner.task_call::<proto::Delegation>("Delegate", &part).err()),
        ("Issue", issue(&mut planner, &root).err()),
        ("Renew", planner.task_call::<proto::Task>("Renew", &more).err()),
    ] {
        assert_eq!(refused.map(|refused| refused.code), Some(14), "{method}");
    }
    let unchanged = |is: &proto::Task| {
        assert_eq!((is.state(), is.live_credentials, is.live_children), (proto::TaskState::Active, 1, 0));
        assert!((seconds(is.deadline.as_ref()) - seconds(was.deadline.as_ref())).abs() <= 1, "no more time");
        is.used.unwrap().calls
    };
    let used = unchanged(&get(&mut planner, &root).unwrap());
    assert!((1..=2).contains(&used), "{used}");
    assert_eq!(live(&world.agent).len(), 1);
    assert_eq!(world.agent.admin().live_leases_of(planner.pid()).len(), 1, "no credential stands");
    assert!(world.is_active(&token.token));
    broken.clear();
    let second = until("tasks begin again", || planner.task_call::<proto::Task>("Begin", &keyed("k")).ok());
    assert_eq!(second.state(), proto::TaskState::Active);
    again(&mut world, &mut [&mut planner, &mut ben], killed);
    let used = unchanged(&get(&mut planner, &root).unwrap());
    assert!((1..=2).contains(&used), "{used}");
    assert_eq!(live(&world.agent).len(), 2);
    let renewed: proto::Task = planner.task_call("Renew", &more).unwrap();
    assert!(seconds(renewed.deadline.as_ref()) > seconds(was.deadline.as_ref()));
    let offered: proto::Delegation = planner.task_call("Delegate", &part).unwrap();
    // Not the one of before, of which there is no record.
    world.agent.audited(&["task.delegate", &root.id]);
    let join = proto::JoinRequest { delegation_id: offered.id, ..Default::default() };
    ben.task_call::<proto::Task>("Join", &join).unwrap();
    for _ in used..6 {
        issue(&mut planner, &root).unwrap();
    }
    assert_eq!(issue(&mut planner, &root).unwrap_err().reason, "limit_calls");
}

/// What was given in the last minute counts: a crash is no way to get more.
#[test]
fn a_restart_is_no_new_minute() {
    let mut world = World::prepared(|agent| {
        agent.plan().settings += "\n[tasks]\nissues_per_minute = 3\n";
        agent.write_config();
    });
    let mut planner = world.planner();
    let root = begin(&mut planner);
    for _ in 0..2 {
        issue(&mut planner, &root).unwrap();
    }
    again(&mut world, &mut [&mut planner], killed);
    issue(&mut planner, &root).unwrap();
    assert_eq!(issue(&mut planner, &root).unwrap_err().reason, "limit_rate");
}
