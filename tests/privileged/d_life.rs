//! Threats D: an identity lives exactly as long as its process.

use std::path::Path;
use std::time::Duration;

use mayfly_harness::holder::Who;
use mayfly_harness::pki::openssl_verify;
use mayfly_harness::tools::Tool;
use mayfly_harness::{Holder, Plan, figure, full, until};
use mayfly_proto::admin::revoke_leases_request::Target;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Pause, WIDE, Watcher, entries_for, socket, utf8};

const USER: u32 = 20_201;
const OTHER: u32 = 20_202;

fn plan() -> Plan {
    Plan::with_entries(&entries_for(&[USER, OTHER])).settings(WIDE)
}

/// A memory limit that goes away with the value; both hierarchies know it under another name.
struct MemoryLimit(std::path::PathBuf);

impl MemoryLimit {
    fn new(mebibytes: u64) -> Self {
        let name = format!("mayfly-oom-{}", std::process::id());
        let bytes = (mebibytes << 20).to_string();
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (path, file) = if v1.exists() {
            (v1.join(name), "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup").join(name), "memory.max")
        };
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(file), bytes).unwrap();
        Self(path)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        until("the memory cgroup is empty", || std::fs::remove_dir(&self.0).ok());
    }
}

/// Rust's runtime takes a SIGSEGV that is no stack overflow, puts the default action back and returns, expecting the
/// fault to come again. A signal sent by `kill` does not come again by itself.
fn segfault(holder: &Holder) {
    until("the segfault", || {
        holder.signal(Signal::SIGSEGV);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", holder.pid())).ok()?;
        stat.contains(") Z ").then_some(())
    });
}

