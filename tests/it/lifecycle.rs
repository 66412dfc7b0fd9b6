//! The agent's own life: start, drain, restart, what it tells operators.

use std::process::Command;

use mayfly_harness::{Pause, Plan, until};
use mayfly_proto::admin::ListLeasesRequest;
use mayfly_proto::admin::revoke_leases_request::Target;

use crate::support::{agent, client, own_uid};

#[test]
fn sigterm_drains_and_ends_streams_as_unavailable() {
    let mut agent = agent();
    let mut client = client(&agent);
    client.x509();
    let status = agent.stop();
    assert!(matches!(status.code(), Some(0 | 9)), "{status:?}");
    assert_eq!(client.x509_end().code, 14);
    assert!(!agent.log().contains("ERROR"), "what was asked for is no error:\n{}", agent.log());
}

#[test]
fn keys_survive_a_restart() {
    let mut agent = agent();
    let before = client(&agent).x509().svids.remove(0);
    agent.stop();
    agent.launch();
    let after = client(&agent).x509().svids.remove(0);
    assert_eq!(before.bundle, after.bundle);
    assert_eq!(before.leaf.authority, after.leaf.authority);
    assert_ne!(before.serial(), after.serial());
}

#[test]
fn broken_configuration_names_every_mistake() {
    let settings = "[x509]\nttl = \"five\"\nkey_type = \"dsa\"\n[nonsense]\nx = 1\n";
    let ended = Plan::for_uids(&[own_uid()]).settings(settings).prepare().refused();
    assert_eq!(ended.code, Some(10), "{}", ended.log);
    for word in ["ttl", "key_type", "nonsense", "agent.toml:"] {
        assert!(ended.log.contains(word), "no {word}: {}", ended.log);
    }
}

#[test]
fn leases_say_who_holds_what() {
    let agent = agent();
    let mut client = client(&agent);
    let serial = client.x509().svids[0].serial().to_owned();
    let token = client.jwt("aud").unwrap().remove(0);
    let leases = agent.admin().leases(ListLeasesRequest::default());
    let x509 = leases.iter().find(|l| l.id == serial).expect("the certificate's lease");
    assert_eq!((x509.kind.as_str(), x509.pid, x509.uid), ("x509", client.pid(), own_uid()));
    let jwt = leases.iter().find(|l| l.id == token.jti()).expect("the token's lease");
    assert_eq!((jwt.kind.as_str(), jwt.audience.as_slice()), ("jwt", ["aud".to_owned()].as_slice()));
}

#[test]
fn operator_revokes_one_lease() {
    let agent = agent();
    let mut client = client(&agent);
    let serial = client.x509().svids[0].serial().to_owned();
    let answer = agent.admin().revoke(Target::LeaseId(serial.clone())).unwrap();
    assert_eq!(answer.lease_ids, [serial.as_str()]);
    let mut watcher = crate::support::client(&agent);
    watcher.order(&serde_json::json!({"do": "bundles"}));
    watcher.crl_until("the serial", |crl| crl.serials.contains(&serial));
}

#[test]
fn status_is_ready_and_explains_itself() {
    let agent = agent();
    let mut client = client(&agent);
    client.x509();
    let status = agent.admin().status();
    assert!(status.ready && status.concerns.is_empty(), "{:?}", status.concerns);
    assert_eq!((status.pid, status.trust_domain.as_str()), (agent.pid(), "example.org"));
    assert_eq!((status.workloads, status.live_leases), (1, 1));
    assert!(status.crl.is_some() && !status.platform.is_empty());
    let explained = agent.admin().explain(client.pid()).unwrap();
    let uid = format!("unix:uid:{}", own_uid());
    assert!(explained.selectors.iter().any(|s| s.text == uid && s.strength == "kernel"));
    assert_eq!(explained.matches.len(), 1);
    assert!(explained.posture.is_empty(), "{:?}", explained.posture);
    // A program without a name: its path is left out, and people are told why.
    let copy = agent.dir().join("copy");
    std::fs::copy("/bin/sleep", &copy).unwrap();
    let mut nameless = Command::new(&copy).arg("60").spawn().unwrap();
    std::fs::remove_file(&copy).unwrap();
    let pid = nameless.id();
    let explained = agent.admin().explain(pid).unwrap();
    let (_, text, _) = agent.mayfly(&["explain", "--pid", &pid.to_string()]);
    nameless.kill().unwrap();
    nameless.wait().unwrap();
    assert_eq!(explained.posture, ["anonymous_exe"]);
    let unix = explained.attestors.iter().find(|a| a.kind == "unix").unwrap();
    assert!(unix.notes.iter().any(|note| note.starts_with("path: the program has no name")), "{unix:?}");
    assert!(
        text.contains("unix left out path: the program has no name")
            && text.contains("posture: anonymous_exe"),
        "{text}"
    );
}

#[test]
fn audit_log_verifies_and_a_changed_line_is_found() {
    let mut agent = agent();
    client(&agent).x509();
    agent.stop();
    let path = agent.audit_path();
    let place = path.to_str().unwrap().to_owned();
    let (code, out, err) = agent.mayfly(&["audit", "verify", &place]);
    assert_eq!(code, Some(0), "{out}{err}");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("credential.issue", "credential.renew", 1)).unwrap();
    let (code, _, _) = agent.mayfly(&["audit", "verify", &place]);
    assert_eq!(code, Some(1));
}

/// Not one file can be opened while the agent looks for the processes of the run before: it waits, and says so.
#[test]
fn restart_without_descriptors_takes_nothing_from_the_living() {
    let mut agent = agent();
    let mut holder = client(&agent);
    let serial = holder.x509().svids[0].serial().to_owned();
    let mut victim = client(&agent);
    let dead = victim.x509().svids[0].serial().to_owned();
    agent.kill();
    victim.kill();
    let (pause, spec) = Pause::at(agent.dir(), "restore.before");
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    agent.spawn();
    pause.hit();
    let pid = agent.pid().to_string();
    let limit = |soft: &str| {
        let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]).status();
        assert!(limited.unwrap().success());
    };
    limit("1");
    pause.release();
    until("it says why it does not serve", || agent.log().contains("raise LimitNOFILE").then_some(()));
    limit("1024");
    until("it serves", || agent.log().contains("serving").then_some(()));
    let live = agent.admin().live_leases_of(holder.pid());
    assert_eq!(live.iter().map(|lease| lease.id.as_str()).collect::<Vec<_>>(), [serial.as_str()]);
    let crl = client(&agent).bundles().crls.remove(0);
    assert!(crl.serials.contains(&dead) && !crl.serials.contains(&serial), "{crl:?}");
}

#[test]
fn what_a_crash_left_half_written_is_swept_at_the_next_start() {
    let mut agent = agent();
    agent.kill();
    let left =
        ["authority/.x509.pem.4242.0.tmp", "crl/.aa.crl.4242.1.tmp"].map(|name| agent.data_dir().join(name));
    for path in &left {
        std::fs::write(path, "half a key").unwrap();
    }
    agent.launch();
    assert!(left.iter().all(|path| !path.exists()));
    client(&agent).x509();
}
