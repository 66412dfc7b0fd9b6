//! Lines of the record that say which trace of the caller they are part of, and which span of it asked.

#![expect(clippy::string_slice, reason = "what is cut is ASCII")]

use std::collections::BTreeSet;

use mayfly_harness::{Holder, TaskRefusal};
use mayfly_proto::task as proto;
use serde_json::Value;

use crate::children::{World, begin, end, issue, wanted};
use crate::http::local;
use crate::support::client;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER: &str = "0af7651916cd43dd8448eb211c80319c";

fn parent(trace: &str, span: u64) -> String {
    format!("00-{trace}-{span:016x}-01")
}

/// In the trace under test.
fn in_span(holder: &mut Holder, span: u64) {
    holder.traces(&[&parent(TRACE, span)]);
}

fn is_in(line: &Value, span: u64) -> bool {
    line["trace_id"] == TRACE && line["span_id"] == format!("{span:016x}")
}

fn is_in_none(line: &Value) -> bool {
    line.get("trace_id").is_none() && line.get("span_id").is_none()
}

fn events_of(lines: &[Value], span: u64) -> Vec<&str> {
    let own = lines.iter().filter(|line| is_in(line, span));
    own.map(|line| line["event"].as_str().unwrap()).collect()
}

fn refused(holder: &mut Holder, task: &proto::Task) -> TaskRefusal {
    let elsewhere = "https://elsewhere.example.org".to_owned();
    let request =
        proto::IssueRequest { audience: vec![elsewhere], ..wanted(task, proto::Format::AccessToken) };
    holder.task_call::<proto::Credential>("Issue", &request).unwrap_err()
}

