//! The kill switch: what is frozen gets nothing, whatever entries and policies say.

use mayfly_harness::{Agent, Plan, until};
use serde_json::json;

use crate::support::{agent, client, own_uid};

fn run(agent: &Agent, arguments: &[&str]) -> String {
    let (code, out, err) = agent.mayfly(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    out
}

fn own() -> String {
    format!("spiffe://example.org/uid/{}", own_uid())
}

fn concerns(agent: &Agent) -> String {
    agent.admin().status().concerns.join("\n")
}

/// Decided before the freeze, handed over after it: nothing is.
#[test]
fn a_token_that_was_on_its_way_when_everything_was_frozen_never_arrives() {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    let pause = agent.pause_at("issue.before_release");
    agent.launch();
    let mut holder = client(&agent);
    holder.order(&json!({"do": "jwt", "audience": ["a"]}));
    pause.hit();
    run(&agent, &["freeze", "--all"]);
    pause.release();
    let answer = holder.expect("jwt");
    assert_eq!(answer["code"], 7, "{answer}");
    assert!(agent.admin().live_leases_of(holder.pid()).is_empty());
}

#[test]
fn a_frozen_agent_gets_nothing_new_and_keeps_what_it_has_until_it_is_thawed() {
    let mut agent = agent();
    let mut client = client(&agent);
    let serial = client.x509().svids[0].serial().to_owned();
    run(&agent, &["freeze", "--agent", &own(), "--reason", "incident 4711"]);
    assert_eq!(client.jwt("a").unwrap_err().code, 7);
    agent.audited(&["agent.attest_denied", "\"phase\":\"policy\"", "frozen"]);
    agent.audited(&["\"event\":\"freeze\"", "incident 4711", &own()]);
    assert!(concerns(&agent).contains("frozen: agent"), "{}", concerns(&agent));
    let live = agent.admin().live_leases_of(client.pid());
    assert!(live.iter().any(|lease| lease.id == serial), "a freeze alone takes nothing back");
    // A restart thaws nothing.
    agent.crash_and_restart();
    client.connect();
    assert_eq!(client.jwt("a").unwrap_err().code, 7);
    assert!(concerns(&agent).contains("incident 4711"));
    run(&agent, &["thaw", "--agent", &own()]);
    assert_eq!(client.jwt("a").unwrap().len(), 1);
    agent.audited(&["\"event\":\"thaw\"", &own()]);
    let (code, _, err) = agent.mayfly(&["thaw", "--agent", &own()]);
    assert!(code == Some(1) && err.contains("is not frozen"), "{err}");
}

#[test]
fn a_freeze_that_revokes_takes_back_what_was_given_and_nobody_else_loses_anything() {
    let agent = agent();
    let mut client = client(&agent);
    let serial = client.x509().svids[0].serial().to_owned();
    let token = client.jwt("a").unwrap()[0].jti();
    run(&agent, &["freeze", "--agent", "spiffe://example.org/somebody/else", "--revoke"]);
    assert_eq!(client.jwt("a").unwrap().len(), 1);
    run(&agent, &["freeze", "--agent", &own(), "--revoke"]);
    assert_eq!(client.x509_end().code, 7);
    for id in [&serial, &token] {
        agent.audited(&["credential.revoke", id]);
    }
    run(&agent, &["thaw", "--agent", &own()]);
    until("an identity again", || {
        client.open_x509();
        client.next_x509().ok()
    });
}

#[test]
fn the_flag_file_freezes_everything_and_one_person_alone_thaws_nothing_of_that_kind() {
    let agent = agent();
    let mut client = client(&agent);
    assert_eq!(client.jwt("a").unwrap().len(), 1);
    let flag = agent.dir().join("FREEZE");
    std::fs::write(&flag, "").unwrap();
    assert_eq!(client.jwt("a").unwrap_err().code, 7, "at the very next decision");
    agent.audited(&["\"event\":\"freeze\"", "the flag file"]);
    std::fs::remove_file(&flag).unwrap();
    assert_eq!(client.jwt("a").unwrap().len(), 1);
    agent.audited(&["\"event\":\"thaw\"", "the flag file"]);
    run(&agent, &["freeze", "--all"]);
    for _ in 0..2 {
        let (code, _, err) = agent.mayfly(&["thaw", "--all"]);
        assert!(code == Some(1) && err.contains("still frozen") && err.contains("another user"), "{err}");
    }
    assert_eq!(client.jwt("a").unwrap_err().code, 7);
}