#[test]
fn d01_every_way_to_die_revokes() {
    let agent = plan().start();
    let mut watcher = Watcher::start(&agent);
    let limit = MemoryLimit::new(96);
    let ways = ["exit", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM", "oom"];
    let mut serials = Vec::new();
    for round in 0..if full() { 50 } else { 3 } {
        for way in ways {
            if way == "oom" && round > 2 {
                continue;
            }
            let mut holder = Holder::start(&agent, USER);
            if way == "oom" {
                std::fs::write(limit.0.join("cgroup.procs"), holder.pid().to_string()).unwrap();
            }
            let serial = holder.x509().svids[0].serial().to_owned();
            assert!(!watcher.crl.serials.contains(&serial), "{way}: listed while alive");
            match way {
                "exit" => drop(holder.leave()),
                "SIGKILL" => holder.signal(Signal::SIGKILL),
                "SIGSEGV" => segfault(&holder),
                "SIGABRT" => holder.signal(Signal::SIGABRT),
                "SIGTERM" => holder.signal(Signal::SIGTERM),
                _ => holder.order(&json!({"do": "allocate", "mebibytes": 400})),
            }
            watcher.sees(way, &[&serial]);
            serials.push(serial);
        }
    }
    assert_eq!(watcher.crl.serials.len(), serials.len(), "exactly the dead are listed");
    let line = agent.audited(&["credential.revoke", &serials[0]]);
    assert!(line["revocation"]["latency_ms"].is_number(), "{line}");
}

#[test]
fn d02_zombie_is_dead() {
    let agent = plan().start();
    let mut watcher = Watcher::start(&agent);
    let mut holder = Holder::start(&agent, USER);
    let serial = holder.x509().svids[0].serial().to_owned();
    holder.kill_unreaped();
    watcher.sees("the zombie's serial", &[&serial]);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", holder.pid())).unwrap();
    assert!(stat.contains(") Z "), "still a zombie: {stat}");
}

/// A tracer keeps a killed process from finishing its exit; what goes through us revokes first.
#[test]
fn d03_operator_revokes_a_process_that_cannot_finish_dying() {
    let agent = plan().start();
    let mut watcher = Watcher::start(&agent);
    let mut holder = Holder::start(&agent, USER);
    let serial = holder.x509().svids[0].serial().to_owned();
    let pid = holder.pid();
    let mut tracer = Tool::run(&agent, USER, "tracer", &["exitstop", &pid.to_string()]);
    tracer.expect("tracing");
    holder.signal(Signal::SIGKILL);
    tracer.expect("held");
    assert_eq!(agent.admin().live_leases_of(pid).len(), 1, "not yet exited, so still held");
    let answer = agent.admin().revoke(Target::Pid(pid)).unwrap();
    assert_eq!(answer.lease_ids, std::slice::from_ref(&serial));
    watcher.sees("the serial, before the exit", &[&serial]);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    agent.audited(&["credential.revoke", &serial, "operator"]);
}

/// Revoked by an operator, a process gets nothing until it is another process.
#[test]
fn d03_revoked_process_is_not_served_again() {
    let agent = plan().start();
    let mut holder = Holder::start(&agent, USER);
    holder.x509();
    agent.admin().revoke(Target::Pid(holder.pid())).unwrap();
    assert_eq!(holder.x509_end().code, 7);
    holder.connect();
    assert_eq!(holder.jwt("aud").expect_err("served after revocation").code, 7);
    assert_eq!(holder.x509_refused().code, 7);
    Holder::start(&agent, USER).x509();
}

#[test]
fn d04_stopped_process_keeps_its_identity() {
    let agent = plan().start();
    let mut watcher = Watcher::start(&agent);
    let mut holder = Holder::start(&agent, USER);
    let serial = holder.x509().svids[0].serial().to_owned();
    holder.signal(Signal::SIGSTOP);
    // Another death in between shows that revocation runs and leaves the stopped one alone.
    let mut victim = Holder::start(&agent, OTHER);
    let other = victim.x509().svids[0].serial().to_owned();
    victim.kill();
    let crl = watcher.sees("the other's serial", &[&other]);
    assert!(!crl.serials.contains(&serial));
    holder.signal(Signal::SIGCONT);
    holder.jwt("aud").unwrap();
    assert!(!holder.x509_has_ended());
}

#[test]
fn d05_thousands_of_exits_at_once_are_all_revoked() {
    let agent = plan().start();
    let mut watcher = Watcher::start(&agent);
    let mut bystander = Holder::start(&agent, OTHER);
    let living = bystander.x509().svids[0].serial().to_owned();
    let count = if full() { 6_000 } else { 500 };
    let mut storm = Tool::run(&agent, USER, "press", &["storm", &socket(&agent), &count.to_string()]);
    storm.expect_within("ready", Duration::from_secs(240)).expect("every process has an SVID");
    let before = watcher.crl.number;
    storm.tell("go");
    let crl = watcher.sees_count("all the dead", count);
    assert_eq!(crl.serials.len(), count);
    assert!(!crl.serials.contains(&living) && crl.number > before);
    bystander.jwt("aud").unwrap();
    assert!(!bystander.x509_has_ended(), "a stream ended that had nothing to do with it");
    let (mut slowest, mut crls) = (0.0, std::collections::BTreeSet::new());
    until("every revocation in the audit log", || {
        let log = std::fs::read_to_string(agent.audit_path()).unwrap();
        let lines = log.lines().filter(|line| line.contains("\"credential.revoke\""));
        let lines: Vec<serde_json::Value> =
            lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() == count).then(|| {
            for line in lines {
                slowest = line["revocation"]["latency_ms"].as_f64().unwrap().max(slowest);
                crls.insert(line["revocation"]["crl_number"].as_u64().unwrap());
            }
        })
    });
    figure(&format!("{count} exits at once: {} CRLs, the last one out after {slowest:.0} ms", crls.len()));
    assert!(crls.len() <= count / 10, "{} CRLs: they do not coalesce", crls.len());
}

/// When the watch over exits breaks, nobody may hold anything.
#[test]
fn d06_lost_watch_means_no_identity() {
    let mut agent = plan().failpoints("reaper.wait=fail").prepare();
    if agent.try_launch().is_err() {
        return; // refusing to run without a watch is as good
    }
    let mut holder = Holder::start(&agent, USER);
    let refusal = holder.x509_refused();
    assert!([7, 14].contains(&refusal.code), "{refusal:?}");
    assert!(!agent.admin().status().ready);
}

