//! What is issued, to whom it counts, and what becomes of it when nobody takes it.

use std::time::Duration;

use mayfly::clock::{Clock as _, SystemClock, unix_seconds};
use mayfly::ledger::{CrlMark, IntegrityCheck, Ledger, LedgerPlace};
use mayfly_harness::{Agent, Holder, Pause, Plan, until};
use mayfly_proto::admin::{Lease, ListLeasesRequest};
use serde_json::json;

use crate::support::{agent, client, empty_agent, own_entry, own_uid};

fn all_leases(agent: &Agent) -> Vec<Lease> {
    let request = ListLeasesRequest { include_revoked: true, ..ListLeasesRequest::default() };
    agent.admin().leases(request)
}

fn live(agent: &Agent) -> usize {
    all_leases(agent).iter().filter(|lease| lease.state == "live").count()
}

/// Written down, not yet answered, and the caller leaves: its token is revoked, and its place is free again.
#[test]
fn fetch_cancelled_in_flight_gives_back_its_ticket_and_its_lease() {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    let (pause, spec) = Pause::at(agent.dir(), "issue.after_commit");
    let settings = "[x509]\nttl = \"15m\"\n[limits]\njwt_leases_per_workload = 1\n";
    let plan = agent.plan().clone().settings(settings).failpoints(&spec);
    *agent.plan() = plan;
    agent.write_config();
    agent.launch();
    let mut holder = client(&agent);
    holder.order(&json!({"do": "jwt_begin"}));
    pause.hit();
    assert_eq!(holder.jwt("aud").expect_err("one place for two").code, 14);
    holder.order(&json!({"do": "jwt_cancel"}));
    holder.expect("jwt_cancelled");
    // Frames of a connection are read in order: when these are answered, the reset has been seen.
    for _ in 0..20 {
        assert_eq!(holder.validate("aud", "x.y.z").unwrap_err().code, 3);
    }
    pause.release();
    let leases = until("what nobody took is revoked", || {
        let leases = all_leases(&agent);
        leases.iter().any(|lease| lease.state == "revoked").then_some(leases)
    });
    assert_eq!((leases.len(), leases[0].reason.as_str()), (1, "issue_aborted"), "{leases:?}");
    let token = holder.jwt("aud").unwrap().remove(0);
    assert_eq!(holder.validate("aud", &token.text).unwrap(), token.spiffe_id);
    assert_eq!(holder.jwt("aud").expect_err("its one place is taken").code, 14);
}

/// A certificate is a lease as good as a token, and one that was revoked counts while CRLs must name it.
#[test]
fn limit_for_each_user_counts_certificates_and_tokens() {
    let settings = "[x509]\nttl = \"15m\"\n[limits]\nlive_leases_per_uid = 3\n";
    let agent = Plan::for_uids(&[own_uid()]).settings(settings).start();
    let mut holders: Vec<Holder> = (0..4).map(|_| client(&agent)).collect();
    holders[0].x509();
    holders[1].x509();
    holders[2].jwt("aud").unwrap();
    assert_eq!(live(&agent), 3);
    assert_eq!(holders[3].jwt("aud").expect_err("a fourth lease").code, 14);
    assert_eq!(holders[3].x509_refused().code, 14);
    holders[0].kill();
    until("its lease is revoked", || (live(&agent) == 2).then_some(()));
    assert_eq!(holders[3].jwt("aud").expect_err("the dead one's still counts").code, 14);
}

