//! Load takes nobody's identity away: whom the agent cannot look at in time is told to ask again, and a live process
//! that cannot be looked at for long loses what it holds, not its entry.

use std::os::unix::fs::PermissionsExt as _;

use mayfly_harness::{Agent, Entry, Holder, Jam, Pause, Plan, files, until};
use mayfly_proto::admin::ListLeasesRequest;
use serde_json::json;

use crate::support::{SHORT, client, own_entry, own_uid};

/// An agent, and the part of attesting that can be made to miss its deadline.
fn jammed(point: &str, entries: &[Entry], settings: &str) -> (Agent, Jam) {
    let mut agent = Plan::with_entries(entries).settings(settings).prepare();
    let (jam, spec) = Jam::at(agent.dir(), point);
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    agent.launch();
    (agent, jam)
}

/// Changes what the kernel says of the file that a holder runs, and nothing else.
fn touch(agent: &Agent) {
    let program = mayfly_harness::holder::holder_program(agent);
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn follow(holder: &mut Holder, kinds: &[&str]) {
    holder.order(&json!({"do": "follow", "kinds": kinds}));
}

/// The next report of that stream: its event and the serial number.
fn report(holder: &mut Holder, tag: u64) -> (String, String) {
    loop {
        let event = holder.expect_any(&["whole", "mixed", "lost"]);
        if event["tag"].as_u64() == Some(tag) {
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            return (text("event"), text("serial"));
        }
    }
}

/// Every way to ask, while `point` is late and afterwards. The one that waits is a stream of SDS.
fn a_late_answer_is_no_denial(point: &str) {
    let (agent, jam) = jammed(point, &[own_entry("/late")], SHORT);
    jam.set();
    let mut holder = client(&agent);
    for _ in 0..2 {
        let refusals = [holder.x509_refused(), holder.jwt("aud").unwrap_err()];
        assert!(refusals.iter().all(|refusal| refusal.code == 14), "{refusals:?}");
    }
    let mut mesh = client(&agent);
    follow(&mut mesh, &["world", "delta"]);
    agent.audited(&["agent.attest_denied", "\"phase\":\"attest\""]);
    let sds = until("both streams are there", || agent.admin().status().sds.filter(|sds| sds.streams == 2));
    assert_eq!(sds.waiting, 0, "nobody took it for a stranger");
    jam.clear();
    let svid = until("it is served", || {
        holder.open_x509();
        holder.next_x509().ok()
    });
    assert_eq!(svid.svids[0].spiffe_id, "spiffe://example.org/late");
    assert!(holder.jwt("aud").is_ok());
    assert_eq!([report(&mut mesh, 0).0, report(&mut mesh, 1).0], ["whole", "whole"]);
    let audit = std::fs::read_to_string(agent.audit_path()).unwrap();
    assert!(!audit.contains("\"phase\":\"match\"") && !audit.contains("traced"), "{audit}");
}

#[test]
fn a_program_that_is_not_measured_in_time_is_no_denial() {
    a_late_answer_is_no_denial("attest.hash");
}

/// What nobody has looked at counts as traced; that nobody had the time to look is something else.
#[test]
fn threads_that_are_not_looked_at_in_time_are_no_denial() {
    a_late_answer_is_no_denial("attest.lineage");
}

#[test]
fn an_ancestor_that_is_not_measured_in_time_denies_nobody_and_holds_up_whom_it_concerns() {
    let parent = files::sha256(&std::env::current_exe().unwrap());
    let ancestor = format!("process:ancestor_sha256:{parent}");
    let uid = format!("unix:uid:{}", own_uid());
    let by_ancestor = Entry::new("/child", &[&uid, &ancestor]).with("priority = 1");
    let (agent, jam) = jammed("attest.ancestor", &[by_ancestor, own_entry("/any")], SHORT);
    jam.set();
    let mut holder = client(&agent);
    assert_eq!(holder.x509_refused().code, 14, "the one it lacks might be its first");
    assert_eq!(holder.jwt("aud").unwrap_err().code, 14);
    // Entries for others ask for ancestors, too: that is not its business.
    let others = Entry::new("/child", &["unix:uid:12345", &ancestor]);
    agent.write_entries(&[others, own_entry("/any")]);
    let served = until("it is served", || {
        holder.open_x509();
        holder.next_x509().ok()
    });
    assert_eq!(served.svids.len(), 1);
    jam.clear();
    agent.write_entries(&[Entry::new("/child", &[&uid, &ancestor]).with("priority = 1"), own_entry("/any")]);
    let mut other = client(&agent);
    let both = until("the ancestor is known", || {
        other.open_x509();
        other.next_x509().ok().filter(|update| update.svids.len() == 2)
    });
    assert_eq!(both.svids[0].spiffe_id, "spiffe://example.org/child");
}

/// A package that is upgraded, a hard link, a change of mode: the file looks changed, and has to be measured again.
#[test]
fn a_second_look_that_gets_no_answer_takes_nothing_away() {
    let (agent, jam) = jammed("attest.hash", &[own_entry("/kept")], SHORT);
    let mut holder = client(&agent);
    follow(&mut holder, &["world", "delta", "x509"]);
    let before: Vec<_> = (0..3).map(|tag| report(&mut holder, tag)).collect();
    assert!(before.iter().all(|(event, _)| event == "whole"), "{before:?}");
    jam.set();
    touch(&agent);
    // The call that finds it out, and one that is attested anew.
    for _ in 0..2 {
        let refused = holder.jwt("aud").unwrap_err();
        assert_eq!(refused.code, 14, "{refused:?}");
    }
    jam.clear();
    until("tokens are issued again", || holder.jwt("aud").ok());
    for (tag, before) in (0..3).zip(&before) {
        let after = report(&mut holder, tag);
        assert_eq!(after.0, "whole", "it was told nothing else");
        assert_ne!(after.1, before.1, "and is renewed as ever");
    }
    let everything = ListLeasesRequest { include_revoked: true, ..ListLeasesRequest::default() };
    let revoked = agent.admin().leases(everything).into_iter().filter(|lease| lease.state == "revoked");
    assert_eq!(revoked.filter(|lease| lease.reason != "issue_aborted").count(), 0);
}

/// Between the admission and the last look before a token leaves.
#[test]
fn a_program_that_looks_changed_in_the_last_moment_is_no_denial() {
    let mut agent = Plan::with_entries(&[own_entry("/touched")]).settings(SHORT).prepare();
    let (pause, spec) = Pause::at(agent.dir(), "issue.before_release");
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    agent.launch();
    let mut holder = client(&agent);
    holder.order(&json!({"do": "jwt", "audience": ["aud"]}));
    pause.hit();
    touch(&agent);
    pause.release();
    let answer = holder.expect("jwt");
    assert_eq!(answer["code"], 14, "nobody has looked yet: {answer}");
    until("it turns out to be the same", || holder.jwt("aud").ok());
}

/// Nobody may keep an identity for as long as he keeps us from looking at him.
#[test]
fn what_cannot_be_looked_at_for_long_is_revoked_and_comes_back_with_the_answer() {
    let (agent, jam) = jammed("attest.hash", &[own_entry("/doubted")], "[x509]\nttl = \"15m\"\n");
    let mut holder = client(&agent);
    let first = holder.x509().svids.remove(0);
    follow(&mut holder, &["world"]);
    assert_eq!(report(&mut holder, 0).0, "whole");
    jam.set();
    touch(&agent);
    assert_eq!(holder.jwt("aud").unwrap_err().code, 14);
    let ended = holder.x509_end();
    assert_eq!(ended.code, 14, "nobody knows that it has no identity: {ended:?}");
    assert!(agent.admin().live_leases_of(holder.pid()).is_empty());
    agent.audited(&["credential.revoke", first.serial(), "exec_mismatch"]);
    assert_eq!(report(&mut holder, 0).0, "mixed", "Envoy obeys nothing but a replacement");
    assert_eq!(holder.x509_refused().code, 14);
    jam.clear();
    let again = until("it is served", || {
        holder.open_x509();
        holder.next_x509().ok()
    });
    assert_ne!(again.svids[0].serial(), first.serial());
    // The CRL comes with the replacement once more, before the new certificate: all over the same stream.
    while report(&mut holder, 0).0 == "mixed" {}
    assert!(!holder.x509_has_ended());
}
