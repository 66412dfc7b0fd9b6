//! Threats A: is the process at the other end the one we think it is?

use std::os::unix::fs::PermissionsExt as _;

use mayfly_harness::cgroup::Group;
use mayfly_harness::holder::Who;
use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Entry, Holder, Plan, files, full, require_root, until};

use crate::support::{
    Pause, WIDE, Watcher, entries_and_watcher, entries_for, installed, lines_of, socket, svids, utf8,
};

const STRANGER: u32 = 20_001;
const WORKLOAD: u32 = 20_002;

fn agent_for(uids: &[u32]) -> Agent {
    Plan::with_entries(&entries_for(uids)).settings(WIDE).start()
}

/// The stranger has no identity, the program that inherits its pid has one. Nobody may be answered.
#[test]
fn a01_reused_pid_earns_the_dead_client_nothing() {
    let agent = agent_for(&[WORKLOAD]);
    let impostor = installed(&agent, "program");
    let (batches, rounds) = if full() { (10, 100) } else { (1, 50) };
    for _ in 0..batches {
        // While the agent stands still, clients connect, ask, die, and lose their pid to a workload.
        agent.freeze();
        let args = [socket(&agent), rounds.to_string(), STRANGER.to_string(), WORKLOAD.to_string()];
        let args: Vec<&str> = args.iter().map(String::as_str).chain([utf8(&impostor)]).collect();
        let mut tool = Tool::run(&agent, 0, "reuse", &args);
        let ready: u32 = tool.expect("ready").parse().unwrap();
        assert!(ready * 2 > rounds, "only {ready} of {rounds} pids could be taken over");
        agent.thaw();
        tool.tell("go");
        assert_eq!(tool.expect("done"), format!("{ready} 0"));
    }
    let issued = agent.audit().iter().filter(|line| line["event"] == "credential.issue").count();
    assert_eq!(issued, 0);
    // The workload itself is served.
    Holder::start(&agent, WORKLOAD).x509();
}

/// The client dies between `SO_PEERPIDFD` and `/proc`, or after the last read of it; its pid goes to
/// another workload.
#[test]
fn a02_death_during_attestation_closes_unanswered() {
    for point in ["pin.after_pidfd", "attest.after_read"] {
        let mut agent = Plan::with_entries(&entries_for(&[STRANGER, WORKLOAD])).settings(WIDE).prepare();
        let (pause, spec) = Pause::at(agent.dir(), point);
        let plan = agent.plan().clone().failpoints(&spec);
        *agent.plan() = plan;
        agent.launch();
        let program = installed(&agent, "program");
        let mut client = Holder::start(&agent, STRANGER);
        client.open_x509();
        pause.hit();
        let pid = client.pid();
        client.kill();
        let args = ["take", &pid.to_string(), &WORKLOAD.to_string(), utf8(&program)];
        let mut heir = Tool::run(&agent, 0, "reuse", &args);
        heir.expect("taken");
        pause.release();
        // The agent lives and serves others; the pid got nothing.
        Holder::start(&agent, WORKLOAD).x509();
        assert!(agent.admin().live_leases_of(pid).is_empty(), "{point}");
        let issued = agent.audit().into_iter().filter(|line| line["event"] == "credential.issue");
        assert!(issued.into_iter().all(|line| line["agent"]["pid"] != pid), "{point}");
    }
}

/// Whatever errno pinning fails with, the connection closes and the next one is served.
#[test]
fn a03_failed_pinning_closes_the_connection() {
    const EINVAL: i32 = 22;
    const ESRCH: i32 = 3;
    const EMFILE: i32 = 24;
    let mut agent = Plan::with_entries(&entries_for(&[WORKLOAD])).settings(WIDE).prepare();
    let policy = agent.dir().join("policy");
    std::fs::write(&policy, "0").unwrap();
    let control = installed(&agent, "peerpidfd");
    let plan = agent.plan().clone().wrapped(&[utf8(&control), utf8(&policy), "--"]);
    *agent.plan() = plan;
    agent.launch();
    for errno in [EINVAL, ESRCH, EMFILE] {
        files::replace(&policy, errno.to_string().as_bytes(), 0o644);
        let mut client = Tool::run(&agent, WORKLOAD, "peer", &["call", &socket(&agent)]);
        if errno == EMFILE {
            // The agent is out of descriptors, not the client at fault: it may wait, never be served.
            assert!(client.expect_within("svid", std::time::Duration::from_secs(1)).is_none());
        } else {
            client.expect("eof");
        }
        files::replace(&policy, b"0", 0o644);
        Holder::start(&agent, WORKLOAD).x509();
    }
}