#[test]
fn d07_exit_between_commit_and_reply_revokes_what_was_never_delivered() {
    let mut agent = plan().prepare();
    let (pause, spec) = Pause::at(agent.dir(), "issue.after_commit");
    let with = agent.plan().clone().failpoints(&spec);
    *agent.plan() = with;
    agent.launch();
    let mut holder = Holder::start(&agent, USER);
    holder.open_x509();
    pause.hit();
    holder.kill();
    pause.release();
    let mut watcher = Watcher::start(&agent);
    watcher.sees_count("the undelivered serial", 1);
    assert!(agent.admin().live_leases_of(holder.pid()).is_empty());
}

#[test]
fn d08_deaths_while_the_agent_is_down_are_revoked_before_it_serves() {
    let mut agent = plan().start();
    let mut holders: Vec<Holder> = (0..10).map(|_| Holder::start(&agent, USER)).collect();
    let serials: Vec<String> = holders.iter_mut().map(|h| h.x509().svids[0].serial().to_owned()).collect();
    agent.kill();
    for holder in holders.iter_mut().take(5) {
        holder.kill();
    }
    agent.launch();
    let watcher = Watcher::start(&agent);
    for (n, serial) in serials.iter().enumerate() {
        assert_eq!(
            watcher.crl.serials.contains(serial),
            n < 5,
            "holder {n} in the first CRL after the restart"
        );
    }
    // Living ones are known again: their death is seen.
    let mut watcher = watcher;
    holders[7].kill();
    watcher.sees("a death after the restart", &[&serials[7]]);
}

#[test]
fn d09_after_a_reboot_every_old_lease_is_revoked() {
    let mut agent = plan().start();
    let mut holder = Holder::start(&agent, USER);
    let serial = holder.x509().svids[0].serial().to_owned();
    agent.kill();
    // The process lives, with the same pid and start time; only the boot is another.
    let fake = agent.dir().join("boot_id");
    std::fs::write(&fake, "11111111-2222-4333-8444-555555555555\n").unwrap();
    let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", utf8(&fake));
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let with = agent.plan().clone().wrapped(&wrapper);
    *agent.plan() = with;
    agent.launch();
    let watcher = Watcher::start(&agent);
    assert_eq!(watcher.crl.serials.iter().collect::<Vec<_>>(), [&serial]);
}

/// OpenSSL and webpki refuse CRLs whose order they cannot tell; ours rise in number and in whole seconds.
#[test]
fn d12_two_revocations_in_one_second_make_two_ordered_crls() {
    let agent = plan().start();
    let mut watcher = Watcher::start(&agent);
    let mut living = Holder::start(&agent, OTHER);
    let alive = living.x509().svids.remove(0);
    let mut crls = vec![watcher.crl.clone()];
    let mut dead = Vec::new();
    for _ in 0..5 {
        let mut holder = Holder::start(&agent, USER);
        let svid = holder.x509().svids.remove(0);
        holder.kill();
        crls.push(watcher.sees("the serial", &[svid.serial()]));
        dead.push(svid);
    }
    for pair in crls.windows(2) {
        assert!(pair[1].number > pair[0].number && pair[1].this_update > pair[0].this_update, "{pair:?}");
    }
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let last = crls.last().unwrap();
    assert!(u64::try_from(last.this_update).unwrap() <= now, "thisUpdate in the future");
    openssl_verify(agent.dir(), &alive.leaf.der, &watcher.bundle, &last.der).unwrap();
    for svid in &dead {
        let said = openssl_verify(agent.dir(), &svid.leaf.der, &watcher.bundle, &last.der).unwrap_err();
        assert!(said.contains("certificate revoked"), "{said}");
    }
}

/// A holder in a mount namespace, behind a wrapper, is still one process with one life.
#[test]
fn d01_death_behind_a_wrapper_revokes() {
    let agent = plan().start();
    let mut watcher = Watcher::start(&agent);
    let mut holder = Who::uid(USER).wrapped(&["nice", "-n", "1"]).start(&agent);
    let serial = holder.x509().svids[0].serial().to_owned();
    holder.kill();
    watcher.sees("the serial", &[&serial]);
}