/// The dates of the next CRLs are used up: the agent starts all the same, and waits for its first one.
#[test]
fn start_that_has_to_wait_for_its_first_crl_gets_it() {
    let mut agent = agent();
    let before = client(&agent).bundles().crls.remove(0);
    agent.stop();
    let now = unix_seconds(SystemClock.wall());
    {
        let place = LedgerPlace::Disk(agent.data_dir());
        let (ledger, _) = Ledger::open(&place, IntegrityCheck::InProcess).unwrap();
        let (issuer, mark) = ledger.crl_marks().pop_first().unwrap();
        // With the five a restart skips this ends some two seconds from now.
        let mark = CrlMark { this_update: now - 3, number: mark.number + 1 };
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(ledger.record_crl(&issuer, mark))
            .unwrap();
    }
    agent.launch();
    let mut holder = client(&agent);
    let update = holder.x509();
    let crl = update.crls.first().expect("a CRL with the first certificate");
    assert!(crl.number > before.number + 1 && crl.this_update > i64::try_from(now - 3).unwrap(), "{crl:?}");
    let serial = update.svids[0].serial().to_owned();
    holder.kill();
    let mut watcher = client(&agent);
    watcher.order(&json!({"do": "bundles"}));
    watcher.crl_until("revocation works from there", |crl| crl.serials.contains(&serial));
}

/// A flood of refusals writes a line a second with its count, and a refusal by the limit is on record, too.
#[test]
fn refusals_are_on_record_with_their_count_also_beyond_the_limit() {
    let settings = "[x509]\nttl = \"15m\"\n[attest]\nper_second = 1\nburst = 4\n";
    let agent = Plan::with_entries(&[]).settings(settings).start();
    let mut stranger = client(&agent);
    let codes: Vec<i64> = (0..40).map(|_| stranger.jwt("aud").unwrap_err().code).collect();
    assert!(codes.contains(&7) && codes.contains(&14), "{codes:?}");
    agent.audited(&["attest_denied", "\"limit\"", "too many attestations a second"]);
    let denied = |agent: &Agent| {
        let lines = agent.audit().into_iter().map(|line| line.to_string());
        lines.filter(|line| line.contains("attest_denied")).collect::<Vec<_>>()
    };
    let lines = denied(&agent);
    assert!(lines.len() < 20, "40 refusals wrote {} lines", lines.len());
    // What was counted in silence is said with the next one, when the second is over.
    until("a line with a count", || {
        stranger.jwt("aud").unwrap_err();
        std::thread::sleep(Duration::from_millis(50));
        denied(&agent).iter().any(|line| line.contains(" times)")).then_some(())
    });
}

/// A process whose leases have run out, and that listens for nothing, is forgotten until it calls again.
#[test]
fn process_without_lease_or_stream_is_forgotten_and_served_again() {
    let settings = "[x509]\nttl = \"15m\"\n[jwt]\nttl = \"10s\"\n";
    let agent = Plan::for_uids(&[own_uid()]).settings(settings).start();
    let mut holder = client(&agent);
    holder.jwt("aud").unwrap();
    assert_eq!(agent.admin().status().workloads, 1);
    let pidfds = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
        open.filter(|fd| {
            let link = std::fs::read_link(fd.as_ref().unwrap().path()).unwrap_or_default();
            link.to_str().is_some_and(|link| link.contains("pidfd"))
        })
        .count()
    };
    let before = pidfds();
    until("it is forgotten", || (agent.admin().status().workloads == 0).then_some(()));
    until("its pidfd is closed", || (pidfds() <= before).then_some(()));
    let token = holder.jwt("aud").unwrap().remove(0);
    // And its end is seen as before.
    holder.kill();
    let mut other = client(&agent);
    until("the token is refused", || other.validate("aud", &token.text).err());
    until("revoked, not run out", || {
        agent
            .audit()
            .iter()
            .find(|l| l["event"] == "credential.revoke" && l.to_string().contains(&token.jti()))
            .map(drop)
    });
}

#[test]
fn caller_refused_for_want_of_an_entry_leaves_nothing_behind() {
    let agent = empty_agent();
    let mut holder = client(&agent);
    assert_eq!(holder.x509_refused().code, 7);
    assert_eq!(agent.admin().status().workloads, 0);
    agent.write_entries(&[own_entry("/late")]);
    until("the new entry", || holder.jwt("aud").ok());
    assert_eq!(agent.admin().status().workloads, 1);
}