#[test]
fn a03_kernel_without_peer_pidfd_is_refused_in_one_sentence() {
    const ENOPROTOOPT: i32 = 92;
    require_root();
    let mut agent = Plan::default().prepare();
    let policy = agent.dir().join("policy");
    std::fs::write(&policy, ENOPROTOOPT.to_string()).unwrap();
    let control = installed(&agent, "peerpidfd");
    let plan = agent.plan().clone().wrapped(&[utf8(&control), utf8(&policy), "--"]);
    *agent.plan() = plan;
    let ended = agent.refused();
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    assert!(ended.log.contains("6.5"), "says which kernel it needs: {}", ended.log);
}

/// A child that inherited the connection reads nothing once its parent is gone.
#[test]
fn a04_child_reads_nothing_after_its_parent_died() {
    // Two agents for a thousand: one may publish 600 CRLs in a row, then one a second.
    let (agents, rounds) = if full() { (2, 500) } else { (1, 50) };
    for _ in 0..agents {
        children_of_the_dead(rounds);
    }
}

fn children_of_the_dead(rounds: usize) {
    let agent = agent_for(&[WORKLOAD]);
    let mut watcher = Watcher::start(&agent);
    for _ in 0..rounds {
        let mut parent = Tool::run(&agent, WORKLOAD, "peer", &["fork", &socket(&agent)]);
        let serial = parent.expect("svid");
        parent.expect("ready");
        parent.tell("go");
        parent.expect("parent-gone");
        let mut rest = parent.finish();
        rest.retain(|line| !line.starts_with("child-early-"));
        assert!(svids(&rest).is_empty() && rest.contains(&"child-eof".to_owned()), "{rest:?}");
        // Not even the end of the stream is told.
        assert!(!rest.iter().any(|line| line.starts_with("child-status")), "{rest:?}");
        // Before the next parent comes: the push of this CRL could be in its socket, sent while it lived, and be
        // read by its child afterwards.
        watcher.sees("the parent's serial", &[&serial]);
    }
}

/// Root connects, a process of another uid gets the socket by `SCM_RIGHTS` and writes a request.
#[test]
fn a05_request_of_a_stranger_on_a_passed_socket_closes_it() {
    let agent = agent_for(&[0]);
    let uid = STRANGER.to_string();
    let lines = lines_of(&agent, 0, "peer", &["writer", &socket(&agent), "uid", &uid]);
    assert_eq!(svids(&lines).len(), 1, "the stranger's request was answered: {lines:?}");
    assert!(lines.contains(&"eof".to_owned()), "{lines:?}");
    agent.audited(&["writer_mismatch"]);
}

#[test]
fn a05_request_of_a_child_closes_the_connection() {
    let agent = agent_for(&[WORKLOAD]);
    let lines = lines_of(&agent, WORKLOAD, "peer", &["writer", &socket(&agent), "child"]);
    assert_eq!(svids(&lines).len(), 1, "the child's request was answered: {lines:?}");
    assert!(lines.contains(&"eof".to_owned()), "{lines:?}");
    agent.audited(&["writer_mismatch"]);
}

#[test]
fn a05_another_thread_may_write() {
    let agent = agent_for(&[WORKLOAD]);
    let lines = lines_of(&agent, WORKLOAD, "peer", &["writer", &socket(&agent), "thread"]);
    assert_eq!(svids(&lines).len(), 2, "{lines:?}");
}

/// `/proc/PID/exe` is empty once the first thread is gone; the process is not.
#[test]
fn a06_process_without_its_first_thread_stays_served() {
    let agent = Plan::with_entries(&entries_and_watcher(&[])).settings(WIDE).prepare();
    let program = installed(&agent, "peer");
    let mut entries = entries_for(&[]);
    entries.push(Entry::new(
        "/threaded",
        &[&format!("unix:uid:{WORKLOAD}"), &format!("unix:sha256:{}", files::sha256(&program))],
    ));
    agent.write_entries(&entries);
    let mut agent = agent;
    agent.launch();
    let mut watcher = Watcher::start(&agent);
    let mut tool = Tool::run(&agent, WORKLOAD, "peer", &["thread", &socket(&agent)]);
    let serial = tool.expect("svid");
    tool.tell("go");
    tool.expect("leader-gone");
    tool.expect("svid");
    tool.expect("asked-again");
    assert_eq!(agent.admin().live_leases_of(tool.pid()).len(), 1);
    assert!(!watcher.crl.serials.contains(&serial));
    tool.kill();
    watcher.sees("the serial, once the last thread is gone", &[&serial]);
}