#[test]
fn every_line_that_a_call_brings_about_is_part_of_its_trace() {
    let world = World::new();
    let mut planner = world.planner();
    in_span(&mut planner, 1);
    let task = begin(&mut planner);
    in_span(&mut planner, 2);
    let token = issue(&mut planner, &task).unwrap();
    in_span(&mut planner, 3);
    assert_eq!(refused(&mut planner, &task).reason, "policy_denied");
    in_span(&mut planner, 4);
    planner.jwt("urn:a").unwrap();
    in_span(&mut planner, 5);
    planner.x509();
    in_span(&mut planner, 6);
    end(&mut planner, &task).unwrap();
    world.agent.audited(&["\"task.ended\"", &task.id]);
    let revoked = world.agent.audited(&["\"credential.revoke\"", &token.id]);
    assert!(is_in(&revoked, 6), "{revoked}");

    let lines = world.agent.audit();
    for (span, events) in [
        (1, &["agent.attested", "task.begin"][..]),
        (2, &["decision.allow", "decision.allow", "credential.issue"]),
        (3, &["decision.deny"]),
        (4, &["credential.issue"]),
        (5, &["credential.issue"]),
    ] {
        assert_eq!(events_of(&lines, span), events, "span {span}");
    }
    let ends: BTreeSet<&str> = events_of(&lines, 6).into_iter().collect();
    assert_eq!(ends, ["credential.revoke", "task.ended"].into());

    // All of them are found by the trace, and nothing else is.
    let log = world.agent.audit_path();
    let ask = |more: &[&str]| {
        let arguments = [&["audit", "query", "--output", "json"], more, &[log.to_str().unwrap()]].concat();
        let (code, out, err) = world.agent.mayfly(&arguments);
        assert_eq!(code, Some(0), "{out}{err}");
        out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let found = ask(&["--trace", TRACE]);
    let wanted: Vec<Value> = lines.iter().filter(|line| line["trace_id"] == TRACE).cloned().collect();
    assert_eq!(found, wanted);
    assert_eq!(ask(&["--trace", &TRACE.to_uppercase(), "--event", "task"]).len(), 2);
    assert_eq!(ask(&["--trace", OTHER]).len(), 0);
    let (code, _, err) = world.agent.mayfly(&["audit", "query", "--trace", "4bf9"]);
    assert!(code == Some(2) && err.contains("32 hex digits"), "{code:?} {err}");
}

#[test]
fn a_traceparent_that_is_none_is_ignored_and_refuses_nobody() {
    let world = World::new();
    let mut planner = world.planner();
    let good = parent(TRACE, 1);
    let (upper, zero) = (good.to_uppercase(), parent(&"0".repeat(32), 1));
    let (short, long, never) = (&good[..54], format!("{good}-00"), format!("ff{}", &good[2..]));
    for broken in [
        &["rubbish"][..],
        &[""],
        &[&upper],
        &[&zero],
        &[short],
        &[&long],
        &[&never],
        &[&good, &good],
        &[&good, "rubbish"],
    ] {
        planner.traces(broken);
        let task = begin(&mut planner);
        let token = issue(&mut planner, &task).unwrap();
        end(&mut planner, &task).unwrap();
        for words in [
            &["\"task.begin\"", &task.id][..],
            &["\"credential.issue\"", &token.id],
            &["\"credential.revoke\"", &token.id],
            &["\"task.ended\"", &task.id],
        ] {
            let line = world.agent.audited(words);
            assert!(is_in_none(&line), "{broken:?}: {line}");
        }
    }
    // One of a later version says the same at its beginning.
    planner.traces(&[&format!("0a{}-more", &good[2..])]);
    let task = begin(&mut planner);
    assert!(is_in(&world.agent.audited(&["\"task.begin\"", &task.id]), 1));
    // And without any there is none.
    planner.traces(&[]);
    let task = begin(&mut planner);
    assert!(is_in_none(&world.agent.audited(&["\"task.begin\"", &task.id])));
}

#[test]
fn what_goes_on_by_itself_is_part_of_no_trace() {
    let world = World::new();
    let mut planner = world.planner();
    in_span(&mut planner, 1);
    let task = begin(&mut planner);
    let token = issue(&mut planner, &task).unwrap();
    planner.kill();
    for words in [["\"task.ended\"", &task.id], ["\"credential.revoke\"", &token.id]] {
        let line = world.agent.audited(&words);
        assert!(is_in_none(&line), "nobody asked for that: {line}");
    }
    // What a freeze does is part of the freeze, whoever is the first to find it.
    let mut planner = world.planner();
    let task = begin(&mut planner);
    let (code, ..) = world.agent.mayfly(&["freeze", "--task", &task.id, "--reason", "r"]);
    assert_eq!(code, Some(0));
    in_span(&mut planner, 2);
    let get = proto::GetTaskRequest { task_id: task.id.clone() };
    planner.task_call::<proto::Task>("Get", &get).unwrap();
    assert!(is_in_none(&world.agent.audited(&["\"task.suspend\"", &task.id])));
}

#[test]
fn operators_and_receivers_have_traces_as_well() {
    let world = World::new();
    let mut planner = world.planner();
    let mut operator = client(&world.agent);
    let admin = world.agent.admin_socket();
    let task = begin(&mut planner);
    let token = issue(&mut planner, &task).unwrap();
    in_span(&mut operator, 7);
    let order = proto::RevokeTaskRequest { task_id: task.id.clone(), ..Default::default() };
    operator.rpc_at::<proto::TaskSummary>(&admin, "mayfly.task.v1.TaskAdmin/Revoke", &order).unwrap();
    for words in
        [["\"admin.revoke\"", &task.id], ["\"task.ended\"", &task.id], ["\"credential.revoke\"", &token.id]]
    {
        let line = world.agent.audited(&words);
        assert!(is_in(&line, 7), "{line}");
    }
    in_span(&mut operator, 8);
    let order = mayfly_proto::admin::FreezeRequest {
        thing: Some(mayfly_proto::admin::FrozenThing {
            what: Some(mayfly_proto::admin::frozen_thing::What::Target("wiki".to_owned())),
        }),
        ..Default::default()
    };
    operator
        .rpc_at::<mayfly_proto::admin::FreezeResponse>(&admin, "mayfly.admin.v1.Admin/Freeze", &order)
        .unwrap();
    assert!(is_in(&world.agent.audited(&["\"event\":\"freeze\"", "target wiki"]), 8));
    // Whoever is shown the token names a trace of its own, over HTTP.
    let header = format!("traceparent: {}", parent(TRACE, 9));
    let said = local(
        &world.agent,
        "/introspect",
        &["-H", &header, "--data-urlencode", &format!("token={}", token.token)],
    );
    assert_eq!(said.json()["active"], false);
    let line = world.agent.audited(&["\"credential.reuse_after_end\"", &token.id]);
    assert!(is_in(&line, 9), "{line}");
}
