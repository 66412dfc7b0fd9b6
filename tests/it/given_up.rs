//! Callers who do not wait for the answer.

use std::cell::RefCell;
use std::time::Duration;

use mayfly_harness::tasks::detail;
use mayfly_harness::{Jam, Pause, until};
use mayfly_proto::task as proto;

use crate::children::{ANN, WIKI, World, begin, issue, offer};

/// The ledger is slow and the record cannot be written: whoever stays is told that nothing has begun. Whoever goes away
/// must not have begun something either.
#[test]
fn who_goes_away_keeps_nothing_that_could_not_be_recorded() {
    let parts = RefCell::new(None);
    let world = World::prepared(|agent| {
        let (slow, one) = Pause::at(agent.dir(), "ledger.before_begin");
        let (fails, other) = Jam::at(agent.dir(), "audit.before_write");
        slow.release();
        *parts.borrow_mut() = Some((slow, fails));
        agent.failpoints(&format!("{one};{other}"));
    });
    let (slow, fails) = parts.into_inner().unwrap();
    let mut planner = world.planner();
    let root = begin(&mut planner);
    let request = proto::BeginRequest {
        details: vec![detail(WIKI, &["read"])],
        idempotency_key: "k".to_owned(),
        ..Default::default()
    };
    let part = proto::DelegateRequest { idempotency_key: "d".to_owned(), ..offer(&root, ANN, "/docs") };
    slow.arm();
    fails.set();
    planner.task_give_up("Begin", &request, Duration::from_millis(200));
    assert_eq!(planner.task_answer::<proto::Task>().unwrap_err().code, 4);
    planner.task_give_up("Delegate", &part, Duration::from_millis(200));
    assert_eq!(planner.task_answer::<proto::Delegation>().unwrap_err().code, 4);
    slow.hit();
    slow.release();
    let listed = || {
        let (code, out, err) = world.agent.mayfly(&["task", "list", "--output", "json"]);
        assert_eq!(code, Some(0), "{err}");
        let listed: serde_json::Value = serde_json::from_str(&out).unwrap();
        listed["tasks"].as_array().unwrap().len()
    };
    until("only the first task is left", || (listed() == 1).then_some(()));
    fails.clear();
    let begun = until("tasks begin again", || planner.task_call::<proto::Task>("Begin", &request).ok());
    issue(&mut planner, &begun).unwrap();
    world.agent.audited(&["\"task.begin\"", &begun.id]);
    let offered = planner.task_call::<proto::Delegation>("Delegate", &part).unwrap();
    assert!(!offered.id.is_empty());
    world.agent.audited(&["\"task.delegate\"", &root.id]);
}
