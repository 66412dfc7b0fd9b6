//! A policy set guards the Workload API, and changes while the agent runs.

use std::path::PathBuf;

use mayfly_harness::{Agent, Plan, files, until};

use crate::support::{client, own_uid};

/// One set for everything: whoever has an identity may fetch it.
const OPEN: &str = "@id(\"fetch\")\npermit(principal, action == Mayfly::Action::\"fetch\", resource);\n";

/// The audience `wiki` and no other.
const WIKI: &str = "@id(\"x509\")
permit(principal, action == Mayfly::Action::\"fetch\", resource) when { resource.kind == \"x509\" };
@id(\"wiki\") @max_ttl(\"60\")
permit(principal, action == Mayfly::Action::\"fetch\", resource)
when { resource.kind == \"jwt\" && resource.audiences == [\"wiki\"] && principal.selectors.contains(\"unix:uid:UID\") };
";

fn dir(agent: &Agent) -> PathBuf {
    agent.dir().join("policy.d")
}

fn write(agent: &Agent, policies: &str) {
    let policies = policies.replace("UID", &own_uid().to_string());
    files::replace(&dir(agent).join("a.cedar"), policies.as_bytes(), 0o644);
}

/// An agent that knows our uid, with that set; not started.
fn prepared(policies: &str) -> Agent {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    std::fs::create_dir(dir(&agent)).unwrap();
    let table = format!("\n[policy]\ndir = {:?}\n", dir(&agent));
    agent.plan().settings += &table;
    agent.write_config();
    write(&agent, policies);
    agent
}

fn started(policies: &str) -> Agent {
    let mut agent = prepared(policies);
    agent.launch();
    agent
}

fn version(agent: &Agent) -> String {
    agent.admin().status().policy.expect("a policy set").version
}

#[test]
fn a_set_that_does_not_load_refuses_to_start_and_says_where() {
    for (policies, place) in [
        ("@id(\"a\")\npermit(principal, action == Mayfly::Action::\"fetsh\", resource);", "a.cedar:2:"),
        ("@id(\"a\")\n@maxttl(\"1h\")\npermit(principal, action, resource);", "did you mean `@max_ttl`?"),
        ("// nothing", "a.cedar: holds no policy"),
    ] {
        let ended = prepared(policies).refused();
        assert_eq!(ended.code, Some(10), "{}", ended.log);
        assert!(ended.log.contains(place), "{}", ended.log);
    }
}

#[test]
fn each_fetch_is_decided_and_the_record_says_why_one_was_refused() {
    let agent = started(WIKI);
    let mut client = client(&agent);
    assert_eq!(client.x509().svids.len(), 1);
    assert_eq!(client.jwt("wiki").unwrap().len(), 1);
    let refusal = client.jwt("payroll").unwrap_err();
    assert_eq!((refusal.code, refusal.message.as_str()), (7, "no identity issued"));
    agent.audited(&["agent.attest_denied", "\"phase\":\"policy\"", "no_permit"]);
    let set = agent.admin().status().policy.unwrap();
    assert_eq!((set.policies, set.last_reload_error.as_str()), (2, ""));
    agent.audited(&["policy.loaded", &set.version]);
}

#[test]
fn another_set_is_in_force_at_once_and_a_wrong_one_never() {
    let agent = started(OPEN);
    let mut client = client(&agent);
    assert_eq!(client.jwt("payroll").unwrap().len(), 1);
    let first = version(&agent);
    write(&agent, WIKI);
    let second = until("the new set", || Some(version(&agent)).filter(|now| *now != first));
    assert_eq!(client.jwt("payroll").unwrap_err().code, 7);
    write(&agent, "@id(\"a\")\npermit(principal, action, resource) when { principal.shoe == 1 };");
    let why = until("the alarm", || {
        Some(agent.admin().status().policy.unwrap().last_reload_error).filter(|why| !why.is_empty())
    });
    assert!(why.contains("a.cedar:2:") && why.contains("shoe"), "{why}");
    agent.audited(&["policy.rejected", "shoe"]);
    assert_eq!(version(&agent), second, "the set before stays");
    assert_eq!(client.jwt("payroll").unwrap_err().code, 7);
    assert_eq!(client.jwt("wiki").unwrap().len(), 1);
    write(&agent, OPEN);
    until("the first set again", || (version(&agent) == first).then_some(()));
    assert_eq!(agent.admin().status().policy.unwrap().last_reload_error, "");
    assert_eq!(client.jwt("payroll").unwrap().len(), 1);
}

const NO_CERTIFICATES: &str = "@id(\"tokens\")
permit(principal, action == Mayfly::Action::\"fetch\", resource) when { resource.kind == \"jwt\" };
";

/// Live leases of that kind that our client has.
fn live(agent: &Agent, pid: u32, kind: &str) -> Vec<String> {
    agent.admin().live_leases_of(pid).into_iter().filter(|l| l.kind == kind).map(|l| l.id).collect()
}

#[test]
fn what_a_new_set_does_not_give_is_taken_back_form_by_form_and_comes_again_on_open_streams() {
    let agent = started(OPEN);
    let mut client = client(&agent);
    let serial = client.x509().svids[0].serial().to_owned();
    let token = client.jwt("payroll").unwrap()[0].jti();
    write(&agent, NO_CERTIFICATES);
    let end = client.x509_end();
    assert_eq!((end.code, end.message.as_str()), (7, "no identity issued"));
    agent.audited(&["credential.revoke", &serial, "\"reason\":\"policy\"", "\"initiator\":\"policy\""]);
    assert_eq!(live(&agent, client.pid(), "x509"), [""; 0]);
    assert_eq!(live(&agent, client.pid(), "jwt"), std::slice::from_ref(&token), "the token stands");
    assert_eq!(client.x509_refused().code, 7);
    write(&agent, WIKI);
    agent.audited(&["credential.revoke", &token, "\"reason\":\"policy\""]);
    let update = until("a certificate again", || {
        client.open_x509();
        client.next_x509().ok()
    });
    assert_ne!(update.svids[0].serial(), serial);
}

#[test]
fn an_identity_that_a_new_set_gives_arrives_on_a_stream_that_is_open() {
    let path = format!("spiffe://example.org/uid/{}", own_uid());
    let one = format!(
        "@id(\"one\")\npermit(principal, action == Mayfly::Action::\"fetch\", resource)
        when {{ resource.spiffe_id == \"{path}\" }};"
    );
    let agent = started(&one);
    agent.write_entries(&[crate::support::own_entry("/second"), mayfly_harness::Entry::for_uid(own_uid())]);
    until("both entries", || (agent.admin().entries().entries.len() == 2).then_some(()));
    let mut client = client(&agent);
    assert_eq!(client.x509().svids.len(), 1, "the other one is not given");
    write(&agent, OPEN);
    assert_eq!(client.next_x509().unwrap().svids.len(), 2);
    // Who explains looks anew, and on a busy machine may not get to the end in time.
    let out = until("explained", || {
        let (code, out, _) = agent.mayfly(&["explain", "--pid", &client.pid().to_string()]);
        (code == Some(0)).then_some(out)
    });
    assert!(out.contains("policy gives it as x509 (allowed: fetch)"), "{out}");
}

#[test]
fn a_permit_that_ends_by_its_date_takes_back_what_it_gave() {
    let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(5);
    let end =
        end.replace_nanosecond(0).unwrap().format(&time::format_description::well_known::Rfc3339).unwrap();
    let agent = started(&format!(
        "@id(\"dated\") @until(\"{end}\")\npermit(principal, action == Mayfly::Action::\"fetch\", resource);"
    ));
    let mut client = client(&agent);
    let serial = client.x509().svids[0].serial().to_owned();
    assert_eq!(client.x509_end().code, 7);
    agent.audited(&["credential.revoke", &serial, "\"reason\":\"policy\""]);
}

#[test]
fn after_a_restart_with_another_set_the_leases_of_before_are_judged_by_it() {
    let mut agent = started(OPEN);
    let mut client = client(&agent);
    let serial = client.x509().svids[0].serial().to_owned();
    let token = client.jwt("payroll").unwrap()[0].jti();
    agent.kill();
    write(&agent, WIKI.replace("resource.kind == \"x509\"", "resource.kind == \"wit\"").as_str());
    agent.launch();
    for id in [&serial, &token] {
        agent.audited(&["credential.revoke", id]);
    }
    assert_eq!(agent.admin().live_leases_of(client.pid()).len(), 0);
}
