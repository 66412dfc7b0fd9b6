//! What an operator takes stays taken until the process restarts, whatever else happens.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mayfly::ledger::{Bar, IntegrityCheck, Ledger, LedgerPlace};
use mayfly_harness::{Agent, Holder, Pause, Plan, until};
use mayfly_proto::admin::ListLeasesRequest;
use mayfly_proto::admin::revoke_leases_request::Target;

use crate::support::{agent, client, empty_agent, own_entry, own_uid};

/// Asks anew, after a restart or not.
fn refused_from_now_on(holder: &mut Holder) {
    holder.connect();
    let refusal = holder.x509_refused();
    assert_eq!((refusal.code, refusal.message.as_str()), (7, "no identity issued"));
    assert_eq!(holder.jwt("aud").unwrap_err().code, 7);
}

/// The bars in the ledger of an agent that does not run.
fn bars(agent: &Agent) -> Vec<Bar> {
    let place = LedgerPlace::Disk(agent.data_dir());
    let (ledger, _) = Ledger::open(&place, IntegrityCheck::InProcess).unwrap();
    ledger.found_bars().to_vec()
}

#[test]
fn bar_by_process_outlives_a_restart() {
    let mut agent = agent();
    let mut barred = client(&agent);
    let serial = barred.x509().svids[0].serial().to_owned();
    let answer = agent.admin().revoke(Target::Pid(barred.pid())).unwrap();
    assert_eq!(answer.lease_ids, [serial]);
    assert_eq!(barred.x509_end().code, 7);
    agent.crash_and_restart();
    refused_from_now_on(&mut barred);
    agent.stop();
    agent.launch();
    refused_from_now_on(&mut barred);
    client(&agent).x509();
}

/// Nothing of it is in the table of leases: the bar stands by itself.
#[test]
fn bar_of_a_process_the_agent_does_not_know_holds_and_outlives_a_restart() {
    let mut agent = agent();
    let mut stranger = client(&agent);
    let answer = agent.admin().revoke(Target::Pid(stranger.pid())).unwrap();
    assert!(answer.lease_ids.is_empty());
    refused_from_now_on(&mut stranger);
    agent.audited(&["attest_denied", "an operator took its identities", &stranger.pid().to_string()]);
    agent.crash_and_restart();
    refused_from_now_on(&mut stranger);
}

/// An order that was not carried out says so: nobody must take it for done.
#[test]
fn whoever_cannot_be_looked_at_is_not_said_to_be_barred() {
    let mut agent = Plan::with_entries(&[own_entry("/web")]).prepare();
    let fails = agent.jam_at("attest.hash");
    agent.launch();
    let mut stranger = client(&agent);
    fails.set();
    let refused = agent.admin().revoke(Target::Pid(stranger.pid())).unwrap_err();
    assert_eq!(refused.code() as i32, 14, "{refused:?}");
    assert!(refused.message().contains("is not barred either"), "{refused:?}");
    fails.clear();
    agent.admin().revoke(Target::Pid(stranger.pid())).unwrap();
    refused_from_now_on(&mut stranger);
}

#[test]
fn bar_by_spiffe_id_outlives_a_restart_and_leaves_the_other_identity() {
    let entries = [own_entry("/taken"), own_entry("/kept")];
    let mut agent = Plan::with_entries(&entries).start();
    let taken = "spiffe://example.org/taken";
    // One that holds leases, and one that has only been attested: it holds the other identity's token.
    let mut holder = client(&agent);
    assert_eq!(holder.x509().svids.len(), 2);
    agent.admin().revoke(Target::SpiffeId(taken.to_owned())).unwrap();
    for _ in 0..2 {
        holder.connect();
        let tokens = holder.jwt("aud").unwrap();
        assert_eq!(tokens.len(), 1);
        assert_eq!(tokens[0].spiffe_id, "spiffe://example.org/kept");
        agent.crash_and_restart();
    }
    assert_eq!(client(&agent).x509().svids.len(), 2, "another process has both");
}

/// The row is written, the credential has not left: it never does, and the CRL says so.
#[test]
fn revocation_by_spiffe_id_reaches_what_is_in_flight() {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    let (pause, spec) = Pause::at(agent.dir(), "issue.before_release");
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    agent.launch();
    let mut holder = client(&agent);
    holder.open_x509();
    pause.hit();
    let spiffe_id = format!("spiffe://example.org/uid/{}", own_uid());
    agent.admin().revoke(Target::SpiffeId(spiffe_id)).unwrap();
    pause.release();
    assert_eq!(holder.next_x509().expect_err("it left all the same").code, 7);
    let request = ListLeasesRequest { include_revoked: true, ..ListLeasesRequest::default() };
    let leases = until("the lease is revoked", || {
        let leases = agent.admin().leases(request.clone());
        (!leases.is_empty() && leases.iter().all(|lease| lease.state == "revoked")).then_some(leases)
    });
    assert_eq!((leases.len(), leases[0].reason.as_str()), (1, "operator"));
    refused_from_now_on(&mut holder);
}

#[test]
fn bars_go_with_their_processes() {
    let mut agent = agent();
    let [mut first, mut second] = [client(&agent), client(&agent)];
    let pids = [first.pid(), second.pid()];
    for pid in pids {
        agent.admin().revoke(Target::Pid(pid)).unwrap();
    }
    agent.stop();
    assert_eq!(bars(&agent).len(), 2);
    // One ends while nobody looks, one before the agent's eyes.
    first.kill();
    agent.launch();
    second.kill();
    until("both are forgotten", || {
        (agent.admin().status().workloads == 0).then_some(())?;
        agent.stop();
        let left = bars(&agent);
        agent.launch();
        left.is_empty().then_some(())
    });
}

fn waiting_client(agent: &Agent) -> Child {
    Command::new(mayfly_harness::agent::mayfly())
        .args(["fetch", "jwt", "--audience", "aud", "--wait=60s"])
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// `--wait` waits by `AwaitIdentity`. To a barred process that never answers: else it would fetch and be refused
/// for as long as it waits.
#[test]
fn waiting_caller_that_is_barred_is_told_nothing_and_does_not_spin() {
    let agent = empty_agent();
    let mut barred = waiting_client(&agent);
    agent.audited(&["attest_denied", "no entry matches", &barred.id().to_string()]);
    let mut free = waiting_client(&agent);
    agent.admin().revoke(Target::Pid(barred.id())).unwrap();
    agent.write_entries(&[own_entry("/late")]);
    assert!(free.wait().unwrap().success());
    // An absence cannot be awaited: five of the shortest pauses of one that spins.
    std::thread::sleep(Duration::from_millis(500));
    assert!(barred.try_wait().unwrap().is_none(), "it was told something");
    let pid = u64::from(barred.id());
    let again = agent.audit().into_iter().filter(|line| {
        line["agent"]["pid"] == pid && line.to_string().contains("an operator took its identities")
    });
    assert_eq!(again.count(), 0, "it asked again");
    barred.kill().unwrap();
    barred.wait().unwrap();
}
