//! The kill switch between users: who is killed, who is not, and what is said when the agent may not kill.

use mayfly_harness::policies::WIKI;
use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Entry, Holder, Plan, Policies, is_running, require_root, until};
use mayfly_proto::task as proto;
use serde_json::Value;

use crate::support::WIDE;

const DOOMED: u32 = 20_931;
const OTHER: u32 = 20_932;
const OWN: u32 = 20_933;

fn agent(uid: Option<u32>) -> Agent {
    require_root();
    let entries = [DOOMED, OTHER].map(Entry::for_uid);
    let mut plan = Plan::with_entries(&entries).settings(WIDE);
    plan.uid = uid;
    let mut agent = plan.prepare();
    Policies::open().permit("read").target("wiki", &[]).install(&mut agent);
    agent.launch();
    agent
}

fn kill(agent: &Agent, server: u32) -> (Option<i32>, Value, String) {
    let id = format!("spiffe://example.org/uid/{DOOMED}");
    let server = server.to_string();
    let (code, out, err) =
        agent.mayfly(&["kill", "--agent", &id, "--server-uid", &server, "--output", "json"]);
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}")), err)
}

#[test]
fn one_users_agent_is_killed_and_anothers_works_on() {
    let agent = agent(None);
    let (mut doomed, mut other) = (Holder::start(&agent, DOOMED), Holder::start(&agent, OTHER));
    doomed.task(WIKI, WIKI).unwrap();
    other.task(WIKI, WIKI).unwrap();
    let (code, said, err) = kill(&agent, 0);
    assert_eq!((code, &said["tasks"], &said["processes"]), (Some(0), &1.into(), &1.into()), "{said} {err}");
    until("the process is gone", || (!is_running(doomed.pid())).then_some(()));
    assert!(is_running(other.pid()) && other.task(WIKI, WIKI).is_ok());
    agent.audited(&["task.ended", "kill_switch"]);
}

#[test]
fn an_agent_that_may_not_kill_takes_everything_back_and_says_who_lives_on() {
    let agent = agent(Some(OWN));
    let mut doomed = Holder::start(&agent, DOOMED);
    let (task, _token) = doomed.task(WIKI, WIKI).unwrap();
    let (code, said, err) = kill(&agent, OWN);
    assert_eq!((code, &said["tasks"], &said["not_killed"]), (Some(1), &1.into(), &1.into()), "{said} {err}");
    assert!(err.contains("1 process or cgroup lives on") && err.contains("CAP_KILL"), "{err}");
    assert!(is_running(doomed.pid()));
    agent.audited(&["task.ended", "kill_switch", "\"credentials\":1", &task]);
    assert!(doomed.task(WIKI, WIKI).is_err(), "and it gets nothing more");
}

/// K01: who has become another user has a parent still, and no keeper.
#[test]
fn k01_a_parent_of_another_user_keeps_nothing() {
    let agent = agent(None);
    let mut holder = Holder::start(&agent, OTHER);
    let request = proto::BeginRequest {
        details: vec![detail(WIKI, &["read"])],
        keeper: Some(proto::Keeper { audiences: vec![WIKI.to_owned()] }),
        ..Default::default()
    };
    let refused = holder.task_call::<proto::Task>("Begin", &request).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (7, "not_granted"));
    agent.audited(&["\"phase\":\"keeper\"", "its parent is of another user", &OTHER.to_string()]);
    let request = proto::BeginRequest { keeper: None, ..request };
    assert!(holder.task_call::<proto::Task>("Begin", &request).is_ok(), "without one it may");
}