#[test]
fn a07_vfork_child_is_itself() {
    let agent = agent_for(&[WORKLOAD]);
    let mut tool = Tool::run(&agent, WORKLOAD, "peer", &["vfork", &socket(&agent)]);
    let serial = tool.expect("svid");
    let pids = tool.expect("pids");
    let (child, parent) = pids.split_once(' ').unwrap();
    assert_ne!(child, parent);
    let line = agent.audited(&["credential.issue", &serial]);
    assert_eq!(line["agent"]["pid"].to_string(), child);
}

#[test]
fn a08_changed_uid_closes_and_revokes() {
    let agent = agent_for(&[STRANGER, WORKLOAD]);
    let mut watcher = Watcher::start(&agent);
    let (a, b) = (WORKLOAD.to_string(), STRANGER.to_string());
    let mut tool = Tool::run(&agent, 0, "peer", &["setuid", &socket(&agent), &a, &b]);
    let serial = tool.expect("svid");
    tool.expect("changed");
    let rest = tool.finish();
    assert!(svids(&rest).is_empty(), "served after the change: {rest:?}");
    assert!(rest.contains(&"eof".to_owned()), "{rest:?}");
    watcher.sees("the serial issued to the old uid", &[&serial]);
    agent.audited(&["agent.cut", "credentials_changed"]);
    agent.audited(&["credential.revoke", &serial, "credentials_changed"]);
}

/// It asks nothing more: its open stream is what notices, when there is something to push.
#[test]
fn a08_changed_uid_ends_an_open_stream_at_the_next_push() {
    let agent = agent_for(&[0, WORKLOAD]);
    let mut watcher = Watcher::start(&agent);
    let [mut changing, mut other] = [0, WORKLOAD].map(|uid| Who::uid(uid).start(&agent));
    let serial = changing.x509().svids[0].serial().to_owned();
    let pushed = other.x509().svids[0].serial().to_owned();
    changing.setresuid([STRANGER; 3]);
    other.kill();
    watcher.sees("the other's serial, which makes the agent push", &[&pushed]);
    watcher.sees("the serial issued to the old uid", &[&serial]);
    assert_ne!(changing.x509_end().code, 0);
    agent.audited(&["credential.revoke", &serial, "credentials_changed"]);
}

/// Effective uid 0, real uid a user's: neither root's entry nor the user's.
#[test]
fn a09_setuid_program_gets_no_uid_selector() {
    let agent = agent_for(&[0, WORKLOAD]);
    let program = installed(&agent, "peer");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let lines = Tool::run_program(&program, WORKLOAD, &["setuid-program", &socket(&agent)]).finish();
    assert_eq!(lines[0], format!("uids {WORKLOAD} 0 0"));
    assert!(lines.contains(&"status 7".to_owned()) && svids(&lines).is_empty(), "{lines:?}");
    agent.audited(&["attest_denied", "posture: mixed_uid"]);
}

#[test]
fn a10_root_of_a_user_namespace_is_its_host_uid_without_advisory_selectors() {
    let agent = Plan::with_entries(&entries_for(&[0])).settings(WIDE).start();
    let program = installed(&agent, "peer");
    let uid = format!("unix:uid:{WORKLOAD}");
    let hash = format!("unix:sha256:{}", files::sha256(&program));
    let mut entries = entries_for(&[0]);
    entries.push(Entry::new("/plain", &[&uid]));
    entries.push(Entry::new("/hashed", &[&uid, &hash]));
    agent.write_entries(&entries);
    until("the new entries", || (agent.admin().entries().entries.len() == 4).then_some(()));
    let mut inside = Tool::run(&agent, WORKLOAD, "peer", &["userns", &socket(&agent)]);
    assert_eq!(inside.expect("uid-inside"), "0");
    inside.expect("svid");
    assert_eq!(identities(&agent, inside.pid()), ["/plain"]);
    let mut outside = Tool::run(&agent, WORKLOAD, "peer", &["call", &socket(&agent)]);
    outside.expect("svid");
    assert_eq!(identities(&agent, outside.pid()), ["/hashed", "/plain"]);
}

fn identities(agent: &Agent, pid: u32) -> Vec<String> {
    let mut paths: Vec<String> = agent
        .admin()
        .live_leases_of(pid)
        .iter()
        .map(|lease| lease.spiffe_id.trim_start_matches("spiffe://example.org").to_owned())
        .collect();
    paths.sort();
    paths
}

#[test]
fn a11_agent_in_a_user_namespace_refuses_to_start() {
    require_root();
    let wrapper = ["unshare", "--user", "--map-root-user", "--"];
    let ended = Plan::with_entries(&entries_for(&[])).wrapped(&wrapper).prepare().refused();
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    assert!(ended.log.contains("user namespace"), "{}", ended.log);
}

/// In a pid namespace of its own every client outside has pid 0, and `/proc` is not ours.
#[test]
fn a12_agent_in_a_pid_namespace_refuses_to_start() {
    require_root();
    for wrapper in [
        ["unshare", "--pid", "--fork", "--kill-child", "--"].as_slice(),
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"].as_slice(),
    ] {
        let plan = Plan::with_entries(&entries_for(&[])).wrapped(wrapper);
        let ended = plan.prepare().refused();
        assert_eq!(ended.code, Some(3), "{wrapper:?}: {}", ended.log);
    }
}

/// Root may put any pid and uid on its messages; that earns it nothing.
#[test]
fn a13_forged_credentials_close_the_connection() {
    let agent = agent_for(&[0, WORKLOAD]);
    let args = ["forge", &socket(&agent), "1", &WORKLOAD.to_string()];
    let lines = lines_of(&agent, 0, "peer", &args);
    assert_eq!(lines[0], "forged ok");
    assert!(svids(&lines).is_empty() && lines.contains(&"eof".to_owned()), "{lines:?}");
    agent.audited(&["writer_mismatch"]);
    let args = ["forge", &socket(&agent), "1", "0"];
    let lines = lines_of(&agent, WORKLOAD, "peer", &args);
    assert_eq!(lines[0], "forged Operation not permitted", "the kernel holds this one");
}

#[test]
fn a17_moved_process_loses_what_its_cgroup_earned() {
    require_root();
    let (good, other) = (Group::new("a17"), Group::new("a17-other"));
    let selectors = [format!("unix:uid:{WORKLOAD}"), format!("cgroup:path:{}", good.path())];
    let selectors: Vec<&str> = selectors.iter().map(String::as_str).collect();
    let entries = entries_and_watcher(&[Entry::new("/in-cgroup", &selectors)]);
    let agent = Plan::with_entries(&entries).settings(WIDE).start();
    let mut watcher = Watcher::start(&agent);
    let mut holder = Who::uid(WORKLOAD).start(&agent);
    good.take(holder.pid());
    let serial = holder.x509().svids[0].serial().to_owned();
    other.take(holder.pid());
    let refusal = holder.jwt("aud").expect_err("issued for the cgroup it has left");
    assert_eq!(refusal.code, 7, "{refusal:?}");
    assert_eq!(holder.x509_end().code, 7);
    watcher.sees("the serial issued in the old cgroup", &[&serial]);
    // Back again, it is itself again.
    good.take(holder.pid());
    until("an identity again", || holder.jwt("aud").ok());
}

/// Nothing tells the agent that the process has come to be what an entry wants; no entry changes either.
#[test]
fn a_waiting_sds_client_is_looked_at_again() {
    require_root();
    let good = Group::new("sds");
    let selectors = [format!("unix:uid:{WORKLOAD}"), format!("cgroup:path:{}", good.path())];
    let selectors: Vec<&str> = selectors.iter().map(String::as_str).collect();
    let agent = Plan::with_entries(&[Entry::new("/in-cgroup", &selectors)]).settings(WIDE).start();
    let mut holder = Who::uid(WORKLOAD).start(&agent);
    holder.order(&serde_json::json!({"do": "follow", "kinds": ["world"]}));
    until("it waits", || (agent.admin().status().sds.unwrap().waiting == 1).then_some(()));
    good.take(holder.pid());
    let event = holder.expect_any(&["whole", "mixed", "lost"]);
    assert_eq!(event["event"], "whole", "{event}");
}
